//! Status of each container of a list.

use runtime::cri::ContainerState as Seen;
use runtime::observe::ObservedContainer;

use super::{Facts, idle_reason, phase};
use crate::api::pod::{
    Container, ContainerState, ContainerStatus, ContainerUser, LinuxUser, ResourceStatus, RestartPolicy, Running, Terminated,
    VolumeMountStatus, Waiting,
};
use crate::pod::{reasons, time};

/// Statuses in spec order.
pub(super) fn statuses(facts: &Facts<'_>, containers: &[Container], init: bool) -> Vec<ContainerStatus> {
    containers.iter().map(|container| status(facts, container, init)).collect()
}

/// Statuses of the containers added for debugging: never ready, never started again.
pub(super) fn ephemeral(facts: &Facts<'_>) -> Vec<ContainerStatus> {
    let status = |container: &Container| {
        let before = facts.before.container(&container.name);
        let mut status = match facts.seen.container(&container.name) {
            Some(newest) => {
                let mut status = status(facts, container, false);
                if matches!(newest.state, Seen::ContainerExited | Seen::ContainerUnknown) {
                    status.state = ContainerState { terminated: Some(terminated(facts, newest)), ..Default::default() };
                }
                status
            }
            None => match before.filter(|b| !b.container_id.is_empty()) {
                Some(before) => {
                    let mut gone = before.clone();
                    close_one(&mut gone);
                    gone
                }
                None => absent(facts, container, None),
            },
        };
        (status.ready, status.started, status.last_state) = (false, None, ContainerState::default());
        (status.resources, status.allocated_resources) = (None, Default::default());
        status
    };
    facts.pod.spec.ephemeral_containers.iter().map(status).collect()
}

fn status(facts: &Facts<'_>, container: &Container, init: bool) -> ContainerStatus {
    let before = facts.before.container(&container.name);
    let mut instances = facts.seen.containers.iter().filter(|c| c.name == container.name);
    let Some(newest) = instances.next() else {
        return absent(facts, container, before);
    };
    let former = instances.find(|c| c.state == Seen::ContainerExited);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
        image: if newest.image.is_empty() { container.image.clone() } else { newest.image.clone() },
        image_id: newest.image_ref.clone(),
        container_id: format!("containerd://{}", newest.id),
        resources: Some(ResourceStatus { limits: container.resources.limits.clone(), requests: container.resources.requests.clone() }),
        allocated_resources: container.resources.requests.clone(),
        volume_mounts: mounts(container),
        user: newest.user.as_ref().map(|u| ContainerUser {
            linux: Some(LinuxUser { uid: u.uid, gid: u.gid, supplemental_groups: u.supplemental_groups.clone() }),
        }),
        ..Default::default()
    };
    status.last_state = match former {
        Some(end) => ContainerState { terminated: Some(terminated(facts, end)), ..Default::default() },
        // Collected since: what was told stays told.
        None => before.filter(|b| b.restart_count == status.restart_count).map(|b| b.last_state.clone()).unwrap_or_default(),
    };
    let sidecar = init && container.is_sidecar();
    match newest.state {
        Seen::ContainerRunning => {
            status.state.running = Some(Running { started_at: Some(time::rfc3339(newest.started_at)) });
            let started = facts.health.started(facts.pod, container, &newest.id);
            status.started = Some(started);
            // A regular init container is ready when it is done.
            status.ready = (sidecar || !init) && started && facts.health.ready(facts.before, container, &newest.id);
        }
        Seen::ContainerCreated => {
            status.started = Some(false);
            status.state.waiting = Some(waiting(facts, container, None));
        }
        Seen::ContainerExited | Seen::ContainerUnknown => {
            let end = terminated(facts, newest);
            status.started = Some(false);
            status.ready = init && !sidecar && end.exit_code == 0;
            status.state.terminated = Some(end);
            show_retry(facts, container, newest, init, &mut status);
        }
    }
    status
}

/// An ended container that will be started again is shown as waiting, once there is something to say.
fn show_retry(facts: &Facts<'_>, container: &Container, newest: &ObservedContainer, init: bool, status: &mut ContainerStatus) {
    let policy = match (init, container.is_sidecar(), facts.pod.spec.restart_policy) {
        (true, true, _) => RestartPolicy::Always,
        (true, false, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (_, _, policy) => policy,
    };
    if facts.stopping || !phase::may_restart(policy, newest.exit_code) {
        return;
    }
    let back_off = facts.history.wait_after(container, newest, facts.now);
    if back_off.is_none() && facts.history.failure(&container.name).is_none() {
        // The wait is over and the start under way: until it succeeds or fails nothing else is told.
        let told = facts.before.container(&container.name).filter(|b| b.restart_count == status.restart_count);
        let told = told.and_then(|b| b.state.waiting.as_ref()).filter(|w| w.reason == reasons::CRASH_LOOP_BACK_OFF);
        if let Some(told) = told {
            status.last_state = std::mem::take(&mut status.state);
            status.state.waiting = Some(told.clone());
        }
        return;
    }
    status.last_state = std::mem::take(&mut status.state);
    status.state.waiting = Some(waiting(facts, container, back_off.map(|b| b.1)));
}

fn waiting(facts: &Facts<'_>, container: &Container, back_off: Option<time::Nanos>) -> Waiting {
    if facts.stopping {
        return Waiting { reason: idle_reason(facts.pod).to_owned(), message: String::new() };
    }
    if let Some(delay) = back_off {
        let meta = &facts.pod.metadata;
        return Waiting {
            reason: reasons::CRASH_LOOP_BACK_OFF.to_owned(),
            message: format!(
                "back-off {} restarting failed container={} pod={}_{}({})",
                time::go_seconds(delay),
                container.name,
                meta.name,
                meta.namespace,
                meta.uid
            ),
        };
    }
    match facts.history.failure(&container.name) {
        Some(failure) => Waiting { reason: failure.reason.to_owned(), message: failure.message.clone() },
        None => Waiting { reason: idle_reason(facts.pod).to_owned(), message: String::new() },
    }
}

/// No instance exists: never made, or lost by the runtime.
fn absent(facts: &Facts<'_>, container: &Container, before: Option<&ContainerStatus>) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        started: Some(false),
        volume_mounts: mounts(container),
        ..Default::default()
    };
    let Some(before) = before.filter(|b| !b.container_id.is_empty()) else {
        status.state.waiting = Some(waiting(facts, container, None));
        return status;
    };
    // It existed. Ended: keep telling so. Never seen running, such as one whose start was given up: nothing ended.
    // Else its end was not seen.
    status.restart_count = before.restart_count;
    let ended = before.state.terminated.as_ref().or(before.last_state.terminated.as_ref().filter(|_| before.state.running.is_none()));
    if ended.is_none() && before.state.running.is_none() {
        status.state.waiting = Some(waiting(facts, container, None));
        return status;
    }
    let end = ended.cloned().unwrap_or_else(|| Terminated {
        exit_code: 137,
        reason: reasons::CONTAINER_STATUS_UNKNOWN.to_owned(),
        message: "The container could not be located when the pod was deleted.  The container used to be Running".to_owned(),
        ..Default::default()
    });
    let done = end.exit_code == 0;
    if facts.stopping || before.state.terminated.is_some() && !phase::may_restart(facts.pod.spec.restart_policy, end.exit_code) {
        return ContainerStatus {
            state: ContainerState { terminated: Some(end), ..Default::default() },
            started: Some(false),
            ready: before.ready && done,
            ..before.clone()
        };
    }
    status.last_state.terminated = Some(end);
    status.state.waiting = Some(waiting(facts, container, None));
    status
}

/// The pod is down for good: containers that must have run and cannot be found are told as lost. What never got its turn,
/// because an init container before it did not finish, stays waiting.
pub(super) fn close(facts: &Facts<'_>, init: &mut [ContainerStatus], regular: &mut [ContainerStatus]) {
    let evidence = |s: &ContainerStatus| s.state.waiting.is_none() || s.last_state.terminated.is_some();
    let tried = init.iter().rposition(evidence).map_or(0, |last| last + 1);
    let initialised = facts.pod.spec.init_containers.iter().zip(init.iter()).all(|(container, status)| {
        container.is_sidecar() && evidence(status) || status.state.terminated.as_ref().is_some_and(|end| end.exit_code == 0)
    });
    init[..tried].iter_mut().for_each(close_one);
    if initialised {
        regular.iter_mut().for_each(close_one);
    }
}

fn close_one(status: &mut ContainerStatus) {
    if status.state.terminated.is_some() {
        return;
    }
    status.ready = false;
    status.started = Some(false);
    if status.last_state.terminated.is_some() {
        status.state = status.last_state.clone();
        return;
    }
    status.state = ContainerState {
        terminated: Some(Terminated {
            exit_code: 137,
            reason: reasons::CONTAINER_STATUS_UNKNOWN.to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
}

fn terminated(facts: &Facts<'_>, end: &ObservedContainer) -> Terminated {
    let message = facts.messages.get(&end.id).filter(|m| !m.is_empty()).unwrap_or(&end.message);
    let (exit_code, reason) = match end.state {
        Seen::ContainerUnknown => (137, reasons::CONTAINER_STATUS_UNKNOWN.to_owned()),
        _ => (end.exit_code, end.reason.clone()),
    };
    Terminated {
        exit_code,
        signal: 0,
        reason,
        message: message.clone(),
        started_at: Some(time::rfc3339(end.started_at)),
        finished_at: Some(time::rfc3339(end.finished_at)),
        container_id: format!("containerd://{}", end.id),
    }
}

fn mounts(container: &Container) -> Vec<VolumeMountStatus> {
    container
        .volume_mounts
        .iter()
        .map(|m| VolumeMountStatus {
            name: m.name.clone(),
            mount_path: m.mount_path.clone(),
            read_only: m.read_only,
            recursive_read_only: m.read_only.then(|| "Disabled".to_owned()),
        })
        .collect()
}
