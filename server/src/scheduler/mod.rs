//! The scheduler: binds pods without a node to the node that suits them best.
//!
//! `filter` and `score` are pure over a [`Cluster`] snapshot; the controller takes the snapshot, binds, and says in
//! the pod's condition and an event why a pod fits nowhere. What a pod may demand and this scheduler does not weigh
//! (preemption, volumes' nodes) never makes it choose a wrong node, only a less good one.

mod affinity;
mod facts;
mod fit;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{debug, info};

use crate::api::{ApiStatus, Kind, Selectors, Subresource, kind};
use crate::auth::Actor;
use crate::controllers::{Context, Controller, clock, object};
pub use facts::{Amounts, Node, PodFacts};
pub use fit::{covers, tolerated};

/// The name pods ask for when they ask for none.
const NAME: &str = "default-scheduler";

/// The controller.
pub struct Scheduler {
    context: Context,
    actor: Actor,
}

impl Scheduler {
    /// Works in `context`, under its own name.
    pub fn new(context: &Context) -> Scheduler {
        let mut context = context.clone();
        context.events = context.events.named(NAME);
        Scheduler { context, actor: Actor::system("kube-scheduler") }
    }
}

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 2] = [&kind::POD, &kind::NODE];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = &self.context.registry;
        let (pods, _) = registry.list(&kind::POD, None, &Selectors::default());
        let mut waiting: Vec<&Value> = pods.iter().map(|pod| &**pod).filter(|pod| is_waiting(pod)).collect();
        if waiting.is_empty() {
            return Ok(None);
        }
        waiting.sort_by_key(|pod| {
            let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
            (-pod["spec"]["priority"].as_i64().unwrap_or(0), created.to_owned(), object::name(pod).to_owned())
        });
        let (nodes, _) = registry.list(&kind::NODE, None, &Selectors::default());
        let mut cluster: Vec<Node> = nodes.iter().map(|node| Node::new(node)).collect();
        for pod in pods.iter().filter(|pod| !object::is_finished(pod)) {
            if let Some(node) = pod["spec"]["nodeName"].as_str() {
                if let Some(node) = cluster.iter_mut().find(|candidate| candidate.name == node) {
                    node.add(PodFacts::new(pod));
                }
            }
        }
        for pod in waiting {
            let facts = PodFacts::new(pod);
            match choose(&facts, &cluster) {
                Ok(index) => {
                    let node = cluster[index].name.clone();
                    self.bind(pod, &node).await?;
                    cluster[index].add(facts);
                }
                Err(why) => self.refuse(pod, &why).await?,
            }
        }
        Ok(None)
    }
}

impl Scheduler {
    async fn bind(&self, pod: &Value, node: &str) -> Result<(), ApiStatus> {
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        match self.context.registry.bind(namespace, name, node, &self.actor).await {
            Ok(()) => {
                info!(namespace, pod = name, node, "pod scheduled");
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.context.events.normal(pod, "Scheduled", message);
                Ok(())
            }
            // Deleted or bound meanwhile: the next round sees it as it is.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                debug!(namespace, pod = name, %error, "pod not bound");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn refuse(&self, pod: &Value, why: &str) -> Result<(), ApiStatus> {
        let wanted = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why });
        let now = clock::now();
        if !object::set_condition(&mut pod["status"].clone(), wanted.clone(), &now) {
            return Ok(());
        }
        self.context.events.warning(pod, "FailedScheduling", why);
        let change = |pod: &mut Value| object::set_condition(&mut pod["status"], wanted.clone(), &now);
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        let changed = self.context.registry.modify(&kind::POD, Some(namespace), name, Subresource::Status, &self.actor, change).await;
        match changed {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn is_waiting(pod: &Value) -> bool {
    let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
    !pod["spec"]["nodeName"].is_string()
        && object::is_active(pod)
        && !gated
        && pod["spec"]["schedulerName"].as_str().unwrap_or(NAME) == NAME
}

/// The index of the best node for `pod`, or why none will do, worded as the real scheduler words it.
pub fn choose(pod: &PodFacts, nodes: &[Node]) -> Result<usize, String> {
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match fit::check(pod, node, nodes) {
            Ok(()) => fitting.push(index),
            Err(why) => {
                for reason in why {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    let best = fitting.into_iter().min_by(|a, b| {
        let (a, b) = (&nodes[*a], &nodes[*b]);
        fit::cost(pod, a, nodes).cmp(&fit::cost(pod, b, nodes)).then_with(|| a.name.cmp(&b.name))
    });
    best.ok_or_else(|| {
        let mut lines: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        lines.sort();
        let total = nodes.len();
        let helpless = format!("preemption: 0/{total} nodes are available: {total} Preemption is not helpful for scheduling.");
        format!("0/{total} nodes are available: {}. {helpless}", lines.join(", "))
    })
}

#[cfg(test)]
mod tests;
