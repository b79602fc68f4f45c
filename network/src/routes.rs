//! Routes to the pods of other nodes, as flannel's host-gw backend sets them: `podCIDR via node address`.
//!
//! Our routes carry a protocol number of their own, by which they are found again after a restart; routes with any other
//! number are never changed. [`plan`] is pure, [`Routes`] does what it says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

pub use crate::netlink::ExistingRoute;
use crate::netlink::Netlink;
use crate::{Error, Result};

/// The protocol number of our routes (`ip route show proto 233`). Two instances in one network namespace need two.
pub const PROTOCOL: u8 = 233;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where its pods are.
    pub pod_cidrs: Vec<IpNet>,
    /// Where it is reached, at most one address per family.
    pub ips: Vec<IpAddr>,
}

/// This node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Its name; a peer of that name is left out.
    pub name: String,
    /// Where our pods are.
    pub pod_cidrs: Vec<IpNet>,
    /// Our addresses.
    pub ips: Vec<IpAddr>,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// A peer's podCIDR.
    pub destination: IpNet,
    /// The next hop: the peer's address, or with vxlan the first address of its podCIDR.
    pub gateway: IpAddr,
    /// Index of the device, whose network need not contain the next hop; `None` leaves it to the kernel.
    pub device: Option<u32>,
}

/// A step towards the wanted routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteChange {
    /// Make it.
    Add(Route),
    /// Take it away; it is ours.
    Delete(Route),
}

/// A peer's podCIDR that gets no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The peer.
    pub peer: String,
    /// Its podCIDR.
    pub destination: IpNet,
    /// Why.
    pub reason: Reason,
}

/// Why a podCIDR gets no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It overlaps our own pods.
    OverlapsOwn,
    /// An earlier peer (by name) has the same or an overlapping one.
    OverlapsPeer,
    /// The peer has no address of that family.
    NoAddress,
    /// The peer's address is one of ours.
    OwnAddress,
    /// There is a route to it that is not ours.
    ForeignRoute,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order: deletions first.
    pub changes: Vec<RouteChange>,
    /// Podcidrs that get none.
    pub refused: Vec<Refused>,
}

/// Compares the wanted routes with those there are. `existing` are all routes of the main table, foreign ones included.
pub fn plan(peers: &[Peer], own: &Own, existing: &[ExistingRoute], protocol: u8) -> Plan {
    plan_with(peers, own, existing, protocol, |peer, destination| {
        let gateway = peer.ips.iter().find(|ip| ip.is_ipv4() == destination.addr().is_ipv4())?;
        Some(Route { destination, gateway: *gateway, device: None })
    })
}

/// The same with another way to a peer; `via` says `None` when the peer has no address of that family.
pub(crate) fn plan_with(
    peers: &[Peer],
    own: &Own,
    existing: &[ExistingRoute],
    protocol: u8,
    via: impl Fn(&Peer, IpNet) -> Option<Route>,
) -> Plan {
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<IpNet, Route> = BTreeMap::new();
    let mut by_name: Vec<&Peer> = peers.iter().filter(|peer| peer.name != own.name).collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));

    for peer in by_name {
        for cidr in peer.pod_cidrs.iter().map(IpNet::trunc) {
            let route = via(peer, cidr);
            // A foreign route that is the very same does its work; flannel leaves such ones behind.
            let foreign = existing
                .iter()
                .any(|there| there.destination == cidr && there.protocol != protocol && !route.is_some_and(|route| same(&route, there)));
            let reason = match route {
                _ if own.pod_cidrs.iter().any(|ours| overlap(ours, &cidr)) => Reason::OverlapsOwn,
                _ if wanted.keys().any(|other| overlap(other, &cidr)) => Reason::OverlapsPeer,
                None => Reason::NoAddress,
                Some(route) if own.ips.contains(&route.gateway) => Reason::OwnAddress,
                Some(_) if foreign => Reason::ForeignRoute,
                Some(route) => {
                    wanted.insert(cidr, route);
                    continue;
                }
            };
            plan.refused.push(Refused { peer: peer.name.clone(), destination: cidr, reason });
        }
    }

    for there in existing.iter().filter(|there| there.protocol == protocol) {
        let keep = wanted.get(&there.destination).is_some_and(|route| same(route, there));
        if let (false, Some(gateway)) = (keep, there.gateway) {
            plan.changes.push(RouteChange::Delete(Route { destination: there.destination, gateway, device: there.interface }));
        }
    }
    for route in wanted.into_values() {
        if !existing.iter().any(|there| same(&route, there)) {
            plan.changes.push(RouteChange::Add(route));
        }
    }
    plan
}

/// Whether that route is the one wanted.
fn same(route: &Route, there: &ExistingRoute) -> bool {
    route.destination == there.destination
        && there.gateway == Some(route.gateway)
        && (route.device.is_none() || route.device == there.interface)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The routes of one instance in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    protocol: u8,
}

/// What [`Routes::sync`] did.
#[derive(Debug, Default)]
pub struct Synced {
    /// Changes made.
    pub changed: Vec<RouteChange>,
    /// Podcidrs that get no route.
    pub refused: Vec<Refused>,
    /// Changes that the kernel refused; the others were made.
    pub failed: Vec<(RouteChange, Error)>,
}

impl Routes {
    /// Opens the kernel's routing socket. Routes carry `protocol`, usually [`PROTOCOL`].
    pub fn open(protocol: u8) -> Result<Routes> {
        Ok(Routes { netlink: Netlink::open()?, protocol })
    }

    /// Makes the routes as they should be for these peers. Cheap when nothing changed; call it again when a Node changes and
    /// every now and then, so that a route somebody removed comes back.
    pub fn sync(&mut self, peers: &[Peer], own: &Own) -> Result<Synced> {
        let existing = self.netlink.routes()?;
        let Plan { changes, refused } = plan(peers, own, &existing, self.protocol);
        let mut synced = Synced { refused, ..Synced::default() };
        for change in changes {
            match self.apply(change) {
                Ok(()) => synced.changed.push(change),
                Err(error) => synced.failed.push((change, error)),
            }
        }
        Ok(synced)
    }

    /// Does one step. Making what exists and removing what is gone succeed.
    pub fn apply(&mut self, change: RouteChange) -> Result<()> {
        match change {
            RouteChange::Add(route) => self.netlink.add_route(&route, self.protocol),
            RouteChange::Delete(route) => self.netlink.delete_route(&route, self.protocol),
        }
    }

    /// Removes every route of ours and nothing else. Returns how many there were.
    pub fn remove(&mut self) -> Result<usize> {
        let synced = self.sync(&[], &Own::default())?;
        match synced.failed.into_iter().next() {
            None => Ok(synced.changed.len()),
            Some((_, error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn peer(name: &str, cidrs: &[&str], ips: &[&str]) -> Peer {
        Peer {
            name: name.to_owned(),
            pod_cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn there(destination: &str, gateway: &str, protocol: u8) -> ExistingRoute {
        ExistingRoute { destination: net(destination), gateway: gateway.parse().ok(), protocol, interface: None }
    }

    fn check(name: &str, peers: &[Peer], existing: &[ExistingRoute], wanted: &[&str]) {
        let own = Own { name: "me".to_owned(), pod_cidrs: vec![net("10.42.0.0/24")], ips: vec!["192.168.1.10".parse().unwrap()] };
        let plan = plan(peers, &own, existing, PROTOCOL);
        let changes = plan.changes.iter().map(|change| match change {
            RouteChange::Add(route) => format!("+{} {}", route.destination, route.gateway),
            RouteChange::Delete(route) => format!("-{} {}", route.destination, route.gateway),
        });
        let refused = plan.refused.iter().map(|refused| format!("!{} {:?}", refused.peer, refused.reason));
        assert_eq!(changes.chain(refused).collect::<Vec<_>>(), wanted, "{name}");
    }

    #[test]
    fn routes_follow_the_peers() {
        let b = || peer("b", &["10.42.1.0/24"], &["192.168.1.11"]);
        check("nobody", &[], &[], &[]);
        check("a new peer", &[b()], &[], &["+10.42.1.0/24 192.168.1.11"]);
        check("nothing to do", &[b()], &[there("10.42.1.0/24", "192.168.1.11", PROTOCOL)], &[]);
        check(
            "a peer that moved",
            &[b()],
            &[there("10.42.1.0/24", "192.168.1.99", PROTOCOL)],
            &["-10.42.1.0/24 192.168.1.99", "+10.42.1.0/24 192.168.1.11"],
        );
        check("a peer that left", &[], &[there("10.42.1.0/24", "192.168.1.11", PROTOCOL)], &["-10.42.1.0/24 192.168.1.11"]);
        check("foreign routes stay", &[], &[there("10.42.1.0/24", "192.168.1.11", 4), there("0.0.0.0/0", "192.168.1.1", 3)], &[]);
        check(
            "two families",
            &[peer("b", &["10.42.1.0/24", "fd00:1::/64"], &["192.168.1.11", "fd01::b"])],
            &[],
            &["+10.42.1.0/24 192.168.1.11", "+fd00:1::/64 fd01::b"],
        );
        check("ourselves", &[peer("me", &["10.42.0.0/24"], &["192.168.1.10"])], &[], &[]);
    }

    #[test]
    fn what_cannot_be_routed_is_named() {
        let b = || peer("b", &["10.42.1.0/24"], &["192.168.1.11"]);
        check("our own range", &[peer("x", &["10.42.0.128/25"], &["192.168.1.12"])], &[], &["!x OverlapsOwn"]);
        check(
            "two peers with one range",
            &[peer("c", &["10.42.1.0/24"], &["192.168.1.12"]), b()],
            &[],
            &["+10.42.1.0/24 192.168.1.11", "!c OverlapsPeer"],
        );
        check("no address of the family", &[peer("x", &["fd00:1::/64"], &["192.168.1.12"])], &[], &["!x NoAddress"]);
        check("our address", &[peer("x", &["10.42.5.0/24"], &["192.168.1.10"])], &[], &["!x OwnAddress"]);
        check("a foreign route", &[b()], &[there("10.42.1.0/24", "192.168.1.77", 4)], &["!b ForeignRoute"]);
    }
}
