//! Authorisation: what an identity may ask for. Reads the registry for what belongs to a node; never writes.
//!
//! Node rules: Kubernetes `plugin/pkg/auth/authorizer/node` with selectors (1.32 and later). The fixed roles are
//! those K3s gives its agents' certificates.

use serde_json::Value;

use super::{AUTHENTICATED, Identity, MASTERS};
use crate::api::kind;
use crate::api::request::RequestInfo;
use crate::api::{ApiStatus, Registry, Selectors};

/// One question.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// The field selector of a list or watch.
    pub fields: String,
    /// Set for non-resource questions only.
    pub path: String,
}

impl Attributes {
    pub fn of(info: &RequestInfo, fields: &str) -> Self {
        Self {
            verb: info.verb.to_owned(),
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            fields: fields.to_owned(),
            path: String::new(),
        }
    }

    pub fn path(verb: &str, path: &str) -> Self {
        Self { verb: verb.to_owned(), path: path.to_owned(), ..Self::default() }
    }

    fn reads(&self) -> bool {
        ["get", "list", "watch"].contains(&self.verb.as_str())
    }

    fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.group == group && self.resource == resource && self.subresource == subresource
    }
}

/// The answer to a question; a refusal may have a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Denied(String),
}

/// Decides, as an error for the answer when refused.
///
/// # Errors
/// 403.
pub fn authorize(registry: &Registry, identity: &Identity, asked: &Attributes) -> Result<(), ApiStatus> {
    match decide(registry, identity, asked) {
        Decision::Allowed => Ok(()),
        Decision::Denied(reason) => Err(refusal(identity, asked, &reason)),
    }
}

fn refusal(identity: &Identity, asked: &Attributes, reason: &str) -> ApiStatus {
    let user = &identity.user;
    if !asked.path.is_empty() {
        return ApiStatus::forbidden("", "", "", &format!("User \"{user}\" cannot {} path \"{}\"", asked.verb, asked.path));
    }
    let resource = match asked.subresource.as_str() {
        "" => asked.resource.clone(),
        sub => format!("{}/{sub}", asked.resource),
    };
    let place = match asked.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let why = format!("User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}{reason}", asked.verb, asked.group);
    ApiStatus::forbidden(&asked.group, &asked.resource, &asked.name, &why)
}

/// Decides one question.
pub fn decide(registry: &Registry, identity: &Identity, asked: &Attributes) -> Decision {
    if identity.in_group(MASTERS) || (identity.in_group(AUTHENTICATED) && everyone(asked)) {
        return Decision::Allowed;
    }
    let allowed = match identity.user.as_str() {
        "system:k3s-controller" => k3s_controller(asked),
        "system:kube-proxy" => kube_proxy(asked),
        _ => false,
    };
    if allowed {
        return Decision::Allowed;
    }
    match identity.node() {
        Some(node) if asked.path.is_empty() => node_rules(registry, node, asked),
        _ => Decision::Denied(String::new()),
    }
}

/// Discovery and questions about oneself.
fn everyone(asked: &Attributes) -> bool {
    const PATHS: &[&str] = &["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
    if !asked.path.is_empty() {
        let below = |root: &str| asked.path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        return asked.verb == "get" && PATHS.iter().any(|root| below(root));
    }
    asked.verb == "create"
        && ((asked.group == "authorization.k8s.io"
            && ["selfsubjectaccessreviews", "selfsubjectrulesreviews"].contains(&asked.resource.as_str()))
            || asked.is("authentication.k8s.io", "selfsubjectreviews", ""))
}

/// K3s `manifests/rolebindings.yaml`.
fn k3s_controller(asked: &Attributes) -> bool {
    let verb = asked.verb.as_str();
    asked.reads() && asked.is("", "nodes", "")
        || verb == "patch" && asked.is("", "nodes", "status")
        || ["list", "watch"].contains(&verb) && (asked.is("", "namespaces", "") || asked.is("networking.k8s.io", "networkpolicies", ""))
        || asked.reads()
            && (asked.is("", "pods", "") || asked.is("", "endpoints", "") || asked.is("discovery.k8s.io", "endpointslices", ""))
}

/// ClusterRole `system:node-proxier`.
fn kube_proxy(asked: &Attributes) -> bool {
    let lists = ["list", "watch"].contains(&asked.verb.as_str());
    lists && (asked.is("", "services", "") || asked.is("", "endpoints", "") || asked.is("discovery.k8s.io", "endpointslices", ""))
        || asked.reads() && asked.is("", "nodes", "")
        || ["create", "patch", "update"].contains(&asked.verb.as_str()) && is_events(asked)
}

fn is_events(asked: &Attributes) -> bool {
    asked.is("", "events", "") || asked.is("events.k8s.io", "events", "")
}

fn node_rules(registry: &Registry, node: &str, asked: &Attributes) -> Decision {
    let verb = asked.verb.as_str();
    let denied = |why: &str| Decision::Denied(why.to_owned());
    let allow = |yes: bool| if yes { Decision::Allowed } else { denied("") };
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("", "nodes", "") => match verb {
            "create" | "update" | "patch" => Decision::Allowed,
            "get" | "list" | "watch" if asked.name == node => Decision::Allowed,
            "get" | "list" | "watch" if asked.name.is_empty() => {
                Decision::Denied(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            "get" | "list" | "watch" => Decision::Denied(format!("node '{node}' cannot read '{}', only its own Node object", asked.name)),
            _ => denied(""),
        },
        ("", "nodes" | "pods", "status") => allow(["update", "patch"].contains(&verb)),
        ("", "pods", "") => node_pods(registry, node, asked),
        ("", "pods", "eviction") => allow(verb == "create"),
        ("", "services", "") => allow(asked.reads()),
        ("", "secrets" | "configmaps", _) => node_references(registry, node, asked),
        ("", "serviceaccounts", "token") => {
            let uses = |pod: &Value| pod["spec"]["serviceAccountName"] == asked.name.as_str();
            if verb != "create" {
                return denied("can only create tokens for individual service accounts");
            }
            if own_pods(registry, node, &asked.namespace).iter().any(|p| uses(p)) {
                return Decision::Allowed;
            }
            Decision::Denied(format!("no relationship found between node '{node}' and this object"))
        }
        ("coordination.k8s.io", "leases", "") => node_lease(node, asked),
        ("storage.k8s.io", "csinodes", "") => match verb {
            "get" | "create" | "update" | "patch" | "delete" if verb == "create" || asked.name == node => Decision::Allowed,
            "get" | "update" | "patch" | "delete" => denied("can only access CSINode with the same name as the requesting node"),
            _ => denied("can only get, create, update, patch, or delete a CSINode"),
        },
        ("storage.k8s.io", "csidrivers", "") | ("node.k8s.io", "runtimeclasses", "") => allow(asked.reads()),
        ("" | "events.k8s.io", "events", "") => allow(["create", "patch", "update"].contains(&verb)),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => allow(verb == "create"),
        ("certificates.k8s.io", "certificatesigningrequests", "") => allow(asked.reads() || verb == "create"),
        _ => denied(""),
    }
}

fn node_pods(registry: &Registry, node: &str, asked: &Attributes) -> Decision {
    match asked.verb.as_str() {
        "create" | "delete" => Decision::Allowed,
        "get" => {
            let found = registry.get(&kind::POD, Some(&asked.namespace), &asked.name);
            // An absent pod is a 404 for its own kubelet too, which asks while it tears down.
            if found.map_or(true, |pod| pod["spec"]["nodeName"] == node) {
                return Decision::Allowed;
            }
            Decision::Denied(format!("no relationship found between node '{node}' and this object"))
        }
        "list" | "watch" => {
            let selected = Selectors::parse(&kind::POD, "", &asked.fields);
            if selected.is_ok_and(|s| s.required_field("spec.nodeName") == Some(node)) {
                return Decision::Allowed;
            }
            Decision::Denied("can only list/watch pods with spec.nodeName field selector".to_owned())
        }
        _ => Decision::Denied(String::new()),
    }
}

fn node_lease(node: &str, asked: &Attributes) -> Decision {
    let denied = |why: &str| Decision::Denied(why.to_owned());
    match asked.verb.as_str() {
        "get" | "create" | "update" | "patch" | "delete" => {}
        _ => return denied("can only get, create, update, patch, or delete a node lease"),
    }
    if asked.namespace != "kube-node-lease" {
        return denied("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if asked.verb != "create" && asked.name != node {
        return denied("can only access node lease with the same name as the requesting node");
    }
    Decision::Allowed
}

fn node_references(registry: &Registry, node: &str, asked: &Attributes) -> Decision {
    let denied = |why: &str| Decision::Denied(why.to_owned());
    if !asked.reads() {
        return denied("can only read resources of this type");
    }
    if !asked.subresource.is_empty() {
        return denied("cannot read subresource");
    }
    if asked.namespace.is_empty() {
        return denied("can only read namespaced object of this type");
    }
    if asked.name.is_empty() {
        return denied("No Object name found");
    }
    let secret = asked.resource == "secrets";
    if own_pods(registry, node, &asked.namespace).iter().any(|pod| refers(pod, secret, &asked.name)) {
        return Decision::Allowed;
    }
    Decision::Denied(format!("no relationship found between node '{node}' and this object"))
}

fn own_pods(registry: &Registry, node: &str, namespace: &str) -> Vec<std::sync::Arc<Value>> {
    registry.list(&kind::POD, Some(namespace), &Selectors::field("spec.nodeName", node)).0
}

/// Whether a pod uses a Secret or ConfigMap of this name.
fn refers(pod: &Value, secret: bool, name: &str) -> bool {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let spec = &pod["spec"];
    let (volume, projected, env_from, key_ref) = if secret {
        ("secret", "secret", "secretRef", "secretKeyRef")
    } else {
        ("configMap", "configMap", "configMapRef", "configMapKeyRef")
    };
    let volume_name = if secret { "secretName" } else { "name" };
    let by_volume = list(&spec["volumes"])
        .iter()
        .any(|v| v[volume][volume_name] == name || list(&v["projected"]["sources"]).iter().any(|s| s[projected]["name"] == name));
    let by_pull = secret && list(&spec["imagePullSecrets"]).iter().any(|s| s["name"] == name);
    let containers = ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|l| list(&spec[*l]));
    let by_env = containers.into_iter().any(|c| {
        list(&c["envFrom"]).iter().any(|e| e[env_from]["name"] == name)
            || list(&c["env"]).iter().any(|e| e["valueFrom"][key_ref]["name"] == name)
    });
    by_volume || by_pull || by_env
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::auth::NODES;

    #[tokio::test]
    async fn a_node_sees_what_is_its_own() {
        let registry = Registry::open(Path::new(":memory:")).unwrap();
        let admin = Identity::system("test");
        for (name, on, secret) in [("mine", "a", "s1"), ("other", "b", "s2")] {
            let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": on, "containers": [{"name": "c", "image": "x"}],
                "volumes": [{"name": "v", "secret": {"secretName": secret}}]}});
            registry.create(&kind::POD, Some("default"), pod, &admin).await.unwrap();
        }
        let node = Identity::new("system:node:a", &[NODES, AUTHENTICATED]);
        let rows = [
            ("get", "/api/v1/nodes/a", "", true),
            ("get", "/api/v1/nodes/b", "", false),
            ("get", "/api/v1/nodes", "", false),
            ("get", "/api/v1/nodes", "metadata.name=a", true),
            ("get", "/api/v1/pods", "", false),
            ("get", "/api/v1/pods", "spec.nodeName=a", true),
            ("get", "/api/v1/pods", "spec.nodeName=b", false),
            ("get", "/api/v1/namespaces/default/pods/mine", "", true),
            ("get", "/api/v1/namespaces/default/pods/other", "", false),
            ("patch", "/api/v1/namespaces/default/pods/mine", "", false),
            ("patch", "/api/v1/namespaces/default/pods/mine/status", "", true),
            ("get", "/api/v1/namespaces/default/secrets/s1", "", true),
            ("get", "/api/v1/namespaces/default/secrets/s2", "", false),
            ("get", "/api/v1/namespaces/default/secrets", "", false),
            ("get", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", "", true),
            ("get", "/api/v1/services", "", true),
            ("delete", "/api/v1/nodes/a", "", false),
            ("put", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a", "", true),
            ("put", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/b", "", false),
            ("post", "/api/v1/namespaces/default/serviceaccounts/default/token", "", true),
            ("post", "/api/v1/namespaces/kube-system/serviceaccounts/default/token", "", false),
            ("post", "/api/v1/namespaces/default/events", "", true),
            ("get", "/apis/discovery.k8s.io/v1/endpointslices", "", false),
            ("post", "/apis/authentication.k8s.io/v1/tokenreviews", "", true),
        ];
        for (method, path, fields, allowed) in rows {
            let method = method.to_uppercase().parse().unwrap();
            let query = crate::api::request::Query::parse(&format!("fieldSelector={fields}"));
            let info = RequestInfo::parse(&method, path, &query).unwrap();
            let decision = decide(&registry, &node, &Attributes::of(&info, fields));
            assert_eq!(decision == Decision::Allowed, allowed, "{method} {path} {fields}: {decision:?}");
        }
        let controller = Identity::new("system:k3s-controller", &[AUTHENTICATED]);
        for (method, path, allowed) in [
            ("GET", "/api/v1/nodes", true),
            ("PATCH", "/api/v1/nodes/a/status", true),
            ("PATCH", "/api/v1/nodes/a", false),
            ("GET", "/api/v1/services", false),
            ("GET", "/apis/discovery.k8s.io/v1/endpointslices", true),
        ] {
            let info = RequestInfo::parse(&method.parse().unwrap(), path, &crate::api::request::Query::default()).unwrap();
            let decision = decide(&registry, &controller, &Attributes::of(&info, ""));
            assert_eq!(decision == Decision::Allowed, allowed, "{method} {path}");
        }
    }
}
