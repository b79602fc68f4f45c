//! The pods bound to this node, always as one whole snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use runtime::ids::PodUid;
use tokio::sync::watch;

use crate::api::Client;
use crate::api::pod::Pod;
use crate::api::watch::{Change, query_escape};

/// So long without news the memory of a burst is given back.
const QUIET: Duration = Duration::from_secs(5);

/// Pods by UID.
pub type Pods = BTreeMap<PodUid, Arc<Pod>>;

/// What the server wants on this node.
#[derive(Debug, Clone, Default)]
pub enum Assignments {
    /// No full list was seen yet, neither from the server nor from the ledger. Never to be read as "no pods".
    #[default]
    Unknown,
    /// The ledger's pods after a start without the server: these are to run, but a pod that is **not** here may well be
    /// wanted, so nothing that runs is removed because of this list.
    Remembered(Arc<Pods>),
    /// Every pod bound to this node, from a full list of the server. A pod that left the server is absent.
    Known(Arc<Pods>),
}

impl Assignments {
    /// The pods to run; None while nothing is known.
    pub fn pods(&self) -> Option<&Arc<Pods>> {
        match self {
            Assignments::Unknown => None,
            Assignments::Remembered(pods) | Assignments::Known(pods) => Some(pods),
        }
    }

    /// Whether a pod that is absent is really unwanted.
    pub fn is_complete(&self) -> bool {
        matches!(self, Assignments::Known(_))
    }
}

/// Keeps `publish` up to date for ever. The first full list replaces whatever the ledger said.
pub async fn run(client: Client, node_name: String, publish: watch::Sender<Assignments>) {
    let selector = format!("fieldSelector=spec.nodeName%3D{}", query_escape(&node_name));
    let mut watch = client.watch::<Pod>("/api/v1/pods", &selector);
    let (settled, changes) = watch::channel(());
    crate::task::spawn(trim_when_quiet(changes));
    loop {
        let change = watch.next().await;
        publish.send_modify(|current| {
            *current = Assignments::Known(Arc::new(after(current, change)));
        });
        settled.send_replace(());
    }
}

/// The end of a pod's start is news of it as well: some quiet after it, what the starts needed goes back to the kernel.
async fn trim_when_quiet(mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        while tokio::time::timeout(QUIET, changes.changed()).await.is_ok_and(|changed| changed.is_ok()) {}
        crate::memory::trim();
    }
}

/// The pods after one change.
fn after(current: &mut Assignments, change: Change<Pod>) -> Pods {
    let mut pods = match std::mem::take(current) {
        Assignments::Known(pods) => Arc::try_unwrap(pods).unwrap_or_else(|shared| (*shared).clone()),
        Assignments::Unknown | Assignments::Remembered(_) => Pods::new(),
    };
    match change {
        Change::Replaced(all) => all.into_iter().map(|pod| (pod.uid(), Arc::new(pod.compact()))).collect(),
        Change::Applied(pod) => {
            pods.insert(pod.uid(), Arc::new(pod.compact()));
            pods
        }
        Change::Deleted(pod) => {
            pods.remove(&pod.uid());
            pods
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = uid.to_owned();
        pod.metadata.resource_version = version.to_owned();
        pod
    }

    fn names(pods: &Pods) -> Vec<String> {
        pods.values().map(|pod| format!("{}@{}", pod.metadata.uid, pod.metadata.resource_version)).collect()
    }

    #[test]
    fn changes_make_snapshots_and_a_list_forgets_what_the_ledger_said() {
        let mut state = Assignments::Remembered(Arc::new([(PodUid::from("old"), Arc::new(pod("old", "1")))].into()));
        assert!(!state.is_complete());
        let steps = [
            (Change::Replaced(vec![pod("a", "1"), pod("b", "2")]), vec!["a@1", "b@2"]),
            (Change::Applied(pod("a", "3")), vec!["a@3", "b@2"]),
            (Change::Applied(pod("c", "4")), vec!["a@3", "b@2", "c@4"]),
            (Change::Deleted(pod("b", "5")), vec!["a@3", "c@4"]),
            (Change::Replaced(vec![]), vec![]),
        ];
        for (change, expected) in steps {
            let pods = after(&mut state, change);
            assert_eq!(names(&pods), expected);
            state = Assignments::Known(Arc::new(pods));
        }
        assert!(state.is_complete());
    }
}
