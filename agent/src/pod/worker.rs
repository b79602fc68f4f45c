//! One pod's loop: look, decide, do one step, tell the server. The only place where steps are performed.
//!
//! What a step saw joins the observation, so that the way from an assignment to a running container asks the runtime
//! nothing twice; any failure, and any event of the runtime, makes the worker look at everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use runtime::observe::{ObservedPod, observe_pod};
use runtime::{ContainerId, Few, PodUid, cri};
use tokio::sync::{Notify, Semaphore, watch};

use super::admission::Rejection;
use super::decide::{self, decide};
use super::env;
use super::governed::Governed;
use super::history::History;
use super::probes::Prober;
use super::step::{self, Step};
use super::time::{self, Nanos, SECOND};
use super::view::View;
use super::volumes::{self, PodDirs};
use super::{Deps, governed};
use crate::api::pod::{Pod, PodStatus};
use crate::events::Type;

/// An adopted pod's volumes are refreshed once after this.
const ADOPTED_REFRESH: Duration = Duration::from_secs(5);
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
    /// What the governor wants.
    pub(super) governed: Governed,
}

/// See the module.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) uid: PodUid,
    pub(super) pod: Arc<Pod>,
    pub(super) removed: bool,
    pub(super) governed: Governed,
    pub(super) rejection: Option<Rejection>,
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
    pub(super) start_time: Nanos,
    pub(super) last: Arc<PodStatus>,
    pub(super) messages: BTreeMap<ContainerId, String>,
    /// Images and environments fetched while the sandbox was made, for the container started next.
    pub(super) images: BTreeMap<String, cri::Image>,
    pub(super) inputs: BTreeMap<String, Result<env::Inputs, String>>,
    /// Back-offs already told as events: container and attempt.
    pub(super) told: BTreeSet<(String, u32)>,
    /// Containers whose stop was told as an event.
    pub(super) told_killing: BTreeSet<ContainerId>,
    /// It was being deleted before this worker saw it run: part of its grace is over.
    pub(super) adopted_deleting: bool,
    pub(super) told_deadline: bool,
    /// Stopping the sandbox was tried before: it takes longer than a moment.
    pub(super) stop_tried: bool,
}

impl Worker {
    /// A worker for a pod of which `seen` exists. `rejection`: admission refused it.
    pub(super) fn new(
        shared: Arc<Shared>,
        assigned: Assigned,
        inbox: watch::Receiver<Assigned>,
        news: Arc<Notify>,
        seen: ObservedPod,
        rejection: Option<Rejection>,
    ) -> Worker {
        let pod = assigned.pod;
        let config = &shared.deps.config;
        let mut dirs = PodDirs::new(&config.root_dir, &config.pod_logs_dir, &pod);
        dirs.root.shrink_to_fit();
        dirs.logs.shrink_to_fit();
        let start_time = pod.status.start_time.as_deref().and_then(time::parse).unwrap_or_else(time::now);
        Worker {
            uid: pod.uid(),
            removed: assigned.removed,
            governed: assigned.governed,
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
    /// Boxed, for a future has room for its argument twice.
    pub(super) async fn run(mut self: Box<Self>) -> PodUid {
        if let Some(why) = self.governed.held.clone().filter(|_| self.rejection.is_none() && self.seen.is_empty()) {
            self.deps().recorder.pod_event(&self.pod, None, Type::Warning, governed::HELD, &why);
        }
        if let Some(rejection) = self.rejection.clone() {
            self.deps().recorder.pod_event(&self.pod, None, Type::Warning, &rejection.reason, &rejection.message);
        }
        self.adopt();
        loop {
            self.take_news();
            while self.stale {
                Box::pin(self.look()).await;
            }
            let stopping = decide::must_stop(&self.facts());
            self.read_messages().await;
            self.prober.sync(&self.pod, &self.seen, &self.address(), stopping, self.governed.frozen.is_some());
            let step = decide(&self.facts());
            self.tell(&step);
            if let Step::Wait { until } = step {
                self.rest();
                self.wait(until).await;
                continue;
            }
            tracing::debug!(pod = %self.pod.full_name(), pod_uid = %self.uid, step = %step::describe(&step), "step");
            // Boxed, so that a pod at rest does not hold the room of every step it could take.
            if Box::pin(self.perform(step)).await {
                self.shared.view.remove(&self.uid);
                return self.uid.clone();
            }
        }
    }

    /// Containers that run have their volumes; those are refreshed soon, for tokens may be near their end.
    fn adopt(&mut self) {
        if self.seen.containers.iter().any(|c| c.state == cri::ContainerState::ContainerRunning) {
            self.volumes_ready = true;
            let soon = tokio::time::Instant::now() + ADOPTED_REFRESH;
            self.refresh_at = volumes::refresh_period(&self.pod).map(|_| soon);
        }
    }

    pub(super) fn deps(&self) -> &Deps {
        &self.shared.deps
    }

    pub(super) fn facts(&self) -> decide::Facts<'_> {
        decide::Facts {
            pod: &self.pod,
            removed: self.removed,
            evicted: self.governed.evicted.is_some(),
            held: self.governed.held.is_some(),
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
        let changed =
            assigned.pod.metadata.generation != self.pod.metadata.generation || assigned.pod.is_deleting() != self.pod.is_deleting();
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
        self.take_orders(assigned.governed);
        // Most news of a pod is the server repeating what was just told.
        if self.pod.status == self.last {
            self.last = self.pod.status.clone();
        }
    }

    /// What the governor wants now; told as events, where it is news.
    fn take_orders(&mut self, now: Governed) {
        let before = std::mem::replace(&mut self.governed, now);
        let event = |kind, reason: &str, message: &str| self.shared.deps.recorder.pod_event(&self.pod, None, kind, reason, message);
        if let (None, Some(eviction)) = (&before.evicted, &self.governed.evicted) {
            event(Type::Warning, governed::EVICTED, &eviction.message);
        }
        match (&before.frozen, &self.governed.frozen) {
            (None, Some(why)) => event(Type::Warning, governed::FROZEN, &format!("Stands still for the sake of the node: {why}")),
            (Some(_), None) => event(Type::Normal, "GovernorThawed", "Runs again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if before.held != self.governed.held && self.seen.is_empty() {
            if let Some(why) = &self.governed.held {
                event(Type::Warning, governed::HELD, why);
            }
        }
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
        let ended =
            self.seen.containers.iter().filter(|c| c.state == cri::ContainerState::ContainerExited && !self.messages.contains_key(&c.id));
        let ended: Vec<_> = ended.map(|c| (c.id.clone(), super::last_words::LastWords::of(&self.pod, &self.dirs, c))).collect();
        if !ended.is_empty() {
            let read =
                tokio::task::spawn_blocking(move || ended.into_iter().map(|(id, words)| (id, words.read())).collect::<Vec<_>>()).await;
            self.messages.extend(read.unwrap_or_default());
        }
        let seen = &self.seen;
        self.messages.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
    }

    /// Keeps only what is needed until something changes: most of its life a pod is at rest.
    fn rest(&mut self) {
        // Emptied maps keep a node, and lists of one have room for four.
        self.images = BTreeMap::new();
        self.inputs = BTreeMap::new();
        self.seen.sandboxes.shrink_to_fit();
        self.seen.containers.shrink_to_fit();
        // Whose sandboxes they are is asked before there is a worker.
        self.seen.sandboxes.iter_mut().for_each(|sandbox| sandbox.annotations = Few::default());
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
            () = volumes => Box::pin(self.refresh_volumes()).await,
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
        let period = volumes::refresh_period(&self.pod);
        self.refresh_at = period.map(|period| tokio::time::Instant::now() + period + Duration::from_secs(spread));
    }

    /// Waits until the server wants this pod to end. For racing against long steps.
    pub(super) async fn told_to_stop(inbox: &mut watch::Receiver<Assigned>) {
        loop {
            let ends = {
                let assigned = inbox.borrow();
                assigned.removed || assigned.pod.is_deleting() || assigned.governed.evicted.is_some()
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

    /// Seconds of grace a whole-pod stop has.
    pub(super) fn grace_seconds(&self) -> i64 {
        let meta = &self.pod.metadata;
        if self.removed {
            return 1;
        }
        if let Some(eviction) = &self.governed.evicted {
            return eviction.grace;
        }
        let wanted = meta
            .deletion_grace_period_seconds
            .filter(|_| self.pod.is_deleting())
            .or(self.pod.spec.termination_grace_period_seconds)
            .unwrap_or(30);
        let end = meta.deletion_timestamp.as_deref().and_then(time::parse).filter(|_| self.adopted_deleting);
        end.map_or(wanted, |end| wanted.min((end - time::now()) / SECOND).max(1))
    }
}
