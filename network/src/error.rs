//! What can go wrong, with the thing and the remedy.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

/// An operation of this crate that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel setting was refused.
    #[error("cannot set {path} to {value}")]
    Sysctl {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// The value.
        value: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's routing socket failed.
    #[error("cannot {operation} over netlink")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel sent something that is not its format.
    #[error("netlink answer is not understood: {detail}")]
    Answer {
        /// What is wrong with it.
        detail: &'static str,
    },
    /// A route was refused.
    #[error("cannot {operation} route {destination}{}", route_hint(source))]
    Route {
        /// `add` or `delete`.
        operation: &'static str,
        /// Where it leads.
        destination: IpNet,
        /// Why.
        source: io::Error,
    },
    /// `nft` or `iptables` cannot be run.
    #[error("cannot run {program}: install the package nftables")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `nft` or `iptables` refused.
    #[error("{program} refused: {message}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// Its first lines of complaint.
        message: String,
    },
    /// A configuration that cannot work.
    #[error("{what} {value:?}: {reason}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn route_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH | nix::libc::EINVAL) => {
            ": the node's address is not in a directly attached network, which host-gw needs"
        }
        Some(nix::libc::EEXIST) => ": somebody else has a route there",
        Some(nix::libc::EPERM) => ": run as root",
        _ => "",
    }
}
