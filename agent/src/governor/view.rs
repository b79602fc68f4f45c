//! What `edge-agent status` shows of the governor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use cgroup::governor::{Knob, Level, Signal, State, Target};

use crate::config::GovernorWish;
use crate::control::{ActionLine, GovernorStatus, SignalLine};

/// Actions kept.
const LAST: usize = 20;

/// The thread's part: plain values, replaced at each turn where that takes no waiting.
#[derive(Clone, Copy)]
pub(super) struct Glance {
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) signals: [(Level, f64); Signal::ALL.len()],
}

struct Action {
    at: Instant,
    action: &'static str,
    target: String,
    reason: String,
    result: String,
}

#[derive(Default)]
struct Told {
    mode: &'static str,
    degraded: Vec<String>,
    actions: VecDeque<Action>,
    /// By group and knob: how it is said.
    held: BTreeMap<(Target, Knob), String>,
}

/// Both parts.
#[derive(Default)]
pub(super) struct Published {
    glance: Mutex<Option<Glance>>,
    told: Mutex<Told>,
}

impl Published {
    /// For the thread.
    pub(super) fn glance(&self, glance: Glance) {
        match self.glance.try_lock() {
            Ok(mut held) => *held = Some(glance),
            Err(TryLockError::Poisoned(held)) => *held.into_inner() = Some(glance),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No loop runs here.
    pub(super) fn idle(&self, wish: GovernorWish, may_act: bool) {
        let mut told = self.told();
        told.mode = "static";
        if wish != GovernorWish::Static && !may_act {
            told.degraded
                .push("this machine does not let the governor act; the reservations stand alone (edge-agent preflight)".to_owned());
        }
    }

    pub(super) fn mode(&self, mode: &'static str, degraded: Vec<String>) {
        let mut told = self.told();
        told.mode = mode;
        told.degraded = degraded;
    }

    pub(super) fn acted(&self, action: &'static str, target: &str, reason: &str, result: &str) {
        let mut told = self.told();
        told.actions.truncate(LAST - 1);
        let (target, reason, result) = (target.to_owned(), reason.to_owned(), result.to_owned());
        told.actions.push_front(Action { at: Instant::now(), action, target, reason, result });
    }

    pub(super) fn held(&self, held: BTreeMap<(Target, Knob), String>) {
        self.told().held = held;
    }
}

/// As the control socket tells it.
pub(super) fn status(published: &Published) -> GovernorStatus {
    let glance = *published.glance.lock().unwrap_or_else(PoisonError::into_inner);
    let told = published.told();
    let mut signals = Vec::new();
    if let Some(glance) = &glance {
        let mut raised: Vec<(Level, Signal, f64)> =
            Signal::ALL.iter().zip(glance.signals).filter(|(_, (level, _))| *level > Level::Calm).map(|(s, (l, v))| (l, *s, v)).collect();
        raised.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        signals = raised
            .into_iter()
            .map(|(level, signal, value)| SignalLine {
                signal: signal.as_str().to_owned(),
                level: match level {
                    Level::Calm => "calm",
                    Level::Warn => "warn",
                    Level::Act => "act",
                    Level::Emergency => "emergency",
                }
                .to_owned(),
                value: signal.words(value),
            })
            .collect();
    }
    let of =
        |knob: bool| told.held.iter().filter(move |((_, held), _)| (*held == Knob::Freeze) == knob).map(|(_, said)| said.clone()).collect();
    GovernorStatus {
        mode: told.mode.to_owned(),
        state: glance.map(|glance| glance.state.as_str().to_owned()).unwrap_or_default(),
        state_seconds: glance.map_or(0, |glance| glance.since.elapsed().as_secs()),
        signals,
        actions: told
            .actions
            .iter()
            .map(|one| ActionLine {
                seconds_ago: one.at.elapsed().as_secs(),
                action: one.action.to_owned(),
                target: one.target.clone(),
                reason: one.reason.clone(),
                result: one.result.clone(),
            })
            .collect(),
        frozen: of(true),
        throttled: of(false),
        degraded: told.degraded.clone(),
    }
}
