//! The governor's amounts from what the machine has, and its word to the rest.

use cgroup::governor::{IoLimits, Settings};
use cgroup::{Driver, GovernorMode, Layout};
use tokio::sync::watch;

use super::machine_setup::Prepared;
use crate::control;
use crate::events::{Recorder, Type};
use crate::governor::{Governor, NodeWord};
use crate::metrics::governor::Info;
use crate::node::status::Extra;
use crate::reboot::Outcome;
use crate::storage_probe;

/// What a card reads at least (A1), where it was not measured; bytes a second.
const READ_BPS: u64 = 20 << 20;

/// Amounts for the control law.
pub(super) fn settings(machine: &Prepared, data_dir: &std::path::Path) -> Settings {
    let plan = &machine.reservation;
    Settings {
        memory: plan.memory_capacity,
        headroom: plan.eviction_threshold,
        pods_max: plan.pods_memory_limit,
        cpus: machine.machine.cpus,
        io: machine.disk.as_ref().map(|disk| IoLimits {
            rbps: disk.read_bps.unwrap_or(u64::MAX),
            wbps: disk.write_bps.unwrap_or(u64::MAX),
            riops: disk.read_iops.unwrap_or(u64::MAX),
            wiops: disk.write_iops.unwrap_or(u64::MAX),
        }),
        read_bps: storage_probe::load(data_dir).and_then(|probe| probe.read_bps).unwrap_or(READ_BPS),
        page: procfs::page_size(),
        zram: machine.machine.swap > 0 && !machine.machine.disk_swap,
    }
}

/// What it runs on, for the metrics; psi and features are found out by trying.
pub(super) fn info(machine: &Prepared) -> Info {
    Info {
        cgroup_mode: match machine.pod_tree.hierarchy().layout() {
            Layout::V2 => "v2",
            Layout::Hybrid => "hybrid",
            Layout::V1 => "legacy",
        },
        cgroup_driver: match machine.pod_tree.driver() {
            Driver::Systemd => "systemd",
            Driver::Cgroupfs => "cgroupfs",
        },
        psi: "off",
        io_control: "none",
        profile: match machine.reservations.mode() {
            GovernorMode::Full | GovernorMode::Degraded { .. } => "enforce",
            GovernorMode::Hybrid | GovernorMode::Legacy => "static",
        },
    }
}

/// The governor as the control socket knows it.
pub(super) fn control(governor: &Governor) -> control::Governor {
    let (shown, released) = (governor.handle(), governor.handle());
    control::Governor { status: Box::new(move || shown.status()), release: Box::new(move || released.release()) }
}

/// Boot flags that were repaired: whether they still wait for a boot, and what that boot did.
pub(super) fn tell_reboot(outcome: &Outcome, conditions: &watch::Sender<Vec<Extra>>, recorder: &Recorder) {
    let condition = outcome.condition();
    let kind = match outcome {
        Outcome::Required(_) | Outcome::Ineffective(_) => Type::Warning,
        Outcome::Done(_) => Type::Normal,
    };
    recorder.node_event(kind, &condition.reason, &condition.message);
    tracing::info!(reason = condition.reason, message = condition.message, "boot flags");
    conditions.send_modify(|all| all.push(condition));
}

/// The governor's word reaches the Node's conditions.
pub(super) async fn follow(mut word: watch::Receiver<NodeWord>, conditions: watch::Sender<Vec<Extra>>) {
    loop {
        let now = word.borrow_and_update().memory_pressure.clone();
        let (holds, reason) = if now.is_some() { (true, "GovernorHoldsPodsBack") } else { (false, "GovernorCalm") };
        let said = Extra { kind: "MemoryPressure".to_owned(), holds, reason: reason.to_owned(), message: now.unwrap_or_default() };
        conditions.send_modify(|all| {
            all.retain(|condition| condition.kind != said.kind);
            all.push(said);
        });
        if word.changed().await.is_err() {
            return;
        }
    }
}
