use super::*;

fn node(name: &str, cpu: &str, extra: Value) -> Node {
    let mut object = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": cpu, "memory": "1Gi", "pods": "3" } },
    });
    merge(&mut object, extra);
    Node::new(&object)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn pod(spec: Value) -> PodFacts {
    let mut object = json!({
        "metadata": { "name": "p", "namespace": "default", "labels": { "app": "web" },
            "ownerReferences": [{ "uid": "rs", "controller": true }] },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m", "memory": "10Mi" } } }] },
    });
    merge(&mut object["spec"], spec);
    PodFacts::new(&object)
}

#[test]
fn replicas_of_one_owner_alternate_between_nodes() {
    let mut nodes = vec![node("a", "4", json!({})), node("b", "4", json!({}))];
    let mut chosen = Vec::new();
    for _ in 0..4 {
        let index = choose(&pod(json!({})), &nodes).unwrap();
        nodes[index].add(pod(json!({})));
        chosen.push(nodes[index].name.clone());
    }
    assert_eq!(chosen, ["a", "b", "a", "b"]);
}

#[test]
fn refusals_are_worded_as_the_real_scheduler_words_them() {
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } });
    let cordoned = json!({ "spec": { "unschedulable": true,
        "taints": [{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }] } });
    let affinity = |operator: &str, values: Value| {
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": operator, "values": values }] }] } } } })
    };
    let anti = json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "web" } } }] } } });
    let port = json!({ "containers": [{ "name": "c", "ports": [{ "hostPort": 80, "containerPort": 80 }] }] });
    let busy = |spec: &Value| {
        let mut node = node("a", "4", json!({}));
        node.add(pod(spec.clone()));
        node
    };
    let full = {
        let mut node = node("a", "4", json!({}));
        (0..3).for_each(|_| node.add(pod(json!({}))));
        node
    };
    let big = json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "5", "memory": "2Gi" } } }] });
    let tolerating = json!({ "tolerations": [{ "key": "k", "operator": "Exists" }] });
    type Row = (&'static str, Value, Vec<Node>, Result<&'static str, &'static str>);
    let rows: Vec<Row> = vec![
        ("fits", json!({}), vec![node("a", "4", json!({}))], Ok("a")),
        ("too big", big, vec![node("a", "4", json!({}))], Err("1 Insufficient cpu, 1 Insufficient memory")),
        ("full", json!({}), vec![full], Err("1 Too many pods")),
        ("taint", json!({}), vec![node("a", "4", tainted.clone())], Err("1 node(s) had untolerated taint {k: v}")),
        ("tolerated", tolerating, vec![node("a", "4", tainted)], Ok("a")),
        ("cordoned", json!({}), vec![node("a", "4", cordoned)], Err("1 node(s) were unschedulable")),
        (
            "selector",
            json!({ "nodeSelector": { "disk": "ssd" } }),
            vec![node("a", "4", json!({}))],
            Err("1 node(s) didn't match Pod's node affinity/selector"),
        ),
        ("affinity in", affinity("In", json!(["b"])), vec![node("a", "4", json!({})), node("b", "4", json!({}))], Ok("b")),
        ("affinity not in", affinity("NotIn", json!(["a"])), vec![node("a", "4", json!({})), node("b", "4", json!({}))], Ok("b")),
        ("anti-affinity", anti.clone(), vec![busy(&anti)], Err("1 node(s) didn't match pod anti-affinity rules")),
        ("anti-affinity elsewhere", anti.clone(), vec![busy(&anti), node("b", "4", json!({}))], Ok("b")),
        ("existing anti-affinity", json!({}), vec![busy(&anti)], Err("1 node(s) didn't satisfy existing pods anti-affinity rules")),
        ("host port", port.clone(), vec![busy(&port)], Err("1 node(s) didn't have free ports for the requested pod ports")),
        ("less requested", json!({}), vec![node("a", "1", json!({})), node("b", "4", json!({}))], Ok("b")),
    ];
    for (name, spec, nodes, expected) in rows {
        let got = choose(&pod(spec), &nodes).map(|index| nodes[index].name.clone());
        let total = nodes.len();
        let expected = expected.map(str::to_owned).map_err(|reasons| {
            format!(
                "0/{total} nodes are available: {reasons}. preemption: 0/{total} nodes are available: {total} Preemption is not \
                 helpful for scheduling."
            )
        });
        assert_eq!(got, expected, "{name}");
    }
    assert_eq!(choose(&pod(json!({})), &[]).unwrap_err(), "no nodes available to schedule pods");
}

#[test]
fn init_containers_count_as_the_largest_of_them() {
    let request = |cpu: &str| json!({ "resources": { "requests": { "cpu": cpu } } });
    let sidecar = json!({ "restartPolicy": "Always", "resources": { "requests": { "cpu": "100m" } } });
    let facts = pod(json!({
        "containers": [request("200m"), request("100m")],
        "initContainers": [sidecar, request("1")],
    }));
    assert_eq!(facts.requests["cpu"], 1100);
}

#[test]
fn hard_spread_constraint_keeps_the_domains_level() {
    let spread = json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } }] });
    let mut nodes = vec![node("a", "4", json!({})), node("b", "100m", json!({}))];
    nodes[0].add(pod(json!({})));
    nodes[1].add(pod(json!({ "containers": [] })));
    assert_eq!(nodes[choose(&pod(spread.clone()), &nodes).unwrap()].name, "a");
    nodes[0].add(pod(json!({})));
    nodes[1].add(pod(json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }] })));
    nodes[1].pods.pop();
    let why = choose(&pod(spread), &nodes).unwrap_err();
    assert!(why.contains("1 node(s) didn't match pod topology spread constraints"), "{why}");
}
