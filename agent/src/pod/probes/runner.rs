//! The tasks that probe the containers of one pod.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::ContainerId;
use runtime::cri::ContainerState;
use runtime::observe::ObservedPod;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::attempt::{self, Outcome};
use super::threshold::Threshold;
use super::{Health, Kind};
use crate::api::pod::{Container, Pod, Probe};
use crate::events::Type;
use crate::metrics::{ProbeResult, Probed};
use crate::pod::time::{self, SECOND};
use crate::pod::{Deps, hooks};

/// Tries of one probe that could not be made at all before that counts.
const TRIES: usize = 3;
/// A server may end this long before the runtime knows that its container did.
const LAST_BREATH: Duration = Duration::from_millis(300);

/// Probes of one pod. Dropping it ends them.
pub struct Prober {
    deps: Deps,
    tasks: BTreeMap<(ContainerId, Kind), AbortHandle>,
    health: Arc<Mutex<Health>>,
    /// `health` as it was at the last [`Prober::sync`].
    snapshot: Health,
    changed: Arc<Notify>,
    stopping: Arc<AtomicBool>,
    /// Whose metrics end with this.
    uid: String,
}

impl Prober {
    pub fn new(deps: Deps) -> Prober {
        Prober {
            deps,
            tasks: BTreeMap::new(),
            health: Arc::default(),
            snapshot: Health::default(),
            changed: Arc::default(),
            stopping: Arc::default(),
            uid: String::new(),
        }
    }

    /// What was settled at the last [`Prober::sync`]: one turn decides and tells by the same facts.
    pub fn snapshot(&self) -> &Health {
        &self.snapshot
    }

    /// Completes when something settled since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Starts and ends probes so that they fit what runs. A stopping pod keeps only its readiness probes; one that stands still is
    /// not asked, for it cannot answer.
    pub fn sync(&mut self, pod: &Arc<Pod>, seen: &ObservedPod, address: &str, stopping: bool, frozen: bool) {
        if self.uid.is_empty() {
            self.uid.clone_from(&pod.metadata.uid);
        }
        self.stopping.store(stopping, Ordering::Relaxed);
        let mut wanted: BTreeMap<(ContainerId, Kind), (&Container, &Probe, i64)> = BTreeMap::new();
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let candidates = pod.spec.init_containers.iter().filter(|c| c.is_sidecar()).chain(&pod.spec.containers);
        for container in candidates {
            let Some(instance) = seen.container(&container.name).filter(|c| c.state == ContainerState::ContainerRunning && !frozen) else {
                continue;
            };
            let started = health.started(pod, container, &instance.id);
            let mut want = |kind, probe: &'static str| {
                let probe = match probe {
                    "startup" => container.startup_probe.as_ref(),
                    "liveness" => container.liveness_probe.as_ref(),
                    _ => container.readiness_probe.as_ref(),
                };
                if let Some(probe) = probe {
                    wanted.insert((instance.id.clone(), kind), (container, probe, instance.started_at));
                }
            };
            if !stopping && !started && !health.startup_failed(&instance.id) {
                want(Kind::Startup, "startup");
            }
            if started && !stopping && !health.liveness_failed(&instance.id) {
                want(Kind::Liveness, "liveness");
            }
            if started {
                want(Kind::Readiness, "readiness");
            }
        }
        self.tasks.retain(|key, task| {
            let keep = wanted.contains_key(key) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, (container, probe, started_at)) in wanted {
            if self.tasks.contains_key(&key) {
                continue;
            }
            let one = One {
                deps: self.deps.clone(),
                pod: pod.clone(),
                container: container.clone(),
                probe: probe.clone(),
                id: key.0.clone(),
                kind: key.1,
                address: address.to_owned(),
                health: self.health.clone(),
                changed: self.changed.clone(),
                stopping: self.stopping.clone(),
            };
            let task = crate::task::spawn(one.run(started_at)).abort_handle();
            self.tasks.insert(key, task);
        }
        let running: Vec<&ContainerId> = seen.containers.iter().map(|c| &c.id).collect();
        self.health.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| running.contains(&id));
        self.snapshot = health;
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
        self.deps.metrics.probes().forget(&self.uid);
    }
}

/// One probe of one container instance.
struct One {
    deps: Deps,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    id: ContainerId,
    kind: Kind,
    address: String,
    health: Arc<Mutex<Health>>,
    changed: Arc<Notify>,
    /// The whole pod ends: nobody looks at what runs until the last container has stopped.
    stopping: Arc<AtomicBool>,
}

impl One {
    async fn run(self, started_at: i64) {
        let first = started_at + i64::from(self.probe.initial_delay_seconds) * SECOND - time::now();
        if let Ok(wait) = u64::try_from(first) {
            tokio::time::sleep(Duration::from_nanos(wait)).await;
        }
        let mut threshold = Threshold::default();
        let period = if self.probe.period_seconds == 0 { 10 } else { self.probe.period_seconds };
        let mut ticks = tokio::time::interval(Duration::from_secs(u64::from(period)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            let outcome = self.attempt().await;
            let bad = matches!(outcome, Outcome::Failure(_) | Outcome::Unknown(_));
            if bad && self.stopping.load(Ordering::Relaxed) && self.ended().await {
                return;
            }
            self.count(&outcome, began.elapsed());
            let good = match outcome {
                Outcome::Success => true,
                Outcome::Warning(text) => {
                    self.event("ProbeWarning", &format!("{} probe warning: {text}", self.kind.as_str()));
                    true
                }
                Outcome::Failure(text) => {
                    self.event("Unhealthy", &format!("{} probe failed: {text}", self.kind.as_str()));
                    false
                }
                Outcome::Unknown(text) => {
                    self.event("Unhealthy", &format!("{} probe errored and resulted in unknown state: {text}", self.kind.as_str()));
                    continue;
                }
            };
            let Some(settled) = threshold.add(&self.probe, good) else {
                continue;
            };
            let news = self.health.lock().unwrap_or_else(PoisonError::into_inner).set(&self.id, self.kind, settled);
            if news {
                self.changed.notify_one();
            }
            // A started container has started; one that is given up is stopped and comes back as another.
            if self.kind == Kind::Startup || self.kind == Kind::Liveness && !settled {
                return;
            }
        }
    }

    async fn attempt(&self) -> Outcome {
        let mut last = Outcome::Unknown(String::new());
        for _ in 0..TRIES {
            last = attempt::run(&self.deps.runtime, &self.container, &self.id, &self.probe, &self.address).await;
            if !matches!(last, Outcome::Unknown(_)) {
                break;
            }
        }
        last
    }

    /// Whether its container has ended: that no answer comes from it is no news then.
    async fn ended(&self) -> bool {
        tokio::time::sleep(LAST_BREATH).await;
        let status = self.deps.runtime.container_status(&self.id).await;
        !status.is_ok_and(|status| status.state == ContainerState::ContainerRunning as i32)
    }

    fn count(&self, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Success | Outcome::Warning(_) => ProbeResult::Successful,
            Outcome::Failure(_) => ProbeResult::Failed,
            Outcome::Unknown(_) => return,
        };
        let meta = &self.pod.metadata;
        let of = Probed {
            namespace: &meta.namespace,
            pod: &meta.name,
            uid: &meta.uid,
            container: &self.container.name,
            kind: self.kind.as_str(),
        };
        self.deps.metrics.probes().add(of, result, took);
    }

    fn event(&self, reason: &str, message: &str) {
        let path = hooks::field_path(&self.pod, &self.container.name);
        self.deps.recorder.pod_event(&self.pod, Some(&path), Type::Warning, reason, message);
    }
}
