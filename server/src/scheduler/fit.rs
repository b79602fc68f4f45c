//! Whether a pod can run on a node, and how much one would rather not have it there.

use serde_json::Value;

use super::affinity;
use super::facts::{Node, PodFacts};

/// `Ok`, or the reasons of the first rule that says no, worded and ordered as in the real scheduler.
pub(super) fn check(pod: &PodFacts, node: &Node, nodes: &[Node]) -> Result<(), Vec<String>> {
    let no = |reason: &str| Err(vec![reason.to_owned()]);
    let unschedulable = "node.kubernetes.io/unschedulable";
    let tolerates_cordon = || {
        let taint = serde_json::json!({ "key": unschedulable, "effect": "NoSchedule" });
        tolerated(&pod.spec, &taint)
    };
    if node.unschedulable && !tolerates_cordon() {
        return no("node(s) were unschedulable");
    }
    let blocking = |taint: &&Value| matches!(taint["effect"].as_str(), Some("NoSchedule" | "NoExecute")) && !tolerated(&pod.spec, taint);
    if let Some(taint) = node.taints.iter().find(blocking) {
        let (key, value) = (text(taint, "key"), text(taint, "value"));
        return no(&format!("node(s) had untolerated taint {{{key}: {value}}}"));
    }
    if !affinity::node_matches(&pod.spec, node) {
        return no("node(s) didn't match Pod's node affinity/selector");
    }
    if pod.host_ports.iter().any(|wanted| node.pods.iter().flat_map(|other| &other.host_ports).any(|used| collide(wanted, used))) {
        return no("node(s) didn't have free ports for the requested pod ports");
    }
    let short = shortages(pod, node);
    if !short.is_empty() {
        return Err(short);
    }
    match affinity::pods_match(pod, node, nodes) {
        Some(reason) => no(reason),
        None => Ok(()),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What is missing: pods first, then resources by name.
fn shortages(pod: &PodFacts, node: &Node) -> Vec<String> {
    let mut short = Vec::new();
    let pods = node.allocatable.get("pods").copied().unwrap_or(0);
    if i128::try_from(node.pods.len() + 1).unwrap_or(i128::MAX) * 1000 > pods {
        short.push("Too many pods".to_owned());
    }
    for (resource, wanted) in pod.requests.iter().filter(|(_, wanted)| **wanted > 0) {
        let has = node.allocatable.get(resource).copied().unwrap_or(0);
        let used = node.requested.get(resource).copied().unwrap_or(0);
        if used + wanted > has {
            short.push(format!("Insufficient {resource}"));
        }
    }
    short
}

fn collide(a: &(String, String, u64), b: &(String, String, u64)) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

/// Whether one of the pod's tolerations covers `taint`.
pub fn tolerated(spec: &Value, taint: &Value) -> bool {
    spec["tolerations"].as_array().into_iter().flatten().any(|toleration| covers(toleration, taint))
}

/// The rule for one toleration: an absent effect or key means any, and the operator is `Equal` unless said otherwise.
pub fn covers(toleration: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(toleration, "effect"), text(toleration, "key"));
    if !effect.is_empty() && effect != text(taint, "effect") {
        return false;
    }
    if !key.is_empty() && key != text(taint, "key") {
        return false;
    }
    match toleration["operator"].as_str() {
        Some("Exists") => true,
        _ => !key.is_empty() && text(toleration, "value") == text(taint, "value"),
    }
}

/// Less is better, compared from left to right: taints one would rather avoid, pods of the same owner already there,
/// preferences missed, and the share of the node already requested in thousandths.
pub(super) fn cost(pod: &PodFacts, node: &Node, nodes: &[Node]) -> (usize, usize, i64, i128) {
    let avoid = node.taints.iter().filter(|taint| taint["effect"] == "PreferNoSchedule" && !tolerated(&pod.spec, taint)).count();
    let siblings = match &pod.owner {
        Some(owner) => node.pods.iter().filter(|other| other.owner.as_ref() == Some(owner)).count(),
        None => 0,
    };
    (avoid, siblings, -affinity::preference(pod, node, nodes), fullness(pod, node))
}

fn fullness(pod: &PodFacts, node: &Node) -> i128 {
    let share = |resource: &str| {
        let has = node.allocatable.get(resource).copied().unwrap_or(0);
        let used = node.requested.get(resource).copied().unwrap_or(0) + pod.requests.get(resource).copied().unwrap_or(0);
        if has > 0 { used * 1000 / has } else { 1000 }
    };
    // Pods without requests still take room: their number breaks the tie.
    share("cpu") + share("memory") + i128::try_from(node.pods.len()).unwrap_or(i128::MAX)
}
