//! 20 to 27, 32, 33: containerd, systemd's units and settings, and who else is there.

use std::time::Duration;

use super::super::facts::services::{AGENT, CONTAINERD, DAEMONS, Unit};
use super::super::fix::Fix;
use super::{Verdict, blocked, is_small, pass, skipped, verdict, warn};
use crate::preflight::{Facts, Level};

/// Below Guaranteed pods (-997): the last to be ended.
const KEPT: i64 = -998;
const CONTAINERD_SCORE: i64 = -999;
const NO_SYSTEMD: &str = "systemd does not run here";
const NO_ANSWER: &str = "systemctl does not answer";
const NOT_ASKED: &str = "containerd was not asked";
const RESTART: Fix = Fix::Run(&["systemctl", "restart", "containerd.service"]);

/// Why units cannot be judged.
fn no_units(facts: &Facts) -> Verdict {
    skipped(if facts.services.systemd { NO_ANSWER } else { NO_SYSTEMD })
}

pub(super) fn containerd(facts: &Facts) -> Verdict {
    let runtime = &facts.runtime;
    let socket = runtime.socket.display();
    match &runtime.answer {
        Some(answer) => match &answer.cri {
            Ok(name) if answer.unmet.is_empty() => pass(name.clone()),
            Ok(name) => warn(format!("{name}: {}", answer.unmet.join("; ")), "Look at: journalctl -u containerd"),
            Err(why) => {
                let level = if runtime.required { Level::Blocked } else { Level::Warning };
                let found = format!("{socket} does not speak CRI: {why}");
                let remedy =
                    "Remove \"cri\" from disabled_plugins in /etc/containerd/config.toml and restart containerd (preflight --fix asks)";
                // Our drop-in already has it started with CRI, once it is restarted.
                let edit = (!runtime.packaged).then_some(Fix::EnableCri);
                verdict(level, found, remedy).fixed_by(edit.into_iter().chain([RESTART])).asking()
            }
        },
        None if !runtime.asked => skipped(NOT_ASKED),
        None if runtime.required => {
            blocked(format!("nothing answers on {socket}"), "Run: systemctl start containerd, or set containerd: managed")
        }
        None => match (runtime.containerd_program, runtime.runc_program) {
            (true, true) => pass("installed; the agent runs its own"),
            (false, _) => blocked("not installed", "Run: apt-get install containerd runc"),
            (true, false) => blocked("runc is not installed", "Run: apt-get install runc"),
        },
    }
}

pub(super) fn cgroup_driver(facts: &Facts) -> Verdict {
    let runtime = &facts.runtime;
    let name = |systemd: bool| if systemd { "systemd" } else { "cgroupfs" };
    let ours = runtime.agent_systemd;
    match runtime.answer.as_ref().map(|answer| answer.systemd) {
        None if !runtime.asked => skipped(NOT_ASKED),
        None => skipped("the agent's own containerd is given its driver"),
        Some(None) => skipped("containerd does not say"),
        Some(Some(theirs)) if theirs == ours => pass(format!("{}, in containerd and agent", name(ours))),
        Some(Some(false)) if facts.services.systemd => {
            let found = "containerd uses the cgroupfs driver (SystemdCgroup=false) but PID 1 is systemd";
            let remedy = "Set SystemdCgroup = true for runtime runc in /etc/containerd/config.toml and restart containerd (running pods must be recreated).";
            let edit = (!runtime.packaged).then_some(Fix::SystemdCgroup);
            blocked(found, remedy).fixed_by(edit.into_iter().chain([RESTART])).asking()
        }
        Some(Some(theirs)) => blocked(
            format!("containerd uses {}, the agent {}", name(theirs), name(ours)),
            format!("Set kubelet-arg: cgroup-driver={}", name(theirs)),
        ),
    }
}

/// A drop-in for a unit. Named so that it comes after the package's `40-edge-agent.conf` and never hides it.
fn drop_in(unit: &str, text: String) -> Fix {
    Fix::file(format!("/etc/systemd/system/{unit}.d/60-edge-agent.conf"), text)
}

pub(super) fn containerd_unit(facts: &Facts) -> Verdict {
    if facts.runtime.managed {
        return skipped("the agent runs a containerd of its own");
    }
    let Some(units) = &facts.services.units else { return no_units(facts) };
    let Some(unit) = units.get(CONTAINERD) else { return skipped("there is no containerd.service") };
    let mut missing = Vec::new();
    if unit.oom_score > CONTAINERD_SCORE {
        missing.push(format!("OOMScoreAdjust={CONTAINERD_SCORE}"));
    }
    if !unit.delegate {
        missing.push("Delegate=yes".to_owned());
    }
    if unit.tasks_max.is_some() {
        missing.push("TasksMax=infinity".to_owned());
    }
    if missing.is_empty() {
        return pass(format!("OOM score {}, delegated, tasks without limit", unit.oom_score));
    }
    let found = format!("containerd.service lacks {}", missing.join(", "));
    let remedy = "Write them to /etc/systemd/system/containerd.service.d/60-edge-agent.conf, or run: edge-agent preflight --fix";
    let score = Fix::OomScore { pid: unit.pid, score: CONTAINERD_SCORE };
    warn(found, remedy).fixed_by([drop_in(CONTAINERD, format!("[Service]\n{}\n", missing.join("\n"))), score])
}

pub(super) fn daemons_oom(facts: &Facts) -> Verdict {
    let Some(units) = &facts.services.units else { return no_units(facts) };
    let weak: Vec<(&str, &Unit)> = DAEMONS
        .into_iter()
        .filter_map(|name| Some((name, units.get(name)?)))
        .filter(|(_, unit)| unit.pid != 0 && unit.oom_score > KEPT)
        .collect();
    if weak.is_empty() {
        return pass("journald, D-Bus and NetworkManager outlive every pod");
    }
    let list: Vec<String> = weak.iter().map(|(name, unit)| format!("{} ({})", name.trim_end_matches(".service"), unit.oom_score)).collect();
    let found = format!("when memory runs out these may end before a pod does: {}", list.join(", "));
    let remedy = format!("Give them OOMScoreAdjust={KEPT} in drop-ins, or run: edge-agent preflight --fix");
    let fixes = weak.iter().flat_map(|(name, unit)| {
        [drop_in(name, format!("[Service]\nOOMScoreAdjust={KEPT}\n")), Fix::OomScore { pid: unit.pid, score: KEPT }]
    });
    warn(found, remedy).fixed_by(fixes)
}

/// Names of processes that run, of those given.
fn running(facts: &Facts, known: &[&str]) -> Vec<String> {
    facts.services.processes.iter().filter(|name| known.contains(&name.as_str())).cloned().collect()
}

pub(super) fn oom_daemons(facts: &Facts) -> Verdict {
    match running(facts, &["systemd-oomd", "earlyoom", "nohang", "oomd"]).as_slice() {
        [] => pass("none"),
        found => warn(
            format!("{} runs: it may end pods or the agent before the governor acts", found.join(", ")),
            "Disable it, or keep it away from edge.slice, system.slice and the pods",
        ),
    }
}

pub(super) fn node_agents(facts: &Facts) -> Verdict {
    let agents = running(facts, &["kubelet", "k3s", "k3s-agent", "microk8s", "kubelite"]);
    let servers = running(facts, &["k3s-server"]);
    let shared = |same: bool, key: &'static str| same.then_some(key);
    let keys: Vec<&str> = facts
        .node
        .iter()
        .flat_map(|node| {
            [
                shared(node.shares_root_dir, "kubelet-arg: root-dir="),
                shared(node.shares_cgroup_root, "kubelet-arg: cgroup-root="),
                shared(!node.taken.is_empty(), "the ports"),
            ]
        })
        .flatten()
        .collect();
    match (agents.as_slice(), servers.as_slice()) {
        ([], []) => pass("none"),
        _ if facts.node.is_none() => skipped("another one runs; what it shares with this instance was not looked at"),
        (agents, servers) if keys.is_empty() => pass(format!(
            "{} runs; this instance shares no directory, port or control group with it",
            [agents, servers].concat().join(", ")
        )),
        ([], servers) => warn(
            format!("{} runs; unless started with --disable-agent it is a node agent of its own", servers.join(", ")),
            format!("Start it with --disable-agent, or set {}", keys.join(", ")),
        ),
        (agents, _) => blocked(
            format!("{} runs and would fight over the same pods, directories and control groups", agents.join(", ")),
            format!("Stop it (systemctl disable --now k3s-agent), or set {}", keys.join(", ")),
        ),
    }
}

pub(super) fn journald(facts: &Facts) -> Verdict {
    if !facts.services.systemd {
        return skipped(NO_SYSTEMD);
    }
    let journal = &facts.services.journal;
    let storage = journal.storage.as_deref().unwrap_or("auto");
    match &journal.runtime_max {
        Some(max) => pass(format!("Storage={storage}, RuntimeMaxUse={max}")),
        None if !is_small(facts) => pass(format!("Storage={storage}, RuntimeMaxUse is a tenth of the memory")),
        None => {
            let text = "[Journal]\nRuntimeMaxUse=16M\nRateLimitBurst=2000\n";
            warn(
                format!("Storage={storage} and RuntimeMaxUse is not set: logs may take a tenth of the memory"),
                "Set RuntimeMaxUse=16M in /etc/systemd/journald.conf.d/60-edge-agent.conf, or run: edge-agent preflight --fix",
            )
            .fixed_by([
                Fix::file("/etc/systemd/journald.conf.d/60-edge-agent.conf", text),
                Fix::Run(&["systemctl", "restart", "systemd-journald.service"]),
            ])
        }
    }
}

pub(super) fn tmp_size(facts: &Facts) -> Verdict {
    let Some(size) = facts.services.tmp_mib else { return pass("/tmp is not in memory") };
    let found = format!("/tmp may take {size} of {} MiB of memory", facts.memory_mib);
    // A tenth as set, plus the rounding to pages.
    if !is_small(facts) || size <= facts.memory_mib / 10 + 1 {
        return pass(found);
    }
    if !facts.services.systemd {
        return warn(found, "Mount it with size=10%");
    }
    let text = "[Mount]\nOptions=mode=1777,strictatime,nosuid,nodev,size=10%%,nr_inodes=1m\n";
    warn(found, "Mount it with size=10% (preflight --fix asks)")
        .fixed_by([drop_in("tmp.mount", text.to_owned()), Fix::Run(&["mount", "-o", "remount,size=10%", "/tmp"])])
        .asking()
}

pub(super) fn watchdog(facts: &Facts) -> Verdict {
    let services = &facts.services;
    if !services.watchdog_device {
        return skipped("no watchdog device");
    }
    match services.watchdog_seconds {
        None => no_units(facts),
        Some(0) => warn(
            "RuntimeWatchdogSec is not set: a board that hangs stays down",
            "Set RuntimeWatchdogSec=10s (preflight --fix asks). A stall of the card longer than that reboots the board; newer firmware also needs kernel_watchdog_timeout in config.txt",
        )
        .fixed_by([
            Fix::file("/etc/systemd/system.conf.d/60-edge-agent.conf", "[Manager]\nRuntimeWatchdogSec=10s\n"),
            Fix::Run(&["systemctl", "daemon-reexec"]),
        ])
        .asking(),
        Some(seconds) => pass(format!("after {:?}", Duration::from_secs(seconds))),
    }
}

pub(super) fn clock(facts: &Facts) -> Verdict {
    let services = &facts.services;
    if services.year < 2025 {
        return warn(
            format!("it is the year {} here: certificates are not valid yet", services.year),
            "Let it be set (timedatectl set-ntp true), or set it: date -s",
        );
    }
    let ordered = services.units.as_ref().and_then(|units| units.get(AGENT)).is_none_or(|unit| unit.after_time_sync);
    if !ordered {
        let text = "[Unit]\nWants=time-sync.target\nAfter=time-sync.target\n".to_owned();
        return warn(
            "edge-agent.service does not wait for the clock at boot",
            "Order it after time-sync.target, or run: edge-agent preflight --fix",
        )
        .fixed_by([drop_in(AGENT, text)]);
    }
    match services.clock_synchronised {
        Some(true) => pass("synchronised"),
        Some(false) => warn("plausible but not synchronised", "Run: timedatectl set-ntp true (certificates and leases need the time)"),
        None if services.systemd => skipped("plausible; timedatectl does not say whether it is synchronised"),
        None => skipped(format!("plausible; {NO_SYSTEMD}, so whether it is synchronised is not known")),
    }
}
