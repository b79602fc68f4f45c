//! What the governor sees: one reading of the node's and the scopes' counters, and one of each pod.
//!
//! Counters are the kernel's own, since boot or since the group was made; the control law takes the differences. Everything is plain data that
//! can be written down and replayed. What the kernel does not offer is `None`, never 0.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::QosClass;

/// Stall time of one resource, microseconds (`total=` of a pressure file, which is computed at each read; the averages lag by 2 s).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// At least one task waited.
    pub some_us: u64,
    /// All tasks waited.
    pub full_us: u64,
}

/// Stall times by resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stalls {
    /// `cpu.pressure`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Stall>,
    /// `memory.pressure`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Stall>,
    /// `io.pressure`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Stall>,
}

/// One of the groups that are watched all the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scope {
    /// Pressure.
    pub stalls: Stalls,
    /// `memory.current`, bytes.
    pub memory: u64,
    /// `memory.swap.current`, bytes.
    pub swap: u64,
    /// `high` of `memory.events.local`: how often this group itself, not one below it, hit its brake.
    pub high_events: u64,
    /// `max` of `memory.events.local`.
    pub max_events: u64,
    /// `oom_kill` of `memory.events`, the groups below included.
    pub oom_kills: u64,
    /// `workingset_refault_anon` and `workingset_refault_file` together, pages.
    pub refaults: u64,
    /// `pids.current`.
    pub tasks: u64,
    /// `pids.max`.
    pub tasks_max: Option<u64>,
}

/// One reading of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Since boot, suspension included (`CLOCK_BOOTTIME`).
    #[serde(with = "micros")]
    pub at: Duration,
    /// `/proc/pressure`.
    pub node: Stalls,
    /// `edge.slice`, or the agent's own group.
    pub agent: Scope,
    /// containerd with its shims.
    pub runtime: Scope,
    /// All pods.
    pub kubepods: Scope,
    /// Burstable pods.
    pub burstable: Scope,
    /// BestEffort pods.
    pub best_effort: Scope,
    /// `MemAvailable`, bytes.
    pub available: u64,
    /// `SwapTotal` and what of it is used, bytes.
    pub swap_total: u64,
    /// Used swap, bytes.
    pub swap_used: u64,
    /// Memory that zram holds (`mm_stat`), bytes.
    pub zram: u64,
    /// `pswpin` of `/proc/vmstat`, pages.
    pub swapped_in: u64,
    /// `workingset_refault_file` of `/proc/vmstat`, pages.
    pub file_refaults: u64,
    /// How late the heartbeat woke at worst since the last reading.
    #[serde(with = "micros")]
    pub heartbeat_lag: Duration,
    /// How long the outstanding write to the state's file system has taken, or the last one took if it ended since the last reading.
    #[serde(with = "micros")]
    pub write_age: Duration,
    /// Tasks on the machine.
    pub tasks: u64,
    /// `kernel.threads-max`.
    pub tasks_max: u64,
    /// Used share of the disk of the state, 0 to 1.
    pub disk: f32,
    /// Used share of its inodes.
    pub inodes: f32,
    /// Used share of the connection tracking table.
    pub conntrack: f32,
    /// Processor frequency as a share of its highest; `None` where it is not known.
    pub frequency: Option<f32>,
    /// The firmware reports undervoltage now.
    pub undervoltage: bool,
}

/// What an owner or an operator wants of the governor for a pod (annotation `edge-agent.io/governor`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// First to be acted on.
    Prefer,
    /// By the usual order.
    #[default]
    Usual,
    /// Only when nothing else is left.
    Avoid,
}

/// Who a pod is; what the API says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodFacts {
    /// The pod's UID as its group is named by.
    pub uid: String,
    /// `namespace/name`, for messages.
    pub name: String,
    /// Whose pod it is, for counting evictions: the UID of its controller, else its own.
    pub workload: String,
    /// Class.
    pub qos: QosClass,
    /// `spec.priority`.
    pub priority: i32,
    /// Of a critical priority class, a static pod, or a helper of this node: never acted on.
    pub protected: bool,
    /// The annotation.
    pub preference: Preference,
    /// Sum of the memory requests, bytes.
    pub memory_request: u64,
    /// Sum of the processor requests, thousandths.
    pub cpu_request: u64,
    /// When its first container started, on the clock of [`Sample::at`].
    #[serde(with = "micros")]
    pub started: Duration,
    /// `terminationGracePeriodSeconds`.
    #[serde(with = "micros")]
    pub grace: Duration,
}

/// What a pod uses. Counters as in [`Scope`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodUse {
    /// `memory.current`, bytes.
    pub memory: u64,
    /// `anon + shmem + kernel` of `memory.stat`: what ending the pod would give back, bytes. Page cache is not gained by killing.
    pub relief: u64,
    /// `memory.swap.current`, bytes.
    pub swap: u64,
    /// `memory.high`, bytes.
    pub high: Option<u64>,
    /// `memory.pressure`, `some`, microseconds.
    pub memory_stall_us: u64,
    /// Refaults of both kinds and `pgscan`, pages.
    pub thrash: u64,
    /// Bytes written to all devices (`io.stat`).
    pub written: u64,
    /// Processor time, microseconds.
    pub cpu_us: u64,
    /// Tasks.
    pub tasks: u64,
    /// `max` of `pids.events`.
    pub fork_failures: u64,
    /// `cgroup.freeze` is set.
    pub frozen: bool,
}

/// A pod that runs here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Who.
    pub facts: PodFacts,
    /// What it uses.
    pub used: PodUse,
}

/// Durations in whole microseconds: short in a trace, and read back equal.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(input: D) -> Result<Duration, D::Error> {
        u64::deserialize(input).map(Duration::from_micros)
    }
}
