//! The keys K3s' agent knows, what we do with each, and ours beside them.

/// What a key means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Acted on.
    Yes,
    /// A list: repeated values add up.
    List,
    /// Accepted because it changes nothing that pods or the cluster would notice; the text says why.
    NoEffect(&'static str),
    /// Would change behaviour and is not implemented; the text says what it would do. `false` is accepted.
    Refused(&'static str),
}

use Use::{List, NoEffect, Refused, Yes};

/// Keys of `config.yaml`: flags of `k3s agent` (k3s-agent.md 10.1), then ours.
pub(super) const KEYS: &[(&str, Use)] = &[
    ("server", Yes),
    ("token", Yes),
    ("token-file", Yes),
    ("data-dir", Yes),
    ("node-name", Yes),
    ("node-label", List),
    ("node-taint", List),
    ("node-ip", List),
    ("node-external-ip", List),
    ("node-internal-dns", List),
    ("node-external-dns", List),
    ("bind-address", Yes),
    ("resolv-conf", Yes),
    ("flannel-iface", Yes),
    ("kubelet-arg", List),
    ("container-runtime-endpoint", Yes),
    ("pause-image", Yes),
    ("private-registry", Yes),
    ("debug", Yes),
    ("v", NoEffect("log detail is chosen with `debug`")),
    ("vmodule", NoEffect("log detail is chosen with `debug`")),
    ("log", NoEffect("logs go to standard error")),
    ("alsologtostderr", NoEffect("logs go to standard error")),
    ("lb-server-port", NoEffect("the load balancer is inside the agent and has no port")),
    ("disable-apiserver-lb", NoEffect("the load balancer is inside the agent")),
    ("prefer-bundled-bin", NoEffect("nothing is bundled")),
    ("enable-pprof", NoEffect("there is no Go profile to serve")),
    ("kube-proxy-arg", NoEffect("service rules are not programmed by a kube-proxy here")),
    ("snapshotter", Refused("choose containerd's snapshotter; only overlayfs is used")),
    ("with-node-id", Refused("append a generated identifier to the node name; set node-name instead")),
    ("selinux", Refused("label containers for SELinux")),
    ("rootless", Refused("run without root privileges")),
    ("docker", Refused("run pods through Docker")),
    ("protect-kernel-defaults", Refused("fail when kernel settings differ from the kubelet's")),
    ("default-runtime", Refused("choose another OCI runtime for pods without a runtime class")),
    ("image-service-endpoint", Refused("pull images through another socket")),
    ("image-credential-provider-bin-dir", Refused("run credential helpers for image pulls")),
    ("image-credential-provider-config", Refused("run credential helpers for image pulls")),
    ("disable-default-registry-endpoint", Refused("never fall back to a registry's own endpoint")),
    ("airgap-extra-registry", Refused("tag preloaded images for further registries")),
    ("nonroot-devices", Refused("give device ownership to non-root containers")),
    ("flannel-conf", Refused("replace flannel's configuration")),
    ("flannel-cni-conf", Refused("replace flannel's CNI configuration")),
    ("vpn-auth", Refused("join a VPN before the cluster")),
    ("vpn-auth-file", Refused("join a VPN before the cluster")),
    // ours
    ("run-dir", Yes),
    ("containerd", Yes),
    ("metrics-address", Yes),
    ("pod-logs-dir", Yes),
    ("cni-bin-dir", Yes),
    ("cni-conf-dir", Yes),
    ("cni-state-dir", Yes),
    ("bridge", Yes),
    ("metered", Yes),
    ("tunnel-ping-interval", Yes),
    ("tunnel-ping-wait", Yes),
    ("node-password-file", Yes),
    ("certificate-renewal", Yes),
    ("governor", Yes),
    ("reserve-scale", Yes),
    ("allow-unprotected", Yes),
];

/// Flags of `k3s server` that people leave in a shared file. K3s' agent refuses them as well.
pub(super) const SERVER_KEYS: &[&str] = &[
    "agent-token",
    "agent-token-file",
    "advertise-address",
    "advertise-port",
    "cluster-cidr",
    "cluster-dns",
    "cluster-domain",
    "cluster-init",
    "cluster-reset",
    "datastore-endpoint",
    "default-local-storage-path",
    "disable",
    "disable-cloud-controller",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "disable-scheduler",
    "egress-selector-mode",
    "embedded-registry",
    "etcd-arg",
    "etcd-expose-metrics",
    "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron",
    "flannel-backend",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "https-listen-port",
    "kube-apiserver-arg",
    "kube-cloud-controller-manager-arg",
    "kube-controller-manager-arg",
    "kube-scheduler-arg",
    "secrets-encryption",
    "service-cidr",
    "service-node-port-range",
    "servicelb-namespace",
    "supervisor-metrics",
    "system-default-registry",
    "tls-san",
    "tls-san-security",
    "write-kubeconfig",
    "write-kubeconfig-group",
    "write-kubeconfig-mode",
];

/// Flags of the kubelet that may stand in `kubelet-arg`.
pub(super) const KUBELET_ARGS: &[(&str, Use)] = &[
    ("root-dir", Yes),
    ("cgroup-root", Yes),
    ("cgroup-driver", Yes),
    ("address", Yes),
    ("port", Yes),
    ("healthz-port", Yes),
    ("healthz-bind-address", Yes),
    ("max-pods", Yes),
    ("pod-max-pids", Yes),
    ("system-reserved", Yes),
    ("kube-reserved", Yes),
    ("eviction-hard", Yes),
    ("cluster-dns", Yes),
    ("cluster-domain", Yes),
    ("resolv-conf", Yes),
    ("serialize-image-pulls", Yes),
    ("allowed-unsafe-sysctls", Yes),
    ("container-log-max-size", Yes),
    ("container-log-max-files", Yes),
    ("streaming-connection-idle-timeout", Yes),
    ("node-labels", Yes),
    ("v", NoEffect("log detail is chosen with `debug`")),
    ("fail-swap-on", NoEffect("swap never keeps the agent from starting")),
    ("node-status-update-frequency", NoEffect("status is sent when it changes, at least every 5 minutes")),
    ("image-gc-high-threshold", NoEffect("unused images are not removed by this version")),
    ("image-gc-low-threshold", NoEffect("unused images are not removed by this version")),
    ("minimum-image-ttl-duration", NoEffect("unused images are not removed by this version")),
    ("read-only-port", Refused("serve the kubelet API without authentication; only 0 is accepted")),
    ("config", Refused("read a KubeletConfiguration file")),
    ("config-dir", Refused("read KubeletConfiguration drop-ins")),
    ("feature-gates", Refused("switch kubelet features")),
    ("eviction-soft", Refused("evict pods after a grace period under pressure")),
    ("eviction-soft-grace-period", Refused("evict pods after a grace period under pressure")),
    ("eviction-minimum-reclaim", Refused("reclaim more than the eviction threshold")),
    ("cpu-manager-policy", Refused("pin containers to processors")),
    ("memory-manager-policy", Refused("pin containers to memory nodes")),
    ("topology-manager-policy", Refused("align devices and processors")),
    ("reserved-cpus", Refused("keep processors free of pods")),
    ("pods-per-core", Refused("limit pods by processors; use max-pods")),
    ("pod-manifest-path", Refused("run static pods from a directory")),
    ("manifest-url", Refused("run static pods from a URL")),
    ("hostname-override", Refused("name the node; use node-name")),
    ("node-ip", Refused("choose the node address; use the key node-ip")),
    ("register-with-taints", Refused("taint the node at registration; use node-taint")),
    ("anonymous-auth", Refused("serve the kubelet API without authentication")),
    ("authorization-mode", Refused("serve the kubelet API without authorization")),
    ("tls-cert-file", Refused("serve with another certificate than the cluster's")),
    ("tls-private-key-file", Refused("serve with another certificate than the cluster's")),
    ("cpu-cfs-quota", Refused("switch processor limits off; `true` is what happens")),
    ("enforce-node-allocatable", Refused("choose what is enforced; `pods` is what happens")),
    ("container-runtime-endpoint", Refused("choose the runtime; use the key container-runtime-endpoint")),
    ("image-credential-provider-config", Refused("run credential helpers for image pulls")),
];

pub(super) fn find(table: &[(&str, Use)], name: &str) -> Option<Use> {
    table.iter().find(|(key, _)| *key == name).map(|(_, what)| *what)
}

/// The known name with the fewest edits, if it is close enough to be what was meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_ascii_lowercase().replace('_', "-");
    let limit = (folded.len() / 3).clamp(1, 4);
    known.map(|key| (edits(&folded, key), key)).filter(|(cost, _)| *cost <= limit).min().map(|(_, key)| key)
}

/// Edit distance where swapping two neighbours costs one.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut cost: Vec<usize> = (0..(a.len() + 1) * width)
        .map(|at| {
            if at < width {
                at
            } else if at % width == 0 {
                at / width
            } else {
                0
            }
        })
        .collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (cost[(i - 1) * width + j] + 1).min(cost[i * width + j - 1] + 1).min(cost[(i - 1) * width + j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(cost[(i - 2) * width + j - 2] + 1);
            }
            cost[i * width + j] = best;
        }
    }
    cost[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_and_far_ones_are_not() {
        let keys = || KEYS.iter().map(|(key, _)| *key);
        for (typo, meant) in [
            ("node-nmae", Some("node-name")),
            ("nodename", Some("node-name")),
            ("Node_Label", Some("node-label")),
            ("sever", Some("server")),
            ("tokenfile", Some("token-file")),
            ("kubelet-args", Some("kubelet-arg")),
            ("frobnicate", None),
            ("x", Some("v")),
        ] {
            assert_eq!(nearest(typo, keys()), meant, "{typo}");
        }
    }

    #[test]
    fn no_key_stands_in_two_places() {
        for (key, _) in KEYS {
            assert_eq!(KEYS.iter().filter(|(other, _)| other == key).count(), 1, "{key}");
            assert!(!SERVER_KEYS.contains(key), "{key}");
        }
        for (key, _) in KUBELET_ARGS {
            assert_eq!(KUBELET_ARGS.iter().filter(|(other, _)| other == key).count(), 1, "{key}");
        }
    }
}
