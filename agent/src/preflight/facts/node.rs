//! What this instance of the agent needs beside the list of the governor reference.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::{Root, program};
use crate::config::Config;
use crate::node::address;

/// Programs, modules, ports, addresses.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub may_lower_oom: bool,
    /// An agent of this instance runs already.
    pub running: bool,
    pub nft_program: bool,
    pub cni_bin_dir: PathBuf,
    pub missing_plugins: Vec<&'static str>,
    pub overlay: bool,
    pub bridge_netfilter: bool,
    /// Addresses of ours that somebody else listens on, and the keys that choose others.
    pub taken: Vec<(SocketAddr, &'static str)>,
    pub addresses: usize,
    /// Pod directories and control groups are where every kubelet has them by default.
    pub shares_root_dir: bool,
    pub shares_cgroup_root: bool,
}

pub(super) fn gather(root: &Root, config: &Config, running: bool) -> Node {
    Node {
        may_lower_oom: runtime::managed::may_lower_oom_score(),
        running,
        nft_program: program("nft"),
        missing_plugins: ["bridge", "host-local", "loopback", "portmap"]
            .into_iter()
            .filter(|name| !config.cni_bin_dir.join(name).exists())
            .collect(),
        cni_bin_dir: config.cni_bin_dir.clone(),
        overlay: root.read("/proc/filesystems").is_some_and(|text| text.lines().any(|line| line.ends_with("\toverlay"))),
        bridge_netfilter: root.exists("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        taken: if running { Vec::new() } else { taken(config) },
        addresses: address::find(config, None).len(),
        shares_root_dir: config.root_dir == Path::new("/var/lib/kubelet"),
        shares_cgroup_root: config.cgroup_root.trim_matches('/').is_empty(),
    }
}

/// Ports of ours that cannot be bound.
fn taken(config: &Config) -> Vec<(SocketAddr, &'static str)> {
    let kubelet = SocketAddr::new(config.kubelet_address, config.kubelet_port);
    [
        (Some(kubelet), "kubelet-arg: port="),
        (config.healthz_address, "kubelet-arg: healthz-port="),
        (config.metrics_address, "metrics-address"),
    ]
    .into_iter()
    .filter_map(|(address, key)| Some((address?, key)))
    .filter(|(address, _)| address.port() != 0 && TcpListener::bind(address).is_err())
    .collect()
}
