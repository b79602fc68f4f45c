//! What the governor does: settings of one group that are undone later, and the two ends of a pod.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::QosClass;
use crate::psi::Resource as Pressed;

/// Whose group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// One pod.
    Pod {
        /// As its group is named by.
        uid: String,
        /// The class it is below.
        qos: QosClass,
    },
    /// All BestEffort pods.
    BestEffort,
    /// All Burstable pods.
    Burstable,
    /// All pods.
    Kubepods,
}

/// A control file the governor changes and restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Knob {
    /// `memory.high`
    MemoryHigh,
    /// `memory.swap.max`
    SwapMax,
    /// `cpu.max`
    CpuMax,
    /// `cpu.idle`
    CpuIdle,
    /// `io.max`, the line of the disk of the pods
    IoMax,
    /// `cgroup.freeze`
    Freeze,
}

impl Knob {
    /// All of them.
    pub const ALL: [Knob; 6] = [Knob::MemoryHigh, Knob::SwapMax, Knob::CpuMax, Knob::CpuIdle, Knob::IoMax, Knob::Freeze];

    /// Its control file.
    pub fn file(self) -> &'static str {
        match self {
            Knob::MemoryHigh => "memory.high",
            Knob::SwapMax => "memory.swap.max",
            Knob::CpuMax => "cpu.max",
            Knob::CpuIdle => "cpu.idle",
            Knob::IoMax => "io.max",
            Knob::Freeze => "cgroup.freeze",
        }
    }
}

/// Limits on one disk, as `io.max` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimits {
    /// Bytes read a second.
    pub rbps: u64,
    /// Bytes written a second.
    pub wbps: u64,
    /// Reads a second.
    pub riops: u64,
    /// Writes a second.
    pub wiops: u64,
}

impl IoLimits {
    /// Below this a database's own syncs take longer than it waits for them (governor 3.6).
    pub const FLOOR: IoLimits = IoLimits { rbps: 1 << 20, wbps: 1 << 20, riops: 50, wiops: 50 };

    /// Each limit times `numerator / denominator`, not below [`IoLimits::FLOOR`] nor above `most`.
    #[must_use]
    pub fn scaled(self, numerator: u64, denominator: u64, most: IoLimits) -> IoLimits {
        let one = |now: u64, floor: u64, most: u64| (now.saturating_mul(numerator) / denominator.max(1)).max(floor).min(most.max(floor));
        IoLimits {
            rbps: one(self.rbps, Self::FLOOR.rbps, most.rbps),
            wbps: one(self.wbps, Self::FLOOR.wbps, most.wbps),
            riops: one(self.riops, Self::FLOOR.riops, most.riops),
            wiops: one(self.wiops, Self::FLOOR.wiops, most.wiops),
        }
    }
}

impl fmt::Display for IoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rbps={} wbps={} riops={} wiops={}", self.rbps, self.wbps, self.riops, self.wiops)
    }
}

/// A knob with the value it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// Bytes.
    MemoryHigh(u64),
    /// Bytes.
    SwapMax(u64),
    /// Microseconds of processor time per [`crate::CPU_PERIOD_US`].
    CpuMax(u64),
    /// Runs only when nobody else wants to.
    CpuIdle,
    /// On the disk of the pods.
    IoMax(IoLimits),
    /// Stands still.
    Freeze,
}

impl Setting {
    /// Which file.
    pub fn knob(&self) -> Knob {
        match self {
            Setting::MemoryHigh(_) => Knob::MemoryHigh,
            Setting::SwapMax(_) => Knob::SwapMax,
            Setting::CpuMax(_) => Knob::CpuMax,
            Setting::CpuIdle => Knob::CpuIdle,
            Setting::IoMax(_) => Knob::IoMax,
            Setting::Freeze => Knob::Freeze,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Sets a knob. What it held before the first time is kept with the group and comes back with [`Action::Restore`].
    Set {
        /// Whose.
        target: Target,
        /// What.
        setting: Setting,
    },
    /// Gives a knob its value from before the governor touched it.
    Restore {
        /// Whose.
        target: Target,
        /// What.
        knob: Knob,
    },
    /// Asks the kernel to take back so much of the group's memory (`memory.reclaim`).
    Reclaim {
        /// Whose.
        target: Target,
        /// How much.
        bytes: u64,
        /// From files only, so that nothing is swapped.
        files_only: bool,
    },
    /// Ends a pod as an eviction does: its containers are asked to stop, and the pod has failed.
    Evict {
        /// The pod.
        target: Target,
        /// How long its containers have.
        grace: Duration,
    },
    /// Ends all its processes at once (`cgroup.kill`); the pod has failed.
    Kill {
        /// The pod.
        target: Target,
    },
}

impl Action {
    /// Whom it concerns.
    pub fn target(&self) -> &Target {
        match self {
            Action::Set { target, .. }
            | Action::Restore { target, .. }
            | Action::Reclaim { target, .. }
            | Action::Evict { target, .. }
            | Action::Kill { target } => target,
        }
    }

    /// The label `action` of the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Set { setting: Setting::MemoryHigh(_), .. } => "memory_high",
            Action::Set { setting: Setting::SwapMax(_), .. } => "swap_max",
            Action::Set { setting: Setting::CpuMax(_), .. } => "cpu_max",
            Action::Set { setting: Setting::CpuIdle, .. } => "cpu_idle",
            Action::Set { setting: Setting::IoMax(_), .. } => "io_max",
            Action::Set { setting: Setting::Freeze, .. } => "freeze",
            Action::Restore { knob: Knob::Freeze, .. } => "thaw",
            Action::Restore { .. } => "release",
            Action::Reclaim { .. } => "reclaim",
            Action::Evict { .. } => "evict",
            Action::Kill { .. } => "kill",
        }
    }
}

/// The resource an action is for: the three of PSI, and tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Memory.
    Memory,
    /// Tasks.
    Tasks,
    /// The disk.
    Io,
    /// The processor.
    Cpu,
}

impl Resource {
    /// By importance: a node without memory is lost first, one without processor time last.
    pub const ALL: [Resource; 4] = [Resource::Memory, Resource::Tasks, Resource::Io, Resource::Cpu];

    /// The label `resource` of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Tasks => "tasks",
            Resource::Io => "io",
            Resource::Cpu => "cpu",
        }
    }
}

impl From<Pressed> for Resource {
    fn from(resource: Pressed) -> Resource {
        match resource {
            Pressed::Cpu => Resource::Cpu,
            Pressed::Memory => Resource::Memory,
            Pressed::Io => Resource::Io,
        }
    }
}

/// An action with its grounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub action: Action,
    /// For which resource.
    pub resource: Resource,
    /// For people: the signal with its numbers, and for a victim why this one.
    pub why: String,
}
