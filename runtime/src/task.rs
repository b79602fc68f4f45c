//! What CRI forgets: a task of containerd whose container has ended in the eyes of CRI.

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{DeleteTaskRequest, KillRequest};

use crate::client::{CALL, gone_is_done, in_namespace, unary};
use crate::{Client, Result};

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
}
