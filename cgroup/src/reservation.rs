//! How much of a machine pods may have: pure arithmetic from capacity and configuration.
//!
//! The formula and its table are section 2.3 of the governor reference; all of its terms are rounded to 4 MiB, and what was
//! measured on the machine raises two of them ([`crate::calibration`]). What the operator sets (`system-reserved`, `kube-reserved`,
//! `eviction-hard`) replaces all that with the kubelet's meaning: the limit on `kubepods` is capacity - system - kube, and what pods
//! may request is that less the eviction threshold.

use crate::calibration::{Calibration, Measured, calibrate};
use crate::{Error, Result};

const MIB: u64 = 1 << 20;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// `MemTotal` in bytes.
    pub memory: u64,
    /// Processors, in thousandths.
    pub cpu_millis: u64,
    /// `kernel.threads-max`: on small boards the real limit of a fork bomb, not `pid_max`.
    pub threads_max: u64,
    /// Swap is a file or partition on a disk, not compressed memory.
    pub disk_swap: bool,
}

/// `reserve-scale` may be from half to three times, in thousandths.
pub const SCALES: std::ops::RangeInclusive<u64> = 500..=3000;

/// Amounts an operator sets aside. `None` leaves the decision to the formula (memory) or reserves nothing (the rest).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// The configuration keys that change the reservation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `system-reserved`: operating system and headroom.
    pub system_reserved: Amounts,
    /// `kube-reserved`: agent, containerd and shims.
    pub kube_reserved: Amounts,
    /// `eviction-hard`'s `memory.available`, bytes. K3s sets none, and so do we.
    pub eviction_hard_memory: Option<u64>,
    /// `max-pods`.
    pub max_pods: Option<u64>,
    /// `pod-max-pids`: limit on each pod's tasks.
    pub pod_pids: Option<u64>,
    /// `reserve-scale` in thousandths within [`SCALES`]: all parts of the formula are that many times larger.
    pub scale_millis: Option<u64>,
}

/// Memory of the parts that are not pods, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Parts {
    /// Operating system and unreclaimable kernel memory (S).
    pub system: u64,
    /// containerd (C).
    pub containerd: u64,
    /// One shim per pod (SH).
    pub shims: u64,
    /// The agent (A).
    pub agent: u64,
    /// Kept free (H).
    pub headroom: u64,
}

/// The plan for one machine. Memory in bytes, CPU in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reservation {
    /// `MemTotal`.
    pub memory_capacity: u64,
    /// All processors.
    pub cpu_capacity_millis: u64,
    /// How formula and measurement divide what is not for pods; informative where the operator set amounts.
    pub parts: Parts,
    /// What the measurement changed.
    pub calibration: Calibration,
    /// Reserved for the operating system, headroom included.
    pub system_memory: u64,
    /// Reserved for agent, containerd and shims.
    pub kube_memory: u64,
    /// Hard limit of all pods: capacity less the two above.
    pub pods_memory_limit: u64,
    /// With less available the governor acts, with half of it at once: `eviction-hard`'s `memory.available`, else the headroom; bytes.
    pub eviction_threshold: u64,
    /// What pods may request: that limit less the eviction threshold where one is set.
    pub allocatable_memory: u64,
    /// What pods may request of the processors.
    pub allocatable_cpu_millis: u64,
    /// Pods this node takes.
    pub max_pods: u64,
    /// Distance of `memory.high` below the limit.
    pub brake: u64,
    /// Swap all pods may use.
    pub pods_swap_limit: u64,
    /// Tasks all pods may have.
    pub pods_pids_limit: u64,
    /// Tasks one pod may have.
    pub pod_pids_limit: u64,
    /// The rest is too little for pods without requests.
    pub refuse_best_effort: bool,
}

impl Reservation {
    /// `memory.min` of the agent's group.
    pub fn agent_min(&self) -> u64 {
        self.parts.agent
    }

    /// `memory.max` of the agent's group: a guard against a runaway agent.
    pub fn agent_max(&self) -> u64 {
        4 * self.parts.agent
    }

    /// `memory.min` of containerd.
    pub fn containerd_min(&self) -> u64 {
        self.parts.containerd
    }

    /// `memory.low` of containerd, its shims included.
    pub fn containerd_low(&self) -> u64 {
        self.parts.containerd + self.parts.shims
    }

    /// `memory.min` of `system.slice`, which must cover containerd's or that one does nothing. Of what the system was measured to
    /// take beyond the formula nothing is promised: promises that cannot be kept turn pressure into killing.
    pub fn system_slice_min(&self) -> u64 {
        self.parts.containerd + self.parts.system.min(self.calibration.system_formula) / 2
    }

    /// `memory.max` of `user.slice`: logins and what they start.
    pub fn user_slice_max(&self) -> u64 {
        (self.memory_capacity / 4).min(512 * MIB)
    }
}

/// The part of the plan that is enforced on `kubepods`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAllocatable {
    /// Hard memory limit in bytes; `None` enforces nothing (`enforce-node-allocatable=none`).
    pub memory_limit: Option<u64>,
    /// How far below it the brake for Burstable and BestEffort pods is, bytes.
    pub brake: u64,
    /// Swap limit in bytes.
    pub swap_limit: Option<u64>,
    /// Processors in thousandths, for the shares of `kubepods`.
    pub cpu_millis: u64,
    /// Tasks.
    pub pids_limit: Option<u64>,
}

impl From<&Reservation> for NodeAllocatable {
    fn from(plan: &Reservation) -> NodeAllocatable {
        NodeAllocatable {
            memory_limit: Some(plan.pods_memory_limit),
            brake: plan.brake,
            swap_limit: Some(plan.pods_swap_limit),
            cpu_millis: plan.allocatable_cpu_millis,
            pids_limit: Some(plan.pods_pids_limit),
        }
    }
}

/// Computes the plan. Fails when the operator reserves as much as there is, or more.
pub fn plan(capacity: &Capacity, overrides: &Overrides, measured: &Measured) -> Result<Reservation> {
    let m = capacity.memory / MIB;
    let max_pods = overrides.max_pods.unwrap_or((m / 56).clamp(6, 110));
    let scale = overrides.scale_millis.unwrap_or(1000).clamp(*SCALES.start(), *SCALES.end());
    let scaled = |mib: u64| to_four(mib * scale, 1000) * MIB;
    let mut parts = Parts {
        system: scaled(to_four(56 * 24 + m, 24).clamp(72, 224)),
        containerd: scaled(to_four(48 * 64 + m, 64).clamp(56, 128)),
        shims: scaled(4 * max_pods),
        agent: scaled(to_four(22 * 256 + m, 256).clamp(24, 48)),
        headroom: scaled(to_four(m, 40).clamp(24, 160)),
    };
    let for_pods = capacity.memory.saturating_sub(parts.system + parts.containerd + parts.shims + parts.agent + parts.headroom);
    let calibration = calibrate(parts.system, parts.containerd, *measured, for_pods / 2);
    parts.system = calibration.system;
    parts.containerd = calibration.containerd;
    let system_memory = overrides.system_reserved.memory.unwrap_or(parts.system + parts.headroom);
    let kube_memory = overrides.kube_reserved.memory.unwrap_or(parts.containerd + parts.shims + parts.agent);

    let pods_memory_limit = left("memory", capacity.memory, &[system_memory, kube_memory])?;
    let allocatable_memory = left("memory", capacity.memory, &[system_memory, kube_memory, overrides.eviction_hard_memory.unwrap_or(0)])?;
    let allocatable_cpu_millis = left(
        "cpu",
        capacity.cpu_millis,
        &[overrides.system_reserved.cpu_millis.unwrap_or(0), overrides.kube_reserved.cpu_millis.unwrap_or(0)],
    )?;

    let pids_set = [overrides.system_reserved.pids, overrides.kube_reserved.pids];
    let pods_pids_limit = if pids_set.iter().any(Option::is_some) {
        left("pid", capacity.threads_max, &pids_set.map(Option::unwrap_or_default))?
    } else {
        (capacity.threads_max * 6 / 10).min(16_384)
    };

    let max_mib = pods_memory_limit / MIB;
    Ok(Reservation {
        memory_capacity: capacity.memory,
        cpu_capacity_millis: capacity.cpu_millis,
        parts,
        calibration,
        system_memory,
        kube_memory,
        pods_memory_limit,
        eviction_threshold: overrides.eviction_hard_memory.unwrap_or(parts.headroom),
        allocatable_memory,
        allocatable_cpu_millis,
        max_pods,
        brake: ((max_mib * 8 + 50) / 100).clamp(16, 192) * MIB,
        // Swapping to an SD card competes with everything that is to be protected.
        pods_swap_limit: if capacity.disk_swap && m < 1024 { 0 } else { to_four(m, 4).min(1024) * MIB },
        pods_pids_limit,
        pod_pids_limit: overrides.pod_pids.unwrap_or((capacity.threads_max / 8).clamp(128, 1024)),
        refuse_best_effort: max_mib < 96,
    })
}

/// `numerator / denominator` rounded to the nearest multiple of four.
fn to_four(numerator: u64, denominator: u64) -> u64 {
    (numerator + 2 * denominator) / (4 * denominator) * 4
}

fn left(resource: &'static str, capacity: u64, reserved: &[u64]) -> Result<u64> {
    let reserved = reserved.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
    match capacity.checked_sub(reserved) {
        Some(rest) if rest > 0 => Ok(rest),
        Some(_) | None => Err(Error::NothingLeft { resource, reserved, capacity }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn board(mib: u64) -> Capacity {
        Capacity { memory: mib * MIB, cpu_millis: 4000, threads_max: mib * 8, disk_swap: false }
    }

    fn plan(capacity: &Capacity, overrides: &Overrides) -> Result<Reservation> {
        super::plan(capacity, overrides, &Measured::default())
    }

    /// The table of section 2.3: MemTotal, pods, S, C, SH, A, H, R, kubepods, brake, swap, containerd low, system.slice.
    #[test]
    fn the_reference_table() {
        #[rustfmt::skip]
        let table = [
            ("512 MB", [416, 7, 72, 56, 28, 24, 24, 204, 212, 17, 104, 84, 92, 96]),
            ("1 GB", [906, 16, 92, 64, 64, 24, 24, 268, 638, 51, 228, 128, 110, 96]),
            ("2 GB", [1849, 33, 132, 76, 132, 28, 48, 416, 1433, 115, 464, 208, 142, 112]),
            ("4 GB", [3791, 67, 212, 108, 268, 36, 96, 720, 3071, 192, 948, 376, 214, 144]),
            ("8 GB", [7900, 110, 224, 128, 440, 48, 160, 1000, 6900, 192, 1024, 568, 240, 192]),
        ];
        for (name, row) in table {
            let plan = plan(&board(row[0]), &Overrides::default()).unwrap();
            let parts = plan.parts;
            let reserved = plan.memory_capacity - plan.pods_memory_limit;
            let found = [
                plan.memory_capacity / MIB,
                plan.max_pods,
                parts.system / MIB,
                parts.containerd / MIB,
                parts.shims / MIB,
                parts.agent / MIB,
                parts.headroom / MIB,
                reserved / MIB,
                plan.pods_memory_limit / MIB,
                plan.brake / MIB,
                plan.pods_swap_limit / MIB,
                plan.containerd_low() / MIB,
                plan.system_slice_min() / MIB,
                plan.agent_max() / MIB,
            ];
            assert_eq!(found, row, "{name}");
        }
    }

    #[test]
    fn task_limits() {
        for (threads_max, all, each) in [(3_317, 1_990, 414), (14_800, 8_880, 1024), (192_731, 16_384, 1024), (500, 300, 128)] {
            let capacity = Capacity { threads_max, ..board(906) };
            let plan = plan(&capacity, &Overrides::default()).unwrap();
            assert_eq!((plan.pods_pids_limit, plan.pod_pids_limit), (all, each), "{threads_max}");
        }
    }

    #[test]
    fn what_the_operator_reserves_is_taken_literally() {
        let overrides = Overrides {
            system_reserved: Amounts { memory: Some(200 * MIB), cpu_millis: Some(250), pids: Some(100) },
            kube_reserved: Amounts { memory: Some(100 * MIB), cpu_millis: Some(50), pids: None },
            eviction_hard_memory: Some(50 * MIB),
            max_pods: Some(20),
            pod_pids: Some(64),
            scale_millis: Some(3000),
        };
        let plan = plan(&board(1000), &overrides).unwrap();
        assert_eq!(plan.pods_memory_limit, 700 * MIB);
        assert_eq!((plan.allocatable_memory, plan.eviction_threshold), (650 * MIB, 50 * MIB));
        assert_eq!(plan.allocatable_cpu_millis, 3700);
        assert_eq!(plan.pods_pids_limit, 7900);
        assert_eq!((plan.max_pods, plan.pod_pids_limit), (20, 64));
        let enforced = NodeAllocatable::from(&plan);
        assert_eq!(enforced.memory_limit, Some(700 * MIB));
        assert_eq!(enforced.cpu_millis, 3700);
    }

    #[test]
    fn reserving_everything_is_refused_with_the_amounts() {
        for (memory, cpu) in [(Some(1000 * MIB), None), (Some(u64::MAX), None), (None, Some(4000))] {
            let overrides = Overrides { system_reserved: Amounts { memory, cpu_millis: cpu, pids: None }, ..Overrides::default() };
            let error = plan(&board(1000), &overrides).unwrap_err();
            assert!(matches!(error, Error::NothingLeft { .. }), "{error}");
        }
    }

    #[test]
    fn one_number_scales_every_part_and_nothing_else() {
        let parts = |scale| {
            let plan = plan(&board(906), &Overrides { scale_millis: scale, ..Overrides::default() }).unwrap();
            let p = plan.parts;
            ([p.system, p.containerd, p.shims, p.agent, p.headroom].map(|part| part / MIB), plan.pods_memory_limit / MIB, plan.max_pods)
        };
        assert_eq!(parts(None), parts(Some(1000)));
        assert_eq!(parts(Some(1000)), ([92, 64, 64, 24, 24], 638, 16));
        assert_eq!(parts(Some(1500)), ([140, 96, 96, 36, 36], 502, 16));
        assert_eq!(parts(Some(500)), ([48, 32, 32, 12, 12], 770, 16));
    }

    #[test]
    fn what_was_measured_raises_the_reservation_and_promises_no_more_than_containerd_needs() {
        let measured = Measured { system: Some(200 * MIB), containerd: Some(100 * MIB) };
        let plan = super::plan(&board(906), &Overrides::default(), &measured).unwrap();
        assert_eq!((plan.parts.system / MIB, plan.parts.containerd / MIB), (240, 128));
        assert_eq!(plan.pods_memory_limit / MIB, 906 - (240 + 128 + 64 + 24 + 24));
        assert_eq!((plan.containerd_min() / MIB, plan.system_slice_min() / MIB), (128, 128 + 46));
        let literal = Overrides { system_reserved: Amounts { memory: Some(50 * MIB), ..Amounts::default() }, ..Overrides::default() };
        let plan = super::plan(&board(906), &literal, &measured).unwrap();
        assert_eq!(plan.system_memory, 50 * MIB, "what the operator says is what is reserved");
    }

    #[test]
    fn swap_on_a_card_is_not_for_the_pods_of_a_small_board() {
        for (mib, disk_swap, wanted) in [(416, true, 0), (416, false, 104), (1849, true, 464)] {
            let plan = plan(&Capacity { disk_swap, ..board(mib) }, &Overrides::default()).unwrap();
            assert_eq!(plan.pods_swap_limit / MIB, wanted, "{mib} MiB, {disk_swap}");
        }
    }

    #[test]
    fn a_tiny_board_refuses_pods_without_requests() {
        assert!(plan(&board(290), &Overrides::default()).unwrap().refuse_best_effort);
        assert!(!plan(&board(416), &Overrides::default()).unwrap().refuse_best_effort);
    }

    proptest! {
        #[test]
        fn parts_add_up_and_bigger_boards_give_pods_more(mib in 300u64..65_536) {
            let small = plan(&board(mib), &Overrides::default()).unwrap();
            let p = small.parts;
            let reserved = p.system + p.containerd + p.shims + p.agent + p.headroom;
            prop_assert_eq!(small.pods_memory_limit + reserved, small.memory_capacity);
            prop_assert!(small.brake < small.pods_memory_limit);
            let large = plan(&board(mib + 64), &Overrides::default()).unwrap();
            prop_assert!(large.pods_memory_limit > small.pods_memory_limit);
        }

        #[test]
        fn whatever_is_measured_pods_keep_half(mib in 300u64..65_536, system in 0u64..70_000, containerd in 0u64..70_000) {
            let plain = plan(&board(mib), &Overrides::default()).unwrap();
            let measured = Measured { system: Some(system * MIB), containerd: Some(containerd * MIB) };
            let got = super::plan(&board(mib), &Overrides::default(), &measured).unwrap();
            prop_assert!(got.pods_memory_limit <= plain.pods_memory_limit);
            prop_assert!(got.pods_memory_limit >= plain.pods_memory_limit / 2);
            prop_assert!(got.system_memory >= plain.system_memory && got.kube_memory >= plain.kube_memory);
        }
    }
}
