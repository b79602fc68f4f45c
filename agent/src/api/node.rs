//! Slim Node: what an agent reads back of its own object and of its peers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meta::{Object, ObjectMeta};

/// v1 Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    pub metadata: ObjectMeta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    pub taints: Vec<NodeTaint>,
    pub unschedulable: bool,
}

/// One taint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTaint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
}

/// The part of `status` that is looked at again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    pub addresses: Vec<NodeAddress>,
    pub conditions: Vec<NodeCondition>,
    pub node_info: NodeInfo,
}

/// One address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

/// One condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub last_heartbeat_time: Option<String>,
    pub last_transition_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The part of `nodeInfo` that is looked at again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    #[serde(rename = "bootID")]
    pub boot_id: String,
}

impl Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Node {
    /// `podCIDRs`, or the single `podCIDR` of old servers; entries that are no networks are left out.
    pub fn pod_networks(&self) -> Vec<ipnet::IpNet> {
        let listed: Vec<_> = self.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
        if listed.is_empty() { self.spec.pod_cidr.parse().into_iter().collect() } else { listed }
    }

    /// The first InternalIP of each family.
    pub fn internal_ips(&self) -> Vec<std::net::IpAddr> {
        let all = self.status.addresses.iter().filter(|a| a.kind == "InternalIP").filter_map(|a| a.address.parse().ok());
        let mut found: Vec<std::net::IpAddr> = Vec::new();
        for ip in all {
            let ip: std::net::IpAddr = ip;
            if !found.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
                found.push(ip);
            }
        }
        found
    }

    /// Labels as the environment sees them.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }
}
