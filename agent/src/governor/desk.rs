//! The desk: hears what the thread did and tells workers, events, node conditions and `status`. It may be late; the thread does not wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cgroup::QosClass;
use cgroup::governor::{Action, Knob, Order, Resource, Setting, Stance, Target, boottime};
use runtime::PodUid;
use tokio::sync::{mpsc, watch};

use super::Shared;
use crate::api::pod::Pod;
use crate::events::{Recorder, Type};
use crate::pod::View;
use crate::pod::governed::{Eviction, Orders};

/// What the thread tells.
#[derive(Debug)]
pub(super) enum Report {
    /// It runs as this, and what it lacks.
    Began { mode: &'static str, lacks: Vec<&'static str> },
    /// It did something, or would have.
    Did { order: Order, result: Outcome },
    /// How it wants the rest of the agent to behave; workloads that wait, with the moment (boot time) from which they may start.
    Stands { stance: Stance, waiting: Vec<(String, Duration)> },
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Only observing.
    Observed,
    Failed(String),
}

/// The governor's part in the node's conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeWord {
    /// `MemoryPressure`, with the message; None: no.
    pub memory_pressure: Option<String>,
}

/// See the module.
pub struct Desk {
    shared: Arc<Shared>,
    recorder: Recorder,
    view: View,
    orders: watch::Sender<Arc<Orders>>,
    word: watch::Sender<NodeWord>,
    now: Orders,
    held: BTreeMap<(Target, Knob), String>,
    last_memory: String,
}

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        recorder: Recorder,
        view: View,
        orders: watch::Sender<Arc<Orders>>,
        word: watch::Sender<NodeWord>,
    ) -> Desk {
        Desk { shared, recorder, view, orders, word, now: Orders::default(), held: BTreeMap::new(), last_memory: String::new() }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Report>) {
        while let Some(report) = inbox.recv().await {
            match report {
                Report::Began { mode, lacks } => {
                    tracing::info!(mode, ?lacks, "governor runs");
                    let lacks = lacks.into_iter().map(|what| format!("{what} cannot be used here")).collect();
                    self.shared.view.mode(mode, lacks);
                }
                Report::Did { order, result } => self.did(&order, &result),
                Report::Stands { stance, waiting } => self.stands(stance, waiting),
            }
            self.publish();
        }
    }

    fn publish(&self) {
        self.orders.send_if_modified(|orders| {
            let news = **orders != self.now;
            if news {
                *orders = Arc::new(self.now.clone());
            }
            news
        });
    }

    fn pod(&self, target: &Target) -> Option<Arc<Pod>> {
        let Target::Pod { uid, .. } = target else { return None };
        self.view.get(&PodUid::from(uid.as_str())).map(|seen| Arc::clone(&seen.pod))
    }

    fn name(&self, target: &Target) -> String {
        match target {
            Target::Pod { uid, .. } => self.pod(target).map_or_else(|| uid.clone(), |pod| pod.full_name()),
            Target::BestEffort => "all BestEffort pods".to_owned(),
            Target::Burstable => "all Burstable pods".to_owned(),
            Target::Kubepods => "all pods".to_owned(),
        }
    }

    fn did(&mut self, order: &Order, result: &Outcome) {
        let name = self.name(order.action.target());
        let said = match result {
            Outcome::Done => "ok".to_owned(),
            Outcome::Observed => "suppressed: observe".to_owned(),
            Outcome::Failed(error) => format!("failed: {error}"),
        };
        let action = order.action.name();
        match result {
            Outcome::Failed(error) => tracing::warn!(action, target = name, error, reason = order.why, "governor could not act"),
            Outcome::Done | Outcome::Observed => tracing::info!(action, target = name, result = said, reason = order.why, "governor acts"),
        }
        self.shared.view.acted(action, &name, &order.why, &said);
        if *result != Outcome::Done {
            return;
        }
        let tightens = match &order.action {
            Action::Set { target, setting } => !self.held.contains_key(&(target.clone(), setting.knob())),
            Action::Evict { .. } | Action::Kill { .. } => true,
            Action::Restore { .. } | Action::Reclaim { .. } => false,
        };
        if tightens && order.resource == Resource::Memory {
            self.last_memory.clone_from(&order.why);
        }
        match &order.action {
            Action::Set { target, setting } => self.set(target, *setting, &name, &order.why),
            Action::Restore { target, knob } => {
                self.held.remove(&(target.clone(), *knob));
                if let (Target::Pod { uid, .. }, Knob::Freeze) = (target, knob) {
                    self.now.frozen.remove(&PodUid::from(uid.as_str()));
                }
            }
            Action::Reclaim { .. } => {}
            Action::Evict { target, grace } => self.evict(target, i64::try_from(grace.as_secs()).unwrap_or(0), order),
            Action::Kill { target } => self.evict(target, 0, order),
        }
        self.shared.view.held(self.held.clone());
    }

    fn set(&mut self, target: &Target, setting: Setting, name: &str, why: &str) {
        let words = match setting {
            Setting::MemoryHigh(bytes) => format!("{name} memory.high {} MiB", bytes >> 20),
            Setting::SwapMax(bytes) => format!("{name} memory.swap.max {} MiB", bytes >> 20),
            Setting::CpuMax(us) => format!("{name} cpu.max {:.2} processors", us as f64 / cgroup::CPU_PERIOD_US as f64),
            Setting::CpuIdle => format!("{name} cpu.idle"),
            Setting::IoMax(io) => format!("{name} io.max {:.1} MiB/s, {} writes/s", io.wbps as f64 / 1_048_576.0, io.wiops),
            Setting::Freeze => name.to_owned(),
        };
        let known = self.held.insert((target.clone(), setting.knob()), words).is_some();
        let (Target::Pod { uid, .. }, Some(pod)) = (target, self.pod(target)) else { return };
        if setting == Setting::Freeze {
            self.now.frozen.insert(PodUid::from(uid.as_str()), why.into());
        } else if !known {
            let message = format!("Held to {} for the sake of the node: {why}", setting.knob().file());
            self.recorder.pod_event(&pod, None, Type::Warning, "GovernorThrottled", &message);
        }
    }

    fn evict(&mut self, target: &Target, grace: i64, order: &Order) {
        let Target::Pod { uid, qos } = target else { return };
        let uid = PodUid::from(uid.as_str());
        self.held.retain(|(of, _), _| of != target);
        self.now.frozen.remove(&uid);
        let resource = match order.resource {
            Resource::Memory => "memory",
            Resource::Tasks => "process ids",
            Resource::Io => "disk throughput",
            Resource::Cpu => "cpu",
        };
        if self.now.evicted.contains_key(&uid) {
            return;
        }
        let message = format!("The node was low on resource: {resource}. {}", order.why);
        self.now.evicted.insert(uid, Arc::new(Eviction { message, grace }));
        // A kubelet's event when it begins to evict.
        let class = match qos {
            QosClass::Guaranteed => "a Guaranteed",
            QosClass::Burstable => "a Burstable",
            QosClass::BestEffort => "a BestEffort",
        };
        self.recorder.node_event(
            Type::Warning,
            "EvictionThresholdMet",
            &format!("Reclaiming {resource} by ending {class} pod: {}", order.why),
        );
    }

    fn stands(&mut self, stance: Stance, waiting: Vec<(String, Duration)>) {
        self.now.no_pulls = stance.no_pulls;
        self.now.guaranteed_only = stance
            .guaranteed_only
            .then(|| Arc::from("The node is short of memory; pods without guaranteed resources wait until it is not"));
        let now = boottime();
        self.now.waiting = waiting
            .into_iter()
            .map(|(workload, until)| {
                let minutes = until.saturating_sub(now).as_secs().div_ceil(60);
                // The minutes are those of the moment it begins to wait: a text that changed each minute would be an event each minute.
                let before = self.now.waiting.get(&workload).cloned();
                let why = before.unwrap_or_else(|| {
                    Arc::from(format!("Pods of this workload were ended three times within an hour for the sake of the node; the next one starts in {minutes} min"))
                });
                (workload, why)
            })
            .collect();
        // Pods that are gone need no verdict any more.
        let view = &self.view;
        self.now.evicted.retain(|uid, _| view.get(uid).is_some());
        self.now.frozen.retain(|uid, _| view.get(uid).is_some());
        let message = format!("the governor holds pods back: {}", self.last_memory);
        let wanted = stance.memory_pressure;
        self.word.send_if_modified(|word| {
            let changed = word.memory_pressure.is_some() != wanted;
            if changed {
                word.memory_pressure = wanted.then_some(message);
            }
            changed
        });
    }
}
