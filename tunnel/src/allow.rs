//! What a server may reach through the tunnel (k3s-agent.md 4.6). Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;

/// The port of containerd's streaming server in the days of redirected exec; K3s still permits it.
const STREAMING_PORT: u16 = 10010;

/// The egress mode of the server's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EgressMode {
    /// Only the kubelet (K3s' default; also `disabled`).
    #[default]
    Agent,
    /// Node addresses and the whole pod network.
    Cluster,
    /// Pods of this node, and declared ports of its host-network pods.
    Pod,
}

impl EgressMode {
    /// From `EgressSelectorMode`; anything unknown permits the least.
    pub fn parse(text: &str) -> EgressMode {
        match text {
            "cluster" => EgressMode::Cluster,
            "pod" => EgressMode::Pod,
            _ => EgressMode::Agent,
        }
    }
}

/// Facts the decision needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// From the server's configuration.
    pub mode: EgressMode,
    /// The kubelet server's port.
    pub kubelet_port: u16,
    /// Addresses of this node.
    pub node_ips: Vec<IpAddr>,
    /// Pod networks of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of the pods of this node that are not on the host network.
    pub pod_ips: BTreeSet<IpAddr>,
    /// Declared TCP container ports of the host-network pods of this node.
    pub host_ports: BTreeSet<u16>,
}

impl Rules {
    /// Whether `network`/`address` of a Connect may be dialled.
    pub fn permits(&self, network: &str, address: &str) -> bool {
        let Ok(address) = address.parse::<SocketAddr>() else {
            return false;
        };
        if network != "tcp" {
            return false;
        }
        let (ip, port) = (address.ip(), address.port());
        // Exactly the two loopback addresses of the protocol, not all of 127/8.
        let loopback = ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        if loopback {
            return port == self.kubelet_port || port == STREAMING_PORT;
        }
        match self.mode {
            EgressMode::Agent => false,
            EgressMode::Cluster => self.node_ips.contains(&ip) || self.cluster_cidrs.iter().any(|net| net.contains(&ip)),
            EgressMode::Pod => self.pod_ips.contains(&ip) || (self.node_ips.contains(&ip) && self.host_ports.contains(&port)),
        }
    }
}

/// The current rules; a cheap handle the links share.
#[derive(Debug, Clone)]
pub struct Allow(Source);

#[derive(Debug, Clone)]
enum Source {
    Fixed(Arc<Rules>),
    Watched(watch::Receiver<Rules>),
}

impl Allow {
    /// Rules that never change.
    pub fn fixed(rules: Rules) -> Allow {
        Allow(Source::Fixed(Arc::new(rules)))
    }

    /// Only the kubelet on `port`: what mode `agent` permits.
    pub fn kubelet(port: u16) -> Allow {
        Allow::fixed(Rules { kubelet_port: port, ..Rules::default() })
    }

    /// Rules that follow the node and its pods.
    pub fn watched(rules: watch::Receiver<Rules>) -> Allow {
        Allow(Source::Watched(rules))
    }

    /// Whether a Connect may be dialled now.
    pub fn permits(&self, network: &str, address: &str) -> bool {
        match &self.0 {
            Source::Fixed(rules) => rules.permits(network, address),
            Source::Watched(rules) => rules.borrow().permits(network, address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_permitted_by_mode() {
        let rules = |mode| Rules {
            mode,
            kubelet_port: 10250,
            node_ips: vec!["192.168.1.5".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            pod_ips: ["10.42.1.7".parse().unwrap()].into(),
            host_ports: [9100].into(),
        };
        // network, address, agent, cluster, pod
        let rows = [
            ("tcp", "127.0.0.1:10250", true, true, true),
            ("tcp", "[::1]:10250", true, true, true),
            ("tcp", "127.0.0.1:10010", true, true, true),
            ("tcp", "127.0.0.1:22", false, false, false),
            ("tcp", "127.0.0.2:10250", false, false, false),
            ("udp", "127.0.0.1:10250", false, false, false),
            ("tcp", "localhost:10250", false, false, false),
            ("tcp", "127.0.0.1", false, false, false),
            ("tcp", "192.168.1.5:22", false, true, false),
            ("tcp", "192.168.1.5:9100", false, true, true),
            ("tcp", "10.42.1.7:80", false, true, true),
            ("tcp", "10.42.9.9:80", false, true, false),
            ("tcp", "8.8.8.8:53", false, false, false),
        ];
        for (network, address, agent, cluster, pod) in rows {
            for (mode, want) in [("agent", agent), ("cluster", cluster), ("pod", pod), ("disabled", agent)] {
                let got = rules(EgressMode::parse(mode)).permits(network, address);
                assert_eq!(got, want, "{mode} {network}/{address}");
            }
        }
    }
}
