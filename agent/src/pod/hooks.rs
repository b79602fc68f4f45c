//! postStart and preStop hooks (kubelet-contract 3.9).

use std::time::Duration;

use runtime::{Client, ContainerId};

use super::probes::{self, http};
use crate::api::pod::{Container, LifecycleHandler, Pod};

/// `spec.containers{c}`, `spec.initContainers{c}` or `spec.ephemeralContainers{c}`: where events about a container point.
pub(super) fn field_path(pod: &Pod, container: &str) -> String {
    let list = match container {
        name if pod.spec.init_containers.iter().any(|c| c.name == name) => "initContainers",
        name if pod.is_ephemeral(name) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{container}}}")
}

/// Runs a hook; the error is the waiting message of PostStartHookError. `limit` zero is no limit.
pub(super) async fn run(
    client: &Client,
    pod: &Pod,
    container: &Container,
    id: &ContainerId,
    hook: &LifecycleHandler,
    address: &str,
    limit: Duration,
) -> Result<(), String> {
    let whose = format!(
        "for Container \"{}\" in Pod \"{}_{}({})\" failed",
        container.name, pod.metadata.name, pod.metadata.namespace, pod.metadata.uid
    );
    if let Some(exec) = &hook.exec {
        let shown = exec.command.join(" ");
        return match client.exec_sync(id, &exec.command, limit).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => {
                let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                Err(format!(
                    "Exec lifecycle hook ([{shown}]) {whose} - error: command '{shown}' exited with {}: {err}, message: \"{out}{err}\"",
                    output.exit_code
                ))
            }
            Err(e) => Err(format!("Exec lifecycle hook ([{shown}]) {whose} - error: {}, message: \"\"", e.event_message())),
        };
    }
    if let Some(action) = &hook.http_get {
        let request = probes::request(container, action, address, "kube-lifecycle/1.36")?;
        let limit = if limit.is_zero() { Duration::from_secs(3600) } else { limit };
        // Any answer will do, also a refusal.
        return match http::get(&request, limit).await {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("HTTP lifecycle hook ({}) {whose} - error: {e}", action.path)),
        };
    }
    if let Some(sleep) = &hook.sleep {
        let wait = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(if limit.is_zero() { wait } else { wait.min(limit) }).await;
        return Ok(());
    }
    Err(format!("invalid handler: {whose}"))
}
