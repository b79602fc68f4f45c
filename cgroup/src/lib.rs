//! What the kernel does for a node's pods: control groups, the reservation enforced on them, and pressure.
//!
//! The agent calls this crate from plain threads; nothing here is async and nothing keeps time. [`Hierarchy`] says
//! where each controller lives (cgroup v2, hybrid or v1), [`PodTree`] makes and removes the `kubepods` groups,
//! [`reservation`] computes what pods may have, [`stat`] and [`psi`] read what they use. Groups are created, moved
//! into, thawed and killed with cgroups-rs; every control file is written and read back through [`CgroupDir`],
//! because that crate creates missing files and swallows errors.
//!
//! Nothing outside the configured cgroup root is ever written, except `cgroup.subtree_control` of its ancestors on v2.

pub mod calibration;
mod dir;
pub mod disk;
mod error;
pub mod governor;
mod hierarchy;
mod io;
mod kill;
mod library;
mod limits;
pub mod mode;
mod own;
mod path;
pub mod psi;
pub mod reservation;
mod slice;
mod standing;
pub mod stat;
mod tree;
mod value;

pub use calibration::{Calibration, Measured};
pub use dir::CgroupDir;
pub use disk::Disk;
pub use error::Error;
pub use hierarchy::{Board, Controller, Hierarchy, Layout};
pub use io::{IoMax, Rates};
pub use limits::{CpuQuota, Limits};
pub use mode::{GovernorMode, Missing, Probed};
pub use own::{OwnLimits, Placement, own_group, part_group};
pub use path::Driver;
pub use reservation::{NodeAllocatable, Reservation};
pub use standing::{Applied, Drift, Held, Standing};
pub use stat::Stats;
pub use tree::{Enforced, PodCgroup, PodEntry, PodTree, QosDemand};
pub use value::{CPU_PERIOD_US, Limit, QosClass, milli_cpu_to_quota, milli_cpu_to_shares, oom_score_adj, shares_to_weight};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
