//! Node lifecycle: a node that stops renewing its lease becomes NotReady, and nodes wear the taints their conditions
//! call for.
//!
//! Silence is measured by this machine's monotonic clock, from the moment a renewal was seen: nodes' clocks and steps of
//! ours do not matter, and a restarted server gives every node the whole time again.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use super::replicaset::earliest;
use super::{Context, Controller, clock, object};
use crate::api::{ApiStatus, Kind, Selectors, Subresource, kind};

/// Silence after which a node is no longer believed to be alive.
pub const GRACE: Duration = Duration::from_secs(40);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are True when something is wrong, and the taint each calls for.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The controller.
pub struct Lifecycle {
    context: Context,
    /// By node UID.
    beats: HashMap<String, Beat>,
}

/// The last sign of life: what it said and when it was seen.
struct Beat {
    said: (Value, Value),
    seen: Instant,
}

impl Lifecycle {
    /// Works in `context`.
    pub fn new(context: &Context) -> Lifecycle {
        let mut context = context.clone();
        context.events = context.events.named("node-controller");
        Lifecycle { context, beats: HashMap::new() }
    }

    /// How long `node` has been silent.
    fn silence(&mut self, node: &Value, now: Instant) -> Duration {
        let lease = self.context.registry.get(&kind::LEASE, Some("kube-node-lease"), object::name(node));
        let renewed = lease.map(|lease| lease["spec"]["renewTime"].clone()).unwrap_or_default();
        let heartbeat = object::condition(node, "Ready").map(|ready| ready["lastHeartbeatTime"].clone()).unwrap_or_default();
        let said = (renewed, heartbeat);
        if !self.beats.contains_key(object::uid(node)) {
            let name = object::name(node);
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.context.events.normal(node, "RegisteredNode", message);
        }
        let beat = self.beats.entry(object::uid(node).to_owned()).or_insert_with(|| Beat { said: said.clone(), seen: now });
        if beat.said != said {
            *beat = Beat { said, seen: now };
        }
        now.duration_since(beat.seen)
    }
}

impl Controller for Lifecycle {
    const NAME: &'static str = "node-lifecycle";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 2] = [&kind::NODE, &kind::LEASE];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (nodes, _) = registry.list(&kind::NODE, None, &Selectors::default());
        self.beats.retain(|uid, _| nodes.iter().any(|node| object::uid(node) == uid));
        let now = Instant::now();
        let mut again = None;
        let mut silent = Vec::new();
        for node in &nodes {
            let silence = self.silence(node, now);
            if silence > GRACE {
                silent.push(object::name(node));
            } else {
                // A little later than the limit, so that the look that matters is not a moment too early.
                again = earliest(again, Some(GRACE - silence + Duration::from_millis(10)));
            }
        }
        let text = clock::text(OffsetDateTime::now_utc());
        let is_silent = |node: &Value| silent.contains(&object::name(node));
        let any_ready = nodes.iter().any(|node| !is_silent(node) && is_ready(node));
        for node in &nodes {
            if is_silent(node) {
                self.declare_unknown(node, &text).await?;
            }
            self.taint(node, any_ready, &text).await?;
        }
        Ok(again)
    }
}

impl Lifecycle {
    async fn declare_unknown(&self, node: &Value, now: &str) -> Result<(), ApiStatus> {
        let (registry, actor, name) = (&self.context.registry, &self.context.actor, object::name(node));
        let was_ready = is_ready(node);
        if unknown(&mut node.clone(), now) {
            let change = |node: &mut Value| unknown(node, now);
            registry.modify(&kind::NODE, None, name, Subresource::Status, actor, change).await?;
            warn!(node = name, "node is silent");
            if was_ready {
                let message = format!("Node {name} status is now: NodeNotReady");
                self.context.events.normal(node, "NodeNotReady", message);
            }
        }
        let (pods, _) = registry.list(&kind::POD, None, &Selectors::default());
        for pod in pods.iter().filter(|pod| pod["spec"]["nodeName"] == name && object::is_ready(pod)) {
            let change = |pod: &mut Value| {
                let ready = object::condition(pod, "Ready").cloned();
                ready.is_some_and(|mut ready| {
                    ready["status"] = json!("False");
                    object::set_condition(&mut pod["status"], ready, now)
                })
            };
            let (namespace, pod_name) = (object::namespace(pod), object::name(pod));
            let changed = registry.modify(&kind::POD, Some(namespace), pod_name, Subresource::Status, actor, change).await;
            match changed {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => self.context.events.warning(pod, "NodeNotReady", "Node is not ready"),
            }
        }
        Ok(())
    }

    async fn taint(&self, node: &Value, any_ready: bool, now: &str) -> Result<(), ApiStatus> {
        // Taints follow conditions as they are stored, those just declared unknown come in the next round.
        if !retaint(&mut node.clone(), any_ready, now) {
            return Ok(());
        }
        let (registry, name) = (&self.context.registry, object::name(node));
        let mut after = Value::Null;
        let change = |node: &mut Value| {
            let changed = retaint(node, any_ready, now);
            after = node["spec"]["taints"].clone();
            changed
        };
        registry.modify(&kind::NODE, None, name, Subresource::Main, &self.context.actor, change).await?;
        info!(node = name, taints = %after, "node taints changed");
        Ok(())
    }
}

fn is_ready(node: &Value) -> bool {
    object::condition(node, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// Sets the conditions a kubelet reports to Unknown. Returns whether anything changed.
fn unknown(node: &mut Value, now: &str) -> bool {
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let present = object::condition(node, kind).cloned();
        let (reason, message) = match &present {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        if present.as_ref().is_some_and(|condition| condition["status"] == "Unknown") {
            continue;
        }
        let heartbeat = match &present {
            Some(condition) => condition["lastHeartbeatTime"].clone(),
            None => node["metadata"]["creationTimestamp"].clone(),
        };
        let condition = json!({ "type": kind, "status": "Unknown", "reason": reason, "message": message,
            "lastHeartbeatTime": heartbeat });
        changed |= object::set_condition(&mut node["status"], condition, now);
    }
    changed
}

/// The taints a node's conditions call for: `(key, effect)`.
///
/// When no node at all is ready the fault is more likely between us and them: nothing is evicted then.
fn wanted(node: &Value, any_ready: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let ready = object::condition(node, "Ready").map(|ready| ready["status"].as_str().unwrap_or_default());
    let lost = match ready {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // Registered without a status: not ready yet, but nothing is there to evict.
        None => Some(NOT_READY),
        Some(_) => Some(NOT_READY),
    };
    if let Some(key) = lost {
        wanted.push((key, "NoSchedule"));
        if any_ready && ready.is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if object::condition(node, kind).is_some_and(|condition| condition["status"] == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node["spec"]["unschedulable"] == true {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

fn is_ours(taint: &Value) -> bool {
    let key = taint["key"].as_str().unwrap_or_default();
    let effect = taint["effect"].as_str().unwrap_or_default();
    match effect {
        "NoExecute" => key == NOT_READY || key == UNREACHABLE,
        "NoSchedule" => [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || PRESSURES.iter().any(|(_, pressure)| *pressure == key),
        _ => false,
    }
}

/// Brings the taints this controller owns to the wanted ones, leaving all others. Returns whether anything changed.
fn retaint(node: &mut Value, any_ready: bool, now: &str) -> bool {
    let wanted = wanted(node, any_ready);
    let present = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let is = |taint: &Value, (key, effect): (&str, &str)| taint["key"] == key && taint["effect"] == effect;
    let mut taints: Vec<Value> =
        present.iter().filter(|taint| !is_ours(taint) || wanted.iter().any(|one| is(taint, *one))).cloned().collect();
    for one in wanted {
        if !taints.iter().any(|taint| is(taint, one)) {
            taints.push(json!({ "key": one.0, "effect": one.1, "timeAdded": now }));
        }
    }
    if taints == present {
        return false;
    }
    if taints.is_empty() {
        if let Some(spec) = node["spec"].as_object_mut() {
            spec.remove("taints");
        }
    } else {
        node["spec"]["taints"] = Value::Array(taints);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23T05:00:00Z";

    fn node(conditions: &[(&str, &str)], spec: Value) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| json!({ "type": kind, "status": status, "lastHeartbeatTime": "2026-11-23T04:00:00Z" }))
            .collect();
        json!({ "metadata": { "name": "a" }, "spec": spec, "status": { "conditions": conditions } })
    }

    #[test]
    fn taints_follow_conditions() {
        type Row = (&'static str, &'static [(&'static str, &'static str)], Value, bool, &'static [&'static str]);
        let rows: &[Row] = &[
            ("healthy", &[("Ready", "True")], json!({}), true, &[]),
            ("not ready", &[("Ready", "False")], json!({}), true, &["not-ready:NoSchedule", "not-ready:NoExecute"]),
            ("silent", &[("Ready", "Unknown")], json!({}), true, &["unreachable:NoSchedule", "unreachable:NoExecute"]),
            ("all silent: no eviction", &[("Ready", "Unknown")], json!({}), false, &["unreachable:NoSchedule"]),
            ("new", &[], json!({}), true, &["not-ready:NoSchedule"]),
            ("cordoned", &[("Ready", "True")], json!({ "unschedulable": true }), true, &["unschedulable:NoSchedule"]),
            ("pressure", &[("Ready", "True"), ("MemoryPressure", "True")], json!({}), true, &["memory-pressure:NoSchedule"]),
            (
                "recovered",
                &[("Ready", "True")],
                json!({ "taints": [{ "key": UNREACHABLE, "effect": "NoExecute" }, { "key": NOT_READY, "effect": "NoSchedule" }] }),
                true,
                &[],
            ),
            (
                "foreign taint stays",
                &[("Ready", "True")],
                json!({ "taints": [{ "key": "mine", "effect": "NoExecute" }] }),
                true,
                &["mine:NoExecute"],
            ),
        ];
        for (name, conditions, spec, any_ready, expected) in rows {
            let mut node = node(conditions, spec.clone());
            retaint(&mut node, *any_ready, NOW);
            let got: Vec<String> = node["spec"]["taints"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|taint| {
                    let key = taint["key"].as_str().unwrap().trim_start_matches("node.kubernetes.io/");
                    format!("{key}:{}", taint["effect"].as_str().unwrap())
                })
                .collect();
            assert_eq!(got, *expected, "{name}");
            assert!(!retaint(&mut node, *any_ready, "later"), "{name}: settled");
        }
    }

    #[test]
    fn silent_node_keeps_its_last_heartbeat() {
        let mut node = node(&[("Ready", "True"), ("MemoryPressure", "False")], json!({}));
        assert!(unknown(&mut node, NOW));
        let ready = object::condition(&node, "Ready").unwrap();
        assert_eq!(ready["reason"], "NodeStatusUnknown");
        assert_eq!(ready["lastHeartbeatTime"], "2026-11-23T04:00:00Z");
        assert_eq!(ready["lastTransitionTime"], NOW);
        assert_eq!(object::condition(&node, "PIDPressure").unwrap()["reason"], "NodeStatusNeverUpdated");
        assert!(!unknown(&mut node, "later"), "once");
    }
}
