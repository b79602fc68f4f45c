//! flannel's vxlan backend, K3s' default (k3s-agent reference, section 8.3): one device, and three entries for each other node.
//!
//! For a node with podCIDR 10.42.3.0/24, address 192.168.1.13 and MAC M: neighbour `10.42.3.0 lladdr M`, forwarding entry
//! `M dst 192.168.1.13`, route `10.42.3.0/24 via 10.42.3.0 onlink`. The device is ours alone, so every permanent entry on it is; routes carry our
//! protocol number as with host-gw. [`plan`] is pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::netlink::{DeviceOptions, Interface, Neighbour, Netlink};
use crate::routes::{self, Own, Peer, Plan, Refused, Route, RouteChange};
use crate::{Error, Result};

/// K3s names no VNI and no port, so these are flannel's default and the kernel's.
pub const VNI: u32 = 1;
/// The kernel's default port, not the registered 4789.
pub const PORT: u16 = 8472;
/// What encapsulation takes from the MTU; flannel subtracts it for IPv6 too.
pub const OVERHEAD: u32 = 50;
/// The device for IPv4.
pub const DEVICE: &str = "flannel.1";
/// The device for IPv6.
pub const DEVICE_V6: &str = "flannel-v6.1";

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mac> {
        let refuse = || Error::Config { what: "MAC address", value: text.to_owned(), reason: "it is not six pairs of hexadecimal digits" };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refuse)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Mac(bytes)) }
    }
}

/// Another node's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanPeer {
    /// Its name, podCIDRs and addresses.
    pub peer: Peer,
    /// MAC of its IPv4 device.
    pub mac: Option<Mac>,
    /// MAC of its IPv6 device.
    pub mac_v6: Option<Mac>,
}

/// Our device of one family, ready for entries.
#[derive(Debug)]
pub struct Vxlan {
    netlink: Netlink,
    protocol: u8,
    index: u32,
    mac: Mac,
    mtu: u32,
    ipv4: bool,
}

/// A step towards the wanted entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(Neighbour),
    Delete(Neighbour),
    Route(RouteChange),
}

/// What [`Vxlan::sync`] did.
#[derive(Debug, Default)]
pub struct Synced {
    /// Number of entries and routes changed.
    pub changed: usize,
    /// Podcidrs that get no route.
    pub refused: Vec<Refused>,
    /// What the kernel refused; the rest was done.
    pub failed: Vec<Error>,
}

impl Vxlan {
    /// The device for the family of `local`, made if it is not there or does not fit. `mac` is what the own Node's annotation
    /// says: other nodes keep it, so it should survive a reboot. A device that fits is used with the MAC it has.
    pub fn open(underlay: &Interface, local: IpAddr, mac: Option<Mac>, protocol: u8) -> Result<Vxlan> {
        let mut netlink = Netlink::open()?;
        let options = DeviceOptions {
            name: if local.is_ipv4() { DEVICE } else { DEVICE_V6 }.to_owned(),
            vni: VNI,
            port: PORT,
            underlay: underlay.index,
            local,
            mtu: underlay.mtu.saturating_sub(OVERHEAD),
            mac,
        };
        let fits = |device: &crate::netlink::Device| {
            device.vxlan.is_some_and(|facts| {
                facts.vni == VNI
                    && facts.port == PORT
                    && facts.underlay == Some(underlay.index)
                    && facts.local == Some(local)
                    && !facts.learning
            })
        };
        let device = match netlink.device(&options.name)? {
            Some(device) if fits(&device) => device,
            other => {
                if let Some(device) = other {
                    tracing::info!(device = options.name, "vxlan device does not fit and is made anew");
                    netlink.delete_link(device.interface.index)?;
                }
                netlink.create_vxlan(&options)?;
                netlink.device(&options.name)?.ok_or(Error::Answer { detail: "the new device is not there" })?
            }
        };
        let index = device.interface.index;
        netlink.set_up(index, options.mtu)?;
        Ok(Vxlan {
            netlink,
            protocol,
            index,
            mac: device.mac.ok_or(Error::Answer { detail: "device without a MAC" })?,
            mtu: options.mtu,
            ipv4: local.is_ipv4(),
        })
    }

    /// The device's MAC, for the annotation.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The MTU of the device, and so of pods.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Gives the device the first address of the podCIDR of its family, as a single address, and takes others away.
    pub fn set_pod_cidr(&mut self, pod_cidr: &IpNet) -> Result<()> {
        let wanted = IpNet::from(pod_cidr.network());
        for (index, net) in self.netlink.addresses()? {
            if index == self.index && net != wanted && net.addr().is_ipv4() == self.ipv4 {
                self.netlink.delete_address(self.index, net)?;
            }
        }
        self.netlink.add_address(self.index, wanted)
    }

    /// Makes entries and routes as they should be for these nodes. Call it again when a Node changes and every now and then.
    pub fn sync(&mut self, peers: &[VxlanPeer], own: &Own) -> Result<Synced> {
        let there = self.netlink.neighbours(self.index)?;
        let existing = self.netlink.routes()?;
        let (changes, refused) = plan(peers, own, self.index, self.ipv4, &there, &existing, self.protocol);
        let mut synced = Synced { refused, ..Synced::default() };
        for change in changes {
            let done = match &change {
                Change::Set(entry) => self.netlink.set_neighbour(self.index, entry),
                Change::Delete(entry) => self.netlink.delete_neighbour(self.index, entry),
                Change::Route(RouteChange::Add(route)) => self.netlink.add_route(route, self.protocol),
                Change::Route(RouteChange::Delete(route)) => self.netlink.delete_route(route, self.protocol),
            };
            match done {
                Ok(()) => synced.changed += 1,
                Err(error) => synced.failed.push(error),
            }
        }
        Ok(synced)
    }

    /// Removes the device, and with it all entries and routes.
    pub fn remove(mut self) -> Result<()> {
        self.netlink.delete_link(self.index)
    }
}

/// Additions in the order neighbour, forwarding entry, route; removals the other way round and first.
fn plan(
    peers: &[VxlanPeer],
    own: &Own,
    index: u32,
    ipv4: bool,
    there: &[Neighbour],
    existing: &[crate::netlink::ExistingRoute],
    protocol: u8,
) -> (Vec<Change>, Vec<Refused>) {
    let of_family = |net: &IpNet| net.addr().is_ipv4() == ipv4;
    let able: Vec<&VxlanPeer> = peers.iter().filter(|peer| if ipv4 { peer.mac.is_some() } else { peer.mac_v6.is_some() }).collect();
    let family: Vec<Peer> = able
        .iter()
        .map(|vxlan| Peer {
            name: vxlan.peer.name.clone(),
            pod_cidrs: vxlan.peer.pod_cidrs.iter().copied().filter(of_family).collect(),
            ips: vxlan.peer.ips.clone(),
        })
        .collect();
    // Only this device's routes: the other family's device keeps its own.
    let existing: Vec<_> = existing.iter().copied().filter(|route| of_family(&route.destination)).collect();
    let via = |peer: &Peer, destination: IpNet| {
        let reachable = peer.ips.iter().any(|ip| ip.is_ipv4() == ipv4);
        reachable.then(|| Route { destination, gateway: destination.network(), device: Some(index) })
    };
    let Plan { changes, refused } = routes::plan_with(&family, own, &existing, protocol, via);

    let mut wanted = BTreeSet::new();
    for (vxlan, peer) in able.iter().zip(&family) {
        let mac = if ipv4 { vxlan.mac } else { vxlan.mac_v6 };
        let ip = peer.ips.iter().find(|ip| ip.is_ipv4() == ipv4);
        for cidr in peer.pod_cidrs.iter().map(IpNet::trunc) {
            let unusable = refused.iter().any(|refused| refused.destination == cidr && refused.peer == peer.name);
            if let (Some(mac), Some(ip), false) = (mac, ip, unusable || peer.name == own.name) {
                wanted.insert(Neighbour::Address(cidr.network(), mac));
                wanted.insert(Neighbour::Forward(mac, *ip));
            }
        }
    }

    let (deleted, added): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| matches!(change, RouteChange::Delete(_)));
    let mut all: Vec<Change> = deleted.into_iter().map(Change::Route).collect();
    // An entry with a new value replaces the old one; deleting that afterwards would delete the new one.
    let replaced = |old: &Neighbour| {
        wanted.iter().any(|new| match (old, new) {
            (Neighbour::Address(a, _), Neighbour::Address(b, _)) => a == b,
            (Neighbour::Forward(a, _), Neighbour::Forward(b, _)) => a == b,
            (Neighbour::Address(..), Neighbour::Forward(..)) | (Neighbour::Forward(..), Neighbour::Address(..)) => false,
        })
    };
    let gone = there.iter().rev().filter(|old| !replaced(old));
    all.extend(gone.map(|old| Change::Delete(*old)));
    all.extend(wanted.iter().filter(|new| !there.contains(new)).map(|new| Change::Set(*new)));
    all.extend(added.into_iter().map(Change::Route));
    (all, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::ExistingRoute;

    fn peer(name: &str, cidr: &str, ip: &str, mac: u8) -> VxlanPeer {
        VxlanPeer {
            peer: Peer { name: name.to_owned(), pod_cidrs: vec![cidr.parse().unwrap()], ips: vec![ip.parse().unwrap()] },
            mac: Some(Mac([2, 0, 0, 0, 0, mac])),
            mac_v6: None,
        }
    }

    fn check(name: &str, peers: &[VxlanPeer], there: &[Neighbour], existing: &[ExistingRoute], wanted: &[&str]) {
        let own = Own { name: "me".to_owned(), pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()], ips: Vec::new() };
        let (changes, _) = plan(peers, &own, 7, true, there, existing, routes::PROTOCOL);
        let found: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Set(Neighbour::Address(ip, mac)) => format!("+neighbour {ip} {mac}"),
                Change::Set(Neighbour::Forward(mac, ip)) => format!("+forward {mac} {ip}"),
                Change::Delete(Neighbour::Address(ip, _)) => format!("-neighbour {ip}"),
                Change::Delete(Neighbour::Forward(mac, _)) => format!("-forward {mac}"),
                Change::Route(RouteChange::Add(route)) => {
                    format!("+route {} {}", route.destination, route.gateway)
                }
                Change::Route(RouteChange::Delete(route)) => {
                    format!("-route {}", route.destination)
                }
            })
            .collect();
        assert_eq!(found, wanted, "{name}");
    }

    #[test]
    fn three_entries_for_each_node() {
        let b = peer("b", "10.42.3.0/24", "192.168.1.13", 9);
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let ip: IpAddr = "192.168.1.13".parse().unwrap();
        let net: IpAddr = "10.42.3.0".parse().unwrap();
        let entries = [Neighbour::Address(net, mac), Neighbour::Forward(mac, ip)];
        let route = ExistingRoute {
            destination: "10.42.3.0/24".parse().unwrap(),
            gateway: Some(net),
            protocol: routes::PROTOCOL,
            interface: Some(7),
        };
        check(
            "a new node",
            std::slice::from_ref(&b),
            &[],
            &[],
            &["+neighbour 10.42.3.0 02:00:00:00:00:09", "+forward 02:00:00:00:00:09 192.168.1.13", "+route 10.42.3.0/24 10.42.3.0"],
        );
        check("nothing to do", std::slice::from_ref(&b), &entries, &[route], &[]);
        check(
            "a node that left, in reverse order",
            &[],
            &entries,
            &[route],
            &["-route 10.42.3.0/24", "-forward 02:00:00:00:00:09", "-neighbour 10.42.3.0"],
        );
        check(
            "a node with a new address",
            &[peer("b", "10.42.3.0/24", "192.168.1.99", 9)],
            &entries,
            &[route],
            &["+forward 02:00:00:00:00:09 192.168.1.99"],
        );
        check("a route of flannel itself to the same place is as good", &[b], &entries, &[ExistingRoute { protocol: 3, ..route }], &[]);
        check("ourselves", &[peer("me", "10.42.0.0/24", "192.168.1.10", 1)], &[], &[], &[]);
        check("our own range", &[peer("x", "10.42.0.0/24", "192.168.1.14", 1)], &[], &[], &[]);
    }

    #[test]
    fn macs_are_spelled_as_flannel_does() {
        assert_eq!("AA:bb:0c:dd:ee:ff".parse::<Mac>().unwrap().to_string(), "aa:bb:0c:dd:ee:ff");
        for text in ["", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:ff:00", "a:bb:cc:dd:ee:ff", "gg:bb:cc:dd:ee:ff"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
