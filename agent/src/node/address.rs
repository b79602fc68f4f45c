//! Which addresses other nodes reach this one at.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use tunnel::ServerAddr;

use crate::config::Config;

/// `node-ip`, else the address of `flannel-iface`, else that of the default route, else the one towards the server.
/// Empty while the network is not up yet.
pub fn find(config: &Config, server: Option<&ServerAddr>) -> Vec<IpAddr> {
    if !config.node_ips.is_empty() {
        return config.node_ips.clone();
    }
    if let Some(name) = &config.flannel_iface {
        return of_interface(name);
    }
    // Connecting a UDP socket sends nothing; the kernel only picks the route. Documentation addresses are never local.
    let far: [SocketAddr; 2] = [([192, 0, 2, 1], 9).into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into()];
    let towards = |to: SocketAddr| -> Option<IpAddr> {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(usable)
    };
    let server = server.and_then(|server| Some(SocketAddr::new(server.ip()?, server.port)));
    far.into_iter().chain(server).find_map(towards).into_iter().collect()
}

fn usable(ip: &IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !is_link_local(ip)
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The first usable IPv4 and IPv6 address of an interface.
fn of_interface(name: &str) -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<IpAddr> = Vec::new();
    for entry in all.filter(|entry| entry.interface_name == name) {
        let Some(address) = entry.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => continue,
        };
        if usable(&ip) && !found.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            found.push(ip);
        }
    }
    found.sort_by_key(|ip| !ip.is_ipv4());
    found
}
