//! What the kubelet server, metrics and the control socket may know of the pods: one cheap snapshot per pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use runtime::Few;
use runtime::ids::{ContainerId, PodUid, SandboxId};
use tokio::sync::Notify;

use crate::api::pod::Pod;

/// The pods of this node as their workers last saw them. Cheap to clone.
#[derive(Clone, Default)]
pub struct View {
    pods: Arc<RwLock<BTreeMap<PodUid, Arc<PodView>>>>,
    news: Arc<Notify>,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The assigned object; its status is the one this agent computed last.
    pub pod: Arc<Pod>,
    /// The newest sandbox, ready or not.
    pub sandbox: Option<SandboxId>,
    /// By name: init and regular containers of the spec.
    pub containers: Few<ContainerView>,
    /// `<pod-log-dir>/<namespace>_<name>_<uid>`.
    pub log_dir: PathBuf,
    /// The step decided last, for `why`.
    pub last_step: String,
    /// What it waits for, nanoseconds since the epoch; None: for news.
    pub next_try: Option<i64>,
}

/// One container: its newest instance, and the one before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerView {
    /// None when no instance exists.
    pub id: Option<ContainerId>,
    pub attempt: u32,
    /// Whether the newest instance runs right now.
    pub running: bool,
    /// Absolute path of the newest instance's log.
    pub log_path: Option<PathBuf>,
    /// Reason of the waiting state, for "waiting to start" messages.
    pub waiting_reason: Option<String>,
    /// Absolute path of the log of the last ended instance before the newest one that ran; for `logs --previous`.
    pub previous_log_path: Option<PathBuf>,
}

impl View {
    /// All pods, by UID order.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        self.read().values().cloned().collect()
    }

    /// The pod of this name that is not being deleted, else any of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodView>> {
        let pods = self.read();
        let mut found = pods.values().filter(|v| v.pod.metadata.namespace == namespace && v.pod.metadata.name == name);
        let first = found.next()?;
        if !first.pod.is_deleting() {
            return Some(first.clone());
        }
        Some(found.find(|v| !v.pod.is_deleting()).unwrap_or(first).clone())
    }

    /// The pod of a UID.
    pub fn get(&self, uid: &PodUid) -> Option<Arc<PodView>> {
        self.read().get(uid).cloned()
    }

    /// Replaces what is known of a pod; workers call this, and tests of readers.
    pub fn put(&self, uid: PodUid, view: PodView) {
        self.pods.write().unwrap_or_else(|e| e.into_inner()).insert(uid, Arc::new(view));
        self.news.notify_one();
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &PodUid) {
        self.pods.write().unwrap_or_else(|e| e.into_inner()).remove(uid);
        self.news.notify_one();
    }

    /// Completes when something changed since the last call. For one listener, the governor's.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<PodUid, Arc<PodView>>> {
        self.pods.read().unwrap_or_else(|e| e.into_inner())
    }
}
