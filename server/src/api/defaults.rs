//! Defaulting: the fields the API server fills in, per kind. Pure and idempotent.
//!
//! Source: Kubernetes `pkg/apis/{core,apps}/v1/defaults.go`.

use serde_json::{Map, Value, json};

use super::kind::Kind;
use super::{meta, quantity};

/// Fills what is absent.
pub(super) fn apply(kind: &Kind, object: &mut Value) {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod(object),
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => {
            let labels = object["spec"]["template"]["metadata"]["labels"].clone();
            if object["metadata"].get("labels").is_none() && labels.is_object() {
                object["metadata"]["labels"] = labels;
            }
            set(&mut object["spec"], "replicas", json!(1));
            template(&mut object["spec"]);
        }
        ("", "Service") => service(object),
        ("", "Secret") => secret(object),
        ("", "Namespace") => {
            let name = object["metadata"]["name"].clone();
            set(&mut object["metadata"], "labels", json!({}));
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            set(object, "spec", json!({}));
            set(object, "status", json!({"phase": "Active"}));
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in items(object, "ports") {
                set(port, "name", json!(""));
                set(port, "protocol", json!("TCP"));
            }
        }
        _ => {}
    }
    meta::drop_nulls(object);
}

fn set(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = Value::Object(Map::new());
    }
    if let Some(map) = object.as_object_mut() {
        if map.get(field).is_none_or(Value::is_null) {
            map.insert(field.to_owned(), value);
        }
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn template(spec: &mut Value) {
    if spec["template"]["spec"].is_object() {
        pod_spec(&mut spec["template"]["spec"]);
        set(&mut spec["template"], "metadata", json!({}));
    }
}

fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    if !spec.is_object() {
        return;
    }
    set(spec, "replicas", json!(1));
    set(spec, "strategy", json!({}));
    set(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        set(&mut spec["strategy"], "rollingUpdate", json!({}));
        set(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
        set(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
    }
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    template(spec);
}

fn service(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "sessionAffinity", json!("None"));
    set(spec, "type", json!("ClusterIP"));
    let external_name = spec["type"] == "ExternalName";
    let balanced = spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    for port in items(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        set(port, "targetPort", number);
        if port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    if balanced {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if spec["type"] == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if !external_name {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    set(object, "status", json!({"loadBalancer": {}}));
}

fn secret(object: &mut Value) {
    use base64::Engine as _;
    set(object, "type", json!("Opaque"));
    let plain = object.as_object_mut().and_then(|o| o.remove("stringData"));
    if let Some(Value::Object(plain)) = plain {
        set(object, "data", json!({}));
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            object["data"][key] = json!(base64::engine::general_purpose::STANDARD.encode(text));
        }
    }
}

fn pod(object: &mut Value) {
    let spec = &mut object["spec"];
    if !spec.is_object() {
        return;
    }
    pod_spec(spec);
    set(spec, "enableServiceLinks", json!(true));
    if spec["hostNetwork"] == true {
        for container in items(spec, "containers") {
            host_ports(container);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
        }
    }
    let qos = quantity::qos_class(spec);
    set(object, "status", json!({}));
    set(&mut object["status"], "phase", json!("Pending"));
    set(&mut object["status"], "qosClass", json!(qos));
    for list in ["containerStatuses", "initContainerStatuses"] {
        for status in items(&mut object["status"], list) {
            set(status, "state", json!({}));
            set(status, "lastState", json!({}));
        }
    }
}

/// Limits without requests are requests too.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else {
        return;
    };
    set(&mut container["resources"], "requests", json!({}));
    for (name, amount) in limits {
        set(&mut container["resources"]["requests"], &name, amount);
    }
}

fn host_ports(container: &mut Value) {
    for port in items(container, "ports") {
        let number = port["containerPort"].clone();
        set(port, "hostPort", number);
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", json!("default-scheduler"));
    // The old and the new name of one field.
    if let Some(name) = spec.get("serviceAccountName").filter(|n| n.as_str().is_some_and(|s| !s.is_empty())).cloned() {
        spec["serviceAccount"] = name;
    } else if let Some(name) = spec.get("serviceAccount").filter(|n| n.as_str().is_some_and(|s| !s.is_empty())).cloned() {
        spec["serviceAccountName"] = name;
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for one in items(spec, list) {
            container(one);
        }
    }
    for one in items(spec, "volumes") {
        volume(one);
    }
    for spread in items(spec, "topologySpreadConstraints") {
        set(spread, "nodeAffinityPolicy", json!("Honor"));
        set(spread, "nodeTaintsPolicy", json!("Ignore"));
    }
}

fn container(container: &mut Value) {
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set(container, "imagePullPolicy", json!(policy));
    for port in items(container, "ports") {
        set(port, "protocol", json!("TCP"));
    }
    for variable in items(container, "env") {
        if variable["valueFrom"]["fieldRef"].is_object() {
            set(&mut variable["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
        }
        if variable["valueFrom"]["resourceFieldRef"].is_object() {
            set(&mut variable["valueFrom"]["resourceFieldRef"], "divisor", json!("0"));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[name].is_object() {
            probe(&mut container[name]);
        }
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook]["httpGet"].is_object() {
            http_get(&mut container["lifecycle"][hook]["httpGet"]);
        }
    }
}

/// `Always` for the tag `latest` or none, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    set(probe, "timeoutSeconds", json!(1));
    set(probe, "periodSeconds", json!(10));
    set(probe, "successThreshold", json!(1));
    set(probe, "failureThreshold", json!(3));
    if probe["httpGet"].is_object() {
        http_get(&mut probe["httpGet"]);
    }
    if probe["grpc"].is_object() {
        set(&mut probe["grpc"], "service", json!(""));
    }
}

fn http_get(get: &mut Value) {
    set(get, "path", json!("/"));
    set(get, "scheme", json!("HTTP"));
}

fn volume(volume: &mut Value) {
    const SOURCES: &[&str] = &["secret", "configMap", "projected", "downwardAPI"];
    if volume.as_object().is_some_and(|v| v.len() == 1) {
        volume["emptyDir"] = json!({});
    }
    for source in SOURCES {
        if volume[source].is_object() {
            set(&mut volume[source], "defaultMode", json!(420));
        }
    }
    if volume["hostPath"].is_object() {
        set(&mut volume["hostPath"], "type", json!(""));
    }
    for item in items(&mut volume["downwardAPI"], "items") {
        if item["fieldRef"].is_object() {
            set(&mut item["fieldRef"], "apiVersion", json!("v1"));
        }
    }
    for source in items(&mut volume["projected"], "sources") {
        if source["serviceAccountToken"].is_object() {
            set(&mut source["serviceAccountToken"], "expirationSeconds", json!(3600));
        }
        for item in items(&mut source["downwardAPI"], "items") {
            if item["fieldRef"].is_object() {
                set(&mut item["fieldRef"], "apiVersion", json!("v1"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        let rows = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:alpine", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:ab", "IfNotPresent"),
        ];
        for (image, policy) in rows {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_small_pod_gets_its_defaults_and_keeps_them() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{
            "name": "c", "image": "nginx:alpine", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
            "readinessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "v"}]}});
        apply(&kind::POD, &mut pod);
        let once = pod.clone();
        apply(&kind::POD, &mut pod);
        assert_eq!(pod, once, "defaulting twice changes nothing");
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(spec["containers"][0]["readinessProbe"]["httpGet"]["path"], "/");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["memory"], "1Gi");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(pod["status"]["qosClass"], "Guaranteed");
        assert_eq!(pod["status"]["phase"], "Pending");
    }

    #[test]
    fn secrets_are_stored_encoded() {
        let mut secret = json!({"metadata": {}, "stringData": {"a": "b"}});
        apply(&kind::SECRET, &mut secret);
        assert_eq!(secret["data"]["a"], "Yg==");
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
    }
}
