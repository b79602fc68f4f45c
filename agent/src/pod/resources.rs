//! Resource amounts of pods: sums, quality of service, and what the runtime and the cgroups are told (kubelet-contract
//! 8.1 to 8.3). Pure.

use std::collections::BTreeMap;

use cgroup::{CPU_PERIOD_US, QosClass, milli_cpu_to_quota, milli_cpu_to_shares, oom_score_adj};
use runtime::cri;

use super::NodeFacts;
use crate::api::pod::{Container, Pod, ResourceList};
use crate::api::quantity::Quantity;

/// From this priority on a pod is as important as the node itself.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;
/// The resources that decide quality of service.
const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// Quality of service of a pod, from its containers; only cpu and memory count.
pub fn qos(pod: &Pod) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.all_containers() {
        for name in COMPUTE {
            let limit = amount(&container.resources.limits, name);
            let request = amount(&container.resources.requests, name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= match (limit, request) {
                (Some(limit), Some(request)) => limit.nano() == request.nano(),
                // The server copies limits to missing requests; a static source may not have.
                (Some(_), None) => true,
                (None, _) => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

fn amount<'a>(list: &'a ResourceList, name: &str) -> Option<&'a Quantity> {
    list.get(name).filter(|q| !q.is_zero())
}

/// Whether a pod is treated as part of the node (static pods are, too, but there are none here yet).
pub fn is_critical(pod: &Pod) -> bool {
    pod.spec.priority.is_some_and(|p| p >= SYSTEM_CRITICAL)
}

/// Requests of the whole pod: max(regular + sidecars, each init with the sidecars before it) + overhead.
pub fn pod_requests(pod: &Pod) -> ResourceList {
    let mut total = effective(pod, |c| &c.resources.requests);
    add(&mut total, &pod.spec.overhead);
    total
}

/// Limits of the whole pod, of those containers that have one; overhead joins existing limits only.
pub fn pod_limits(pod: &Pod) -> ResourceList {
    let mut total = effective(pod, |c| &c.resources.limits);
    for (name, extra) in &pod.spec.overhead {
        if let Some(sum) = total.get_mut(name) {
            *sum = sum.plus(extra);
        }
    }
    total
}

fn effective(pod: &Pod, list: impl Fn(&Container) -> &ResourceList) -> ResourceList {
    let mut running = ResourceList::new();
    for container in &pod.spec.containers {
        add(&mut running, list(container));
    }
    let mut sidecars = ResourceList::new();
    let mut peak = ResourceList::new();
    for container in &pod.spec.init_containers {
        if container.is_sidecar() {
            add(&mut running, list(container));
            add(&mut sidecars, list(container));
            raise(&mut peak, &sidecars);
        } else {
            let mut alone = list(container).clone();
            add(&mut alone, &sidecars);
            raise(&mut peak, &alone);
        }
    }
    raise(&mut running, &peak);
    running
}

fn add(total: &mut ResourceList, more: &ResourceList) {
    for (name, quantity) in more {
        let sum = match total.get(name) {
            Some(have) => have.plus(quantity),
            None => quantity.clone(),
        };
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut ResourceList, floor: &ResourceList) {
    for (name, quantity) in floor {
        if total.get(name).is_none_or(|have| have.nano() < quantity.nano()) {
            total.insert(name.clone(), quantity.clone());
        }
    }
}

/// What the pod's own cgroup gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAmounts {
    pub cpu_shares: u64,
    pub cpu_quota: Option<u64>,
    pub memory_limit: Option<u64>,
}

/// Pod cgroup values: quota and memory limit only where every container has one.
pub fn pod_amounts(pod: &Pod) -> PodAmounts {
    let class = qos(pod);
    let (requests, limits) = (pod_requests(pod), pod_limits(pod));
    let limited = |name| pod.all_containers().all(|c| amount(&c.resources.limits, name).is_some());
    let limit_of = |name: &'static str| limits.get(name).filter(|_| class != QosClass::BestEffort && limited(name));
    let request_milli = requests.get("cpu").or(limits.get("cpu").filter(|_| class == QosClass::Guaranteed)).map_or(0, Quantity::milli);
    PodAmounts {
        cpu_shares: milli_cpu_to_shares(unsigned(request_milli)),
        cpu_quota: limit_of("cpu").and_then(|q| milli_cpu_to_quota(unsigned(q.milli()), CPU_PERIOD_US)),
        memory_limit: limit_of("memory").map(|q| unsigned(q.value())),
    }
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Limits of one container as the runtime applies them.
pub fn container_resources(pod: &Pod, container: &Container, node: &NodeFacts, cgroup_v2: bool) -> cri::LinuxContainerResources {
    let limits = &container.resources.limits;
    let requests = &container.resources.requests;
    let cpu_limit = limits.get("cpu").map_or(0, Quantity::milli);
    let cpu_request = requests.get("cpu").map_or(cpu_limit, Quantity::milli);
    let memory_limit = limits.get("memory").map_or(0, Quantity::value);
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: signed(milli_cpu_to_shares(unsigned(cpu_request))),
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: i64::from(container_oom_score(pod, container, node)),
        ..Default::default()
    };
    if let Some(quota) = milli_cpu_to_quota(unsigned(cpu_limit), CPU_PERIOD_US) {
        resources.cpu_quota = signed(quota);
        resources.cpu_period = signed(CPU_PERIOD_US);
    }
    if cgroup_v2 {
        resources.unified = BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
    } else if memory_limit > 0 {
        // No swap beside the memory limit.
        resources.memory_swap_limit_in_bytes = memory_limit;
    }
    resources
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn container_oom_score(pod: &Pod, container: &Container, node: &NodeFacts) -> i32 {
    let class = qos(pod);
    let capacity = unsigned(node.capacity.get("memory").map_or(0, Quantity::value));
    let score = |c: &Container| {
        let request = c.resources.requests.get("memory").or(c.resources.limits.get("memory")).map_or(0, Quantity::value);
        oom_score_adj(class, is_critical(pod), unsigned(request), capacity)
    };
    let own = score(container);
    if container.is_sidecar() {
        // A sidecar must not die before the container it serves.
        return pod.spec.containers.iter().map(score).min().map_or(own, |least| own.min(least));
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let table = [
            (json!([{}]), "BestEffort"),
            (json!([{"requests": {"cpu": "0"}}]), "BestEffort"),
            (json!([{"requests": {"cpu": "1m"}}]), "Burstable"),
            (json!([{"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}]), "Guaranteed"),
            (json!([{"limits": {"cpu": "1", "memory": "1Gi"}}, {}]), "Burstable"),
            (json!([{"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}}]), "Burstable"),
            (json!([{"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}]), "Burstable"),
        ];
        for (resources, wanted) in table {
            let containers: Vec<_> = resources.as_array().unwrap().iter().map(|r| json!({"name": "c", "resources": r})).collect();
            assert_eq!(qos(&pod(json!({"containers": containers}))).as_str(), wanted, "{resources}");
        }
    }

    #[test]
    fn init_containers_raise_the_pod_to_their_peak() {
        let pod = pod(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"memory": "10Mi"}}},
                {"name": "big", "resources": {"requests": {"memory": "100Mi", "cpu": "1"}}},
            ],
            "containers": [{"name": "c", "resources": {"requests": {"memory": "50Mi", "cpu": "250m"}}}],
            "overhead": {"memory": "1Mi"},
        }));
        let total = pod_requests(&pod);
        assert_eq!(total["memory"].as_str(), "111Mi", "side + big + overhead");
        assert_eq!(total["cpu"].as_str(), "1");
    }

    #[test]
    fn the_pod_cgroup_is_limited_only_when_every_container_is() {
        let one =
            json!({"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "32Mi"}}});
        let none = json!({"name": "b"});
        let limited = pod_amounts(&pod(json!({"containers": [one.clone()]})));
        assert_eq!(limited, PodAmounts { cpu_shares: 102, cpu_quota: Some(50_000), memory_limit: Some(64 << 20) });
        let open = pod_amounts(&pod(json!({"containers": [one, none.clone()]})));
        assert_eq!(open, PodAmounts { cpu_shares: 102, cpu_quota: None, memory_limit: None });
        let idle = pod_amounts(&pod(json!({"containers": [none]})));
        assert_eq!(idle, PodAmounts { cpu_shares: 2, cpu_quota: None, memory_limit: None });
    }

    #[test]
    fn container_limits_reach_the_runtime() {
        let pod = pod(
            json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "32Mi"}}}]}),
        );
        let node = NodeFacts { capacity: ResourceList::from([("memory".to_owned(), "1Gi".into())]), ..Default::default() };
        let v1 = container_resources(&pod, &pod.spec.containers[0], &node, false);
        assert_eq!((v1.cpu_shares, v1.cpu_quota, v1.cpu_period), (102, 20_000, 100_000));
        assert_eq!((v1.memory_limit_in_bytes, v1.memory_swap_limit_in_bytes, v1.oom_score_adj), (64 << 20, 64 << 20, 969));
        let v2 = container_resources(&pod, &pod.spec.containers[0], &node, true);
        assert_eq!(v2.unified["memory.oom.group"], "1");
        assert_eq!(v2.memory_swap_limit_in_bytes, 0);
    }
}
