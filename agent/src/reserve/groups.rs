//! Which group gets what beside the pods' (governor reference, sections 2.2 and 2.3).
//!
//! Run by our unit in `edge.slice`, the agent also sizes the operating system's slices for this board; the unit files carry values that
//! are safe on every board. Run by hand or in a container, it touches its own two groups and nothing else.

use cgroup::{Held, Limits, Placement, Reservation};

/// Where the agent's slice is.
const EDGE: &str = "/edge.slice";

/// Whose groups these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our unit, with the machine to itself: the group of the service.
    Unit(String),
    /// The agent made its own group.
    Private(String),
    /// Somebody else's service: its unit decides.
    Foreign(String),
    /// It could not get a group of its own.
    None,
}

impl Owner {
    pub(crate) fn of(placement: Option<Placement>) -> Owner {
        match placement {
            Some(Placement::Service { group }) if group.starts_with(&format!("{EDGE}/")) => Owner::Unit(group),
            Some(Placement::Service { group }) => Owner::Foreign(group),
            Some(Placement::Own { group, .. }) => Owner::Private(group),
            None => Owner::None,
        }
    }

    /// The agent's group.
    pub(crate) fn group(&self) -> Option<&str> {
        match self {
            Owner::Unit(group) | Owner::Private(group) | Owner::Foreign(group) => Some(group),
            Owner::None => None,
        }
    }

    /// Whether containerd's group is ours to limit, and whether it is a unit. `system`: it is the system's containerd.
    pub(crate) fn may_limit_runtime(&self, system: bool) -> Option<bool> {
        match (self, system) {
            (Owner::Unit(_), true) => Some(true),
            (_, false) => Some(false),
            (Owner::Private(_) | Owner::Foreign(_) | Owner::None, true) => None,
        }
    }
}

/// The limits of the agent's group, of containerd's (`runtime`) and, as a unit, of the slices beside `kubepods`.
pub(crate) fn held(plan: &Reservation, owner: &Owner, runtime: &str, system_runtime: bool) -> Vec<Held> {
    let hold = |scope, group: &str, unit, limits| Held { scope, part: "limits", group: group.to_owned(), limits, unit, gentle: false };
    let weight = |weight: u64, shares: u64| Limits { cpu_weight: Some(weight), cpu_shares: Some(shares), ..Limits::default() };
    let agent = |limits: Limits| Limits {
        memory_min: Some(plan.agent_min()),
        memory_max: Some(Some(plan.agent_max()).into()),
        pids_max: Some(Some(256).into()),
        ..limits
    };
    let mut list = Vec::new();
    match owner {
        Owner::Unit(group) => {
            let edge = Limits { memory_min: Some(plan.agent_min()), ..weight(500, 5120) };
            list.push(hold("edge", EDGE, true, edge));
            list.push(hold("agent", group, true, agent(Limits::default())));
            let system = Limits { memory_min: Some(plan.system_slice_min()), ..weight(200, 2048) };
            list.push(hold("system", "/system.slice", true, system));
            let user = Limits { memory_max: Some(Some(plan.user_slice_max()).into()), ..weight(100, 1024) };
            list.push(Held { gentle: true, ..hold("user", "/user.slice", true, user) });
        }
        Owner::Private(group) => list.push(hold("agent", group, false, agent(weight(500, 5120)))),
        Owner::Foreign(_) | Owner::None => {}
    }
    if let Some(unit) = owner.may_limit_runtime(system_runtime) {
        // Inside its slice it competes with the system's services, beside kubepods with the pods.
        let weight = if unit { weight(400, 4096) } else { weight(200, 2048) };
        let limits = Limits { memory_min: Some(plan.containerd_min()), memory_low: Some(plan.containerd_low()), ..weight };
        list.push(hold("runtime", runtime, unit, limits));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use cgroup::Measured;
    use cgroup::reservation::{Capacity, Overrides, plan};

    fn board() -> Reservation {
        let capacity = Capacity { memory: 416 << 20, cpu_millis: 4000, threads_max: 3317, disk_swap: false };
        plan(&capacity, &Overrides::default(), &Measured::default()).unwrap()
    }

    fn lines(owner: &Owner, runtime: &str, system: bool) -> Vec<String> {
        let mib = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| (bytes >> 20).to_string());
        held(&board(), owner, runtime, system)
            .iter()
            .map(|held| {
                let l = &held.limits;
                let max = l.memory_max.and_then(|limit| limit.value());
                let weight = l.cpu_weight.map_or("-".to_owned(), |weight| weight.to_string());
                format!("{} {} {}/{}/{} {weight} {}", held.scope, held.group, mib(l.memory_min), mib(l.memory_low), mib(max), held.unit)
            })
            .collect()
    }

    #[test]
    fn as_a_unit_the_whole_tree_is_sized_for_the_board() {
        assert_eq!(
            lines(&Owner::Unit("/edge.slice/edge-agent.service".to_owned()), "/system.slice/containerd.service", true),
            [
                "edge /edge.slice 24/-/- 500 true",
                "agent /edge.slice/edge-agent.service 24/-/96 - true",
                "system /system.slice 92/-/- 200 true",
                "user /user.slice -/-/104 100 true",
                "runtime /system.slice/containerd.service 56/84/- 400 true",
            ]
        );
    }

    #[test]
    fn by_hand_only_what_is_its_own() {
        let own = Owner::Private("/n1/edge-agent".to_owned());
        assert_eq!(
            lines(&own, "/n1/containerd", false),
            ["agent /n1/edge-agent 24/-/96 500 false", "runtime /n1/containerd 56/84/- 200 false"]
        );
        assert_eq!(lines(&own, "/system.slice/containerd.service", true), ["agent /n1/edge-agent 24/-/96 500 false"]);
        let foreign = Owner::Foreign("/system.slice/my.service".to_owned());
        assert_eq!(lines(&foreign, "/system.slice/containerd.service", true), Vec::<String>::new());
    }

    #[test]
    fn our_unit_is_known_by_its_slice() {
        let service = |group: &str| Some(Placement::Service { group: group.to_owned() });
        assert!(matches!(Owner::of(service("/edge.slice/edge-agent.service")), Owner::Unit(_)));
        assert!(matches!(Owner::of(service("/system.slice/edge-agent.service")), Owner::Foreign(_)));
        assert_eq!(Owner::of(None), Owner::None);
    }
}
