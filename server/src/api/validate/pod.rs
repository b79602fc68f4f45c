//! Pod specs, in pods and templates.

use serde_json::{Value, json};

use super::{Wrong, list, names, text};
use crate::api::quantity;

const POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];

/// Checks a pod spec found at `path`.
pub(super) fn spec(path: &str, spec: &Value, wrong: &mut Wrong) {
    let at = |field: &str| format!("{path}.{field}");
    wrong.supported(&at("restartPolicy"), &spec["restartPolicy"], POLICIES);
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    wrong.supported(&at("dnsPolicy"), &spec["dnsPolicy"], &dns);
    wrong.not_negative(&at("terminationGracePeriodSeconds"), &spec["terminationGracePeriodSeconds"]);
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s < 1) {
        let value = &spec["activeDeadlineSeconds"];
        wrong.invalid(&at("activeDeadlineSeconds"), value, "must be between 1 and 2147483647, inclusive");
    }
    names::labels(&at("nodeSelector"), &spec["nodeSelector"], wrong);
    let mut volumes = Vec::new();
    for (index, volume) in list(&spec["volumes"]).iter().enumerate() {
        let path = at(&format!("volumes[{index}]"));
        names::label_name(&format!("{path}.name"), &volume["name"], wrong);
        if volumes.contains(&text(&volume["name"])) {
            wrong.duplicate(&format!("{path}.name"), &volume["name"]);
        }
        volumes.push(text(&volume["name"]));
        let sources = volume.as_object().map_or(0, |v| v.keys().filter(|k| *k != "name").count());
        if sources > 1 {
            wrong.forbidden(&path, "may not specify more than 1 volume type");
        }
        if volume["hostPath"].is_object() && text(&volume["hostPath"]["path"]).is_empty() {
            wrong.required(&format!("{path}.hostPath.path"), "");
        }
        let secret = &volume["secret"];
        if secret.is_object() && text(&secret["secretName"]).is_empty() {
            wrong.required(&format!("{path}.secret.secretName"), "");
        }
        if volume["configMap"].is_object() && text(&volume["configMap"]["name"]).is_empty() {
            wrong.required(&format!("{path}.configMap.name"), "");
        }
    }
    if list(&spec["containers"]).is_empty() {
        wrong.required(&at("containers"), "");
    }
    let mut names_seen = Vec::new();
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(&spec[kind]).iter().enumerate() {
            let path = at(&format!("{kind}[{index}]"));
            names::label_name(&format!("{path}.name"), &container["name"], wrong);
            let name = text(&container["name"]);
            if !name.is_empty() && names_seen.contains(&name) {
                wrong.duplicate(&format!("{path}.name"), &container["name"]);
            }
            names_seen.push(name);
            self::container(&path, container, &volumes, wrong);
        }
    }
    for (index, toleration) in list(&spec["tolerations"]).iter().enumerate() {
        let path = at(&format!("tolerations[{index}]"));
        let operators = ["Equal", "Exists", "Lt", "Gt"];
        if !text(&toleration["operator"]).is_empty() {
            wrong.supported(&format!("{path}.operator"), &toleration["operator"], &operators);
        }
        if !text(&toleration["effect"]).is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            wrong.supported(&format!("{path}.effect"), &toleration["effect"], &effects);
        }
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            wrong.invalid(&format!("{path}.effect"), &toleration["effect"], why);
        }
    }
}

fn container(path: &str, container: &Value, volumes: &[&str], wrong: &mut Wrong) {
    let at = |field: &str| format!("{path}.{field}");
    if text(&container["image"]).is_empty() {
        wrong.required(&at("image"), "");
    } else if text(&container["image"]).trim() != text(&container["image"]) {
        wrong.invalid(&at("image"), &container["image"], "must not have leading or trailing whitespace");
    }
    wrong.supported(&at("imagePullPolicy"), &container["imagePullPolicy"], &["Always", "IfNotPresent", "Never"]);
    let messages = ["FallbackToLogsOnError", "File"];
    wrong.supported(&at("terminationMessagePolicy"), &container["terminationMessagePolicy"], &messages);
    for (index, port) in list(&container["ports"]).iter().enumerate() {
        let path = at(&format!("ports[{index}]"));
        wrong.port(&format!("{path}.containerPort"), &port["containerPort"]);
        if port["hostPort"].as_i64().is_some_and(|p| p != 0) {
            wrong.port(&format!("{path}.hostPort"), &port["hostPort"]);
        }
        wrong.supported(&format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
    for (index, variable) in list(&container["env"]).iter().enumerate() {
        let path = at(&format!("env[{index}]"));
        if text(&variable["name"]).is_empty() {
            wrong.required(&format!("{path}.name"), "");
        }
        let sources = variable["valueFrom"].as_object().map_or(1, serde_json::Map::len);
        if !text(&variable["value"]).is_empty() && !variable["valueFrom"].is_null() {
            wrong.invalid(&format!("{path}.valueFrom"), &json!(""), "may not be specified when `value` is not empty");
        } else if sources != 1 {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            wrong.invalid(&format!("{path}.valueFrom"), &json!(""), why);
        }
    }
    let mut mounts = Vec::new();
    for (index, mount) in list(&container["volumeMounts"]).iter().enumerate() {
        let path = at(&format!("volumeMounts[{index}]"));
        if text(&mount["name"]).is_empty() {
            wrong.required(&format!("{path}.name"), "");
        } else if !volumes.contains(&text(&mount["name"])) {
            wrong.not_found(&format!("{path}.name"), &mount["name"]);
        }
        if text(&mount["mountPath"]).is_empty() {
            wrong.required(&format!("{path}.mountPath"), "");
        } else if mounts.contains(&text(&mount["mountPath"])) {
            wrong.invalid(&format!("{path}.mountPath"), &mount["mountPath"], "must be unique");
        }
        mounts.push(text(&mount["mountPath"]));
    }
    resources(&at("resources"), &container["resources"], wrong);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[name].is_object() {
            probe(&at(name), &container[name], name == "readinessProbe", wrong);
        }
    }
    for hook in ["postStart", "preStop"] {
        let action = &container["lifecycle"][hook];
        let handlers = ["exec", "httpGet", "tcpSocket", "sleep"];
        if action.is_object() && handlers.iter().filter(|h| !action[**h].is_null()).count() != 1 {
            wrong.required(&at(&format!("lifecycle.{hook}")), "must specify a handler type");
        }
    }
}

fn resources(path: &str, resources: &Value, wrong: &mut Wrong) {
    for field in ["limits", "requests"] {
        for (name, amount) in resources[field].as_object().into_iter().flatten() {
            let path = format!("{path}.{field}[{name}]");
            match quantity::of(amount) {
                None => {
                    let why = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                    wrong.invalid(&path, amount, why);
                }
                Some(amount_milli) if amount_milli < 0 => {
                    wrong.invalid(&path, amount, "must be greater than or equal to 0");
                }
                Some(_) => {}
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if let (Some(asked), Some(most)) = (quantity::of(request), quantity::of(limit)) {
            if asked > most {
                let limit = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
                let why = format!("must be less than or equal to {name} limit of {limit}");
                wrong.invalid(&format!("{path}.requests"), request, &why);
            }
        }
    }
}

fn probe(path: &str, probe: &Value, readiness: bool, wrong: &mut Wrong) {
    let handlers = HANDLERS.iter().filter(|h| !probe[**h].is_null()).count();
    if handlers == 0 {
        wrong.required(path, "must specify a handler type");
    } else if handlers > 1 {
        wrong.forbidden(path, "may not specify more than 1 handler type");
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        wrong.not_negative(&format!("{path}.{field}"), &probe[field]);
    }
    if !readiness && probe["successThreshold"].as_i64().is_some_and(|n| n > 1) {
        wrong.invalid(&format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
    for handler in ["httpGet", "tcpSocket"] {
        if probe[handler].is_object() {
            match &probe[handler]["port"] {
                Value::String(name) if !name.is_empty() => {}
                port => wrong.port(&format!("{path}.{handler}.port"), port),
            }
        }
    }
    if probe["exec"].is_object() && list(&probe["exec"]["command"]).is_empty() {
        wrong.required(&format!("{path}.exec.command"), "");
    }
}

/// A pod that exists changes its images, deadline, grace and further tolerations, nothing else.
pub(super) fn change(old: &Value, new: &Value, wrong: &mut Wrong) {
    let mut same = new.clone();
    for kind in ["containers", "initContainers"] {
        let images: Vec<Value> = list(&old[kind]).iter().map(|c| c["image"].clone()).collect();
        for (container, image) in same[kind].as_array_mut().into_iter().flatten().zip(images) {
            container["image"] = image;
        }
    }
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "schedulingGates"] {
        match (old.get(field), same.as_object_mut()) {
            (Some(value), Some(same)) => {
                same.insert(field.to_owned(), value.clone());
            }
            (None, Some(same)) => {
                same.remove(field);
            }
            (_, None) => {}
        }
    }
    let kept = list(&old["tolerations"]).iter().all(|t| list(&new["tolerations"]).contains(t));
    if kept && !old["tolerations"].is_null() {
        same["tolerations"] = old["tolerations"].clone();
    } else if kept {
        if let Some(same) = same.as_object_mut() {
            same.remove("tolerations");
        }
    }
    super::super::meta::drop_nulls(&mut same);
    if same != *old {
        wrong.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}
