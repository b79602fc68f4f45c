//! Admission: what a write has to become, or why this user may not make it. Pure over old and new object.
//!
//! NodeRestriction: Kubernetes `plugin/pkg/admission/noderestriction`. ServiceAccount:
//! `plugin/pkg/admission/serviceaccount`. Others: DefaultTolerationSeconds, Priority, TaintNodesByCondition.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::kind::Kind;
use super::meta;
use super::registry::Subresource;
use super::status::ApiStatus;
use crate::auth::Actor;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";

fn forbidden(kind: &Kind, object: &Value, why: &str) -> ApiStatus {
    let name = match meta::name(object) {
        "" => meta::get(object, "generateName"),
        name => name,
    };
    ApiStatus::forbidden(kind.group, kind.plural, name, why)
}

/// Checks and completes an object about to be created. `service_account` is that of a pod, if it exists.
pub(super) fn create(kind: &Kind, object: &mut Value, actor: &Actor, service_account: Option<&Value>) -> Result<(), ApiStatus> {
    if let Some(node) = actor.node() {
        restrict_create(kind, object, node)?;
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            pod_service_account(kind, object, service_account)?;
            tolerate_lost_nodes(object);
            pod_priority(object);
        }
        ("", "Node") => {
            if !object["spec"].is_object() {
                object["spec"] = json!({});
            }
            let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
            match object["spec"]["taints"].as_array_mut() {
                Some(taints) => {
                    if !taints.iter().any(|t| t["key"] == not_ready["key"] && t["effect"] == "NoSchedule") {
                        taints.push(not_ready);
                    }
                }
                None => object["spec"]["taints"] = json!([not_ready]),
            }
        }
        _ => {}
    }
    Ok(())
}

fn pod_service_account(kind: &Kind, pod: &mut Value, account: Option<&Value>) -> Result<(), ApiStatus> {
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return Ok(());
    }
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned();
    let Some(account) = account else {
        let why = format!("error looking up service account {}/{name}: serviceaccount \"{name}\" not found", meta::namespace(pod));
        return Err(forbidden(kind, pod, &why));
    };
    if let Some(secrets) = account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|a| !a.is_empty())) {
        if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) {
            pod["spec"]["imagePullSecrets"] = secrets.clone();
        }
    }
    let mount = [&pod["spec"]["automountServiceAccountToken"], &account["automountServiceAccountToken"]]
        .iter()
        .find_map(|v| v.as_bool())
        .unwrap_or(true);
    if mount {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let existing = spec["volumes"].as_array().into_iter().flatten();
    let name = existing
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map_or_else(|| format!("kube-api-access-{}", meta::random_suffix(5)), str::to_owned);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let taken = |m: &Value| m["mountPath"].as_str() == Some(TOKEN_PATH);
            if container["volumeMounts"].as_array().into_iter().flatten().any(taken) {
                continue;
            }
            let mount = json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            used = true;
        }
    }
    let present = spec["volumes"].as_array().into_iter().flatten().any(|v| v["name"] == name.as_str());
    if !used || present {
        return;
    }
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]}});
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}

/// Pods tolerate a node that is not ready or unreachable for five minutes unless they say otherwise.
fn tolerate_lost_nodes(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let key_fits = t["key"] == key || t["key"].as_str().is_none_or(str::is_empty);
            let effect_fits = t["effect"] == "NoExecute" || t["effect"].as_str().is_none_or(str::is_empty);
            key_fits && effect_fits
        };
        let spec = &mut pod["spec"];
        if spec["tolerations"].as_array().into_iter().flatten().any(tolerates) {
            continue;
        }
        let wanted = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        match spec["tolerations"].as_array_mut() {
            Some(list) => list.push(wanted),
            None => spec["tolerations"] = json!([wanted]),
        }
    }
}

fn pod_priority(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let value = match spec["priorityClassName"].as_str() {
        Some("system-node-critical") => 2_000_001_000,
        Some("system-cluster-critical") => 2_000_000_000,
        _ => 0,
    };
    if spec["priority"].is_null() {
        spec["priority"] = json!(value);
    }
    if spec["preemptionPolicy"].is_null() {
        spec["preemptionPolicy"] = json!("PreemptLowerPriority");
    }
}

fn restrict_create(kind: &Kind, object: &Value, node: &str) -> Result<(), ApiStatus> {
    let refuse = |why: String| Err(forbidden(kind, object, &why));
    match (kind.group, kind.kind) {
        ("", "Node") => {
            if meta::name(object) != node {
                return refuse(format!("node \"{node}\" is not allowed to modify node \"{}\"", meta::name(object)));
            }
            let refused = refused_labels(&object["metadata"]["labels"], &Value::Null);
            if !refused.is_empty() {
                return refuse(format!("node \"{node}\" is not allowed to set the following labels: {}", refused.join(", ")));
            }
            Ok(())
        }
        ("", "Pod") => {
            if object["metadata"]["annotations"].get(MIRROR).is_none() {
                return refuse(format!("pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"));
            }
            if object["spec"]["nodeName"] != node {
                return refuse(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
            }
            let owners = object["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
            let owned = matches!(owners, [one] if one["kind"] == "Node" && one["name"] == node);
            if !owned {
                return refuse(format!("node \"{node}\" can only create pods with an owner reference set to itself"));
            }
            if object["spec"]["serviceAccountName"].as_str().is_some_and(|s| !s.is_empty()) {
                return refuse(format!("node \"{node}\" can not create pods that reference a service account"));
            }
            let spec = object["spec"].to_string();
            for (word, thing) in [("\"secret", "secrets"), ("\"configMap", "configmaps")] {
                if spec.contains(word) {
                    return refuse(format!("node \"{node}\" can not create pods that reference {thing}"));
                }
            }
            Ok(())
        }
        ("coordination.k8s.io", "Lease") => restrict_lease(kind, object, node),
        ("storage.k8s.io", "CSINode") if meta::name(object) != node => {
            refuse("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    }
}

fn restrict_lease(kind: &Kind, object: &Value, node: &str) -> Result<(), ApiStatus> {
    if meta::namespace(object) != "kube-node-lease" {
        let why = "can only access leases in the \"kube-node-lease\" system namespace";
        return Err(forbidden(kind, object, why));
    }
    if meta::name(object) != node {
        let why = "can only access node lease with the same name as the requesting node";
        return Err(forbidden(kind, object, why));
    }
    Ok(())
}

/// Checks a change; `new` is complete, with what the endpoint may not change already put back.
pub(super) fn update(kind: &Kind, old: &Value, new: &Value, sub: Subresource, actor: &Actor) -> Result<(), ApiStatus> {
    let Some(node) = actor.node() else {
        return Ok(());
    };
    let refuse = |why: String| Err(forbidden(kind, old, &why));
    match (kind.group, kind.kind) {
        ("", "Node") => {
            if meta::name(old) != node {
                return refuse(format!("node \"{node}\" is not allowed to modify node \"{}\"", meta::name(old)));
            }
            if absent_as_null(&old["spec"]["taints"]) != absent_as_null(&new["spec"]["taints"]) {
                return refuse(format!("node \"{node}\" is not allowed to modify taints"));
            }
            if old["spec"]["configSource"] != new["spec"]["configSource"] {
                return refuse(format!("node \"{node}\" is not allowed to update configSource to a new non-nil configSource"));
            }
            if old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
                return refuse(format!("node \"{node}\" is not allowed to modify ownerReferences"));
            }
            let refused = refused_labels(&new["metadata"]["labels"], &old["metadata"]["labels"]);
            if !refused.is_empty() {
                return refuse(format!("node \"{node}\" is not allowed to modify labels: {}", refused.join(", ")));
            }
            Ok(())
        }
        ("", "Pod") if sub == Subresource::Status => {
            if old["spec"]["nodeName"] != node {
                return refuse(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
            }
            if absent_as_null(&old["metadata"]["labels"]) != absent_as_null(&new["metadata"]["labels"]) {
                return refuse(format!("node \"{node}\" cannot update labels through pod status"));
            }
            Ok(())
        }
        ("coordination.k8s.io", "Lease") => restrict_lease(kind, new, node),
        _ => Ok(()),
    }
}

/// Checks a deletion.
pub(super) fn delete(kind: &Kind, object: &Value, actor: &Actor) -> Result<(), ApiStatus> {
    if kind.kind == "Namespace" && ["default", "kube-system", "kube-public"].contains(&meta::name(object)) {
        return Err(forbidden(kind, object, "this namespace may not be deleted"));
    }
    let Some(node) = actor.node() else {
        return Ok(());
    };
    if kind.kind == "Pod" && object["spec"]["nodeName"] != node {
        let why = format!("node \"{node}\" can only delete pods with spec.nodeName set to itself");
        return Err(forbidden(kind, object, &why));
    }
    Ok(())
}

fn absent_as_null(value: &Value) -> &Value {
    let empty = value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    if empty { &Value::Null } else { value }
}

/// Labels a node changes and may not.
fn refused_labels(new: &Value, old: &Value) -> Vec<String> {
    let keys = |v: &Value| v.as_object().into_iter().flat_map(|m| m.keys().cloned()).collect::<BTreeSet<_>>();
    let all: BTreeSet<String> = keys(new).union(&keys(old)).cloned().collect();
    all.into_iter().filter(|key| new.get(key) != old.get(key) && !node_may_set(key)).collect()
}

fn node_may_set(label: &str) -> bool {
    const ALLOWED: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let below = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if !below("kubernetes.io") && !below("k8s.io") {
        return true;
    }
    ALLOWED.contains(&label) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use super::*;
    use crate::auth::{Identity, NODES};

    #[test]
    fn labels_a_node_may_set() {
        let rows = [
            ("app", true),
            ("k3s.io/test", true),
            ("egress.k3s.io/cluster", true),
            ("kubernetes.io/hostname", true),
            ("kubelet.kubernetes.io/foo", true),
            ("node.kubernetes.io/foo", true),
            ("node-role.kubernetes.io/worker", false),
            ("node-restriction.kubernetes.io/x", false),
            ("kubernetes.io/other", false),
        ];
        for (label, allowed) in rows {
            assert_eq!(node_may_set(label), allowed, "{label}");
        }
    }

    #[test]
    fn a_pod_gets_token_tolerations_and_priority() {
        let mut pod = json!({"metadata": {"name": "a", "namespace": "d"}, "spec": {"containers": [{"name": "c"}]}});
        let account = json!({"metadata": {"name": "default"}});
        create(&kind::POD, &mut pod, &Identity::system("x"), Some(&account)).unwrap();
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_PATH);
        assert_eq!(spec["volumes"][0]["projected"]["sources"].as_array().unwrap().len(), 3);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(spec["priority"], 0);
        let refused = create(&kind::POD, &mut pod, &Identity::system("x"), None).unwrap_err();
        assert_eq!(refused.code, 403);
    }

    #[test]
    fn a_node_changes_only_what_it_may() {
        let node = Identity::new("system:node:a", &[NODES]);
        let old = json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "x"}]}});
        let mut new = old.clone();
        new["spec"]["unschedulable"] = json!(true);
        assert!(update(&kind::NODE, &old, &new, Subresource::Main, &node).is_ok());
        new["spec"]["taints"] = json!([]);
        assert_eq!(update(&kind::NODE, &old, &new, Subresource::Main, &node).unwrap_err().code, 403);
    }
}
