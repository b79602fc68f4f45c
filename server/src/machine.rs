//! What this machine is called and which addresses it has, read from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// The host name, lower case; `localhost` when there is none.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" | "(none)" => "localhost".to_owned(),
        name => name.to_lowercase(),
    }
}

/// Every address of every interface, without link-local ones.
pub fn addresses() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut all: BTreeSet<IpAddr> = local_v4(&v4).into_iter().map(IpAddr::V4).collect();
    all.extend(local_v6(&v6).into_iter().map(IpAddr::V6));
    all.into_iter().collect()
}

/// The address this machine uses towards the outside, else any that is not loopback, else loopback.
pub fn main_address() -> IpAddr {
    // Connecting a UDP socket sends nothing; it only asks the routing table.
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| {
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        })
        .map(|address| address.ip());
    match routed {
        Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() => ip,
        _ => addresses().into_iter().find(|ip| ip.is_ipv4() && !ip.is_loopback()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

/// In the kernel's routing trie an address of this machine is a leaf followed by the line `/32 host LOCAL`.
fn local_v4(trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut leaf = None;
    let mut found = BTreeSet::new();
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.filter(|ip: &Ipv4Addr| !ip.is_link_local()));
        }
    }
    found
}

/// Lines of `address-in-hex index prefix scope flags name`; scope 20 is link-local.
fn local_v6(table: &str) -> BTreeSet<Ipv6Addr> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u128::from_str_radix(fields.next()?, 16).ok()?;
            let scope = fields.nth(2)?;
            (scope != "20").then(|| Ipv6Addr::from(address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.0\n        \
                    /24 link UNICAST\nLocal:\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link \
                    BROADCAST\n           |-- 127.0.0.1\n              /32 host LOCAL\n";
        let found: Vec<String> = local_v4(trie).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.7", "127.0.0.1"]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe80000000000000000000000000abcd 02 40 20 80     eth0\n\
                     fd000000000000000000000000000001 02 40 00 80     eth0\n";
        let found: Vec<String> = local_v6(table).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["::1", "fd00::1"]);
    }
}
