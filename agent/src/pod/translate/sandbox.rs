//! PodSandboxConfig.

use std::collections::BTreeMap;

use runtime::cri;
use runtime::labels;

use super::security;
use crate::api::pod::Pod;
use crate::pod::NodeFacts;

/// What a sandbox needs beside the spec.
pub struct SandboxInputs<'a> {
    pub attempt: u32,
    /// Empty on the host's network.
    pub hostname: String,
    pub log_directory: String,
    pub dns: cri::DnsConfig,
    pub cgroup_parent: String,
    pub node: &'a NodeFacts,
    pub cgroup_v2: bool,
}

/// The configuration RunPodSandbox gets, and every CreateContainer in it.
pub fn sandbox_config(pod: &Pod, inputs: SandboxInputs<'_>) -> cri::PodSandboxConfig {
    let meta = &pod.metadata;
    let mut labels_ = meta.labels.clone();
    labels_.insert(labels::POD_NAME.to_owned(), meta.name.clone());
    labels_.insert(labels::POD_NAMESPACE.to_owned(), meta.namespace.clone());
    labels_.insert(labels::POD_UID.to_owned(), meta.uid.clone());
    let mut annotations = meta.annotations.clone();
    annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            namespace: meta.namespace.clone(),
            attempt: inputs.attempt,
        }),
        hostname: if pod.spec.host_network { String::new() } else { inputs.hostname },
        log_directory: inputs.log_directory,
        dns_config: Some(inputs.dns),
        port_mappings: port_mappings(pod),
        labels: labels_,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: inputs.cgroup_parent,
            security_context: Some(security::sandbox(pod)),
            sysctls: sysctls(pod),
            overhead: None,
            resources: Some(resources(pod, inputs.node, inputs.cgroup_v2)),
        }),
    }
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod.spec.security_context.iter();
    context.flat_map(|c| &c.sysctls).map(|s| (s.name.replace('/', "."), s.value.clone())).collect()
}

/// Sum over the containers, for runtimes that size the sandbox.
fn resources(pod: &Pod, node: &NodeFacts, cgroup_v2: bool) -> cri::LinuxContainerResources {
    let mut sum = cri::LinuxContainerResources { cpu_period: 100_000, ..Default::default() };
    for container in &pod.spec.containers {
        let one = crate::pod::resources::container_resources(pod, container, node, cgroup_v2);
        sum.cpu_shares += one.cpu_shares;
        sum.cpu_quota += one.cpu_quota;
        sum.memory_limit_in_bytes += one.memory_limit_in_bytes;
    }
    sum
}

/// Ports of regular containers; the same host port twice is asked for once.
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let mut mappings: Vec<cri::PortMapping> = Vec::new();
    for port in pod.spec.containers.iter().flat_map(|c| &c.ports) {
        let protocol = match port.protocol.as_str() {
            "UDP" => cri::Protocol::Udp,
            "SCTP" => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        };
        let mapping = cri::PortMapping {
            protocol: protocol.into(),
            container_port: i32::from(port.container_port),
            host_port: i32::from(port.host_port),
            host_ip: port.host_ip.clone(),
        };
        if !mappings.contains(&mapping) {
            mappings.push(mapping);
        }
    }
    mappings
}
