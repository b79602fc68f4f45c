//! Keeps the groups of the QoS classes in step with the pods there are: processor shares of Burstable pods by what they request,
//! and the memory brake below what requests promise (kubelet contract 8.2, governor reference 2.3).

use std::sync::Arc;

use cgroup::{NodeAllocatable, PodTree, QosClass, QosDemand};
use tokio::sync::watch;

use crate::api::pod::Pod;
use crate::api::quantity::Quantity;
use crate::assignments::Assignments;
use crate::pod::resources::{pod_requests, qos};

/// Runs for ever. While no pods are known the groups stay as the last agent left them.
pub async fn run(tree: Arc<PodTree>, allocatable: NodeAllocatable, mut assignments: watch::Receiver<Assignments>) {
    let mut applied = None;
    loop {
        let wanted = assignments.borrow_and_update().pods().map(|pods| demand(pods.values().map(Arc::as_ref)));
        if let Some(wanted) = wanted.filter(|wanted| applied != Some(*wanted)) {
            let tree = Arc::clone(&tree);
            // Lowering a brake makes the kernel reclaim before the write returns.
            let done = tokio::task::spawn_blocking(move || tree.refresh_qos(&allocatable, &wanted)).await;
            match done {
                Ok(Ok(())) => applied = Some(wanted),
                Ok(Err(error)) => tracing::warn!(error = %crate::telemetry::chain(&error), "shares of the pod classes not set"),
                Err(error) => tracing::warn!(%error, "shares of the pod classes not set"),
            }
        }
        if assignments.changed().await.is_err() {
            return;
        }
    }
}

/// The sums over the pods that have not ended.
fn demand<'a>(pods: impl Iterator<Item = &'a Pod>) -> QosDemand {
    let mut sum = QosDemand::default();
    for pod in pods.filter(|pod| !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")) {
        let requests = pod_requests(pod);
        let amount = |name: &str, of: fn(&Quantity) -> i64| requests.get(name).map_or(0, |q| u64::try_from(of(q)).unwrap_or(0));
        let memory = amount("memory", Quantity::value);
        match qos(pod) {
            QosClass::Guaranteed => sum.guaranteed_memory = sum.guaranteed_memory.saturating_add(memory),
            QosClass::Burstable => {
                sum.burstable_memory = sum.burstable_memory.saturating_add(memory);
                sum.burstable_cpu_millis = sum.burstable_cpu_millis.saturating_add(amount("cpu", Quantity::milli));
            }
            QosClass::BestEffort => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: serde_json::Value, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn requests_of_living_pods_add_up_by_class() {
        let limited = json!({"limits": {"cpu": "1", "memory": "100Mi"}, "requests": {"cpu": "1", "memory": "100Mi"}});
        let some = json!({"requests": {"cpu": "250m", "memory": "32Mi"}});
        let pods = [
            pod(limited.clone(), "Running"),
            pod(some.clone(), "Running"),
            pod(some.clone(), "Pending"),
            pod(some, "Succeeded"),
            pod(limited, "Failed"),
            pod(json!({}), "Running"),
        ];
        let mib = 1 << 20;
        let wanted = QosDemand { guaranteed_memory: 100 * mib, burstable_memory: 64 * mib, burstable_cpu_millis: 500 };
        assert_eq!(demand(pods.iter()), wanted);
    }
}
