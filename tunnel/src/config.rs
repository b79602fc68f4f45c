//! `/v1-k3s/config`: the part of the server's configuration a node acts on (k3s-agent.md 3), in Go's JSON.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// What a K3s server tells its agents. Missing and `null` fields have K3s' defaults, unknown ones are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Pod networks of the whole cluster; `ClusterIPRanges`, or the single `ClusterIPRange` when the list is empty.
    pub cluster_ip_ranges: Vec<IpNet>,
    /// Service networks, likewise.
    pub service_ip_ranges: Vec<IpNet>,
    /// NodePort range, `None` when the server does not say.
    pub service_node_port_range: Option<PortRange>,
    /// Addresses for the pods' `resolv.conf`.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster, `cluster.local` by default.
    pub cluster_domain: String,
    /// `vxlan`, `host-gw`, `wireguard-native`, `tailscale`, `none`.
    pub flannel_backend: String,
    /// Masquerade pod IPv6 that leaves the cluster.
    pub flannel_ipv6_masq: bool,
    /// Use node-external-ip as the flannel peer address.
    pub flannel_external_ip: bool,
    /// `agent`, `cluster`, `pod`, `disabled`: what the server may dial through the tunnel.
    pub egress_selector_mode: String,
    /// The embedded cloud controller is off.
    pub disable_ccm: bool,
    /// The network policy controller is off.
    pub disable_npc: bool,
    /// kube-proxy is off; may change while the server starts.
    pub disable_kube_proxy: bool,
    /// The embedded registry mirror is on.
    pub embedded_registry: bool,
    /// Serve metrics on the supervisor port.
    pub supervisor_metrics: bool,
    /// Port of the apiserver, 6443.
    pub https_port: u16,
    /// Port of the supervisor, 6443 on K3s.
    pub supervisor_port: u16,
    /// Prefix for the pause image; empty when unset.
    pub system_default_registry: String,
    /// Least TLS version of the node's own listeners, Go's name; empty when unset.
    pub min_tls_version: String,
    /// Go names of the cipher suites of the node's own listeners; empty when unset.
    pub cipher_suites: Vec<String>,
    /// The server's node name.
    pub server_node_name: String,
}

/// Go's `PortRange`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub base: u16,
    /// How many ports; 0 from servers that are too old.
    pub size: u32,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            cluster_ip_ranges: Vec::new(),
            service_ip_ranges: Vec::new(),
            service_node_port_range: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            flannel_backend: "vxlan".to_owned(),
            flannel_ipv6_masq: false,
            flannel_external_ip: false,
            egress_selector_mode: "agent".to_owned(),
            disable_ccm: false,
            disable_npc: false,
            disable_kube_proxy: false,
            embedded_registry: false,
            supervisor_metrics: false,
            https_port: 6443,
            supervisor_port: 6443,
            system_default_registry: String::new(),
            min_tls_version: String::new(),
            cipher_suites: Vec::new(),
            server_node_name: String::new(),
        }
    }
}

impl ServerConfig {
    /// The checks of k3s-agent.md 3.4 that need no more than this document and the node's addresses. The text names
    /// thing, value and remedy.
    pub fn check(&self, node_ips: &[IpAddr]) -> Result<(), String> {
        let families = |nets: &[IpNet]| (nets.iter().any(is_v4), !nets.iter().all(is_v4));
        if self.cluster_ip_ranges.is_empty() || self.service_ip_ranges.is_empty() {
            return Err("ClusterIPRange or ServiceIPRange is missing; the server is too old for this agent".to_owned());
        }
        if !self.disable_npc && self.service_node_port_range.is_none_or(|r| r.size == 0) {
            return Err("ServiceNodePortRange is missing; the server is too old for this agent".to_owned());
        }
        let wanted = families(&self.cluster_ip_ranges);
        if wanted != families(&self.service_ip_ranges) {
            return Err(format!(
                "pod networks {} and service networks {} are not of the same IP families; correct --cluster-cidr and --service-cidr on the server",
                list(&self.cluster_ip_ranges),
                list(&self.service_ip_ranges)
            ));
        }
        let (v4, v6) = (node_ips.iter().any(IpAddr::is_ipv4), node_ips.iter().any(IpAddr::is_ipv6));
        if !node_ips.is_empty() && ((wanted.0 && !v4) || (wanted.1 && !v6)) {
            return Err(format!(
                "node addresses {} do not cover the IP families of the pod networks {}; give one of each with --node-ip",
                list(node_ips),
                list(&self.cluster_ip_ranges)
            ));
        }
        Ok(())
    }
}

fn is_v4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// Go's decoder prefers the exact key and accepts any other case; `null` counts as missing.
struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, key: &str) -> Option<&Value> {
        let found = self.0.get(key).or_else(|| self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v));
        found.filter(|v| !v.is_null())
    }

    fn read<T>(&self, key: &str, default: T, read: impl Fn(&Value) -> Option<T>) -> Result<T, String> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => read(value).ok_or_else(|| format!("field {key} has an unexpected value {value}")),
        }
    }

    fn bool(&self, key: &str) -> Result<bool, String> {
        self.read(key, false, Value::as_bool)
    }

    fn text(&self, key: &str, default: &str) -> Result<String, String> {
        let text = self.read(key, String::new(), |v| v.as_str().map(str::to_owned))?;
        Ok(if text.is_empty() { default.to_owned() } else { text })
    }

    fn port(&self, key: &str) -> Result<u16, String> {
        let port = self.read(key, 0, |v| v.as_u64().and_then(|n| u16::try_from(n).ok()))?;
        Ok(if port == 0 { 6443 } else { port })
    }

    /// The list when it is not empty, else the single value.
    fn either<T>(&self, many: &str, one: &str, read: fn(&Value) -> Option<Option<T>>) -> Result<Vec<T>, String> {
        let all = self.read(many, Vec::new(), |v| v.as_array()?.iter().filter(|v| !v.is_null()).map(read).collect())?;
        let all: Vec<T> = all.into_iter().flatten().collect();
        if !all.is_empty() {
            return Ok(all);
        }
        Ok(self.read(one, None, |v| Some(Some(read(v)?)))?.flatten().into_iter().collect())
    }
}

/// `""` is Go's unset address.
fn go_ip(value: &Value) -> Option<Option<IpAddr>> {
    match value.as_str()? {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

/// `{"IP":"10.42.0.0","Mask":"//8AAA=="}`: the mask is base64 of 4 or 16 bytes.
fn go_net(value: &Value) -> Option<Option<IpNet>> {
    let fields = Fields(value.as_object()?.clone());
    let ip: IpAddr = fields.get("IP")?.as_str()?.parse().ok()?;
    let mask = STANDARD.decode(fields.get("Mask")?.as_str()?).ok()?;
    let mask: IpAddr = match mask.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(mask).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(mask).ok()?),
        _ => return None,
    };
    IpNet::with_netmask(ip, mask).ok().map(Some)
}

fn to_go_net(net: &IpNet) -> Value {
    let mask = match net.netmask() {
        IpAddr::V4(mask) => mask.octets().to_vec(),
        IpAddr::V6(mask) => mask.octets().to_vec(),
    };
    json!({"IP": net.addr().to_string(), "Mask": STANDARD.encode(mask)})
}

impl ServerConfig {
    fn from_fields(fields: &Fields) -> Result<ServerConfig, String> {
        let default = ServerConfig::default();
        let range = |v: &Value| {
            let fields = Fields(v.as_object()?.clone());
            let base = fields.read("Base", 0, |v| u16::try_from(v.as_u64()?).ok()).ok()?;
            let size = fields.read("Size", 0, |v| u32::try_from(v.as_u64()?).ok()).ok()?;
            Some(Some(PortRange { base, size }))
        };
        Ok(ServerConfig {
            cluster_ip_ranges: fields.either("ClusterIPRanges", "ClusterIPRange", go_net)?,
            service_ip_ranges: fields.either("ServiceIPRanges", "ServiceIPRange", go_net)?,
            service_node_port_range: fields.read("ServiceNodePortRange", None, range)?,
            cluster_dns: fields.either("ClusterDNSs", "ClusterDNS", go_ip)?,
            cluster_domain: fields.text("ClusterDomain", &default.cluster_domain)?,
            flannel_backend: fields.text("FlannelBackend", &default.flannel_backend)?,
            flannel_ipv6_masq: fields.bool("FlannelIPv6Masq")?,
            flannel_external_ip: fields.bool("FlannelExternalIP")?,
            egress_selector_mode: fields.text("EgressSelectorMode", &default.egress_selector_mode)?,
            disable_ccm: fields.bool("DisableCCM")?,
            disable_npc: fields.bool("DisableNPC")?,
            disable_kube_proxy: fields.bool("DisableKubeProxy")?,
            embedded_registry: fields.bool("EmbeddedRegistry")?,
            supervisor_metrics: fields.bool("SupervisorMetrics")?,
            https_port: fields.port("HTTPSPort")?,
            supervisor_port: fields.port("SupervisorPort")?,
            system_default_registry: fields.text("SystemDefaultRegistry", "")?,
            min_tls_version: fields.text("MinTLSVersion", "")?,
            cipher_suites: fields
                .read("CipherSuites", Vec::new(), |v| v.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect())?,
            server_node_name: fields.text("ServerNodeName", "")?,
        })
    }
}

impl<'de> Deserialize<'de> for ServerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServerConfig, D::Error> {
        let fields = Fields(Map::deserialize(deserializer)?);
        ServerConfig::from_fields(&fields).map_err(serde::de::Error::custom)
    }
}

/// The same fields under the same names, so that what is on disk reads like what came over the wire. The server's
/// `IPSECPSK` is not kept: no part of this node uses it.
impl Serialize for ServerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nets = |nets: &[IpNet]| nets.iter().map(to_go_net).collect::<Vec<_>>();
        let text = |ip: &IpAddr| ip.to_string();
        json!({
            "ClusterIPRanges": nets(&self.cluster_ip_ranges),
            "ClusterIPRange": self.cluster_ip_ranges.first().map(to_go_net),
            "ServiceIPRanges": nets(&self.service_ip_ranges),
            "ServiceIPRange": self.service_ip_ranges.first().map(to_go_net),
            "ServiceNodePortRange": self.service_node_port_range.map(|r| json!({"Base": r.base, "Size": r.size})),
            "ClusterDNSs": self.cluster_dns.iter().map(text).collect::<Vec<_>>(),
            "ClusterDNS": self.cluster_dns.first().map(text).unwrap_or_default(),
            "ClusterDomain": self.cluster_domain,
            "FlannelBackend": self.flannel_backend,
            "FlannelIPv6Masq": self.flannel_ipv6_masq,
            "FlannelExternalIP": self.flannel_external_ip,
            "EgressSelectorMode": self.egress_selector_mode,
            "DisableCCM": self.disable_ccm,
            "DisableNPC": self.disable_npc,
            "DisableKubeProxy": self.disable_kube_proxy,
            "EmbeddedRegistry": self.embedded_registry,
            "SupervisorMetrics": self.supervisor_metrics,
            "HTTPSPort": self.https_port,
            "SupervisorPort": self.supervisor_port,
            "SystemDefaultRegistry": self.system_default_registry,
            "MinTLSVersion": self.min_tls_version,
            "CipherSuites": self.cipher_suites,
            "ServerNodeName": self.server_node_name,
        })
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recording;

    fn parse(text: &str) -> ServerConfig {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_recorded_configuration_is_read_whole() {
        let config: ServerConfig = serde_json::from_slice(&Recording::load("config-ok").response_body()).unwrap();
        assert_eq!(list(&config.cluster_ip_ranges), "10.42.0.0/16");
        assert_eq!(list(&config.service_ip_ranges), "10.43.0.0/16");
        assert_eq!(config.service_node_port_range, Some(PortRange { base: 30000, size: 2768 }));
        assert_eq!(list(&config.cluster_dns), "10.43.0.10");
        assert_eq!(config.cluster_domain, "cluster.local");
        assert_eq!((config.flannel_backend.as_str(), config.egress_selector_mode.as_str()), ("vxlan", "agent"));
        assert_eq!(config.cipher_suites.len(), 6);
        assert_eq!(config.server_node_name, "server1");
        config.check(&["10.99.0.41".parse().unwrap()]).unwrap();
        let again = parse(&serde_json::to_string(&config).unwrap());
        assert_eq!(again, config);
    }

    #[test]
    fn missing_null_unknown_and_oddly_cased_fields_are_tolerated() {
        assert_eq!(parse("{}"), ServerConfig::default());
        assert_eq!(
            parse(r#"{"ClusterIPRanges":null,"ClusterIPRange":null,"ClusterDNS":"","Nonsense":[1],"CipherSuites":null}"#),
            ServerConfig::default()
        );
        assert_eq!(parse(r#"{"clusterdomain":"x"}"#).cluster_domain, "x");
        assert_eq!(parse(r#"{"CLUSTERDOMAIN":"x","ClusterDomain":"y"}"#).cluster_domain, "y");
        let single = parse(r#"{"ClusterIPRanges":[],"ClusterIPRange":{"IP":"10.42.0.0","Mask":"//8AAA=="}}"#);
        assert_eq!(list(&single.cluster_ip_ranges), "10.42.0.0/16");
        assert!(serde_json::from_str::<ServerConfig>(r#"{"HTTPSPort":"x"}"#).unwrap_err().to_string().contains("HTTPSPort"));
        assert!(serde_json::from_str::<ServerConfig>("[]").is_err());
    }

    #[test]
    fn masks_are_base64_of_their_bytes() {
        for (ip, mask, want) in [
            ("10.0.0.0", "//AAAA==", "10.0.0.0/12"),
            ("10.42.0.0", "//8AAA==", "10.42.0.0/16"),
            ("10.42.1.0", "////AA==", "10.42.1.0/24"),
            ("fd00:42::", "/////////wAAAAAAAAAAAA==", "fd00:42::/56"),
            ("fd00:43::", "//////////////////AAAA==", "fd00:43::/108"),
            ("fd00:43::", "//////////////////8AAA==", "fd00:43::/112"),
        ] {
            let net = go_net(&json!({"IP": ip, "Mask": mask})).unwrap().unwrap();
            assert_eq!(net.to_string(), want);
            assert_eq!(to_go_net(&net)["Mask"], mask);
        }
        assert!(go_net(&json!({"IP": "10.0.0.0", "Mask": "//8="})).is_none());
        assert!(go_net(&json!({"IP": "10.0.0.0", "Mask": "AP8AAA=="})).is_none());
    }

    #[test]
    fn a_configuration_that_does_not_fit_says_what_to_change() {
        let good: ServerConfig = serde_json::from_slice(&Recording::load("config-ok").response_body()).unwrap();
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert!(good.check(&[v6]).unwrap_err().contains("--node-ip"));
        good.check(&[v6, v4]).unwrap();
        let old = ServerConfig { service_node_port_range: None, ..good.clone() };
        assert!(old.check(&[v4]).unwrap_err().contains("too old"));
        ServerConfig { disable_npc: true, ..old }.check(&[v4]).unwrap();
        let mixed = ServerConfig { service_ip_ranges: vec!["fd00:43::/112".parse().unwrap()], ..good };
        assert!(mixed.check(&[v4]).unwrap_err().contains("--service-cidr"));
    }
}
