//! containerd's configuration file, for the generations of containerd there are.

use std::path::Path;

use super::ManagedOptions;

/// Which form of the file a containerd reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// 1.6 and 1.7: `version = 2`.
    One,
    /// 2.0: `version = 3`, with the CRI plugin in three parts.
    Two,
    /// 2.1 and later: the plugins' directory is a list. 2.3 no longer knows the single one.
    TwoOne,
}

impl Generation {
    /// From the output of `containerd --version`, for example `containerd github.com/containerd/containerd 1.6.20~ds1
    /// 1.6.20~ds1-1+deb12u3` or `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7`. `None` if it does not
    /// say, or is older than 1.6.
    pub(super) fn parse(output: &str) -> Option<Self> {
        let version = output.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().ok());
        match (numbers.next()??, numbers.next()??) {
            (0, _) => None,
            (1, minor) if minor < 6 => None,
            (1, _) => Some(Self::One),
            (2, 0) => Some(Self::Two),
            _ => Some(Self::TwoOne),
        }
    }
}

/// How layers become a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshotter {
    /// The kernel lays them over each other.
    Overlayfs,
    /// Every layer is a copy: slow and large, but works on top of another overlay, as in a container.
    Native,
}

impl Snapshotter {
    fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Native => "native",
        }
    }
}

/// Seconds between containerd's walks over all snapshots to learn their sizes; its own default is 10. Nothing here
/// needs them that fresh, and an idle node should be idle.
const STATS_PERIOD: u32 = 60;

/// Plugins a node has no use for; each costs memory, start-up time or both.
const UNUSED: [&str; 12] = [
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.v1.cgroups",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.ttrpc.v1.otelttrpc",
];

/// The whole file.
pub(super) fn render(options: &ManagedOptions, generation: Generation, snapshotter: Snapshotter) -> String {
    let mut text =
        String::from("# Written by edge-agent at every start; changes are lost. Settings belong into the agent's configuration.\n");
    text += match generation {
        Generation::One => "version = 2\n",
        Generation::Two | Generation::TwoOne => "version = 3\n",
    };
    text += &format!("root = {}\nstate = {}\n", quoted(&options.root), quoted(&options.state));
    if !options.restrict_oom {
        text += "oom_score = -999\n";
    }
    let other = match snapshotter {
        Snapshotter::Overlayfs => Snapshotter::Native,
        Snapshotter::Native => Snapshotter::Overlayfs,
    };
    let other = format!("io.containerd.snapshotter.v1.{}", other.name());
    let unused: Vec<String> = UNUSED.iter().copied().chain([other.as_str()]).map(|name| format!("  {name:?},\n")).collect();
    text += &format!("disabled_plugins = [\n{}]\n\n", unused.concat());
    // At "info" every pod writes a dozen lines.
    text += "[debug]\nlevel = \"warn\"\n\n";
    text += &format!("[grpc]\naddress = {}\n\n", quoted(&options.socket));
    text += "[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n\n";
    text += &match generation {
        Generation::One => one(options, snapshotter),
        Generation::Two | Generation::TwoOne => two(options, generation, snapshotter),
    };
    text
}

/// One plugin holds all of CRI.
fn one(options: &ManagedOptions, snapshotter: Snapshotter) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let mut text = format!("[{cri}]\nsandbox_image = {}\nstats_collect_period = {STATS_PERIOD}\n", string(&options.pause_image));
    text += STREAMING;
    text += &runtime_keys(options);
    text += &format!("\n[{cri}.containerd]\nsnapshotter = \"{}\"\ndefault_runtime_name = \"runc\"\n", snapshotter.name());
    text += &runc(options, &format!("{cri}.containerd.runtimes.runc"));
    text += &format!("\n[{cri}.cni]\n{}", cni(options, Generation::One));
    text += &registry(options, &format!("{cri}.registry"));
    text
}

/// CRI is three plugins: images, runtime and the service that streams.
fn two(options: &ManagedOptions, generation: Generation, snapshotter: Snapshotter) -> String {
    let images = "plugins.\"io.containerd.cri.v1.images\"";
    let runtime = "plugins.\"io.containerd.cri.v1.runtime\"";
    let mut text = format!("[{images}]\nsnapshotter = \"{}\"\nstats_collect_period = {STATS_PERIOD}\n", snapshotter.name());
    if generation == Generation::TwoOne {
        // As K3s has it: the way of pulling that knows all of what a registry's configuration may say.
        text += "use_local_image_pull = true\n";
    }
    text += &format!("\n[{images}.pinned_images]\nsandbox = {}\n", string(&options.pause_image));
    text += &registry(options, &format!("{images}.registry"));
    text += &format!("\n[{runtime}]\n{}", runtime_keys(options));
    text += &format!("\n[{runtime}.containerd]\ndefault_runtime_name = \"runc\"\n");
    text += &runc(options, &format!("{runtime}.containerd.runtimes.runc"));
    text += &format!("\n[{runtime}.cni]\n{}", cni(options, generation));
    text += &format!("\n[plugins.\"io.containerd.grpc.v1.cri\"]\n{STREAMING}");
    text
}

/// Exec, attach and port-forward are served to the agent alone, on a port the kernel chooses.
const STREAMING: &str = "disable_tcp_service = true\nstream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n";

fn runtime_keys(options: &ManagedOptions) -> String {
    // Network namespaces below our own directory: cleaning up then never touches another instance's.
    // As on a K3s node: who is not root may still listen on port 80 of its own network, and ping.
    format!(
        "restrict_oom_score_adj = {}\nnetns_mounts_under_state_dir = true\nenable_unprivileged_ports = true\nenable_unprivileged_icmp = true\n",
        options.restrict_oom
    )
}

fn runc(options: &ManagedOptions, table: &str) -> String {
    format!("\n[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n\n[{table}.options]\nSystemdCgroup = {}\n", options.systemd_cgroup)
}

fn cni(options: &ManagedOptions, generation: Generation) -> String {
    let plugins = quoted(&options.cni_bin_dir);
    let plugins = match generation {
        Generation::One | Generation::Two => format!("bin_dir = {plugins}"),
        Generation::TwoOne => format!("bin_dirs = [{plugins}]"),
    };
    format!("{plugins}\nconf_dir = {}\n", quoted(&options.cni_conf_dir))
}

fn registry(options: &ManagedOptions, table: &str) -> String {
    match &options.registry_config {
        Some(directory) => format!("\n[{table}]\nconfig_path = {}\n", quoted(directory)),
        None => String::new(),
    }
}

fn quoted(path: &Path) -> String {
    string(&path.to_string_lossy())
}

/// A basic string of TOML, whose escapes are JSON's.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ManagedOptions {
        ManagedOptions {
            root: "/data/containerd".into(),
            state: "/run/edge/containerd".into(),
            socket: "/run/edge/containerd.sock".into(),
            cni_bin_dir: "/usr/lib/cni".into(),
            cni_conf_dir: "/data/\"odd\" cni".into(),
            pause_image: "rancher/mirrored-pause:3.10.2".into(),
            restrict_oom: true,
            systemd_cgroup: true,
            ..Default::default()
        }
    }

    #[test]
    fn generations_are_told_apart() {
        let table = [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some(Generation::One)),
            ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24", Some(Generation::One)),
            ("containerd github.com/containerd/containerd/v2 2.0.5 fb4c30d", Some(Generation::Two)),
            ("containerd github.com/k3s-io/containerd v2.1.4-k3s1 abc", Some(Generation::TwoOne)),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", Some(Generation::TwoOne)),
            ("containerd github.com/containerd/containerd 1.5.9 x", None),
            ("containerd", None),
        ];
        for (output, wanted) in table {
            assert_eq!(Generation::parse(output), wanted, "{output}");
        }
    }

    #[test]
    fn each_generation_gets_its_own_tables() {
        let one = render(&options(), Generation::One, Snapshotter::Overlayfs);
        assert!(one.contains("snapshotter = \"overlayfs\""));
        assert!(one.contains("  \"io.containerd.snapshotter.v1.native\",\n"));
        assert!(one.contains("version = 2\n"));
        assert!(one.contains("sandbox_image = \"rancher/mirrored-pause:3.10.2\""));
        assert!(one.contains("conf_dir = \"/data/\\\"odd\\\" cni\""));
        assert!(one.contains("SystemdCgroup = true"));
        assert!(one.contains("restrict_oom_score_adj = true"));
        assert!(one.contains("enable_unprivileged_ports = true\nenable_unprivileged_icmp = true\n"));
        assert!(!one.contains("oom_score = "), "{one}");

        let mut options = options();
        options.restrict_oom = false;
        options.registry_config = Some("/data/certs.d".into());
        let two = render(&options, Generation::Two, Snapshotter::Native);
        assert!(two.contains("snapshotter = \"native\""));
        assert!(two.contains("  \"io.containerd.snapshotter.v1.overlayfs\",\n"));
        assert!(two.contains("version = 3\n"));
        assert!(two.contains("bin_dir = \"/usr/lib/cni\""));
        let later = render(&options, Generation::TwoOne, Snapshotter::Native);
        assert!(later.contains("bin_dirs = [\"/usr/lib/cni\"]"));
        assert!(later.contains("use_local_image_pull = true") && !two.contains("use_local_image_pull"));
        assert!(two.contains("pinned_images]\nsandbox = \"rancher/mirrored-pause:3.10.2\""));
        assert!(two.contains("oom_score = -999\n"));
        assert!(two.contains("cri.v1.images\".registry]\nconfig_path = \"/data/certs.d\""));
    }
}
