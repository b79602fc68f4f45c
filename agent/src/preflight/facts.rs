//! What the checks look at, read once.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use cgroup::{Board, Controller, Hierarchy, Layout};

use crate::config::{Config, ContainerdMode};
use crate::node::{address, machine};

/// Everything a check may know. `None` where the machine does not say.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub root: bool,
    pub layout: Option<Layout>,
    /// Which of memory, cpu and pids the kernel offers.
    pub memory_controller: bool,
    pub cpu_controller: bool,
    pub pids_controller: bool,
    pub psi: bool,
    pub may_lower_oom: bool,
    /// An agent of this instance runs already.
    pub running: bool,
    /// The system's containerd answers on its socket.
    pub containerd_socket: bool,
    pub managed: bool,
    pub containerd_program: bool,
    pub runc_program: bool,
    pub nft_program: bool,
    pub cni_bin_dir: PathBuf,
    pub missing_plugins: Vec<&'static str>,
    pub overlay: bool,
    pub bridge_netfilter: bool,
    /// Addresses of ours that somebody else listens on.
    pub taken: Vec<(SocketAddr, &'static str)>,
    pub memory_mib: u64,
    pub min_free_kib: Option<u64>,
    pub dirty_bytes: Option<u64>,
    pub overcommit: Option<u64>,
    pub inotify_instances: Option<u64>,
    /// Swap on something else than zram.
    pub swap_files: Vec<String>,
    /// Size and free bytes below the data directory, and whether it can be written.
    pub data: Option<(u64, u64)>,
    pub data_writable: bool,
    pub data_dir: PathBuf,
    pub year: i32,
    pub addresses: usize,
    pub other_agents: Vec<String>,
    pub node_name: String,
}

impl Facts {
    /// Looks at this machine for this instance.
    pub fn gather(config: &Config) -> Facts {
        let hierarchy = Hierarchy::detect().ok();
        let has = |controller| hierarchy.as_ref().is_some_and(|h| h.has(controller));
        let managed = config.containerd == ContainerdMode::Managed;
        let socket = config.container_runtime_endpoint.clone().unwrap_or_else(|| PathBuf::from("/run/containerd/containerd.sock"));
        let running = std::os::unix::net::UnixStream::connect(config.control_socket()).is_ok();
        let existing = config.data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
        Facts {
            root: nix::unistd::geteuid().is_root(),
            layout: hierarchy.as_ref().map(Hierarchy::layout),
            memory_controller: has(Controller::Memory),
            cpu_controller: has(Controller::Cpu),
            pids_controller: has(Controller::Pids),
            psi: Board::detect(Path::new("/proc")).psi,
            may_lower_oom: runtime::managed::may_lower_oom_score(),
            running,
            containerd_socket: !managed && std::os::unix::net::UnixStream::connect(&socket).is_ok(),
            managed,
            containerd_program: program("containerd"),
            runc_program: program("runc"),
            nft_program: program("nft"),
            missing_plugins: ["bridge", "host-local", "loopback", "portmap"]
                .into_iter()
                .filter(|name| !config.cni_bin_dir.join(name).exists())
                .collect(),
            cni_bin_dir: config.cni_bin_dir.clone(),
            overlay: read("/proc/filesystems").is_some_and(|text| text.lines().any(|line| line.ends_with("\toverlay"))),
            bridge_netfilter: Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(),
            taken: if running { Vec::new() } else { taken(config) },
            memory_mib: machine::Machine::look().map_or(0, |machine| machine.memory >> 20),
            min_free_kib: number("/proc/sys/vm/min_free_kbytes"),
            dirty_bytes: number("/proc/sys/vm/dirty_bytes"),
            overcommit: number("/proc/sys/vm/overcommit_memory"),
            inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
            swap_files: read("/proc/swaps")
                .unwrap_or_default()
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .filter(|name| !name.contains("zram"))
                .collect(),
            data: machine::filesystem(&config.data_dir),
            data_writable: nix::unistd::access(&existing, nix::unistd::AccessFlags::W_OK).is_ok(),
            data_dir: config.data_dir.clone(),
            year: time::OffsetDateTime::now_utc().year(),
            addresses: address::find(config, None).len(),
            other_agents: other_agents(),
            node_name: config.node_name.clone(),
        }
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: &str) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// Whether a program is in the usual directories, `PATH` included.
fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(name).is_file())
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

/// Processes that would fight over the same pods directories, ports and cgroups.
fn other_agents() -> Vec<String> {
    let known = ["kubelet", "k3s-agent", "k3s-server", "k3s", "microk8s", "kubelite"];
    let mut found: Vec<String> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| known.contains(&name.as_str()))
        .collect();
    found.sort();
    found.dedup();
    found
}
