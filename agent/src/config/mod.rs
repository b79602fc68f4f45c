//! Configuration: K3s' key names in, one resolved [`Config`] out.
//!
//! Layers, later wins: defaults, environment (`K3S_*`, `EDGE_*`), `config.yaml`, `config.yaml.d/*`, command line.
//! Every path, socket, port and cgroup of an instance derives from here, so that two instances share a machine.

mod keys;
mod kubelet_args;
mod layers;
mod liveness;
mod names;
mod published;
mod resolve;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

pub use liveness::{LEASE, Liveness};

/// Everything the agent was told, checked and with defaults filled in. Cheap to share as `Arc<Config>`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Files that were read, in order.
    pub sources: Vec<PathBuf>,
    /// `server`: URL of the K3s or edge-server supervisor, `https://host:6443`.
    pub server: String,
    /// `token`; never printed.
    pub token: Option<Redacted>,
    /// `token-file`; wins over `token`.
    pub token_file: Option<PathBuf>,

    /// Name of the Node, lower case.
    pub node_name: String,
    /// Name of the machine as the kernel says.
    pub hostname: String,
    /// Addresses of the node, at most one per family, first is primary. Empty until found: see [`crate::node::address`].
    pub node_ips: Vec<IpAddr>,
    pub node_external_ips: Vec<IpAddr>,
    pub node_internal_dns: Vec<String>,
    pub node_external_dns: Vec<String>,
    pub node_labels: BTreeMap<String, String>,
    pub node_taints: Vec<Taint>,

    /// `/var/lib/edge-agent`: identity in `agent/`, ledger, managed containerd, `images/`.
    pub data_dir: PathBuf,
    /// `/run/edge-agent`: control socket, volatile state.
    pub run_dir: PathBuf,
    /// `/var/lib/kubelet`: pod directories and volumes (kubelet-arg `root-dir`).
    pub root_dir: PathBuf,
    /// `/var/log/pods` (kubelet-arg `pod-log-dir`).
    pub pod_logs_dir: PathBuf,
    /// `/var/log/containers`: links to the above for log shippers; None switches them off.
    pub container_logs_dir: Option<PathBuf>,
    /// `/etc/rancher/node/password`, K3s' own place.
    pub node_password_file: PathBuf,
    /// `certificate-renewal`: share of a certificate's life after which it is renewed, 0 to 0.95.
    pub certificate_renewal: f64,

    /// Where the kubepods tree starts below each hierarchy (kubelet-arg `cgroup-root`), `/` by default.
    pub cgroup_root: String,
    pub cgroup_driver: CgroupDriver,

    /// Kubelet server (kubelet-arg `address`, `port`).
    pub kubelet_address: IpAddr,
    pub kubelet_port: u16,
    /// Health listener (kubelet-arg `healthz-bind-address`, `healthz-port`); None when the port is 0.
    pub healthz_address: Option<SocketAddr>,
    /// Plain metrics listener (`metrics-address`); None when empty.
    pub metrics_address: Option<SocketAddr>,

    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration is written; empty until it is known whose containerd reads it.
    pub cni_conf_dir: PathBuf,
    /// host-local allocations and other CNI state of this instance.
    pub cni_state_dir: PathBuf,
    /// Bridge of this node's pods, `cni0`.
    pub bridge: String,
    /// `metered`, `tunnel-ping-interval`, `tunnel-ping-wait`.
    pub liveness: Liveness,
    /// `flannel-iface`.
    pub flannel_iface: Option<String>,

    /// Socket of a containerd that runs already; None: look at the usual place, else manage one.
    pub container_runtime_endpoint: Option<PathBuf>,
    /// `containerd: auto|managed|system`.
    pub containerd: ContainerdMode,
    pub pause_image: String,
    pub registries_file: Option<PathBuf>,
    /// Directories whose image tarballs are imported before pods start.
    pub image_dirs: Vec<PathBuf>,
    /// Images pulled one at a time (kubelet-arg `serialize-image-pulls`); None: as the machine's size asks for.
    pub serialize_image_pulls: Option<bool>,

    /// Pods this node takes (kubelet-arg `max-pods`); None: formula of the reservation.
    pub max_pods: Option<u32>,
    /// Per pod process limit (kubelet-arg `pod-max-pids`); None or negative: none.
    pub pod_pids_limit: Option<i64>,
    /// kubelet-arg `system-reserved`, `kube-reserved`: cpu, memory, ephemeral-storage as quantities.
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    /// kubelet-arg `eviction-hard`: signal to quantity or percentage.
    pub eviction_hard: BTreeMap<String, String>,
    /// `governor`: `enforce`, `observe` or `static`.
    pub governor: GovernorWish,
    /// `reserve-scale`: the computed reservation is that many times larger, 0.5 to 3.
    pub reserve_scale: f64,
    /// `allow-unprotected`: pods without requests run even where nothing protects the node from them.
    pub allow_unprotected: bool,
    /// Why this node takes no pods without requests; known when the machine has been looked at.
    pub best_effort_refused: Option<String>,

    /// Name servers for pods with dnsPolicy ClusterFirst; from the server unless kubelet-arg `cluster-dns`.
    pub cluster_dns: Vec<IpAddr>,
    /// From the server unless kubelet-arg `cluster-domain`.
    pub cluster_domain: String,
    /// The host's resolver file whose servers pods may use.
    pub resolv_conf: PathBuf,
    /// Sysctls beyond the safe set that pods may ask for; `*` at the end is a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Rotation of container logs (kubelet-arg `container-log-max-size`, bytes, and `container-log-max-files`).
    pub container_log_max_size: u64,
    pub container_log_max_files: u32,
    /// Idle time after which streaming connections end, seconds (kubelet: 4 h).
    pub streaming_idle_timeout_seconds: u64,

    /// `debug`: log at debug level.
    pub debug: bool,
    /// What is published as `k3s.io/node-args` and `node-env`; already without secrets.
    pub public_args: Vec<String>,
    pub public_env: BTreeMap<String, String>,
}

/// A value that must not reach logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(pub String);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("********")
    }
}

/// `key=value:effect` of `node-taint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// What the governor does with what it sees (`governor`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GovernorWish {
    /// Acts, where the machine offers what that takes.
    Enforce,
    /// Decides and tells, changes nothing.
    Observe,
    /// Does not run: the reservations stand alone.
    Static,
}

/// Who manages cgroups (kubelet-arg `cgroup-driver`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// Whose containerd runs the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerdMode {
    /// The system's when it answers, else our own.
    Auto,
    /// Always our own below the data directory.
    Managed,
    /// Always the system's.
    System,
}

impl Config {
    /// Defaults with every path below `dir` and every port chosen by the kernel: for tests.
    pub fn below(dir: &std::path::Path, node_name: &str) -> Config {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        Config {
            sources: Vec::new(),
            server: "https://127.0.0.1:6443".to_owned(),
            token: None,
            token_file: None,
            node_name: node_name.to_owned(),
            hostname: node_name.to_owned(),
            node_ips: vec![loopback],
            node_external_ips: Vec::new(),
            node_internal_dns: Vec::new(),
            node_external_dns: Vec::new(),
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            root_dir: dir.join("kubelet"),
            pod_logs_dir: dir.join("log/pods"),
            container_logs_dir: None,
            node_password_file: dir.join("node-password"),
            certificate_renewal: tunnel::renewal::FRACTION,
            cgroup_root: "/".to_owned(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            kubelet_address: loopback,
            kubelet_port: 0,
            healthz_address: Some(SocketAddr::new(loopback, 0)),
            metrics_address: Some(SocketAddr::new(loopback, 0)),
            cni_bin_dir: dir.join("cni/bin"),
            cni_conf_dir: dir.join("cni/net.d"),
            cni_state_dir: dir.join("cni/state"),
            bridge: "cni0".to_owned(),
            liveness: Liveness::default(),
            flannel_iface: None,
            container_runtime_endpoint: Some(dir.join("containerd.sock")),
            containerd: ContainerdMode::System,
            pause_image: DEFAULT_PAUSE_IMAGE.to_owned(),
            registries_file: None,
            image_dirs: Vec::new(),
            serialize_image_pulls: Some(false),
            max_pods: Some(110),
            pod_pids_limit: None,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            eviction_hard: BTreeMap::new(),
            governor: GovernorWish::Static,
            reserve_scale: 1.0,
            allow_unprotected: false,
            best_effort_refused: None,
            cluster_dns: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            allowed_unsafe_sysctls: Vec::new(),
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            streaming_idle_timeout_seconds: 4 * 3600,
            debug: false,
            public_args: Vec::new(),
            public_env: BTreeMap::new(),
        }
    }

    /// Path of the control socket of this instance.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }
}

/// K3s' default for `pause-image`.
pub const DEFAULT_PAUSE_IMAGE: &str = "rancher/mirrored-pause:3.10.2";

/// Where the configuration is looked for when nobody names a file.
pub const DEFAULT_FILE: &str = "/etc/edge-agent/config.yaml";

/// Everything that was wrong, one line each: thing, value, remedy.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Problems {
    fn push(&mut self, line: String) {
        self.0.push(line);
    }
}

/// What the process was started with. The environment comes as a function so that tests need no real one.
pub struct Input<'a> {
    /// `--config`; None: `K3S_CONFIG_FILE`, else the default file, which may be missing.
    pub config: Option<&'a Path>,
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// Keys given on the command line, in order.
    pub flags: &'a [(&'static str, String)],
    /// The machine's name.
    pub hostname: &'a str,
}

impl Config {
    /// Reads all layers and checks everything before anything is bound or written. The second value is what deserves a
    /// warning: keys that are accepted but change nothing.
    pub fn load(input: &Input<'_>) -> Result<(Config, Vec<String>), Problems> {
        let mut problems = Problems::default();
        let mut layers = layers::Layers::default();
        layers.environment(input.environment);
        let from_environment = (input.environment)("K3S_CONFIG_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let named = from_environment.as_deref().or(input.config);
        layers.files(named.unwrap_or(Path::new(DEFAULT_FILE)), named.is_some(), &mut problems);
        for (key, value) in input.flags {
            layers.flag(key, value.clone());
        }
        resolve::resolve(&layers, input, problems)
    }
}

/// `run-dir` of a file whose other keys may be wrong.
pub fn run_dir_of(file: Option<&Path>) -> PathBuf {
    let text = std::fs::read_to_string(file.unwrap_or(Path::new(DEFAULT_FILE))).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("run-dir:")).map(|value| value.trim().trim_matches(['"', '\'']));
    PathBuf::from(value.filter(|value| !value.is_empty()).unwrap_or("/run/edge-agent"))
}
