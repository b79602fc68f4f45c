//! Sends pod statuses to the server: the newest per pod, only when it says something new.
//!
//! Workers leave statuses without waiting. Per pod at most one request is on its way; what comes meanwhile replaces what
//! was waiting. The patch carries the pod's UID, so that a status never lands on a namesake.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtime::ids::PodUid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::api::client::PatchType;
use crate::api::pod::{Pod, PodStatus};
use crate::api::{Client, Error, ObjectMeta};
use crate::assignments::Assignments;
use crate::backoff::Backoff;
use crate::metrics::Metrics;

mod patch;

pub use patch::status_patch;

/// Requests on their way at once.
const AT_ONCE: usize = 8;
const RUNNING: &str = "Running";

/// Where pod workers leave what they saw. Never blocks; the newest status of a pod replaces an unsent older one.
#[derive(Clone, Default)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pods: Mutex<BTreeMap<PodUid, Entry>>,
    wake: Notify,
}

struct Entry {
    namespace: String,
    name: String,
    /// What the server has, as far as known, and at which version.
    base: Arc<PodStatus>,
    version: u64,
    wanted: Option<Arc<PodStatus>>,
    finish: bool,
    busy: bool,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// When the assignment came.
    seen: Instant,
    /// How long after that the first Running status went out; none where the pod ran before we knew it.
    sent: Option<Duration>,
}

/// The first Running status of a pod was accepted: how long after the assignment came it was sent.
struct Started {
    pod: String,
    sent: Duration,
    accepted: Duration,
}

/// One request.
enum Work {
    Patch { status: Arc<PodStatus>, body: Value },
    Delete,
}

enum Outcome {
    Accepted(Arc<PodStatus>, u64),
    Deleted,
    /// The object is gone or another pod has its name now.
    Gone,
    /// The server will never take this one.
    Refused(Error),
    Failed(Error, Option<Arc<PodStatus>>),
}

impl Handle {
    /// Leaves a status for sending. Equal to what the server has: nothing is sent.
    pub fn publish(&self, pod: &Pod, status: Arc<PodStatus>) {
        let mut pods = self.lock();
        let entry = entry(&mut pods, pod);
        entry.wanted = Some(status);
        drop(pods);
        self.shared.wake.notify_one();
    }

    /// Everything of this pod is gone from the node: after its last status is accepted the object is deleted
    /// (grace 0, UID precondition), provided the server wants it deleted. Safe to call again.
    pub fn finish(&self, pod: &Pod) {
        if !pod.is_deleting() {
            return;
        }
        let mut pods = self.lock();
        entry(&mut pods, pod).finish = true;
        drop(pods);
        self.shared.wake.notify_one();
    }

    /// Statuses and deletions the server has not accepted yet.
    pub fn pending(&self) -> usize {
        self.lock().values().filter(|entry| entry.wanted.is_some() || entry.finish || entry.busy).count()
    }

    /// Sends for ever. Pods that left the assignments are forgotten once nothing is left to send for them.
    pub async fn run(self, client: Client, mut assignments: watch::Receiver<Assignments>, metrics: Arc<Metrics>) {
        let mut flying: JoinSet<(PodUid, Outcome)> = JoinSet::new();
        loop {
            let mut wait = Duration::from_secs(3600);
            while flying.len() < AT_ONCE {
                match self.take(Instant::now()) {
                    Next::Work(uid, path, work) => {
                        let client = client.clone();
                        flying.spawn(async move {
                            let outcome = send(&client, &path, uid.as_str(), work).await;
                            (uid, outcome)
                        });
                    }
                    Next::Wait(time) => {
                        wait = time;
                        break;
                    }
                    Next::Nothing => break,
                }
            }
            // Every arm only says "look again"; nothing is lost when another one wins.
            tokio::select! {
                Some(done) = flying.join_next() => if let Ok((uid, outcome)) = done {
                    metrics.status_written(!matches!(outcome, Outcome::Refused(_) | Outcome::Failed(..)));
                    if let Some(started) = self.settle(&uid, outcome) {
                        metrics.pod_started(started.sent);
                        let (sent, accepted) = (started.sent.as_secs_f64(), started.accepted.as_secs_f64());
                        tracing::info!(pod = %started.pod, pod_uid = %uid, sent_after_seconds = sent, accepted_after_seconds = accepted, "pod is running");
                    }
                },
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
                changed = assignments.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Assignments::Known(pods) = &*assignments.borrow_and_update() {
                        let mut entries = self.lock();
                        entries.retain(|uid, entry| entry.busy || entry.wanted.is_some() || pods.contains_key(uid));
                        for (uid, pod) in pods.iter() {
                            match entries.get_mut(uid) {
                                Some(entry) => entry.insist(pod),
                                // Its clock runs from now.
                                None => drop(entry(&mut entries, pod)),
                            }
                        }
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, Entry>> {
        self.shared.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request that may go out now.
    fn take(&self, now: Instant) -> Next {
        let mut pods = self.lock();
        let mut soonest: Option<Duration> = None;
        let mut found = None;
        for (uid, entry) in pods.iter_mut() {
            if entry.busy {
                continue;
            }
            if let Some(left) = entry.not_before.and_then(|at| at.checked_duration_since(now)).filter(|left| !left.is_zero()) {
                if entry.wanted.is_some() || entry.finish {
                    soonest = Some(soonest.map_or(left, |other| other.min(left)));
                }
                continue;
            }
            if let Some(status) = entry.wanted.take() {
                if let Some(body) = status_patch(&entry.base, &status, uid) {
                    if entry.sent.is_none() && status.phase == RUNNING && entry.base.phase != RUNNING {
                        entry.sent = Some(now.saturating_duration_since(entry.seen));
                    }
                    found = Some((uid.clone(), entry.path("/status"), Work::Patch { status, body }));
                    entry.busy = true;
                    break;
                }
            }
            if entry.finish {
                found = Some((uid.clone(), entry.path(""), Work::Delete));
                entry.busy = true;
                break;
            }
        }
        match (found, soonest) {
            (Some((uid, path, work)), _) => Next::Work(uid, path, work),
            (None, Some(wait)) => Next::Wait(wait),
            (None, None) => Next::Nothing,
        }
    }

    fn settle(&self, uid: &PodUid, outcome: Outcome) -> Option<Started> {
        let mut pods = self.lock();
        let entry = pods.get_mut(uid)?;
        entry.busy = false;
        let mut started = None;
        match outcome {
            Outcome::Accepted(status, version) => {
                if status.phase == RUNNING && entry.base.phase != RUNNING {
                    started = entry.sent.map(|sent| Started {
                        pod: format!("{}/{}", entry.namespace, entry.name),
                        sent,
                        accepted: entry.seen.elapsed(),
                    });
                }
                entry.base = status;
                entry.version = version;
                entry.not_before = None;
                entry.backoff.reset();
            }
            Outcome::Deleted | Outcome::Gone => {
                pods.remove(uid);
            }
            Outcome::Refused(error) => {
                tracing::error!(namespace = %entry.namespace, pod = %entry.name, pod_uid = %uid.as_str(), error = %error, "pod status refused");
                // A deletion that is refused stays wanted; asking again at once would be asking without end.
                entry.not_before = Some(Instant::now() + entry.backoff.next_wait());
            }
            Outcome::Failed(error, status) => {
                let retry_in = entry.backoff.next_wait();
                tracing::debug!(namespace = %entry.namespace, pod = %entry.name, error = %error, ?retry_in, "pod status not sent");
                entry.not_before = Some(Instant::now() + retry_in);
                if entry.wanted.is_none() {
                    entry.wanted = status;
                }
            }
        }
        started
    }
}

enum Next {
    Work(PodUid, String, Work),
    Wait(Duration),
    Nothing,
}

impl Entry {
    /// The server took a node that was silent for dead and its pods for not ready: what was last said still holds and is
    /// said again.
    fn insist(&mut self, pod: &Pod) {
        if !Arc::ptr_eq(&self.base, &pod.status) && self.base == pod.status {
            // Kept once, with the pod.
            self.base = pod.status.clone();
        }
        let version = pod.metadata.resource_version.parse().unwrap_or(0);
        if self.busy || self.wanted.is_some() || version <= self.version {
            return;
        }
        let ready = |status: &PodStatus| status.conditions.iter().find(|c| c.kind == "Ready").map(|c| c.status.clone());
        if ready(&self.base).is_some() && ready(&self.base) != ready(&pod.status) {
            self.wanted = Some(std::mem::replace(&mut self.base, pod.status.clone()));
            self.version = version;
        }
    }

    fn path(&self, sub: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{}{sub}", self.namespace, self.name)
    }
}

/// The entry of a pod, with the newer of the two views of what the server has.
fn entry<'a>(pods: &'a mut BTreeMap<PodUid, Entry>, pod: &Pod) -> &'a mut Entry {
    let version = pod.metadata.resource_version.parse().unwrap_or(0);
    let entry = pods.entry(pod.uid()).or_insert_with(|| Entry {
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        base: pod.status.clone(),
        version,
        wanted: None,
        finish: false,
        busy: false,
        not_before: None,
        backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
        seen: Instant::now(),
        sent: None,
    });
    if version > entry.version && !entry.busy {
        entry.version = version;
        entry.base = pod.status.clone();
    }
    entry
}

#[derive(Deserialize)]
struct OnlyMeta {
    metadata: ObjectMeta,
}

async fn send(client: &Client, path: &str, uid: &str, work: Work) -> Outcome {
    match work {
        Work::Patch { status, body } => match client.patch::<OnlyMeta>(path, PatchType::Strategic, &body).await {
            Ok(answer) => Outcome::Accepted(status, answer.metadata.resource_version.parse().unwrap_or(0)),
            Err(error) => failed(error, Some(status)),
        },
        Work::Delete => {
            let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
            match client.delete(path, &body).await {
                Ok(()) => Outcome::Deleted,
                Err(error) => failed(error, None),
            }
        }
    }
}

fn failed(error: Error, status: Option<Arc<PodStatus>>) -> Outcome {
    match error.code() {
        404 => Outcome::Gone,
        // The precondition on the UID. Another conflict is two writers at once: it passes.
        409 if error.to_string().contains("UID") => Outcome::Gone,
        400 | 422 => Outcome::Refused(error),
        _ => Outcome::Failed(error, status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::pod::PodCondition;

    fn pod(version: &str, phase: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = "u".to_owned();
        pod.metadata.namespace = "ns".to_owned();
        pod.metadata.name = "p".to_owned();
        pod.metadata.resource_version = version.to_owned();
        pod.status = status(phase);
        pod
    }

    fn status(phase: &str) -> Arc<PodStatus> {
        Arc::new(PodStatus { phase: phase.to_owned(), ..PodStatus::default() })
    }

    fn next(handle: &Handle) -> Option<(String, Option<Value>)> {
        match handle.take(Instant::now()) {
            Next::Work(_, path, Work::Patch { body, .. }) => Some((path, Some(body))),
            Next::Work(_, path, Work::Delete) => Some((path, None)),
            Next::Wait(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn a_pod_declared_not_ready_behind_our_back_is_declared_ready_again() {
        let ready = |value: &str| {
            let condition = PodCondition { kind: "Ready".to_owned(), status: value.to_owned(), ..PodCondition::default() };
            Arc::new(PodStatus { conditions: vec![condition], ..PodStatus::clone(&status("Running")) })
        };
        let mut of_server = pod("1", "Running");
        of_server.status = ready("True");
        let handle = Handle::default();
        handle.publish(&of_server, ready("True"));
        assert_eq!(next(&handle), None);
        of_server.status = ready("False");
        of_server.metadata.resource_version = "2".to_owned();
        handle.lock().values_mut().for_each(|entry| entry.insist(&of_server));
        let (_, body) = next(&handle).expect("a patch");
        assert_eq!(body.expect("a body")["status"]["conditions"][0]["status"], "True");
    }

    #[test]
    fn only_news_is_sent_and_one_at_a_time() {
        let handle = Handle::default();
        handle.publish(&pod("1", "Pending"), status("Pending"));
        assert_eq!(next(&handle), None);
        handle.publish(&pod("1", "Pending"), status("Running"));
        let sent = next(&handle);
        assert_eq!(sent.as_ref().map(|(path, _)| path.as_str()), Some("/api/v1/namespaces/ns/pods/p/status"));
        handle.publish(&pod("1", "Pending"), status("Succeeded"));
        assert_eq!(next(&handle), None, "one request per pod");
        handle.settle(&PodUid::from("u"), Outcome::Accepted(status("Running"), 2));
        handle.publish(&pod("1", "Pending"), status("Running"));
        assert_eq!(next(&handle), None, "an older view of the server does not count");
        handle.publish(&pod("3", "Pending"), status("Running"));
        assert!(next(&handle).is_some(), "somebody else changed it");
    }

    #[test]
    fn the_time_to_running_is_told_once_and_not_of_pods_that_ran_before() {
        let handle = Handle::default();
        handle.publish(&pod("1", "Pending"), status("Running"));
        assert!(next(&handle).is_some());
        let started = handle.settle(&PodUid::from("u"), Outcome::Accepted(status("Running"), 2)).expect("it started");
        assert!(started.pod == "ns/p" && started.sent <= started.accepted);
        handle.publish(&pod("3", "Pending"), status("Running"));
        assert!(next(&handle).is_some(), "somebody else changed it");
        let handle = Handle::default();
        let ready = Arc::new(PodStatus { message: "m".to_owned(), ..PodStatus::clone(&status("Running")) });
        handle.publish(&pod("1", "Running"), ready.clone());
        assert!(next(&handle).is_some());
        assert!(handle.settle(&PodUid::from("u"), Outcome::Accepted(ready, 2)).is_none(), "it ran before");
    }

    #[test]
    fn the_object_is_deleted_after_its_last_status_and_only_when_wanted() {
        let handle = Handle::default();
        handle.finish(&pod("1", "Running"));
        assert_eq!(next(&handle), None);
        let mut leaving = pod("2", "Running");
        leaving.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".to_owned());
        handle.publish(&leaving, status("Succeeded"));
        handle.finish(&leaving);
        assert!(next(&handle).is_some_and(|(_, body)| body.is_some()));
        handle.settle(&PodUid::from("u"), Outcome::Accepted(status("Succeeded"), 3));
        assert_eq!(next(&handle), Some(("/api/v1/namespaces/ns/pods/p".to_owned(), None)));
        handle.settle(&PodUid::from("u"), Outcome::Deleted);
        assert_eq!(handle.pending(), 0);
    }

    #[test]
    fn a_conflict_that_is_not_about_the_uid_loses_nothing() {
        let conflict = |message: &str| Error::Status { code: 409, reason: "Conflict".to_owned(), message: message.to_owned() };
        let namesake = conflict("Precondition failed: UID in precondition: u, UID in object meta: v");
        assert!(matches!(failed(namesake, None), Outcome::Gone));
        let busy = conflict("the object has been modified; please apply your changes to the latest version and try again");
        assert!(matches!(failed(busy, Some(status("Running"))), Outcome::Failed(_, Some(_))));
    }

    #[test]
    fn a_refused_deletion_is_not_asked_again_at_once() {
        let mut leaving = pod("2", "Succeeded");
        leaving.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".to_owned());
        let handle = Handle::default();
        handle.finish(&leaving);
        assert!(next(&handle).is_some());
        let refused = Error::Status { code: 422, reason: "Invalid".to_owned(), message: "m".to_owned() };
        handle.settle(&PodUid::from("u"), Outcome::Refused(refused));
        assert!(matches!(handle.take(Instant::now()), Next::Wait(_)));
    }

    #[test]
    fn a_failed_status_waits_and_comes_again_unless_a_newer_one_is_there() {
        let handle = Handle::default();
        handle.publish(&pod("1", "Pending"), status("Running"));
        assert!(next(&handle).is_some());
        let away = Error::Transport { server: "s".to_owned(), cause: "c".to_owned() };
        handle.settle(&PodUid::from("u"), Outcome::Failed(away, Some(status("Running"))));
        assert!(matches!(handle.take(Instant::now()), Next::Wait(_)));
        let later = Instant::now() + Duration::from_secs(1);
        assert!(matches!(handle.take(later), Next::Work(_, _, Work::Patch { status, .. }) if status.phase == "Running"));
    }
}
