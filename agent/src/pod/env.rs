//! Environment of a container and `$(VAR)` expansion (kubelet-contract 3.6.1). Pure, except for [`gather`].
//!
//! Later wins: service variables, then `envFrom` in order, then `env` in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;

use super::NodeFacts;
use super::fields::{self, Addresses};
use crate::api::core::{ConfigMap, Secret, Service};
use crate::api::pod::{Container, EnvVarSource, KeySelector, Pod};
use crate::objects::Objects;

/// A variable's value; Secrets may hold any bytes.
pub type Value = Vec<u8>;

/// Objects the environment of one container refers to; None means the server says it does not exist.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Services whose variables are wanted, already chosen by [`gather`].
    pub services: Vec<Arc<Service>>,
}

/// Asks for everything `container` refers to. An error means "not known now", with words for the user.
pub async fn gather(objects: &Objects, pod: &Pod, container: &Container) -> Result<Inputs, String> {
    let namespace = pod.metadata.namespace.as_str();
    let mut inputs = Inputs::default();
    for (kind, name) in references(container) {
        match kind {
            Kind::ConfigMap => {
                let found = objects.config_map(namespace, name).await.map_err(|e| e.event_message())?;
                inputs.config_maps.insert(name.to_owned(), found);
            }
            Kind::Secret => {
                let found = objects.secret(namespace, name).await.map_err(|e| e.event_message())?;
                inputs.secrets.insert(name.to_owned(), found);
            }
        }
    }
    // The API server's own service is always there, others on request and from the pod's namespace only.
    let links = pod.spec.enable_service_links.unwrap_or(true);
    let services = objects
        .services("default")
        .await
        .map_err(|e| format!("services have not yet been read at least once, cannot construct envvars: {}", e.event_message()))?;
    inputs.services.extend(services.iter().filter(|s| s.metadata.name == "kubernetes" || links && namespace == "default").cloned());
    if links && namespace != "default" {
        let own = objects
            .services(namespace)
            .await
            .map_err(|e| format!("services have not yet been read at least once, cannot construct envvars: {}", e.event_message()))?;
        inputs.services.extend(own);
    }
    Ok(inputs)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    ConfigMap,
    Secret,
}

fn references(container: &Container) -> impl Iterator<Item = (Kind, &str)> {
    let whole = container.env_from.iter().flat_map(|from| {
        let map = from.config_map_ref.iter().map(|r| (Kind::ConfigMap, r.name.as_str()));
        map.chain(from.secret_ref.iter().map(|r| (Kind::Secret, r.name.as_str())))
    });
    let keys = container.env.iter().filter_map(|var| var.value_from.as_ref()).flat_map(|from| {
        let map = from.config_map_key_ref.iter().map(|r| (Kind::ConfigMap, r.name.as_str()));
        map.chain(from.secret_key_ref.iter().map(|r| (Kind::Secret, r.name.as_str())))
    });
    whole.chain(keys)
}

/// The whole environment of a container, by name. An error is the message of CreateContainerConfigError.
pub fn build(
    pod: &Pod,
    container: &Container,
    inputs: &Inputs,
    addresses: Addresses<'_>,
    node: &NodeFacts,
) -> Result<BTreeMap<String, Value>, String> {
    let mut env = BTreeMap::new();
    for service in &inputs.services {
        service_variables(service, &mut env);
    }
    for from in &container.env_from {
        if let Some(wanted) = &from.config_map_ref {
            match inputs.config_maps.get(&wanted.name).and_then(Option::as_deref) {
                Some(map) => {
                    for (key, value) in &map.data {
                        env.insert(format!("{}{key}", from.prefix), value.clone().into_bytes());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", wanted.name)),
            }
        }
        if let Some(wanted) = &from.secret_ref {
            match inputs.secrets.get(&wanted.name).and_then(Option::as_deref) {
                Some(secret) => {
                    for key in secret.data.keys() {
                        env.insert(format!("{}{key}", from.prefix), secret.value(key).unwrap_or_default());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", wanted.name)),
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand_bytes(&variable.value, &env)),
            Some(from) => from_source(pod, container, from, inputs, addresses, node)?,
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// None: an optional object or key is absent, so is the variable.
fn from_source(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    inputs: &Inputs,
    addresses: Addresses<'_>,
    node: &NodeFacts,
) -> Result<Option<Value>, String> {
    let namespace = &pod.metadata.namespace;
    if let Some(selector) = &from.field_ref {
        return fields::field(pod, selector, addresses).map(|text| Some(text.into_bytes()));
    }
    if let Some(selector) = &from.resource_field_ref {
        let of = if selector.container_name.is_empty() {
            Some(container)
        } else {
            pod.all_containers().find(|c| c.name == selector.container_name)
        };
        let of = of.ok_or_else(|| format!("container {} not found", selector.container_name))?;
        return fields::resource(of, selector, node).map(|text| Some(text.into_bytes()));
    }
    let missing = |wanted: &KeySelector, message: String| {
        if wanted.optional == Some(true) { Ok(None) } else { Err(message) }
    };
    if let Some(wanted) = &from.config_map_key_ref {
        let Some(map) = inputs.config_maps.get(&wanted.name).and_then(Option::as_deref) else {
            return missing(wanted, format!("configmap \"{}\" not found", wanted.name));
        };
        return match map.data.get(&wanted.key) {
            Some(value) => Ok(Some(value.clone().into_bytes())),
            None => missing(wanted, format!("couldn't find key {} in ConfigMap {namespace}/{}", wanted.key, wanted.name)),
        };
    }
    if let Some(wanted) = &from.secret_key_ref {
        let Some(secret) = inputs.secrets.get(&wanted.name).and_then(Option::as_deref) else {
            return missing(wanted, format!("secret \"{}\" not found", wanted.name));
        };
        return match secret.value(&wanted.key) {
            Some(value) => Ok(Some(value)),
            None => missing(wanted, format!("couldn't find key {} in Secret {namespace}/{}", wanted.key, wanted.name)),
        };
    }
    Ok(Some(Vec::new()))
}

/// Bytes of a ConfigMap's `binaryData` value.
pub fn binary(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

fn service_variables(service: &Service, env: &mut BTreeMap<String, Value>) {
    let ip = &service.spec.cluster_ip;
    if ip.is_empty() || ip == "None" {
        return;
    }
    let Some(first) = service.spec.ports.first() else {
        return;
    };
    let name = upper(&service.metadata.name);
    let shown = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    let mut set = |key: String, value: String| env.insert(key, value.into_bytes());
    set(format!("{name}_SERVICE_HOST"), ip.clone());
    set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in service.spec.ports.iter().enumerate() {
        if !port.name.is_empty() {
            set(format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string());
        }
        let protocol = if port.protocol.is_empty() { "TCP" } else { port.protocol.as_str() };
        let url = format!("{}://{shown}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(prefix.clone(), url);
        set(format!("{prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{prefix}_PORT"), port.port.to_string());
        set(format!("{prefix}_ADDR"), ip.clone());
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay as they are and `$$` is a plain `$`.
pub fn expand(text: &str, env: &BTreeMap<String, Value>) -> String {
    String::from_utf8_lossy(&expand_bytes(text, env)).into_owned()
}

fn expand_bytes(text: &str, env: &BTreeMap<String, Value>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push(b'$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.get(name) {
                Some(value) => out.extend_from_slice(value),
                None => out.extend_from_slice(format!("$({name})").as_bytes()),
            }
            rest = after;
        } else {
            out.push(b'$');
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::pod::ResourceList;
    use serde_json::json;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
    }

    #[test]
    fn expansion() {
        let env = variables(&[("A", "1"), ("B", "$(A)")]);
        let table = [
            ("$(A)-$(NOPE)-$$(A)", "1-$(NOPE)-$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$(A", "$(A"),
            ("$x$", "$x$"),
            ("$$$$", "$$"),
            ("é$(A)é", "é1é"),
            ("", ""),
        ];
        for (text, wanted) in table {
            assert_eq!(expand(text, &env), wanted, "{text}");
        }
    }

    #[test]
    fn the_environment_is_what_a_kubelet_made() {
        // Recording env, without what the image and the shell add.
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "env", "namespace": "rec"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "resources": {"requests": {"memory": "20Mi"}},
                "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}],
                "env": [
                    {"name": "A", "value": "1"}, {"name": "EXP", "value": "$(A)-$(NOPE)-$$(A)"},
                    {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                    {"name": "SE", "valueFrom": {"secretKeyRef": {"name": "se", "key": "k"}}},
                    {"name": "OPT", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                ]}]},
        }))
        .unwrap();
        let inputs = Inputs {
            config_maps: BTreeMap::from([
                ("cm".to_owned(), Some(Arc::new(serde_json::from_value(json!({"data": {"k": "v1"}})).unwrap()))),
                ("none".to_owned(), None),
            ]),
            secrets: BTreeMap::from([("se".to_owned(), Some(Arc::new(serde_json::from_value(json!({"data": {"k": "czE="}})).unwrap())))]),
            services: vec![Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}))
                    .unwrap(),
            )],
        };
        let node = NodeFacts { allocatable: ResourceList::from([("cpu".to_owned(), "2".into())]), ..Default::default() };
        let ips = ["10.42.0.9".to_owned()];
        let env = build(&pod, &pod.spec.containers[0], &inputs, Addresses { pod_ips: &ips, host_ips: &[] }, &node).unwrap();
        let wanted = variables(&[
            ("A", "1"),
            ("CM", "v1"),
            ("CPU", "2"),
            ("EXP", "1-$(NOPE)-$(A)"),
            ("IP", "10.42.0.9"),
            ("KUBERNETES_PORT", "tcp://10.43.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.43.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.43.0.1"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("MEM", "20"),
            ("NODE", "n1"),
            ("P_k", "v1"),
            ("SE", "s1"),
        ]);
        assert_eq!(env, wanted);
    }

    #[test]
    fn what_is_missing_is_named() {
        let table = [
            (json!({"configMapKeyRef": {"name": "nope", "key": "k"}}), "configmap \"nope\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "q"}}), "couldn't find key q in ConfigMap rec/cm"),
            (json!({"secretKeyRef": {"name": "nope", "key": "k"}}), "secret \"nope\" not found"),
        ];
        for (from, wanted) in table {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"namespace": "rec"}, "spec": {"containers": [{"env": [{"name": "X", "valueFrom": from}]}]}}),
            )
            .unwrap();
            let inputs = Inputs { config_maps: BTreeMap::from([("cm".to_owned(), Some(Arc::default()))]), ..Default::default() };
            let got = build(&pod, &pod.spec.containers[0], &inputs, Addresses::default(), &NodeFacts::default());
            assert_eq!(got.unwrap_err(), wanted);
        }
    }
}
