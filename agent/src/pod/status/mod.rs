//! Pure: a pod, what was seen of it and what its probes say → its status (kubelet-contract 2.5 and 2.6).
//!
//! Fields, their presence, order of conditions, reasons and messages follow the recordings of a kubelet v1.36.

mod conditions;
mod containers;
pub mod phase;

use std::collections::BTreeMap;

use runtime::ContainerId;
use runtime::observe::ObservedPod;

use super::history::History;
use super::probes::Health;
use super::time::{self, Nanos};
use super::{reasons, resources};
use crate::api::pod::{Ip, Pod, PodStatus, ResourceStatus};

/// What a status is derived from.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// The status computed last, by this agent or a former one: transition times, addresses and last states carry over.
    pub before: &'a PodStatus,
    pub seen: &'a ObservedPod,
    pub history: &'a History,
    pub health: &'a Health,
    /// Last words of ended containers.
    pub messages: &'a BTreeMap<ContainerId, String>,
    pub host_ips: &'a [String],
    pub start_time: Nanos,
    /// Set when the pod ends for a reason of its own (deadline, eviction).
    pub cause: Option<Cause<'a>>,
    /// It must end: deleted, deadline, eviction. Nothing will be started.
    pub stopping: bool,
    /// The governor holds it still; why.
    pub frozen: Option<&'a str>,
    pub now: Nanos,
}

/// Why a pod was made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause<'a> {
    pub reason: &'a str,
    pub message: &'a str,
}

/// Status of a pod that admission refused.
pub fn rejected(pod: &Pod, reason: &str, message: &str, now: Nanos) -> PodStatus {
    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: "Failed".to_owned(),
        reason: reason.to_owned(),
        message: format!("Pod was rejected: {message}"),
        start_time: Some(pod.status.start_time.clone().unwrap_or_else(|| time::rfc3339(now))),
        qos_class: resources::qos(pod).as_str().to_owned(),
        ..Default::default()
    }
}

/// The status to publish.
pub fn derive(facts: &Facts<'_>) -> PodStatus {
    let pod = facts.pod;
    let up = facts.seen.sandboxes.iter().any(|s| s.ready);
    let alive = facts
        .seen
        .containers
        .iter()
        .any(|c| matches!(c.state, runtime::cri::ContainerState::ContainerRunning | runtime::cri::ContainerState::ContainerUnknown));
    let torn_down = !up && !alive;
    // What was terminal stays so: its containers may be gone by now.
    if facts.before.is_terminal() && torn_down {
        let mut status = facts.before.clone();
        status.observed_generation = pod.metadata.generation;
        for condition in status.conditions.iter_mut().filter(|c| conditions::is_own(&c.kind)) {
            condition.observed_generation = pod.metadata.generation;
        }
        return status;
    }

    let mut init = containers::statuses(facts, &pod.spec.init_containers, true);
    let mut regular = containers::statuses(facts, &pod.spec.containers, false);
    let natural = match facts.cause {
        Some(_) => phase::Phase::Failed,
        None => phase::natural(pod, &init, &regular, facts.stopping && torn_down),
    };
    let conditions = conditions::derive(facts, natural, &init, &regular, up);
    let mut phase = natural;
    if torn_down && facts.stopping {
        containers::close(facts, &mut init, &mut regular);
        if !phase.is_terminal() {
            phase = phase::Phase::Failed;
        }
    } else if phase.is_terminal() && !torn_down {
        // Held back while anything may still run.
        phase = phase::parse(&facts.before.phase).filter(|p| !p.is_terminal()).unwrap_or(phase::Phase::Pending);
        if regular.iter().any(|c| c.state.running.is_some() || c.state.terminated.is_some()) {
            phase = phase::Phase::Running;
        }
    }
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    let (pod_ip, pod_ips) = addresses(facts);
    let cause = facts.cause.filter(|_| phase.is_terminal());
    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: phase.as_str().to_owned(),
        conditions,
        reason: cause.map(|c| c.reason.to_owned()).unwrap_or_default(),
        message: cause.map(|c| c.message.to_owned()).unwrap_or_default(),
        host_ip: facts.host_ips.first().cloned().unwrap_or_default(),
        host_ips: facts.host_ips.iter().map(|ip| Ip { ip: ip.clone() }).collect(),
        pod_ip,
        pod_ips,
        start_time: Some(time::rfc3339(facts.start_time)),
        init_container_statuses: init,
        container_statuses: regular,
        ephemeral_container_statuses: containers::ephemeral(facts),
        qos_class: resources::qos(pod).as_str().to_owned(),
        allocated_resources: resources::pod_requests(pod),
        resources: Some(ResourceStatus { limits: resources::pod_limits(pod), requests: resources::pod_requests(pod) }),
    }
}

/// Addresses of the newest ready sandbox, else those known before: they outlive the sandbox.
fn addresses(facts: &Facts<'_>) -> (String, Vec<Ip>) {
    let known = || (facts.before.pod_ip.clone(), facts.before.pod_ips.clone());
    if facts.pod.spec.host_network {
        let ips: Vec<Ip> = facts.host_ips.iter().map(|ip| Ip { ip: ip.clone() }).collect();
        return (ips.first().map(|i| i.ip.clone()).unwrap_or_default(), ips);
    }
    let Some(sandbox) = facts.seen.sandboxes.iter().find(|s| s.ready && !s.ips.is_empty()) else {
        return known();
    };
    let mut ips: Vec<Ip> = Vec::new();
    // One per family, in the order of the node's families.
    for host in facts.host_ips {
        let six = host.contains(':');
        ips.extend(sandbox.ips.iter().find(|ip| ip.contains(':') == six).map(|ip| Ip { ip: ip.clone() }));
    }
    if ips.is_empty() {
        ips.push(Ip { ip: sandbox.ips[0].clone() });
    }
    (ips[0].ip.clone(), ips)
}

/// Reason a container that does not exist yet shows when nothing went wrong.
fn idle_reason(pod: &Pod) -> &'static str {
    if pod.spec.init_containers.is_empty() { reasons::CONTAINER_CREATING } else { reasons::POD_INITIALIZING }
}

#[cfg(test)]
#[path = "../status_tests.rs"]
mod tests;
