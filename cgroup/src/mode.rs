//! What protection this machine can give, judged from what was probed, and the words for what is missing (governor reference, 6.2 and 6.3).

use crate::governor::Features;
use crate::hierarchy::{Board, Controller, Hierarchy, Layout};
use crate::reservation::Reservation;

const MIB: u64 = 1 << 20;

/// Boards with less memory take no pods without requests while the memory controller is missing: those sold with 512 MB show about
/// 416 MiB, those with 1 GB about 906.
const SMALL_BOARD: u64 = 800 * MIB;

/// What the judgement depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// The arrangement of hierarchies.
    pub layout: Layout,
    /// The remedy differs on a Raspberry Pi.
    pub raspberry_pi: bool,
    /// The memory controller can be used.
    pub memory: bool,
    /// The cpu controller can be used.
    pub cpu: bool,
    /// The pids controller can be used.
    pub pids: bool,
    /// Throughput of disks can be limited with `io.max`.
    pub io: bool,
    /// The kernel measures pressure.
    pub psi: bool,
    /// The process has CAP_SYS_RESOURCE.
    pub sys_resource: bool,
}

impl Probed {
    /// From the lists of mounts and controllers alone; a controller that is listed counts as usable.
    pub fn listed(hierarchy: &Hierarchy, board: Board, sys_resource: bool) -> Probed {
        Probed {
            layout: hierarchy.layout(),
            raspberry_pi: board.raspberry_pi,
            memory: hierarchy.has(Controller::Memory),
            cpu: hierarchy.has(Controller::Cpu),
            pids: hierarchy.has(Controller::Pids),
            io: hierarchy.has(Controller::Io),
            psi: board.psi,
            sys_resource,
        }
    }

    /// The same with what trying it out showed: what is listed and does not work counts as missing. Without a group to try it in nothing
    /// was found out, and without a disk nothing of `io.max`.
    #[must_use]
    pub fn tried(self, features: &Features, disk: bool) -> Probed {
        if !features.group {
            return self;
        }
        Probed {
            memory: self.memory && features.memory_min && features.memory_high,
            pids: self.pids && features.pids_max,
            io: self.io && (features.io_max || !disk),
            psi: self.psi && features.psi,
            sys_resource: self.sys_resource && features.sys_resource,
            ..self
        }
    }
}

/// One thing that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The memory controller.
    Memory,
    /// The cpu controller.
    Cpu,
    /// The pids controller.
    Pids,
    /// `io.max`.
    Io,
    /// Pressure stall information.
    Psi,
    /// CAP_SYS_RESOURCE.
    SysResource,
}

/// What the governor can do here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GovernorMode {
    /// v2 with everything.
    Full,
    /// v2, but something is missing.
    Degraded {
        /// What; never empty, the gravest first.
        missing: Vec<Missing>,
    },
    /// Limits through v1 files beside a v2 mount.
    Hybrid,
    /// v1 alone: fixed limits of memory, tasks and processor time only.
    Legacy,
}

impl GovernorMode {
    /// The judgement.
    pub fn judge(probed: &Probed) -> GovernorMode {
        match probed.layout {
            Layout::Hybrid => return GovernorMode::Hybrid,
            Layout::V1 => return GovernorMode::Legacy,
            Layout::V2 => {}
        }
        let all = [
            (probed.memory, Missing::Memory),
            (probed.pids, Missing::Pids),
            (probed.cpu, Missing::Cpu),
            (probed.psi, Missing::Psi),
            (probed.io, Missing::Io),
            (probed.sys_resource, Missing::SysResource),
        ];
        let missing: Vec<Missing> = all.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect();
        if missing.is_empty() { GovernorMode::Full } else { GovernorMode::Degraded { missing } }
    }

    /// `full`, `degraded`, `hybrid` or `legacy`.
    pub fn as_str(&self) -> &'static str {
        match self {
            GovernorMode::Full => "full",
            GovernorMode::Degraded { .. } => "degraded",
            GovernorMode::Hybrid => "hybrid",
            GovernorMode::Legacy => "legacy",
        }
    }

    /// Whether a loop that acts on pressure makes sense: memory can be braked, and it is seen coming or polled for.
    pub fn may_act(&self) -> bool {
        match self {
            GovernorMode::Full => true,
            GovernorMode::Degraded { missing } => !missing.contains(&Missing::Memory),
            GovernorMode::Hybrid | GovernorMode::Legacy => false,
        }
    }

    /// Reason of the node condition `GovernorDegraded`; `None` when nothing is missing.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            GovernorMode::Full => None,
            GovernorMode::Hybrid => Some("CgroupHybrid"),
            GovernorMode::Legacy => Some("CgroupV1"),
            GovernorMode::Degraded { missing } => missing.first().map(|first| first.reason()),
        }
    }

    /// What an operator should know and do, a message each; empty when nothing is missing.
    pub fn messages(&self, raspberry_pi: bool) -> Vec<String> {
        match self {
            GovernorMode::Full => Vec::new(),
            GovernorMode::Hybrid | GovernorMode::Legacy => vec![format!("{V1} Until then only the static limits hold.")],
            GovernorMode::Degraded { missing } => missing.iter().map(|what| what.message(raspberry_pi)).collect(),
        }
    }
}

const V1: &str = "cgroup v1 in use: memory protection and write throttling are not available. Remove \
                  systemd.unified_cgroup_hierarchy=0 from the kernel command line.";

impl Missing {
    fn reason(self) -> &'static str {
        match self {
            Missing::Memory => "MemoryControllerDisabled",
            Missing::Cpu => "CpuControllerMissing",
            Missing::Pids => "PidsControllerMissing",
            Missing::Io => "IoControlMissing",
            Missing::Psi => "PressureNotMeasured",
            Missing::SysResource => "SysResourceMissing",
        }
    }

    fn message(self, raspberry_pi: bool) -> String {
        let listed = |name: &str| format!("controller \"{name}\" not in /sys/fs/cgroup/cgroup.controllers");
        match self {
            Missing::Memory => memory_missing(raspberry_pi).to_owned(),
            Missing::Cpu => listed("cpu") + "; kernel needs CONFIG_CGROUP_SCHED=y",
            Missing::Pids => listed("pids") + "; kernel needs CONFIG_CGROUP_PIDS=y",
            Missing::Io => {
                "throughput of disks cannot be limited: io.max is missing; kernel needs CONFIG_BLK_CGROUP=y and CONFIG_BLK_DEV_THROTTLING=y"
                    .to_owned()
            }
            Missing::Psi => psi_off(raspberry_pi),
            Missing::SysResource => "CAP_SYS_RESOURCE is missing: oom scores cannot be lowered, so the kernel may choose the agent or \
                                     containerd first. Run the agent as root on the host, or give it the capability."
                .to_owned(),
        }
    }
}

/// The remedy on v2.
pub(crate) fn memory_missing(raspberry_pi: bool) -> &'static str {
    if raspberry_pi {
        "memory cgroup is disabled on this board (kernel has it, the device tree turns it off). Fix: append \" cgroup_enable=memory\" \
         to the single line in /boot/firmware/cmdline.txt and reboot; or run: edge-agent preflight --fix"
    } else {
        "controller \"memory\" not in /sys/fs/cgroup/cgroup.controllers; kernel needs CONFIG_MEMCG=y and no cgroup_disable=memory"
    }
}

/// Where a line is appended depends on the machine.
pub(crate) fn psi_off(raspberry_pi: bool) -> String {
    let file = if raspberry_pi { "/boot/firmware/cmdline.txt" } else { "the kernel command line" };
    format!(
        "PSI is compiled in but off. Append \" psi=1\" to {file} and reboot. Until then the governor polls MemAvailable (slower, no IO signal)."
    )
}

/// Why this node takes no pods without requests, if it does not (governor reference, 2.3 and 2.7).
pub fn refuses_best_effort(plan: &Reservation, memory_controller: bool) -> Option<String> {
    if !memory_controller && plan.memory_capacity < SMALL_BOARD {
        return Some(format!("the memory controller is missing and the board has only {} MiB", plan.memory_capacity / MIB));
    }
    plan.refuse_best_effort.then(|| format!("only {} MiB of memory are left for all pods", plan.pods_memory_limit / MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Probed {
        Probed { layout: Layout::V2, raspberry_pi: true, memory: true, cpu: true, pids: true, io: true, psi: true, sys_resource: true }
    }

    #[test]
    fn each_lack_has_its_reason_and_its_exact_words() {
        let one = |change: fn(&mut Probed)| {
            let mut probed = all();
            change(&mut probed);
            let mode = GovernorMode::judge(&probed);
            (mode.as_str(), mode.reason(), mode.may_act(), mode.messages(probed.raspberry_pi).join(" | "))
        };
        assert_eq!(one(|_| {}), ("full", None, true, String::new()));
        let pi = "memory cgroup is disabled on this board (kernel has it, the device tree turns it off). Fix: append \
                  \" cgroup_enable=memory\" to the single line in /boot/firmware/cmdline.txt and reboot; or run: edge-agent preflight --fix";
        assert_eq!(one(|p| p.memory = false), ("degraded", Some("MemoryControllerDisabled"), false, pi.to_owned()));
        let other =
            "controller \"memory\" not in /sys/fs/cgroup/cgroup.controllers; kernel needs CONFIG_MEMCG=y and no cgroup_disable=memory";
        assert_eq!(
            one(|p| (p.memory, p.raspberry_pi) = (false, false)),
            ("degraded", Some("MemoryControllerDisabled"), false, other.to_owned())
        );
        let psi = "PSI is compiled in but off. Append \" psi=1\" to /boot/firmware/cmdline.txt and reboot. Until then the governor polls \
                   MemAvailable (slower, no IO signal).";
        assert_eq!(one(|p| p.psi = false), ("degraded", Some("PressureNotMeasured"), true, psi.to_owned()));
        let (mode, reason, acts, text) = one(|p| (p.io, p.sys_resource, p.pids) = (false, false, false));
        assert_eq!((mode, reason, acts), ("degraded", Some("PidsControllerMissing"), true));
        assert!(text.contains("CONFIG_CGROUP_PIDS") && text.contains("io.max") && text.contains("CAP_SYS_RESOURCE"), "{text}");
        let v1 = "cgroup v1 in use: memory protection and write throttling are not available. Remove \
                  systemd.unified_cgroup_hierarchy=0 from the kernel command line. Until then only the static limits hold.";
        assert_eq!(one(|p| p.layout = Layout::Hybrid), ("hybrid", Some("CgroupHybrid"), false, v1.to_owned()));
        assert_eq!(one(|p| p.layout = Layout::V1), ("legacy", Some("CgroupV1"), false, v1.to_owned()));
        assert!(one(|p| p.cpu = false).3.contains("CONFIG_CGROUP_SCHED"));
    }

    #[test]
    fn what_is_listed_and_does_not_work_is_missing() {
        let works = Features {
            layout: Layout::V2,
            group: true,
            memory_min: true,
            memory_high: true,
            swap_max: true,
            reclaim: true,
            reclaim_swappiness: true,
            cpu_max: true,
            cpu_idle: true,
            io_max: true,
            pids_max: true,
            freeze: true,
            kill: true,
            psi: true,
            psi_group: true,
            psi_window_ms: Some(500),
            xattr: true,
            sys_resource: true,
        };
        assert_eq!(all().tried(&works, true), all());
        let broken = Features { memory_min: false, io_max: false, ..works };
        let missing = |features: &Features, disk| match GovernorMode::judge(&all().tried(features, disk)) {
            GovernorMode::Degraded { missing } => missing,
            _ => Vec::new(),
        };
        assert_eq!(missing(&broken, true), [Missing::Memory, Missing::Io]);
        assert_eq!(missing(&broken, false), [Missing::Memory], "no disk to try it on");
        assert_eq!(missing(&Features { group: false, ..broken }, true), [], "nowhere to try it");
    }

    #[test]
    fn small_or_unprotected_boards_take_no_pods_without_requests() {
        let plan = |mib: u64, left: u64| Reservation {
            memory_capacity: mib * MIB,
            pods_memory_limit: left * MIB,
            refuse_best_effort: left < 96,
            ..Reservation::default()
        };
        for (name, plan, memory, wanted) in [
            ("512 MB", plan(416, 212), true, None),
            ("512 MB unprotected", plan(416, 212), false, Some("the memory controller is missing and the board has only 416 MiB")),
            ("1 GB unprotected", plan(906, 638), false, None),
            ("nothing left", plan(416, 90), true, Some("only 90 MiB of memory are left for all pods")),
        ] {
            assert_eq!(refuses_best_effort(&plan, memory).as_deref(), wanted, "{name}");
        }
    }
}
