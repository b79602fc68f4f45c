//! ConfigMaps, Secrets, Services and service account tokens that pods refer to.
//!
//! Single objects are got by name (a node may not list them) and asked for again when older than a minute; services are
//! watched from the first pod that needs them. An unreachable server gives what is known, also from before a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::api::Client;
use crate::api::core::{ConfigMap, Secret, Service, Token, TokenRequest};
use crate::api::error::Error;
use crate::api::watch::Change;
use crate::clock;

/// The kubelet's own age for volumes: a change is seen after a minute or so.
const FRESH: Duration = Duration::from_secs(60);

/// Cached, asked for again when older than a minute; an unreachable server gives the last known object.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    config_maps: Mutex<Cache<ConfigMap>>,
    secrets: Mutex<Cache<Secret>>,
    tokens: Mutex<HashMap<TokenKey, CachedToken>>,
    services: watch::Sender<Option<Arc<Services>>>,
    services_wanted: Notify,
    changed: Notify,
}

type Cache<T> = HashMap<(String, String), Arc<tokio::sync::Mutex<Slot<T>>>>;
/// Services by namespace, each sorted by creation then name.
type Services = BTreeMap<String, Vec<Arc<Service>>>;

struct Slot<T> {
    value: Option<Arc<T>>,
    known: bool,
    asked: Option<Instant>,
}

impl<T> Default for Slot<T> {
    fn default() -> Slot<T> {
        Slot { value: None, known: false, asked: None }
    }
}

/// Which token: (namespace, service account, audiences, seconds, pod UID).
pub type TokenKey = (String, String, Vec<String>, i64, String);

#[derive(Clone)]
struct CachedToken {
    token: Token,
    renew_at: OffsetDateTime,
}

/// What survives a restart without the server.
#[derive(Debug, Default)]
pub struct Known {
    pub config_maps: Vec<Arc<ConfigMap>>,
    pub secrets: Vec<Arc<Secret>>,
    pub services: Option<Vec<Arc<Service>>>,
    pub tokens: Vec<(TokenKey, Token)>,
}

trait Kept {
    fn is_immutable(&self) -> bool;
}
impl Kept for ConfigMap {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}
impl Kept for Secret {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Objects {
    /// `known` comes from the ledger. [`Objects::run`] has to run beside.
    pub fn new(client: Client, known: Known) -> Objects {
        let tokens =
            known.tokens.into_iter().map(|(key, token)| (key, CachedToken { token, renew_at: OffsetDateTime::UNIX_EPOCH })).collect();
        let inner = Inner {
            client,
            config_maps: Mutex::new(known.config_maps.into_iter().map(|o| remembered(o, |o| &o.metadata)).collect()),
            secrets: Mutex::new(known.secrets.into_iter().map(|o| remembered(o, |o| &o.metadata)).collect()),
            tokens: Mutex::new(tokens),
            services: watch::Sender::new(known.services.map(|services| Arc::new(by_namespace(services.into_iter())))),
            services_wanted: Notify::new(),
            changed: Notify::new(),
        };
        Objects { inner: Arc::new(inner) }
    }

    /// Ok(None): the server says there is no such object. Err: not known (server away and nothing cached).
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        let slot = slot(&self.inner.config_maps, namespace, name);
        self.object(&slot, || format!("/api/v1/namespaces/{namespace}/configmaps/{name}")).await
    }

    /// As [`Objects::config_map`].
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Error> {
        let slot = slot(&self.inner.secrets, namespace, name);
        self.object(&slot, || format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await
    }

    /// The slot's lock is held over the request, so that thirty pods with one ConfigMap ask once.
    async fn object<T: DeserializeOwned + Kept + PartialEq>(
        &self,
        slot: &tokio::sync::Mutex<Slot<T>>,
        path: impl Fn() -> String,
    ) -> Result<Option<Arc<T>>, Error> {
        let mut slot = slot.lock().await;
        let fresh = slot.asked.is_some_and(|at| at.elapsed() < FRESH);
        let settled = slot.value.as_ref().is_some_and(|value| value.is_immutable());
        // What does not exist is asked for each time: somebody is about to create it.
        if slot.value.is_some() && (fresh || settled) {
            return Ok(slot.value.clone());
        }
        match self.inner.client.get::<T>(&path()).await {
            Ok(value) => {
                slot.asked = Some(Instant::now());
                slot.known = true;
                if slot.value.as_deref() != Some(&value) {
                    slot.value = Some(Arc::new(value));
                    self.inner.changed.notify_one();
                }
                Ok(slot.value.clone())
            }
            Err(error) if error.is_not_found() => {
                slot.known = true;
                slot.value = None;
                Ok(None)
            }
            Err(error) if error.is_retryable() && slot.value.is_some() => {
                // The server is away: do not make every caller wait for the deadline.
                slot.asked = Some(Instant::now());
                Ok(slot.value.clone())
            }
            Err(error) => Err(error),
        }
    }

    /// Every service of the namespace, sorted by creation time then name. The watch behind it starts at the first call.
    pub async fn services(&self, namespace: &str) -> Result<Vec<Arc<Service>>, Error> {
        self.inner.services_wanted.notify_one();
        let mut services = self.inner.services.subscribe();
        let after = Duration::from_secs(10);
        let waited = tokio::time::timeout(after, services.wait_for(Option::is_some)).await;
        let known = match waited {
            Ok(Ok(known)) => known.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        match known {
            Some(all) => Ok(all.get(namespace).cloned().unwrap_or_default()),
            None => Err(Error::Deadline { server: "services".to_owned(), after }),
        }
    }

    /// A token bound to the pod; cached until 80 % of its life (24 h at most) has passed.
    pub async fn service_account_token(&self, namespace: &str, service_account: &str, request: &TokenRequest) -> Result<Token, Error> {
        let key: TokenKey = (
            namespace.to_owned(),
            service_account.to_owned(),
            request.audiences.clone(),
            request.expiration_seconds,
            request.pod_uid.clone(),
        );
        let cached = lock(&self.inner.tokens).get(&key).cloned();
        if let Some(cached) = cached.as_ref().filter(|cached| OffsetDateTime::now_utc() < cached.renew_at) {
            return Ok(cached.token.clone());
        }
        #[derive(Deserialize)]
        struct Answer {
            status: Status,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Status {
            token: String,
            expiration_timestamp: String,
        }
        let body = json!({
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "spec": {
                "audiences": request.audiences,
                "expirationSeconds": request.expiration_seconds,
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": request.pod_name, "uid": request.pod_uid},
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        match self.inner.client.post::<Answer>(&path, &body).await {
            Ok(answer) => {
                let now = OffsetDateTime::now_utc();
                let expires = clock::parse(&answer.status.expiration_timestamp).unwrap_or(now);
                let life = (expires - now).min(time::Duration::hours(24));
                let token = Token { token: answer.status.token, expires_at: answer.status.expiration_timestamp };
                let renewed = CachedToken { token: token.clone(), renew_at: now + life * 0.8 };
                if lock(&self.inner.tokens).insert(key, renewed).is_none() {
                    // Only a first token is worth a write; a renewed one goes along with the next.
                    self.inner.changed.notify_one();
                }
                Ok(token)
            }
            Err(error) if error.is_retryable() => cached.map(|cached| cached.token).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Forgets the tokens of pods that are gone and objects nobody refers to.
    pub fn retain(
        &self,
        keep_pod: impl Fn(&str) -> bool,
        keep_config_map: impl Fn(&str, &str) -> bool,
        keep_secret: impl Fn(&str, &str) -> bool,
    ) {
        lock(&self.inner.tokens).retain(|key, _| keep_pod(&key.4));
        lock(&self.inner.config_maps).retain(|(namespace, name), slot| Arc::strong_count(slot) > 1 || keep_config_map(namespace, name));
        lock(&self.inner.secrets).retain(|(namespace, name), slot| Arc::strong_count(slot) > 1 || keep_secret(namespace, name));
    }

    /// Everything worth keeping over a restart. An object that is being asked for right now is left out this time.
    pub fn known(&self) -> Known {
        let config_maps = values(&self.inner.config_maps);
        let secrets = values(&self.inner.secrets);
        let tokens = lock(&self.inner.tokens).iter().map(|(key, cached)| (key.clone(), cached.token.clone())).collect();
        let services = self.inner.services.borrow().as_ref().map(|all| all.values().flatten().cloned().collect());
        Known { config_maps, secrets, services, tokens }
    }

    /// Waits until something that [`Objects::known`] gives has changed.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// The watch of services, once somebody wants them.
    pub async fn run(self) {
        self.inner.services_wanted.notified().await;
        let mut all: BTreeMap<(String, String), Arc<Service>> = BTreeMap::new();
        let mut watch = self.inner.client.watch::<Service>("/api/v1/services", "");
        let key = |service: &Service| (service.metadata.namespace.clone(), service.metadata.name.clone());
        loop {
            match watch.next().await {
                Change::Replaced(services) => all = services.into_iter().map(|service| (key(&service), Arc::new(service))).collect(),
                Change::Applied(service) => {
                    all.insert(key(&service), Arc::new(service));
                }
                Change::Deleted(service) => {
                    all.remove(&key(&service));
                }
            }
            self.inner.services.send_replace(Some(Arc::new(by_namespace(all.values().cloned()))));
            self.inner.changed.notify_one();
        }
    }
}

fn by_namespace(services: impl Iterator<Item = Arc<Service>>) -> Services {
    let mut map = Services::new();
    for service in services {
        map.entry(service.metadata.namespace.clone()).or_default().push(service);
    }
    for list in map.values_mut() {
        list.sort_by(|a, b| (&a.metadata.creation_timestamp, &a.metadata.name).cmp(&(&b.metadata.creation_timestamp, &b.metadata.name)));
    }
    map
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot<T>(cache: &Mutex<Cache<T>>, namespace: &str, name: &str) -> Arc<tokio::sync::Mutex<Slot<T>>> {
    lock(cache).entry((namespace.to_owned(), name.to_owned())).or_default().clone()
}

type Remembered<T> = ((String, String), Arc<tokio::sync::Mutex<Slot<T>>>);

fn remembered<T>(object: Arc<T>, meta: impl Fn(&T) -> &crate::api::ObjectMeta) -> Remembered<T> {
    let key = (meta(&object).namespace.clone(), meta(&object).name.clone());
    (key, Arc::new(tokio::sync::Mutex::new(Slot { value: Some(object), known: false, asked: None })))
}

fn values<T>(cache: &Mutex<Cache<T>>) -> Vec<Arc<T>> {
    let slots: Vec<_> = lock(cache).values().cloned().collect();
    slots.iter().filter_map(|slot| slot.try_lock().ok().and_then(|slot| slot.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, created: &str) -> Arc<Service> {
        let mut service = Service::default();
        service.metadata.namespace = namespace.to_owned();
        service.metadata.name = name.to_owned();
        service.metadata.creation_timestamp = Some(created.to_owned());
        Arc::new(service)
    }

    #[test]
    fn services_are_kept_by_namespace_oldest_first() {
        let map = by_namespace(
            [service("a", "z", "2026-01-02T00:00:00Z"), service("b", "x", "1"), service("a", "b", "2026-01-03T00:00:00Z")].into_iter(),
        );
        let names: Vec<_> = map["a"].iter().map(|service| service.metadata.name.as_str()).collect();
        assert_eq!(names, ["z", "b"]);
        assert_eq!(map["b"].len(), 1);
    }
}
