//! Events: what happened to an object, in words for `kubectl describe`.
//!
//! Recording never waits: a bounded queue feeds one writer, and what does not fit is dropped with a log line.
//! A repeated event raises the count of the first instead of making another object.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{clock, object};
use crate::api::{PatchType, Registry, Subresource, kind};
use crate::auth::Actor;
use crate::pki::{hex, random};

/// Events waiting to be written. A rollout of a hundred pods makes about three hundred.
const QUEUE: usize = 1024;
/// Events whose repetition is recognised.
const REMEMBERED: usize = 2048;

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    queue: mpsc::Sender<Event>,
}

struct Event {
    component: &'static str,
    object: Value,
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(registry: Arc<Registry>) -> Recorder {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(registry, receiver));
        Recorder { component: "controllermanager", queue }
    }

    /// The same queue, under another component's name.
    pub fn named(&self, component: &'static str) -> Recorder {
        Recorder { component, queue: self.queue.clone() }
    }

    /// Something as it should be.
    pub fn normal(&self, object: &Value, reason: &'static str, message: impl Into<String>) {
        self.record(object, false, reason, message.into());
    }

    /// Something an operator may have to look at.
    pub fn warning(&self, object: &Value, reason: &'static str, message: impl Into<String>) {
        self.record(object, true, reason, message.into());
    }

    fn record(&self, about: &Value, warning: bool, reason: &'static str, message: String) {
        let event = Event { component: self.component, object: reference(about), warning, reason, message };
        if self.queue.try_send(event).is_err() {
            warn!(reason, object = object::name(about), "event dropped");
        }
    }
}

fn reference(object: &Value) -> Value {
    let mut reference = json!({
        "kind": object["kind"],
        "apiVersion": object["apiVersion"],
        "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"],
        "resourceVersion": object["metadata"]["resourceVersion"],
    });
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => reference["namespace"] = json!(namespace),
        // Cluster-scoped objects are found by name: kubectl and kubelets look for events of a Node by its name as UID.
        None if object["kind"] == "Node" => reference["uid"] = object["metadata"]["name"].clone(),
        None => {}
    }
    reference
}

type Key = (String, &'static str, String);

async fn write_all(registry: Arc<Registry>, mut queue: mpsc::Receiver<Event>) {
    let mut seen: HashMap<Key, (String, u64)> = HashMap::new();
    while let Some(event) = queue.recv().await {
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        write(&registry, &mut seen, event).await;
    }
}

async fn write(registry: &Arc<Registry>, seen: &mut HashMap<Key, (String, u64)>, event: Event) {
    let actor = Actor::system(event.component);
    let namespace = event.object["namespace"].as_str().unwrap_or("default").to_owned();
    let key = (event.object["uid"].to_string(), event.reason, event.message.clone());
    let now = clock::now();
    if let Some((name, count)) = seen.get_mut(&key) {
        let patch = json!({ "count": *count + 1, "lastTimestamp": now });
        let patched = registry.patch(&kind::EVENT, Some(&namespace), name, PatchType::Merge, patch, Subresource::Main, &actor).await;
        if patched.is_ok() {
            *count += 1;
            return;
        }
    }
    let name = format!("{}.{}", event.object["name"].as_str().unwrap_or_default(), hex(&random::<8>()));
    let object = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace },
        "involvedObject": event.object,
        "reason": event.reason,
        "message": event.message,
        "source": { "component": event.component },
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "type": if event.warning { "Warning" } else { "Normal" },
        "eventTime": null,
        "reportingComponent": event.component,
        "reportingInstance": "",
    });
    match registry.create(&kind::EVENT, Some(&namespace), object, &actor).await {
        Ok(_) => {
            seen.insert(key, (name, 1));
        }
        // A namespace that is going away takes no new events; that is no one's fault.
        Err(error) => debug!(reason = event.reason, error = %error, "event not written"),
    }
}
