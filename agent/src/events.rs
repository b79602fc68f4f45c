//! Kubernetes events: best effort, counted instead of repeated, never in the way of a pod.
//!
//! As in the kubelet (kubelet-contract.md 12): the same event again only raises the count of the first; ten different
//! messages of one reason within ten minutes are combined; one object may send 25 in a burst, then one in five minutes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::api::pod::Pod;
use crate::api::{Client, Error};
use crate::backoff::Backoff;
use crate::clock;

/// Events waiting to be sent; more are dropped and counted.
const QUEUE: usize = 256;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// In front of the newest of many messages.
const COMBINED: &str = "(combined from similar events)";
const COMBINE_FROM: usize = 10;
const COMBINE_WITHIN: Duration = Duration::from_secs(600);
/// Remembered events; the oldest go first.
const REMEMBERED: usize = 512;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Type {
    Normal,
    Warning,
}

/// `involvedObject` of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Involved {
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

#[derive(Debug, Clone)]
struct Happening {
    involved: Involved,
    kind: Type,
    reason: String,
    message: String,
    at: OffsetDateTime,
}

/// Handle to the event writer; a full queue drops the event and counts it.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Box<Happening>>,
    dropped: Arc<AtomicU64>,
    node_name: Arc<str>,
}

impl Recorder {
    /// The recorder, and the writer that has to be run.
    pub fn new(node_name: &str) -> (Recorder, Writer) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let recorder = Recorder { queue, dropped: Arc::default(), node_name: node_name.into() };
        (recorder, Writer { waiting, correlator: Correlator::default(), node_name: node_name.to_owned() })
    }

    /// An event about a pod; `field_path` like `spec.containers{name}`.
    pub fn pod_event(&self, pod: &Pod, field_path: Option<&str>, kind: Type, reason: &str, message: &str) {
        let involved = Involved {
            kind: "Pod".to_owned(),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            api_version: "v1".to_owned(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field_path.unwrap_or_default().to_owned(),
        };
        self.put(involved, kind, reason, message);
    }

    /// An event about this node.
    pub fn node_event(&self, kind: Type, reason: &str, message: &str) {
        // The kubelet writes the node's name as its UID; `kubectl describe node` looks for that.
        let name = self.node_name.to_string();
        let involved = Involved { kind: "Node".to_owned(), name: name.clone(), uid: name, ..Involved::default() };
        self.put(involved, kind, reason, message);
    }

    /// Events that were not even queued.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn put(&self, involved: Involved, kind: Type, reason: &str, message: &str) {
        let happening = Happening { involved, kind, reason: reason.to_owned(), message: shorten(message), at: OffsetDateTime::now_utc() };
        // Boxed: the queue has room for 32 at a time, full or not.
        if self.queue.try_send(Box::new(happening)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The server takes at most 1024 bytes of message.
fn shorten(message: &str) -> String {
    let mut end = message.len().min(1024);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

/// Digest of what an event is the same by; the texts themselves are long, and every pod has some.
type Key = u64;

#[derive(Debug, Clone)]
struct Sent {
    /// Nanoseconds since the epoch, in its name.
    at: u64,
    count: u32,
    used: Instant,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Combined {
    messages: Vec<Key>,
    at: Option<Instant>,
}

/// What to do with one happening.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Drop,
    Create { message: String },
    Count { name: String, count: u32, message: String },
}

#[derive(Default)]
struct Correlator {
    digest: RandomState,
    sent: HashMap<Key, Sent>,
    buckets: HashMap<Key, Bucket>,
    combined: HashMap<Key, Combined>,
}

impl Correlator {
    fn judge(&mut self, happening: &Happening, now: Instant) -> (Key, Verdict) {
        let (message, combined) = self.combine(happening, now);
        let Happening { involved, kind, reason, .. } = happening;
        let object = self.digest.hash_one((&involved.uid, kind));
        // What is combined is one event, whatever it says.
        let says = if combined { COMBINED } else { &message };
        let key = self.digest.hash_one((&involved.uid, &involved.field_path, &involved.name, kind, reason, says));
        let bucket = self.buckets.entry(object).or_insert(Bucket { tokens: BURST, at: now });
        let refill = now.saturating_duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + refill).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return (key, Verdict::Drop);
        }
        bucket.tokens -= 1.0;
        match self.sent.get_mut(&key) {
            Some(sent) => {
                sent.count += 1;
                sent.used = now;
                let verdict = Verdict::Count { name: event_name(&involved.name, sent.at), count: sent.count, message };
                (key, verdict)
            }
            None => (key, Verdict::Create { message }),
        }
    }

    /// The message to send, and whether it stands for many.
    fn combine(&mut self, happening: &Happening, now: Instant) -> (String, bool) {
        let group = self.digest.hash_one((&happening.involved.uid, happening.kind, &happening.reason));
        let says = self.digest.hash_one(&happening.message);
        let combined = self.combined.entry(group).or_default();
        if combined.at.is_none_or(|at| now.saturating_duration_since(at) > COMBINE_WITHIN) {
            combined.messages.clear();
        }
        combined.at = Some(now);
        if !combined.messages.contains(&says) {
            if combined.messages.len() + 1 >= COMBINE_FROM {
                return (shorten(&format!("{COMBINED}: {}", happening.message)), true);
            }
            combined.messages.push(says);
        }
        (happening.message.clone(), false)
    }

    fn remember(&mut self, key: Key, sent: Sent) {
        if self.sent.len() >= REMEMBERED {
            if let Some(oldest) = self.sent.iter().min_by_key(|(_, sent)| sent.used).map(|(key, _)| *key) {
                self.sent.remove(&oldest);
            }
            let now = Instant::now();
            self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < REFILL * 25);
            self.combined.retain(|_, combined| combined.at.is_some_and(|at| now.saturating_duration_since(at) < COMBINE_WITHIN));
        }
        self.sent.insert(key, sent);
    }
}

/// Sends what recorders leave.
pub struct Writer {
    waiting: mpsc::Receiver<Box<Happening>>,
    correlator: Correlator,
    node_name: String,
}

impl Writer {
    /// Runs until every recorder is gone.
    pub async fn run(mut self, client: Client) {
        while let Some(happening) = self.waiting.recv().await {
            let (key, verdict) = self.correlator.judge(&happening, Instant::now());
            match verdict {
                Verdict::Drop => {}
                Verdict::Create { message } => self.create(&client, key, &happening, &message).await,
                Verdict::Count { name, count, message } => {
                    let path = format!("{}/{name}", events_path(&happening.involved));
                    let body = json!({"count": count, "lastTimestamp": clock::seconds(happening.at), "message": message});
                    let gone = patient(&client, Method::PATCH, "application/strategic-merge-patch+json", &path, &body).await;
                    if gone.is_err_and(|error| error.is_not_found()) {
                        self.create(&client, key, &happening, &message).await;
                    }
                }
            }
        }
    }

    async fn create(&mut self, client: &Client, key: Key, happening: &Happening, message: &str) {
        let at = u64::try_from(happening.at.unix_timestamp_nanos()).unwrap_or_default();
        let name = event_name(&happening.involved.name, at);
        let body = self.body(&name, happening, message);
        let path = events_path(&happening.involved);
        let result = patient(client, Method::POST, "application/json", &path, &body).await;
        match result {
            Ok(()) => self.correlator.remember(key, Sent { at, count: 1, used: Instant::now() }),
            Err(error) => tracing::debug!(reason = %happening.reason, name = %happening.involved.name, error = %error, "event not sent"),
        }
    }

    fn body(&self, name: &str, happening: &Happening, message: &str) -> serde_json::Value {
        let at = clock::seconds(happening.at);
        json!({
            "kind": "Event",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": namespace(&happening.involved)},
            "involvedObject": happening.involved,
            "reason": happening.reason,
            "message": message,
            "source": {"component": "kubelet", "host": self.node_name},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "type": happening.kind,
            "eventTime": null,
            "reportingComponent": "kubelet",
            "reportingInstance": self.node_name,
        })
    }
}

/// Object and instant, within the 253 bytes of a name.
fn event_name(object: &str, nanos: u64) -> String {
    // Names are ASCII; one that is not is refused by the server anyway.
    let object: String = object.chars().take(253 - 17).collect();
    format!("{}.{nanos:x}", object.trim_end_matches(['.', '-']))
}

fn namespace(involved: &Involved) -> &str {
    if involved.namespace.is_empty() { "default" } else { &involved.namespace }
}

fn events_path(involved: &Involved) -> String {
    format!("/api/v1/namespaces/{}/events", namespace(involved))
}

/// Up to 12 attempts while the server does not answer; refusals end it at once.
async fn patient(client: &Client, method: Method, content_type: &str, path: &str, body: &serde_json::Value) -> Result<(), Error> {
    let body = Bytes::from(body.to_string());
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut attempt = 1;
    loop {
        match client.raw(method.clone(), path, content_type, body.clone()).await {
            Err(error) if error.is_retryable() && attempt < 12 => {
                attempt += 1;
                tokio::time::sleep(backoff.next_wait()).await;
            }
            other => return other.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(message: &str) -> Happening {
        Happening {
            involved: Involved { uid: "u".to_owned(), name: "p".to_owned(), ..Involved::default() },
            kind: Type::Normal,
            reason: "Started".to_owned(),
            message: message.to_owned(),
            at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_repeat_raises_the_count_and_the_twenty_sixth_in_a_row_is_dropped() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let (key, verdict) = correlator.judge(&happening("m"), now);
        assert_eq!(verdict, Verdict::Create { message: "m".to_owned() });
        correlator.remember(key, Sent { at: 1, count: 1, used: now });
        for count in 2..=25 {
            let (_, verdict) = correlator.judge(&happening("m"), now);
            assert_eq!(verdict, Verdict::Count { name: "p.1".to_owned(), count, message: "m".to_owned() });
        }
        assert_eq!(correlator.judge(&happening("m"), now).1, Verdict::Drop);
        assert!(matches!(correlator.judge(&happening("m"), now + REFILL).1, Verdict::Count { count: 26, .. }));
    }

    #[test]
    fn ten_different_messages_are_combined() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        for number in 1..10 {
            let (_, verdict) = correlator.judge(&happening(&format!("m{number}")), now);
            assert_eq!(verdict, Verdict::Create { message: format!("m{number}") });
        }
        let (key, verdict) = correlator.judge(&happening("m10"), now);
        assert_eq!(verdict, Verdict::Create { message: "(combined from similar events): m10".to_owned() });
        correlator.remember(key, Sent { at: 16, count: 1, used: now });
        let (_, verdict) = correlator.judge(&happening("m11"), now);
        let message = "(combined from similar events): m11".to_owned();
        assert_eq!(verdict, Verdict::Count { name: "p.10".to_owned(), count: 2, message }, "one event says it all");
    }

    #[test]
    fn names_and_messages_stay_within_the_servers_limits() {
        assert_eq!(event_name("p", 0x1234), "p.1234");
        let long = event_name(&"n".repeat(253), u64::MAX);
        assert_eq!(long.len(), 253);
        assert!(long.ends_with("n.ffffffffffffffff"));
        assert_eq!(shorten(&"é".repeat(600)).len(), 1024);
        assert_eq!(shorten("short"), "short");
    }
}
