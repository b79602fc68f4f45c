//! Pure: facts in, the Node's status out.

use serde_json::{Map, Value, json};

use super::machine::Machine;
use crate::api::node::NodeCondition;
use crate::api::pod::ResourceList;

/// What the runtime said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// `containerd://1.7.24`, empty until it answered once.
    pub version: String,
    /// Why pods cannot run; None: they can.
    pub not_ready: Option<String>,
    /// Why pods get no network; None: they do.
    pub network_not_ready: Option<String>,
    /// Newest list, largest first: names and bytes.
    pub images: Vec<(Vec<String>, u64)>,
    /// Name and the two features of each runtime handler.
    pub handlers: Vec<(String, bool, bool)>,
    pub supplemental_groups_policy: bool,
}

/// Everything a status is made of.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    pub machine: &'a Machine,
    pub runtime: &'a RuntimeFacts,
    pub capacity: &'a ResourceList,
    pub allocatable: &'a ResourceList,
    pub kubelet_version: &'a str,
    pub kubelet_port: u16,
    /// (memory, disk, process ids)
    pub pressure: Pressure,
    /// What other parts know.
    pub extra: &'a [Extra],
}

/// A condition that another part of the agent knows. One of the kubelet's four becomes true with it; another one is shown while it
/// holds, and as false after it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    pub kind: String,
    pub holds: bool,
    pub reason: String,
    pub message: String,
}

/// Which resources are short right now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

/// Images a Node lists at most, and names of each (kubelet-contract.md 1.8).
pub const MOST_IMAGES: usize = 50;
const MOST_NAMES: usize = 5;

/// Everything except conditions and addresses.
pub fn body(facts: &Facts<'_>) -> Map<String, Value> {
    let mut info = json!({
        "machineID": facts.machine.machine_id,
        "systemUUID": facts.machine.system_uuid,
        "bootID": facts.machine.boot_id,
        "kernelVersion": facts.machine.kernel_version,
        "osImage": facts.machine.os_image,
        "containerRuntimeVersion": if facts.runtime.version.is_empty() { "containerd://Unknown" } else { &facts.runtime.version },
        "kubeletVersion": facts.kubelet_version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": facts.machine.architecture,
    });
    if facts.machine.swap > 0 {
        info["swap"] = json!({"capacity": facts.machine.swap});
    }
    let images: Vec<Value> = facts
        .runtime
        .images
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .take(MOST_IMAGES)
        .map(|(names, size)| json!({"names": names.iter().take(MOST_NAMES).collect::<Vec<_>>(), "sizeBytes": size}))
        .collect();
    let mut map = Map::new();
    map.insert("capacity".to_owned(), json!(facts.capacity));
    map.insert("allocatable".to_owned(), json!(facts.allocatable));
    map.insert("daemonEndpoints".to_owned(), json!({"kubeletEndpoint": {"Port": facts.kubelet_port}}));
    map.insert("nodeInfo".to_owned(), info);
    map.insert("images".to_owned(), Value::Array(images));
    if !facts.runtime.handlers.is_empty() {
        let handlers = facts.runtime.handlers.iter().map(
            |(name, recursive, users)| json!({"name": name, "features": {"recursiveReadOnlyMounts": recursive, "userNamespaces": users}}),
        );
        map.insert("runtimeHandlers".to_owned(), handlers.collect());
        map.insert("features".to_owned(), json!({"supplementalGroupsPolicy": facts.runtime.supplemental_groups_policy}));
    }
    map
}

/// The four conditions, in the kubelet's order, and others'; transition times move only when a status flips.
pub fn conditions(facts: &Facts<'_>, previous: &[NodeCondition], now: &str) -> Vec<NodeCondition> {
    let pressure = |kind: &str, bad: bool, good: (&str, &str), worse: (&str, &str)| {
        let (reason, message) = if bad { worse } else { good };
        condition(previous, kind, bad, reason, message, now)
    };
    let mut missing = Vec::new();
    missing.extend(facts.runtime.not_ready.as_deref());
    missing.extend(facts.runtime.network_not_ready.as_deref());
    if !facts.capacity.contains_key("ephemeral-storage") {
        missing.push("missing node capacity for resources: ephemeral-storage");
    }
    let (reason, message) = match missing.as_slice() {
        [] => ("KubeletReady", "kubelet is posting ready status".to_owned()),
        [one] => ("KubeletNotReady", (*one).to_owned()),
        many => ("KubeletNotReady", format!("[{}]", many.join(", "))),
    };
    let mut all = vec![
        pressure(
            "MemoryPressure",
            facts.pressure.memory,
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            facts.pressure.disk,
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ),
        pressure(
            "PIDPressure",
            facts.pressure.pid,
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        ),
        condition(previous, "Ready", missing.is_empty(), reason, &message, now),
    ];
    for extra in facts.extra {
        let at = all.iter().position(|known| known.kind == extra.kind);
        let said = || condition(previous, &extra.kind, extra.holds, &extra.reason, &extra.message, now);
        match at {
            Some(at) if extra.holds => all[at] = said(),
            Some(_) => {}
            None if extra.holds || previous.iter().any(|before| before.kind == extra.kind) => all.push(said()),
            None => {}
        }
    }
    all
}

fn condition(previous: &[NodeCondition], kind: &str, holds: bool, reason: &str, message: &str, now: &str) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let before = previous.iter().find(|condition| condition.kind == kind);
    let since = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
    NodeCondition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        last_heartbeat_time: Some(now.to_owned()),
        last_transition_time: Some(since.unwrap_or_else(|| now.to_owned())),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// A strategic patch of conditions that only says that they still hold: a quarter of the whole.
pub fn confirmation(conditions: &[NodeCondition]) -> Value {
    conditions.iter().map(|condition| json!({"type": condition.kind, "lastHeartbeatTime": condition.last_heartbeat_time})).collect()
}

/// Whether two sets of conditions say the same, heartbeat times aside.
pub fn same(a: &[NodeCondition], b: &[NodeCondition]) -> bool {
    let plain = |c: &NodeCondition| NodeCondition { last_heartbeat_time: None, ..c.clone() };
    a.len() == b.len() && a.iter().all(|x| b.iter().any(|y| plain(x) == plain(y)))
}

/// The node event of each condition that flipped: (reason, condition type).
pub fn flips(before: &[NodeCondition], after: &[NodeCondition]) -> Vec<&'static str> {
    after
        .iter()
        .filter(|now| before.iter().find(|c| c.kind == now.kind).is_none_or(|old| old.status != now.status))
        .filter_map(|now| match (now.kind.as_str(), now.status.as_str()) {
            ("Ready", "True") => Some("NodeReady"),
            ("Ready", _) => Some("NodeNotReady"),
            ("MemoryPressure", "False") => Some("NodeHasSufficientMemory"),
            ("MemoryPressure", _) => Some("NodeHasInsufficientMemory"),
            ("DiskPressure", "False") => Some("NodeHasNoDiskPressure"),
            ("DiskPressure", _) => Some("NodeHasDiskPressure"),
            ("PIDPressure", "False") => Some("NodeHasSufficientPID"),
            ("PIDPressure", _) => Some("NodeHasInsufficientPID"),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(machine: &'a Machine, runtime: &'a RuntimeFacts, capacity: &'a ResourceList) -> Facts<'a> {
        Facts {
            machine,
            runtime,
            capacity,
            allocatable: capacity,
            kubelet_version: "v1.36.3+edge1",
            kubelet_port: 10250,
            pressure: Pressure::default(),
            extra: &[],
        }
    }

    #[test]
    fn others_conditions_are_shown_while_they_hold_and_taken_back() {
        let machine = Machine::default();
        let runtime = RuntimeFacts::default();
        let capacity: ResourceList = [("ephemeral-storage".to_owned(), "1Gi".into())].into();
        let extra = |kind: &str, holds| Extra { kind: kind.to_owned(), holds, reason: "R".to_owned(), message: "m".to_owned() };
        let show = |extra: &[Extra], previous: &[NodeCondition], now: &str| {
            conditions(&Facts { extra, ..facts(&machine, &runtime, &capacity) }, previous, now)
        };
        assert_eq!(show(&[extra("GovernorDegraded", false)], &[], "T1").len(), 4, "what never held is not mentioned");
        let held = show(&[extra("GovernorDegraded", true), extra("MemoryPressure", true)], &[], "T1");
        assert_eq!((held[4].kind.as_str(), held[4].status.as_str(), held[4].reason.as_str()), ("GovernorDegraded", "True", "R"));
        assert_eq!((held.len(), held[0].status.as_str(), held[0].reason.as_str()), (5, "True", "R"));
        let over = show(&[extra("GovernorDegraded", false), extra("MemoryPressure", false)], &held, "T2");
        assert_eq!((over[4].status.as_str(), over[4].last_transition_time.as_deref()), ("False", Some("T2")));
        assert_eq!((over[0].status.as_str(), over[0].reason.as_str()), ("False", "KubeletHasSufficientMemory"));
    }

    #[test]
    fn ready_is_true_only_when_nothing_is_missing_and_says_what_is() {
        let machine = Machine::default();
        let mut runtime = RuntimeFacts::default();
        let mut capacity: ResourceList = [("ephemeral-storage".to_owned(), "1Gi".into())].into();
        let ready = |runtime: &RuntimeFacts, capacity: &ResourceList| {
            let all = conditions(&facts(&machine, runtime, capacity), &[], "T1");
            assert_eq!(all.iter().map(|c| c.kind.as_str()).collect::<Vec<_>>(), ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
            (all[3].status.clone(), all[3].reason.clone(), all[3].message.clone())
        };
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(ready(&runtime, &capacity), text("True", "KubeletReady", "kubelet is posting ready status"));
        runtime.network_not_ready = Some("container runtime network not ready: x".to_owned());
        assert_eq!(ready(&runtime, &capacity), text("False", "KubeletNotReady", "container runtime network not ready: x"));
        capacity.clear();
        assert_eq!(
            ready(&runtime, &capacity).2,
            "[container runtime network not ready: x, missing node capacity for resources: ephemeral-storage]"
        );
    }

    #[test]
    fn transition_times_move_with_the_status_only() {
        let machine = Machine::default();
        let runtime = RuntimeFacts::default();
        let capacity: ResourceList = [("ephemeral-storage".to_owned(), "1Gi".into())].into();
        let first = conditions(&facts(&machine, &runtime, &capacity), &[], "T1");
        let second = conditions(&facts(&machine, &runtime, &capacity), &first, "T2");
        assert!(same(&first, &second));
        assert_eq!(second[3].last_transition_time.as_deref(), Some("T1"));
        assert_eq!(second[3].last_heartbeat_time.as_deref(), Some("T2"));
        let down = RuntimeFacts { not_ready: Some("container runtime is down".to_owned()), ..RuntimeFacts::default() };
        let third = conditions(&facts(&machine, &down, &capacity), &second, "T3");
        assert!(!same(&second, &third));
        assert_eq!(third[3].last_transition_time.as_deref(), Some("T3"));
        assert_eq!(flips(&second, &third), ["NodeNotReady"]);
        assert_eq!(flips(&[], &first), ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"]);
    }

    #[test]
    fn a_confirmation_moves_heartbeats_and_claims_nothing() {
        let machine = Machine::default();
        let capacity = ResourceList::new();
        let all = conditions(&facts(&machine, &RuntimeFacts::default(), &capacity), &[], "T1");
        let said = confirmation(&all);
        assert_eq!(said.as_array().unwrap().len(), 4);
        assert_eq!(said[3], json!({"type": "Ready", "lastHeartbeatTime": "T1"}));
        assert!(said.to_string().len() * 3 < json!(all).to_string().len());
    }

    #[test]
    fn images_are_cut_and_nameless_ones_left_out() {
        let machine = Machine::default();
        let images = (0..60).map(|n| (if n == 0 { vec![] } else { vec![format!("i{n}"); 7] }, 100 - n)).collect();
        let runtime = RuntimeFacts { images, ..RuntimeFacts::default() };
        let capacity = ResourceList::new();
        let map = body(&facts(&machine, &runtime, &capacity));
        let images = map["images"].as_array().unwrap();
        assert_eq!(images.len(), MOST_IMAGES);
        assert_eq!(images[0]["names"].as_array().unwrap().len(), MOST_NAMES);
        assert_eq!(map["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    }
}
