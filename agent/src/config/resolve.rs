//! Raw values to [`Config`]: defaults, types, cross-field checks. Collects every problem instead of stopping at the first.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use cgroup::reservation::SCALES;

use super::keys::{self, Use};
use super::layers::Layers;
use super::names::{is_name, is_qualified, is_subdomain, node_may_set};
use super::published::{public_args, public_env};
use super::values::Resolver;
use super::{CgroupDriver, Config, ContainerdMode, DEFAULT_PAUSE_IMAGE, GovernorWish, Input, Problems, Redacted, Taint, kubelet_args};
use crate::api::quantity::Quantity;

pub(super) fn resolve(layers: &Layers, input: &Input<'_>, mut problems: Problems) -> Result<(Config, Vec<String>), Problems> {
    let mut warnings = Vec::new();
    for (key, given) in &layers.given {
        match keys::find(keys::KEYS, key) {
            Some(Use::NoEffect(why)) => warnings.push(format!("{}: {key}: has no effect: {why}", given.place)),
            Some(Use::Refused(effect)) => {
                let value = given.values.join(",");
                let harmless = value == "false" || value.is_empty() || (key == "snapshotter" && value == "overlayfs");
                if !harmless {
                    // It carries a key.
                    let value = if key == "vpn-auth" { "********" } else { value.as_str() };
                    problems.push(format!("{}: {key}: {value}: is not supported here; it would {effect}; remove it", given.place));
                }
            }
            Some(Use::Yes) if given.values.len() > 1 => {
                problems.push(format!("{}: {key}: takes one value, not {}", given.place, given.values.len()));
            }
            Some(Use::Yes | Use::List) | None => {}
        }
    }
    let kubelet_arg = layers.given.get("kubelet-arg");
    let args = kubelet_args::split(kubelet_arg, &mut problems, &mut warnings);
    let args_place = kubelet_arg.map_or_else(String::new, |given| format!("{}: kubelet-arg", given.place));
    let mut r = Resolver { layers, args, args_place, problems };

    let server = r.server();
    let node_name = r.node_name(input.hostname);
    let node_ips = r.addresses("node-ip");
    if node_ips.iter().filter(|ip| ip.is_ipv4()).count() > 1 || node_ips.iter().filter(|ip| ip.is_ipv6()).count() > 1 {
        r.bad("node-ip", &join(&node_ips), "has two addresses of one family; give at most one IPv4 and one IPv6");
    }
    if let Some(ip) = node_ips.iter().find(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
        r.bad("node-ip", &ip.to_string(), "cannot be reached from other nodes; give an address of a network interface");
    }
    let bind = r.parsed::<IpAddr>("bind-address", "an IP address");
    let kubelet_address = r.arg_parsed::<IpAddr>("address", "an IP address").or(bind).unwrap_or_else(|| {
        if node_ips.first().is_some_and(IpAddr::is_ipv6) { IpAddr::from([0u16; 8]) } else { IpAddr::from([0, 0, 0, 0]) }
    });
    let healthz_ip = r.arg_parsed::<IpAddr>("healthz-bind-address", "an IP address").unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let healthz_port = r.arg_parsed::<u16>("healthz-port", "a port number").unwrap_or(10248);
    let kubelet_port = r.arg_parsed::<u16>("port", "a port number from 1 to 65535").unwrap_or(10250);
    if kubelet_port == 0 {
        r.bad_arg("port", "0", "the cluster has to reach the kubelet server; give a port from 1 to 65535");
    }
    let metrics_address = match r.text("metrics-address") {
        None => Some(SocketAddr::from(([127, 0, 0, 1], 9470))),
        Some(text) if text.is_empty() => None,
        Some(text) => match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                r.bad("metrics-address", &text, "is not ADDRESS:PORT, for example 127.0.0.1:9470; leave it empty to switch it off");
                None
            }
        },
    };

    let data_dir = r.directory("data-dir", "/var/lib/edge-agent");
    let run_dir = r.directory("run-dir", "/run/edge-agent");
    let root_dir = r.arg_path("root-dir", "/var/lib/kubelet");
    let pod_logs_dir = r.directory("pod-logs-dir", "/var/log/pods");
    let container_logs_dir = pod_logs_dir.parent().map(|parent| parent.join("containers"));
    let containerd = match r.text("containerd").as_deref() {
        None | Some("auto") => ContainerdMode::Auto,
        Some("managed") => ContainerdMode::Managed,
        Some("system") => ContainerdMode::System,
        Some(other) => {
            r.bad("containerd", other, "is none of auto, managed, system");
            ContainerdMode::Auto
        }
    };
    let container_runtime_endpoint = r.text("container-runtime-endpoint").filter(|text| !text.is_empty()).and_then(|text| {
        let path = text.strip_prefix("unix://").unwrap_or(&text);
        if path.starts_with('/') {
            Some(PathBuf::from(path))
        } else {
            r.bad("container-runtime-endpoint", &text, "is not a unix socket; give unix:///PATH");
            None
        }
    });
    if containerd == ContainerdMode::Managed && container_runtime_endpoint.is_some() {
        r.bad("containerd", "managed", "cannot be together with container-runtime-endpoint; remove one");
    }

    let config = Config {
        sources: layers.sources.clone(),
        server,
        token: r.text("token").filter(|token| !token.is_empty()).map(Redacted),
        token_file: r.text("token-file").filter(|path| !path.is_empty()).map(PathBuf::from),
        hostname: input.hostname.to_owned(),
        node_external_ips: r.addresses("node-external-ip"),
        node_internal_dns: r.list("node-internal-dns"),
        node_external_dns: r.list("node-external-dns"),
        node_labels: r.labels(),
        node_taints: r.taints(),
        node_name,
        node_ips,
        certificate_renewal: certificate_renewal(&mut r),
        node_password_file: PathBuf::from(r.text("node-password-file").unwrap_or_else(|| "/etc/rancher/node/password".to_owned())),
        cgroup_root: r.cgroup_root(),
        cgroup_driver: match r.arg("cgroup-driver").as_deref() {
            None | Some("cgroupfs") => CgroupDriver::Cgroupfs,
            Some("systemd") => CgroupDriver::Systemd,
            Some(other) => {
                r.bad_arg("cgroup-driver", other, "is neither cgroupfs nor systemd");
                CgroupDriver::Cgroupfs
            }
        },
        kubelet_address,
        kubelet_port,
        healthz_address: (healthz_port != 0).then(|| SocketAddr::new(healthz_ip, healthz_port)),
        metrics_address,
        cni_bin_dir: r.cni_bin_dir(),
        cni_conf_dir: r.text("cni-conf-dir").map_or_else(PathBuf::new, PathBuf::from),
        cni_state_dir: r.text("cni-state-dir").map_or_else(|| data_dir.join("agent/cni"), PathBuf::from),
        bridge: r.bridge(),
        liveness: super::liveness::resolve(&mut r),
        flannel_iface: r.text("flannel-iface").filter(|name| !name.is_empty()),
        container_runtime_endpoint,
        containerd,
        pause_image: r.text("pause-image").filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_PAUSE_IMAGE.to_owned()),
        registries_file: r.registries(),
        image_dirs: vec![data_dir.join("images"), data_dir.join("agent/images")],
        serialize_image_pulls: r.arg_parsed::<bool>("serialize-image-pulls", "true or false"),
        max_pods: r.arg_parsed::<u32>("max-pods", "a number of pods"),
        pod_pids_limit: r.arg_parsed::<i64>("pod-max-pids", "a number of processes").filter(|limit| *limit > 0),
        system_reserved: r.reserved("system-reserved"),
        kube_reserved: r.reserved("kube-reserved"),
        eviction_hard: r.eviction(),
        governor: governor(&mut r),
        reserve_scale: reserve_scale(&mut r),
        allow_unprotected: r.parsed::<bool>("allow-unprotected", "true or false").unwrap_or(false),
        best_effort_refused: None,
        cluster_dns: r.cluster_dns(),
        cluster_domain: r.arg("cluster-domain").unwrap_or_default(),
        resolv_conf: r.arg("resolv-conf").or_else(|| r.text("resolv-conf")).map_or_else(PathBuf::new, PathBuf::from),
        allowed_unsafe_sysctls: r.sysctls(),
        container_log_max_size: r.log_size(),
        container_log_max_files: r.arg_parsed::<u32>("container-log-max-files", "a number of files").unwrap_or(5).max(2),
        streaming_idle_timeout_seconds: r.duration("streaming-connection-idle-timeout", 4 * 3600),
        debug: r.parsed::<bool>("debug", "true or false").unwrap_or(false),
        public_args: public_args(layers),
        public_env: public_env(input),
        data_dir,
        run_dir,
        root_dir,
        pod_logs_dir,
        container_logs_dir,
    };
    if r.problems.0.is_empty() { Ok((config, warnings)) } else { Err(r.problems) }
}

fn certificate_renewal(r: &mut Resolver<'_>) -> f64 {
    let share =
        r.parsed::<f64>("certificate-renewal", "a share of the certificate's life such as 0.7").unwrap_or(tunnel::renewal::FRACTION);
    if !(0.0..=0.95).contains(&share) {
        r.bad("certificate-renewal", &share.to_string(), "is not between 0 (renew at once and every minute, for tests) and 0.95");
    }
    share
}

fn governor(r: &mut Resolver<'_>) -> GovernorWish {
    match r.text("governor").as_deref() {
        None | Some("enforce") => GovernorWish::Enforce,
        Some("observe") => GovernorWish::Observe,
        Some("static") => GovernorWish::Static,
        Some(other) => {
            r.bad("governor", other, "is none of enforce, observe, static");
            GovernorWish::Static
        }
    }
}

fn reserve_scale(r: &mut Resolver<'_>) -> f64 {
    let scale = r.parsed::<f64>("reserve-scale", "a number such as 1.5").unwrap_or(1.0);
    let millis = (scale * 1000.0).round();
    let (least, most) = (*SCALES.start(), *SCALES.end());
    if !(least as f64..=most as f64).contains(&millis) {
        r.bad("reserve-scale", &scale.to_string(), "is not between 0.5 and 3; 1 is what the board's size asks for");
    }
    scale
}

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

impl Resolver<'_> {
    fn server(&mut self) -> String {
        let Some(url) = self.text("server").filter(|url| !url.is_empty()) else {
            self.problems.push(
                "server is not set; run `edge-agent join https://SERVER:6443 --token TOKEN`, or set `server` in the configuration"
                    .to_owned(),
            );
            return String::new();
        };
        if let Err(error) = tunnel::ServerAddr::from_url(&url) {
            let label = self.label("server");
            self.problems.push(format!("{label}: {error}"));
        }
        url.trim().trim_end_matches('/').to_owned()
    }

    fn node_name(&mut self, hostname: &str) -> String {
        let given = self.text("node-name").filter(|name| !name.is_empty());
        let name = given.clone().unwrap_or_else(|| hostname.to_owned()).trim().to_lowercase();
        if !is_subdomain(&name) {
            match given {
                Some(given) => self.bad("node-name", &given, "is not a DNS name (letters, digits, `-` and `.`, at most 253)"),
                None => self.problems.push(format!("host name {hostname:?} cannot name a node; set node-name to a DNS name")),
            }
        }
        name
    }

    fn addresses(&mut self, key: &str) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for part in self.list(key) {
            match part.parse() {
                Ok(ip) => addresses.push(ip),
                Err(_) => self.bad(key, &part, "is not an IP address"),
            }
        }
        addresses
    }

    fn cluster_dns(&mut self) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for part in self.arg("cluster-dns").unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
            match part.parse() {
                Ok(ip) => servers.push(ip),
                Err(_) => self.bad_arg("cluster-dns", part, "is not an IP address"),
            }
        }
        servers
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let mut texts = self.layers.given.get("node-label").map(|given| given.values.clone()).unwrap_or_default();
        texts.extend(self.arg("node-labels").unwrap_or_default().split(',').filter(|part| !part.is_empty()).map(str::to_owned));
        let mut labels = BTreeMap::new();
        for text in texts {
            let (key, value) = text.split_once('=').unwrap_or((&text, ""));
            if !is_qualified(key) || !(value.is_empty() || is_name(value)) {
                self.bad("node-label", &text, "is not KEY=VALUE as labels are written (at most 63 letters, digits, `-`, `_`, `.`)");
            } else if !node_may_set(key) {
                self.bad(
                    "node-label",
                    &text,
                    "is one the server lets no node set on itself; let an administrator set it with kubectl label",
                );
            } else {
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
        labels
    }

    fn taints(&mut self) -> Vec<Taint> {
        let mut taints = Vec::new();
        for text in self.layers.given.get("node-taint").map(|given| given.values.clone()).unwrap_or_default() {
            let parsed = text.rsplit_once(':').and_then(|(pair, effect)| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let known = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
                let good = known && is_qualified(key) && (value.is_empty() || is_name(value));
                good.then(|| Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
            });
            match parsed {
                Some(taint) => taints.push(taint),
                None => self.bad("node-taint", &text, "is not KEY=VALUE:EFFECT with effect NoSchedule, PreferNoSchedule or NoExecute"),
            }
        }
        taints
    }

    fn cgroup_root(&mut self) -> String {
        let root = self.arg("cgroup-root").unwrap_or_default();
        if root.split('/').any(|part| part == ".." || part == ".") {
            self.bad_arg("cgroup-root", &root, "is not a plain path below the cgroup mount");
        }
        format!("/{}", root.trim_matches('/'))
    }

    fn cni_bin_dir(&self) -> PathBuf {
        if let Some(path) = self.text("cni-bin-dir").filter(|path| !path.is_empty()) {
            return PathBuf::from(path);
        }
        let usual = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
        let found = usual.iter().find(|path| Path::new(path).join("bridge").exists());
        PathBuf::from(found.unwrap_or(&"/opt/cni/bin"))
    }

    fn bridge(&mut self) -> String {
        let name = self.text("bridge").filter(|name| !name.is_empty()).unwrap_or_else(|| "cni0".to_owned());
        if name.len() > 15 || name.contains(['/', ' ']) {
            self.bad("bridge", &name, "is not an interface name (at most 15 characters)");
        }
        name
    }

    fn registries(&self) -> Option<PathBuf> {
        if let Some(path) = self.text("private-registry").filter(|path| !path.is_empty()) {
            return Some(PathBuf::from(path));
        }
        ["/etc/rancher/k3s/registries.yaml", "/etc/edge-agent/registries.yaml"].iter().map(PathBuf::from).find(|path| path.exists())
    }

    fn reserved(&mut self, name: &str) -> BTreeMap<String, String> {
        let text = self.arg(name).unwrap_or_default();
        let map = match kubelet_args::pairs(&text, '=') {
            Ok(map) => map,
            Err(what) => {
                self.bad_arg(name, &text, &format!("{what}; write for example cpu=200m,memory=150Mi"));
                return BTreeMap::new();
            }
        };
        for (resource, amount) in &map {
            if !matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid") {
                self.bad_arg(name, resource, "is none of cpu, memory, ephemeral-storage, pid");
            } else if amount.parse::<Quantity>().is_err() || amount.starts_with('-') {
                self.bad_arg(name, &format!("{resource}={amount}"), "is not a quantity such as 200m, 150Mi or 1G");
            }
        }
        map
    }

    fn eviction(&mut self) -> BTreeMap<String, String> {
        let Some(text) = self.arg("eviction-hard") else {
            // K3s' own value: setting the map replaces the kubelet's whole default (k3s-agent.md 6.4).
            return BTreeMap::from([("imagefs.available".to_owned(), "5%".to_owned()), ("nodefs.available".to_owned(), "5%".to_owned())]);
        };
        let map = match kubelet_args::pairs(&text, '<') {
            Ok(map) => map,
            Err(what) => {
                self.bad_arg("eviction-hard", &text, &format!("{what}; write for example memory.available<100Mi,nodefs.available<10%"));
                return BTreeMap::new();
            }
        };
        for (signal, amount) in &map {
            let known =
                ["memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree", "pid.available"];
            let percent =
                amount.strip_suffix('%').and_then(|number| number.parse::<f64>().ok()).is_some_and(|p| (0.0..=100.0).contains(&p));
            if !known.contains(&signal.as_str()) {
                self.bad_arg("eviction-hard", signal, &format!("is none of {}", known.join(", ")));
            } else if !percent && (amount.parse::<Quantity>().is_err() || amount.starts_with('-')) {
                self.bad_arg("eviction-hard", &format!("{signal}<{amount}"), "is neither a quantity such as 100Mi nor a percentage");
            }
        }
        map
    }

    fn sysctls(&self) -> Vec<String> {
        let mut all = vec!["net.ipv4.ip_forward".to_owned(), "net.ipv6.conf.all.forwarding".to_owned()];
        all.extend(self.arg("allowed-unsafe-sysctls").unwrap_or_default().split(',').filter(|part| !part.is_empty()).map(str::to_owned));
        all
    }

    fn log_size(&mut self) -> u64 {
        let Some(text) = self.arg("container-log-max-size") else { return 10 << 20 };
        match text.parse::<Quantity>().ok().and_then(|size| u64::try_from(size.value()).ok()).filter(|size| *size > 0) {
            Some(size) => size,
            None => {
                self.bad_arg("container-log-max-size", &text, "is not a size such as 10Mi");
                10 << 20
            }
        }
    }

    fn duration(&mut self, name: &str, default: u64) -> u64 {
        let Some(text) = self.arg(name) else { return default };
        match go_duration(&text) {
            Some(seconds) => seconds,
            None => {
                self.bad_arg(name, &text, "is not a duration such as 4h or 1m30s");
                default
            }
        }
    }
}

/// Go's duration text in whole seconds, rounded up: `4h`, `1m30s`, `1.5h`, `500ms`.
pub(super) fn go_duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0.0;
    if rest == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total.ceil() as u64)
}
