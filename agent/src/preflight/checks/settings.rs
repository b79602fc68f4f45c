//! 14 to 19: settings of the kernel.

use super::super::fix::Fix;
use super::{Verdict, is_small, pass, skipped, warn};
use crate::preflight::Facts;

/// One setting that `--fix` changes now and for later boots.
fn setting(found: String, changes: &[(&'static str, u64)]) -> Verdict {
    let list: Vec<String> = changes.iter().map(|(name, value)| format!("{}={value}", name.replace('/', "."))).collect();
    let remedy = format!("Run: sysctl -w {}, or: edge-agent preflight --fix", list.join(" "));
    warn(found, remedy).fixed_by(changes.iter().map(|(name, value)| Fix::Setting(name, *value)))
}

pub(super) fn min_free(facts: &Facts) -> Verdict {
    const ENOUGH: u64 = 8192;
    match facts.kernel.min_free_kib {
        None => skipped("vm.min_free_kbytes cannot be read"),
        Some(now) if is_small(facts) && now < ENOUGH => {
            let wanted = (facts.memory_mib * 1024 / 50).clamp(ENOUGH, 65536);
            setting(format!("vm.min_free_kbytes is {now}: drivers may find no memory under pressure"), &[("vm/min_free_kbytes", wanted)])
        }
        Some(now) => pass(format!("vm.min_free_kbytes is {now}")),
    }
}

pub(super) fn dirty_limits(facts: &Facts) -> Verdict {
    match facts.kernel.dirty_bytes {
        None => skipped("vm.dirty_bytes cannot be read"),
        Some(0) => {
            let a_second = facts.storage.probe.as_ref().and_then(|probe| probe.write_bps).unwrap_or(0);
            let wanted = a_second.clamp(8 << 20, 64 << 20) >> 12 << 12;
            setting(
                "vm.dirty_bytes is 0: unwritten data may grow with memory, and one burst stalls every other write".to_owned(),
                &[("vm/dirty_bytes", wanted), ("vm/dirty_background_bytes", wanted / 4)],
            )
        }
        Some(now) => pass(format!("vm.dirty_bytes is {now}")),
    }
}

pub(super) fn overcommit(facts: &Facts) -> Verdict {
    match facts.kernel.overcommit {
        None => skipped("vm.overcommit_memory cannot be read"),
        Some(2) => {
            let found = "vm.overcommit_memory is 2: containers fail to start though memory is free".to_owned();
            setting(found, &[("vm/overcommit_memory", 0)]).asking()
        }
        Some(now) => pass(format!("vm.overcommit_memory is {now}")),
    }
}

pub(super) fn task_limits(facts: &Facts) -> Verdict {
    const FEW: u64 = 1024;
    let (Some(threads), Some(pids)) = (facts.kernel.threads_max, facts.kernel.pid_max) else {
        return skipped("kernel.threads-max or kernel.pid_max cannot be read");
    };
    let found =
        format!("kernel.threads-max {threads}, kernel.pid_max {pids}: pods get at most {}", (threads.min(pids) * 6 / 10).min(16384));
    if threads.min(pids) < FEW { warn(found, "Too few for pods: set both to 4096 or more") } else { pass(found) }
}

pub(super) fn inotify(facts: &Facts) -> Verdict {
    let Some(now) = facts.kernel.inotify_instances else { return skipped("fs.inotify.max_user_instances cannot be read") };
    if now >= 512 {
        return pass(format!("fs.inotify.max_user_instances is {now}"));
    }
    let mut changes = vec![("fs/inotify/max_user_instances", 1024)];
    if facts.kernel.inotify_watches.is_some_and(|watches| watches < 65536) {
        changes.push(("fs/inotify/max_user_watches", 65536));
    }
    setting(format!("fs.inotify.max_user_instances is {now}: programs in pods that follow files will fail"), &changes)
}

pub(super) fn conntrack(facts: &Facts) -> Verdict {
    let wanted = (facts.memory_mib * 32).min(65536);
    match facts.kernel.conntrack_max {
        None => skipped("connection tracking is not loaded yet"),
        Some(now) if now < wanted => setting(
            format!("net.netfilter.nf_conntrack_max is {now}: connections are dropped beyond it"),
            &[("net/netfilter/nf_conntrack_max", wanted)],
        ),
        Some(now) => pass(format!("net.netfilter.nf_conntrack_max is {now}")),
    }
}
