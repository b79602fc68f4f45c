//! Shims that containerd forgot.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use nix::sys::signal::Signal;
use tonic::{Request, Status};

use super::process::Process;
use super::{Managed, ManagedOptions, process};
use crate::client::{failed, in_namespace};
use crate::{Client, Result};

impl Managed {
    /// Ends shims that serve nothing: containerd forgets one when a call to start a sandbox is given up at the wrong
    /// moment (the agent was killed), and each holds 4 MB until somebody ends it. Judged twice, `patience` apart, so that
    /// none that is just starting is taken. Returns how many.
    pub async fn sweep(options: &ManagedOptions, patience: Duration) -> usize {
        let look = || async {
            if process::shims_of(&options.socket).is_empty() {
                return Vec::new();
            }
            match known_containers(&options.socket).await {
                Ok(known) => process::idle_shims(&options.socket, &known),
                Err(_) => Vec::new(),
            }
        };
        let first = look().await;
        if first.is_empty() {
            return 0;
        }
        tokio::time::sleep(patience).await;
        let still = look().await;
        let idle: Vec<Process> = first.into_iter().filter(|p| still.contains(p)).collect();
        for shim in &idle {
            tracing::info!(pid = shim.pid, "forgotten shim ended");
            shim.signal(Signal::SIGKILL);
        }
        idle.len()
    }
}

/// Ids of all containers containerd itself knows, sandboxes among them.
async fn known_containers(socket: &Path) -> Result<BTreeSet<String>> {
    let request = in_namespace(Request::new(ListContainersRequest::default()));
    let call = async { ContainersClient::new(Client::connect(socket).channel()).list(request).await };
    let answer = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        .map_err(|status| failed("containers.List", "", status))?;
    let containers = answer.into_inner().containers;
    Ok(containers.into_iter().map(|c| c.id).collect())
}
