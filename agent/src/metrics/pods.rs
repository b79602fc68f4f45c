//! Counts of pods and containers, taken from what the workers last saw; the kubelet's own names beside ours, for dashboards.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use crate::pod::View;

const PHASES: [&str; 4] = ["Pending", "Running", "Succeeded", "Failed"];

/// `edge_agent_pods`, `kubelet_running_pods`, `kubelet_running_containers`, `kubelet_node_name`.
pub struct Pods {
    node: String,
    view: View,
}

impl Pods {
    pub fn new(node: &str, view: View) -> Self {
        Self { node: node.to_owned(), view }
    }
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let seen = self.view.list();
        let mut by_phase = encoder.encode_descriptor("edge_agent_pods", "Pods on this node by phase", None, MetricType::Gauge)?;
        for phase in PHASES {
            // A pod whose status was not computed yet is about to be Pending.
            let is = |found: &str| found == phase || (found.is_empty() && phase == "Pending");
            let count = seen.iter().filter(|pod| is(&pod.pod.status.phase)).count();
            by_phase.encode_family(&[("phase", phase)])?.encode_gauge(&(count as u64))?;
        }
        let running: usize = seen.iter().map(|pod| pod.containers.values().filter(|c| c.running).count()).sum();
        let pods = seen.iter().filter(|pod| pod.containers.values().any(|container| container.running)).count();
        let help = "Number of pods that have a running container";
        encoder.encode_descriptor("kubelet_running_pods", help, None, MetricType::Gauge)?.encode_gauge(&(pods as u64))?;
        let help = "Number of containers currently running";
        let mut containers = encoder.encode_descriptor("kubelet_running_containers", help, None, MetricType::Gauge)?;
        containers.encode_family(&[("container_state", "running")])?.encode_gauge(&(running as u64))?;
        let help = "The node's name. The value is always 1";
        let mut name = encoder.encode_descriptor("kubelet_node_name", help, None, MetricType::Gauge)?;
        name.encode_family(&[("node", self.node.as_str())])?.encode_gauge(&1u64)
    }
}
