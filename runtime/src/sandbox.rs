//! Verbs on pod sandboxes.

use std::collections::BTreeMap;

use crate::client::{CALL, RUN_SANDBOX, gone_is_done, unary};
use crate::{Client, Error, Result, SandboxId, cri};

impl Client {
    /// Creates and starts a sandbox: namespaces, network, pause process. `handler` is the runtime class's handler,
    /// empty for the default. Not idempotent: a second call with the same metadata makes the runtime answer that the
    /// name is taken, so look before calling again.
    pub async fn run_pod_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<SandboxId> {
        let subject = config.metadata.as_ref().map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default();
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let answer =
            unary("RunPodSandbox", &subject, RUN_SANDBOX, request, |r| async move { self.runtime().run_pod_sandbox(r).await }).await?;
        Ok(SandboxId::from(answer.pod_sandbox_id))
    }

    /// Stops the sandbox's containers and takes its network down. A sandbox that is gone or stopped is success.
    pub async fn stop_pod_sandbox(&self, id: &SandboxId) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_string() };
        gone_is_done(unary("StopPodSandbox", id, CALL, request, |r| async move { self.runtime().stop_pod_sandbox(r).await }).await)
    }

    /// Removes the sandbox and its containers, forcibly. A sandbox that is gone is success.
    pub async fn remove_pod_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.remove_with_task(id, || async {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_string() };
            gone_is_done(unary("RemovePodSandbox", id, CALL, request, |r| async move { self.runtime().remove_pod_sandbox(r).await }).await)
        })
        .await
    }

    /// State, addresses and namespaces of one sandbox.
    pub async fn pod_sandbox_status(&self, id: &SandboxId) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
        unary("PodSandboxStatus", id, CALL, request, |r| async move { self.runtime().pod_sandbox_status(r).await })
            .await?
            .status
            .ok_or_else(|| Error::Incomplete { verb: "PodSandboxStatus", subject: id.to_string(), missing: "status" })
    }

    /// All sandboxes, ready or not, that carry every one of `labels`.
    pub async fn list_sandboxes(&self, labels: BTreeMap<String, String>) -> Result<Vec<cri::PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: Some(cri::PodSandboxFilter { label_selector: labels, ..Default::default() }) };
        let answer = unary("ListPodSandbox", "", CALL, request, |r| async move { self.runtime().list_pod_sandbox(r).await }).await?;
        Ok(answer.items)
    }

    /// A URL on loopback that forwards streams to `ports` of the sandbox, valid once and for about a minute.
    pub async fn port_forward(&self, id: &SandboxId, ports: &[u16]) -> Result<String> {
        let request = cri::PortForwardRequest { pod_sandbox_id: id.to_string(), port: ports.iter().map(|p| i32::from(*p)).collect() };
        let answer = unary("PortForward", id, CALL, request, |r| async move { self.runtime().port_forward(r).await }).await?;
        Ok(answer.url)
    }
}
