//! What the governor wants of pods, as their workers see it: end, stand still, or not begin yet.
//!
//! The governor's thread acts on control groups by itself; this is how the pods' statuses stay truthful about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cgroup::QosClass;
use runtime::PodUid;

use super::resources;
use crate::api::pod::Pod;

/// Condition and reason a kubelet gives a pod it ends for its node's sake.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
pub const TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";
pub const EVICTED: &str = "Evicted";
/// A pod that has to wait before it begins.
pub const HELD: &str = "GovernorBackoff";
/// Reason of `Ready=False` while a pod stands still.
pub const FROZEN: &str = "GovernorFrozen";

/// A pod that has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// For its status.
    pub message: String,
    /// Seconds its containers have.
    pub grace: i64,
}

/// What is wanted of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Governed {
    /// It has failed.
    pub evicted: Option<Arc<Eviction>>,
    /// Its processes stand still; why.
    pub frozen: Option<Arc<str>>,
    /// Nothing of it is to start yet; why.
    pub held: Option<Arc<str>>,
}

/// What is wanted of all pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    pub evicted: BTreeMap<PodUid, Arc<Eviction>>,
    pub frozen: BTreeMap<PodUid, Arc<str>>,
    /// Only Guaranteed pods begin; why.
    pub guaranteed_only: Option<Arc<str>>,
    /// Workloads ([`workload`]) that were ended too often; why they wait.
    pub waiting: BTreeMap<String, Arc<str>>,
    /// No pull begins.
    pub no_pulls: bool,
}

impl Orders {
    /// What is wanted of this one.
    pub fn of(&self, pod: &Pod) -> Governed {
        let uid = pod.uid();
        let free = resources::is_critical(pod) || resources::qos(pod) == QosClass::Guaranteed;
        let held = self.waiting.get(workload(pod)).or(self.guaranteed_only.as_ref().filter(|_| !free)).cloned();
        Governed { evicted: self.evicted.get(&uid).cloned(), frozen: self.frozen.get(&uid).cloned(), held }
    }
}

/// Whose pod it is: the UID of its controller, else its own.
pub fn workload(pod: &Pod) -> &str {
    let owners = &pod.metadata.owner_references;
    owners.iter().find(|owner| owner.controller == Some(true)).map_or(pod.metadata.uid.as_str(), |owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::meta::OwnerReference;

    fn pod(uid: &str, controller: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = uid.to_owned();
        pod.metadata.owner_references =
            vec![OwnerReference { uid: controller.to_owned(), controller: Some(true), ..OwnerReference::default() }];
        pod
    }

    #[test]
    fn who_waits_and_who_does_not() {
        let why: Arc<str> = "memory".into();
        let orders = Orders {
            guaranteed_only: Some(why.clone()),
            waiting: [("set".to_owned(), Arc::from("three times"))].into(),
            ..Orders::default()
        };
        assert_eq!(orders.of(&pod("a", "other")).held, Some(why));
        assert_eq!(orders.of(&pod("a", "set")).held.as_deref(), Some("three times"));
        let mut critical = pod("a", "other");
        Arc::make_mut(&mut critical.spec).priority = Some(2_000_000_000);
        assert_eq!(orders.of(&critical).held, None);
        critical.metadata.owner_references[0].uid = "set".to_owned();
        assert_eq!(orders.of(&critical).held.as_deref(), Some("three times"));
        assert_eq!(Orders::default().of(&pod("a", "set")), Governed::default());
    }
}
