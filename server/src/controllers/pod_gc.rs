//! What no one else clears away: pods of nodes that are gone, ended pods no node ever had, and passwords of nodes that
//! never came.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::info;

use super::replicaset::earliest;
use super::{Context, Controller, clock, object};
use crate::api::{ApiStatus, DeleteOptions, Kind, Selectors, Subresource, kind};

/// A node has to be gone for this long before its pods go: it may be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How long a password waits for its Node.
const PASSWORD_LIFETIME: time::Duration = time::Duration::minutes(10);
const SWEEP: Duration = Duration::from_secs(60);

/// The controller.
pub struct PodGc {
    context: Context,
    /// Names of missing nodes and since when each is missed.
    missing: HashMap<String, Instant>,
    swept: Option<Instant>,
}

impl PodGc {
    /// Works in `context`.
    pub fn new(context: &Context) -> PodGc {
        let mut context = context.clone();
        context.events = context.events.named("pod-garbage-collector");
        PodGc { context, missing: HashMap::new(), swept: None }
    }
}

impl Controller for PodGc {
    const NAME: &'static str = "pod-gc";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 2] = [&kind::NODE, &kind::POD];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (pods, _) = registry.list(&kind::POD, None, &Selectors::default());
        let now = Instant::now();
        let (mut missing, mut again) = (HashMap::new(), Some(SWEEP));
        for pod in &pods {
            let Some(node) = pod["spec"]["nodeName"].as_str() else {
                if object::is_deleting(pod) {
                    self.remove(pod).await?;
                }
                continue;
            };
            if registry.get(&kind::NODE, None, node).is_ok() {
                continue;
            }
            let since = *missing.entry(node.to_owned()).or_insert_with(|| self.missing.get(node).copied().unwrap_or(now));
            match (since + QUARANTINE).checked_duration_since(now).filter(|left| !left.is_zero()) {
                Some(left) => again = earliest(again, Some(left)),
                None => self.orphan(pod).await?,
            }
        }
        self.missing = missing;
        if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP) {
            self.swept = Some(now);
            self.sweep(OffsetDateTime::now_utc()).await?;
        }
        Ok(again)
    }
}

impl PodGc {
    /// A pod of a node that is gone: it has failed, and no kubelet will ever confirm its end.
    async fn orphan(&self, pod: &Value) -> Result<(), ApiStatus> {
        let now = clock::now();
        let change = |pod: &mut Value| {
            if object::is_finished(pod) {
                return false;
            }
            pod["status"]["phase"] = json!("Failed");
            let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists" });
            object::set_condition(&mut pod["status"], condition, &now);
            true
        };
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        let marked = registry.modify(&kind::POD, Some(namespace), name, Subresource::Status, actor, change).await;
        match marked {
            Err(error) if !error.is_not_found() => Err(error),
            _ => self.remove(pod).await,
        }
    }

    async fn remove(&self, pod: &Value) -> Result<(), ApiStatus> {
        let options = DeleteOptions { grace_period: Some(0), uid: Some(object::uid(pod).to_owned()), ..DeleteOptions::default() };
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        info!(namespace, pod = name, "pod cleared away");
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        match registry.delete(&kind::POD, Some(namespace), name, options, actor).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn sweep(&self, now: OffsetDateTime) -> Result<(), ApiStatus> {
        let registry = &self.context.registry;
        let (secrets, _) = registry.list(&kind::SECRET, Some("kube-system"), &Selectors::default());
        for secret in secrets.iter().filter(|secret| is_forlorn_password(secret, now)) {
            let (actor, name) = (&self.context.actor, object::name(secret));
            match registry.delete(&kind::SECRET, Some("kube-system"), name, DeleteOptions::default(), actor).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_forlorn_password(secret: &Value, now: OffsetDateTime) -> bool {
    let owned = secret["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    let created = secret["metadata"]["creationTimestamp"].as_str().and_then(clock::parse);
    secret["type"] == "k3s.cattle.io/node-password" && !owned && created.is_some_and(|created| created + PASSWORD_LIFETIME < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_waits_ten_minutes_for_its_node() {
        let now = clock::parse("2026-11-23T05:00:00Z").unwrap();
        let mut secret = json!({ "type": "k3s.cattle.io/node-password",
            "metadata": { "creationTimestamp": "2026-11-23T04:49:00Z" } });
        assert!(is_forlorn_password(&secret, now));
        secret["metadata"]["ownerReferences"] = json!([{ "kind": "Node" }]);
        assert!(!is_forlorn_password(&secret, now));
    }
}
