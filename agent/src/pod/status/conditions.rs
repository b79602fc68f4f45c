//! The five conditions of a pod, in the kubelet's order; foreign ones keep their place before them.

use super::Facts;
use super::phase::Phase;
use crate::api::pod::{ContainerStatus, PodCondition};
use crate::pod::{governed, time};

const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Whether the node owns conditions of this type.
pub(super) fn is_own(kind: &str) -> bool {
    OWN.contains(&kind)
}

/// Truth of one condition, and why not.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

fn yes() -> Verdict {
    Verdict { holds: true, reason: "", message: String::new() }
}

fn no(reason: &'static str, message: String) -> Verdict {
    Verdict { holds: false, reason, message }
}

pub(super) fn derive(
    facts: &Facts<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    up: bool,
) -> Vec<PodCondition> {
    let ready_containers = containers_ready(facts, phase, init, regular);
    let frozen = facts.frozen.filter(|_| !phase.is_terminal());
    let ready = if let Some(why) = frozen {
        no(governed::FROZEN, why.to_owned())
    } else if ready_containers.holds {
        gates(facts)
    } else {
        no(ready_containers.reason, ready_containers.message.clone())
    };
    let sandbox = Verdict { holds: up, reason: "", message: String::new() };
    let verdicts = [sandbox, initialized(facts, phase, init, regular), ready, ready_containers, yes()];
    let foreign = facts.pod.status.conditions.iter().filter(|c| !is_own(&c.kind)).cloned();
    let disrupted = facts.cause.filter(|cause| cause.reason == governed::EVICTED).map(|cause| Verdict {
        holds: true,
        reason: governed::TERMINATION_BY_KUBELET,
        message: cause.message.to_owned(),
    });
    let disrupted = disrupted.map(|verdict| condition(facts, governed::DISRUPTION_TARGET, verdict));
    let foreign = foreign.filter(|c| disrupted.is_none() || c.kind != governed::DISRUPTION_TARGET).chain(disrupted.clone());
    foreign.chain(OWN.iter().zip(verdicts).map(|(kind, verdict)| condition(facts, kind, verdict))).collect()
}

fn condition(facts: &Facts<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let unchanged = facts.before.condition(kind).filter(|c| c.status == status);
    PodCondition {
        kind: kind.to_owned(),
        observed_generation: facts.pod.metadata.generation,
        status: status.to_owned(),
        last_probe_time: None,
        last_transition_time: unchanged.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(time::rfc3339(facts.now))),
        reason: verdict.reason.to_owned(),
        message: verdict.message,
    }
}

fn initialized(facts: &Facts<'_>, phase: Phase, init: &[ContainerStatus], regular: &[ContainerStatus]) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict { holds: true, reason: "PodCompleted", message: String::new() };
    }
    if regular.iter().any(|c| c.started == Some(true) || !c.container_id.is_empty()) {
        return yes();
    }
    let open = |(container, status): (&crate::api::pod::Container, &ContainerStatus)| {
        let done = if container.is_sidecar() { status.started == Some(true) } else { status.ready };
        (!done).then(|| status.name.clone())
    };
    let names: Vec<String> = facts.pod.spec.init_containers.iter().zip(init).filter_map(open).collect();
    if names.is_empty() {
        yes()
    } else {
        no("ContainersNotInitialized", format!("containers with incomplete status: [{}]", names.join(" ")))
    }
}

fn containers_ready(facts: &Facts<'_>, phase: Phase, init: &[ContainerStatus], regular: &[ContainerStatus]) -> Verdict {
    match phase {
        Phase::Succeeded => return no("PodCompleted", String::new()),
        Phase::Failed => return no("PodFailed", String::new()),
        Phase::Pending | Phase::Running => {}
    }
    let sidecars = facts.pod.spec.init_containers.iter().zip(init).filter(|(c, _)| c.is_sidecar()).map(|(_, s)| s);
    let names: Vec<&str> = sidecars.chain(regular).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if names.is_empty() { yes() } else { no("ContainersNotReady", format!("containers with unready status: [{}]", names.join(" "))) }
}

fn gates(facts: &Facts<'_>) -> Verdict {
    let conditions = &facts.pod.status.conditions;
    let problems: Vec<String> = facts
        .pod
        .spec
        .readiness_gates
        .iter()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match conditions.iter().find(|c| c.kind == *kind) {
                None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
                Some(c) if c.status != "True" => {
                    Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", c.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    if problems.is_empty() { yes() } else { no("ReadinessGatesNotReady", problems.join(", ")) }
}
