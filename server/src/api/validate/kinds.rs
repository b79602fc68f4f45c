//! What each kind asks of its own fields.

use base64::Engine as _;
use serde_json::Value;

use super::{Wrong, list, names, pod, text};
use crate::api::kind::Kind;
use crate::api::selector::Selectors;

/// ConfigMaps and Secrets hold at most this much.
const MAX_DATA: usize = 1024 * 1024;

/// Checks a complete object.
pub(super) fn object(kind: &Kind, object: &Value, wrong: &mut Wrong) {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::spec("spec", &object["spec"], wrong),
        ("apps", "Deployment") => {
            workload(&object["spec"], wrong);
            deployment(&object["spec"], wrong);
        }
        ("apps", "ReplicaSet") => workload(&object["spec"], wrong),
        ("", "Service") => service(&object["spec"], wrong),
        ("", "ConfigMap") => {
            data("data", &object["data"], false, wrong);
            data("binaryData", &object["binaryData"], true, wrong);
        }
        ("", "Secret") => {
            data("data", &object["data"], true, wrong);
            secret_type(object, wrong);
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            if object["addressType"].is_null() {
                wrong.required("addressType", "");
            }
            wrong.supported("addressType", &object["addressType"], &["FQDN", "IPv4", "IPv6"]);
        }
        ("coordination.k8s.io", "Lease") => {
            let duration = &object["spec"]["leaseDurationSeconds"];
            if duration.as_i64().is_some_and(|d| d <= 0) {
                wrong.invalid("spec.leaseDurationSeconds", duration, "must be greater than 0");
            }
        }
        ("node.k8s.io", "RuntimeClass") => names::label_name("handler", &object["handler"], wrong),
        ("", "Node") => taints(&object["spec"], wrong),
        ("", "Event") => {
            let about = text(&object["involvedObject"]["namespace"]);
            let own = text(&object["metadata"]["namespace"]);
            if !(about == own || (about.is_empty() && own == "default")) {
                let value = &object["involvedObject"]["namespace"];
                wrong.invalid("involvedObject.namespace", value, "does not match event.namespace");
            }
        }
        _ => {}
    }
}

/// Checks what may not change.
pub(super) fn change(kind: &Kind, old: &Value, new: &Value, wrong: &mut Wrong) {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::change(&old["spec"], &new["spec"], wrong),
        ("apps", _) => wrong.immutable("spec.selector", &old["spec"]["selector"], &new["spec"]["selector"]),
        ("", "Node") => node_change(old, new, wrong),
        ("", "Service") => {
            let (before, after) = (&old["spec"]["clusterIP"], &new["spec"]["clusterIP"]);
            let external = old["spec"]["type"] == "ExternalName" || new["spec"]["type"] == "ExternalName";
            if !external && !before.is_null() && !after.is_null() && after != "" && before != after {
                wrong.invalid("spec.clusterIPs[0]", after, "may not change once set");
            }
        }
        ("", "ConfigMap" | "Secret") => {
            if old["immutable"] == true {
                for field in ["data", "binaryData"] {
                    if old[field] != new[field] {
                        wrong.forbidden(field, "field is immutable when `immutable` is set");
                    }
                }
                if new["immutable"] != true {
                    wrong.forbidden("immutable", "field is immutable when `immutable` is set");
                }
            }
            if kind.kind == "Secret" {
                wrong.immutable("type", &old["type"], &new["type"]);
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            wrong.immutable("addressType", &old["addressType"], &new["addressType"]);
        }
        ("node.k8s.io", "RuntimeClass") => wrong.immutable("handler", &old["handler"], &new["handler"]),
        _ => {}
    }
}

/// Keys that the well-known types of secrets must have (Kubernetes `ValidateSecret`).
fn secret_type(object: &Value, wrong: &mut Wrong) {
    let has = |key: &str| object["data"][key].is_string();
    let mut need = |key: &str| {
        if !has(key) {
            wrong.required(&format!("data[{key}]"), "");
        }
    };
    match text(&object["type"]) {
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/dockerconfigjson" => docker_config(object, ".dockerconfigjson", wrong),
        "kubernetes.io/dockercfg" => docker_config(object, ".dockercfg", wrong),
        _ => {}
    }
}

fn docker_config(object: &Value, key: &str, wrong: &mut Wrong) {
    use base64::Engine as _;
    let field = format!("data[{key}]");
    let Some(encoded) = object["data"][key].as_str() else {
        return wrong.required(&field, "");
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
        wrong.invalid(&field, &Value::from("<secret contents redacted>"), &error.to_string());
    }
}

fn node_change(old: &Value, new: &Value, wrong: &mut Wrong) {
    let set = |v: &Value| v.as_array().is_some_and(|a| !a.is_empty()) || v.as_str().is_some_and(|s| !s.is_empty());
    for (field, path) in [("podCIDRs", "spec.podCIDRs"), ("podCIDR", "spec.podCIDRs")] {
        if set(&old["spec"][field]) && old["spec"][field] != new["spec"][field] {
            wrong.forbidden(path, "node updates may not change podCIDR except from \"\" to valid");
            break;
        }
    }
    if set(&old["spec"]["providerID"]) && old["spec"]["providerID"] != new["spec"]["providerID"] {
        wrong.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
    }
}

fn taints(spec: &Value, wrong: &mut Wrong) {
    let mut seen = Vec::new();
    for (index, taint) in list(&spec["taints"]).iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        names::key(&format!("{path}.key"), text(&taint["key"]), wrong);
        if taint["effect"].is_null() {
            wrong.required(&format!("{path}.effect"), "");
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        wrong.supported(&format!("{path}.effect"), &taint["effect"], &effects);
        let id = (text(&taint["key"]), text(&taint["effect"]));
        if seen.contains(&id) {
            wrong.duplicate(&path, taint);
        }
        seen.push(id);
    }
}

fn workload(spec: &Value, wrong: &mut Wrong) {
    wrong.not_negative("spec.replicas", &spec["replicas"]);
    wrong.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
    let empty = |v: &Value| v.as_object().is_none_or(serde_json::Map::is_empty);
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    if selector.is_null() {
        wrong.required("spec.selector", "");
    } else if empty(&selector["matchLabels"]) && list(&selector["matchExpressions"]).is_empty() {
        wrong.invalid("spec.selector", selector, "empty selector is invalid for deployment");
    }
    names::labels("spec.selector.matchLabels", &selector["matchLabels"], wrong);
    if !spec["template"].is_object() {
        wrong.required("spec.template", "");
        return;
    }
    if !selector.is_null() && !Selectors::from_label_selector(selector).matches_labels(labels) {
        wrong.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
    names::labels("spec.template.metadata.labels", labels, wrong);
    pod::spec("spec.template.spec", &spec["template"]["spec"], wrong);
    wrong.supported("spec.template.spec.restartPolicy", &spec["template"]["spec"]["restartPolicy"], &["Always"]);
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        wrong.forbidden("spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

fn deployment(spec: &Value, wrong: &mut Wrong) {
    wrong.not_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
    let deadline = &spec["progressDeadlineSeconds"];
    if deadline.as_i64() <= spec["minReadySeconds"].as_i64() && !deadline.is_null() && !spec["minReadySeconds"].is_null() {
        wrong.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
    let strategy = &spec["strategy"];
    wrong.supported("spec.strategy.type", &strategy["type"], &["Recreate", "RollingUpdate"]);
    let rolling = &strategy["rollingUpdate"];
    if strategy["type"] == "Recreate" && !rolling.is_null() {
        wrong.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'");
        return;
    }
    for field in ["maxUnavailable", "maxSurge"] {
        let path = format!("spec.strategy.rollingUpdate.{field}");
        match &rolling[field] {
            Value::String(percent) if !is_percent(percent) => {
                wrong.invalid(&path, &rolling[field], "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
            number @ Value::Number(_) => wrong.not_negative(&path, number),
            _ => {}
        }
    }
    let zero = |v: &Value| v.as_i64() == Some(0) || v == "0%";
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        let path = "spec.strategy.rollingUpdate.maxUnavailable";
        wrong.invalid(path, &rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0");
    }
}

fn is_percent(text: &str) -> bool {
    text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()))
}

fn service(spec: &Value, wrong: &mut Wrong) {
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    wrong.supported("spec.type", &spec["type"], &types);
    wrong.supported("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]);
    names::labels("spec.selector", &spec["selector"], wrong);
    let ports = list(&spec["ports"]);
    let external = spec["type"] == "ExternalName";
    if external && text(&spec["externalName"]).is_empty() {
        wrong.required("spec.externalName", "");
    }
    if ports.is_empty() && !external && spec["clusterIP"] != "None" {
        wrong.required("spec.ports", "");
    }
    let mut names_seen = Vec::new();
    let mut ports_seen = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        wrong.port(&format!("{path}.port"), &port["port"]);
        if port["targetPort"].is_number() {
            wrong.port(&format!("{path}.targetPort"), &port["targetPort"]);
        }
        wrong.supported(&format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        let name = text(&port["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                wrong.required(&format!("{path}.name"), "");
            }
        } else {
            names::label_name(&format!("{path}.name"), &port["name"], wrong);
            if names_seen.contains(&name) {
                wrong.duplicate(&format!("{path}.name"), &port["name"]);
            }
            names_seen.push(name);
        }
        let id = (&port["port"], &port["protocol"]);
        if ports_seen.contains(&id) {
            wrong.duplicate(&path, port);
        }
        ports_seen.push(id);
    }
}

fn data(field: &str, data: &Value, encoded: bool, wrong: &mut Wrong) {
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        size += text(value).len();
        let plain = !key.is_empty() && key.len() <= 253 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !plain || key == "." || key == ".." {
            wrong.invalid(&format!("{field}[{key}]"), &Value::from(key.as_str()), "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')");
        }
        if encoded && base64::engine::general_purpose::STANDARD.decode(text(value)).is_err() {
            wrong.invalid(&format!("{field}[{key}]"), &Value::from("..."), "illegal base64 data");
        }
    }
    if size > MAX_DATA {
        let message = format!("Too long: may not be more than {MAX_DATA} bytes");
        wrong.add("FieldValueTooLong", field, message);
    }
}
