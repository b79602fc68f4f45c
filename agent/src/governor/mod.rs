//! The governor in the agent: one thread that looks, decides and acts, and a desk that tells everybody else.
//!
//! ```text
//!   kernel ─► sensor ─► law (pure) ─► actuator ─► kernel          the thread: no network, no disk, no lock it could wait for
//!                        ▲    └─► reports ─► desk ─► workers, events, node conditions, status
//!   pods' facts ─────────┘                           the desk: on the agent's runtime, may be late
//! ```

mod desk;
mod facts;
mod probe;
mod thread;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use cgroup::PodTree;
use cgroup::governor::{Features, Scopes, Settings, Triggers, Waker};
use tokio::sync::watch;

use crate::config::GovernorWish;
use crate::control::Released;
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::metrics::governor::Info;
use crate::pod::View;
use crate::pod::governed::Orders;

pub use desk::{Desk, NodeWord};

/// How long `governor release` waits for the thread.
const RELEASE: Duration = Duration::from_secs(2);

/// What the governor works with.
pub struct Deps {
    /// Groups of pods.
    pub tree: PodTree,
    /// Groups that are watched.
    pub scopes: Scopes,
    /// Amounts.
    pub settings: Settings,
    /// What is wanted of it.
    pub wish: GovernorWish,
    /// Whether this machine lets it act ([`cgroup::GovernorMode::may_act`]).
    pub may_act: bool,
    /// `MAJ:MIN` of the disk of the pods.
    pub disk: Option<String>,
    /// Where the state is, for the write probe and the disk's space.
    pub data_dir: std::path::PathBuf,
    /// Volatile state.
    pub run_dir: std::path::PathBuf,
    /// What the machine offers.
    pub info: Info,
    /// What of it works, as it was tried.
    pub features: Features,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// The pods of this node.
    pub view: View,
    /// For events.
    pub recorder: Recorder,
    /// For the workers of pods.
    pub orders: watch::Sender<Arc<Orders>>,
    /// For the node's conditions.
    pub word: watch::Sender<NodeWord>,
}

/// The running governor.
pub struct Governor {
    shared: Arc<Shared>,
    waker: Option<Waker>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the thread and others have in common. The thread never waits for any of it.
pub(crate) struct Shared {
    facts: facts::Shelf,
    view: view::Published,
    stop: AtomicBool,
    release: std::sync::Mutex<Option<mpsc::Sender<Released>>>,
    probe: Arc<probe::Probe>,
}

impl Governor {
    /// Undoes what a former agent left, then starts the thread and the desk. Where no loop is wanted or possible only the former is done.
    pub fn start(deps: Deps) -> anyhow::Result<Governor> {
        let recovered = cgroup::governor::recover(&deps.tree, &deps.run_dir);
        for undone in &recovered.undone {
            tracing::info!(
                group = undone.group,
                knob = undone.knob.file(),
                from = undone.from,
                to = undone.to,
                "left by a former agent, undone"
            );
        }
        for error in &recovered.failed {
            tracing::warn!(error = %crate::telemetry::chain(error), "left by a former agent, not undone");
        }
        let shared = Arc::new(Shared {
            facts: facts::Shelf::default(),
            view: view::Published::default(),
            stop: AtomicBool::new(false),
            release: std::sync::Mutex::default(),
            probe: Arc::new(probe::Probe::new(&deps.data_dir)),
        });
        let runs = deps.may_act && deps.wish != GovernorWish::Static;
        if !runs {
            shared.view.idle(deps.wish, deps.may_act);
            deps.metrics.governor().set_snapshot(&thread::still(&deps));
            return Ok(Governor { shared, waker: None, thread: None });
        }
        let triggers = Triggers::new(&deps.tree, &deps.scopes).context("making the governor's wake-up")?;
        let waker = triggers.waker();
        let (reports, inbox) = tokio::sync::mpsc::channel(256);
        crate::task::spawn(facts::keep(deps.view.clone(), Arc::clone(&shared)));
        let desk = Desk::new(Arc::clone(&shared), deps.recorder.clone(), deps.view.clone(), deps.orders.clone(), deps.word.clone());
        crate::task::spawn(desk.run(inbox));
        probe::start(Arc::clone(&shared.probe), Arc::clone(&deps.metrics))?;
        let thread = thread::start(deps, Arc::clone(&shared), triggers, reports)?;
        Ok(Governor { shared, waker: Some(waker), thread: Some(thread) })
    }

    /// A handle for the control socket.
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared), waker: self.waker.clone() }
    }

    /// Undoes everything and ends the thread.
    pub fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.probe.stop();
        if let Some(waker) = &self.waker {
            waker.wake();
        }
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("governor thread ended in panic");
            }
        }
    }
}

/// Asks the governor from elsewhere.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    waker: Option<Waker>,
}

impl Handle {
    /// As `edge-agent status` shows it.
    pub fn status(&self) -> crate::control::GovernorStatus {
        view::status(&self.shared.view)
    }

    /// Undoes every brake and freeze now.
    pub fn release(&self) -> Result<Released, String> {
        let Some(waker) = &self.waker else { return Ok(Released::default()) };
        let (tell, told) = mpsc::channel();
        *self.shared.release.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(tell);
        waker.wake();
        told.recv_timeout(RELEASE)
            .map_err(|_| format!("the governor did not answer within {} s; look at: journalctl -u edge-agent", RELEASE.as_secs()))
    }
}
