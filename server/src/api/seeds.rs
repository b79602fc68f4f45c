//! What a new database holds: the four namespaces of K3s with their service accounts.

use serde_json::{Value, json};

use super::registry::key;
use super::{kind, meta};
use crate::store::Key;

/// The objects a new database begins with.
pub(super) fn seeds() -> Vec<(Key, Value)> {
    let mut seeds = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let metadata = || json!({"uid": meta::new_uid(), "creationTimestamp": meta::now()});
        let mut namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": metadata(),
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        namespace["metadata"]["name"] = json!(name);
        namespace["metadata"]["labels"] = json!({"kubernetes.io/metadata.name": name});
        seeds.push((key(&kind::NAMESPACE, None, name), namespace));
        let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata()});
        account["metadata"]["name"] = json!("default");
        account["metadata"]["namespace"] = json!(name);
        seeds.push((key(&kind::SERVICE_ACCOUNT, Some(name), "default"), account));
    }
    seeds
}
