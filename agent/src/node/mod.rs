//! This machine's Node object: registered, kept truthful, watched for what the cluster decides about it.
//!
//! ```text
//! machine + reservation + runtime ─► status (pure) ─► POST once, then patches on change and now and then
//! own Node (watch) ─► podCIDR ─► network_sync;  labels, taints, amounts ─► pod workers
//! ```

pub mod address;
pub mod machine;
pub mod register;
pub mod reserve;
pub mod resolver;
pub mod skew;
pub mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use self::machine::Machine;
use self::status::{Facts, Pressure, RuntimeFacts};
use crate::api::client::PatchType;
use crate::api::node::{Node, NodeCondition};
use crate::api::pod::ResourceList;
use crate::api::watch::{Change, query_escape};
use crate::api::{Client, Error};
use crate::backoff::Backoff;
use crate::config::{Config, Taint};
use crate::events::{Recorder, Type};
use crate::metrics::Metrics;
use crate::pod::NodeFacts;
use crate::{clock, reboot};

/// Between looks at the runtime while all is well.
const LOOK: Duration = Duration::from_secs(10);
/// Between looks until the node was Ready once, and how long that lasts.
const FAST_LOOK: Duration = Duration::from_millis(100);
const FAST_FOR: Duration = Duration::from_secs(120);
/// Between looks at the list of images.
const IMAGES: Duration = Duration::from_secs(300);
/// The runtime answers within this or counts as down.
const RUNTIME_ANSWERS: Duration = Duration::from_secs(5);
/// A shortage is over when it was not seen for this long (kubelet: evictionPressureTransitionPeriod).
const SHORTAGE_LASTS: Duration = Duration::from_secs(300);

/// What the loop works with.
pub struct Deps {
    pub config: Arc<Config>,
    pub client: Client,
    pub runtime: runtime::Client,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
    pub machine: Machine,
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
    pub node_ips: Vec<IpAddr>,
    pub disable_ccm: bool,
    pub network_annotations: BTreeMap<String, String>,
    pub kubelet_port: u16,
    /// Something about runtime or network changed: look now.
    pub look: Arc<Notify>,
    /// Conditions that other parts know.
    pub extra: watch::Receiver<Vec<status::Extra>>,
    pub started: Instant,
}

/// Where others read what the loop knows.
pub struct Outputs {
    /// The newest Node object of the server; None before registration.
    pub node: watch::Sender<Option<Arc<Node>>>,
    pub facts: watch::Sender<Arc<NodeFacts>>,
    /// What the last accepted status said; None before the first.
    pub ready: watch::Sender<Option<bool>>,
}

struct Loop {
    deps: Deps,
    out: Outputs,
    version: String,
    runtime: RuntimeFacts,
    runtime_ok_at: Option<Instant>,
    images_at: Option<Instant>,
    shortage: [Option<Instant>; 2],
    conditions: Vec<NodeCondition>,
    sent: Map<String, Value>,
    sent_at: Option<Instant>,
}

/// Runs for ever.
pub async fn run(deps: Deps, out: Outputs) {
    let mut this = Loop {
        version: skew::kubelet_version(None),
        deps,
        out,
        runtime: RuntimeFacts::default(),
        runtime_ok_at: None,
        images_at: None,
        shortage: [None, None],
        conditions: Vec::new(),
        sent: Map::new(),
        sent_at: None,
    };
    this.deps.recorder.node_event(Type::Normal, "Starting", "Starting kubelet.");
    // Enforced before this task exists: see `app::machine_setup`.
    this.deps.recorder.node_event(Type::Normal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods");
    this.look_at_runtime().await;
    this.register_and_publish().await;
    this.keep().await;
}

impl Loop {
    fn name(&self) -> &str {
        &self.deps.config.node_name
    }

    async fn register_and_publish(&mut self) {
        let node = self.register().await;
        crate::task::spawn(ensure_csi_node(self.deps.client.clone(), node.metadata.name.clone(), node.metadata.uid.clone()));
        self.publish(node);
    }

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.name())
    }

    /// Until the server has the Node: created, or adopted and corrected.
    async fn register(&mut self) -> Node {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        let mut told = false;
        loop {
            match self.try_register().await {
                Ok(node) => return node,
                Err(error) => {
                    let retry_in = backoff.next_wait();
                    if told {
                        tracing::debug!(error = %error, ?retry_in, "node not registered yet");
                    } else {
                        told = true;
                        tracing::warn!(node = %self.name(), error = %error, "node not registered yet, retrying");
                    }
                    self.deps.client.pause(retry_in).await;
                    self.look_at_runtime().await;
                }
            }
        }
    }

    async fn try_register(&mut self) -> Result<Node, Error> {
        if let Ok(version) = self.deps.client.get::<ServerVersion>("/version").await {
            let minor = skew::minor(&version.minor);
            self.version = skew::kubelet_version(minor);
            if let Some(concern) = minor.and_then(skew::concern) {
                tracing::warn!(minor = version.minor, "{concern}");
            }
        }
        let (body, conditions) = self.compute();
        let network = self.deps.network_annotations.clone();
        let config = Arc::clone(&self.deps.config);
        let node_ips = self.deps.node_ips.clone();
        let identity = register::Identity { config: &config, node_ips: &node_ips, disable_ccm: self.deps.disable_ccm, network: &network };
        let wanted = register::new_node(&identity, body.clone(), &conditions);
        match self.deps.client.post::<Node>("/api/v1/nodes", &wanted).await {
            Ok(node) => {
                tracing::info!(node = %self.name(), "node registered");
                self.accepted(body, conditions);
                return Ok(node);
            }
            Err(error) if error.is_conflict() || error.code() == 403 => {
                tracing::debug!(error = %error, "node exists, adopting it");
            }
            Err(error) => return Err(error),
        }
        let mut node: Node = self.deps.client.get(&self.path()).await?;
        if let Some(patch) = register::correction(&identity, &node) {
            node = self.deps.client.patch(&self.path(), PatchType::Strategic, &patch).await?;
        }
        if !node.status.node_info.boot_id.is_empty() && node.status.node_info.boot_id != self.deps.machine.boot_id {
            let message = format!("Node {} has been rebooted, boot id: {}", self.name(), self.deps.machine.boot_id);
            self.deps.recorder.node_event(Type::Warning, "Rebooted", &message);
        }
        self.conditions.clone_from(&node.status.conditions);
        let addresses = (node.status.addresses.is_empty() || self.deps.disable_ccm).then(|| register::addresses(&identity));
        let (mut body, conditions) = self.compute();
        if let Some(addresses) = addresses {
            body.insert("addresses".to_owned(), addresses);
            // Several InternalIPs share the merge key, so the list is replaced whole.
            body.insert("$patch-addresses".to_owned(), Value::Null);
        }
        self.send(body, conditions, true).await?;
        tracing::info!(node = %self.name(), "node adopted");
        Ok(node)
    }

    /// The status loop and the watch of the own Node.
    async fn keep(mut self) {
        let selector = format!("fieldSelector=metadata.name%3D{}", query_escape(self.name()));
        let mut nodes = self.deps.client.watch::<Node>("/api/v1/nodes", &selector);
        let look = Arc::clone(&self.deps.look);
        let mut extra = self.deps.extra.clone();
        let fast_until = Instant::now() + FAST_FOR;
        loop {
            let ready = *self.out.ready.borrow() == Some(true);
            let wait = if !ready && Instant::now() < fast_until { FAST_LOOK } else { LOOK };
            // The watch keeps its place when another arm wins; the others carry nothing.
            tokio::select! {
                change = nodes.next() => {
                    if self.take(change) {
                        continue;
                    }
                }
                () = look.notified() => {}
                Ok(()) = extra.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            self.look_at_runtime().await;
            let (body, conditions) = self.compute();
            if let Err(error) = self.send(body, conditions, false).await {
                if error.is_not_found() {
                    self.register_and_publish().await;
                } else {
                    tracing::debug!(error = %error, "node status not sent");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Takes a change of the Node; false when the Node is gone and has to be registered again.
    fn take(&mut self, change: Change<Node>) -> bool {
        let node = match change {
            Change::Replaced(nodes) => nodes.into_iter().next(),
            Change::Applied(node) => Some(node),
            Change::Deleted(_) => None,
        };
        match node {
            Some(node) => {
                // After a silence the server says Unknown, or another writer says something else: say it again.
                let denied = |ours: &NodeCondition| node.status.conditions.iter().any(|c| c.kind == ours.kind && c.status != ours.status);
                let stands = !self.conditions.iter().any(denied);
                if !stands {
                    self.sent_at = None;
                }
                self.publish(node);
                stands
            }
            None => {
                tracing::warn!(node = %self.name(), "node object is gone, registering again");
                self.sent.clear();
                self.sent_at = None;
                false
            }
        }
    }

    fn publish(&self, node: Node) {
        let taints =
            node.spec.taints.iter().map(|t| Taint { key: t.key.clone(), value: t.value.clone(), effect: t.effect.clone() }).collect();
        let facts = NodeFacts {
            labels: node.metadata.labels.clone(),
            taints,
            capacity: self.deps.capacity.clone(),
            allocatable: self.deps.allocatable.clone(),
        };
        self.out.facts.send_if_modified(|current| {
            let changed = **current != facts;
            if changed {
                *current = Arc::new(facts);
            }
            changed
        });
        self.out.node.send_replace(Some(Arc::new(node)));
    }

    fn compute(&mut self) -> (Map<String, Value>, Vec<NodeCondition>) {
        let pressure = self.pressure();
        let mut extra = self.deps.extra.borrow_and_update().clone();
        reboot::amend(&mut extra, &self.deps.config.data_dir);
        let facts = Facts {
            machine: &self.deps.machine,
            runtime: &self.runtime,
            capacity: &self.deps.capacity,
            allocatable: &self.deps.allocatable,
            kubelet_version: &self.version,
            kubelet_port: self.deps.kubelet_port,
            pressure,
            extra: &extra,
        };
        (status::body(&facts), status::conditions(&facts, &self.conditions, &clock::now()))
    }

    /// Sends what changed; everything with `all`. Conditions go along whenever anything goes; only their times when nothing else is due.
    async fn send(&mut self, mut body: Map<String, Value>, conditions: Vec<NodeCondition>, all: bool) -> Result<(), Error> {
        let replace_addresses = body.remove("$patch-addresses").is_some();
        let mut patch: Map<String, Value> =
            body.iter().filter(|(key, value)| all || self.sent.get(*key) != Some(value)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let due = self.sent_at.is_none_or(|at| at.elapsed() >= self.deps.config.liveness.report_every);
        let unchanged = patch.is_empty() && status::same(&self.conditions, &conditions);
        if unchanged && !due {
            return Ok(());
        }
        if replace_addresses {
            if let Some(Value::Array(list)) = patch.get_mut("addresses") {
                list.push(json!({"$patch": "replace"}));
            }
        }
        // Without `sent_at` the server is known to say something else, so it gets the whole of it.
        let confirmed = unchanged && self.sent_at.is_some();
        patch.insert("conditions".to_owned(), if confirmed { status::confirmation(&conditions) } else { json!(conditions) });
        let path = format!("{}/status", self.path());
        self.deps.client.patch_only(&path, PatchType::Strategic, &json!({"status": patch})).await?;
        self.accepted(body, conditions);
        Ok(())
    }

    fn accepted(&mut self, body: Map<String, Value>, conditions: Vec<NodeCondition>) {
        for reason in status::flips(&self.conditions, &conditions) {
            let message = format!("Node {} status is now: {reason}", self.name());
            self.deps.recorder.node_event(Type::Normal, reason, &message);
        }
        let ready = conditions.iter().any(|c| c.kind == "Ready" && c.status == "True");
        let before = self.out.ready.send_replace(Some(ready));
        if before != Some(ready) {
            if ready {
                tracing::info!(node = %self.name(), elapsed = ?self.deps.started.elapsed(), "node is ready");
                if before.is_none_or(|before| !before) && self.sent_at.is_none_or(|at| at.elapsed() < FAST_FOR) {
                    self.deps.metrics.first_ready(self.deps.started.elapsed());
                }
            } else {
                let why = conditions.iter().find(|c| c.kind == "Ready").map_or("", |c| c.message.as_str());
                tracing::warn!(node = %self.name(), reason = why, "node is not ready");
            }
        }
        self.conditions = conditions;
        self.sent.extend(body);
        self.sent_at = Some(Instant::now());
    }

    async fn look_at_runtime(&mut self) {
        let looked = tokio::time::timeout(RUNTIME_ANSWERS, async {
            if self.runtime.version.is_empty() {
                let version = self.deps.runtime.version().await?;
                self.runtime.version = format!("{}://{}", version.runtime_name, version.runtime_version.trim_start_matches('v'));
            }
            self.deps.runtime.status().await
        })
        .await;
        match looked {
            Ok(Ok(answer)) => {
                self.runtime_ok_at = Some(Instant::now());
                let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
                let problem = |kind: &str, what: &str| match conditions.iter().find(|c| c.r#type == kind) {
                    Some(c) if c.status => None,
                    Some(c) => Some(format!("{what} not ready: {kind}=false reason:{} message:{}", c.reason, c.message)),
                    None => Some(format!("{what} not ready: {kind} condition is missing")),
                };
                self.runtime.not_ready = problem("RuntimeReady", "container runtime");
                self.runtime.network_not_ready = problem("NetworkReady", "container runtime network");
                self.runtime.handlers = answer
                    .runtime_handlers
                    .iter()
                    .map(|h| {
                        let features = h.features.as_ref();
                        (
                            h.name.clone(),
                            features.is_some_and(|f| f.recursive_read_only_mounts),
                            features.is_some_and(|f| f.user_namespaces),
                        )
                    })
                    .collect();
                self.runtime.supplemental_groups_policy = answer.features.is_some_and(|f| f.supplemental_groups_policy);
                self.look_at_images().await;
            }
            Ok(Err(error)) => self.runtime_failed(&error.to_string()),
            Err(_) => self.runtime_failed("no answer"),
        }
    }

    fn runtime_failed(&mut self, error: &str) {
        tracing::debug!(error, "container runtime does not answer");
        match self.runtime_ok_at {
            None => self.runtime.not_ready = Some("container runtime status check may not have completed yet".to_owned()),
            Some(at) if at.elapsed() > Duration::from_secs(30) => self.runtime.not_ready = Some("container runtime is down".to_owned()),
            // A short silence keeps the last word.
            Some(_) => {}
        }
    }

    async fn look_at_images(&mut self) {
        if self.images_at.is_some_and(|at| at.elapsed() < IMAGES) {
            return;
        }
        let Ok(Ok(images)) = tokio::time::timeout(RUNTIME_ANSWERS, self.deps.runtime.list_images()).await else { return };
        self.images_at = Some(Instant::now());
        let mut list: Vec<(Vec<String>, u64)> = images
            .into_iter()
            .map(|image| (image.repo_digests.into_iter().chain(image.repo_tags).filter(|name| !name.is_empty()).collect(), image.size))
            .collect();
        list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        self.runtime.images = list;
    }

    fn pressure(&mut self) -> Pressure {
        let eviction = &self.deps.config.eviction_hard;
        let disk = eviction.get("nodefs.available").is_some_and(|text| {
            machine::filesystem(&self.deps.config.root_dir).is_some_and(|(size, free)| free < reserve::threshold(text, size))
        });
        let memory = eviction
            .get("memory.available")
            .is_some_and(|text| machine::available_memory().is_some_and(|free| free < reserve::threshold(text, self.deps.machine.memory)));
        let now = Instant::now();
        for (seen, last) in [memory, disk].into_iter().zip(&mut self.shortage) {
            if seen {
                *last = Some(now);
            }
        }
        let short = |last: Option<Instant>| last.is_some_and(|at| now.duration_since(at) < SHORTAGE_LASTS);
        Pressure { memory: short(self.shortage[0]), disk: short(self.shortage[1]), pid: false }
    }
}

#[derive(Deserialize)]
struct ServerVersion {
    minor: String,
}

/// Schedulers and conformance tests look for a CSINode, also of nodes without CSI drivers.
async fn ensure_csi_node(client: Client, name: String, uid: String) {
    let body = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {
            "name": name,
            "annotations": {"storage.alpha.kubernetes.io/migrated-plugins": "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "spec": {"drivers": []},
    });
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    for _ in 0..20 {
        match client.post::<serde::de::IgnoredAny>("/apis/storage.k8s.io/v1/csinodes", &body).await {
            Ok(_) => return,
            Err(error) if error.is_conflict() => return,
            Err(error) if !error.is_retryable() && error.code() != 403 => {
                tracing::warn!(error = %error, "csinode not created");
                return;
            }
            Err(_) => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
}
