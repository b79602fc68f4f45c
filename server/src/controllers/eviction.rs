//! Taint-based eviction: a pod on a node with a NoExecute taint goes at once if it does not tolerate it, and after
//! `tolerationSeconds` if it tolerates it for a time.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use super::replicaset::earliest;
use super::{Context, Controller, clock, object};
use crate::api::{ApiStatus, DeleteOptions, Kind, Selectors, Subresource, kind};
use crate::scheduler::covers;

/// The controller.
pub struct Eviction {
    context: Context,
    /// By pod UID: since when it has to tolerate something. A restart begins anew, which costs only patience.
    since: HashMap<String, Instant>,
}

/// What becomes of a pod.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesAfter(Duration),
}

impl Eviction {
    /// Works in `context`.
    pub fn new(context: &Context) -> Eviction {
        let mut context = context.clone();
        context.events = context.events.named("taint-eviction-controller");
        Eviction { context, since: HashMap::new() }
    }
}

impl Controller for Eviction {
    const NAME: &'static str = "taint-eviction";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 2] = [&kind::NODE, &kind::POD];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (nodes, _) = registry.list(&kind::NODE, None, &Selectors::default());
        let tainted: HashMap<&str, Vec<&Value>> = nodes
            .iter()
            .map(|node| {
                let taints = node["spec"]["taints"].as_array().into_iter().flatten();
                (object::name(node), taints.filter(|taint| taint["effect"] == "NoExecute").collect::<Vec<_>>())
            })
            .filter(|(_, taints)| !taints.is_empty())
            .collect();
        if tainted.is_empty() {
            self.since.clear();
            return Ok(None);
        }
        let (pods, _) = registry.list(&kind::POD, None, &Selectors::default());
        let now = Instant::now();
        let (mut waiting, mut due, mut again) = (HashMap::new(), Vec::new(), None);
        for pod in pods.iter().filter(|pod| !object::is_deleting(pod)) {
            let taints = pod["spec"]["nodeName"].as_str().and_then(|node| tainted.get(node));
            let Some(taints) = taints else { continue };
            if let Fate::GoesAfter(patience) = fate(pod, taints) {
                let since = self.since.get(object::uid(pod)).copied().unwrap_or(now);
                waiting.insert(object::uid(pod).to_owned(), since);
                match (since + patience).checked_duration_since(now).filter(|left| !left.is_zero()) {
                    Some(left) => again = earliest(again, Some(left)),
                    None => due.push(pod),
                }
            }
        }
        self.since = waiting;
        for pod in due {
            self.evict(pod).await?;
        }
        Ok(again)
    }
}

impl Eviction {
    async fn evict(&self, pod: &Value) -> Result<(), ApiStatus> {
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        let (namespace, name) = (object::namespace(pod), object::name(pod));
        let now = clock::now();
        let change = |pod: &mut Value| {
            let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint" });
            object::set_condition(&mut pod["status"], condition, &now)
        };
        let marked = registry.modify(&kind::POD, Some(namespace), name, Subresource::Status, actor, change).await;
        if marked.as_ref().is_err_and(ApiStatus::is_not_found) {
            return Ok(());
        }
        marked?;
        let options = DeleteOptions { uid: Some(object::uid(pod).to_owned()), ..DeleteOptions::default() };
        info!(namespace, pod = name, node = pod["spec"]["nodeName"].as_str(), "pod evicted");
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.context.events.normal(pod, "TaintManagerEviction", message);
        match registry.delete(&kind::POD, Some(namespace), name, options, actor).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The shortest of the times the pod's tolerations grant; none at all if one taint is not tolerated.
fn fate(pod: &Value, taints: &[&Value]) -> Fate {
    let tolerations: Vec<&Value> = pod["spec"]["tolerations"].as_array().into_iter().flatten().collect();
    let mut patience: Option<Duration> = None;
    for taint in taints {
        let mut covering = tolerations.iter().filter(|toleration| covers(toleration, taint)).peekable();
        if covering.peek().is_none() {
            return Fate::GoesAfter(Duration::ZERO);
        }
        for toleration in covering {
            if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
                patience = earliest(patience, Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))));
            }
        }
    }
    patience.map_or(Fate::Stays, Fate::GoesAfter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_the_shortest_that_is_granted() {
        let unreachable = json!({ "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" });
        let mine = json!({ "key": "mine", "value": "x", "effect": "NoExecute" });
        let tolerate = |seconds: Value| {
            json!({ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds })
        };
        let seconds = |seconds| Fate::GoesAfter(Duration::from_secs(seconds));
        let rows: Vec<(&str, Value, Vec<&Value>, Fate)> = vec![
            ("nothing tolerated", json!([]), vec![&unreachable], seconds(0)),
            ("five minutes", json!([tolerate(json!(300))]), vec![&unreachable], seconds(300)),
            ("for ever", json!([tolerate(Value::Null)]), vec![&unreachable], Fate::Stays),
            ("everything", json!([{ "operator": "Exists" }]), vec![&unreachable, &mine], Fate::Stays),
            ("one of two", json!([tolerate(json!(300))]), vec![&unreachable, &mine], seconds(0)),
            ("shorter wins", json!([tolerate(json!(300)), tolerate(json!(2))]), vec![&unreachable], seconds(2)),
            ("negative is none", json!([tolerate(json!(-1))]), vec![&unreachable], seconds(0)),
        ];
        for (name, tolerations, taints, expected) in rows {
            let pod = json!({ "spec": { "tolerations": tolerations } });
            assert_eq!(fate(&pod, &taints), expected, "{name}");
        }
    }
}
