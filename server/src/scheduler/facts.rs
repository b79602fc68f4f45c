//! What the scheduler knows of a node and of a pod, read once from their objects.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::quantity;
use crate::controllers::object;

/// Amounts by resource name, in thousandths (`cpu: 500` is half a core).
pub type Amounts = BTreeMap<String, i128>;

/// A pod's demands and traits.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: String,
    /// UID of the controller, to spread its pods.
    pub owner: Option<String>,
    /// Requests by resource.
    pub requests: Amounts,
    /// `(protocol, host IP, port)` of each host port.
    pub host_ports: Vec<(String, String, u64)>,
    /// The labels.
    pub labels: Value,
    /// The spec.
    pub spec: Value,
}

/// A node, with what already runs on it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Value,
    /// `spec.unschedulable`
    pub unschedulable: bool,
    /// `spec.taints`
    pub taints: Vec<Value>,
    /// `status.allocatable`
    pub allocatable: Amounts,
    /// Sum of the requests of its pods.
    pub requested: Amounts,
    /// Its pods.
    pub pods: Vec<PodFacts>,
}

impl PodFacts {
    /// Reads a Pod.
    pub fn new(pod: &Value) -> PodFacts {
        PodFacts {
            namespace: object::namespace(pod).to_owned(),
            owner: object::controller(pod).and_then(|owner| owner["uid"].as_str().map(str::to_owned)),
            requests: requests(&pod["spec"]),
            host_ports: host_ports(&pod["spec"]),
            labels: pod["metadata"]["labels"].clone(),
            spec: pod["spec"].clone(),
        }
    }
}

impl Node {
    /// Reads a Node; it has no pods yet.
    pub fn new(node: &Value) -> Node {
        Node {
            name: object::name(node).to_owned(),
            labels: node["metadata"]["labels"].clone(),
            unschedulable: node["spec"]["unschedulable"] == true,
            taints: node["spec"]["taints"].as_array().cloned().unwrap_or_default(),
            allocatable: amounts(&node["status"]["allocatable"]),
            requested: Amounts::new(),
            pods: Vec::new(),
        }
    }

    /// Counts a pod as running here.
    pub fn add(&mut self, pod: PodFacts) {
        for (resource, amount) in &pod.requests {
            *self.requested.entry(resource.clone()).or_default() += amount;
        }
        self.pods.push(pod);
    }
}

fn amounts(object: &Value) -> Amounts {
    object.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), quantity::of(value)?))).collect()
}

/// Sum over the containers, but at least what the init containers need before them; restartable init containers
/// (sidecars) run beside everything that comes later. Plus the runtime class' overhead.
fn requests(spec: &Value) -> Amounts {
    let list = |key: &str| spec[key].as_array().into_iter().flatten();
    let mut running = Amounts::new();
    for container in list("containers") {
        add(&mut running, &amounts(&container["resources"]["requests"]));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in list("initContainers") {
        let own = amounts(&container["resources"]["requests"]);
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut peak = sidecars.clone();
            add(&mut peak, &own);
            raise(&mut starting, &peak);
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &starting);
    add(&mut running, &amounts(&spec["overhead"]));
    running
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let present = to.entry(name.clone()).or_default();
        *present = (*present).max(*amount);
    }
}

fn host_ports(spec: &Value) -> Vec<(String, String, u64)> {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let text = |port: &Value, key: &str, default: &str| port[key].as_str().unwrap_or(default).to_owned();
    containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .filter_map(|port| {
            let number = port["hostPort"].as_u64().filter(|number| *number != 0)?;
            Some((text(port, "protocol", "TCP"), text(port, "hostIP", "0.0.0.0"), number))
        })
        .collect()
}
