//! Node selectors, node affinity, and which other pods a pod wants near or far.

use serde_json::{Map, Value};

use super::facts::{Node, PodFacts};
use crate::api::Selectors;

/// `spec.nodeSelector` and the required node affinity.
pub(super) fn node_matches(spec: &Value, node: &Node) -> bool {
    let selector = spec["nodeSelector"].as_object();
    if selector.is_some_and(|wanted| wanted.iter().any(|(key, value)| node.labels[key] != *value)) {
        return false;
    }
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array() {
        None => true,
        Some(terms) => terms.iter().any(|term| term_matches(term, node)),
    }
}

/// All expressions of one term; a term without any matches nothing.
fn term_matches(term: &Value, node: &Node) -> bool {
    let list = |key: &str| term[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    let label = |key: &str| node.labels[key].as_str();
    let field = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|expression| expression_matches(expression, label))
        && fields.iter().all(|expression| expression_matches(expression, field))
}

fn expression_matches<'a>(expression: &Value, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
    let value = value_of(expression["key"].as_str().unwrap_or_default());
    let values: Vec<&str> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |greater: bool| match (value.and_then(number), values.first().copied().and_then(number)) {
        (Some(has), Some(bound)) => {
            if greater {
                has > bound
            } else {
                has < bound
            }
        }
        _ => false,
    };
    match expression["operator"].as_str() {
        Some("In") => value.is_some_and(|value| values.contains(&value)),
        Some("NotIn") => value.is_none_or(|value| !values.contains(&value)),
        Some("Exists") => value.is_some(),
        Some("DoesNotExist") => value.is_none(),
        Some("Gt") => compare(true),
        Some("Lt") => compare(false),
        _ => false,
    }
}

/// Weight of the preferred node and pod affinity terms this node meets.
pub(super) fn preference(pod: &PodFacts, node: &Node, nodes: &[Node]) -> i64 {
    let preferred = |kind: &str| {
        pod.spec["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"].as_array().map(Vec::as_slice).unwrap_or_default()
    };
    let weight = |term: &Value| term["weight"].as_i64().unwrap_or(0);
    let mut sum = 0;
    for term in preferred("nodeAffinity").iter().filter(|term| term_matches(&term["preference"], node)) {
        sum += weight(term);
    }
    for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
        for term in preferred(kind) {
            if neighbours(pod, &term["podAffinityTerm"], node, nodes).next().is_some() {
                sum += sign * weight(term);
            }
        }
    }
    sum
}

/// Why the required pod (anti-)affinity or a hard spread constraint forbids this node, if it does.
pub(super) fn pods_match(pod: &PodFacts, node: &Node, nodes: &[Node]) -> Option<&'static str> {
    let required = |spec: &Value, kind: &str| {
        spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"].as_array().cloned().unwrap_or_default()
    };
    for term in required(&pod.spec, "podAffinity") {
        let anywhere = || nodes.iter().flat_map(|node| &node.pods).any(|other| selects(pod, &term, other));
        let near = neighbours(pod, &term, node, nodes).next().is_some();
        // The first pod of a group that wants to be together has no one to be near to.
        if !near && (anywhere() || !selects(pod, &term, pod)) {
            return Some("node(s) didn't match pod affinity rules");
        }
    }
    for term in required(&pod.spec, "podAntiAffinity") {
        if neighbours(pod, &term, node, nodes).next().is_some() {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
    }
    let unwelcome = nodes.iter().any(|other_node| {
        other_node.pods.iter().any(|other| {
            required(&other.spec, "podAntiAffinity").iter().any(|term| same_domain(term, node, other_node) && selects(other, term, pod))
        })
    });
    if unwelcome {
        return Some("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    let constraints = pod.spec["topologySpreadConstraints"].as_array().into_iter().flatten();
    for constraint in constraints.filter(|constraint| constraint["whenUnsatisfiable"] == "DoNotSchedule") {
        if !spreads(pod, constraint, node, nodes) {
            return Some("node(s) didn't match pod topology spread constraints");
        }
    }
    None
}

/// Pods that `term` of `pod` selects in the topology domain of `node`.
fn neighbours<'a>(pod: &'a PodFacts, term: &'a Value, node: &'a Node, nodes: &'a [Node]) -> impl Iterator<Item = &'a PodFacts> {
    nodes
        .iter()
        .filter(move |other| same_domain(term, node, other))
        .flat_map(|other| &other.pods)
        .filter(move |other| selects(pod, term, other))
}

fn same_domain(term: &Value, a: &Node, b: &Node) -> bool {
    let key = term["topologyKey"].as_str().unwrap_or_default();
    a.labels[key].is_string() && a.labels[key] == b.labels[key]
}

/// Whether `term`, a term of `pod`, selects `other`: by labels, in the pod's namespace unless the term names others.
fn selects(pod: &PodFacts, term: &Value, other: &PodFacts) -> bool {
    let named: Vec<&str> = term["namespaces"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let everywhere = term["namespaceSelector"].as_object().is_some_and(Map::is_empty);
    let namespace =
        if named.is_empty() { everywhere || other.namespace == pod.namespace } else { named.contains(&other.namespace.as_str()) };
    namespace && labels_match(&term["labelSelector"], other)
}

fn labels_match(selector: &Value, pod: &PodFacts) -> bool {
    let object = serde_json::json!({ "metadata": { "labels": pod.labels } });
    selector.is_object() && Selectors::from_label_selector(selector).matches(&object)
}

/// With the pod on `node`, its domain has at most `maxSkew` more matching pods than the emptiest domain.
fn spreads(pod: &PodFacts, constraint: &Value, node: &Node, nodes: &[Node]) -> bool {
    let count = |domain: &Node| {
        nodes
            .iter()
            .filter(|other| same_domain(constraint, domain, other))
            .flat_map(|other| &other.pods)
            .filter(|other| other.namespace == pod.namespace && labels_match(&constraint["labelSelector"], other))
            .count()
    };
    let key = constraint["topologyKey"].as_str().unwrap_or_default();
    if !node.labels[key].is_string() {
        return false;
    }
    let eligible = nodes.iter().filter(|node| node.labels[key].is_string() && node_matches(&pod.spec, node));
    let least = eligible.map(count).min().unwrap_or(0);
    let own = usize::from(labels_match(&constraint["labelSelector"], pod));
    let skew = usize::try_from(constraint["maxSkew"].as_u64().unwrap_or(1)).unwrap_or(usize::MAX);
    count(node) + own <= least.saturating_add(skew)
}
