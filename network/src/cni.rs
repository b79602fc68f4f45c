//! The CNI configuration of this node: `bridge` with `host-local` addresses and `portmap`, as flannel's plugin would delegate
//! it under K3s (k3s-agent reference, section 8.6). containerd adds `loopback` itself.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{Error, Result};

/// What the configuration depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// Name of the network, by which plugins keep their state: `cbr0` under K3s.
    pub name: String,
    /// Name of the bridge, `cni0`; at most 15 bytes.
    pub bridge: String,
    /// The node's podCIDRs, at most one per family; addresses of pods come from them.
    pub pod_cidrs: Vec<IpNet>,
    /// The cluster's CIDRs, to which pods get a route of their own beside the default one.
    pub cluster_cidrs: Vec<IpNet>,
    /// MTU of bridge and pods; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// Where `host-local` remembers addresses: one directory per instance, or two instances give out the same ones.
    pub data_dir: PathBuf,
    /// Adds K3s' `bandwidth` plugin; each plugin costs every pod a process start.
    pub bandwidth: bool,
}

impl CniConfig {
    /// The file's name in the configuration directory.
    pub const FILE: &'static str = "10-edge-agent.conflist";

    /// K3s' names, no MTU, no bandwidth plugin.
    pub fn new(pod_cidrs: Vec<IpNet>, cluster_cidrs: Vec<IpNet>, data_dir: PathBuf) -> CniConfig {
        CniConfig { name: "cbr0".to_owned(), bridge: "cni0".to_owned(), pod_cidrs, cluster_cidrs, mtu: None, data_dir, bandwidth: false }
    }
}

/// What [`write_conflist`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The file is new or different.
    Changed,
    /// It was there with the same content; nothing was written.
    Unchanged,
}

/// The configuration as JSON. Fails on a configuration that no plugin would take.
pub fn conflist(config: &CniConfig) -> Result<Value> {
    check(config)?;
    let ranges: Vec<Value> = config.pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr.trunc().to_string() }])).collect();
    let routes: Vec<Value> = config
        .cluster_cidrs
        .iter()
        .filter(|cluster| config.pod_cidrs.iter().any(|pod| same_family(pod, cluster)))
        .map(|cidr| json!({ "dst": cidr.trunc().to_string() }))
        .collect();
    let mut bridge = json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "isDefaultGateway": true,
        "forceAddress": true,
        "hairpinMode": true,
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": routes,
            "dataDir": config.data_dir,
        },
    });
    if let Some(mtu) = config.mtu {
        bridge["mtu"] = json!(mtu);
    }
    let mut plugins = vec![bridge, json!({ "type": "portmap", "capabilities": { "portMappings": true } })];
    if config.bandwidth {
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    }
    Ok(json!({ "cniVersion": "1.0.0", "name": config.name, "plugins": plugins }))
}

fn check(config: &CniConfig) -> Result<()> {
    let refuse = |what, value: &str, reason| Err(Error::Config { what, value: value.to_owned(), reason });
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !plain(&config.bridge) || config.bridge.len() > 15 {
        return refuse("bridge", &config.bridge, "not a name for a network device");
    }
    if !plain(&config.name) {
        return refuse("network name", &config.name, "only letters, digits and -_. are allowed");
    }
    let families = |v4: bool| config.pod_cidrs.iter().filter(|cidr| matches!(cidr, IpNet::V4(_)) == v4).count();
    let text = format!("{:?}", config.pod_cidrs);
    if config.pod_cidrs.is_empty() {
        return refuse("podCIDRs", &text, "at least one is needed");
    }
    if families(true) > 1 || families(false) > 1 {
        return refuse("podCIDRs", &text, "at most one per address family");
    }
    for cidr in &config.pod_cidrs {
        if cidr.max_prefix_len() - cidr.prefix_len() < 2 {
            return refuse("podCIDR", &cidr.to_string(), "too small for a gateway and one pod");
        }
    }
    Ok(())
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    matches!((a, b), (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)))
}

/// Writes the configuration into `dir`, whole or not at all, and only if it differs from what is there.
pub fn write_conflist(dir: &Path, config: &CniConfig) -> Result<Written> {
    let text = format!("{:#}\n", conflist(config)?);
    let path = dir.join(CniConfig::FILE);
    match fs::read_to_string(&path) {
        Ok(found) if found == text => return Ok(Written::Unchanged),
        _ => {}
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        // No extension that a CNI loader reads: it must not see a half-written file.
        let temporary = dir.join(format!(".{}.new", CniConfig::FILE));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(Written::Changed)
}

/// Removes the configuration; one that is not there is removed already.
pub fn remove_conflist(dir: &Path) -> Result<()> {
    let path = dir.join(CniConfig::FILE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Write { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cidrs: &[&str]) -> CniConfig {
        CniConfig {
            mtu: Some(1450),
            ..CniConfig::new(
                cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                vec!["10.42.0.0/16".parse().unwrap()],
                "/var/lib/edge-agent/cni".into(),
            )
        }
    }

    #[test]
    fn one_family() {
        let found = conflist(&config(&["10.42.3.0/24"])).unwrap();
        assert_eq!(
            found,
            json!({
                "cniVersion": "1.0.0",
                "name": "cbr0",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isGateway": true,
                        "isDefaultGateway": true,
                        "forceAddress": true,
                        "hairpinMode": true,
                        "ipMasq": false,
                        "mtu": 1450,
                        "ipam": {
                            "type": "host-local",
                            "ranges": [[{ "subnet": "10.42.3.0/24" }]],
                            "routes": [{ "dst": "10.42.0.0/16" }],
                            "dataDir": "/var/lib/edge-agent/cni",
                        },
                    },
                    { "type": "portmap", "capabilities": { "portMappings": true } },
                ],
            })
        );
    }

    #[test]
    fn two_families_and_only_fitting_routes() {
        let found = conflist(&config(&["10.42.3.0/24", "2001:db8:42:3::/64"])).unwrap();
        let ipam = &found["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"], json!([[{"subnet": "10.42.3.0/24"}], [{"subnet": "2001:db8:42:3::/64"}]]));
        let found = conflist(&config(&["2001:db8:42:3::/64"])).unwrap();
        assert_eq!(found["plugins"][0]["ipam"]["routes"], json!([]));
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        for (name, cidrs, bridge) in [
            ("none", vec![], "cni0"),
            ("two of a family", vec!["10.42.3.0/24", "10.42.4.0/24"], "cni0"),
            ("too small", vec!["10.42.3.0/31"], "cni0"),
            ("long bridge", vec!["10.42.3.0/24"], "a-very-long-bridge"),
            ("odd bridge", vec!["10.42.3.0/24"], "a/b"),
        ] {
            let config = CniConfig { bridge: bridge.to_owned(), ..config(&cidrs) };
            assert!(conflist(&config).is_err(), "{name}");
        }
    }

    #[test]
    fn the_file_is_written_only_when_it_changes() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("net.d");
        let first = config(&["10.42.3.0/24"]);
        assert_eq!(write_conflist(&dir, &first).unwrap(), Written::Changed);
        assert_eq!(write_conflist(&dir, &first).unwrap(), Written::Unchanged);
        let second = config(&["10.42.4.0/24"]);
        assert_eq!(write_conflist(&dir, &second).unwrap(), Written::Changed);
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [CniConfig::FILE]);
        remove_conflist(&dir).unwrap();
        remove_conflist(&dir).unwrap();
    }
}
