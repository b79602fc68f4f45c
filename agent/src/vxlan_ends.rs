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
        None => network::interface_with(local)?.with_context(|| format!("no interface has the address {local}; set node-ip or flannel-iface"))?,
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
