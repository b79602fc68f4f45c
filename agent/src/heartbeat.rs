//! The sacred thread: renews the node lease and runs the sockets of the tunnel links.
//!
//! It has an OS thread, a runtime and an API connection of its own. No file is touched and no lock shared with the rest is
//! held or waited for across work here, so that a slow card, a full disk or a busy pod cannot cost the node its lease: metrics are
//! atomics, logs and systemd's watchdog are sockets that drop what finds no room, names are looked up by another thread. What is left is
//! the allocator's lock and the moment in which a channel's value is replaced. The watchdog is fed after each finished attempt.

mod lag;
mod watchdog;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tunnel::ServerAddr;
use tunnel::link::{LinksOptions, run_links};
use tunnel::traffic::Traffic;

use crate::api::client::Settings;
use crate::api::servers::Servers;
use crate::api::{Client, Error};
use crate::clock;
use crate::config::LEASE;
use crate::hot;
use crate::metrics::{LeaseFailure, Metrics};

pub use lag::Lag;
use watchdog::Watchdog;

/// After a failed one.
const AGAIN: Duration = Duration::from_secs(2);
/// The watchdog is fed at least this often.
const FEED: Duration = Duration::from_secs(8);
/// One renewal, dial included.
const DEADLINE: Duration = Duration::from_secs(5);

/// What the thread works with; nothing in it blocks.
pub struct Heartbeat {
    pub node_name: String,
    /// The Node's UID once it is registered, to own the lease.
    pub node_uid: watch::Receiver<String>,
    /// The address of the configuration.
    pub configured: ServerAddr,
    pub servers: watch::Receiver<Vec<ServerAddr>>,
    /// Node identity, HTTP/2.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
    pub links: LinksOptions,
    pub metrics: Arc<Metrics>,
    /// Counts the bytes of the lease's connection.
    pub traffic: Arc<Traffic>,
    /// Between renewals of the lease.
    pub lease_every: Duration,
    pub stop: watch::Receiver<bool>,
}

impl Heartbeat {
    /// Starts the thread; it ends when `stop` becomes true.
    pub fn start(self) -> anyhow::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_io_events_per_tick(64)
            .max_blocking_threads(1)
            .thread_keep_alive(Duration::from_secs(2))
            .build()
            .context("starting the heartbeat's runtime")?;
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .stack_size(2 << 20)
            .spawn(move || {
                hot::enter("heartbeat");
                runtime.block_on(self.run());
            })
            .context("starting the heartbeat thread")
    }

    async fn run(self) {
        let mut stop = self.stop.clone();
        let (tls, own_tls) = watch::channel(own_sessions(&self.tls.borrow()));
        let tls = follow_tls(self.tls.clone(), tls);
        let settings = Settings { deadline: DEADLINE, keep_alive: None, code_only: true };
        let client = Client::new(Servers::new(&self.configured, self.servers.clone(), own_tls).counted(self.traffic), settings);
        // A server whose tunnel is lost is no place to renew the lease.
        let health = crate::app::follow_links(self.links.states.subscribe(), None, vec![client.clone()]);
        let links = run_links(self.servers, self.links);
        let lag = watch_lag(Arc::clone(&self.metrics));
        let lease = Lease { client, name: self.node_name, uid: self.node_uid, metrics: self.metrics, every: self.lease_every };
        tokio::select! {
            () = async { tokio::join!(links, lease.keep(), health, lag, tls); } => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// The identity with a store of TLS sessions for this thread alone: the store is behind a lock.
fn own_sessions(shared: &ClientConfig) -> Arc<ClientConfig> {
    let mut own = shared.clone();
    own.resumption = Resumption::in_memory_sessions(16);
    Arc::new(own)
}

async fn follow_tls(mut shared: watch::Receiver<Arc<ClientConfig>>, own: watch::Sender<Arc<ClientConfig>>) {
    while shared.changed().await.is_ok() {
        let now = own_sessions(&shared.borrow_and_update());
        own.send_replace(now);
    }
    std::future::pending().await
}

/// Wakes for nothing else than to see how late it is.
async fn watch_lag(metrics: Arc<Metrics>) {
    let lag = Arc::clone(metrics.lag());
    loop {
        let planned = lag.plan(Instant::now());
        tokio::time::sleep_until(planned.into()).await;
        metrics.heartbeat_lag(lag.woke(planned, Instant::now()));
    }
}

struct Lease {
    client: Client,
    name: String,
    uid: watch::Receiver<String>,
    metrics: Arc<Metrics>,
    every: Duration,
}

impl Lease {
    async fn keep(mut self) {
        let watchdog = Watchdog::of_unit();
        let mut warm = false;
        let mut failures = 0u32;
        loop {
            let began = Instant::now();
            let result = self.renew().await;
            let wait = match result {
                Ok(()) => {
                    if failures > 1 {
                        tracing::info!(failures, "lease renewed again");
                    }
                    failures = 0;
                    self.metrics.lease_renewed(began.elapsed());
                    self.every.saturating_sub(began.elapsed())
                }
                Err(error) => {
                    failures += 1;
                    self.metrics.lease_failed(kind(&error));
                    if failures == 2 {
                        // Once may be chance; twice, and the connection itself is suspect.
                        tracing::warn!(error = %error, failures, "lease not renewed");
                        self.client.reconnect().await;
                    } else {
                        tracing::debug!(error = %error, failures, "lease not renewed");
                    }
                    AGAIN
                }
            };
            watchdog.feed();
            if !warm {
                // Dialled, shaken hands, written and read: what this thread needs was used once.
                warm = true;
                self.keep_pages();
            }
            let planned = Instant::now() + wait;
            while let Some(rest) = planned.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                // systemd waits 20 s, a metered node that long between renewals.
                tokio::time::sleep(rest.min(FEED)).await;
                if watchdog.is_there() && rest > FEED {
                    watchdog.feed();
                }
            }
        }
    }

    fn keep_pages(&self) {
        match hot::keep_pages() {
            Ok(kept) => {
                tracing::debug!(?kept, "pages in use stay in memory");
                self.metrics.governor().memory_locked(true);
            }
            Err(error) => tracing::warn!(%error, "pages in use may be taken away; give the agent LimitMEMLOCK=64M or CAP_IPC_LOCK"),
        }
    }

    /// The fewest bytes that count as a renewal; a lease that is missing is made, owned by the Node.
    async fn renew(&mut self) -> Result<(), Error> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.name);
        let now = clock::micros(OffsetDateTime::now_utc());
        let body = format!(r#"{{"spec":{{"renewTime":"{now}"}}}}"#);
        match self.client.raw(Method::PATCH, &path, "application/merge-patch+json", Bytes::from(body)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => self.create(&now).await,
            Err(error) => Err(error),
        }
    }

    async fn create(&mut self, now: &str) -> Result<(), Error> {
        // Without the Node there is nothing to own the lease; the next round comes soon enough.
        let waited = tokio::time::timeout(Duration::from_secs(3), self.uid.wait_for(|uid| !uid.is_empty())).await;
        let uid = match waited {
            Ok(Ok(uid)) => uid.clone(),
            Ok(Err(_)) | Err(_) => return Err(Error::Deadline { server: "node registration".to_owned(), after: Duration::from_secs(3) }),
        };
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": "kube-node-lease",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": uid}],
            },
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE.as_secs(), "renewTime": now},
        });
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let bytes = Bytes::from(body.to_string());
        match self.client.raw(Method::POST, path, "application/json", bytes).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn kind(error: &Error) -> LeaseFailure {
    match error {
        Error::Deadline { .. } => LeaseFailure::Timeout,
        Error::Transport { .. } => LeaseFailure::Network,
        Error::Status { code: 409, .. } => LeaseFailure::Conflict,
        Error::Status { code: 401 | 403, .. } => LeaseFailure::Refused,
        Error::Status { .. } | Error::Decode { .. } => LeaseFailure::Server,
    }
}
