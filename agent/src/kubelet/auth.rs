//! Who asks, and whether they may: client certificate or bearer token, then the local rule or the API server's word.
//!
//! The API server itself comes as `system:apiserver` in `system:masters`, which is allowed without asking, so that logs
//! and exec work while reviews fail. Everybody else is reviewed; answers are kept as long as a kubelet keeps them.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::tls::ClientCa;
use crate::api;

/// A token's owner is asked for again after this.
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// Permissions granted.
const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// Permissions denied.
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Entries of each cache. A node sees the API server, a metrics scraper and a few people.
const CACHE: usize = 128;
/// Members may do everything.
const MASTERS: &str = "system:masters";

/// An authenticated client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Caller {
    #[serde(rename = "username")]
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a request is not served.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 401: nobody we know.
    Unauthenticated,
    /// 403 with the kubelet's words.
    Forbidden(String),
    /// 500: the API server could not be asked.
    Undecided(String),
}

/// What is asked of the API server about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// From the method.
    pub verb: &'static str,
    /// Subresources of `nodes` any of which is enough, finest first.
    pub subresources: &'static [&'static str],
}

impl Attributes {
    /// As a kubelet maps a request.
    pub fn of(method: &Method, path: &str) -> Self {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let table: &[(&str, &'static [&'static str])] = &[
            ("/stats", &["stats"]),
            ("/metrics", &["metrics"]),
            ("/logs", &["log"]),
            ("/checkpoint", &["checkpoint"]),
            ("/statusz", &["statusz"]),
            ("/flagz", &["configz"]),
            ("/pods", &["pods", "proxy"]),
            ("/runningpods", &["pods", "proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
        ];
        let found = table.iter().find(|(prefix, _)| below(prefix));
        Self { verb, subresources: found.map_or(&["proxy"], |(_, subresources)| subresources) }
    }
}

/// Asks the API server, remembers what it said.
pub struct Authority {
    node: String,
    api: api::Client,
    tokens: Mutex<Cache<[u8; 32], Caller>>,
    permissions: Mutex<Cache<(Caller, &'static str, &'static str), bool>>,
}

impl Authority {
    /// Reviews are sent with `api`, the node's own identity.
    pub fn new(node: &str, api: api::Client) -> Self {
        Self { node: node.to_owned(), api, tokens: Mutex::default(), permissions: Mutex::default() }
    }

    /// Client certificate first, else bearer token.
    pub async fn authenticate(&self, ca: &ClientCa, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Result<Caller, Refusal> {
        if let Some(subject) = ca.subject(chain, SystemTime::now()) {
            return Ok(Caller { user: subject.user, groups: subject.groups, ..Caller::default() });
        }
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .filter(|token| !token.is_empty())
            .ok_or(Refusal::Unauthenticated)?;
        self.review_token(token).await
    }

    async fn review_token(&self, token: &str) -> Result<Caller, Refusal> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(digest.as_ref());
        if let Some(caller) = lock(&self.tokens).get(&key, Instant::now()) {
            return Ok(caller);
        }
        let review = Review { api_version: "authentication.k8s.io/v1", kind: "TokenReview", spec: TokenSpec { token } };
        let answer = self.api.post::<Answer<TokenStatus>>("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        let status = match answer {
            Ok(answer) => answer.status,
            Err(error) => {
                tracing::warn!(%error, "token review failed");
                return Err(Refusal::Unauthenticated);
            }
        };
        if !status.authenticated {
            return Err(Refusal::Unauthenticated);
        }
        lock(&self.tokens).put(key, status.user.clone(), Instant::now() + TOKEN_TTL);
        Ok(status.user)
    }

    /// Whether `caller` may do this; asks for each subresource in turn until one is allowed.
    pub async fn authorize(&self, caller: &Caller, attributes: &Attributes) -> Result<(), Refusal> {
        if caller.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        for subresource in attributes.subresources {
            if self.may(caller, attributes, subresource).await? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!("Forbidden ({})", words(caller, attributes))))
    }

    async fn may(&self, caller: &Caller, attributes: &Attributes, subresource: &'static str) -> Result<bool, Refusal> {
        let key = (caller.clone(), attributes.verb, subresource);
        if let Some(allowed) = lock(&self.permissions).get(&key, Instant::now()) {
            return Ok(allowed);
        }
        let review = Review {
            api_version: "authorization.k8s.io/v1",
            kind: "SubjectAccessReview",
            spec: AccessSpec {
                user: &caller.user,
                uid: &caller.uid,
                groups: &caller.groups,
                extra: &caller.extra,
                resource_attributes: ResourceAttributes {
                    verb: attributes.verb,
                    version: "v1",
                    resource: "nodes",
                    subresource,
                    name: &self.node,
                },
            },
        };
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: Answer<AccessStatus> = self.api.post(path, &review).await.map_err(|error| {
            tracing::warn!(%error, user = caller.user, "access review failed");
            Refusal::Undecided(format!("Authorization error ({})", words(caller, attributes)))
        })?;
        let allowed = answer.status.allowed;
        let ttl = if allowed { ALLOWED_TTL } else { DENIED_TTL };
        lock(&self.permissions).put(key, allowed, Instant::now() + ttl);
        Ok(allowed)
    }
}

fn words(caller: &Caller, attributes: &Attributes) -> String {
    format!("user={}, verb={}, resource=nodes, subresource(s)=[{}]", caller.user, attributes.verb, attributes.subresources.join(" "))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    spec: S,
}

#[derive(Serialize)]
struct TokenSpec<'a> {
    token: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccessSpec<'a> {
    user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
    resource_attributes: ResourceAttributes<'a>,
}

#[derive(Serialize)]
struct ResourceAttributes<'a> {
    verb: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    name: &'a str,
}

#[derive(Deserialize)]
struct Answer<S> {
    status: S,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    user: Caller,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
}

/// Answers with an end; full, it forgets what ends first.
struct Cache<K, V>(HashMap<K, (V, Instant)>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.0.get(key).filter(|(_, end)| *end > now).map(|(value, _)| value.clone())
    }

    fn put(&mut self, key: K, value: V, end: Instant) {
        if self.0.len() >= CACHE {
            let first = self.0.iter().min_by_key(|(_, (_, end))| *end).map(|(key, _)| key.clone());
            if let Some(first) = first {
                self.0.remove(&first);
            }
        }
        self.0.insert(key, (value, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_map_to_verbs_and_subresources() {
        let cases: &[(Method, &str, &str, &[&str])] = &[
            (Method::GET, "/metrics/resource", "get", &["metrics"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::POST, "/exec/ns/pod/c", "create", &["proxy"]),
            (Method::GET, "/containerLogs/ns/pod/c", "get", &["proxy"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz/ping", "get", &["healthz", "proxy"]),
            (Method::PUT, "/metricsx", "update", &["proxy"]),
            (Method::HEAD, "/configz", "get", &["configz", "proxy"]),
        ];
        for (method, path, verb, subresources) in cases {
            assert_eq!(Attributes::of(method, path), Attributes { verb, subresources }, "{method} {path}");
        }
    }

    #[test]
    fn reviews_read_as_the_recorded_ones() {
        let review = Review {
            api_version: "authorization.k8s.io/v1",
            kind: "SubjectAccessReview",
            spec: AccessSpec {
                user: "system:serviceaccount:default:default",
                uid: "",
                groups: &["system:authenticated".to_owned()],
                extra: &BTreeMap::new(),
                resource_attributes: ResourceAttributes {
                    verb: "get",
                    version: "v1",
                    resource: "nodes",
                    subresource: "metrics",
                    name: "wire1",
                },
            },
        };
        let wanted = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "system:serviceaccount:default:default", "groups": ["system:authenticated"],
                "resourceAttributes": {"verb": "get", "version": "v1", "resource": "nodes", "subresource": "metrics", "name": "wire1"}}
        });
        assert_eq!(serde_json::to_value(&review).expect("serialises"), wanted);
        let answer = r#"{"kind":"TokenReview","spec":{"token":"x"},"status":{"authenticated":true,"user":{
            "username":"system:serviceaccount:default:default","uid":"a5cb","groups":["system:authenticated"],
            "extra":{"authentication.kubernetes.io/credential-id":["JTI=1"]}},"audiences":["k3s"]}}"#;
        let answer: Answer<TokenStatus> = serde_json::from_str(answer).expect("parses");
        assert!(answer.status.authenticated && answer.status.user.uid == "a5cb");
        let answer: Answer<AccessStatus> = serde_json::from_str(r#"{"status":{"allowed":false}}"#).expect("parses");
        assert!(!answer.status.allowed);
    }

    #[test]
    fn answers_end_and_the_cache_stays_small() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..CACHE as u64 + 10 {
            cache.put(number, number, now + Duration::from_secs(number + 1));
        }
        assert_eq!(cache.0.len(), CACHE);
        assert_eq!(cache.get(&0, now), None, "the first to end went first");
        assert_eq!(cache.get(&20, now), Some(20));
        assert_eq!(cache.get(&20, now + Duration::from_secs(21)), None, "ended");
    }
}
