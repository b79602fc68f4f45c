//! Verbs on containers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::{CALL, gone_is_done, unary};
use crate::{Client, ContainerId, Error, Result, SandboxId, cri};

/// Which streams an exec or attach session carries. With `tty` there is no `stderr`: the runtime refuses both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// The caller writes to the process.
    pub stdin: bool,
    /// The process's output is read.
    pub stdout: bool,
    /// The process's error output is read.
    pub stderr: bool,
    /// A terminal is allocated.
    pub tty: bool,
}

/// What a command run inside a container left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB; the runtime cuts the rest.
    pub stdout: bytes::Bytes,
    /// At most 16 MiB; the runtime cuts the rest.
    pub stderr: bytes::Bytes,
    /// Exit status of the command.
    pub exit_code: i32,
}

impl Client {
    /// Creates a container in a sandbox, without starting it. `sandbox_config` is what the sandbox was made with. Not
    /// idempotent: the same name and attempt again makes the runtime answer that the name is taken.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<ContainerId> {
        let subject = config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        let request =
            cri::CreateContainerRequest { pod_sandbox_id: sandbox.to_string(), config: Some(config), sandbox_config: Some(sandbox_config) };
        let answer = unary("CreateContainer", &subject, CALL, request, |r| async move { self.runtime().create_container(r).await }).await?;
        Ok(ContainerId::from(answer.container_id))
    }

    /// Starts a created container. A container that has been started before is an error of the runtime.
    pub async fn start_container(&self, id: &ContainerId) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_string() };
        unary("StartContainer", id, CALL, request, |r| async move { self.runtime().start_container(r).await }).await?;
        Ok(())
    }

    /// Sends the stop signal, waits up to `grace` (whole seconds) and then kills. Returns when the container has
    /// ended. One that is gone or has ended is success.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: id.to_string(), timeout: seconds(grace) };
        gone_is_done(
            unary("StopContainer", id, grace.saturating_add(CALL), request, |r| async move { self.runtime().stop_container(r).await })
                .await,
        )
    }

    /// Removes a container, killing it if it still runs. One that is gone is success.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.remove_with_task(id, || async {
            let request = cri::RemoveContainerRequest { container_id: id.to_string() };
            gone_is_done(unary("RemoveContainer", id, CALL, request, |r| async move { self.runtime().remove_container(r).await }).await)
        })
        .await
    }

    /// Everything the runtime knows of one container.
    pub async fn container_status(&self, id: &ContainerId) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_string(), verbose: false };
        unary("ContainerStatus", id, CALL, request, |r| async move { self.runtime().container_status(r).await })
            .await?
            .status
            .ok_or_else(|| Error::Incomplete { verb: "ContainerStatus", subject: id.to_string(), missing: "status" })
    }

    /// All containers, in any state, that carry every one of `labels`.
    pub async fn list_containers(&self, labels: BTreeMap<String, String>) -> Result<Vec<cri::Container>> {
        let request = cri::ListContainersRequest { filter: Some(cri::ContainerFilter { label_selector: labels, ..Default::default() }) };
        let answer = unary("ListContainers", "", CALL, request, |r| async move { self.runtime().list_containers(r).await }).await?;
        Ok(answer.containers)
    }

    /// Runs `command` in a container and waits for its end. `limit` zero means no limit at all; otherwise the runtime
    /// kills the command when it is over and answers `DeadlineExceeded`. Waits for its turn first ([`crate::starts`]), which is
    /// not part of `limit`.
    pub async fn exec_sync(&self, id: &ContainerId, command: &[String], limit: Duration) -> Result<ExecOutput> {
        let request = cri::ExecSyncRequest { container_id: id.to_string(), cmd: command.to_vec(), timeout: seconds(limit) };
        // Zero means "as long as it takes"; a year is that.
        let ours = if limit.is_zero() { Duration::from_secs(365 * 24 * 3600) } else { limit.saturating_add(CALL) };
        let place = self.place_to_start().await;
        let answer = place.during(unary("ExecSync", id, ours, request, |r| async move { self.runtime().exec_sync(r).await })).await?;
        Ok(ExecOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
    }

    /// A URL on loopback that runs `command` with streams, valid once and for about a minute. The command starts when the URL is
    /// used: whoever does holds a [`Client::place_to_start`] meanwhile.
    pub async fn exec(&self, id: &ContainerId, command: &[String], streams: Streams) -> Result<String> {
        let request = cri::ExecRequest {
            container_id: id.to_string(),
            cmd: command.to_vec(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        };
        let answer = unary("Exec", id, CALL, request, |r| async move { self.runtime().exec(r).await }).await?;
        Ok(answer.url)
    }

    /// A URL on loopback that attaches to the container's main process, valid once and for about a minute.
    pub async fn attach(&self, id: &ContainerId, streams: Streams) -> Result<String> {
        let request = cri::AttachRequest {
            container_id: id.to_string(),
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        };
        let answer = unary("Attach", id, CALL, request, |r| async move { self.runtime().attach(r).await }).await?;
        Ok(answer.url)
    }

    /// Usage of all running containers that carry every one of `labels`.
    pub async fn list_container_stats(&self, labels: BTreeMap<String, String>) -> Result<Vec<cri::ContainerStats>> {
        let request =
            cri::ListContainerStatsRequest { filter: Some(cri::ContainerStatsFilter { label_selector: labels, ..Default::default() }) };
        let answer =
            unary("ListContainerStats", "", CALL, request, |r| async move { self.runtime().list_container_stats(r).await }).await?;
        Ok(answer.stats)
    }

    /// Changes the cgroup limits of a running container.
    pub async fn update_container_resources(&self, id: &ContainerId, resources: cri::LinuxContainerResources) -> Result<()> {
        let request =
            cri::UpdateContainerResourcesRequest { container_id: id.to_string(), linux: Some(resources), annotations: BTreeMap::new() };
        unary("UpdateContainerResources", id, CALL, request, |r| async move { self.runtime().update_container_resources(r).await }).await?;
        Ok(())
    }

    /// Tells the runtime to open the container's log file anew, after the old one was renamed.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_string() };
        unary("ReopenContainerLog", id, CALL, request, |r| async move { self.runtime().reopen_container_log(r).await }).await?;
        Ok(())
    }
}

/// Whole seconds, rounded up so that a short limit never becomes "none".
fn seconds(limit: Duration) -> i64 {
    let up = limit.as_secs().saturating_add(u64::from(limit.subsec_nanos() > 0));
    i64::try_from(up).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_up() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(30)), 30);
        assert_eq!(seconds(Duration::MAX), i64::MAX);
    }
}
