//! The resolver file whose servers pods may use (k3s-agent.md 6.4).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The first usual file with only reachable servers, else a generated one with public servers.
pub fn choose(data_dir: &Path) -> PathBuf {
    for candidate in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        if std::fs::read_to_string(candidate).is_ok_and(|text| usable(&text)) {
            return PathBuf::from(candidate);
        }
    }
    let generated = data_dir.join("agent/etc/resolv.conf");
    let text = "nameserver 8.8.8.8\nnameserver 2001:4860:4860::8888\n";
    if std::fs::read_to_string(&generated).ok().as_deref() != Some(text) {
        tracing::warn!(path = %generated.display(), "the host has no name server that pods could reach; they get public ones");
        if let Err(error) = crate::ledger::write_whole(&generated, text.as_bytes()) {
            tracing::warn!(error = %format!("{error:#}"), "resolver file not written");
        }
    }
    generated
}

/// At least one server, and every one reachable from inside a pod: no loopback, no link-local ones.
fn usable(text: &str) -> bool {
    let servers: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(|rest| rest.trim().split('%').next().unwrap_or_default().parse::<IpAddr>())
        .collect();
    let global = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => {
            v4.octets() == [169, 254, 169, 254] || !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified())
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified()),
    };
    !servers.is_empty() && servers.iter().all(|server| server.as_ref().is_ok_and(global))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_a_pod_can_reach_count() {
        for (text, good) in [
            ("nameserver 192.168.1.1\n", true),
            ("nameserver 127.0.0.53\n", false),
            ("nameserver 192.168.1.1\nnameserver 127.0.0.1\n", false),
            ("nameserver 169.254.169.254\n", true),
            ("nameserver 169.254.1.1\n", false),
            ("nameserver fe80::1%eth0\n", false),
            ("search lan\n", false),
        ] {
            assert_eq!(usable(text), good, "{text}");
        }
    }
}
