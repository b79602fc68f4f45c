//! What every namespace has: ServiceAccount `default` and ConfigMap `kube-root-ca.crt`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Context, Controller, object};
use crate::api::{ApiStatus, Kind, Selectors, Subresource, kind};

const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
                           the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
                           Kubernetes clusters.";

/// The controller.
pub struct Namespaces {
    /// Where it works.
    pub context: Context,
    /// PEM of the server CA.
    pub root_ca: String,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespaces";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 3] = [&kind::NAMESPACE, &kind::SERVICE_ACCOUNT, &kind::CONFIG_MAP];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let (namespaces, _) = self.context.registry.list(&kind::NAMESPACE, None, &Selectors::default());
        for namespace in &namespaces {
            if !object::is_deleting(namespace) {
                self.furnish(object::name(namespace)).await?;
            }
        }
        Ok(None)
    }
}

impl Namespaces {
    async fn furnish(&self, namespace: &str) -> Result<(), ApiStatus> {
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        if registry.get(&kind::SERVICE_ACCOUNT, Some(namespace), "default").is_err() {
            let account = json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace },
            });
            ignore_present(registry.create(&kind::SERVICE_ACCOUNT, Some(namespace), account, actor).await)?;
        }
        let data = json!({ "ca.crt": self.root_ca });
        match registry.get(&kind::CONFIG_MAP, Some(namespace), ROOT_CA) {
            Ok(present) if present["data"] == data => Ok(()),
            Ok(_) => {
                let change = |map: &mut Value| {
                    map["data"] = data.clone();
                    true
                };
                registry.modify(&kind::CONFIG_MAP, Some(namespace), ROOT_CA, Subresource::Main, actor, change).await.map(|_| ())
            }
            Err(_) => {
                let map = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": ROOT_CA, "namespace": namespace, "annotations": { "kubernetes.io/description": DESCRIPTION },
                    },
                    "data": data,
                });
                ignore_present(registry.create(&kind::CONFIG_MAP, Some(namespace), map, actor).await)
            }
        }
    }

    /// Creates the four namespaces every cluster has and furnishes them.
    pub async fn bootstrap(&self) -> Result<(), ApiStatus> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            if self.context.registry.get(&kind::NAMESPACE, None, name).is_err() {
                let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
                ignore_present(self.context.registry.create(&kind::NAMESPACE, None, namespace, &self.context.actor).await)?;
            }
            self.furnish(name).await?;
        }
        Ok(())
    }
}

fn ignore_present<T>(created: Result<T, ApiStatus>) -> Result<(), ApiStatus> {
    match created {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}
