//! Probes: what containers say of themselves (kubelet-contract 4). [`Health`] is the plain result, [`Prober`] the tasks
//! that find it out, one per running container and kind of probe.

mod attempt;
pub mod http;
mod runner;
mod threshold;

use std::collections::BTreeMap;

use runtime::ContainerId;

use crate::api::pod::{Container, Pod, PodStatus};

pub(super) use attempt::request;
pub use runner::Prober;

/// Kinds of probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// Settled results by container instance. No entry: nothing is settled yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Health(BTreeMap<(ContainerId, Kind), bool>);

impl Health {
    /// Records a settled result; tells whether it is news.
    pub fn set(&mut self, id: &ContainerId, kind: Kind, good: bool) -> bool {
        self.0.insert((id.clone(), kind), good) != Some(good)
    }

    /// Forgets instances that are not in `keep`.
    pub fn retain(&mut self, keep: impl Fn(&ContainerId) -> bool) {
        self.0.retain(|(id, _), _| keep(id));
    }

    fn get(&self, id: &ContainerId, kind: Kind) -> Option<bool> {
        self.0.get(&(id.clone(), kind)).copied()
    }

    /// Whether a running instance counts as started: no startup probe, its success, or the server remembering one.
    pub fn started(&self, pod: &Pod, container: &Container, id: &ContainerId) -> bool {
        if container.startup_probe.is_none() {
            return true;
        }
        self.get(id, Kind::Startup).unwrap_or_else(|| remembered(&pod.status, container, id).is_some_and(|s| s.started == Some(true)))
    }

    /// Whether a running, started instance is ready. Before the first result what was told last holds, so that
    /// readiness does not flap when the agent restarts.
    pub fn ready(&self, before: &PodStatus, container: &Container, id: &ContainerId) -> bool {
        if container.readiness_probe.is_none() {
            return true;
        }
        self.get(id, Kind::Readiness).unwrap_or_else(|| remembered(before, container, id).is_some_and(|s| s.ready))
    }

    /// Whether its liveness probe gave it up.
    pub fn liveness_failed(&self, id: &ContainerId) -> bool {
        self.get(id, Kind::Liveness) == Some(false)
    }

    /// Whether its startup probe gave it up.
    pub fn startup_failed(&self, id: &ContainerId) -> bool {
        self.get(id, Kind::Startup) == Some(false)
    }
}

fn remembered<'a>(status: &'a PodStatus, container: &Container, id: &ContainerId) -> Option<&'a crate::api::pod::ContainerStatus> {
    status.container(&container.name).filter(|s| s.container_id.strip_prefix("containerd://") == Some(id.as_str()))
}
