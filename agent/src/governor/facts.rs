//! Who the pods are, for the governor: from the workers' view to plain facts, published whenever the view changed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use cgroup::governor::{PodFacts, Preference, boottime};

use super::Shared;
use crate::api::pod::Pod;
use crate::pod::governed::workload;
use crate::pod::{View, resources, time};

/// What an owner asks of the governor.
const ANNOTATION: &str = "edge-agent.io/governor";
/// Pods come in bursts.
const BURST: Duration = Duration::from_millis(100);

/// One list, put there by the agent and taken by the governor's thread, which keeps its own copy rather than wait.
#[derive(Default)]
pub(super) struct Shelf {
    news: AtomicBool,
    list: Mutex<Arc<Vec<PodFacts>>>,
}

impl Shelf {
    fn put(&self, list: Vec<PodFacts>) {
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
        self.news.store(true, Ordering::Release);
    }

    /// The newest list, if it is news and can be had at once.
    pub(super) fn take(&self) -> Option<Arc<Vec<PodFacts>>> {
        if !self.news.load(Ordering::Acquire) {
            return None;
        }
        let list = match self.list.try_lock() {
            Ok(list) => Arc::clone(&list),
            Err(TryLockError::Poisoned(list)) => Arc::clone(&list.into_inner()),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.news.store(false, Ordering::Release);
        Some(list)
    }
}

/// Publishes until the agent ends.
pub(super) async fn keep(view: View, shared: Arc<Shared>) {
    loop {
        let pods = view.list();
        shared.facts.put(pods.iter().filter(|seen| !seen.pod.status.is_terminal()).map(|seen| of(&seen.pod)).collect());
        drop(pods);
        view.changed().await;
        tokio::time::sleep(BURST).await;
    }
}

/// One pod's.
fn of(pod: &Pod) -> PodFacts {
    let spec = &pod.spec;
    let requests = resources::pod_requests(pod);
    let amount = |name: &str, milli: bool| {
        let quantity = requests.get(name);
        quantity.map_or(0, |q| u64::try_from(if milli { q.milli() } else { q.value() }).unwrap_or(0))
    };
    let annotation = |key: &str| pod.metadata.annotations.get(key).map(String::as_str);
    let ago = pod.status.start_time.as_deref().and_then(time::parse).map_or(0, |at| (time::now() - at).max(0));
    PodFacts {
        uid: pod.metadata.uid.clone(),
        name: pod.full_name(),
        workload: workload(pod).to_owned(),
        qos: resources::qos(pod),
        priority: spec.priority.unwrap_or(0),
        protected: resources::is_critical(pod) || annotation("kubernetes.io/config.source").is_some_and(|source| source != "api"),
        preference: match annotation(ANNOTATION) {
            Some("prefer") => Preference::Prefer,
            Some("avoid") => Preference::Avoid,
            Some(_) | None => Preference::Usual,
        },
        memory_request: amount("memory", false),
        cpu_request: amount("cpu", true),
        started: boottime().saturating_sub(Duration::from_nanos(u64::try_from(ago).unwrap_or(0))),
        grace: Duration::from_secs(u64::try_from(spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cgroup::QosClass;
    use serde_json::json;

    #[test]
    fn what_the_governor_is_told_of_a_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "annotations": {"edge-agent.io/governor": "prefer"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs1", "controller": true}]},
            "spec": {"priority": 7, "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "a", "resources": {"requests": {"memory": "64Mi", "cpu": "250m"}}}]},
        }))
        .unwrap();
        let facts = of(&pod);
        assert_eq!((facts.uid.as_str(), facts.name.as_str(), facts.workload.as_str()), ("u1", "shop/web", "rs1"));
        assert_eq!((facts.qos, facts.priority, facts.protected, facts.preference), (QosClass::Burstable, 7, false, Preference::Prefer));
        assert_eq!((facts.memory_request, facts.cpu_request, facts.grace), (64 << 20, 250, Duration::from_secs(5)));
        let mut critical = pod;
        Arc::make_mut(&mut critical.spec).priority = Some(2_000_001_000);
        assert!(of(&critical).protected);
    }

    #[test]
    fn a_list_is_taken_once() {
        let shelf = Shelf::default();
        assert!(shelf.take().is_none());
        shelf.put(vec![PodFacts::default()]);
        assert_eq!(shelf.take().map(|list| list.len()), Some(1));
        assert!(shelf.take().is_none());
    }
}
