//! What the server adds to every Node: its pod network, the time-to-live annotation, and, in place of K3s' cloud
//! controller, provider ID, type labels and addresses. Also ties the node's password to the Node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Context, Controller, object};
use crate::api::{ApiStatus, Kind, Selectors, Subresource, kind};
use crate::supervisor::node_password;

/// Taint of a node whose cloud provider has not looked at it.
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const TTL: &str = "node.alpha.kubernetes.io/ttl";
/// Prefix length of one node's pod network.
const NODE_PREFIX: u8 = 24;

/// The controller.
pub struct Nodes {
    /// Where it works.
    pub context: Context,
}

impl Controller for Nodes {
    const NAME: &'static str = "nodes";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 1] = [&kind::NODE];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = &self.context.registry;
        let (nodes, _) = registry.list(&kind::NODE, None, &Selectors::default());
        let mut used: Vec<Value> = nodes.iter().map(|node| node["spec"]["podCIDR"].clone()).collect();
        for node in &nodes {
            let cidr = if node["spec"]["podCIDR"].is_string() { None } else { free_cidr(&self.context, &used) };
            used.extend(cidr.iter().map(|cidr| json!(cidr)));
            self.node(node, cidr).await?;
        }
        Ok(None)
    }
}

impl Nodes {
    async fn node(&self, node: &Value, cidr: Option<String>) -> Result<(), ApiStatus> {
        let (registry, actor, name) = (&self.context.registry, &self.context.actor, object::name(node));
        let cloud = match cloud(node) {
            Cloud::Nothing => None,
            Cloud::Wait => None,
            Cloud::Refuse(why) => {
                warn!(node = name, reason = why, "node cannot be initialised");
                None
            }
            Cloud::Set(set) => Some(set),
        };
        // Addresses before the taint: once it is gone pods come, and their logs need the address.
        if let Some(set) = cloud.as_ref().filter(|set| node["status"]["addresses"] != set.addresses) {
            let change = |node: &mut Value| {
                node["status"]["addresses"] = set.addresses.clone();
                true
            };
            registry.modify(&kind::NODE, None, name, Subresource::Status, actor, change).await?;
        }
        let mut initialised = false;
        let change = |node: &mut Value| {
            let before = node.clone();
            if let Some(cidr) = cidr.as_ref().filter(|_| !node["spec"]["podCIDR"].is_string()) {
                node["spec"]["podCIDR"] = json!(cidr);
                node["spec"]["podCIDRs"] = json!([cidr]);
            }
            if !node["metadata"]["annotations"][TTL].is_string() {
                node["metadata"]["annotations"][TTL] = json!("0");
            }
            if cloud.as_ref().is_some_and(|set| set.initialise) {
                initialised = initialise(node);
            }
            *node != before
        };
        // Asking first on a copy spares a write for each of the many changes of a Node that need nothing.
        let mut probe = node.clone();
        let mut change = change;
        if change(&mut probe) {
            registry.modify(&kind::NODE, None, name, Subresource::Main, actor, change).await?;
        }
        if initialised {
            info!(node = name, "node initialised");
            self.context.events.named("cloud-node-controller").normal(node, "Synced", "Node synced successfully");
        }
        self.own_password(node).await
    }

    async fn own_password(&self, node: &Value) -> Result<(), ApiStatus> {
        let (registry, name) = (&self.context.registry, node_password::secret_name(object::name(node)));
        let owner = node_password::owner(node);
        let owned = |secret: &Value| secret["metadata"]["ownerReferences"] == json!([owner]);
        let secret: Option<Arc<Value>> = registry.get(&kind::SECRET, Some("kube-system"), &name).ok();
        if secret.is_none_or(|secret| owned(&secret)) {
            return Ok(());
        }
        let change = |secret: &mut Value| {
            secret["metadata"]["ownerReferences"] = json!([owner]);
            true
        };
        let modified = registry.modify(&kind::SECRET, Some("kube-system"), &name, Subresource::Main, &self.context.actor, change).await;
        match modified {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The lowest /24 of the pod network that no node has.
fn free_cidr(context: &Context, used: &[Value]) -> Option<String> {
    let free =
        context.cluster.pods.subnets(NODE_PREFIX).ok()?.map(|net| net.to_string()).find(|net| !used.iter().any(|other| other == net));
    if free.is_none() {
        warn!(network = %context.cluster.pods, "no pod network left for another node");
    }
    free
}

/// What the cloud controller's job comes to for one node.
#[derive(Debug, PartialEq)]
enum Cloud {
    /// A node that does not take part.
    Nothing,
    /// The agent has not written its addresses yet.
    Wait,
    /// The annotations contradict each other.
    Refuse(&'static str),
    Set(CloudSet),
}

#[derive(Debug, PartialEq)]
struct CloudSet {
    /// InternalIPs, ExternalIPs, InternalDNS, ExternalDNS, Hostname, in this order.
    addresses: Value,
    /// The node has the uninitialized taint.
    initialise: bool,
}

fn cloud(node: &Value) -> Cloud {
    let initialise = taints(node).any(|taint| taint["key"] == UNINITIALIZED);
    let annotation = |key: &str| {
        let metadata = &node["metadata"];
        // Old agents wrote labels of the same names.
        [&metadata["annotations"][key], &metadata["labels"][key]]
            .into_iter()
            .find_map(|value| value.as_str().filter(|text| !text.is_empty()))
    };
    let Some(internal) = annotation("k3s.io/internal-ip") else {
        return if initialise { Cloud::Wait } else { Cloud::Nothing };
    };
    let mut addresses = Vec::new();
    let mut push = |kind: &str, values: Option<&str>| {
        for value in values.unwrap_or_default().split(',').filter(|value| !value.is_empty()) {
            addresses.push(json!({ "type": kind, "address": value }));
        }
    };
    push("InternalIP", Some(internal));
    push("ExternalIP", annotation("k3s.io/external-ip"));
    push("InternalDNS", annotation("k3s.io/internal-dns"));
    push("ExternalDNS", annotation("k3s.io/external-dns"));
    push("Hostname", annotation("k3s.io/hostname"));
    if let Some(provided) = node["metadata"]["annotations"]["alpha.kubernetes.io/provided-node-ip"].as_str() {
        let known = |ip: &str| addresses.iter().any(|address| address["address"] == *ip);
        if !provided.split(',').filter(|ip| is_specified(ip)).all(known) {
            return Cloud::Refuse("failed to get node address from cloud provider that matches ip");
        }
    }
    Cloud::Set(CloudSet { addresses: Value::Array(addresses), initialise })
}

/// `0.0.0.0` and `::` stand for "any of this family".
fn is_specified(ip: &str) -> bool {
    !ip.is_empty() && !matches!(ip.parse::<IpAddr>(), Ok(ip) if ip.is_unspecified()) && ip != Ipv4Addr::UNSPECIFIED.to_string()
}

fn taints(node: &Value) -> impl Iterator<Item = &Value> {
    node["spec"]["taints"].as_array().into_iter().flatten()
}

/// Sets provider ID and type labels and removes the taint. Returns whether there was one.
fn initialise(node: &mut Value) -> bool {
    if !node["spec"]["providerID"].is_string() {
        node["spec"]["providerID"] = json!(format!("k3s://{}", object::name(node)));
    }
    for label in ["node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"] {
        if !node["metadata"]["labels"][label].is_string() {
            node["metadata"]["labels"][label] = json!("k3s");
        }
    }
    let Some(taints) = node["spec"]["taints"].as_array_mut() else {
        return false;
    };
    let before = taints.len();
    taints.retain(|taint| taint["key"] != UNINITIALIZED);
    let removed = taints.len() != before;
    if taints.is_empty() {
        if let Some(spec) = node["spec"].as_object_mut() {
            spec.remove("taints");
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(annotations: Value, tainted: bool) -> Value {
        let taints = if tainted { json!([{ "key": UNINITIALIZED, "effect": "NoSchedule" }]) } else { json!(null) };
        json!({ "metadata": { "name": "wire1", "annotations": annotations }, "spec": { "taints": taints } })
    }

    #[test]
    fn cloud_controller_waits_for_the_address_annotation() {
        assert_eq!(cloud(&node(json!({}), true)), Cloud::Wait);
        assert_eq!(cloud(&node(json!({}), false)), Cloud::Nothing);
        let mismatch = json!({ "k3s.io/internal-ip": "10.99.0.41", "alpha.kubernetes.io/provided-node-ip": "10.99.0.42" });
        assert!(matches!(cloud(&node(mismatch, true)), Cloud::Refuse(_)));
    }

    #[test]
    fn initialised_node_looks_like_the_recorded_one() {
        let annotations = json!({
            "alpha.kubernetes.io/provided-node-ip": "10.99.0.41", "k3s.io/hostname": "wire1", "k3s.io/internal-ip": "10.99.0.41",
        });
        let mut node = node(annotations, true);
        let Cloud::Set(set) = cloud(&node) else { panic!("not ready") };
        assert_eq!(set.addresses, json!([{ "type": "InternalIP", "address": "10.99.0.41" }, { "type": "Hostname", "address": "wire1" }]));
        assert!(set.initialise);
        assert!(initialise(&mut node));
        assert_eq!(node["spec"]["providerID"], "k3s://wire1");
        assert_eq!(node["metadata"]["labels"]["node.kubernetes.io/instance-type"], "k3s");
        assert!(node["spec"].get("taints").is_none());
    }
}
