//! Server-side tables: the columns kubectl prints. Pure but for the clock behind "age".
//!
//! Columns and cells: Kubernetes `pkg/printers/internalversion/printers.go`.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::columns::columns;
use super::kind::Kind;
use super::{meta, render, scale, table_pod};

/// A Table of `rows`.
pub(super) fn table(kind: &Kind, version: &str, metadata: &Value, rows: Vec<Value>) -> Value {
    let definitions: Vec<Value> = columns(kind)
        .iter()
        .map(|(name, ty, format, priority)| json!({"name": name, "type": ty, "format": format, "description": "", "priority": priority}))
        .collect();
    json!({
        "kind": "Table", "apiVersion": version, "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// One row; `include` is `includeObject` of the request.
pub(super) fn row(kind: &Kind, object: &Value, include: &str) -> Value {
    let object_part = match include {
        "None" => Value::Null,
        "Object" => object.clone(),
        _ => render::partial(object),
    };
    json!({"cells": cells(kind, object, OffsetDateTime::now_utc()), "object": object_part})
}

fn cells(kind: &Kind, object: &Value, now: OffsetDateTime) -> Vec<Value> {
    let name = json!(meta::name(object));
    let age = json!(age(&object["metadata"]["creationTimestamp"], now));
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            let pod = table_pod::summary(object, now);
            let text = |path: &str| json!(object.pointer(path).and_then(Value::as_str).unwrap_or("<none>"));
            let gates = table_pod::readiness_gates(object);
            vec![
                name,
                json!(pod.ready),
                json!(pod.status),
                json!(pod.restarts),
                age,
                text("/status/podIP"),
                text("/spec/nodeName"),
                text("/status/nominatedNodeName"),
                json!(gates),
            ]
        }
        ("", "Node") => node(object, name, age),
        ("", "Namespace") => vec![name, json!(object["status"]["phase"].as_str().unwrap_or_default()), age],
        ("", "ConfigMap") => vec![name, json!((len(&object["data"]) + len(&object["binaryData"])).to_string()), age],
        ("", "Secret") => {
            vec![name, json!(object["type"].as_str().unwrap_or_default()), json!(len(&object["data"]).to_string()), age]
        }
        ("", "Service") => service(object, name, age),
        ("", "Endpoints") => vec![name, json!(endpoints(object)), age],
        (_, "Event") => event(object, now),
        ("apps", "Deployment") => {
            let number = |field: &str| object["status"][field].as_i64().unwrap_or(0);
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(0);
            let [containers, images] = containers(&object["spec"]["template"]["spec"]);
            vec![
                name,
                json!(format!("{}/{wanted}", number("readyReplicas"))),
                json!(number("updatedReplicas").to_string()),
                json!(number("availableReplicas").to_string()),
                age,
                containers,
                images,
                json!(or_none(&scale::selector_text(&object["spec"]["selector"]))),
            ]
        }
        ("apps", "ReplicaSet") => {
            let number = |field: &str| json!(object["status"][field].as_i64().unwrap_or(0));
            let [containers, images] = containers(&object["spec"]["template"]["spec"]);
            vec![
                name,
                json!(object["spec"]["replicas"].as_i64().unwrap_or(0)),
                number("replicas"),
                number("readyReplicas"),
                age,
                containers,
                images,
                json!(or_none(&scale::selector_text(&object["spec"]["selector"]))),
            ]
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            let ports = list(&object["ports"]).map(|p| p["port"].as_i64().map_or_else(|| "*".to_owned(), |p| p.to_string()));
            let addresses = list(&object["endpoints"]).flat_map(|e| list(&e["addresses"])).filter_map(Value::as_str);
            let unset = |text: String| {
                if text.is_empty() { "<unset>".to_owned() } else { text }
            };
            vec![
                name,
                json!(object["addressType"].as_str().unwrap_or_default()),
                json!(unset(shorten(ports.collect()))),
                json!(unset(shorten(addresses.map(str::to_owned).collect()))),
                age,
            ]
        }
        ("coordination.k8s.io", "Lease") => {
            vec![name, json!(object["spec"]["holderIdentity"].as_str().unwrap_or_default()), age]
        }
        ("node.k8s.io", "RuntimeClass") => vec![name, json!(object["handler"].as_str().unwrap_or_default()), age],
        ("storage.k8s.io", "CSINode") => vec![name, json!(len(&object["spec"]["drivers"])), age],
        ("autoscaling", "Scale") => {
            let number = |part: &str| json!(object[part]["replicas"].as_i64().unwrap_or(0));
            vec![name, number("spec"), number("status"), age]
        }
        _ => vec![name, age],
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn len(value: &Value) -> usize {
    value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len)).unwrap_or(0)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// At most three, then how many more.
fn shorten(all: Vec<String>) -> String {
    let more = all.len().saturating_sub(3);
    let shown = all[..all.len().min(3)].join(",");
    if more > 0 { format!("{shown} + {more} more...") } else { shown }
}

fn containers(spec: &Value) -> [Value; 2] {
    let texts = |field: &str| {
        let all: Vec<&str> = list(&spec["containers"]).filter_map(|c| c[field].as_str()).collect();
        json!(all.join(","))
    };
    [texts("name"), texts("image")]
}

fn node(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let ready = list(&object["status"]["conditions"]).find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| &c["status"]) {
        Some(status) if status == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = object["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let named = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty());
            named.or_else(|| (key == "kubernetes.io/role").then(|| value.as_str()).flatten())
        })
        .collect();
    roles.sort_unstable();
    let address = |ty: &str| {
        let found = list(&object["status"]["addresses"]).find(|a| a["type"] == ty);
        json!(found.and_then(|a| a["address"].as_str()).unwrap_or("<none>"))
    };
    let info = |field: &str, absent: &str| {
        let text = object["status"]["nodeInfo"][field].as_str().unwrap_or_default();
        json!(if text.is_empty() { absent } else { text })
    };
    vec![
        name,
        json!(status),
        json!(or_none(&roles.join(","))),
        age,
        info("kubeletVersion", ""),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage", "<unknown>"),
        info("kernelVersion", "<unknown>"),
        info("containerRuntimeVersion", "<unknown>"),
    ]
}

fn service(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let spec = &object["spec"];
    let ty = spec["type"].as_str().unwrap_or("ClusterIP");
    let external: Vec<&str> = list(&spec["externalIPs"]).filter_map(Value::as_str).collect();
    let external = match ty {
        "ExternalName" => spec["externalName"].as_str().unwrap_or_default().to_owned(),
        "LoadBalancer" => {
            let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
            let all: Vec<&str> = ingress.filter_map(|i| i["ip"].as_str().or_else(|| i["hostname"].as_str())).chain(external).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => or_none(&external.join(",")).to_owned(),
    };
    let ports: Vec<String> = list(&spec["ports"])
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_u64() {
                Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", p["port"]),
                _ => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    let labels = json!({"matchLabels": spec["selector"]});
    vec![
        name,
        json!(ty),
        json!(spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).unwrap_or("<none>")),
        json!(external),
        json!(or_none(&ports.join(","))),
        age,
        json!(or_none(&scale::selector_text(&labels))),
    ]
}

fn endpoints(object: &Value) -> String {
    let pairs: Vec<String> = list(&object["subsets"])
        .flat_map(|subset| {
            list(&subset["addresses"])
                .flat_map(move |a| list(&subset["ports"]).map(move |p| format!("{}:{}", a["ip"].as_str().unwrap_or_default(), p["port"])))
        })
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { shorten(pairs) }
}

fn event(object: &Value, now: OffsetDateTime) -> Vec<Value> {
    // Both views of events pass here.
    let first_of = |fields: &[&str]| fields.iter().map(|f| &object[*f]).find(|v| !v.is_null()).cloned().unwrap_or_default();
    let target = first_of(&["involvedObject", "regarding"]);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let first = first_of(&["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]);
    let (mut last, mut count) = (
        first_of(&["lastTimestamp", "deprecatedLastTimestamp", "eventTime"]),
        first_of(&["count", "deprecatedCount"]).as_i64().unwrap_or(0),
    );
    if object["series"].is_object() {
        last = object["series"]["lastObservedTime"].clone();
        count = object["series"]["count"].as_i64().unwrap_or(count);
    } else if count == 0 {
        count = 1;
    }
    let source = first_of(&["source", "deprecatedSource"]);
    let component = match text(&source["component"]) {
        component if component.is_empty() => text(&first_of(&["reportingComponent", "reportingController"])),
        component => component,
    };
    let host = match text(&source["host"]) {
        host if host.is_empty() => text(&object["reportingInstance"]),
        host => host,
    };
    let from = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        json!(age(&last, now)),
        json!(text(&object["type"])),
        json!(text(&object["reason"])),
        json!(format!("{}/{}", text(&target["kind"]).to_lowercase(), text(&target["name"]))),
        json!(text(&target["fieldPath"])),
        json!(from),
        json!(text(&first_of(&["message", "note"])).trim()),
        json!(age(&first, now)),
        json!(count.to_string()),
        json!(meta::name(object)),
    ]
}

/// Time since a timestamp as kubectl shows it.
pub(super) fn age(since: &Value, now: OffsetDateTime) -> String {
    match since.as_str().and_then(meta::parse_time) {
        Some(then) => human_duration((now - then).whole_seconds()),
        None => "<unknown>".to_owned(),
    }
}

/// `duration.HumanDuration` of apimachinery.
pub(super) fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    if seconds < -1 {
        "<invalid>".to_owned()
    } else if seconds < 0 {
        "0s".to_owned()
    } else if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        pair(hours / 24, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{}d", hours / 24)
    } else if hours < 24 * 365 * 8 {
        pair(hours / 24 / 365, "y", hours / 24 % 365, "d")
    } else {
        format!("{}y", hours / 24 / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        let rows = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3600 * 3, "3h"),
            (3600 * 3 + 60, "3h1m"),
            (3600 * 9, "9h"),
            (3600 * 50, "2d2h"),
            (3600 * 24 * 10, "10d"),
        ];
        for (seconds, text) in rows {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        let object = json!({"metadata": {"name": "x", "creationTimestamp": meta::now()}, "spec": {}, "status": {}});
        for kind in kind::KINDS {
            assert_eq!(cells(kind, &object, OffsetDateTime::now_utc()).len(), columns(kind).len(), "{kind:?}");
        }
    }

    #[test]
    fn cells_say_what_users_know() {
        let now = OffsetDateTime::now_utc();
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1"}}});
        let cells_of = |kind: &Kind, object: &Value| cells(kind, object, now);
        assert_eq!(cells_of(&kind::NODE, &node)[1..3], [json!("Ready,SchedulingDisabled"), json!("worker")]);
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.43.0.9",
            "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}], "selector": {"app": "a"}}});
        let cells = cells_of(&kind::SERVICE, &service);
        assert_eq!(cells[1..5], [json!("NodePort"), json!("10.43.0.9"), json!("<none>"), json!("80:30001/TCP")]);
        assert_eq!(cells[6], "app=a");
    }
}
