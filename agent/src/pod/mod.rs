//! Pods on this node: from what the server assigned to what the runtime runs, and back as status.
//!
//! One task per pod UID ([`worker`]) turns this wheel until nothing is left to do, then sleeps until the runtime, the
//! server, a probe or a clock says that something changed:
//!
//! ```text
//!   assignment ─┐
//!   observation ├─► decide (pure) ─► one Step ─► done by the worker ─► what the step saw joins the observation
//!   history     │
//!   now        ─┘        status (pure): the same facts ─► PodStatus ─► status writer
//!
//!   admitted? ──no──► Failed(reason), nothing is ever started
//!      │
//!      ▼
//!   RunSandbox ─► Start init₁ … initₙ ─► Start containers ─► Wait ◄──┐ exits, back-off, probes: Start, Kill
//!      ▲ sandbox lost: StopAll                               └──────┘
//!      │
//!   deleted, removed, deadline, or phase terminal:
//!   StopAll ─► StopSandboxes ─► Release (volumes, cgroup) ─► Finish (server) ─► gone there ─► Forget (runtime, files)
//! ```
//!
//! Invariants: every fact a decision needs can be asked again after `kill -9` at any line (runtime, disk, server);
//! [`history`] only makes a worker patient. A container is started twice only as a restart with a higher attempt.
//! Nothing is stopped or removed because the server could not be heard: absent pods count only in a known snapshot.

pub mod admission;
pub mod decide;
pub mod dns;
pub mod env;
pub mod fields;
pub mod governed;
pub mod history;
mod hooks;
pub mod hosts;
pub mod images;
mod last_words;
mod litter;
mod log_rotation;
pub mod probes;
mod pulling;
pub mod reasons;
pub mod resources;
mod start;
pub mod status;
pub mod step;
mod steps;
mod teardown;
mod tell;
pub mod time;
pub mod translate;
pub mod unsupported;
pub mod view;
pub mod volumes;
mod worker;
pub mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::pod::ResourceList;
use crate::config::{Config, Taint};
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::registries::Logins;
use crate::status_writer;

pub use view::{ContainerView, PodView, View};
pub use workers::Workers;

/// What pod workers work with.
#[derive(Clone)]
pub struct Deps {
    pub config: Arc<Config>,
    pub runtime: runtime::Client,
    pub pod_tree: Arc<cgroup::PodTree>,
    pub objects: Objects,
    pub recorder: Recorder,
    pub status: status_writer::Handle,
    pub metrics: Arc<Metrics>,
    /// Credentials of registries, where a pod brings none.
    pub logins: Arc<Logins>,
    /// The newest facts about this node.
    pub node: watch::Receiver<Arc<NodeFacts>>,
    /// What the governor wants of pods.
    pub orders: watch::Receiver<Arc<governed::Orders>>,
}

/// What admission, environment and resource limits need to know of the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node object; only NoExecute ones matter here.
    pub taints: Vec<Taint>,
    /// `cpu`, `memory`, `ephemeral-storage`, `pods`.
    pub capacity: ResourceList,
    /// Capacity less the reservation.
    pub allocatable: ResourceList,
}
