//! Answers from the running parts.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::{GovernorStatus, Link, PodLine, Released, ReservationLine, Source, Status, Why, pressure};
use crate::metrics::Metrics;
use crate::pod::{PodView, View};

/// The parts that `status` and `why` look at; [`crate::app`] fills it in.
pub struct Live {
    pub node: String,
    pub view: View,
    pub metrics: Arc<Metrics>,
    /// Whether the last node status sent said Ready.
    pub ready: watch::Receiver<Option<bool>>,
    /// The tunnels as they are now.
    pub links: Box<dyn Fn() -> Vec<Link> + Send + Sync>,
    /// Intervals in words.
    pub liveness: String,
    /// Name, version and socket of the container runtime.
    pub runtime: String,
    pub governor: Governor,
    /// Every part of the node with its plan, its limits and its use.
    pub reservations: Box<dyn Fn() -> Vec<ReservationLine> + Send + Sync>,
    pub pod_tree: Arc<cgroup::PodTree>,
}

/// The governor as this socket sees it.
pub struct Governor {
    /// What it sees and does now.
    pub status: Box<dyn Fn() -> GovernorStatus + Send + Sync>,
    /// Undoes every brake and freeze now.
    pub release: Box<dyn Fn() -> Result<Released, String> + Send + Sync>,
}

impl Governor {
    /// No loop runs: reservations only, and nothing to undo.
    pub fn fixed(mode: &str, degraded: Vec<String>) -> Self {
        let status = GovernorStatus { mode: mode.to_owned(), degraded, ..GovernorStatus::default() };
        Self { status: Box::new(move || status.clone()), release: Box::new(|| Ok(Released::default())) }
    }
}

impl Source for Live {
    fn status(&self) -> Status {
        let lease_age = self.metrics.lease_last_renewed().and_then(|last| SystemTime::now().duration_since(last).ok());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            ready: *self.ready.borrow(),
            lease_age_seconds: lease_age.map(|age| age.as_secs()),
            links: (self.links)(),
            liveness: self.liveness.clone(),
            runtime: self.runtime.clone(),
            pods: self.view.list().iter().map(|seen| pod_line(seen)).collect(),
            pressure: pressure(),
            governor: (self.governor.status)(),
            reservations: (self.reservations)(),
            kubepods_memory_limit: self.pod_tree.memory_limit().ok().flatten(),
        }
    }

    fn why(&self, pod: &str) -> Vec<Why> {
        let named = |seen: &PodView| {
            let meta = &seen.pod.metadata;
            match pod.split_once('/') {
                Some((namespace, name)) => meta.namespace == namespace && meta.name == name,
                None => meta.name == pod || meta.uid == pod,
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.view.list().iter().filter(|seen| named(seen)).map(|seen| why(seen, now)).collect()
    }

    fn release(&self) -> Result<Released, String> {
        (self.governor.release)()
    }
}

fn pod_line(seen: &PodView) -> PodLine {
    let (meta, status) = (&seen.pod.metadata, &seen.pod.status);
    let restarts = status.container_statuses.iter().map(|container| container.restart_count).sum::<i32>();
    PodLine {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        phase: status.phase.clone(),
        ready: status.condition("Ready").is_some_and(|condition| condition.status == "True"),
        restarts: u32::try_from(restarts).unwrap_or_default(),
        ip: status.pod_ip.clone(),
    }
}

/// `now`: nanoseconds since the epoch.
fn why(seen: &PodView, now: u128) -> Why {
    let (meta, status) = (&seen.pod.metadata, &seen.pod.status);
    let mut evidence = Vec::new();
    if let Some(since) = &meta.deletion_timestamp {
        evidence.push(format!("the server wants it gone, deadline {since}"));
    }
    if !status.reason.is_empty() || !status.message.is_empty() {
        evidence.push(format!("{}: {}", status.reason, status.message));
    }
    match &seen.sandbox {
        Some(sandbox) => evidence.push(format!("sandbox {}", sandbox.as_str())),
        None => evidence.push("no sandbox".to_owned()),
    }
    for (name, container) in seen.containers.iter() {
        let state = match (&container.id, container.running, &container.waiting_reason) {
            (Some(id), true, _) => format!("runs as {}", id.as_str()),
            (_, false, Some(reason)) => format!("waits: {reason}"),
            (Some(id), false, None) => format!("ended, was {}", id.as_str()),
            (None, _, _) => "not created".to_owned(),
        };
        evidence.push(format!("container {name} (attempt {}): {state}", container.attempt));
    }
    for condition in status.conditions.iter().filter(|condition| condition.status != "True") {
        evidence.push(format!("condition {} is {}: {} {}", condition.kind, condition.status, condition.reason, condition.message));
    }
    let next = seen.next_try.and_then(|at| u128::try_from(at).ok()).map(|at| at.saturating_sub(now) / 1_000_000_000);
    Why {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        phase: status.phase.clone(),
        decision: if seen.last_step.is_empty() { "none yet".to_owned() } else { seen.last_step.clone() },
        evidence,
        next_retry_seconds: next.and_then(|seconds| u64::try_from(seconds).ok()),
    }
}
