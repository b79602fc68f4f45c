//! The yardstick: the CRI calls one pod start cannot do without, made raw, each timed.

use std::time::{Duration, Instant};

use crate::{Client, ContainerId, Result, SandboxId, cri};

/// What one raw pod start took, call by call.
#[derive(Debug, Clone, Copy)]
pub struct RawStart {
    /// RunPodSandbox: namespaces, network plugins, pause process.
    pub sandbox: Duration,
    /// CreateContainer: snapshot, specification.
    pub create: Duration,
    /// StartContainer: shim and runc.
    pub start: Duration,
}

impl RawStart {
    /// All three.
    pub fn total(&self) -> Duration {
        self.sandbox + self.create + self.start
    }
}

/// A pod started raw; stop and remove it with the client's ordinary verbs.
#[derive(Debug, Clone)]
pub struct RawPod {
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Its container.
    pub container: ContainerId,
    /// What it took.
    pub took: RawStart,
}

/// RunPodSandbox, CreateContainer, StartContainer, and nothing between. A comparison is fair only if both sides give
/// the same configurations and the image is on the node.
pub async fn raw_start(client: &Client, sandbox: cri::PodSandboxConfig, container: cri::ContainerConfig) -> Result<RawPod> {
    let began = Instant::now();
    let sandbox_id = client.run_pod_sandbox(sandbox.clone(), "").await?;
    let sandboxed = Instant::now();
    let container_id = client.create_container(&sandbox_id, container, sandbox).await?;
    let created = Instant::now();
    client.start_container(&container_id).await?;
    let took = RawStart { sandbox: sandboxed - began, create: created - sandboxed, start: created.elapsed() };
    Ok(RawPod { sandbox: sandbox_id, container: container_id, took })
}

/// Takes a raw pod away: sandbox stopped and removed, its container with it.
pub async fn raw_remove(client: &Client, pod: &RawPod) -> Result<()> {
    client.stop_container(&pod.container, Duration::ZERO).await?;
    client.stop_pod_sandbox(&pod.sandbox).await?;
    client.remove_pod_sandbox(&pod.sandbox).await
}
