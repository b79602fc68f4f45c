//! The other sides of this project's real boundaries, for tests: what listens on a socket or lies in a directory.

pub mod cgroupfs;
pub mod cri;
