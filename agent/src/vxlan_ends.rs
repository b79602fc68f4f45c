//! This node's ends of flannel's vxlan: opened before the Node registers, because other nodes need their MACs.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use network::{Interface, Mac, Vxlan};

use crate::config::Config;

/// The device of one family.
#[derive(Debug, Clone)]
pub struct End {
    underlay: Interface,
    /// The address other nodes send to.
    pub local: IpAddr,
    /// The device's MAC.
    pub mac: Mac,
    /// MTU of the device and so of pods.
    pub mtu: u32,
}

/// Makes the devices, at most one per family. A family without one has no pod traffic to other nodes: a warning, not an error.
pub fn open_all(config: &Config, node_ips: &[IpAddr]) -> Vec<End> {
    let mut ends: Vec<End> = Vec::new();
    for ip in node_ips {
        if ends.iter().any(|end| end.local.is_ipv4() == ip.is_ipv4()) {
            continue;
        }
        match open_new(config, *ip) {
            Ok(end) => {
                tracing::info!(local = %end.local, underlay = end.underlay.name, mac = %end.mac, "vxlan device ready");
                ends.push(end);
            }
            Err(error) => {
                tracing::warn!(%ip, error = format!("{error:#}"), "no vxlan device, pods do not reach pods of other nodes");
            }
        }
    }
    ends
}

fn open_new(config: &Config, local: IpAddr) -> anyhow::Result<End> {
    let underlay = match &config.flannel_iface {
        Some(name) => network::interface(name)?.with_context(|| format!("flannel-iface {name} is not there"))?,
        None => network::interface_with(local)?
            .with_context(|| format!("no interface has the address {local}; set node-ip or flannel-iface"))?,
    };
    // Other nodes remember the MAC: it should be the same after a reboot.
    let saved = mac_file(config, local);
    let known = fs::read_to_string(&saved).ok().and_then(|text| text.trim().parse().ok());
    let device = Vxlan::open(&underlay, local, known, network::routes::PROTOCOL)?;
    let end = End { underlay, local, mac: device.mac(), mtu: device.mtu() };
    if known != Some(end.mac) {
        save(&saved, end.mac).with_context(|| format!("writing {}", saved.display()))?;
    }
    Ok(end)
}

fn mac_file(config: &Config, local: IpAddr) -> PathBuf {
    config.data_dir.join("agent").join(if local.is_ipv4() { "vtep-mac" } else { "vtep-mac-v6" })
}

fn save(path: &std::path::Path, mac: Mac) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    fs::write(&new, format!("{mac}\n"))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)
}

impl End {
    /// The device again, made anew should somebody have removed it.
    pub fn open(&self) -> network::Result<Vxlan> {
        Vxlan::open(&self.underlay, self.local, Some(self.mac), network::routes::PROTOCOL)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use network::{Mac, delete_interface};

    use super::*;

    fn ip(words: &str) -> bool {
        let status = Command::new("ip").args(words.split(' ')).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// Unsharing moves this test's thread alone into a network namespace that ends with it.
    #[test]
    fn the_mac_survives_the_device() {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() || !ip("link add wire type veth peer name far") {
            eprintln!("\nSKIP agent::vxlan_ends: no network namespaces");
            return;
        }
        assert!(ip("link set far up") && ip("link set wire mtu 1400 up") && ip("address add 192.168.77.1/24 dev wire"));
        if !ip("link add flannel.1 type vxlan id 9 dstport 1 dev wire") {
            eprintln!("\nSKIP agent::vxlan_ends: this kernel has no vxlan");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = Config::below(dir.path(), "n");
        let ips: Vec<IpAddr> = ["192.168.77.1", "192.168.77.2", "fd00::1"].iter().map(|ip| ip.parse().unwrap()).collect();
        let ends = open_all(&config, &ips);
        assert_eq!(ends.len(), 1, "one per family, and none for an address that is not here: {ends:?}");
        assert_eq!(ends[0].mtu, 1350);

        delete_interface("flannel.1").unwrap();
        let again: Vec<Mac> = open_all(&config, &ips).iter().map(|end| end.mac).collect();
        assert_eq!(again, [ends[0].mac]);
        delete_interface("flannel.1").unwrap();
        assert_eq!(ends[0].open().unwrap().mac(), ends[0].mac);
    }
}
