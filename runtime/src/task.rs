//! Where containerd's tasks and CRI differ: a task whose container has ended in the eyes of CRI, and a container that CRI still
//! calls running though its task has ended.

use std::collections::{BTreeMap, BTreeSet};

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{DeleteTaskRequest, KillRequest, ListTasksRequest};
use containerd_client::types::v1::Status;

use crate::client::{CALL, gone_is_done, in_namespace, unary};
use crate::cri::{ContainerState, PodSandboxState};
use crate::{Client, ContainerId, Result};

const SIGKILL: u32 = 9;

impl Client {
    /// Does `remove`, and once more without the task that was in its way. A `StartContainer` or `RunPodSandbox` that nobody
    /// waits for any more may end between the making of a task and the note of it: containerd (seen with 1.6) then refuses to
    /// remove the container for ever, "cannot delete running task".
    pub(crate) async fn remove_with_task<F>(&self, id: &str, remove: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        match remove().await {
            Err(error) if error.is_kept_by_task() => {
                self.delete_task(id).await?;
                remove().await
            }
            done => done,
        }
    }

    async fn delete_task(&self, id: &str) -> Result<()> {
        let tasks = || TasksClient::new(self.channel());
        let kill = KillRequest { container_id: id.to_owned(), signal: SIGKILL, all: true, ..KillRequest::default() };
        // Most often nothing of it runs any more.
        let _ = unary("tasks.Kill", id, CALL, kill, |r| async move { tasks().kill(in_namespace(r)).await }).await;
        let delete = DeleteTaskRequest { container_id: id.to_owned() };
        gone_is_done(unary("tasks.Delete", id, CALL, delete, |r| async move { tasks().delete(in_namespace(r)).await }).await)
    }

    /// Containers and sandboxes that CRI calls running or ready and whose task is not, or no longer. CRI learns of an end from an
    /// event of its own and may take seconds over it: who looks in between and hears the event no more would believe it for ever.
    pub async fn ended_unnoticed(&self) -> Result<Vec<ContainerId>> {
        // CRI first: what starts meanwhile is then in neither or in both.
        let (sandboxes, containers) = tokio::try_join!(self.list_sandboxes(BTreeMap::new()), self.list_containers(BTreeMap::new()))?;
        let alive = self.running_tasks().await?;
        let ready = sandboxes.into_iter().filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady).map(|sandbox| sandbox.id);
        let running =
            containers.into_iter().filter(|container| container.state() == ContainerState::ContainerRunning).map(|container| container.id);
        Ok(ready.chain(running).filter(|id| !alive.contains(id)).map(ContainerId::from).collect())
    }

    async fn running_tasks(&self) -> Result<BTreeSet<String>> {
        let request = ListTasksRequest::default();
        let answer =
            unary("tasks.List", "", CALL, request, |r| async move { TasksClient::new(self.channel()).list(in_namespace(r)).await }).await?;
        Ok(answer.tasks.into_iter().filter(|task| task.status() != Status::Stopped).map(|task| task.id).collect())
    }
}
