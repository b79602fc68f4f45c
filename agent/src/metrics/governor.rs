//! The governor's metrics (`governor.md` 4.2): counters it adds to as things happen, and a plain [`Snapshot`] of what is true
//! now, which it publishes with each turn of its loop.
//!
//! Nothing here makes the governor wait: the histograms are atomics, the counters' label values exist from the start (so that
//! looking one up only shares a read lock with a scrape), and a snapshot that cannot be stored at once is left out, the next
//! turn brings another.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::{One, Two};

/// Values of the label `state`, calm first. [`Snapshot::state`] is an index into it.
pub const STATES: [&str; 6] = ["calm", "watch", "brake", "freeze", "evict", "cull"];

/// Values of the label `signal`, in the order of `governor.md` 3.5. [`Snapshot::levels`] has the same order.
pub const SIGNALS: [&str; 16] = [
    "own_mem",
    "own_refault",
    "hb_lag",
    "own_io",
    "own_cpu",
    "brake",
    "avail",
    "node_mem",
    "thrash",
    "swap",
    "node_io",
    "tasks",
    "disk",
    "inodes",
    "conntrack",
    "heat",
];

/// Values of the label `feature`. [`Snapshot::features`] has the same order, but for `mlock`, which the heartbeat finds out.
pub const FEATURES: [&str; 9] = ["memory_min", "memory_high", "io_max", "pids_max", "psi_trigger", "cgroup_kill", "freeze", "mlock", "rt"];

/// Values of the label `resource` of actions, in their order of precedence; [`Snapshot::throttled`] has the same order.
pub const RESOURCES: [&str; 4] = ["memory", "tasks", "io", "cpu"];

/// What is measured of pressure; rows of [`Snapshot::ratios`].
pub const PRESSURES: [&str; 3] = ["cpu", "memory", "io"];

/// Actions with the resources they are taken for and the classes of pods they may meet; `all`: a limit of a whole slice.
const ACTIONS: [(&str, &[&str], &[&str]); 12] = [
    ("reclaim", &["memory"], &["besteffort", "burstable"]),
    ("memory_high", &["memory"], &["besteffort", "burstable"]),
    ("swap_max", &["memory"], &["besteffort", "burstable", "all"]),
    ("io_max", &["memory", "io"], &["besteffort", "burstable", "guaranteed", "all"]),
    ("cpu_max", &["memory", "cpu"], &["besteffort", "burstable", "all"]),
    ("cpu_idle", &["cpu"], &["all"]),
    ("freeze", &["memory", "io"], &["besteffort", "burstable"]),
    ("thaw", &["memory", "io"], &["besteffort", "burstable"]),
    ("evict", &["memory", "io"], &["besteffort", "burstable"]),
    ("kill", &["memory", "tasks"], &["besteffort", "burstable", "guaranteed"]),
    ("release", &["memory", "io", "cpu"], &["besteffort", "burstable", "guaranteed", "all"]),
    ("pause_pulls", &["memory", "io"], &["all"]),
];
const RESULTS: [&str; 2] = ["ok", "failed"];
const SUPPRESSED: [&str; 4] = ["rate_limit", "protected", "observe", "no_candidate"];
/// The triggers of 3.5.
const TRIGGERS: [(&str, &str, &str); 8] = [
    ("node", "memory", "waiting"),
    ("node", "memory", "stalled"),
    ("node", "io", "stalled"),
    ("agent", "memory", "waiting"),
    ("agent", "io", "waiting"),
    ("kubepods", "memory", "waiting"),
    ("burstable", "memory", "waiting"),
    ("besteffort", "memory", "waiting"),
];
const EVICTED: [&str; 3] = ["memory", "tasks", "io"];
const CLASSES: [&str; 3] = ["besteffort", "burstable", "guaranteed"];

/// What the governor found on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// `v2`, `hybrid`, `legacy`.
    pub cgroup_mode: &'static str,
    /// `systemd`, `cgroupfs`.
    pub cgroup_driver: &'static str,
    /// `trigger`, `poll`, `off`.
    pub psi: &'static str,
    /// `io_max`, `throttle`, `none`.
    pub io_control: &'static str,
    /// `enforce`, `observe`, `static`.
    pub profile: &'static str,
}

/// Share of a window spent waiting, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratio {
    /// Over the last second.
    pub w1: f32,
    /// Over the last ten seconds.
    pub w10: f32,
}

/// Pressure of the node on one resource, from the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratios {
    /// `some`.
    pub waiting: Ratio,
    /// `full`.
    pub stalled: Ratio,
}

/// What is true after one turn of the governor's loop. Plain and `Copy`: filling one allocates nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// None until the machine was looked at.
    pub info: Option<Info>,
    /// By [`FEATURES`]; what is set for `mlock` here is not looked at.
    pub features: [bool; FEATURES.len()],
    /// Index into [`STATES`].
    pub state: usize,
    /// 0 calm to 3 emergency, by [`SIGNALS`].
    pub levels: [u8; SIGNALS.len()],
    /// Pods that carry a limit of the governor's, by [`RESOURCES`].
    pub throttled: [u32; RESOURCES.len()],
    /// Pods frozen now.
    pub frozen: u32,
    /// By [`PRESSURES`]; none where the kernel does not measure it.
    pub ratios: [Option<Ratios>; PRESSURES.len()],
}

/// All metrics of the governor. Cheap to write from its thread.
#[derive(Debug)]
pub struct GovernorMetrics {
    snapshot: Mutex<Snapshot>,
    mlock: std::sync::atomic::AtomicBool,
    transitions: Family<One, Counter>,
    actions: Family<[(&'static str, &'static str); 4], Counter>,
    suppressed: Family<One, Counter>,
    psi_events: Family<[(&'static str, &'static str); 3], Counter>,
    evictions: Family<Two, Counter>,
    reaction: Histogram,
    turn: Histogram,
    storage_probe: Histogram,
}

impl Default for GovernorMetrics {
    fn default() -> Self {
        let metrics = Self {
            snapshot: Mutex::default(),
            mlock: std::sync::atomic::AtomicBool::new(false),
            transitions: Family::default(),
            actions: Family::default(),
            suppressed: Family::default(),
            psi_events: Family::default(),
            evictions: Family::default(),
            reaction: Histogram::new(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0]),
            turn: Histogram::new(&[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0]),
            storage_probe: Histogram::new(&[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 2.5, 5.0, 10.0]),
        };
        metrics.create();
        metrics
    }
}

impl GovernorMetrics {
    /// Every enumerated label value is there from the start, at 0.
    fn create(&self) {
        for (action, resources, classes) in ACTIONS {
            for resource in resources {
                for qos in classes {
                    for result in RESULTS {
                        drop(self.actions.get_or_create(&action_labels(action, resource, qos, result)));
                    }
                }
            }
        }
        for state in STATES {
            drop(self.transitions.get_or_create(&[("to", state)]));
        }
        for reason in SUPPRESSED {
            drop(self.suppressed.get_or_create(&[("reason", reason)]));
        }
        for (scope, resource, kind) in TRIGGERS {
            drop(self.psi_events.get_or_create(&[("scope", scope), ("resource", resource), ("kind", kind)]));
        }
        for resource in EVICTED {
            for qos in CLASSES {
                drop(self.evictions.get_or_create(&[("resource", resource), ("qos", qos)]));
            }
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("edge_agent_governor_transitions", "Governor state transitions by target state", self.transitions.clone());
        r.register("edge_agent_governor_actions", "Actions taken on workloads", self.actions.clone());
        r.register("edge_agent_governor_suppressed", "Seconds in which an action was decided but not executed", self.suppressed.clone());
        r.register("edge_agent_governor_psi_events", "PSI trigger wakeups received", self.psi_events.clone());
        r.register("edge_agent_evictions", "Pods evicted by reason", self.evictions.clone());
        let help = "Time from a threshold having been crossed for its hold time to the action being written";
        r.register("edge_agent_governor_reaction_seconds", help, self.reaction.clone());
        r.register("edge_agent_governor_loop_seconds", "Wall time of one governor iteration", self.turn.clone());
        let help = "Duration of a small synchronous write on the state filesystem";
        r.register("edge_agent_storage_write_probe_seconds", help, self.storage_probe.clone());
    }

    /// What is true now. Never waits: while a scrape copies the former snapshot this one is left out.
    pub fn set_snapshot(&self, snapshot: &Snapshot) {
        match self.snapshot.try_lock() {
            Ok(mut held) => *held = *snapshot,
            Err(std::sync::TryLockError::Poisoned(held)) => *held.into_inner() = *snapshot,
            Err(std::sync::TryLockError::WouldBlock) => {}
        }
    }

    /// The last snapshot.
    pub fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pages of the two threads that matter are locked.
    pub fn memory_locked(&self, locked: bool) {
        self.mlock.store(locked, std::sync::atomic::Ordering::Relaxed);
    }

    /// The state became `to` ([`STATES`]).
    pub fn transition(&self, to: &'static str) {
        self.transitions.get_or_create(&[("to", to)]).inc();
    }

    /// Something was done to a pod, or failed: `memory_high`, `freeze`, … for a resource of [`RESOURCES`], of class
    /// `besteffort`, `burstable`, `guaranteed` or `all`, with result `ok` or `failed`.
    pub fn action(&self, action: &'static str, resource: &'static str, qos: &'static str, result: &'static str) {
        self.actions.get_or_create(&action_labels(action, resource, qos, result)).inc();
    }

    /// Something was decided but not done: `rate_limit`, `protected`, `observe`, `no_candidate`.
    pub fn suppressed(&self, reason: &'static str) {
        self.suppressed.get_or_create(&[("reason", reason)]).inc();
    }

    /// A trigger fired: scope `node`, `agent`, `kubepods`, `burstable`, `besteffort`; kind `waiting` (some) or `stalled` (full).
    pub fn psi_event(&self, scope: &'static str, resource: &'static str, kind: &'static str) {
        self.psi_events.get_or_create(&[("scope", scope), ("resource", resource), ("kind", kind)]).inc();
    }

    /// A pod was evicted or killed for want of `resource`.
    pub fn evicted(&self, resource: &'static str, qos: &'static str) {
        self.evictions.get_or_create(&[("resource", resource), ("qos", qos)]).inc();
    }

    /// From the moment a threshold has been crossed for its hold time to the written action.
    pub fn observe_reaction(&self, took: Duration) {
        self.reaction.observe(took);
    }

    /// One turn of the loop.
    pub fn observe_loop(&self, took: Duration) {
        self.turn.observe(took);
    }

    /// One write probe of the state's file system.
    pub fn observe_storage_probe(&self, took: Duration) {
        self.storage_probe.observe(took);
    }
}

fn action_labels(
    action: &'static str,
    resource: &'static str,
    qos: &'static str,
    result: &'static str,
) -> [(&'static str, &'static str); 4] {
    [("action", action), ("resource", resource), ("qos", qos), ("result", result)]
}

/// Shows the last snapshot.
#[derive(Debug)]
pub(super) struct Published(pub(super) std::sync::Arc<GovernorMetrics>);

impl Collector for Published {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let now = self.0.snapshot();
        let mlock = self.0.mlock.load(std::sync::atomic::Ordering::Relaxed);
        if let Some(info) = now.info {
            let help = "Detected control plane of the governor, constant 1";
            let mut encoder = encoder.encode_descriptor("edge_agent_governor_info", help, None, MetricType::Gauge)?;
            let labels = [
                ("cgroup_mode", info.cgroup_mode),
                ("cgroup_driver", info.cgroup_driver),
                ("psi", info.psi),
                ("io_control", info.io_control),
                ("profile", info.profile),
            ];
            encoder.encode_family(&labels)?.encode_gauge(&1u64)?;
        }
        let help = "Whether a kernel facility the governor wants is usable";
        let mut features = encoder.encode_descriptor("edge_agent_governor_feature_enabled", help, None, MetricType::Gauge)?;
        for (name, enabled) in FEATURES.into_iter().zip(now.features) {
            let enabled = if name == "mlock" { mlock } else { enabled };
            features.encode_family(&[("feature", name)])?.encode_gauge(&u64::from(enabled))?;
        }
        let help = "Current governor state, 1 for the active one";
        let mut state = encoder.encode_descriptor("edge_agent_governor_state", help, None, MetricType::Gauge)?;
        for (index, name) in STATES.into_iter().enumerate() {
            state.encode_family(&[("state", name)])?.encode_gauge(&u64::from(index == now.state))?;
        }
        let help = "Level of a signal, 0 calm to 3 emergency";
        let mut level = encoder.encode_descriptor("edge_agent_governor_signal_level", help, None, MetricType::Gauge)?;
        for (name, value) in SIGNALS.into_iter().zip(now.levels) {
            level.encode_family(&[("signal", name)])?.encode_gauge(&u64::from(value))?;
        }
        let help = "Pods that currently carry a limit set by the governor";
        let mut throttled = encoder.encode_descriptor("edge_agent_governor_throttled_pods", help, None, MetricType::Gauge)?;
        for (name, pods) in RESOURCES.into_iter().zip(now.throttled) {
            throttled.encode_family(&[("resource", name)])?.encode_gauge(&u64::from(pods))?;
        }
        let help = "Pods currently frozen by the governor";
        encoder
            .encode_descriptor("edge_agent_governor_frozen_pods", help, None, MetricType::Gauge)?
            .encode_gauge(&u64::from(now.frozen))?;
        let help = "Share of the last window spent stalled, from PSI totals";
        let mut ratio = encoder.encode_descriptor("edge_agent_node_pressure_ratio", help, None, MetricType::Gauge)?;
        for (resource, ratios) in PRESSURES.into_iter().zip(now.ratios) {
            let Some(ratios) = ratios else { continue };
            for (kind, of) in [("waiting", ratios.waiting), ("stalled", ratios.stalled)] {
                for (window, value) in [("1s", of.w1), ("10s", of.w10)] {
                    ratio.encode_family(&[("resource", resource), ("kind", kind), ("window", window)])?.encode_gauge(&f64::from(value))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn everything_enumerated_is_there_at_zero_and_counts() {
        let metrics = Metrics::new("0.1.0");
        let text = metrics.render(Format::Classic).expect("renders");
        for line in [
            "edge_agent_governor_state{state=\"calm\"} 1",
            "edge_agent_governor_state{state=\"cull\"} 0",
            "edge_agent_governor_transitions_total{to=\"brake\"} 0",
            "edge_agent_governor_actions_total{action=\"freeze\",resource=\"memory\",qos=\"besteffort\",result=\"ok\"} 0",
            "edge_agent_governor_suppressed_total{reason=\"protected\"} 0",
            "edge_agent_governor_psi_events_total{scope=\"besteffort\",resource=\"memory\",kind=\"waiting\"} 0",
            "edge_agent_governor_signal_level{signal=\"hb_lag\"} 0",
            "edge_agent_governor_frozen_pods 0",
            "edge_agent_governor_reaction_seconds_count 0",
            "edge_agent_evictions_total{resource=\"memory\",qos=\"burstable\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("edge_agent_governor_info"), "nothing was detected yet");

        let governor = metrics.governor();
        governor.action("freeze", "memory", "besteffort", "ok");
        governor.transition("freeze");
        governor.observe_reaction(Duration::from_millis(40));
        let mut levels = [0; SIGNALS.len()];
        levels[2] = 3;
        let ratios = Ratios { waiting: Ratio { w1: 0.5, w10: 0.25 }, stalled: Ratio::default() };
        governor.set_snapshot(&Snapshot {
            info: Some(Info { cgroup_mode: "v2", cgroup_driver: "systemd", psi: "trigger", io_control: "io_max", profile: "enforce" }),
            state: 3,
            levels,
            throttled: [2, 0, 1, 0],
            frozen: 1,
            ratios: [None, Some(ratios), None],
            ..Snapshot::default()
        });
        governor.memory_locked(true);
        let text = metrics.render(Format::Classic).expect("renders");
        for line in [
            "edge_agent_governor_info{cgroup_mode=\"v2\",cgroup_driver=\"systemd\",psi=\"trigger\",io_control=\"io_max\",profile=\"enforce\"} 1",
            "edge_agent_governor_state{state=\"freeze\"} 1",
            "edge_agent_governor_transitions_total{to=\"freeze\"} 1",
            "edge_agent_governor_actions_total{action=\"freeze\",resource=\"memory\",qos=\"besteffort\",result=\"ok\"} 1",
            "edge_agent_governor_signal_level{signal=\"hb_lag\"} 3",
            "edge_agent_governor_throttled_pods{resource=\"io\"} 1",
            "edge_agent_governor_frozen_pods 1",
            "edge_agent_governor_reaction_seconds_bucket{le=\"0.05\"} 1",
            "edge_agent_governor_feature_enabled{feature=\"mlock\"} 1",
            "edge_agent_node_pressure_ratio{resource=\"memory\",kind=\"waiting\",window=\"10s\"} 0.25",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("edge_agent_node_pressure_ratio{resource=\"cpu\""), "not measured");
    }

    #[test]
    fn a_snapshot_never_waits_for_a_scrape() {
        let governor = GovernorMetrics::default();
        let held = governor.snapshot.lock().expect("free");
        governor.set_snapshot(&Snapshot { frozen: 1, ..Snapshot::default() });
        drop(held);
        assert_eq!(governor.snapshot().frozen, 0, "left out");
        governor.set_snapshot(&Snapshot { frozen: 2, ..Snapshot::default() });
        assert_eq!(governor.snapshot().frozen, 2);
    }
}
