//! Pure: facts in, findings out. The list is that of section 7 of the governor reference, in its order; ids are stable.

mod board;
mod kernel;
mod node;
mod services;
mod settings;
mod storage;

use super::fix::Fix;
use super::{Consent, Facts, Finding, Level};
use crate::reboot::Outcome;

/// What one check concludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    level: Level,
    found: String,
    remedy: String,
    fixes: Vec<Fix>,
    consent: Consent,
    reboot: bool,
    pending: bool,
}

fn verdict(level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    let (found, remedy) = (found.into(), remedy.into());
    Verdict { level, found, remedy, fixes: Vec::new(), consent: Consent::No, reboot: false, pending: false }
}

fn pass(found: impl Into<String>) -> Verdict {
    verdict(Level::Pass, found, "")
}

/// Not looked at, and why.
fn skipped(why: impl Into<String>) -> Verdict {
    verdict(Level::Skipped, why, "")
}

fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    verdict(Level::Warning, found, remedy)
}

fn blocked(found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    verdict(Level::Blocked, found, remedy)
}

impl Verdict {
    /// `--fix` does this.
    fn fixed_by(self, fixes: impl IntoIterator<Item = Fix>) -> Verdict {
        Verdict { fixes: fixes.into_iter().collect(), consent: Consent::Yes, ..self }
    }

    /// `--fix` asks before.
    fn asking(self) -> Verdict {
        Verdict { consent: Consent::Ask, ..self }
    }

    /// In effect after a reboot.
    fn after_reboot(self) -> Verdict {
        Verdict { reboot: true, ..self }
    }

    /// Done already, only the reboot is missing.
    fn pending(self) -> Verdict {
        Verdict { reboot: true, pending: true, ..self }
    }

    fn named(self, number: Option<u8>, check: &'static str) -> Finding {
        let Verdict { level, found, remedy, fixes, consent, reboot, pending } = self;
        Finding { number, check, level, found, remedy, fix: consent, reboot, pending, fixes }
    }
}

type Check = (&'static str, fn(&Facts) -> Verdict);

/// The numbered list.
pub(super) const LIST: [Check; 35] = [
    ("cgroup-v2", kernel::cgroup_v2),
    ("memory-controller", kernel::memory_controller),
    ("psi", kernel::psi),
    ("stale-boot-words", kernel::stale_words),
    ("late-cgroup-disable", kernel::late_disable),
    ("kernel-flag-window", kernel::flag_window),
    ("controllers-handed-down", kernel::handed_down),
    ("cgroup-mount-options", kernel::mount_options),
    ("io-max", kernel::io_max),
    ("io-scheduler", storage::scheduler),
    ("storage-speed", storage::speed),
    ("swap", storage::swap),
    ("zram-writeback", storage::zram_writeback),
    ("min-free", settings::min_free),
    ("dirty-limits", settings::dirty_limits),
    ("overcommit", settings::overcommit),
    ("task-limits", settings::task_limits),
    ("inotify", settings::inotify),
    ("conntrack", settings::conntrack),
    ("containerd", services::containerd),
    ("cgroup-driver", services::cgroup_driver),
    ("containerd-unit", services::containerd_unit),
    ("daemons-oom", services::daemons_oom),
    ("oom-daemons", services::oom_daemons),
    ("node-agents", services::node_agents),
    ("journald", services::journald),
    ("tmp-size", services::tmp_size),
    ("gpu-memory", board::gpu_memory),
    ("kernel", board::kernel),
    ("power", board::power),
    ("temperature", board::temperature),
    ("watchdog", services::watchdog),
    ("clock", services::clock),
    ("disk", storage::room),
    ("overlay-root", storage::overlay_root),
];

/// Every check: the 35, then what an instance needs beside them.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let numbered = LIST.iter().zip(1..).map(|((id, check), number)| check(facts).named(Some(number), id));
    let beside = facts.node.iter().flat_map(|node| node::all(facts, node)).map(|(id, verdict)| verdict.named(None, id));
    let mut findings: Vec<Finding> = numbered.chain(beside).collect();
    // What a repair of this boot left for the next one is not repaired again.
    if let Some(Outcome::Required(waiting)) = &facts.boot.reboot {
        for finding in findings.iter_mut().filter(|finding| finding.level > Level::Pass && waiting.iter().any(|id| id == finding.check)) {
            finding.pending = true;
            "Repaired: reboot".clone_into(&mut finding.remedy);
            finding.fixes.clear();
        }
    }
    findings
}

/// Small boards get limits where larger ones have room.
fn is_small(facts: &Facts) -> bool {
    facts.memory_mib < 1024
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
