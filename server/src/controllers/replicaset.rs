//! ReplicaSets: as many pods as asked for, no more and no fewer.
//!
//! Reads come from the store this server itself writes, so a round always sees what the round before did and no
//! expectations need to be kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::debug;

use super::{Context, Controller, clock, object};
use crate::api::{ApiStatus, DeleteOptions, Kind, Selectors, Subresource, kind};

/// Pods created or deleted for one set in one round.
const BURST: usize = 500;

/// A set that failed waits twice as long each time, between these.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// The controller.
pub struct ReplicaSets {
    context: Context,
    /// By UID of a set that failed.
    failures: HashMap<String, Failure>,
}

/// How a set failed; a changed spec is tried at once.
struct Failure {
    generation: Value,
    wait: Duration,
    until: Instant,
}

impl ReplicaSets {
    /// Works in `context`.
    pub fn new(context: &Context) -> ReplicaSets {
        let mut context = context.clone();
        context.events = context.events.named("replicaset-controller");
        ReplicaSets { context, failures: HashMap::new() }
    }

    /// How long `set` has still to wait after its last failure.
    fn waits(&self, set: &Value, now: Instant) -> Option<Duration> {
        let failure = self.failures.get(object::uid(set))?;
        let left = failure.until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        (failure.generation == set["metadata"]["generation"]).then_some(left)
    }

    fn failed(&mut self, set: &Value, now: Instant) -> Duration {
        let before = self.failures.get(object::uid(set)).map(|failure| failure.wait);
        let wait = before.map_or(BACK_OFF.0, |wait| (wait * 2).min(BACK_OFF.1));
        let generation = set["metadata"]["generation"].clone();
        self.failures.insert(object::uid(set).to_owned(), Failure { generation, wait, until: now + wait });
        wait
    }
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";

    fn kinds(&self) -> &'static [&'static Kind] {
        static KINDS: [&Kind; 2] = [&kind::REPLICA_SET, &kind::POD];
        &KINDS
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = self.context.registry.clone();
        let (sets, _) = registry.list(&kind::REPLICA_SET, None, &Selectors::default());
        let (pods, _) = registry.list(&kind::POD, None, &Selectors::default());
        let mut by_namespace: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
        for pod in &pods {
            by_namespace.entry(object::namespace(pod)).or_default().push(pod);
        }
        self.failures.retain(|uid, _| sets.iter().any(|set| object::uid(set) == uid));
        let mut again: Option<Duration> = None;
        for set in &sets {
            let pods = by_namespace.get(object::namespace(set)).map(Vec::as_slice).unwrap_or_default();
            if let Some(wait) = self.waits(set, Instant::now()) {
                again = earliest(again, Some(wait));
                continue;
            }
            // One set that cannot have its pods must not keep the others from theirs.
            match self.one(set, pods).await {
                Ok(wait) => {
                    self.failures.remove(object::uid(set));
                    again = earliest(again, wait);
                }
                Err(error) => {
                    let wait = self.failed(set, Instant::now());
                    debug!(namespace = object::namespace(set), replica_set = object::name(set), %error, "set is not done");
                    again = earliest(again, Some(wait));
                }
            }
        }
        Ok(again)
    }
}

/// The sooner of two times to look again.
pub(super) fn earliest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What one set needs.
#[derive(Debug, PartialEq)]
enum Step {
    /// Take a matching pod that no one controls.
    Adopt(String),
    /// Let go of a pod whose labels no longer match.
    Release(String),
    Create(usize),
    Delete(Vec<String>),
}

impl ReplicaSets {
    async fn one(&self, set: &Value, pods: &[&Arc<Value>]) -> Result<Option<Duration>, ApiStatus> {
        let pods: Vec<&Value> = pods.iter().map(|pod| &***pod).collect();
        let mut failure = None;
        for step in decide(set, &pods) {
            if let Err(error) = self.perform(set, step).await {
                failure = Some(error);
                break;
            }
        }
        // Pods made in this round wake the next one, which counts them.
        let (registry, namespace, name) = (&self.context.registry, object::namespace(set), object::name(set));
        let (wanted, again) = status(set, &pods, failure.as_ref(), OffsetDateTime::now_utc());
        if wanted != set["status"] {
            let change = |set: &mut Value| {
                let changed = set["status"] != wanted;
                set["status"] = wanted.clone();
                changed
            };
            registry.modify(&kind::REPLICA_SET, Some(namespace), name, Subresource::Status, &self.context.actor, change).await?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(again),
        }
    }

    async fn perform(&self, set: &Value, step: Step) -> Result<(), ApiStatus> {
        let (registry, actor, namespace) = (&self.context.registry, &self.context.actor, object::namespace(set));
        let events = &self.context.events;
        match step {
            Step::Adopt(name) => {
                let reference = object::controller_reference(set);
                let change = |pod: &mut Value| {
                    if object::controller(pod).is_some() {
                        return false;
                    }
                    match pod["metadata"]["ownerReferences"].as_array_mut() {
                        Some(owners) => owners.push(reference.clone()),
                        None => pod["metadata"]["ownerReferences"] = json!([reference]),
                    }
                    true
                };
                gone_is_fine(registry.modify(&kind::POD, Some(namespace), &name, Subresource::Main, actor, change).await)
            }
            Step::Release(name) => {
                let change = |pod: &mut Value| {
                    let Some(owners) = pod["metadata"]["ownerReferences"].as_array_mut() else {
                        return false;
                    };
                    let before = owners.len();
                    owners.retain(|owner| owner["uid"] != set["metadata"]["uid"]);
                    owners.len() != before
                };
                gone_is_fine(registry.modify(&kind::POD, Some(namespace), &name, Subresource::Main, actor, change).await)
            }
            Step::Create(count) => {
                for _ in 0..count {
                    match registry.create(&kind::POD, Some(namespace), pod(set), actor).await {
                        Ok(pod) => events.normal(set, "SuccessfulCreate", format!("Created pod: {}", object::name(&pod))),
                        Err(error) => {
                            events.warning(set, "FailedCreate", format!("Error creating: {error}"));
                            return Err(error);
                        }
                    }
                }
                Ok(())
            }
            Step::Delete(names) => {
                for name in names {
                    gone_is_fine(registry.delete(&kind::POD, Some(namespace), &name, DeleteOptions::default(), actor).await)?;
                    events.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                }
                Ok(())
            }
        }
    }
}

fn gone_is_fine<T>(result: Result<T, ApiStatus>) -> Result<(), ApiStatus> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// A pod of the set's template.
fn pod(set: &Value) -> Value {
    let template = &set["spec"]["template"];
    let mut metadata = json!({
        "generateName": format!("{}-", object::name(set)),
        "namespace": object::namespace(set),
        "ownerReferences": [object::controller_reference(set)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][field].is_null() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] })
}

/// Which pods are this set's, and what brings their number to the wanted one.
fn decide(set: &Value, pods: &[&Value]) -> Vec<Step> {
    let Some(selector) = object::selector(set) else {
        return Vec::new();
    };
    let mut steps = Vec::new();
    let mut own: Vec<&Value> = Vec::new();
    for pod in pods {
        let matches = selector.matches(pod);
        if object::is_controlled_by(pod, set) {
            if matches {
                own.push(pod);
            } else if !object::is_deleting(set) && !object::is_deleting(pod) {
                steps.push(Step::Release(object::name(pod).to_owned()));
            }
        } else if matches && object::controller(pod).is_none() && object::is_active(pod) && !object::is_deleting(set) {
            steps.push(Step::Adopt(object::name(pod).to_owned()));
            own.push(pod);
        }
    }
    if object::is_deleting(set) {
        return Vec::new();
    }
    let mut active: Vec<&Value> = own.into_iter().filter(|pod| object::is_active(pod)).collect();
    let wanted = usize::try_from(object::replicas(set)).unwrap_or(0);
    if active.len() < wanted {
        steps.push(Step::Create((wanted - active.len()).min(BURST)));
    } else if active.len() > wanted {
        let excess = (active.len() - wanted).min(BURST);
        let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
        for pod in &active {
            *per_node.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default()).or_default() += 1;
        }
        active.sort_by_key(|pod| dispensability(pod, &per_node));
        steps.push(Step::Delete(active[..excess].iter().map(|pod| object::name(pod).to_owned()).collect()));
    }
    steps
}

type Rank = (bool, u8, bool, i64, std::cmp::Reverse<usize>, std::cmp::Reverse<String>, i64, std::cmp::Reverse<String>, String);

/// Least rank goes first: not assigned, not yet running, not ready, cheap to delete, crowded on its node, ready for the
/// shortest time, most restarts, youngest.
fn dispensability(pod: &Value, per_node: &BTreeMap<&str, usize>) -> Rank {
    use std::cmp::Reverse;
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let cost = pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let restarts = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|status| status["restartCount"].as_i64())
        .max()
        .unwrap_or(0);
    let since = object::condition(pod, "Ready").and_then(|ready| ready["lastTransitionTime"].as_str());
    let node = pod["spec"]["nodeName"].as_str();
    (
        node.is_some(),
        phase,
        object::is_ready(pod),
        cost,
        Reverse(per_node.get(node.unwrap_or_default()).copied().unwrap_or(0)),
        Reverse(since.unwrap_or_default().to_owned()),
        -restarts,
        Reverse(pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()),
        object::name(pod).to_owned(),
    )
}

/// The status these pods amount to, and when it may change by time alone (`minReadySeconds`).
fn status(set: &Value, pods: &[&Value], failure: Option<&ApiStatus>, now: OffsetDateTime) -> (Value, Option<Duration>) {
    let template = set["spec"]["template"]["metadata"]["labels"].as_object();
    let min_ready = set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
    let (mut replicas, mut labelled, mut ready, mut available) = (0_i64, 0_i64, 0_i64, 0_i64);
    let mut again = None;
    let selector = object::selector(set);
    let own = pods.iter().filter(|pod| {
        object::is_controlled_by(pod, set) && object::is_active(pod) && selector.as_ref().is_some_and(|selector| selector.matches(pod))
    });
    for pod in own {
        replicas += 1;
        let labels = &pod["metadata"]["labels"];
        labelled += i64::from(template.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value)));
        if object::is_ready(pod) {
            ready += 1;
            match time_to_available(pod, min_ready, now) {
                None => available += 1,
                wait => again = earliest(again, wait),
            }
        }
    }
    let mut status = json!({ "replicas": replicas, "observedGeneration": set["metadata"]["generation"] });
    for (field, count) in [("fullyLabeledReplicas", labelled), ("readyReplicas", ready), ("availableReplicas", available)] {
        if count > 0 {
            status[field] = json!(count);
        }
    }
    if let Some(error) = failure {
        status["conditions"] = set["status"]["conditions"].clone();
        let condition = json!({ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": error.message });
        object::set_condition(&mut status, condition, &clock::text(now));
    }
    (status, again)
}

/// How long a ready pod has still to be ready before it counts as available; `None` when it does.
fn time_to_available(pod: &Value, min_ready: i64, now: OffsetDateTime) -> Option<Duration> {
    if min_ready <= 0 {
        return None;
    }
    let since =
        object::condition(pod, "Ready").and_then(|ready| ready["lastTransitionTime"].as_str()).and_then(clock::parse).unwrap_or(now);
    let left = since + time::Duration::seconds(min_ready) - now;
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": { "name": "web-1", "namespace": "default", "uid": "rs", "generation": 1 },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } } },
        })
    }

    fn pod(name: &str, node: &str, phase: &str, ready: bool) -> Value {
        json!({
            "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" },
                "creationTimestamp": "2026-11-23T00:00:00Z", "ownerReferences": [{ "uid": "rs", "controller": true }] },
            "spec": { "nodeName": if node.is_empty() { Value::Null } else { json!(node) } },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" },
                "lastTransitionTime": "2026-11-23T00:00:00Z" }] },
        })
    }

    fn steps(replicas: i64, pods: &[Value]) -> Vec<Step> {
        decide(&set(replicas), &pods.iter().collect::<Vec<_>>())
    }

    fn delete(names: &[&str]) -> Vec<Step> {
        vec![Step::Delete(names.iter().map(|name| (*name).to_owned()).collect())]
    }

    #[test]
    fn number_of_pods_follows_the_spec() {
        let running = |name: &str| pod(name, "a", "Running", true);
        let mut terminating = running("t");
        terminating["metadata"]["deletionTimestamp"] = json!("2026-11-23T00:00:00Z");
        let failed = pod("f", "a", "Failed", false);
        assert_eq!(steps(2, &[]), [Step::Create(2)]);
        assert_eq!(steps(1, &[running("x")]), []);
        assert_eq!(steps(1, &[terminating]), [Step::Create(1)]);
        assert_eq!(steps(1, &[failed]), [Step::Create(1)]);
        assert_eq!(steps(9999, &[]), [Step::Create(BURST)]);
    }

    #[test]
    fn least_useful_pods_go_first() {
        let good = pod("good", "a", "Running", true);
        assert_eq!(steps(1, &[good.clone(), pod("pending", "a", "Pending", false)]), delete(&["pending"]));
        assert_eq!(steps(1, &[good.clone(), pod("unassigned", "", "Pending", false)]), delete(&["unassigned"]));
        assert_eq!(steps(1, &[good.clone(), pod("unready", "a", "Running", false)]), delete(&["unready"]));
        let crowd = [pod("b1", "b", "Running", true), pod("b2", "b", "Running", true), good];
        assert_eq!(steps(2, &crowd), delete(&["b1"]));
    }

    #[test]
    fn strangers_are_adopted_and_relabelled_pods_let_go() {
        let mut orphan = pod("orphan", "a", "Running", true);
        orphan["metadata"]["ownerReferences"] = json!([]);
        assert_eq!(steps(1, &[orphan]), [Step::Adopt("orphan".to_owned())]);
        let mut relabelled = pod("odd", "a", "Running", true);
        relabelled["metadata"]["labels"] = json!({ "app": "debug" });
        assert_eq!(steps(1, &[relabelled]), [Step::Release("odd".to_owned()), Step::Create(1)]);
        let mut other = pod("other", "a", "Running", true);
        other["metadata"]["ownerReferences"][0]["uid"] = json!("someone else");
        assert_eq!(steps(0, &[other]), []);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let mut set = set(1);
        set["spec"]["minReadySeconds"] = json!(10);
        let pod = pod("p", "a", "Running", true);
        let at = |seconds| clock::parse("2026-11-23T00:00:00Z").unwrap() + time::Duration::seconds(seconds);
        let (early, again) = status(&set, &[&pod], None, at(4));
        assert_eq!((early["readyReplicas"].clone(), early["availableReplicas"].clone()), (json!(1), Value::Null));
        assert_eq!(again, Some(Duration::from_secs(6)));
        let (late, again) = status(&set, &[&pod], None, at(10));
        assert_eq!((late["availableReplicas"].clone(), again), (json!(1), None));
    }
}
