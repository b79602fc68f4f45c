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
    #[serde(skip_serializing_if = "is_default")]
    pub stalls: Stalls,
    /// `memory.current`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: u64,
    /// `memory.swap.current`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: u64,
    /// `high` of `memory.events.local`: how often this group itself, not one below it, hit its brake.
    #[serde(skip_serializing_if = "is_default")]
    pub high_events: u64,
    /// `max` of `memory.events.local`.
    #[serde(skip_serializing_if = "is_default")]
    pub max_events: u64,
    /// `oom_kill` of `memory.events`, the groups below included.
    #[serde(skip_serializing_if = "is_default")]
    pub oom_kills: u64,
    /// `workingset_refault_anon` and `workingset_refault_file` together, pages.
    #[serde(skip_serializing_if = "is_default")]
    pub refaults: u64,
    /// `pids.current`.
    #[serde(skip_serializing_if = "is_default")]
    pub tasks: u64,
    /// `pids.max`.
    #[serde(skip_serializing_if = "is_default")]
    pub tasks_max: Option<u64>,
}

/// One reading of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Since boot, suspension included (`CLOCK_BOOTTIME`).
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub at: Duration,
    /// `/proc/pressure`.
    #[serde(skip_serializing_if = "is_default")]
    pub node: Stalls,
    /// `edge.slice`, or the agent's own group.
    #[serde(skip_serializing_if = "is_default")]
    pub agent: Scope,
    /// containerd with its shims.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: Scope,
    /// All pods.
    #[serde(skip_serializing_if = "is_default")]
    pub kubepods: Scope,
    /// Burstable pods.
    #[serde(skip_serializing_if = "is_default")]
    pub burstable: Scope,
    /// BestEffort pods.
    #[serde(skip_serializing_if = "is_default")]
    pub best_effort: Scope,
    /// `MemAvailable`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub available: u64,
    /// `SwapTotal` and what of it is used, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub swap_total: u64,
    /// Used swap, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub swap_used: u64,
    /// Memory that zram holds (`mm_stat`), bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub zram: u64,
    /// `pswpin` of `/proc/vmstat`, pages.
    #[serde(skip_serializing_if = "is_default")]
    pub swapped_in: u64,
    /// `workingset_refault_file` of `/proc/vmstat`, pages.
    #[serde(skip_serializing_if = "is_default")]
    pub file_refaults: u64,
    /// How late the heartbeat woke at worst since the last reading.
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub heartbeat_lag: Duration,
    /// How long the outstanding write to the state's file system has taken, or the last one took if it ended since the last reading.
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub write_age: Duration,
    /// Tasks on the machine.
    #[serde(skip_serializing_if = "is_default")]
    pub tasks: u64,
    /// `kernel.threads-max`.
    #[serde(skip_serializing_if = "is_default")]
    pub tasks_max: u64,
    /// Used share of the disk of the state, 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub disk: f32,
    /// Used share of its inodes.
    #[serde(skip_serializing_if = "is_default")]
    pub inodes: f32,
    /// Used share of the connection tracking table.
    #[serde(skip_serializing_if = "is_default")]
    pub conntrack: f32,
    /// Processor frequency as a share of its highest; `None` where it is not known.
    #[serde(skip_serializing_if = "is_default")]
    pub frequency: Option<f32>,
    /// The firmware reports undervoltage now.
    #[serde(skip_serializing_if = "is_default")]
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
    #[serde(skip_serializing_if = "is_default")]
    pub uid: String,
    /// `namespace/name`, for messages.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Whose pod it is, for counting evictions: the UID of its controller, else its own.
    #[serde(skip_serializing_if = "is_default")]
    pub workload: String,
    /// Class.
    #[serde(skip_serializing_if = "is_default")]
    pub qos: QosClass,
    /// `spec.priority`.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Of a critical priority class, a static pod, or a helper of this node: never acted on.
    #[serde(skip_serializing_if = "is_default")]
    pub protected: bool,
    /// The annotation.
    #[serde(skip_serializing_if = "is_default")]
    pub preference: Preference,
    /// Sum of the memory requests, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub memory_request: u64,
    /// Sum of the processor requests, thousandths.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_request: u64,
    /// When its first container started, on the clock of [`Sample::at`].
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub started: Duration,
    /// `terminationGracePeriodSeconds`.
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub grace: Duration,
}

/// What a pod uses. Counters as in [`Scope`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodUse {
    /// When it was read, on the clock of [`Sample::at`]; zero: with the sample.
    #[serde(with = "micros", skip_serializing_if = "is_default")]
    pub read: Duration,
    /// `memory.current`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: u64,
    /// `anon + shmem + kernel` of `memory.stat`: what ending the pod would give back, bytes. Page cache is not gained by killing.
    #[serde(skip_serializing_if = "is_default")]
    pub relief: u64,
    /// `memory.swap.current`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: u64,
    /// `memory.high`, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub high: Option<u64>,
    /// `memory.pressure`, `some`, microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub memory_stall_us: u64,
    /// Refaults of both kinds and `pgscan`, pages.
    #[serde(skip_serializing_if = "is_default")]
    pub thrash: u64,
    /// Bytes written to all devices (`io.stat`).
    #[serde(skip_serializing_if = "is_default")]
    pub written: u64,
    /// Processor time, microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_us: u64,
    /// Tasks.
    #[serde(skip_serializing_if = "is_default")]
    pub tasks: u64,
    /// `max` of `pids.events`.
    #[serde(skip_serializing_if = "is_default")]
    pub fork_failures: u64,
    /// `cgroup.freeze` is set.
    #[serde(skip_serializing_if = "is_default")]
    pub frozen: bool,
}

/// A pod that runs here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Who.
    #[serde(skip_serializing_if = "is_default")]
    pub facts: PodFacts,
    /// What it uses.
    #[serde(skip_serializing_if = "is_default")]
    pub used: PodUse,
}

/// What is nothing is left out of a trace.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
