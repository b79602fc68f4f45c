//! The things a worker can do, one at a time.

use runtime::{ContainerId, SandboxId};

use super::time::{self, Nanos};

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing, until news or this instant.
    Wait { until: Option<Nanos> },
    /// Look for what the volumes are made of: ConfigMaps, Secrets, paths of the host.
    FindVolumes,
    /// Volumes, cgroup and a sandbox of this attempt.
    RunSandbox { attempt: u32 },
    /// Image, container of this attempt, start, postStart hook.
    Start { container: String, attempt: u32 },
    /// A container was made and not started yet: start it.
    Resume { container: String, id: ContainerId },
    /// Stop one container gracefully; it may be started again afterwards.
    Kill { container: String, id: ContainerId, why: Kill },
    /// Stop all running containers gracefully, in their order.
    StopAll { why: StopAll },
    /// Take down network and pause of these.
    StopSandboxes { sandboxes: Vec<SandboxId> },
    /// Remove what is dead and no longer of interest.
    Discard { containers: Vec<ContainerId>, sandboxes: Vec<SandboxId> },
    /// Take down mounts, volumes and the pod's cgroup.
    Release,
    /// Tell the server that nothing of this pod runs or is mounted any more.
    Finish,
    /// Remove containers, sandboxes, directories and logs; the worker ends.
    Forget,
}

/// Why one container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// Its image in the spec is another.
    Changed,
    FailedLiveness,
    FailedStartup,
    /// The runtime lost track of it.
    Unknown,
}

/// Why a whole pod is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopAll {
    /// Deleted, past its deadline, or nothing is left for it to do.
    Over,
    /// The server forgot it: the least grace.
    Orphan,
    /// Its sandbox is gone or doubled: it is made anew.
    SandboxChanged,
}

/// For logs and `why`: the step in words, without ids.
pub fn describe(step: &Step) -> String {
    match step {
        Step::Wait { until: None } => "wait for news".to_owned(),
        Step::Wait { until: Some(at) } => format!("wait until {}", time::rfc3339(*at)),
        Step::FindVolumes => "look for what the volumes are made of".to_owned(),
        Step::RunSandbox { attempt } => format!("run sandbox, attempt {attempt}"),
        Step::Start { container, attempt } => {
            format!("start container {container}, attempt {attempt}")
        }
        Step::Resume { container, .. } => format!("start created container {container}"),
        Step::Kill { container, why, .. } => format!("stop container {container}: {why:?}"),
        Step::StopAll { why } => format!("stop all containers: {why:?}"),
        Step::StopSandboxes { sandboxes } => format!("stop {} sandbox(es)", sandboxes.len()),
        Step::Discard { containers, sandboxes } => {
            format!("remove {} dead container(s), {} old sandbox(es)", containers.len(), sandboxes.len())
        }
        Step::Release => "release volumes and cgroup".to_owned(),
        Step::Finish => "tell the server that nothing is left".to_owned(),
        Step::Forget => "remove what is left on the node".to_owned(),
    }
}
