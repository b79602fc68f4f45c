//! The groups of pods: `kubepods`, one group per QoS class and one per pod, with what Kubernetes enforces on each.
//!
//! All calls block (a limit below what is in use makes the kernel reclaim first), so callers use a thread that may wait.
//! Everything is idempotent: making what exists sets its limits again, removing what is gone succeeds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::io::IoMax;
use crate::limits::{CpuQuota, Limits};
use crate::path::{Driver, Names};
use crate::reservation::NodeAllocatable;
use crate::slice::Manager;
use crate::standing::{Held, Standing};
use crate::stat::{self, Stats};
use crate::value::{Limit, QosClass, milli_cpu_to_shares};
use crate::{Controller, Hierarchy, Result, kill};

/// How long killed processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

/// On v2 `kubepods` competes with `system.slice` and ours by weight, whatever the number of processors: never with more than the
/// default (governor 2.1). The shares of v1 are the kubelet's.
const WEIGHT: u64 = 100;

const MIB: u64 = 1 << 20;

/// The pod groups of one instance.
#[derive(Debug, Clone)]
pub struct PodTree {
    hierarchy: Hierarchy,
    names: Names,
    driver: Driver,
    standing: Arc<Standing>,
}

/// What [`PodTree::ensure_root`] found in the files after writing them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforced {
    /// The group of all pods.
    pub group: String,
    /// Its hard memory limit in bytes, as read back.
    pub memory_limit: Option<u64>,
    /// Its limit of tasks, as read back.
    pub pids_limit: Option<u64>,
    /// Its CPU shares (v1) or weight (v2), as read back.
    pub cpu: Option<u64>,
    /// Controllers the kernel does not offer: what they should limit is not limited.
    pub unavailable: Vec<&'static str>,
}

/// A pod's group and what it may use; amounts are those of the whole pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCgroup<'a> {
    /// The pod's UID (for a static pod the hash of its configuration).
    pub uid: &'a str,
    /// Its class.
    pub qos: QosClass,
    /// Shares for its requests, 2 for BestEffort.
    pub cpu_shares: u64,
    /// Microseconds of CPU time per [`crate::CPU_PERIOD_US`], if every container has a limit.
    pub cpu_quota: Option<u64>,
    /// Bytes, if every container has a limit.
    pub memory_limit: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// A pod's group that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodEntry {
    /// The pod's UID.
    pub uid: String,
    /// The class whose group it is in.
    pub qos: QosClass,
}

/// What the pods on this node ask for, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QosDemand {
    /// Memory requests of Guaranteed pods, bytes.
    pub guaranteed_memory: u64,
    /// Memory requests of Burstable pods, bytes.
    pub burstable_memory: u64,
    /// CPU requests of Burstable pods, thousandths.
    pub burstable_cpu_millis: u64,
}

impl PodTree {
    /// Pods below `cgroup_root` (`/`, or the kubelet's `cgroup-root`), named for `driver`. Touches nothing yet.
    pub fn new(hierarchy: Hierarchy, cgroup_root: &str, driver: Driver) -> Result<PodTree> {
        let standing = Arc::new(Standing::new(hierarchy.clone(), Manager::detect()));
        Ok(PodTree { hierarchy, names: Names::new(cgroup_root, driver)?, driver, standing })
    }

    /// The values that are to stand on the groups of this instance; those of `kubepods` and the classes are among them.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Where the controllers are.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// How groups are named.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The group of all pods, as a path from the mounts.
    pub fn kubepods(&self) -> String {
        self.names.kubepods()
    }

    /// The group of all pods of a class; that of Guaranteed pods is the group of all pods.
    pub fn class(&self, qos: QosClass) -> String {
        self.names.qos(qos)
    }

    /// Makes `kubepods` and the groups of the classes and enforces the reservation. A controller that is missing is
    /// reported, not refused: the node runs, and says what does not hold.
    pub fn ensure_root(&self, allocatable: &NodeAllocatable) -> Result<Enforced> {
        let group = self.names.kubepods();
        for qos in QosClass::ALL {
            self.hierarchy.create(&self.names.qos(qos), true)?;
        }
        let limits = Limits {
            memory_max: Some(allocatable.memory_limit.into()),
            swap_max: allocatable.swap_limit.map(Limit::At),
            cpu_shares: Some(milli_cpu_to_shares(allocatable.cpu_millis)),
            cpu_weight: Some(WEIGHT),
            pids_max: Some(allocatable.pids_limit.into()),
            ..Limits::default()
        };
        let unavailable = self.hold("kubepods", "limits", group.clone(), limits)?;
        // After a restart pods are running: their classes keep what they have until it is known who they are.
        if !self.classes_are_set()? {
            self.refresh_qos(allocatable, &QosDemand::default())?;
        }
        Ok(Enforced {
            memory_limit: self.memory_limit()?,
            pids_limit: self.read_limit(&group, Controller::Pids, "pids.max", "pids.max")?,
            cpu: self.read_limit(&group, Controller::Cpu, "cpu.shares", "cpu.weight")?,
            unavailable: unavailable.into_iter().map(Controller::v2_name).collect(),
            group,
        })
    }

    /// Sets what the groups of the classes get, for the pods there are now. Call it when a pod comes or goes.
    pub fn refresh_qos(&self, allocatable: &NodeAllocatable, demand: &QosDemand) -> Result<()> {
        for (scope, qos, limits) in qos_limits(allocatable, demand) {
            self.hold(scope, "limits", self.names.qos(qos), limits)?;
        }
        Ok(())
    }

    /// Limits what all pods together may read from and write to these disks. Without the io controller of v2 it says that by returning false.
    pub fn limit_io(&self, disks: Vec<IoMax>) -> Result<bool> {
        let limits = Limits { io_max: disks, ..Limits::default() };
        let group = self.names.kubepods();
        self.hold("kubepods", "io", group.clone(), limits)?;
        Ok(self.hierarchy.is_v2(Controller::Io) && self.hierarchy.dir(Controller::Io, &group)?.has("io.max"))
    }

    /// The hard memory limit of all pods in bytes, read from the kernel.
    pub fn memory_limit(&self) -> Result<Option<u64>> {
        let group = self.names.kubepods();
        self.read_limit(&group, Controller::Memory, "memory.limit_in_bytes", "memory.max")
    }

    /// The `cgroup_parent` CRI wants for a pod.
    pub fn cgroup_parent(&self, uid: &str, qos: QosClass) -> Result<String> {
        self.names.pod(uid, qos)
    }

    /// Makes a pod's group with its limits and returns its `cgroup_parent`.
    ///
    /// With the systemd driver the group is a directory named as the slice whose limits systemd was told; it takes the
    /// directory over when the runtime asks for a scope inside.
    pub fn ensure_pod(&self, pod: &PodCgroup<'_>) -> Result<String> {
        let group = self.names.pod(pod.uid, pod.qos)?;
        self.hierarchy.create(&group, true)?;
        let limits = Limits {
            memory_max: Some(pod.memory_limit.into()),
            cpu_shares: Some(pod.cpu_shares),
            cpu_quota: Some(CpuQuota { quota_us: pod.cpu_quota, period_us: crate::CPU_PERIOD_US }),
            pids_max: Some(pod.pids.into()),
            ..Limits::default()
        };
        self.standing.apply_once(&group, &limits, self.are_units())?;
        Ok(group)
    }

    /// Kills whatever is left of a pod and removes its group. Call it after the runtime removed the sandbox.
    pub fn remove_pod(&self, uid: &str, qos: QosClass) -> Result<()> {
        let group = self.names.pod(uid, qos)?;
        kill::remove_group(&self.hierarchy, &group, PATIENCE)?;
        if let Some(manager) = self.manager() {
            manager.forget(&group);
        }
        Ok(())
    }

    /// Kills every pod and removes `kubepods`, and the cgroup root too if nothing else is in it: for leaving the cluster.
    pub fn remove_all(&self) -> Result<()> {
        let pods = self.list_pods()?;
        self.standing.release_below(&self.names.kubepods());
        kill::remove_group(&self.hierarchy, &self.names.kubepods(), PATIENCE)?;
        if let Some(manager) = self.manager() {
            for pod in pods {
                manager.forget(&self.names.pod(&pod.uid, pod.qos)?);
            }
            for qos in QosClass::ALL {
                manager.forget(&self.names.qos(qos));
            }
        }
        let root = self.names.root();
        if root != "/" {
            kill::remove_if_empty(&self.hierarchy, &root);
        }
        Ok(())
    }

    /// The pods that have a group in any hierarchy, sorted by UID.
    pub fn list_pods(&self) -> Result<Vec<PodEntry>> {
        let mut pods = BTreeSet::new();
        for qos in QosClass::ALL {
            for dir in self.hierarchy.every_dir(&self.names.qos(qos)) {
                for name in dir.children()? {
                    if let Some(uid) = self.names.uid_of(qos, &name) {
                        pods.insert(PodEntry { uid, qos });
                    }
                }
            }
        }
        Ok(pods.into_iter().collect())
    }

    /// The ids of the containers, sandbox included, that have a group in a pod's.
    pub fn list_containers(&self, uid: &str, qos: QosClass) -> Result<Vec<String>> {
        let group = self.names.pod(uid, qos)?;
        let mut ids = BTreeSet::new();
        for dir in self.hierarchy.every_dir(&group) {
            let names = dir.children()?;
            ids.extend(names.iter().filter_map(|name| self.names.container_of(name)));
        }
        Ok(ids.into_iter().collect())
    }

    /// What the whole machine uses.
    pub fn node_stats(&self) -> Result<Stats> {
        stat::node(&self.hierarchy)
    }

    /// What all pods together use.
    pub fn kubepods_stats(&self) -> Result<Stats> {
        stat::group(&self.hierarchy, &self.names.kubepods())
    }

    /// What a pod uses.
    pub fn pod_stats(&self, uid: &str, qos: QosClass) -> Result<Stats> {
        stat::group(&self.hierarchy, &self.names.pod(uid, qos)?)
    }

    /// What a container uses.
    pub fn container_stats(&self, uid: &str, qos: QosClass, id: &str) -> Result<Stats> {
        let pod = self.names.pod(uid, qos)?;
        stat::group(&self.hierarchy, &self.names.container(&pod, id)?)
    }

    /// A process of a container, if one lives: its `/proc` shows the pod's network.
    pub fn container_process(&self, uid: &str, qos: QosClass, id: &str) -> Result<Option<i32>> {
        let group = self.names.container(&self.names.pod(uid, qos)?, id)?;
        let processes = self.hierarchy.dir(Controller::Memory, &group)?.read("cgroup.procs")?;
        Ok(processes.lines().find_map(|line| line.parse().ok()))
    }

    fn hold(&self, scope: &'static str, part: &'static str, group: String, limits: Limits) -> Result<Vec<Controller>> {
        self.standing.hold(Held { scope, part, group, limits, unit: self.are_units(), gentle: false })
    }

    /// With the systemd driver the groups are slices.
    fn are_units(&self) -> bool {
        self.driver == Driver::Systemd
    }

    fn manager(&self) -> Option<&Manager> {
        self.standing.manager().filter(|_| self.are_units())
    }

    /// Whether an earlier agent set the classes: a new group has the kernel's default of 1024 shares or weight 100.
    fn classes_are_set(&self) -> Result<bool> {
        let group = self.names.qos(QosClass::BestEffort);
        let found = self.read_limit(&group, Controller::Cpu, "cpu.shares", "cpu.weight")?;
        Ok(found.is_some_and(|found| found <= 2))
    }

    fn read_limit(&self, group: &str, controller: Controller, v1: &str, v2: &str) -> Result<Option<u64>> {
        if !self.hierarchy.has(controller) {
            return Ok(None);
        }
        let file = if self.hierarchy.is_v2(controller) { v2 } else { v1 };
        let dir = self.hierarchy.dir(controller, group)?;
        Ok(dir.read_limit(file)?.value())
    }
}

/// Limits of the two groups of classes: shares as the kubelet sets them, and the brake below the hard limit.
fn qos_limits(allocatable: &NodeAllocatable, demand: &QosDemand) -> [(&'static str, QosClass, Limits); 2] {
    let brake = |requests: u64, floor: u64| match allocatable.memory_limit {
        None => Limit::None,
        Some(max) => Limit::At(max.saturating_sub(allocatable.brake).saturating_sub(requests).max(floor).min(max)),
    };
    let burstable = Limits {
        cpu_shares: Some(milli_cpu_to_shares(demand.burstable_cpu_millis)),
        memory_high: Some(brake(demand.guaranteed_memory, 32 * MIB)),
        ..Limits::default()
    };
    let best_effort = Limits {
        cpu_shares: Some(milli_cpu_to_shares(0)),
        memory_high: Some(brake(demand.guaranteed_memory.saturating_add(demand.burstable_memory), 32 * MIB)),
        ..Limits::default()
    };
    [("burstable", QosClass::Burstable, burstable), ("besteffort", QosClass::BestEffort, best_effort)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brake_is_below_the_limit_and_leaves_room_for_requests() {
        let allocatable =
            NodeAllocatable { memory_limit: Some(636 * MIB), brake: 51 * MIB, swap_limit: None, cpu_millis: 4000, pids_limit: None };
        for (name, demand, burstable, best_effort) in [
            ("nothing requested", (0, 0), 585, 585),
            ("guaranteed", (100, 0), 485, 485),
            ("both", (100, 200), 485, 285),
            ("more than there is", (100, 2000), 485, 32),
        ] {
            let demand = QosDemand { guaranteed_memory: demand.0 * MIB, burstable_memory: demand.1 * MIB, burstable_cpu_millis: 0 };
            let [(_, _, first), (_, _, second)] = qos_limits(&allocatable, &demand);
            assert_eq!(first.memory_high, Some(Limit::At(burstable * MIB)), "{name}");
            assert_eq!(second.memory_high, Some(Limit::At(best_effort * MIB)), "{name}");
        }
    }

    #[test]
    fn classes_share_the_processor_by_requests() {
        let allocatable = NodeAllocatable { memory_limit: None, brake: 0, swap_limit: None, cpu_millis: 4000, pids_limit: None };
        let demand = QosDemand { burstable_cpu_millis: 1500, ..QosDemand::default() };
        let [(_, _, burstable), (_, _, best_effort)] = qos_limits(&allocatable, &demand);
        assert_eq!(burstable.cpu_shares, Some(1536));
        assert_eq!(burstable.memory_high, Some(Limit::None));
        assert_eq!(best_effort.cpu_shares, Some(2));
    }
}
