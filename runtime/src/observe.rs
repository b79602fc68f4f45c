//! What exists, grouped by pod. Two lists and one status call for each thing found; nothing is cached.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::cri::{ContainerState, PodSandboxState};
use crate::{Client, ContainerId, Few, PodUid, Result, SandboxId, cri, labels};

/// One sandbox as the runtime shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSandbox {
    /// The runtime's id.
    pub id: SandboxId,
    /// 0 for the first sandbox of a pod, one more for each replacement.
    pub attempt: u32,
    /// Whether its pause process and network are up.
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Pod addresses, primary first; empty on the host network, and when not ready.
    pub ips: Vec<String>,
    /// Whether the pod uses the host's network; `None` where the runtime does not say.
    pub host_network: Option<bool>,
    /// Annotations given at creation.
    pub annotations: Few<String>,
}

/// One container as the runtime shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedContainer {
    /// The runtime's id.
    pub id: ContainerId,
    /// The sandbox it lives in.
    pub sandbox: SandboxId,
    /// Name in the pod spec.
    pub name: String,
    /// 0 for the first container of this name, one more for each restart.
    pub attempt: u32,
    /// Created, running, exited or unknown.
    pub state: ContainerState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 before the start.
    pub started_at: i64,
    /// Nanoseconds since the epoch; 0 before the end.
    pub finished_at: i64,
    /// Meaningful only when exited.
    pub exit_code: i32,
    /// CamelCase, for example `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub reason: String,
    /// Details of the reason.
    pub message: String,
    /// The image as it was asked for.
    pub image: String,
    /// Reference of the image in use, with digest where the runtime knows one.
    pub image_ref: String,
    /// Id of the image in use; empty where the runtime does not say (containerd before 2.0).
    pub image_id: String,
    /// Annotations given at creation, of which only [`labels::READ_BACK`].
    pub annotations: Few<String>,
    /// Absolute path of the log file on the node.
    pub log_path: String,
    /// User and groups of the main process, where the runtime tells.
    pub user: Option<cri::LinuxContainerUser>,
}

/// All sandboxes and containers of one pod UID.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedPod {
    /// From the label `io.kubernetes.pod.uid`.
    pub uid: PodUid,
    /// From the label `io.kubernetes.pod.namespace`.
    pub namespace: String,
    /// From the label `io.kubernetes.pod.name`.
    pub name: String,
    /// Newest first (attempt, then creation time).
    pub sandboxes: Vec<ObservedSandbox>,
    /// By name, and of one name the newest first.
    pub containers: Vec<ObservedContainer>,
}

impl ObservedContainer {
    /// Its start was given up by whoever asked for it, most likely an agent that was killed in the middle: the runtime
    /// cancels what nobody waits for and notes the instance as ended. It never ran, so it is neither a restart nor a
    /// failure of the pod; a kubelet counts it as both.
    pub fn never_began(&self) -> bool {
        self.state == ContainerState::ContainerExited
            && self.started_at == 0
            && self.reason == "StartError"
            // What the container itself is to blame for, such as a command that does not exist, is said by the OCI runtime.
            // A start given up ends in the middle of any call: cancelled, or what served it killed or gone. containerd 1.6
            // also makes containers in a sandbox of process 0 when it is asked no longer; no sandbox has that one.
            && (!self.message.contains("OCI runtime") || ["context canceled", "signal: killed", "/proc/0/ns"].iter().any(|s| self.message.contains(s)))
    }
}

impl ObservedPod {
    /// A pod of which nothing exists.
    pub fn empty(uid: PodUid) -> Self {
        Self { uid, namespace: String::new(), name: String::new(), sandboxes: Vec::new(), containers: Vec::new() }
    }

    /// Whether the runtime has nothing of this pod.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandboxes.first()
    }

    /// The newest container of a name.
    pub fn container(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|c| c.name == name)
    }

    fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| Reverse((s.attempt, s.created_at)));
        self.containers.sort_by(|a, b| (&a.name, b.attempt, b.created_at).cmp(&(&b.name, a.attempt, a.created_at)));
    }
}

/// Every pod the runtime knows, by UID. Sandboxes and containers without the pod labels are somebody else's and left
/// out.
pub async fn observe(client: &Client) -> Result<BTreeMap<PodUid, ObservedPod>> {
    collect(client, BTreeMap::new()).await
}

/// One pod; empty when the runtime has nothing of it.
pub async fn observe_pod(client: &Client, uid: &PodUid) -> Result<ObservedPod> {
    let selector = BTreeMap::from([(labels::POD_UID.to_owned(), uid.to_string())]);
    let mut pods = collect(client, selector).await?;
    Ok(pods.remove(uid).unwrap_or_else(|| ObservedPod::empty(uid.clone())))
}

async fn collect(client: &Client, selector: BTreeMap<String, String>) -> Result<BTreeMap<PodUid, ObservedPod>> {
    let (sandboxes, containers) = tokio::try_join!(client.list_sandboxes(selector.clone()), client.list_containers(selector))?;
    let mut pods = BTreeMap::new();
    for sandbox in sandboxes {
        let Some(pod) = pod_of(&mut pods, &sandbox.labels) else {
            continue;
        };
        // It may go away between the list and the question; then it was not there.
        match client.pod_sandbox_status(&SandboxId::from(sandbox.id)).await {
            Ok(status) => pod.sandboxes.push(sandbox_seen(status)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    for container in containers {
        let Some(pod) = pod_of(&mut pods, &container.labels) else {
            continue;
        };
        match client.container_status(&ContainerId::from(container.id)).await {
            Ok(status) => pod.containers.push(container_seen(container.pod_sandbox_id, status)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    pods.retain(|_, pod| !pod.is_empty());
    for pod in pods.values_mut() {
        pod.sort();
    }
    Ok(pods)
}

fn pod_of<'a>(pods: &'a mut BTreeMap<PodUid, ObservedPod>, found: &BTreeMap<String, String>) -> Option<&'a mut ObservedPod> {
    let uid = PodUid::from(found.get(labels::POD_UID)?);
    let pod = pods.entry(uid.clone()).or_insert_with(|| ObservedPod::empty(uid));
    let text = |key| found.get(key).cloned().unwrap_or_default();
    pod.namespace = text(labels::POD_NAMESPACE);
    pod.name = text(labels::POD_NAME);
    Some(pod)
}

/// A sandbox by its status, for a caller that just made it.
pub fn sandbox_seen(status: cri::PodSandboxStatus) -> ObservedSandbox {
    let ready = status.state() == PodSandboxState::SandboxReady;
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).filter(|ip| !ip.is_empty()).collect();
    // Options nobody asked for are left out by some: the pod's own network is the default.
    let host_network = status
        .linux
        .and_then(|linux| linux.namespaces)
        .map(|namespaces| namespaces.options.unwrap_or_default())
        .map(|options| options.network() == cri::NamespaceMode::Node);
    ObservedSandbox {
        id: SandboxId::from(status.id),
        attempt: status.metadata.unwrap_or_default().attempt,
        ready,
        created_at: status.created_at,
        ips,
        host_network,
        annotations: status.annotations.into_iter().collect(),
    }
}

/// A container of `sandbox` by its status, for a caller that just started it.
pub fn container_seen(sandbox: String, status: cri::ContainerStatus) -> ObservedContainer {
    let state = status.state();
    let metadata = status.metadata.unwrap_or_default();
    let name = status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name);
    ObservedContainer {
        id: ContainerId::from(status.id),
        sandbox: SandboxId::from(sandbox),
        name,
        attempt: metadata.attempt,
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.unwrap_or_default().image,
        image_ref: status.image_ref,
        image_id: status.image_id,
        annotations: status.annotations.into_iter().filter(|(name, _)| labels::READ_BACK.contains(&name.as_str())).collect(),
        log_path: status.log_path,
        user: status.user.and_then(|u| u.linux),
    }
}
