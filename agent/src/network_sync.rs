//! Keeps this node's pod network as the cluster wants it: podCIDR to CNI configuration, other nodes to routes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use network::flannel::{self, Backend};
use network::nft::{Firewall, Masquerade};
use network::routes::{Own, Peer, Refused, Routes};
use network::{CniConfig, VxlanPeer, Written};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::Client;
use crate::api::node::Node;
use crate::api::watch::{Change, query_escape};
use crate::config::Config;
use crate::vxlan_ends::{self, End};

/// Somebody may have removed a route or rule: look again this often.
const REPAIR: Duration = Duration::from_secs(60);

/// Other programs flush the whole firewall, and nothing tells of it: it is written again this often. A program is run for it,
/// which is dearer than looking at routes.
const FIREWALL_REPAIR: Duration = Duration::from_secs(300);

/// What the server said about the network.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub pod_networks: Vec<IpNet>,
    /// `FlannelBackend`.
    pub backend: String,
    pub masquerade_ipv6: bool,
}

/// Annotations other nodes read, for registration. Only where this node really has the data plane.
pub fn annotations(cluster: &Cluster, node_ips: &[IpAddr], ends: &[End]) -> BTreeMap<String, String> {
    let values = match Backend::parse(&cluster.backend) {
        Some(Backend::HostGw) => flannel::annotations(node_ips),
        Some(Backend::Vxlan) if !ends.is_empty() => {
            let ends: Vec<_> = ends.iter().map(|end| (end.local, end.mac)).collect();
            flannel::vxlan_annotations(&ends)
        }
        Some(Backend::Vxlan) | None => BTreeMap::new(),
    };
    values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// This node's vxlan devices, if the cluster uses that backend.
pub fn ends(cluster: &Cluster, config: &Config, node_ips: &[IpAddr]) -> Vec<End> {
    match Backend::parse(&cluster.backend) {
        Some(Backend::Vxlan) => vxlan_ends::open_all(config, node_ips),
        Some(Backend::HostGw) | None => Vec::new(),
    }
}

/// What the task works with.
pub struct Deps {
    pub config: Arc<Config>,
    pub cluster: Cluster,
    pub node_ips: Vec<IpAddr>,
    /// What [`ends`] gave.
    pub ends: Vec<End>,
    /// The own Node.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// May list all Nodes (`system:k3s-controller`).
    pub controller: Client,
    /// Told when the CNI configuration changed.
    pub look: Arc<Notify>,
}

/// Runs for ever.
pub async fn run(mut deps: Deps) {
    if deps.cluster.backend == "none" {
        tracing::info!("the cluster has no flannel; network readiness waits for whoever installs a CNI configuration");
        return std::future::pending().await;
    }
    match network::sysctl::enable_forwarding(deps.node_ips.iter().any(IpAddr::is_ipv6)) {
        Ok(missing) => {
            for path in missing {
                tracing::debug!(path = %path.display(), "kernel has no such setting");
            }
        }
        Err(error) => tracing::warn!(error = %chain(&error), "forwarding cannot be switched on, pods will not reach other nodes"),
    }
    let Some(pod_cidrs) = pod_networks(&mut deps.node).await else { return };
    let mut applied = Applied::default();
    apply(&deps, &mut applied, pod_cidrs);
    let follow = async {
        let mut node = deps.node.clone();
        let mut applied = applied;
        let mut repair = tokio::time::interval(REPAIR);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        repair.reset();
        loop {
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return },
                _ = repair.tick() => {}
            }
            let cidrs = node.borrow_and_update().as_ref().map(|node| node.pod_networks()).unwrap_or_default();
            if !cidrs.is_empty() {
                apply(&deps, &mut applied, cidrs);
            }
        }
    };
    match Backend::parse(&deps.cluster.backend) {
        Some(backend) => {
            tokio::join!(follow, follow_peers(&deps, backend));
        }
        None => {
            tracing::warn!(backend = %deps.cluster.backend, "this flannel backend is not implemented: pods reach this node's pods and the outside, not pods of other nodes; use --flannel-backend=vxlan or host-gw on the server");
            follow.await;
        }
    }
}

async fn pod_networks(node: &mut watch::Receiver<Option<Arc<Node>>>) -> Option<Vec<IpNet>> {
    let has = |node: &Option<Arc<Node>>| node.as_ref().is_some_and(|node| !node.pod_networks().is_empty());
    let node = node.wait_for(has).await.ok()?;
    node.as_ref().map(|node| node.pod_networks())
}

/// What was put in place.
#[derive(Default)]
struct Applied {
    pod_cidrs: Vec<IpNet>,
    /// When the firewall took its rules; None: it has not.
    firewall: Option<Instant>,
}

impl Applied {
    fn firewall_is_due(&self, pod_cidrs: &[IpNet], now: Instant) -> bool {
        self.pod_cidrs != pod_cidrs || self.firewall.is_none_or(|at| now.duration_since(at) >= FIREWALL_REPAIR)
    }
}

/// CNI configuration and masquerading for these pod networks. Short file and netlink work; nothing waits for a network.
fn apply(deps: &Deps, applied: &mut Applied, pod_cidrs: Vec<IpNet>) {
    let mut cni = CniConfig::new(pod_cidrs.clone(), deps.cluster.pod_networks.clone(), deps.config.cni_state_dir.clone());
    cni.bridge.clone_from(&deps.config.bridge);
    cni.mtu = match deps.ends.iter().map(|end| end.mtu).min() {
        Some(mtu) => Some(mtu),
        None => network::default_interface().ok().flatten().map(|interface| interface.mtu),
    };
    let changed_range = !applied.pod_cidrs.is_empty() && applied.pod_cidrs != pod_cidrs;
    if changed_range {
        // The bridge keeps the old range's address, and every pod would fail with "already has an IP address different from".
        tracing::warn!(from = ?applied.pod_cidrs, to = ?pod_cidrs, "podCIDR changed, bridge is made anew");
        if let Err(error) = network::delete_interface(&deps.config.bridge) {
            tracing::warn!(bridge = %deps.config.bridge, error = %chain(&error), "bridge cannot be removed");
        }
    }
    match network::write_conflist(&deps.config.cni_conf_dir, &cni) {
        Ok(Written::Changed) => {
            tracing::info!(pod_cidrs = ?pod_cidrs, path = %deps.config.cni_conf_dir.display(), "cni configuration written");
            deps.look.notify_one();
        }
        Ok(Written::Unchanged) => {}
        Err(error) => tracing::warn!(error = %chain(&error), "cni configuration not written, pods get no network"),
    }
    let masquerade =
        Masquerade { cluster_cidrs: deps.cluster.pod_networks.clone(), pod_cidrs: pod_cidrs.clone(), ipv6: deps.cluster.masquerade_ipv6 };
    if applied.firewall_is_due(&pod_cidrs, Instant::now()) {
        match Firewall::new(&deps.config.node_name).apply(&masquerade) {
            Ok(()) => applied.firewall = Some(Instant::now()),
            Err(error) => {
                applied.firewall = None;
                tracing::warn!(error = %chain(&error), retry_in = ?REPAIR, "masquerading rules not set, pods do not reach the outside");
            }
        }
    }
    applied.pod_cidrs = pod_cidrs;
}

/// Keeps the ways to the pods of all other nodes.
async fn follow_peers(deps: &Deps, backend: Backend) {
    // The own Node is watched already; each of its status reports would come once more.
    let others = format!("fieldSelector=metadata.name%21%3D{}", query_escape(&deps.config.node_name));
    let mut watch = deps.controller.watch::<Node>("/api/v1/nodes", &others);
    let mut peers: BTreeMap<String, VxlanPeer> = BTreeMap::new();
    let mut known = false;
    // Beside the changes: in a large cluster there is always one within a minute.
    let mut repair = tokio::time::interval(REPAIR);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = watch.next() => {
                match change {
                    Change::Replaced(nodes) => {
                        peers = nodes.iter().filter_map(|node| peer(node, &deps.config.node_name, backend)).collect();
                        known = true;
                    }
                    Change::Applied(node) => match peer(&node, &deps.config.node_name, backend) {
                        Some((name, peer)) => {
                            if peers.get(&name) == Some(&peer) {
                                continue;
                            }
                            peers.insert(name, peer);
                        }
                        None => {
                            if peers.remove(&node.metadata.name).is_none() {
                                continue;
                            }
                        }
                    },
                    Change::Deleted(node) => {
                        peers.remove(&node.metadata.name);
                    }
                }
            }
            _ = repair.tick() => {}
        }
        if !known {
            continue;
        }
        let pod_cidrs = deps.node.borrow().as_ref().map(|node| node.pod_networks()).unwrap_or_default();
        let own = Own { name: deps.config.node_name.clone(), pod_cidrs, ips: deps.node_ips.clone() };
        let list: Vec<VxlanPeer> = peers.values().cloned().collect();
        let done = match backend {
            Backend::HostGw => sync_routes(&list, &own).context("making routes to other nodes"),
            Backend::Vxlan => sync_vxlan(&deps.ends, &list, &own).context("making vxlan entries for other nodes"),
        };
        match done {
            Ok(refused) => {
                for refused in refused {
                    tracing::warn!(peer = %refused.peer, destination = %refused.destination, reason = ?refused.reason, "no route to this node's pods");
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "ways to other nodes not synchronised"),
        }
    }
}

/// host-gw: a route per peer.
fn sync_routes(peers: &[VxlanPeer], own: &Own) -> anyhow::Result<Vec<Refused>> {
    let peers: Vec<Peer> = peers.iter().map(|vxlan| vxlan.peer.clone()).collect();
    let synced = Routes::open(network::routes::PROTOCOL)?.sync(&peers, own)?;
    for change in synced.changed {
        tracing::info!(?change, "route to another node changed");
    }
    for (change, error) in synced.failed {
        tracing::warn!(?change, error = %chain(&error), "route refused by the kernel");
    }
    Ok(synced.refused)
}

/// vxlan: three entries per peer and family.
fn sync_vxlan(ends: &[End], peers: &[VxlanPeer], own: &Own) -> anyhow::Result<Vec<Refused>> {
    let mut refused = Vec::new();
    for end in ends {
        let mut device = end.open()?;
        if let Some(cidr) = own.pod_cidrs.iter().find(|cidr| cidr.addr().is_ipv4() == end.local.is_ipv4()) {
            device.set_pod_cidr(cidr)?;
        }
        let synced = device.sync(peers, own)?;
        if synced.changed > 0 {
            tracing::info!(local = %end.local, entries = synced.changed, "vxlan entries for other nodes changed");
        }
        for error in synced.failed {
            tracing::warn!(error = %chain(&error), "vxlan entry refused by the kernel");
        }
        refused.extend(synced.refused);
    }
    Ok(refused)
}

/// A peer as its annotations say, or, for a peer without flannel's, as its addresses say.
fn peer(node: &Node, own: &str, backend: Backend) -> Option<(String, VxlanPeer)> {
    let name = node.metadata.name.clone();
    if name == own {
        return None;
    }
    let cidrs = node.pod_networks();
    let found = match backend {
        Backend::HostGw => {
            flannel::peer(&name, &node.metadata.annotations, &cidrs, backend).map(|peer| VxlanPeer { peer, mac: None, mac_v6: None })
        }
        Backend::Vxlan => flannel::vxlan_peer(&name, &node.metadata.annotations, &cidrs),
    };
    found.map(|peer| (name, peer))
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::telemetry::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewall_is_written_again_after_a_failure_a_new_range_and_a_while() {
        let range = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let start = Instant::now();
        let applied = Applied { pod_cidrs: range("10.42.1.0/24"), firewall: Some(start) };
        assert!(!applied.firewall_is_due(&range("10.42.1.0/24"), start + REPAIR));
        assert!(applied.firewall_is_due(&range("10.42.2.0/24"), start));
        assert!(applied.firewall_is_due(&range("10.42.1.0/24"), start + FIREWALL_REPAIR));
        let failed = Applied { pod_cidrs: range("10.42.1.0/24"), firewall: None };
        assert!(failed.firewall_is_due(&range("10.42.1.0/24"), start));
    }
}
