//! Fields that would change what a pod does and that this agent does not implement: such a pod is refused by name
//! instead of being run wrongly. Pure.

use crate::api::pod::{Container, LifecycleHandler, Pod, TARGET, Unknown, Volume, VolumeMount};

/// JSON paths of every unsupported field of the spec, in spec order; empty when the pod can run as written.
pub fn fields(pod: &Pod) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &pod.spec;
    unknown("spec", &spec.unknown, &mut found);
    if spec.host_users == Some(false) {
        found.push("spec.hostUsers".to_owned());
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        found.push("spec.os.name".to_owned());
    }
    if let Some(context) = &spec.security_context {
        unknown("spec.securityContext", &context.unknown, &mut found);
        if context.supplemental_groups_policy.as_deref().is_some_and(|p| p != "Merge") {
            found.push("spec.securityContext.supplementalGroupsPolicy".to_owned());
        }
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        volume_fields(&format!("spec.volumes[{index}]"), volume, &mut found);
    }
    for (list, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            container_fields(&format!("spec.{list}[{index}]"), container, list == "initContainers", &mut found);
        }
    }
    found
}

/// The same of one ephemeral container, which comes when its pod has long been admitted.
pub fn ephemeral_fields(container: &Container) -> Vec<String> {
    let mut found = Vec::new();
    let path = format!("spec.ephemeralContainers[{}]", container.name);
    container_fields(&path, container, false, &mut found);
    found.retain(|field| *field != format!("{path}.{TARGET}"));
    found
}

fn unknown(path: &str, fields: &Unknown, found: &mut Vec<String>) {
    let set = fields.iter().filter(|(_, value)| !is_empty(value));
    found.extend(set.map(|(name, _)| format!("{path}.{name}")));
}

/// Null, empty and false say nothing.
fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => true,
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(fields) => fields.is_empty(),
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Bool(true) | serde_json::Value::Number(_) => false,
    }
}

fn volume_fields(path: &str, volume: &Volume, found: &mut Vec<String>) {
    // An empty object is a source too: `nfs: {}` must not read as an emptyDir.
    found.extend(volume.unknown.keys().map(|name| format!("{path}.{name}")));
    if let Some(empty) = &volume.empty_dir {
        if !matches!(empty.medium.as_str(), "" | "Memory") {
            found.push(format!("{path}.emptyDir.medium"));
        }
    }
    if let Some(projected) = &volume.projected {
        for (index, source) in projected.sources.iter().enumerate() {
            found.extend(source.unknown.keys().map(|name| format!("{path}.projected.sources[{index}].{name}")));
        }
    }
}

fn container_fields(path: &str, container: &Container, init: bool, found: &mut Vec<String>) {
    unknown(path, &container.unknown, found);
    unknown(&format!("{path}.resources"), &container.resources.unknown, found);
    if container.restart_policy.is_some() && !(init && container.is_sidecar()) {
        found.push(format!("{path}.restartPolicy"));
    }
    for (index, variable) in container.env.iter().enumerate() {
        if let Some(from) = &variable.value_from {
            unknown(&format!("{path}.env[{index}].valueFrom"), &from.unknown, found);
        }
    }
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        mount_fields(&format!("{path}.volumeMounts[{index}]"), mount, found);
    }
    if let Some(context) = &container.security_context {
        unknown(&format!("{path}.securityContext"), &context.unknown, found);
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            unknown(&format!("{path}.{name}"), &probe.unknown, found);
        }
    }
    if let Some(lifecycle) = &container.lifecycle {
        unknown(&format!("{path}.lifecycle"), &lifecycle.unknown, found);
        handler_fields(&format!("{path}.lifecycle.postStart"), lifecycle.post_start.as_ref(), found);
        handler_fields(&format!("{path}.lifecycle.preStop"), lifecycle.pre_stop.as_ref(), found);
    }
}

fn mount_fields(path: &str, mount: &VolumeMount, found: &mut Vec<String>) {
    unknown(path, &mount.unknown, found);
    if mount.recursive_read_only.as_deref() == Some("Enabled") {
        found.push(format!("{path}.recursiveReadOnly"));
    }
}

fn handler_fields(path: &str, handler: Option<&LifecycleHandler>, found: &mut Vec<String>) {
    if let Some(handler) = handler {
        unknown(path, &handler.unknown, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: serde_json::Value, wanted: &[&str]) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(fields(&pod), wanted, "{spec}");
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        check(
            json!({"volumes": [{"name": "a", "emptyDir": {}}, {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
            &["spec.volumes[1].persistentVolumeClaim"],
        );
        check(json!({"volumes": [{"name": "v", "csi": {}}]}), &["spec.volumes[0].csi"]);
        check(json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}]}), &["spec.volumes[0].emptyDir.medium"]);
        check(
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {}}]}}]}),
            &["spec.volumes[0].projected.sources[0].clusterTrustBundle"],
        );
        check(json!({"resourceClaims": [{"name": "gpu"}]}), &["spec.resourceClaims"]);
        check(json!({"hostUsers": false}), &["spec.hostUsers"]);
        check(json!({"resources": {"limits": {"cpu": "1"}}}), &["spec.resources"]);
        check(json!({"containers": [{"volumeDevices": [{"name": "d"}]}]}), &["spec.containers[0].volumeDevices"]);
        check(json!({"containers": [{"restartPolicyRules": [{}]}]}), &["spec.containers[0].restartPolicyRules"]);
        check(json!({"containers": [{"livenessProbe": {"quic": {"port": 1}}}]}), &["spec.containers[0].livenessProbe.quic"]);
        check(json!({"containers": [{"resources": {"claims": [{"name": "g"}]}}]}), &["spec.containers[0].resources.claims"]);
    }

    #[test]
    fn an_ephemeral_container_may_name_its_target() {
        let container = |spec| serde_json::from_value::<Container>(spec).unwrap();
        assert!(ephemeral_fields(&container(json!({"name": "d", "targetContainerName": "main", "stdin": true}))).is_empty());
        let odd = container(json!({"name": "d", "targetContainerName": "main", "volumeDevices": [{"name": "x"}]}));
        assert_eq!(ephemeral_fields(&odd), ["spec.ephemeralContainers[d].volumeDevices"]);
    }

    #[test]
    fn ordinary_pods_are_not_refused() {
        check(
            json!({
                "hostUsers": true, "resourceClaims": [], "os": {"name": "linux"}, "priority": 0, "tolerations": [{"key": "k", "operator": "Exists"}],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"grpc": {"port": 1}}}],
                "containers": [{"name": "c", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}], "livenessProbe": {"httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}}}],
                "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
            }),
            &[],
        );
    }
}
