//! One pod's loop: look, decide, do one step, tell the server. The only place where steps are performed.
//!
//! What a step saw joins the observation, so that the way from an assignment to a running container asks the runtime
//! nothing twice; any failure, and any event of the runtime, makes the worker look at everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::observe::{ObservedPod, observe_pod};
use runtime::{ContainerId, PodUid, cri};
use tokio::sync::{Notify, Semaphore, watch};

use super::admission::Rejection;
use super::decide::{self, Step, decide};
use super::env;
use super::history::History;
use super::probes::Prober;
use super::status::{self, Cause};
use super::time::{self, Nanos, SECOND};
use super::view::{ContainerView, PodView, View};
use super::volumes::{self, PodDirs};
use super::{Deps, reasons};
use crate::api::pod::{Pod, PodStatus};
use crate::events::Type;

/// Volumes that follow API objects are looked at this often.
const REFRESH: Duration = Duration::from_secs(75);
/// Pause before looking again when the runtime could not be asked.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What all workers share.
pub(super) struct Shared {
    pub(super) deps: Deps,
    pub(super) view: View,
    pub(super) host_ips: Vec<String>,
    pub(super) cgroup_v2: bool,
    /// Pulls allowed at once.
    pub(super) pulls: Semaphore,
}

/// What a worker is told.
#[derive(Clone)]
pub(super) struct Assigned {
    pub(super) pod: Arc<Pod>,
    /// The server no longer has it.
    pub(super) removed: bool,
}

/// See the module.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) uid: PodUid,
    pub(super) pod: Arc<Pod>,
    pub(super) removed: bool,
    rejection: Option<Rejection>,
    inbox: watch::Receiver<Assigned>,
    /// The runtime says that something changed.
    news: Arc<Notify>,
    pub(super) seen: ObservedPod,
    /// `seen` may be behind.
    pub(super) stale: bool,
    pub(super) history: History,
    pub(super) prober: Prober,
    pub(super) dirs: PodDirs,
    pub(super) volumes_ready: bool,
    refresh_at: Option<tokio::time::Instant>,
    pub(super) volume_failures: u32,
    start_time: Nanos,
    last: PodStatus,
    messages: BTreeMap<ContainerId, String>,
    /// Images and environments fetched while the sandbox was made, for the container started next.
    pub(super) images: BTreeMap<String, cri::Image>,
    pub(super) inputs: BTreeMap<String, Result<env::Inputs, String>>,
    /// Back-offs already told as events: container and attempt.
    told: BTreeSet<(String, u32)>,
    /// Containers whose stop was told as an event.
    pub(super) told_killing: BTreeSet<ContainerId>,
    /// It was being deleted before this worker saw it run: part of its grace is over.
    pub(super) adopted_deleting: bool,
    told_deadline: bool,
    /// Stopping the sandbox was tried before: it takes longer than a moment.
    pub(super) stop_tried: bool,
}

impl Worker {
    /// A worker for a pod of which `seen` exists. `rejection`: admission refused it.
    pub(super) fn new(shared: Arc<Shared>, assigned: Assigned, inbox: watch::Receiver<Assigned>, news: Arc<Notify>, seen: ObservedPod, rejection: Option<Rejection>) -> Worker {
        let pod = assigned.pod;
        let config = &shared.deps.config;
        let dirs = PodDirs::new(&config.root_dir, &config.pod_logs_dir, &pod);
        let start_time = pod.status.start_time.as_deref().and_then(time::parse).unwrap_or_else(time::now);
        Worker {
            uid: pod.uid(),
            removed: assigned.removed,
            rejection,
            inbox,
            news,
            seen,
            stale: false,
            history: History::default(),
            prober: Prober::new(shared.deps.clone()),
            dirs,
            volumes_ready: false,
            refresh_at: None,
            volume_failures: 0,
            start_time,
            last: pod.status.clone(),
            messages: BTreeMap::new(),
            images: BTreeMap::new(),
            inputs: BTreeMap::new(),
            told: BTreeSet::new(),
            told_killing: BTreeSet::new(),
            adopted_deleting: pod.is_deleting(),
            told_deadline: false,
            stop_tried: false,
            pod,
            shared,
        }
    }

    /// Runs until nothing of the pod is left. Dropping it anywhere is like the agent dying there.
    pub(super) async fn run(mut self) -> PodUid {
        if let Some(rejection) = self.rejection.clone() {
            self.deps().recorder.pod_event(&self.pod, None, Type::Warning, &rejection.reason, &rejection.message);
        }
        self.adopt();
        loop {
            self.take_news();
            while self.stale {
                self.look().await;
            }
            let stopping = decide::must_stop(&self.facts());
            self.read_messages().await;
            self.prober.sync(&self.pod, &self.seen, &self.address(), stopping);
            let step = decide(&self.facts());
            self.tell(&step);
            if let Step::Wait { until } = step {
                self.wait(until).await;
                continue;
            }
            tracing::debug!(pod = %self.pod.full_name(), pod_uid = %self.uid, step = %decide::describe(&step), "step");
            if self.perform(step).await {
                self.shared.view.remove(&self.uid);
                return self.uid;
            }
        }
    }

    /// Containers that run have their volumes; those are refreshed soon, for tokens may be near their end.
    fn adopt(&mut self) {
        if self.seen.containers.iter().any(|c| c.state == cri::ContainerState::ContainerRunning) {
            self.volumes_ready = true;
            self.arm_refresh();
            self.refresh_at = self.refresh_at.map(|at| at - REFRESH + Duration::from_secs(5));
        }
    }

    pub(super) fn deps(&self) -> &Deps {
        &self.shared.deps
    }

    pub(super) fn facts(&self) -> decide::Facts<'_> {
        decide::Facts {
            pod: &self.pod,
            removed: self.removed,
            rejected: self.rejection.is_some() || self.last.is_terminal(),
            seen: &self.seen,
            history: &self.history,
            health: self.prober.snapshot(),
            start_time: Some(self.start_time),
            now: time::now(),
        }
    }

    /// The pod's primary address, or the node's on the host's network.
    pub(super) fn address(&self) -> String {
        self.pod_ips().into_iter().next().unwrap_or_default()
    }

    pub(super) fn pod_ips(&self) -> Vec<String> {
        if self.pod.spec.host_network {
            return self.shared.host_ips.clone();
        }
        self.seen.sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    }

    /// Takes over what the server says now.
    fn take_news(&mut self) {
        if !self.inbox.has_changed().unwrap_or(false) {
            return;
        }
        let assigned = self.inbox.borrow_and_update().clone();
        let changed = assigned.pod.metadata.generation != self.pod.metadata.generation || assigned.pod.is_deleting() != self.pod.is_deleting();
        if changed || assigned.removed != self.removed {
            self.history.try_again();
            self.inputs.clear();
        }
        let (old, new) = (&self.pod.metadata, &assigned.pod.metadata);
        if changed || old.labels != new.labels || old.annotations != new.annotations {
            // Downward API files tell of these.
            self.refresh_at = self.refresh_at.map(|_| tokio::time::Instant::now());
        }
        self.pod = assigned.pod;
        self.removed = assigned.removed;
    }

    /// Asks the runtime what exists.
    async fn look(&mut self) {
        match observe_pod(&self.shared.deps.runtime, &self.uid).await {
            Ok(seen) => {
                self.seen = seen;
                self.stale = false;
            }
            Err(error) => {
                tracing::debug!(pod = %self.pod.full_name(), error = %error, "runtime could not be asked");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Last words of containers that ended.
    async fn read_messages(&mut self) {
        let ended = self.seen.containers.iter().filter(|c| c.state == cri::ContainerState::ContainerExited && !self.messages.contains_key(&c.id));
        let ended: Vec<_> = ended.map(|c| (c.id.clone(), super::teardown::LastWords::of(&self.pod, &self.dirs, c))).collect();
        if !ended.is_empty() {
            let read = tokio::task::spawn_blocking(move || ended.into_iter().map(|(id, words)| (id, words.read())).collect::<Vec<_>>()).await;
            self.messages.extend(read.unwrap_or_default());
        }
        let seen = &self.seen;
        self.messages.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
    }

    fn derive(&self) -> PodStatus {
        let now = time::now();
        if let Some(rejection) = &self.rejection {
            return status::rejected(&self.pod, &rejection.reason, &rejection.message, now);
        }
        let facts = self.facts();
        let cause = decide::past_deadline(&facts).then_some(Cause {
            reason: reasons::DEADLINE_EXCEEDED,
            message: "Pod was active on the node longer than the specified deadline",
        });
        // A pod that ended by itself is not over while it is still to be deleted.
        let stopping = self.removed || self.pod.is_deleting() || cause.is_some();
        status::derive(&status::Facts {
            pod: &self.pod,
            before: &self.last,
            seen: &self.seen,
            history: &self.history,
            health: facts.health,
            messages: &self.messages,
            host_ips: &self.shared.host_ips,
            start_time: self.start_time,
            cause,
            stopping,
            now,
        })
    }

    /// Publishes what was seen: status, view, and events that belong to a state rather than to a step.
    fn tell(&mut self, step: &Step) {
        if !self.is_passing(step) {
            let status = self.derive();
            self.publish(status);
        }
        self.tell_back_offs();
        if !self.told_deadline && decide::past_deadline(&self.facts()) && !self.pod.status.is_terminal() {
            self.told_deadline = true;
            self.deps().recorder.pod_event(&self.pod, None, Type::Normal, reasons::DEADLINE_EXCEEDED, "Pod was active on the node longer than the specified deadline");
        }
        self.show(step);
    }

    /// A state that the step ends within moments, and that says nothing the next one does not: between the containers of
    /// a new pod, and between the end of a deleted pod's containers and of its sandbox.
    fn is_passing(&self, step: &Step) -> bool {
        match step {
            Step::Start { container, attempt: 0 } => self.pod.spec.containers.iter().any(|c| c.name != *container && self.seen.container(&c.name).is_some()),
            Step::StopSandboxes { .. } => self.pod.is_deleting() && !self.stop_tried,
            _ => false,
        }
    }

    fn tell_back_offs(&mut self) {
        let meta = &self.pod.metadata;
        let all = self.last.init_container_statuses.iter().chain(&self.last.container_statuses);
        let waiting = all.filter(|s| s.state.waiting.as_ref().is_some_and(|w| w.reason == reasons::CRASH_LOOP_BACK_OFF));
        for status in waiting {
            let key = (status.name.clone(), u32::try_from(status.restart_count).unwrap_or(0));
            if self.told.insert(key) {
                let message = format!("Back-off restarting failed container {} in pod {}_{}({})", status.name, meta.name, meta.namespace, meta.uid);
                let path = super::hooks::field_path(&self.pod, &status.name);
                self.shared.deps.recorder.pod_event(&self.pod, Some(&path), Type::Warning, "BackOff", &message);
            }
        }
    }

    fn show(&self, step: &Step) {
        let mut pod = Pod::clone(&self.pod);
        pod.status = self.last.clone();
        let containers = self.pod.all_containers().map(|c| (c.name.clone(), self.container_view(&c.name))).collect();
        let view = PodView {
            pod: Arc::new(pod),
            sandbox: self.seen.sandbox().map(|s| s.id.clone()),
            containers,
            log_dir: self.dirs.logs.clone(),
            last_step: decide::describe(step),
            next_try: match step {
                Step::Wait { until } => *until,
                _ => None,
            },
        };
        self.shared.view.put(self.uid.clone(), view);
    }

    fn container_view(&self, name: &str) -> ContainerView {
        let waiting = self.last.container(name).and_then(|s| s.state.waiting.as_ref()).map(|w| w.reason.clone());
        let mut instances = self.seen.containers.iter().filter(|c| c.name == name);
        let Some(newest) = instances.next() else { return ContainerView { waiting_reason: waiting, ..Default::default() } };
        let path = |c: &runtime::observe::ObservedContainer| (!c.log_path.is_empty()).then(|| PathBuf::from(&c.log_path));
        ContainerView {
            id: Some(newest.id.clone()),
            attempt: newest.attempt,
            running: newest.state == cri::ContainerState::ContainerRunning,
            log_path: path(newest),
            waiting_reason: waiting,
            previous_log_path: instances.find(|c| c.state == cri::ContainerState::ContainerExited).and_then(path),
        }
    }

    /// Sleeps until something may have changed.
    async fn wait(&mut self, until: Option<Nanos>) {
        let refresh = self.refresh_at.filter(|_| self.volumes_ready && !decide::must_stop(&self.facts()));
        let timer = until.map(|at| Duration::from_nanos(u64::try_from((at - time::now()).max(0)).unwrap_or(0)));
        let clock = async {
            match timer {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let volumes = async {
            match refresh {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The server's word first, so that a deletion is never behind a restart.
            biased;
            changed = self.inbox.changed() => {
                if changed.is_err() {
                    // The agent is going down; the worker is aborted with it.
                    std::future::pending::<()>().await;
                }
                self.inbox.mark_changed();
            }
            () = self.news.notified() => self.stale = true,
            () = self.prober.changed() => {}
            () = clock => {}
            () = volumes => self.refresh_volumes().await,
        }
    }

    async fn refresh_volumes(&mut self) {
        if let Err(failure) = volumes::set_up(&self.shared.deps, &self.pod, &self.dirs, &self.shared.host_ips, &self.pod_ips()).await {
            tracing::debug!(pod = %self.pod.full_name(), error = %failure, "volumes not refreshed");
        }
        self.arm_refresh();
    }

    /// Sets the clock of the next volume refresh; pods are spread by their UID.
    pub(super) fn arm_refresh(&mut self) {
        let spread = self.uid.bytes().map(u64::from).sum::<u64>() % 15;
        self.refresh_at = volumes::needs_refresh(&self.pod).then(|| tokio::time::Instant::now() + REFRESH + Duration::from_secs(spread));
    }

    /// Waits until the server wants this pod to end. For racing against long steps.
    pub(super) async fn told_to_stop(inbox: &mut watch::Receiver<Assigned>) {
        loop {
            let ends = {
                let assigned = inbox.borrow();
                assigned.removed || assigned.pod.is_deleting()
            };
            if ends {
                return;
            }
            if inbox.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A receiver of its own, which leaves the worker's news unread.
    pub(super) fn inbox(&self) -> watch::Receiver<Assigned> {
        self.inbox.clone()
    }

    /// Publishes in the middle of a step.
    pub(super) fn tell_now(&mut self, step: &str) {
        let status = self.derive();
        self.publish(status);
        tracing::trace!(pod = %self.pod.full_name(), step, "told");
    }

    fn publish(&mut self, status: PodStatus) {
        if !self.removed && status != self.last {
            tracing::debug!(pod = %self.pod.full_name(), phase = %status.phase, ready = status.condition("Ready").is_some_and(|c| c.status == "True"), "status told");
            self.deps().status.publish(&self.pod, status.clone());
        }
        self.last = status;
    }

    /// Seconds of grace a whole-pod stop has.
    pub(super) fn grace_seconds(&self) -> i64 {
        let meta = &self.pod.metadata;
        if self.removed {
            return 1;
        }
        let wanted = meta.deletion_grace_period_seconds.filter(|_| self.pod.is_deleting()).or(self.pod.spec.termination_grace_period_seconds).unwrap_or(30);
        let end = meta.deletion_timestamp.as_deref().and_then(time::parse).filter(|_| self.adopted_deleting);
        end.map_or(wanted, |end| wanted.min((end - time::now()) / SECOND).max(1))
    }
}
