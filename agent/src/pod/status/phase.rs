//! The phase a pod's containers add up to.

use crate::api::pod::{ContainerStatus, Pod, RestartPolicy};

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Whether it never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// A phase by name; None for anything else.
pub fn parse(text: &str) -> Option<Phase> {
    [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed].into_iter().find(|p| p.as_str() == text)
}

/// Whether the policy lets a container start again that ended with this code.
pub fn may_restart(policy: RestartPolicy, exit_code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// The phase by the containers alone. `stopping`: nothing will be started any more.
pub fn natural(pod: &Pod, init: &[ContainerStatus], regular: &[ContainerStatus], stopping: bool) -> Phase {
    let policy = pod.spec.restart_policy;
    let (mut pending, mut pending_sidecars, mut failed) = (0, 0, 0);
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for (container, status) in pod.spec.init_containers.iter().zip(init) {
        let last = status.last_state.terminated.as_ref();
        if container.is_sidecar() {
            if status.state.running.is_some() {
                running += 1;
                pending_sidecars += usize::from(status.started != Some(true));
            } else if status.state.terminated.is_none() && last.is_none() {
                pending_sidecars += 1;
            }
        } else if let Some(end) = &status.state.terminated {
            failed += usize::from(end.exit_code != 0);
        } else if status.state.waiting.is_some() && last.is_some_and(|end| end.exit_code != 0) {
            failed += 1;
        } else {
            pending += 1;
        }
    }
    for status in regular {
        if status.state.running.is_some() {
            running += 1;
        } else if let Some(end) = &status.state.terminated {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if status.last_state.terminated.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let any_regular = regular.iter().any(|c| c.state.waiting.is_none() || c.last_state.terminated.is_some());
    if failed > 0 && policy == RestartPolicy::Never {
        return Phase::Failed;
    }
    // An init container that will be tried again keeps the pod pending.
    if pending > 0 || failed > 0 || pending_sidecars > 0 && !any_regular || waiting > 0 {
        return Phase::Pending;
    }
    if running > 0 {
        return Phase::Running;
    }
    if stopped == 0 {
        return Phase::Pending;
    }
    let by_codes = if stopped == succeeded { Phase::Succeeded } else { Phase::Failed };
    match policy {
        _ if stopping => by_codes,
        RestartPolicy::Always => Phase::Running,
        RestartPolicy::OnFailure if stopped != succeeded => Phase::Running,
        RestartPolicy::OnFailure | RestartPolicy::Never => by_codes,
    }
}
