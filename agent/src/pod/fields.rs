//! Values a pod may ask about itself: `fieldRef` and `resourceFieldRef`, for environment and downward API files. Pure.

use std::collections::BTreeMap;

use super::NodeFacts;
use crate::api::pod::{Container, FieldSelector, Pod, ResourceFieldSelector};
use crate::api::quantity::Quantity;

/// Addresses a fieldRef may ask for; a pod's own are known only once its sandbox runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Addresses<'a> {
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
}

/// The text of a field; an error names what is wrong, in the kubelet's words.
pub fn field(pod: &Pod, selector: &FieldSelector, addresses: Addresses<'_>) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let meta = &pod.metadata;
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => first(addresses.host_ips),
        "status.hostIPs" => addresses.host_ips.join(","),
        "status.podIP" => first(addresses.pod_ips),
        "status.podIPs" => addresses.pod_ips.join(","),
        _ => {
            if let Some(key) = subscript(path, "metadata.labels") {
                meta.labels.get(key).cloned().unwrap_or_default()
            } else if let Some(key) = subscript(path, "metadata.annotations") {
                meta.annotations.get(key).cloned().unwrap_or_default()
            } else {
                return Err(format!("unsupported fieldPath: {path}"));
            }
        }
    })
}

/// `k` of `prefix['k']`.
fn subscript<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")
}

/// Sorted `key="escaped value"` lines.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

/// Go's `%q`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The amount of a resource of `container`, in units of the divisor, rounded up. Limits that are not set default to
/// what the node allows.
pub fn resource(container: &Container, selector: &ResourceFieldSelector, node: &NodeFacts) -> Result<String, String> {
    let (list, name) = selector.resource.split_once('.').unwrap_or(("", ""));
    let amount = match list {
        "limits" => container
            .resources
            .limits
            .get(name)
            .filter(|q| !q.is_zero())
            .or_else(|| matches!(name, "cpu" | "memory" | "ephemeral-storage").then(|| node.allocatable.get(name)).flatten()),
        "requests" => container.resources.requests.get(name),
        _ => {
            return Err(format!("unsupported container resource: {}", selector.resource));
        }
    };
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known {
        return Err(format!("unsupported container resource: {}", selector.resource));
    }
    let divisor = selector.divisor.as_ref().map(Quantity::nano).filter(|n| *n > 0).unwrap_or(1_000_000_000);
    let nano = amount.map_or(0, Quantity::nano);
    Ok(((nano + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::pod::ResourceList;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y\n"}, "annotations": {"k/é": "v"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [{"name": "c", "resources": {"limits": {"cpu": "250m"}, "requests": {"memory": "20Mi"}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let (pods, hosts) = (["10.42.0.9".to_owned(), "fd00::9".to_owned()], ["10.99.0.11".to_owned()]);
        let addresses = Addresses { pod_ips: &pods, host_ips: &hosts };
        let table = [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"x\\\"y\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['k/é']", "v"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "10.42.0.9"),
            ("status.podIPs", "10.42.0.9,fd00::9"),
            ("status.hostIP", "10.99.0.11"),
        ];
        for (path, wanted) in table {
            let selector = FieldSelector { field_path: path.to_owned(), ..Default::default() };
            assert_eq!(field(&pod(), &selector, addresses).as_deref(), Ok(wanted), "{path}");
        }
        let wrong = FieldSelector { field_path: "spec.priority".to_owned(), ..Default::default() };
        assert!(field(&pod(), &wrong, addresses).is_err());
    }

    #[test]
    fn resources_round_up_and_default_to_the_node() {
        let node = NodeFacts {
            allocatable: ResourceList::from([("cpu".to_owned(), "2".into()), ("memory".to_owned(), "1Gi".into())]),
            ..Default::default()
        };
        let table = [
            ("limits.cpu", "", "1"),
            ("limits.cpu", "1m", "250"),
            ("limits.memory", "1Mi", "1024"),
            ("requests.memory", "1Mi", "20"),
            ("requests.memory", "", "20971520"),
            ("requests.cpu", "", "0"),
        ];
        for (name, divisor, wanted) in table {
            let selector = ResourceFieldSelector {
                resource: name.to_owned(),
                divisor: (!divisor.is_empty()).then(|| divisor.into()),
                ..Default::default()
            };
            assert_eq!(resource(&pod().spec.containers[0], &selector, &node).as_deref(), Ok(wanted), "{name}/{divisor}");
        }
    }
}
