//! Pure: what a pod should be, what was seen of it, what is remembered, what its probes say and the time → one [`Step`].
//!
//! Called by the worker after every look and every step. A step is always one that makes sense from any state a crash
//! can leave behind; steps that are already done decide to the next one (kubelet-contract 2.4, 2.8, 3.2, 3.7, 3.8).

use runtime::cri::ContainerState;
use runtime::observe::{ObservedContainer, ObservedPod};
use runtime::{ContainerId, SandboxId};

use super::history::History;
use super::litter::litter;
use super::probes::Health;
use super::reasons;
use super::status::phase;
use super::step::{Kill, Step, StopAll};
use super::time::{Nanos, SECOND, rfc3339};
use super::translate;
use super::volumes;
use crate::api::pod::{Container, Pod, RestartPolicy, Terminated};

/// Everything a decision rests on.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// The server no longer has it (or never had): nothing may be left of it here.
    pub removed: bool,
    /// Admission said no: it must not start.
    pub rejected: bool,
    /// The governor ended it for the node's sake.
    pub evicted: bool,
    /// The governor lets nothing of it begin yet; what runs goes on.
    pub held: bool,
    pub seen: &'a ObservedPod,
    pub history: &'a History,
    pub health: &'a Health,
    /// When this node first took it on, for `activeDeadlineSeconds`.
    pub start_time: Option<Nanos>,
    pub now: Nanos,
}

/// The next step.
pub fn decide(facts: &Facts<'_>) -> Step {
    if let Some(retry_at) = facts.history.retry_at {
        // A whole-pod step failed. Stopping is never delayed, so only the way up waits here.
        if facts.now < retry_at && !must_stop(facts) {
            return Step::Wait { until: Some(retry_at) };
        }
    }
    if must_stop(facts) {
        return take_down(facts);
    }
    // Out of sight before anything is concluded from them: the same attempt is then made again.
    let never_began: Vec<ContainerId> = facts.seen.containers.iter().filter(|c| given_up(facts, c)).map(|c| c.id.clone()).collect();
    if !never_began.is_empty() {
        return Step::Discard { containers: never_began, sandboxes: Vec::new() };
    }
    bring_up(facts)
}

/// Whether this pod has to end, now and for good.
pub fn must_stop(facts: &Facts<'_>) -> bool {
    facts.removed
        || facts.rejected
        || facts.evicted
        || facts.pod.is_deleting()
        || facts.pod.is_terminal()
        || past_deadline(facts)
        || is_over(facts)
}

/// When `activeDeadlineSeconds` ends, if there is one.
pub fn deadline(pod: &Pod, start_time: Option<Nanos>) -> Option<Nanos> {
    Some(start_time? + pod.spec.active_deadline_seconds?.saturating_mul(SECOND))
}

/// Whether `activeDeadlineSeconds` is over.
pub fn past_deadline(facts: &Facts<'_>) -> bool {
    deadline(facts.pod, facts.start_time).is_some_and(|at| facts.now >= at)
}

/// Whether nothing is left to run: all regular containers ended for good, or an init container did so in failure.
fn is_over(facts: &Facts<'_>) -> bool {
    let (pod, seen) = (facts.pod, facts.seen);
    let over = |container: &ObservedContainer| ended(container) && !given_up(facts, container);
    let policy = pod.spec.restart_policy;
    let failed_init = pod
        .spec
        .init_containers
        .iter()
        .filter(|c| !c.is_sidecar())
        .any(|c| latest(seen, &c.name).is_some_and(|o| over(o) && o.exit_code != 0 && policy == RestartPolicy::Never));
    let done = |c: &Container| latest(seen, &c.name).is_some_and(|o| over(o) && !phase::may_restart(policy, o.exit_code));
    // A pod whose start failed has no container, one without containers cannot be over.
    failed_init || (!pod.spec.containers.is_empty() && pod.spec.containers.iter().all(done))
}

fn latest<'a>(seen: &'a ObservedPod, name: &str) -> Option<&'a ObservedContainer> {
    seen.container(name)
}

pub(super) fn ended(container: &ObservedContainer) -> bool {
    container.state == ContainerState::ContainerExited
}

/// Its start was given up by a former agent. One that this agent began and saw fail counts, whatever it says: made again
/// at once it might fail without end.
fn given_up(facts: &Facts<'_>, container: &ObservedContainer) -> bool {
    let ours = facts.history.failure(&container.name).is_some_and(|failure| failure.reason != reasons::CONTAINER_CREATING);
    container.never_began() && !ours
}

pub(super) fn is_alive(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::ContainerRunning | ContainerState::ContainerUnknown)
}

fn take_down(facts: &Facts<'_>) -> Step {
    let seen = facts.seen;
    if seen.containers.iter().any(is_alive) {
        return Step::StopAll { why: if facts.removed { StopAll::Orphan } else { StopAll::Over } };
    }
    let ready: Vec<SandboxId> = seen.sandboxes.iter().filter(|s| s.ready).map(|s| s.id.clone()).collect();
    if !ready.is_empty() {
        return Step::StopSandboxes { sandboxes: ready };
    }
    if !facts.history.released {
        return match facts.history.retry_at {
            Some(at) if facts.now < at => Step::Wait { until: Some(at) },
            _ => Step::Release,
        };
    }
    if facts.removed {
        return Step::Forget;
    }
    if facts.pod.is_deleting() && !facts.history.finished {
        return Step::Finish;
    }
    let (containers, sandboxes) = litter(facts, None);
    if !containers.is_empty() || !sandboxes.is_empty() {
        return Step::Discard { containers, sandboxes };
    }
    Step::Wait { until: None }
}

fn bring_up(facts: &Facts<'_>) -> Step {
    let seen = facts.seen;
    if facts.held && seen.is_empty() {
        return Step::Wait { until: deadline(facts.pod, facts.start_time) };
    }
    let newest = seen.sandbox();
    let ready = seen.sandboxes.iter().filter(|s| s.ready).count();
    let current = match newest {
        Some(sandbox) if sandbox.ready && ready == 1 && has_network(facts.pod, sandbox) => sandbox,
        Some(sandbox) => {
            if seen.containers.iter().any(is_alive) {
                return Step::StopAll { why: StopAll::SandboxChanged };
            }
            if ready > 0 {
                let sandboxes = seen.sandboxes.iter().filter(|s| s.ready).map(|s| s.id.clone()).collect();
                return Step::StopSandboxes { sandboxes };
            }
            return make_sandbox(facts, sandbox.attempt + 1);
        }
        // A container without a sandbox in the list cannot be used; the runtime removes both together.
        None => return make_sandbox(facts, 0),
    };

    let mut turn = Turn { facts, sandbox: &current.id, until: deadline(facts.pod, facts.start_time) };
    if let Some(step) = turn.containers() {
        return step;
    }
    let (containers, sandboxes) = litter(facts, Some(&current.id));
    if !containers.is_empty() || !sandboxes.is_empty() {
        return Step::Discard { containers, sandboxes };
    }
    Step::Wait { until: turn.until }
}

/// As on a kubelet a pod has no sandbox before its volumes can be made. What needs no looking up is made beside it.
fn make_sandbox(facts: &Facts<'_>, attempt: u32) -> Step {
    if facts.history.volumes_found || !volumes::may_be_missing(facts.pod) { Step::RunSandbox { attempt } } else { Step::FindVolumes }
}

fn has_network(pod: &Pod, sandbox: &runtime::observe::ObservedSandbox) -> bool {
    let mode_fits = sandbox.host_network.is_none_or(|host| host == pod.spec.host_network);
    mode_fits && (pod.spec.host_network || !sandbox.ips.is_empty())
}

/// The containers of a pod whose sandbox is up.
struct Turn<'a> {
    facts: &'a Facts<'a>,
    sandbox: &'a SandboxId,
    until: Option<Nanos>,
}

impl<'a> Turn<'a> {
    fn containers(&mut self) -> Option<Step> {
        let spec = &self.facts.pod.spec;
        if let Some(step) = spec.ephemeral_containers.iter().find_map(|container| self.ephemeral(container)) {
            return Some(step);
        }
        // Once a regular container exists in this sandbox, init containers have done their work.
        let initialised = spec.containers.iter().any(|c| self.here(c).is_some());
        for container in &spec.init_containers {
            if initialised && !container.is_sidecar() {
                continue;
            }
            let (step, passed) = if container.is_sidecar() { self.sidecar(container) } else { self.init(container) };
            if step.is_some() {
                return step;
            }
            if !passed && !initialised {
                return None;
            }
        }
        spec.containers.iter().find_map(|container| self.regular(container))
    }

    /// The newest instance in this sandbox.
    fn here(&self, container: &Container) -> Option<&'a ObservedContainer> {
        latest(self.facts.seen, &container.name).filter(|o| o.sandbox == *self.sandbox)
    }

    /// One for debugging: started once, whatever else goes on in the pod.
    fn ephemeral(&mut self, container: &Container) -> Option<Step> {
        match latest(self.facts.seen, &container.name) {
            Some(instance) if instance.state == ContainerState::ContainerCreated => self.resume(container, instance.id.clone()),
            Some(_) => None,
            // It was there once, and was removed with its sandbox.
            None if self.facts.pod.status.container(&container.name).is_some_and(|s| !s.container_id.is_empty()) => None,
            None => self.start(container),
        }
    }

    /// A step, or whether the next init container may start.
    fn init(&mut self, container: &Container) -> (Option<Step>, bool) {
        let Some(instance) = self.here(container) else {
            return (self.start(container), false);
        };
        match instance.state {
            ContainerState::ContainerCreated => (self.resume(container, instance.id.clone()), false),
            ContainerState::ContainerRunning => (None, false),
            ContainerState::ContainerExited if instance.exit_code == 0 => (None, true),
            ContainerState::ContainerExited => (self.restart(container, instance), false),
            ContainerState::ContainerUnknown => (Some(kill(container, instance, Kill::Unknown)), false),
        }
    }

    fn sidecar(&mut self, container: &Container) -> (Option<Step>, bool) {
        let Some(instance) = self.here(container) else {
            return (self.start(container), false);
        };
        match instance.state {
            ContainerState::ContainerCreated => (self.resume(container, instance.id.clone()), false),
            ContainerState::ContainerRunning => {
                let started = self.facts.health.started(self.facts.pod, container, &instance.id);
                (self.sick(container, instance), started)
            }
            ContainerState::ContainerExited => (self.restart(container, instance), false),
            ContainerState::ContainerUnknown => (Some(kill(container, instance, Kill::Unknown)), false),
        }
    }

    fn regular(&mut self, container: &Container) -> Option<Step> {
        let Some(instance) = self.here(container) else {
            // One that ended for good in a former sandbox stays ended.
            let former = latest(self.facts.seen, &container.name);
            if former.is_some_and(|o| ended(o) && !phase::may_restart(self.facts.pod.spec.restart_policy, o.exit_code)) {
                return None;
            }
            return self.start(container);
        };
        match instance.state {
            ContainerState::ContainerCreated => self.resume(container, instance.id.clone()),
            ContainerState::ContainerRunning => self.sick(container, instance),
            ContainerState::ContainerExited => {
                if !phase::may_restart(self.facts.pod.spec.restart_policy, instance.exit_code) {
                    return None;
                }
                self.restart(container, instance)
            }
            ContainerState::ContainerUnknown => Some(kill(container, instance, Kill::Unknown)),
        }
    }

    /// Whether a running container has to be stopped.
    fn sick(&self, container: &Container, instance: &ObservedContainer) -> Option<Step> {
        let given = instance.annotations.get(runtime::labels::CONTAINER_HASH);
        if given.is_some_and(|hash| *hash != translate::container_hash(container)) {
            return Some(kill(container, instance, Kill::Changed));
        }
        if self.facts.health.startup_failed(&instance.id) {
            return Some(kill(container, instance, Kill::FailedStartup));
        }
        if self.facts.health.liveness_failed(&instance.id) {
            return Some(kill(container, instance, Kill::FailedLiveness));
        }
        None
    }

    fn restart(&mut self, container: &Container, ended: &ObservedContainer) -> Option<Step> {
        if let Some((until, _)) = self.facts.history.wait_after(container, ended, self.facts.now) {
            self.wait(until);
            return None;
        }
        self.start(container)
    }

    fn start(&mut self, container: &Container) -> Option<Step> {
        if self.must_wait(container) {
            return None;
        }
        Some(Step::Start { container: container.name.clone(), attempt: next_attempt(self.facts.pod, self.facts.seen, &container.name) })
    }

    fn resume(&mut self, container: &Container, id: ContainerId) -> Option<Step> {
        if self.must_wait(container) {
            return None;
        }
        Some(Step::Resume { container: container.name.clone(), id })
    }

    /// Whether the last try failed just now.
    fn must_wait(&mut self, container: &Container) -> bool {
        match self.facts.history.failure(&container.name) {
            Some(failure) if self.facts.now < failure.retry_at => {
                self.wait(failure.retry_at);
                true
            }
            _ => false,
        }
    }

    fn wait(&mut self, until: Nanos) {
        self.until = Some(self.until.map_or(until, |have| have.min(until)));
    }
}

fn kill(container: &Container, instance: &ObservedContainer, why: Kill) -> Step {
    Step::Kill { container: container.name.clone(), id: instance.id.clone(), why }
}

/// Attempt of the next instance: one more than any there is, or than the server remembers. An instance that the server
/// was told of but that never ran is made again, not restarted.
pub fn next_attempt(pod: &Pod, seen: &ObservedPod, name: &str) -> u32 {
    let seen = seen.containers.iter().filter(|c| c.name == name).map(|c| c.attempt + 1).max();
    let told = pod.status.container(name).filter(|s| !s.container_id.is_empty()).map(|s| {
        // A start that failed or was cut short is told with the epoch as its beginning.
        let began = |end: &Option<Terminated>| end.as_ref().is_some_and(|end| end.started_at != Some(rfc3339(0)));
        let ran = s.state.running.is_some() || began(&s.state.terminated) || began(&s.last_state.terminated);
        u32::try_from(s.restart_count).unwrap_or(0) + u32::from(ran)
    });
    seen.or(told).unwrap_or(0)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
