//! Controllers: each brings one part of the store's contents to what the specs ask for.
//!
//! All are level-triggered. A controller wakes when a kind it cares about changed, or at a time it asked for, looks at
//! everything as it is now, and does what a pure function of that says. Nothing is remembered between rounds but
//! clocks, and losing those costs only patience, so a kill at any line is an ordinary starting point.

pub mod clock;
pub mod deployment;
pub mod endpoints;
pub mod events;
pub mod eviction;
pub mod garbage;
pub mod lifecycle;
pub mod namespaces;
pub mod nodes;
pub mod object;
pub mod pod_gc;
pub mod replicaset;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::api::{ApiStatus, EventType, Kind, Registry, Selectors};
use crate::auth::Actor;
use crate::scheduler::Scheduler;
use crate::supervisor::config::Cluster;
use events::Recorder;

/// What every controller works with.
#[derive(Clone)]
pub struct Context {
    /// The objects.
    pub registry: Arc<Registry>,
    /// In whose name changes are made.
    pub actor: Actor,
    /// Where events go.
    pub events: Recorder,
    /// The cluster's settings.
    pub cluster: Arc<Cluster>,
}

/// One controller.
pub trait Controller: Send + 'static {
    /// For logs.
    const NAME: &'static str;

    /// Kinds whose changes wake it.
    fn kinds(&self) -> &'static [&'static Kind];

    /// Looks at everything once. Returns when to look again even if nothing changes.
    fn round(&mut self) -> impl Future<Output = Result<Option<Duration>, ApiStatus>> + Send;
}

/// A round that failed is tried again after this; lost races solve themselves sooner, by the change that won.
const RETRY: Duration = Duration::from_millis(500);
/// Even a controller that asks for nothing looks this often, against forgotten wake-ups.
const RESYNC: Duration = Duration::from_secs(300);

/// Runs `controller` until `stop` turns true.
pub async fn run<C: Controller>(mut controller: C, registry: Arc<Registry>, mut stop: watch::Receiver<bool>) {
    let wake = Arc::new(Notify::new());
    let watchers: Vec<_> = controller.kinds().iter().map(|kind| tokio::spawn(forward(registry.clone(), kind, wake.clone()))).collect();
    loop {
        let again = match controller.round().await {
            Ok(again) => again.unwrap_or(RESYNC).min(RESYNC),
            Err(error) if error.is_conflict() || error.is_not_found() || error.is_already_exists() => {
                debug!(controller = C::NAME, error = %error, "lost a race");
                RETRY
            }
            Err(error) => {
                warn!(controller = C::NAME, error = %error, "round ended early");
                RETRY
            }
        };
        // Dropping either future loses nothing: a wake-up that came is kept by Notify, and a timer is set anew.
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(again) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    for watcher in watchers {
        watcher.abort();
    }
}

/// Turns the changes of one kind into wake-ups; many changes make one.
async fn forward(registry: Arc<Registry>, kind: &'static Kind, wake: Arc<Notify>) {
    loop {
        let (_, from) = registry.list(kind, None, &Selectors::default());
        // What changed before the watch began may not have been seen yet.
        wake.notify_one();
        if let Ok(mut changes) = registry.watch(kind, None, Selectors::default(), from) {
            while let Ok(change) = changes.next().await {
                if change.kind != EventType::Bookmark {
                    wake.notify_one();
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Makes what every cluster has before the first request: the fixed namespaces and what they hold.
pub async fn bootstrap(context: &Context, root_ca: &str) -> Result<(), ApiStatus> {
    let namespaces = namespaces::Namespaces { context: context.clone(), root_ca: root_ca.to_owned() };
    namespaces.bootstrap().await?;
    endpoints::Endpoints { context: context.clone() }.kubernetes().await
}

/// Starts all controllers and the scheduler; they end when `stop` turns true.
pub fn start(context: &Context, root_ca: &str, stop: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut start = Start { context, stop, tasks: &mut tasks };
    start.one(namespaces::Namespaces { context: context.clone(), root_ca: root_ca.to_owned() });
    start.one(nodes::Nodes { context: context.clone() });
    start.one(deployment::Deployments::new(context));
    start.one(replicaset::ReplicaSets::new(context));
    start.one(Scheduler::new(context));
    start.one(endpoints::Endpoints { context: context.clone() });
    start.one(lifecycle::Lifecycle::new(context));
    start.one(eviction::Eviction::new(context));
    start.one(pod_gc::PodGc::new(context));
    start.one(garbage::Garbage { context: context.clone() });
    tasks
}

struct Start<'a> {
    context: &'a Context,
    stop: &'a watch::Receiver<bool>,
    tasks: &'a mut Vec<JoinHandle<()>>,
}

impl Start<'_> {
    fn one<C: Controller>(&mut self, controller: C) {
        let run = run(controller, self.context.registry.clone(), self.stop.clone());
        self.tasks.push(tokio::spawn(run));
    }
}
