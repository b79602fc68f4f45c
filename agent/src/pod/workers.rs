//! Pod UID to worker: started, told, retired. Admission happens here, in order, so that two pods never get the same room.
//!
//! Nothing is cleaned up before the assignments are known: an empty view must never be read as "no pods".

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::events::{Change, Events, RuntimeEvent};
use runtime::observe::{ObservedPod, observe};
use runtime::{ContainerId, PodUid};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use super::admission::{self, Rejection};
use super::governed::{Governed, Orders};
use super::steps::INSTANCE;
use super::volumes;
use super::worker::{Assigned, Shared, Worker};
use super::{Deps, View, log_rotation};
use crate::api::pod::Pod;
use crate::assignments::Assignments;
use crate::metrics::Loop;

/// Pulls at once where they are not serialised.
const PARALLEL_PULLS: usize = 8;

/// So long after the agent's start nothing is done about pods before the server told of them: a container that ended while its
/// pod was being deleted is not to be started again. An agent whose server is away starts what it remembers after it.
const SERVER_FIRST: Duration = Duration::from_secs(1);

/// How often the loop shows that it turns and that the runtime answers.
const PULSE: Duration = Duration::from_secs(60);
/// A runtime that takes longer to say its version does not answer.
const ANSWER: Duration = Duration::from_secs(20);

/// All pod workers of this node.
pub struct Workers {
    shared: Arc<Shared>,
    workers: BTreeMap<PodUid, Handle>,
    tasks: JoinSet<PodUid>,
}

struct Handle {
    assigned: watch::Sender<Assigned>,
    news: Arc<Notify>,
    rejected: bool,
}

impl Workers {
    /// Nothing runs until [`Workers::run`].
    pub fn new(deps: Deps) -> Workers {
        let config = &deps.config;
        let shared = Shared {
            view: View::default(),
            host_ips: config.node_ips.iter().map(|ip| ip.to_string()).collect(),
            cgroup_v2: deps.pod_tree.hierarchy().layout() == cgroup::Layout::V2,
            pulls: Semaphore::new(if config.serialize_image_pulls == Some(true) { 1 } else { PARALLEL_PULLS }),
            deps,
        };
        Workers { shared: Arc::new(shared), workers: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// What the workers see, for readers.
    pub fn view(&self) -> View {
        self.shared.view.clone()
    }

    /// Runs until `stop` becomes true. Stopping leaves every pod running.
    pub async fn run(mut self, mut assignments: watch::Receiver<Assignments>, mut stop: watch::Receiver<bool>) {
        let mut events = Events::subscribe(&self.shared.deps.runtime);
        // What a former agent left is asked once; from then on each worker asks for its own.
        let mut left = tokio::select! {
            left = self.look() => left,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        // What was remembered may be over: the server has the first word where it answers.
        tokio::select! {
            _ = tokio::time::timeout(SERVER_FIRST, assignments.wait_for(Assignments::is_complete)) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let mut first = true;
        let mut orders = self.shared.deps.orders.clone();
        let _rotation = AbortOnDrop(crate::task::spawn(log_rotation::run(self.shared.deps.clone(), self.view())).abort_handle());
        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (pods, complete) = {
                let now = assignments.borrow_and_update();
                (now.pods().cloned(), now.is_complete())
            };
            if let Some(pods) = pods {
                self.assign(&pods, complete, &mut left);
                if first && complete {
                    first = false;
                    self.retire_orphans(&pods, std::mem::take(&mut left));
                    self.sweep().await;
                }
            }
            loop {
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return,
                    changed = assignments.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                        if let Ok(uid) = ended {
                            self.workers.remove(&uid);
                        }
                    }
                    _ = pulse.tick() => self.pulse(),
                    Ok(()) = orders.changed() => self.pass_orders(&orders.borrow_and_update()),
                    event = events.next() => self.pass_on(&event),
                }
            }
        }
    }

    /// Shows that the loop turns, once the runtime has answered, too. Beside the loop, for it may take its time.
    fn pulse(&self) {
        let deps = self.shared.deps.clone();
        crate::task::spawn(async move {
            match tokio::time::timeout(ANSWER, deps.runtime.version()).await {
                Ok(Ok(_)) => deps.metrics.pulse().turned(Loop::Sync),
                Ok(Err(error)) => tracing::debug!(error = %error, "container runtime does not answer"),
                Err(_) => tracing::debug!(limit = ?ANSWER, "container runtime does not answer"),
            }
        });
    }

    async fn look(&self) -> BTreeMap<PodUid, ObservedPod> {
        loop {
            match observe(&self.shared.deps.runtime).await {
                Ok(pods) => return pods,
                Err(error) => {
                    tracing::debug!(error = %error, "runtime not ready");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Brings the workers in line with a snapshot.
    /// Pods that are absent are retired only when the snapshot is `complete`.
    fn assign(&mut self, pods: &BTreeMap<PodUid, Arc<Pod>>, complete: bool, left: &mut BTreeMap<PodUid, ObservedPod>) {
        for (uid, handle) in &self.workers {
            let now = match pods.get(uid) {
                Some(pod) => Assigned { pod: pod.clone(), removed: false, governed: handle.assigned.borrow().governed.clone() },
                None if !complete => continue,
                None => {
                    let before = handle.assigned.borrow().clone();
                    Assigned { removed: true, ..before }
                }
            };
            let same = {
                let before = handle.assigned.borrow();
                before.removed == now.removed && Arc::ptr_eq(&before.pod, &now.pod)
            };
            if !same {
                handle.assigned.send_replace(now);
            }
        }
        let mut fresh: Vec<&Arc<Pod>> = pods.iter().filter(|(uid, _)| !self.workers.contains_key(*uid)).map(|(_, pod)| pod).collect();
        fresh.sort_by(|a, b| (&a.metadata.creation_timestamp, &a.metadata.uid).cmp(&(&b.metadata.creation_timestamp, &b.metadata.uid)));
        for pod in fresh {
            let uid = pod.uid();
            let seen = left.remove(&uid).unwrap_or_else(|| ObservedPod::empty(uid.clone()));
            let rejection = self.admit(pod, &seen);
            let governed = self.shared.deps.orders.borrow().of(pod);
            self.start(Assigned { pod: pod.clone(), removed: false, governed }, seen, rejection);
        }
    }

    /// Only a pod of which nothing was ever done here is judged.
    fn admit(&self, pod: &Pod, seen: &ObservedPod) -> Option<Rejection> {
        if !seen.is_empty() || pod.is_terminal() || pod.is_deleting() || pod.status.start_time.is_some() {
            return None;
        }
        let others: Vec<Arc<Pod>> = self
            .workers
            .iter()
            .filter(|(uid, handle)| !handle.rejected && **uid != pod.uid())
            .filter(|(uid, _)| self.shared.view.get(uid).is_none_or(|view| !view.pod.is_terminal()))
            .map(|(_, handle)| handle.assigned.borrow().pod.clone())
            .filter(|p| !p.is_terminal())
            .collect();
        let deps = &self.shared.deps;
        let node = deps.node.borrow().clone();
        let max_pods = deps
            .config
            .max_pods
            .map(u64::from)
            .or_else(|| node.allocatable.get("pods").and_then(|q| u64::try_from(q.value()).ok()))
            .unwrap_or(110);
        if let Some(why) = &deps.config.best_effort_refused {
            if let Err(rejection) = admission::best_effort(pod, why) {
                return Some(rejection);
            }
        }
        admission::admit(pod, others.iter().map(Arc::as_ref), &node, max_pods, &deps.config.allowed_unsafe_sysctls).err()
    }

    fn start(&mut self, assigned: Assigned, seen: ObservedPod, rejection: Option<Rejection>) {
        let uid = assigned.pod.uid();
        tracing::info!(pod = %assigned.pod.full_name(), pod_uid = %uid, removed = assigned.removed, "pod taken on");
        let (sender, inbox) = watch::channel(assigned.clone());
        let news = Arc::new(Notify::new());
        let rejected = rejection.is_some();
        let worker = Worker::new(self.shared.clone(), assigned, inbox, news.clone(), seen, rejection);
        self.tasks.spawn(Box::new(worker).run());
        self.workers.insert(uid, Handle { assigned: sender, news, rejected });
    }

    /// Pods in the runtime that are this node's and that the server does not have: their workers only take them down.
    fn retire_orphans(&mut self, pods: &BTreeMap<PodUid, Arc<Pod>>, left: BTreeMap<PodUid, ObservedPod>) {
        let node = self.shared.deps.config.node_name.clone();
        for (uid, seen) in left {
            let ours = seen.sandboxes.iter().any(|s| s.annotations.get(INSTANCE) == Some(&node));
            if pods.contains_key(&uid) || self.workers.contains_key(&uid) || !ours {
                continue;
            }
            let mut pod = Pod::default();
            pod.metadata.uid = uid.to_string();
            pod.metadata.name.clone_from(&seen.name);
            pod.metadata.namespace.clone_from(&seen.namespace);
            self.start(Assigned { pod: Arc::new(pod), removed: true, governed: Governed::default() }, seen, None);
        }
    }

    /// Directories and cgroups of pods that no longer exist anywhere: a former agent died while it removed them.
    async fn sweep(&self) {
        let known: BTreeSet<String> = self.workers.keys().map(PodUid::to_string).collect();
        let (tree, config) = (self.shared.deps.pod_tree.clone(), self.shared.deps.config.clone());
        let work = tokio::task::spawn_blocking(move || {
            for entry in tree.list_pods().unwrap_or_default() {
                if !known.contains(&entry.uid) {
                    tracing::info!(pod_uid = %entry.uid, "removing the cgroup of a pod that is gone");
                    if let Err(error) = tree.remove_pod(&entry.uid, entry.qos) {
                        tracing::warn!(pod_uid = %entry.uid, error = %error, "cgroup not removed");
                    }
                }
            }
            for uid in entries(&config.root_dir.join("pods")) {
                if !known.contains(&uid) {
                    sweep_pod(&config.root_dir.join("pods").join(&uid), &config.pod_logs_dir, &uid);
                }
            }
            if let Some(links) = &config.container_logs_dir {
                sweep_links(links, &config.pod_logs_dir);
            }
        });
        let _ = work.await;
    }

    /// Tells the workers concerned what the governor wants.
    fn pass_orders(&self, orders: &Orders) {
        for handle in self.workers.values() {
            let wanted = orders.of(&handle.assigned.borrow().pod);
            handle.assigned.send_if_modified(|assigned| {
                let news = assigned.governed != wanted;
                if news {
                    assigned.governed = wanted;
                }
                news
            });
        }
    }

    /// Wakes the workers an event concerns.
    fn pass_on(&self, event: &RuntimeEvent) {
        match event {
            RuntimeEvent::LookAgain => self.workers.values().for_each(|w| w.news.notify_one()),
            // Containers start only because a worker starts them, and it looks by itself.
            RuntimeEvent::Task { change: Change::Started, .. } => {}
            RuntimeEvent::Task { pod: Some(uid), .. } => {
                if let Some(worker) = self.workers.get(uid) {
                    worker.news.notify_one();
                }
            }
            RuntimeEvent::Task { pod: None, container, .. } => self.wake_owner(container),
        }
    }

    /// A container that is gone no longer says whose it was; the views do.
    fn wake_owner(&self, container: &ContainerId) {
        let owner = self.shared.view.list().into_iter().find(|view| {
            let sandbox = view.sandbox.as_ref().is_some_and(|s| s.as_str() == container.as_str());
            sandbox || view.containers.values().any(|c| c.id.as_ref() == Some(container))
        });
        if let Some(worker) = owner.and_then(|view| self.workers.get(&view.pod.uid())) {
            worker.news.notify_one();
        }
    }
}

/// Ends a task with its owner.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    found.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Links to logs of this instance that are gone.
fn sweep_links(links: &Path, logs: &Path) {
    for name in entries(links) {
        let link = links.join(name);
        let dangling = fs::read_link(&link).is_ok_and(|to| to.starts_with(logs) && !to.exists());
        if dangling {
            let _ = fs::remove_file(link);
        }
    }
}

fn sweep_pod(dir: &Path, logs: &Path, uid: &str) {
    tracing::info!(pod_uid = %uid, "removing the directories of a pod that is gone");
    let suffix = format!("_{uid}");
    for name in entries(logs).into_iter().filter(|name| name.ends_with(&suffix)) {
        let _ = fs::remove_dir_all(logs.join(name));
    }
    let gone = volumes::unmount_below(dir).and_then(|()| fs::remove_dir_all(dir));
    if let Err(error) = gone {
        tracing::warn!(pod_uid = %uid, error = %error, "pod directory not removed");
    }
}
