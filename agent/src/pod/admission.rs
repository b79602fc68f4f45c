//! Whether this node takes a pod: once, before anything of it exists (kubelet-contract 2.3). Pure.

use serde_json::Value;

use super::{NodeFacts, resources, unsupported};
use crate::api::pod::{Pod, Toleration};
use crate::api::quantity::Quantity;
use crate::config::Taint;

/// Why a pod is refused: the status gets the reason and "Pod was rejected: " with the message, the event both as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

/// Sysctls any pod may set.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Ok, or the first reason against it. `others` are the pods on this node that still count: admitted and not terminal.
pub fn admit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod>,
    node: &NodeFacts,
    max_pods: u64,
    unsafe_sysctls: &[String],
) -> Result<(), Rejection> {
    sysctls(pod, unsafe_sysctls)?;
    let missing = unsupported::fields(pod);
    if !missing.is_empty() {
        return reject(super::reasons::UNSUPPORTED_POD_SPEC, format!("this agent does not implement {}", missing.join(", ")));
    }
    let others: Vec<&Pod> = others.collect();
    fits(pod, &others, node, max_pods)?;
    if !matches_node(pod, node) {
        return reject("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
    }
    if host_port_taken(pod, &others) {
        return reject("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports");
    }
    if let Some(taint) = node.taints.iter().find(|t| t.effect == "NoExecute" && !pod.spec.tolerations.iter().any(|have| tolerates(have, t)))
    {
        return reject(
            "TaintToleration",
            format!("Predicate TaintToleration failed: node(s) had untolerated taint(s) {{{}: {}}}", taint.key, taint.value),
        );
    }
    Ok(())
}

/// On a node that takes no pods without requests: `why` it does not. Critical pods run, as on a kubelet under pressure.
pub fn best_effort(pod: &Pod, why: &str) -> Result<(), Rejection> {
    let critical = matches!(pod.spec.priority_class_name.as_str(), "system-node-critical" | "system-cluster-critical");
    if critical || resources::qos(pod) != cgroup::QosClass::BestEffort {
        return Ok(());
    }
    reject(
        "BestEffortRefused",
        format!(
            "this node takes no pods without requests, as {why}: give a container a memory request, or set allow-unprotected: true on the node"
        ),
    )
}

fn reject(reason: &str, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection { reason: reason.to_owned(), message: message.into() })
}

fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Rejection> {
    let Some(context) = &pod.spec.security_context else {
        return Ok(());
    };
    for sysctl in &context.sysctls {
        let name = sysctl.name.replace('/', ".");
        let may = SAFE_SYSCTLS.contains(&name.as_str())
            || allowed.iter().any(|a| match a.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *a == name,
            });
        if !may {
            return reject("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowlisted"));
        }
        if pod.spec.host_network && name.starts_with("net.") {
            return reject("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowed with host net enabled"));
        }
        let ipc =
            name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name == "kernel.sem" || name.starts_with("fs.mqueue.");
        if pod.spec.host_ipc && ipc {
            return reject("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowed with host ipc enabled"));
        }
    }
    Ok(())
}

fn fits(pod: &Pod, others: &[&Pod], node: &NodeFacts, max_pods: u64) -> Result<(), Rejection> {
    let used_pods = others.len() as u64;
    if used_pods + 1 > max_pods {
        return short("pods", 1, used_pods, max_pods);
    }
    let requests = resources::pod_requests(pod);
    for (name, wanted) in &requests {
        // Resources this node does not know are the cluster's business.
        let Some(capacity) = node.allocatable.get(name) else {
            continue;
        };
        let count = |q: &Quantity| u64::try_from(if name == "cpu" { q.milli() } else { q.value() }).unwrap_or(0);
        let used: u64 = others.iter().filter_map(|p| resources::pod_requests(p).get(name).map(count)).sum();
        if wanted.is_zero() || used + count(wanted) <= count(capacity) {
            continue;
        }
        return short(name, count(wanted), used, count(capacity));
    }
    Ok(())
}

fn short(name: &str, requested: u64, used: u64, capacity: u64) -> Result<(), Rejection> {
    reject(
        &format!("OutOf{name}"),
        format!("Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"),
    )
}

fn matches_node(pod: &Pod, node: &NodeFacts) -> bool {
    if !pod.spec.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)) {
        return false;
    }
    let required = pod
        .spec
        .affinity
        .as_ref()
        .and_then(|a| a.pointer("/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms"))
        .and_then(Value::as_array);
    required.is_none_or(|terms| terms.iter().any(|term| term_matches(term, pod, node)))
}

/// One term: all of its expressions and fields. An empty term matches nothing.
fn term_matches(term: &Value, pod: &Pod, node: &NodeFacts) -> bool {
    let list = |name: &str| term.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(pod.spec.node_name.as_str());
    expressions.iter().all(|e| requirement(e, label)) && fields.iter().all(|f| requirement(f, field))
}

fn requirement<'a>(requirement: &Value, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
    let text = |name: &str| requirement.get(name).and_then(Value::as_str).unwrap_or_default();
    let values: Vec<&str> =
        requirement.get("values").and_then(Value::as_array).map(|v| v.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    let have = lookup(text("key"));
    let compare = |greater: bool| {
        let number = |t: &str| t.parse::<i64>().ok();
        match (have.and_then(number), values.first().and_then(|v| number(v))) {
            (Some(have), Some(limit)) => (have > limit) == greater && have != limit,
            _ => false,
        }
    };
    match text("operator") {
        "In" => have.is_some_and(|h| values.contains(&h)),
        "NotIn" => have.is_none_or(|h| !values.contains(&h)),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

fn host_port_taken(pod: &Pod, others: &[&Pod]) -> bool {
    let wanted = host_ports(pod);
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    others
        .iter()
        .flat_map(|p| host_ports(p))
        .any(|(ip, port, protocol)| wanted.iter().any(|w| w.1 == port && w.2 == protocol && (any(&w.0) || any(&ip) || w.0 == ip)))
}

fn host_ports(pod: &Pod) -> Vec<(String, u16, String)> {
    let ports = pod.spec.containers.iter().flat_map(|c| &c.ports).filter(|p| p.host_port > 0);
    ports.map(|p| (p.host_ip.clone(), p.host_port, if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() })).collect()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    match toleration.operator.as_str() {
        "Exists" => toleration.key.is_empty() || toleration.key == taint.key,
        _ => toleration.key == taint.key && toleration.value == taint.value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn node() -> NodeFacts {
        NodeFacts {
            labels: BTreeMap::from([("disk".to_owned(), "sd".to_owned()), ("cores".to_owned(), "4".to_owned())]),
            taints: vec![Taint { key: "gone".to_owned(), value: String::new(), effect: "NoSchedule".to_owned() }],
            allocatable: BTreeMap::from([("cpu".to_owned(), "2".into()), ("memory".to_owned(), "1Gi".into())]),
            ..Default::default()
        }
    }

    fn check(spec: Value, wanted: Result<(), (&str, &str)>) {
        let running =
            pod(json!({"containers": [{"resources": {"requests": {"cpu": "150m"}}, "ports": [{"containerPort": 1, "hostPort": 80}]}]}));
        let got = admit(&pod(spec.clone()), [&running].into_iter(), &node(), 110, &["kernel.msg*".to_owned()]);
        let got = got.as_ref().map(|_| ()).map_err(|r| (r.reason.as_str(), r.message.as_str()));
        assert_eq!(got, wanted, "{spec}");
    }

    #[test]
    fn a_node_says_no_as_a_kubelet_does() {
        // The first two texts are those of the recordings out-of-cpu and node-affinity-refused.
        check(
            json!({"containers": [{"resources": {"requests": {"cpu": "64"}}}]}),
            Err(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 64000, used: 150, capacity: 2000")),
        );
        let affinity = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        check(json!({"nodeSelector": {"no": "such"}}), Err(("NodeAffinity", affinity)));
        let term = |e: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [e]}]}}}});
        check(term(json!({"key": "disk", "operator": "In", "values": ["sd", "ssd"]})), Ok(()));
        check(term(json!({"key": "disk", "operator": "NotIn", "values": ["sd"]})), Err(("NodeAffinity", affinity)));
        check(term(json!({"key": "cores", "operator": "Gt", "values": ["3"]})), Ok(()));
        check(term(json!({"key": "cores", "operator": "Lt", "values": ["4"]})), Err(("NodeAffinity", affinity)));
        check(term(json!({"key": "gpu", "operator": "Exists"})), Err(("NodeAffinity", affinity)));
        check(
            json!({"containers": [{"ports": [{"containerPort": 8, "hostPort": 80}]}]}),
            Err(("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")),
        );
        check(json!({"containers": [{"ports": [{"containerPort": 8, "hostPort": 80, "protocol": "UDP"}]}]}), Ok(()));
        check(
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}, {"name": "net/ipv4/tcp_syncookies", "value": "1"}]}}),
            Ok(()),
        );
        check(
            json!({"securityContext": {"sysctls": [{"name": "vm.swappiness", "value": "1"}]}}),
            Err(("SysctlForbidden", "forbidden sysctl: \"vm.swappiness\" not allowlisted")),
        );
        check(
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
            Err(("UnsupportedPodSpec", "this agent does not implement spec.volumes[0].persistentVolumeClaim")),
        );
        check(json!({"containers": [{"resources": {"requests": {"cpu": "1850m", "example.com/gpu": "1"}}}]}), Ok(()));
    }

    #[test]
    fn an_unprotected_node_takes_only_pods_that_say_what_they_need() {
        let ask = |spec: Value| best_effort(&pod(spec), "only 90 MiB of memory are left for all pods").map_err(|r| (r.reason, r.message));
        let message = "this node takes no pods without requests, as only 90 MiB of memory are left for all pods: give a container a memory \
                       request, or set allow-unprotected: true on the node";
        assert_eq!(ask(json!({"containers": [{}]})), Err(("BestEffortRefused".to_owned(), message.to_owned())));
        assert_eq!(ask(json!({"containers": [{"resources": {"requests": {"memory": "1Mi"}}}]})), Ok(()));
        assert_eq!(ask(json!({"priorityClassName": "system-node-critical", "containers": [{}]})), Ok(()));
    }

    #[test]
    fn the_last_place_is_counted() {
        let running = pod(json!({}));
        let got = admit(&pod(json!({})), [&running].into_iter(), &node(), 1, &[]);
        assert_eq!(got.unwrap_err().message, "Node didn't have enough resource: pods, requested: 1, used: 1, capacity: 1");
    }

    #[test]
    fn only_what_is_tolerated_enters_a_node_that_evicts() {
        let mut node = node();
        node.taints.push(Taint { key: "down".to_owned(), value: String::new(), effect: "NoExecute".to_owned() });
        let none = std::iter::empty::<&Pod>;
        assert_eq!(admit(&pod(json!({})), none(), &node, 110, &[]).unwrap_err().reason, "TaintToleration");
        assert_eq!(admit(&pod(json!({"tolerations": [{"operator": "Exists"}]})), none(), &node, 110, &[]), Ok(()));
    }
}
