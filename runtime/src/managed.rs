//! A private containerd for machines that run none. It outlives the agent: it stands in a session of its own, and a
//! restarted agent adopts it.

use std::path::{Path, PathBuf};

use crate::{Client, Result};

/// Everything a private containerd is made of. All paths are absolute and belong to this instance alone.
#[derive(Debug, Clone)]
pub struct ManagedOptions {
    /// Images and snapshots; survives reboots. On a file system overlayfs can stand on.
    pub root: PathBuf,
    /// Run-time state; below `/run`. Also holds `config.toml` and `containerd.pid`.
    pub state: PathBuf,
    /// The unix socket to serve on.
    pub socket: PathBuf,
    /// Where the CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration list is read from.
    pub cni_conf_dir: PathBuf,
    /// Image of the pause process, for example `rancher/mirrored-pause:3.10.2`.
    pub pause_image: String,
    /// Do not lower `oom_score_adj` below the agent's own: needed where CAP_SYS_RESOURCE is missing.
    pub restrict_oom: bool,
    /// Cgroup directories (one for v2, one per hierarchy for v1) the daemon is put into.
    pub cgroups: Vec<PathBuf>,
    /// runc talks to systemd for cgroups.
    pub systemd_cgroup: bool,
    /// File the daemon's output is appended to.
    pub log: PathBuf,
}

/// A living private containerd.
#[derive(Debug)]
pub struct Managed {
    /// Its process id.
    pub pid: u32,
    /// It was already there: a former agent started it.
    pub adopted: bool,
    socket: PathBuf,
}

impl Managed {
    /// Adopts the living containerd of these options, or starts one and waits until CRI answers.
    pub async fn start(options: &ManagedOptions) -> Result<Managed> {
        let _ = options;
        todo!("next commit")
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// The socket it serves on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// For leave, purge and the quickstart's clean-up: ends all pods, shims and the daemon itself and unmounts what
    /// they mounted. The files below `root` stay.
    pub async fn stop(options: &ManagedOptions) -> Result<()> {
        let _ = options;
        todo!("next commit")
    }
}
