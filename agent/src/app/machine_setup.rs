//! The machine before anything runs on it: reservation measured, planned and enforced, the agent in its own group.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use cgroup::governor::{Features, Scopes};
use cgroup::{
    Board, Controller, Driver, GovernorMode, Hierarchy, IoMax, Measured, NodeAllocatable, OwnLimits, PodTree, Probed, QosClass,
    Reservation, calibration, mode,
};
use runtime::managed::may_lower_oom_score;

use crate::api::pod::ResourceList;
use crate::config::{CgroupDriver, Config, ContainerdMode};
use crate::metrics::{CgroupScope, CgroupScopes, Metrics, NodeAmounts};
use crate::node::machine::{Machine, filesystem};
use crate::node::reserve;
use crate::node::status::Extra;
use crate::reserve::{self as reserved, Owner, Reservations};

/// The group of the system's containerd under systemd.
const SYSTEM_RUNTIME: &str = "/system.slice/containerd.service";

/// What later parts need of it.
pub(super) struct Prepared {
    pub machine: Machine,
    pub reservation: Reservation,
    pub pod_tree: Arc<PodTree>,
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
    /// Values in force; to be run.
    pub reservations: Arc<Reservations>,
    /// Conditions of the Node beside the kubelet's four; whoever knows one sends it.
    pub conditions: tokio::sync::watch::Sender<Vec<Extra>>,
    /// Groups the governor watches.
    pub scopes: Scopes,
    /// The disk of the pods with its limits, where it has some.
    pub disk: Option<IoMax>,
    /// What of the kernel works.
    pub features: Features,
}

/// Fails only where pods could not be run within limits at all. Completes what the configuration leaves to the machine.
pub(super) fn prepare(config: &mut Config, metrics: &Arc<Metrics>) -> anyhow::Result<Prepared> {
    let machine = Machine::look()?;
    let hierarchy = Hierarchy::detect().context("looking for the control groups of this machine")?;
    let board = Board::detect(Path::new("/proc"));
    let driver = match config.cgroup_driver {
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Systemd => Driver::Systemd,
    };
    let pod_tree = Arc::new(PodTree::new(hierarchy.clone(), &config.cgroup_root, driver).context("naming the pods' control groups")?);
    let runtime = runtime_group(config, &hierarchy);

    let measured = reserved::of_this_boot(&config.run_dir, &machine.boot_id, || measure(&pod_tree, &runtime));
    let reservation = reserve::reservation(&machine, config, &measured)?;
    log_calibration(&reservation);

    let limits = OwnLimits { memory_min: Some(reservation.agent_min()), memory_max: Some(reservation.agent_max()), ..OwnLimits::default() };
    let owner = Owner::of(match cgroup::own_group(&hierarchy, &config.cgroup_root, &limits) {
        Ok(placement) => {
            tracing::debug!(?placement, "own control group");
            Some(placement)
        }
        Err(error) => {
            tracing::warn!(error = %crate::telemetry::chain(&error), "agent stays in the control group it was started in");
            None
        }
    });
    let enforced = pod_tree.ensure_root(&NodeAllocatable::from(&reservation)).context("enforcing the reservation")?;
    if !enforced.unavailable.is_empty() {
        // A new node is not joined like this. One that is a node already goes on: its pods without limits are better than none.
        tracing::warn!(controllers = ?enforced.unavailable, "pods run without these limits, as the kernel does not offer the controllers; edge-agent preflight names the remedy");
    }
    tracing::info!(group = %enforced.group, memory_limit = ?enforced.memory_limit, max_pods = reservation.max_pods, "reservation enforced");

    let (throttles, disks, limited) = limit_disks(config, &pod_tree, &owner, &runtime);
    let disk = limited.as_ref().map(|limits| format!("{}:{}", limits.disk.major, limits.disk.minor));
    let features = Features::probe(&hierarchy, &pod_tree.kubepods(), disk.as_deref());
    let mut probed = Probed::listed(&hierarchy, board, may_lower_oom_score()).tried(&features, limited.is_some());
    probed.io = probed.io && throttles;
    let mode = GovernorMode::judge(&probed);
    let lacks = mode.messages(probed.raspberry_pi);
    for message in &lacks {
        tracing::warn!("{message}");
    }
    let conditions = tokio::sync::watch::Sender::new(vec![degraded(&mode, &lacks)]);
    complete(config, &machine, &reservation, hierarchy.has(Controller::Memory));

    let reservations = Arc::new(Reservations::new(reserved::Parts {
        standing: Arc::clone(pod_tree.standing()),
        later: reserved::held(&reservation, &owner, &runtime.group, runtime.system),
        plan: reservation,
        mode,
        lacks,
        disks,
        metrics: Arc::clone(metrics),
    }));
    let reported = Arc::clone(&reservations);
    metrics.collect(Box::new(reserved::Exposed::new(move || reported.report())));

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
    // With systemd the slice above the service: what is promised to one is promised to the other.
    let own = owner.group().unwrap_or("/");
    let own = own.rsplit_once('/').filter(|(slice, unit)| unit.ends_with(".service") && !slice.is_empty()).map_or(own, |(slice, _)| slice);
    let watched = Scopes::of(&pod_tree, own, &runtime.group);
    let scope = |name, group: String| CgroupScope { name, group };
    let mut scopes = vec![
        scope("runtime", runtime.group),
        scope("kubepods", pod_tree.kubepods()),
        scope("burstable", pod_tree.class(QosClass::Burstable)),
        scope("besteffort", pod_tree.class(QosClass::BestEffort)),
    ];
    scopes.extend(owner.group().map(|group| scope("agent", group.to_owned())));
    metrics.collect(Box::new(CgroupScopes::new(hierarchy, scopes)));
    Ok(Prepared {
        machine,
        reservation,
        pod_tree,
        capacity,
        allocatable,
        reservations,
        conditions,
        scopes: watched,
        disk: limited,
        features,
    })
}

/// containerd's control group and images.
struct Runtime {
    group: String,
    /// It is the system's.
    system: bool,
    store: PathBuf,
}

/// Before containerd is chosen: a system's service that exists is it, unless the configuration says otherwise.
fn runtime_group(config: &Config, hierarchy: &Hierarchy) -> Runtime {
    let service = hierarchy.every_dir(SYSTEM_RUNTIME).iter().any(cgroup::CgroupDir::exists);
    let usual = config.container_runtime_endpoint.as_deref().is_none_or(|socket| socket == Path::new("/run/containerd/containerd.sock"));
    let system = match config.containerd {
        ContainerdMode::Managed => false,
        ContainerdMode::Auto | ContainerdMode::System => usual && service,
    };
    if system {
        return Runtime { group: SYSTEM_RUNTIME.to_owned(), system, store: "/var/lib/containerd".into() };
    }
    let root = config.cgroup_root.trim_end_matches('/');
    Runtime { group: format!("{root}/containerd"), system, store: config.data_dir.join("containerd") }
}

fn measure(pod_tree: &PodTree, runtime: &Runtime) -> Measured {
    let kubepods = pod_tree.kubepods();
    let pods = pod_tree.list_pods().map_or(0, |pods| pods.len() as u64);
    let groups = calibration::Groups { kubepods: &kubepods, containerd: Some(&runtime.group), agent: None, pods };
    calibration::measure(pod_tree.hierarchy(), &groups).unwrap_or_else(|error| {
        tracing::warn!(error = %crate::telemetry::chain(&error), "memory in use not measured; the formula alone decides what is reserved");
        Measured::default()
    })
}

fn log_calibration(plan: &Reservation) {
    let of = |bytes: u64| bytes >> 20;
    let found = &plan.calibration;
    tracing::info!(
        system_formula_mib = of(found.system_formula),
        system_measured_mib = found.measured.system.map(of),
        system_mib = of(found.system),
        containerd_formula_mib = of(found.containerd_formula),
        containerd_measured_mib = found.measured.containerd.map(of),
        containerd_mib = of(found.containerd),
        "reservation calibrated"
    );
    if found.capped {
        tracing::warn!(
            "more memory is in use than a node of this size should need; pods keep half of what the formula leaves them. Set kubelet-arg system-reserved=memory=... to decide it"
        );
    }
}

/// Limits what pods, and pulls of images, may do to the disks; says whether the kernel can, and on which.
fn limit_disks(config: &Config, pod_tree: &PodTree, owner: &Owner, runtime: &Runtime) -> (bool, String, Option<IoMax>) {
    let (disks, said) = reserved::of_pods(&config.data_dir, &[&runtime.store, &config.root_dir]);
    if disks.is_empty() {
        tracing::warn!(reason = %said, "throughput of disks not limited");
    }
    if let Some(unit) = owner.may_limit_runtime(runtime.system) {
        if let Err(error) = pod_tree.standing().limit_pulls(&runtime.group, unit, disks.clone()) {
            tracing::warn!(error = %crate::telemetry::chain(&error), "throughput of image pulls not limited");
        }
    }
    let first = disks.first().cloned();
    match pod_tree.limit_io(disks) {
        Ok(throttles) => (throttles, said, first.filter(|_| throttles)),
        Err(error) => {
            let error = crate::telemetry::chain(&error);
            tracing::warn!(error, "throughput of disks not limited");
            (true, error, None)
        }
    }
}

/// The condition of a Node whose kernel cannot do everything.
fn degraded(mode: &GovernorMode, lacks: &[String]) -> Extra {
    let reason = mode.reason();
    Extra {
        kind: "GovernorDegraded".to_owned(),
        holds: reason.is_some(),
        reason: reason.unwrap_or("GovernorComplete").to_owned(),
        message: if lacks.is_empty() { "the kernel offers all that protects this node".to_owned() } else { lacks.join("; ") },
    }
}

/// What the machine decides where the operator did not.
fn complete(config: &mut Config, machine: &Machine, plan: &Reservation, memory_controller: bool) {
    config.pod_pids_limit = config.pod_pids_limit.or(i64::try_from(plan.pod_pids_limit).ok());
    // Two images unpacked at once stall an SD card for both.
    config.serialize_image_pulls = config.serialize_image_pulls.or(Some(machine.memory < 2 << 30));
    if !config.allow_unprotected {
        config.best_effort_refused = mode::refuses_best_effort(plan, memory_controller);
    }
    if let Some(why) = &config.best_effort_refused {
        tracing::warn!(reason = %why, "pods without requests are refused; allow-unprotected: true takes them all the same");
    }
}
