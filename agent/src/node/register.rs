//! Pure: what the Node object is created with, and what an existing one is corrected to (k3s-agent.md 7, kubelet-contract.md 1).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::machine::ARCHITECTURE;
use crate::api::node::{Node, NodeCondition};
use crate::config::Config;

/// Everything registration depends on.
pub struct Identity<'a> {
    pub config: &'a Config,
    pub node_ips: &'a [IpAddr],
    /// The server's cloud controller is off.
    pub disable_ccm: bool,
    /// Further annotations, of the network backend.
    pub network: &'a BTreeMap<String, String>,
}

/// Taint a cloud controller takes away once it has set addresses and provider.
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// Labels the kubelet sets, then `node-label`.
pub fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", ARCHITECTURE),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", ARCHITECTURE),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    labels.extend(config.node_labels.clone());
    labels
}

/// Annotations to set; None removes.
pub fn annotations(identity: &Identity<'_>) -> BTreeMap<String, Option<String>> {
    let config = identity.config;
    let mut all: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut set = |key: &str, value: Option<String>| {
        all.insert(key.to_owned(), value);
    };
    let listed = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
    set("volumes.kubernetes.io/controller-managed-attach-detach", Some("true".to_owned()));
    let ips = (!identity.node_ips.is_empty()).then(|| join(identity.node_ips));
    if identity.disable_ccm {
        for key in ["k3s.io/internal-ip", "k3s.io/hostname", "k3s.io/external-ip", "k3s.io/internal-dns", "k3s.io/external-dns"] {
            set(key, None);
        }
    } else {
        // Must agree with internal-ip, or the cloud controller never initialises the node.
        set("alpha.kubernetes.io/provided-node-ip", ips.clone());
        set("k3s.io/internal-ip", ips);
        let host = &config.hostname;
        set("k3s.io/hostname", Some(if host.is_empty() || host.contains("localhost") { config.node_name.clone() } else { host.clone() }));
        let external = &config.node_external_ips;
        set("k3s.io/external-ip", (!external.is_empty()).then(|| join(external)));
        set("k3s.io/internal-dns", listed(&config.node_internal_dns));
        set("k3s.io/external-dns", listed(&config.node_external_dns));
    }
    let args = json!(config.public_args).to_string();
    let env = json!(config.public_env).to_string();
    set("k3s.io/node-config-hash", Some(config_hash(&args, &env)));
    set("k3s.io/node-args", Some(args));
    set("k3s.io/node-env", Some(env));
    for (key, value) in identity.network {
        set(key, Some(value.clone()));
    }
    all
}

/// base32 (RFC 4648, padded) of SHA-256 over the two annotation values.
fn config_hash(args: &str, env: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{args}{env}").as_bytes());
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::new();
    for chunk in digest.as_ref().chunks(5) {
        let mut group = [0u8; 8];
        group[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(group);
        let letters = (chunk.len() * 8).div_ceil(5);
        for at in 0..8 {
            let letter = ALPHABET[(bits >> (35 - 5 * at) & 31) as usize];
            text.push(if at < letters { char::from(letter) } else { '=' });
        }
    }
    text
}

/// `status.addresses` as the kubelet sets them while nobody else has.
pub fn addresses(identity: &Identity<'_>) -> Value {
    let mut all: Vec<Value> = identity.node_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    all.push(json!({"type": "Hostname", "address": identity.config.node_name}));
    Value::Array(all)
}

/// The object to POST; its status is kept by the server, so a ready node is Ready at once.
pub fn new_node(identity: &Identity<'_>, mut status: Map<String, Value>, conditions: &[NodeCondition]) -> Value {
    let config = identity.config;
    let mut taints: Vec<Value> = config.node_taints.iter().map(|t| json!({"key": t.key, "value": t.value, "effect": t.effect})).collect();
    if !identity.disable_ccm {
        taints.push(json!({"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}));
    }
    status.insert("conditions".to_owned(), json!(conditions));
    status.insert("addresses".to_owned(), addresses(identity));
    let annotations: BTreeMap<String, String> = annotations(identity).into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": config.node_name, "labels": labels(config), "annotations": annotations},
        "spec": {"taints": taints},
        "status": status,
    })
}

/// What an existing Node's metadata needs (strategic merge); None when it is right. Labels and annotations of others stay.
pub fn correction(identity: &Identity<'_>, node: &Node) -> Option<Value> {
    let labels: BTreeMap<_, _> =
        labels(identity.config).into_iter().filter(|(key, value)| node.metadata.labels.get(key) != Some(value)).collect();
    let mut annotations: BTreeMap<String, Option<String>> = annotations(identity);
    let hash = "k3s.io/node-config-hash";
    let same_hash = annotations.get(hash).is_some_and(|hash_now| hash_now.as_ref() == node.metadata.annotations.get(hash));
    annotations.retain(|key, value| {
        let informative = matches!(key.as_str(), "k3s.io/node-args" | "k3s.io/node-env");
        node.metadata.annotations.get(key) != value.as_ref() && !(informative && same_hash)
    });
    if labels.is_empty() && annotations.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn identity<'a>(config: &'a Config, ips: &'a [IpAddr], network: &'a BTreeMap<String, String>) -> Identity<'a> {
        Identity { config, node_ips: ips, disable_ccm: false, network }
    }

    #[test]
    fn the_hash_is_k3s_own() {
        assert_eq!(config_hash(r#"["agent"]"#, "{}"), "VAWHMSYNSNUR43ZLPF5HNYNNZAVNFT4N6LI6244Z75TE72KHCAKA====");
    }

    #[test]
    fn a_new_node_carries_what_k3s_and_the_kubelet_would_set() {
        let mut config = Config::below(Path::new("/x"), "wire1");
        config.node_labels.insert("a".to_owned(), "b".to_owned());
        config.node_taints.push(crate::config::Taint { key: "k".to_owned(), value: "v".to_owned(), effect: "NoExecute".to_owned() });
        let ips = ["10.99.0.41".parse().unwrap()];
        let node = new_node(&identity(&config, &ips, &BTreeMap::new()), Map::new(), &[]);
        let annotations = &node["metadata"]["annotations"];
        assert_eq!(annotations["k3s.io/internal-ip"], "10.99.0.41");
        assert_eq!(annotations["alpha.kubernetes.io/provided-node-ip"], "10.99.0.41");
        assert_eq!(annotations["k3s.io/hostname"], "wire1");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "wire1");
        assert_eq!(node["metadata"]["labels"]["a"], "b");
        assert_eq!(node["spec"]["taints"][1], json!({"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}));
        assert_eq!(
            node["status"]["addresses"],
            json!([{"type": "InternalIP", "address": "10.99.0.41"}, {"type": "Hostname", "address": "wire1"}])
        );
    }

    #[test]
    fn an_existing_node_is_corrected_only_where_it_is_wrong() {
        let config = Config::below(Path::new("/x"), "n");
        let ips = ["10.0.0.1".parse().unwrap()];
        let network = BTreeMap::new();
        let identity = identity(&config, &ips, &network);
        let mut node: Node = serde_json::from_value(new_node(&identity, Map::new(), &[])).unwrap();
        node.metadata.annotations.insert("other".to_owned(), "stays".to_owned());
        assert_eq!(correction(&identity, &node), None);
        node.metadata.labels.insert("kubernetes.io/arch".to_owned(), "z80".to_owned());
        node.metadata.annotations.insert("k3s.io/external-ip".to_owned(), "1.2.3.4".to_owned());
        let patch = correction(&identity, &node).unwrap();
        assert_eq!(patch["metadata"], json!({"labels": {"kubernetes.io/arch": ARCHITECTURE}, "annotations": {"k3s.io/external-ip": null}}));
    }
}
