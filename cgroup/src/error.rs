//! What can go wrong with a control group, always with the path and the value.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An operation of this crate that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup file system is mounted: a container without one.
    #[error("no cgroup hierarchy is mounted according to {mountinfo}: mount /sys/fs/cgroup or run on the host")]
    NotMounted {
        /// The list of mounts that was read.
        mountinfo: PathBuf,
    },
    /// The list of mounts cannot be parsed.
    #[error("mount list {path} cannot be parsed: {detail}")]
    Mounts {
        /// The list of mounts that was read.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// A control file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A control file refused a value.
    #[error("cannot write {value:?} to {path}{}", hint(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A control file took a value and holds another one.
    #[error("{path} holds {found} after {wanted} was written")]
    NotApplied {
        /// The file.
        path: PathBuf,
        /// What was written.
        wanted: String,
        /// What reads back.
        found: String,
    },
    /// A control file holds something that is not its format.
    #[error("{path} holds {text:?}, which is not {expected}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The text found, shortened.
        text: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A group cannot be made.
    #[error("cannot create cgroup {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A group cannot be made, according to cgroups-rs, which has no error number to give.
    #[error("cannot {operation} cgroup {group}")]
    Library {
        /// What was tried.
        operation: &'static str,
        /// The group, as a path below the mounts.
        group: String,
        /// What cgroups-rs said.
        source: cgroups_rs::fs::error::Error,
    },
    /// A group cannot be removed.
    #[error("cannot remove cgroup {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// systemd did not take a slice's limits.
    #[error("systemctl did not set the limits of {slice}: {message}; with kubelet-arg cgroup-driver=cgroupfs systemd is not asked")]
    Systemctl {
        /// The slice.
        slice: String,
        /// Its complaint.
        message: String,
    },
    /// Processes survived being killed, which means that they hang in the kernel.
    #[error("cgroup {group} still holds processes {pids:?} {waited:?} after they were killed")]
    StillBusy {
        /// The group, as a path below the mounts.
        group: String,
        /// Who is left.
        pids: Vec<i32>,
        /// How long they had.
        waited: Duration,
    },
    /// The kernel does not offer a controller that the operation needs.
    #[error("controller {controller:?} is not available: {remedy}")]
    MissingController {
        /// Its v2 name.
        controller: &'static str,
        /// What to do.
        remedy: String,
    },
    /// A name would leave the tree or confuse it.
    #[error("{what} {value:?} cannot be part of a cgroup path: {reason}")]
    Name {
        /// Pod UID, container id or cgroup root.
        what: &'static str,
        /// The value given.
        value: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Throughput cannot be limited, as no disk is known.
    #[error("no disk is found behind {path}: {why}")]
    NoDisk {
        /// The directory that was asked for.
        path: PathBuf,
        /// What stands in the way.
        why: String,
    },
    /// More is reserved than there is.
    #[error(
        "{reserved} of {resource} reserved by system-reserved, kube-reserved, eviction-hard or reserve-scale leaves nothing of the node's {capacity} for pods: lower them"
    )]
    NothingLeft {
        /// `memory` (bytes), `cpu` (thousandths) or `pid`.
        resource: &'static str,
        /// The sum of the reservations.
        reserved: u64,
        /// What the machine has.
        capacity: u64,
    },
}

impl Error {
    /// The group or file is not there, which a removal treats as done and a reader as "ended".
    pub fn is_gone(&self) -> bool {
        match self {
            Error::Read { source, .. } | Error::Write { source, .. } | Error::Remove { source, .. } => {
                matches!(source.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV))
            }
            _ => false,
        }
    }

    /// Trying again later may succeed without anybody changing the machine.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::StillBusy { .. } => true,
            Error::Write { source, .. } | Error::Remove { source, .. } => {
                matches!(source.raw_os_error(), Some(nix::libc::EBUSY | nix::libc::EINTR | nix::libc::EAGAIN))
            }
            _ => false,
        }
    }
}

/// The remedy for the two refusals that a newcomer meets (governor reference, section 6.3).
fn hint(path: &Path, source: &io::Error) -> &'static str {
    let subtree = path.ends_with("cgroup.subtree_control");
    match source.raw_os_error() {
        Some(nix::libc::EACCES | nix::libc::EPERM | nix::libc::EROFS) if subtree => {
            ": run as root on the host, or set cgroup-root to a delegated subtree"
        }
        Some(nix::libc::EBUSY) if subtree => ": the group itself holds processes; move them into a child group first",
        Some(nix::libc::EBUSY) if path.ends_with("memory.limit_in_bytes") => ": more than that is in use",
        _ => "",
    }
}
