//! The governor's hands and eyes on a fake cgroup file system.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../tests/fakes/cgroupfs.rs"]
#[allow(dead_code, unreachable_pub)]
mod cgroupfs;
mod eyes;
mod hands;
mod machine;
