//! What a Deployment's sets should be changed to. Pure: the Deployment and its sets in, steps out.
//!
//! The arithmetic is that of Kubernetes' deployment controller (`pkg/controller/deployment`: `rolling.go`,
//! `recreate.go`, `sync.go`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::controllers::object;

/// Annotation of a Deployment and its sets: which version.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// Label that tells the sets of one Deployment apart.
pub(super) const HASH: &str = "pod-template-hash";
/// Annotations of the Deployment that its sets do not take over.
const OWN: [&str; 5] = [REVISION, HISTORY, DESIRED, MAXIMUM, "kubectl.kubernetes.io/last-applied-configuration"];

type Annotations = BTreeMap<String, String>;

/// One change.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    CreateSet { set: Box<Value>, replicas: i64 },
    Scale { set: String, from: i64, to: i64, annotations: Annotations },
    AnnotateSet { set: String, annotations: Annotations, min_ready: Value },
    SetRevision(String),
    DeleteSet(String),
}

/// A Deployment with its sets told apart.
pub(super) struct View<'a> {
    pub(super) deployment: &'a Value,
    /// The set of the present template.
    pub(super) new: Option<&'a Value>,
    /// All others, oldest first.
    pub(super) old: Vec<&'a Value>,
}

impl<'a> View<'a> {
    pub(super) fn new(deployment: &'a Value, sets: &[&'a Value]) -> View<'a> {
        let mut sets: Vec<&Value> = sets.to_vec();
        sets.sort_by_key(|set| (set["metadata"]["creationTimestamp"].as_str().unwrap_or_default(), object::name(set)));
        let template = without_hash(&deployment["spec"]["template"]);
        // The oldest of several equal ones, so that everyone who looks picks the same.
        let new = sets.iter().position(|set| without_hash(&set["spec"]["template"]) == template);
        let new = new.map(|index| sets.remove(index));
        View { deployment, new, old: sets }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &'a Value> {
        self.old.iter().copied().chain(self.new)
    }

    pub(super) fn replicas(&self) -> i64 {
        object::replicas(self.deployment)
    }

    pub(super) fn is_rolling(&self) -> bool {
        self.deployment["spec"]["strategy"]["type"] != "Recreate"
    }

    /// `(maxSurge, maxUnavailable)` in pods: a share of surge is rounded up, of unavailable down, and both zero would
    /// never get anywhere.
    pub(super) fn limits(&self) -> (i64, i64) {
        if !self.is_rolling() {
            return (0, 0);
        }
        let rolling = &self.deployment["spec"]["strategy"]["rollingUpdate"];
        let surge = portion(&rolling["maxSurge"], self.replicas(), true);
        let unavailable = portion(&rolling["maxUnavailable"], self.replicas(), false);
        match (surge, unavailable) {
            (0, 0) => (0, 1),
            limits => limits,
        }
    }

    /// How many pods may be missing.
    pub(super) fn max_unavailable(&self) -> i64 {
        if !self.is_rolling() || self.replicas() == 0 {
            return 0;
        }
        self.limits().1.min(self.replicas())
    }

    fn size_annotations(&self) -> Annotations {
        let surge = self.limits().0;
        BTreeMap::from([(DESIRED.to_owned(), self.replicas().to_string()), (MAXIMUM.to_owned(), (self.replicas() + surge).to_string())])
    }

    fn scale(&self, set: &Value, to: i64) -> Option<Step> {
        let annotations = self.size_annotations();
        let from = object::replicas(set);
        let annotated = annotations.iter().all(|(key, value)| set["metadata"]["annotations"][key] == **value);
        (from != to || !annotated).then(|| Step::Scale { set: object::name(set).to_owned(), from, to, annotations })
    }

    fn collisions(&self) -> i64 {
        self.deployment["status"]["collisionCount"].as_i64().unwrap_or(0)
    }
}

/// `3` or `"25%"` of `total`; absent is 25 %.
fn portion(value: &Value, total: i64, up: bool) -> i64 {
    if let Some(number) = value.as_i64() {
        return number.max(0);
    }
    let text = value.as_str().unwrap_or("25%");
    let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(25);
    let exact = percent.max(0) * total;
    if up { (exact + 99) / 100 } else { exact / 100 }
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    let metadata = &mut template["metadata"];
    if let Some(labels) = metadata["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    template
}

fn sum(sets: impl Iterator<Item = i64>) -> i64 {
    sets.sum()
}

fn active<'a>(sets: &[&'a Value]) -> Vec<&'a Value> {
    sets.iter().copied().filter(|set| object::replicas(set) > 0).collect()
}

/// The next steps. `old_pods_run` is asked only where it matters (Recreate).
pub(super) fn decide(view: &View<'_>, old_pods_run: &dyn Fn() -> bool) -> Vec<Step> {
    if object::is_deleting(view.deployment) {
        return Vec::new();
    }
    if view.deployment["spec"]["paused"] == true || is_scaling(view) {
        return scale(view).into_iter().chain(clean_up(view)).collect();
    }
    let rollout = if view.is_rolling() { rolling(view) } else { recreate(view, old_pods_run) };
    let mut steps = new_set_annotations(view);
    if rollout.is_empty() && super::status::is_complete(view) {
        steps.extend(clean_up(view));
    }
    steps.extend(rollout);
    steps
}

/// The wanted number differs from the one the sets were last sized for.
fn is_scaling(view: &View<'_>) -> bool {
    let wanted = view.replicas().to_string();
    view.all()
        .filter(|set| object::replicas(set) > 0)
        .any(|set| set["metadata"]["annotations"][DESIRED].as_str().is_some_and(|desired| desired != wanted))
}

fn scale(view: &View<'_>) -> Vec<Step> {
    let running: Vec<&Value> = active(&view.all().collect::<Vec<_>>());
    let only = match running.as_slice() {
        [] => view.new.or_else(|| view.old.last().copied()),
        [only] => Some(*only),
        _ => None,
    };
    if let Some(set) = only {
        return view.scale(set, view.replicas()).into_iter().collect();
    }
    if running.is_empty() {
        return Vec::new();
    }
    if view.new.is_some_and(|new| is_saturated(view, new)) {
        return active(&view.old).into_iter().filter_map(|set| view.scale(set, 0)).collect();
    }
    if view.is_rolling() { proportionally(view, running) } else { Vec::new() }
}

fn is_saturated(view: &View<'_>, set: &Value) -> bool {
    let wanted = view.replicas();
    object::replicas(set) == wanted
        && set["metadata"]["annotations"][DESIRED].as_str() == Some(&wanted.to_string())
        && object::count(set, "availableReplicas") == wanted
}

/// Spreads a change of size in the middle of a rollout over all running sets by their share.
fn proportionally(view: &View<'_>, mut sets: Vec<&Value>) -> Vec<Step> {
    let surge = view.limits().0;
    let allowed = if view.replicas() > 0 { view.replicas() + surge } else { 0 };
    let to_add = allowed - sum(sets.iter().map(|set| object::replicas(set)));
    // Largest first; of equal ones the newer grows first and the older shrinks first.
    sets.sort_by_key(|set| (std::cmp::Reverse(object::replicas(set)), creation(set).to_owned()));
    if to_add > 0 {
        sets.sort_by(|a, b| object::replicas(b).cmp(&object::replicas(a)).then_with(|| creation(b).cmp(creation(a))));
    }
    let mut added = 0;
    let mut sizes: Vec<i64> = Vec::new();
    for set in &sets {
        let size = object::replicas(set);
        let share = if to_add == 0 { 0 } else { fraction(view, set) };
        let left = to_add - added;
        let change = if to_add > 0 { share.min(left) } else { share.max(left) };
        sizes.push(size + change);
        added += change;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sets.iter().zip(sizes).filter_map(|(set, size)| view.scale(set, size)).collect()
}

fn creation(set: &Value) -> &str {
    set["metadata"]["creationTimestamp"].as_str().unwrap_or_default()
}

fn fraction(view: &View<'_>, set: &Value) -> i64 {
    let size = object::replicas(set);
    let annotated = set["metadata"]["annotations"][MAXIMUM].as_str().and_then(|text| text.parse::<i64>().ok());
    let before = annotated.filter(|maximum| *maximum > 0).unwrap_or_else(|| object::count(view.deployment, "replicas").max(1));
    let after = view.replicas() + view.limits().0;
    (2 * size * after + before) / (2 * before) - size
}

/// Keeps revision, copied annotations and `minReadySeconds` of the newest set current.
fn new_set_annotations(view: &View<'_>) -> Vec<Step> {
    let Some(new) = view.new else {
        return Vec::new();
    };
    let mut steps = Vec::new();
    let revision = (latest_revision(&view.old) + 1).max(revision_of(new));
    let mut annotations = copied(view.deployment);
    annotations.insert(REVISION.to_owned(), revision.to_string());
    let before = revision_of(new);
    if before != revision && before != 0 {
        let history = new["metadata"]["annotations"][HISTORY].as_str().unwrap_or_default();
        let history = if history.is_empty() { before.to_string() } else { format!("{history},{before}") };
        annotations.insert(HISTORY.to_owned(), history);
    }
    let present = |(key, value): (&String, &String)| new["metadata"]["annotations"][key] == **value;
    let min_ready = view.deployment["spec"]["minReadySeconds"].clone();
    if !annotations.iter().all(present) || new["spec"]["minReadySeconds"] != min_ready {
        steps.push(Step::AnnotateSet { set: object::name(new).to_owned(), annotations, min_ready });
    }
    if view.deployment["metadata"]["annotations"][REVISION].as_str() != Some(&revision.to_string()) {
        steps.push(Step::SetRevision(revision.to_string()));
    }
    steps
}

fn revision_of(set: &Value) -> i64 {
    set["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn latest_revision(sets: &[&Value]) -> i64 {
    sets.iter().map(|set| revision_of(set)).max().unwrap_or(0)
}

fn copied(deployment: &Value) -> Annotations {
    deployment["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !OWN.contains(&key.as_str()))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn rolling(view: &View<'_>) -> Vec<Step> {
    let total = sum(view.all().map(object::replicas));
    let Some(new) = view.new else {
        let replicas = room_for_new(view, 0, total);
        return vec![create(view, replicas), revision_step(view)];
    };
    let size = object::replicas(new);
    // One direction a round: what was scaled up must first be counted before anything is scaled down.
    if size > view.replicas() {
        return view.scale(new, view.replicas()).into_iter().collect();
    }
    if size < view.replicas() {
        let wanted = size + room_for_new(view, size, total);
        if wanted != size {
            return view.scale(new, wanted).into_iter().collect();
        }
    }
    shrink_old(view, new, total)
}

fn room_for_new(view: &View<'_>, size: i64, total: i64) -> i64 {
    let room = view.replicas() + view.limits().0 - total;
    room.min(view.replicas() - size).max(0)
}

fn shrink_old(view: &View<'_>, new: &Value, total: i64) -> Vec<Step> {
    let old = active(&view.old);
    if old.is_empty() {
        return Vec::new();
    }
    let least = view.replicas() - view.max_unavailable();
    let new_unavailable = object::replicas(new) - object::count(new, "availableReplicas");
    let mut most = total - least - new_unavailable;
    if most <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i64> = old.iter().map(|set| object::replicas(set)).collect();
    // Pods that do no work anyway go first.
    for (set, size) in old.iter().zip(&mut sizes) {
        let idle = (*size - object::count(set, "availableReplicas")).max(0).min(most);
        *size -= idle;
        most -= idle;
    }
    let available = sum(view.all().map(|set| object::count(set, "availableReplicas")));
    let mut spare = (available - least).max(0);
    for size in &mut sizes {
        let less = (*size).min(spare);
        *size -= less;
        spare -= less;
    }
    old.iter().zip(sizes).filter(|(set, size)| object::replicas(set) != *size).filter_map(|(set, size)| view.scale(set, size)).collect()
}

fn recreate(view: &View<'_>, old_pods_run: &dyn Fn() -> bool) -> Vec<Step> {
    let old = active(&view.old);
    if !old.is_empty() {
        return old.into_iter().filter_map(|set| view.scale(set, 0)).collect();
    }
    if !view.old.is_empty() && old_pods_run() {
        return Vec::new();
    }
    match view.new {
        None => vec![create(view, view.replicas()), revision_step(view)],
        Some(new) if object::replicas(new) != view.replicas() => view.scale(new, view.replicas()).into_iter().collect(),
        Some(_) => Vec::new(),
    }
}

fn revision_step(view: &View<'_>) -> Step {
    Step::SetRevision((latest_revision(&view.old) + 1).to_string())
}

/// The set for the present template.
fn create(view: &View<'_>, replicas: i64) -> Step {
    let deployment = view.deployment;
    let hash = hash(&without_hash(&deployment["spec"]["template"]), view.collisions());
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let mut annotations = copied(deployment);
    annotations.extend(view.size_annotations());
    annotations.insert(REVISION.to_owned(), (latest_revision(&view.old) + 1).to_string());
    let mut spec = json!({ "replicas": replicas, "selector": selector, "template": template });
    if !deployment["spec"]["minReadySeconds"].is_null() {
        spec["minReadySeconds"] = deployment["spec"]["minReadySeconds"].clone();
    }
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", object::name(deployment)),
            "namespace": object::namespace(deployment),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [object::controller_reference(deployment)],
        },
        "spec": spec,
    });
    Step::CreateSet { set: Box::new(set), replicas }
}

/// FNV-1a over the template, written in the alphabet Kubernetes uses so that no words come out.
fn hash(template: &Value, collisions: i64) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = template.to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// Old sets beyond `revisionHistoryLimit`, oldest revision first.
fn clean_up(view: &View<'_>) -> Vec<Step> {
    let limit = view.deployment["spec"]["revisionHistoryLimit"].as_u64().unwrap_or(10);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut idle: Vec<&&Value> = view
        .old
        .iter()
        .filter(|set| {
            object::replicas(set) == 0
                && object::count(set, "replicas") == 0
                && object::count(set, "observedGeneration") >= set["metadata"]["generation"].as_i64().unwrap_or(0)
                && !object::is_deleting(set)
        })
        .collect();
    let excess = view.old.len().saturating_sub(limit);
    idle.sort_by_key(|set| revision_of(set));
    idle.into_iter().take(excess).map(|set| Step::DeleteSet(object::name(set).to_owned())).collect()
}
