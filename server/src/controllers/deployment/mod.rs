//! Deployments: a ReplicaSet for each version of the template, and the way from the old ones to the newest.
//!
//! `rollout` decides from the Deployment and its sets what to change, `status` what to report; this file gathers and
//! performs. The steps are those of the real controller, one small step a round.

mod rollout;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tracing::{debug, info};

use super::replicaset::earliest;
use super::{Context, Controller, object};
use crate::api::{ApiStatus, DeleteOptions, Kind, Selectors, Subresource, kind};
use rollout::Step;

/// The controller.
pub struct Deployments {
    context: Context,
}

impl Deployments {
    /// Works in `context`.
    pub fn new(context: &Context) -> Deployments {
        let mut context = context.clone();
        context.events = context.events.named("deployment-controller");
        Deployments { context }
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";

    fn kinds(&self) -> &'static [&'static Kind] {
        // Pods matter to Recreate only, which waits for the last old one to be gone.
        static KINDS: [&Kind; 3] = [&kind::DEPLOYMENT, &kind::REPLICA_SET, &kind::POD];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (deployments, _) = registry.list(&kind::DEPLOYMENT, None, &Selectors::default());
        if deployments.is_empty() {
            return Ok(None);
        }
        let (sets, _) = registry.list(&kind::REPLICA_SET, None, &Selectors::default());
        let mut by_owner: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for set in &sets {
            if let Some(owner) = object::controller(set).and_then(|owner| owner["uid"].as_str()) {
                by_owner.entry(owner).or_default().push(set);
            }
        }
        let mut again: Option<Duration> = None;
        for deployment in &deployments {
            let own = by_owner.get(object::uid(deployment)).map(Vec::as_slice).unwrap_or_default();
            match self.one(deployment, own, &sets).await {
                Ok(wait) => again = earliest(again, wait),
                Err(error) => {
                    let (namespace, name) = (object::namespace(deployment), object::name(deployment));
                    debug!(namespace, deployment = name, %error, "deployment is not done");
                    again = earliest(again, Some(super::RETRY));
                }
            }
        }
        Ok(again)
    }
}

impl Deployments {
    async fn one(&self, deployment: &Value, own: &[&Value], all: &[Arc<Value>]) -> Result<Option<Duration>, ApiStatus> {
        let Some(selector) = object::selector(deployment) else {
            return Ok(None);
        };
        if !object::is_deleting(deployment) {
            let adoptable = all.iter().find(|set| {
                object::namespace(set) == object::namespace(deployment)
                    && object::controller(set).is_none()
                    && !object::is_deleting(set)
                    && selector.matches(set)
            });
            if let Some(set) = adoptable {
                return self.adopt(deployment, set).await.map(|()| None);
            }
        }
        let now = OffsetDateTime::now_utc();
        let view = rollout::View::new(deployment, own);
        let old_pods_run = || self.old_pods_run(&view);
        let steps = rollout::decide(&view, &old_pods_run);
        let events: Vec<status::Note> = steps.iter().filter_map(status::note).collect();
        for step in steps {
            self.perform(deployment, step).await?;
        }
        let (wanted, again) = status::status(&view, &events, now);
        if wanted != deployment["status"] {
            let change = |deployment: &mut Value| {
                let changed = deployment["status"] != wanted;
                deployment["status"] = wanted.clone();
                changed
            };
            self.modify(&kind::DEPLOYMENT, deployment, Subresource::Status, change).await?;
        }
        Ok(again)
    }

    /// Whether a pod of an old set is still there, ending ones included.
    fn old_pods_run(&self, view: &rollout::View<'_>) -> bool {
        let namespace = object::namespace(view.deployment);
        let (pods, _) = self.context.registry.list(&kind::POD, Some(namespace), &Selectors::default());
        pods.iter().filter(|pod| !object::is_finished(pod)).any(|pod| view.old.iter().any(|set| object::is_controlled_by(pod, set)))
    }

    async fn adopt(&self, deployment: &Value, set: &Value) -> Result<(), ApiStatus> {
        let reference = object::controller_reference(deployment);
        let change = |set: &mut Value| {
            if object::controller(set).is_some() {
                return false;
            }
            match set["metadata"]["ownerReferences"].as_array_mut() {
                Some(owners) => owners.push(reference.clone()),
                None => set["metadata"]["ownerReferences"] = json!([reference]),
            }
            true
        };
        self.modify(&kind::REPLICA_SET, set, Subresource::Main, change).await
    }

    async fn perform(&self, deployment: &Value, step: Step) -> Result<(), ApiStatus> {
        let (registry, actor, namespace) = (&self.context.registry, &self.context.actor, object::namespace(deployment));
        let name = object::name(deployment);
        match step {
            Step::CreateSet { set, replicas } => {
                let set_name = object::name(&set).to_owned();
                match registry.create(&kind::REPLICA_SET, Some(namespace), *set, actor).await {
                    Ok(_) => {
                        info!(namespace, deployment = name, replica_set = set_name, "new replica set");
                        if replicas > 0 {
                            let message = format!("Scaled up replica set {set_name} from 0 to {replicas}");
                            self.context.events.normal(deployment, "ScalingReplicaSet", message);
                        }
                        Ok(())
                    }
                    // Another template has this hash: count the collision, and the next round hashes differently.
                    Err(error) if error.is_already_exists() => {
                        let change = |deployment: &mut Value| {
                            let count = deployment["status"]["collisionCount"].as_i64().unwrap_or(0);
                            deployment["status"]["collisionCount"] = json!(count + 1);
                            true
                        };
                        self.modify(&kind::DEPLOYMENT, deployment, Subresource::Status, change).await?;
                        Err(error)
                    }
                    Err(error) => Err(error),
                }
            }
            Step::Scale { set, from, to, annotations } => {
                let change = |set: &mut Value| {
                    let before = set.clone();
                    set["spec"]["replicas"] = json!(to);
                    annotate(set, &annotations);
                    *set != before
                };
                self.modify_named(&kind::REPLICA_SET, namespace, &set, Subresource::Main, change).await?;
                if from != to {
                    let direction = if to > from { "up" } else { "down" };
                    let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
                    self.context.events.normal(deployment, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Step::AnnotateSet { set, annotations, min_ready } => {
                let change = |set: &mut Value| {
                    let before = set.clone();
                    annotate(set, &annotations);
                    set["spec"]["minReadySeconds"] = min_ready.clone();
                    if min_ready.is_null() {
                        if let Some(spec) = set["spec"].as_object_mut() {
                            spec.remove("minReadySeconds");
                        }
                    }
                    *set != before
                };
                self.modify_named(&kind::REPLICA_SET, namespace, &set, Subresource::Main, change).await
            }
            Step::SetRevision(revision) => {
                let change = |deployment: &mut Value| {
                    let changed = deployment["metadata"]["annotations"][rollout::REVISION] != revision;
                    deployment["metadata"]["annotations"][rollout::REVISION] = json!(revision);
                    changed
                };
                self.modify(&kind::DEPLOYMENT, deployment, Subresource::Status, change).await
            }
            Step::DeleteSet(set) => {
                let deleted = registry.delete(&kind::REPLICA_SET, Some(namespace), &set, DeleteOptions::default(), actor).await;
                match deleted {
                    Err(error) if !error.is_not_found() => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    async fn modify(
        &self,
        kind: &'static Kind,
        object: &Value,
        sub: Subresource,
        change: impl FnMut(&mut Value) -> bool + Send,
    ) -> Result<(), ApiStatus> {
        self.modify_named(kind, object::namespace(object), object::name(object), sub, change).await
    }

    async fn modify_named(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        sub: Subresource,
        change: impl FnMut(&mut Value) -> bool + Send,
    ) -> Result<(), ApiStatus> {
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        registry.modify(kind, Some(namespace), name, sub, actor, change).await.map(|_| ())
    }
}

fn annotate(object: &mut Value, annotations: &BTreeMap<String, String>) {
    for (key, value) in annotations {
        object["metadata"]["annotations"][key] = json!(value);
    }
}

#[cfg(test)]
mod tests;
