//! The machine before anything runs on it: reservation planned and enforced, the agent in its own group.

use std::sync::Arc;

use anyhow::Context;
use cgroup::{Board, Driver, Hierarchy, NodeAllocatable, OwnLimits, PodTree, Reservation};

use crate::api::pod::ResourceList;
use crate::config::{CgroupDriver, Config};
use crate::metrics::{CgroupScope, CgroupScopes, Metrics, NodeAmounts};
use crate::node::machine::{Machine, filesystem};
use crate::node::reserve;

/// What later parts need of it.
pub(super) struct Prepared {
    pub machine: Machine,
    pub reservation: Reservation,
    pub pod_tree: Arc<PodTree>,
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
}

/// Fails only where pods could not be run within limits at all.
pub(super) fn prepare(config: &Config, metrics: &Metrics) -> anyhow::Result<Prepared> {
    let machine = Machine::look()?;
    let hierarchy = Hierarchy::detect().context("looking for the control groups of this machine")?;
    for advice in hierarchy.advice(Board::detect(std::path::Path::new("/proc"))) {
        tracing::warn!("{advice}");
    }
    let reservation = reserve::reservation(&machine, config, &cgroup::Measured::default())?;
    let driver = match config.cgroup_driver {
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Systemd => Driver::Systemd,
    };
    let limits = OwnLimits { memory_min: Some(reservation.agent_min()), memory_max: Some(reservation.agent_max()), ..OwnLimits::default() };
    match cgroup::own_group(&hierarchy, &config.cgroup_root, &limits) {
        Ok(placement) => tracing::debug!(?placement, "own control group"),
        Err(error) => tracing::warn!(error = %crate::telemetry::chain(&error), "agent stays in the control group it was started in"),
    }
    let pod_tree = PodTree::new(hierarchy.clone(), &config.cgroup_root, driver).context("naming the pods' control groups")?;
    let enforced = pod_tree.ensure_root(&NodeAllocatable::from(&reservation)).context("enforcing the reservation")?;
    if !enforced.unavailable.is_empty() {
        // A new node is not joined like this. One that is a node already goes on: its pods without limits are better than none.
        tracing::warn!(controllers = ?enforced.unavailable, "pods run without these limits, as the kernel does not offer the controllers; edge-agent preflight names the remedy");
    }
    tracing::info!(group = %enforced.group, memory_limit = ?enforced.memory_limit, max_pods = reservation.max_pods, "reservation enforced");
    if let Some(limit) = enforced.memory_limit {
        metrics.reservation("kubepods", "max", limit);
    }
    let storage = filesystem(&config.root_dir).map(|(size, _)| size);
    let (capacity, allocatable) = reserve::amounts_of_node(&machine, config, &reservation, storage);
    metrics.node_amounts(&NodeAmounts {
        capacity_cores: machine.cpus as f64,
        capacity_memory: machine.memory,
        allocatable_cores: reservation.allocatable_cpu_millis as f64 / 1000.0,
        allocatable_memory: reservation.allocatable_memory,
        pods: reservation.max_pods,
    });
    let root = config.cgroup_root.trim_end_matches('/');
    let scope = |name, group: String| CgroupScope { name, group };
    let kubepods = pod_tree.kubepods();
    metrics.collect(Box::new(CgroupScopes::new(
        hierarchy,
        vec![
            scope("agent", format!("{root}/edge-agent")),
            scope("runtime", format!("{root}/containerd")),
            scope("kubepods", kubepods.clone()),
            scope("burstable", format!("{kubepods}/burstable")),
            scope("besteffort", format!("{kubepods}/besteffort")),
        ],
    )));
    Ok(Prepared { machine, reservation, pod_tree: Arc::new(pod_tree), capacity, allocatable })
}
