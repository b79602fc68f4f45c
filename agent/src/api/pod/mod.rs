//! Slim Pod types: what a node reads and writes of `v1.Pod`.
//!
//! Specs keep fields this agent does not know in `unknown`, by name, so that admission can refuse a pod instead of
//! running it wrongly, and so that `/pods` and the ledger give back what came. Timestamps stay RFC 3339 text.

mod container;
mod probe;
mod spec;
mod status;
mod volume;

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::ids::PodUid;
use serde::{Deserialize, Serialize};

use super::meta::{Object, ObjectMeta};
use super::quantity::Quantity;

pub use container::*;
pub use probe::*;
pub use spec::*;
pub use status::*;
pub use volume::*;

/// Fields of a spec this agent has no type for, by JSON name.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// Resource name (`cpu`, `memory`, …) to amount.
pub type ResourceList = BTreeMap<String, Quantity>;

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// v1 Pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    /// Shared, as the status is: a copy of a pod costs little more than its metadata.
    pub spec: Arc<PodSpec>,
    pub status: Arc<PodStatus>,
}

impl Object for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Pod {
    /// `metadata.uid`: what everything on the node is keyed by.
    pub fn uid(&self) -> PodUid {
        PodUid::from(&self.metadata.uid)
    }

    /// The same without the room that decoding left: a list read from JSON has space for four from its first element on.
    pub fn compact(mut self) -> Pod {
        self.spec = Arc::new(PodSpec::clone(&self.spec));
        self.status = Arc::new(PodStatus::clone(&self.status));
        self
    }

    /// `namespace/name`, for logs and messages.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Whether the server wants it gone.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether the status says that it ended for good.
    pub fn is_terminal(&self) -> bool {
        self.status.is_terminal()
    }

    /// Every container there is to know: init, regular and ephemeral ones.
    pub fn every_container(&self) -> impl Iterator<Item = &Container> {
        self.all_containers().chain(&self.spec.ephemeral_containers)
    }

    /// Whether a container was added to the running pod for debugging.
    pub fn is_ephemeral(&self, container: &str) -> bool {
        self.spec.ephemeral_containers.iter().any(|c| c.name == container)
    }

    /// Init and regular containers, in that order: what the pod itself is made of.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }
}
