//! The thread: looks, asks the law, acts. It waits for nothing but the kernel's triggers and the clock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use cgroup::governor::{
    Action, Actuator, ActuatorOptions, Done, Features, Inputs, Knob, Law, Level, Order, Place, PodFacts, PodReader, Resource, Sample,
    Sensor, SensorOptions, Signal, Stall, Stance, State, Target, Triggers,
};
use tokio::sync::mpsc;

use super::desk::{Outcome, Report};
use super::view::Glance;
use super::{Deps, Shared};
use crate::board::Board;
use crate::config::GovernorWish;
use crate::control::Released;
use crate::hot;
use crate::metrics::governor::{FEATURES, GovernorMetrics, Info, Ratio, Ratios, Snapshot};

/// Throttles are compared with what is there so often.
const REASSERT: Duration = Duration::from_secs(2);
/// Heat and power.
const BOARD: Duration = Duration::from_secs(5);
/// Without others at the disk its speed is not asked for: nothing is written on a calm board.
const BUSY_DISK: f64 = 0.05;

struct Loop {
    deps: Deps,
    shared: Arc<Shared>,
    triggers: Triggers,
    reports: mpsc::Sender<Report>,
    law: Law,
    sensor: Sensor,
    reader: PodReader,
    actuator: Actuator,
    facts: Arc<Vec<PodFacts>>,
    inputs: Inputs,
    ratios: [Trend; 3],
    state: (State, Instant),
    stance: Option<(Stance, Vec<(String, Duration)>)>,
    counted: (cgroup::governor::Suppressed, Instant),
    /// Who was asked last to stop: its kill after the grace is the same eviction.
    evicted: Option<Target>,
    reasserted: Instant,
    board: Board,
    looked_at_board: Option<Instant>,
    crossed: Crossed,
}

/// Whether a signal is at a level that asks for action.
#[derive(Clone, Copy)]
enum Crossed {
    No,
    At(Instant),
    /// Something was done about it: what follows is the ladder's own time.
    Answered,
}

/// Totals a second ago, and between five and ten seconds.
#[derive(Default, Clone, Copy)]
struct Trend {
    second: (Duration, Stall),
    ten: [(Duration, Stall); 2],
    now: Option<Ratios>,
}

/// Starts it.
pub(super) fn start(
    deps: Deps,
    shared: Arc<Shared>,
    triggers: Triggers,
    reports: mpsc::Sender<Report>,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    // What the actuator starts shall not have this thread's precedence, so it is made here.
    let actuator = Actuator::new(deps.tree.clone(), ActuatorOptions { disk: deps.disk.clone(), run_dir: deps.run_dir.clone() });
    let options = SensorOptions { sys_root: "/sys".into(), state_dir: deps.data_dir.clone() };
    let sensor = Sensor::new(deps.tree.hierarchy(), &deps.scopes, &options);
    let looper = Loop {
        law: Law::new(deps.settings),
        sensor,
        reader: PodReader::new(deps.tree.clone()),
        actuator,
        facts: Arc::default(),
        inputs: Inputs::default(),
        ratios: Default::default(),
        state: (State::Calm, Instant::now()),
        stance: None,
        counted: (cgroup::governor::Suppressed::default(), Instant::now()),
        evicted: None,
        reasserted: Instant::now(),
        board: Board::find(Path::new("/")),
        looked_at_board: None,
        crossed: Crossed::No,
        deps,
        shared,
        triggers,
        reports,
    };
    std::thread::Builder::new()
        .name("governor".to_owned())
        .stack_size(512 << 10)
        .spawn(move || looper.run())
        .context("starting the governor")
}

/// What is shown where no loop runs.
pub(super) fn still(deps: &Deps) -> Snapshot {
    let (info, features) = offered(&deps.features, Info { profile: "static", ..deps.info });
    Snapshot { info: Some(info), features, ..Snapshot::default() }
}

/// What of the kernel can be used, for the metrics.
fn offered(f: &Features, info: Info) -> (Info, [bool; FEATURES.len()]) {
    let features = [f.memory_min, f.memory_high, f.io_max, f.pids_max, f.psi_window_ms.is_some(), f.kill, f.freeze, false, false];
    let psi = match (f.psi_window_ms, f.psi) {
        (Some(_), _) => "trigger",
        (None, true) => "poll",
        (None, false) => "off",
    };
    (Info { psi, io_control: if f.io_max { "io_max" } else { "none" }, ..info }, features)
}

impl Loop {
    fn metrics(&self) -> &GovernorMetrics {
        self.deps.metrics.governor()
    }

    fn mode(&self) -> &'static str {
        match self.deps.wish {
            GovernorWish::Enforce => "enforce",
            GovernorWish::Observe => "observe",
            GovernorWish::Static => "static",
        }
    }

    fn run(mut self) {
        hot::enter("governor");
        let _ = self.reports.try_send(Report::Began { mode: self.mode(), lacks: self.deps.features.missing() });
        while !self.shared.stop.load(Ordering::Relaxed) {
            let wake = self.triggers.wait(self.law.period());
            let began = Instant::now();
            for event in &wake.events {
                let scope = match event.place {
                    Place::Node => "node",
                    Place::Agent => "agent",
                    Place::Kubepods => "kubepods",
                    Place::Burstable => "burstable",
                    Place::BestEffort => "besteffort",
                    Place::Pod(_) => continue,
                };
                self.metrics().psi_event(scope, event.resource.as_str(), if event.full { "stalled" } else { "waiting" });
            }
            if wake.woken {
                self.release_if_asked();
            }
            self.turn(began);
            self.metrics().observe_loop(began.elapsed());
        }
        for undone in self.actuator.release_all() {
            if let Err(error) = undone {
                tracing::warn!(error = %crate::telemetry::chain(&error), "not undone; edge-agent governor release does it");
            }
        }
    }

    fn turn(&mut self, began: Instant) {
        self.look();
        let sample = self.sensor.read(self.inputs);
        self.law.observe(&sample);
        self.trends(&sample);
        if self.ratios[2].now.is_some_and(|io| f64::from(io.waiting.w1) > BUSY_DISK) {
            self.shared.probe.ask();
        }
        self.crossed = match (self.law.has_to_act(), self.crossed) {
            (false, _) => Crossed::No,
            // What comes back while a pod is held is answered by that, and in the ladder's own time by more.
            (true, Crossed::No) if self.law.state() > State::Watch => Crossed::Answered,
            (true, Crossed::No) => Crossed::At(began),
            (true, crossed) => crossed,
        };
        let pods = if self.law.wants_pods() { self.reader.read(&self.facts) } else { Vec::new() };
        let orders = self.law.decide(&pods);
        let any = !orders.is_empty();
        for order in orders {
            self.obey(order);
        }
        if let (true, Crossed::At(at)) = (any, self.crossed) {
            self.metrics().observe_reaction(at.elapsed());
            self.crossed = Crossed::Answered;
        }
        if self.reasserted.elapsed() >= REASSERT {
            self.reasserted = Instant::now();
            let found = self.actuator.reassert();
            if found != cgroup::governor::Reasserted::default() {
                tracing::info!(overwritten = found.overwritten, released = found.released, gone = found.gone, "throttles looked at");
            }
            self.drop_strays();
        }
        self.publish();
    }

    /// Undoes what is set though the law does not hold it: it was not to be undone then, or its pod could not be read for a moment.
    fn drop_strays(&mut self) {
        let wanted = |of: &Target, what: Knob| self.law.held().any(|(target, knob, _)| (target, knob) == (of, what));
        let strays: Vec<_> = self
            .actuator
            .held()
            .iter()
            .filter(|held| !wanted(&held.target, held.knob))
            .map(|held| (held.target.clone(), held.knob))
            .collect();
        for (target, knob) in strays {
            let resource = match knob {
                Knob::MemoryHigh | Knob::SwapMax | Knob::Freeze => Resource::Memory,
                Knob::CpuMax | Knob::CpuIdle => Resource::Cpu,
                Knob::IoMax => Resource::Io,
            };
            let why = "nothing asks for it any more".to_owned();
            self.obey(Order { action: Action::Restore { target, knob }, resource, why });
        }
    }

    /// What others know.
    fn look(&mut self) {
        if let Some(facts) = self.shared.facts.take() {
            self.facts = facts;
        }
        self.inputs.heartbeat_lag = self.deps.metrics.lag().recent();
        self.inputs.write_age = self.shared.probe.age();
        if self.looked_at_board.is_none_or(|at| at.elapsed() >= BOARD) {
            self.looked_at_board = Some(Instant::now());
            let board = self.board.read();
            let slower = board.slowdown();
            self.inputs.frequency = (slower > 1.0).then(|| (1.0 / slower) as f32);
            self.inputs.undervoltage = board.undervoltage.unwrap_or(false);
        }
    }

    fn obey(&mut self, order: Order) {
        let metrics = self.deps.metrics.governor();
        let (action, resource) = (order.action.name(), order.resource.as_str());
        let class = match order.action.target() {
            Target::Pod { qos, .. } => match qos {
                cgroup::QosClass::Guaranteed => "guaranteed",
                cgroup::QosClass::Burstable => "burstable",
                cgroup::QosClass::BestEffort => "besteffort",
            },
            Target::BestEffort | Target::Burstable | Target::Kubepods => "all",
        };
        if self.deps.wish == GovernorWish::Observe {
            metrics.suppressed("observe");
            let _ = self.reports.try_send(Report::Did { order, result: Outcome::Observed });
            return;
        }
        let result = match self.actuator.apply(&order.action) {
            Ok(Done::Gone) => {
                self.law.failed(&order.action, true);
                return;
            }
            Ok(_) => Outcome::Done,
            Err(error) => {
                self.law.failed(&order.action, false);
                Outcome::Failed(crate::telemetry::chain(&error))
            }
        };
        metrics.action(action, resource, class, if result == Outcome::Done { "ok" } else { "failed" });
        if result == Outcome::Done && matches!(order.action, Action::Evict { .. } | Action::Kill { .. }) {
            let whom = Some(order.action.target());
            if self.evicted.as_ref() != whom {
                metrics.evicted(resource, class);
                self.evicted = whom.cloned();
            }
        }
        if self.reports.try_send(Report::Did { order, result }).is_err() {
            tracing::warn!("governor's desk does not keep up");
        }
    }

    fn release_if_asked(&mut self) {
        let asked: Option<Sender<Released>> = match self.shared.release.try_lock() {
            Ok(mut asked) => asked.take(),
            Err(_) => None,
        };
        let Some(asked) = asked else { return };
        let mut released = Released::default();
        let held: Vec<String> = self.actuator.held().iter().map(|held| format!("{} {}", held.group, held.knob.file())).collect();
        let orders = self.law.release();
        let results = self.actuator.release_all();
        for (held, result) in held.into_iter().zip(results) {
            match result {
                Ok(_) => released.undone.push(held),
                Err(error) => released.failed.push(format!("{held}: {}", crate::telemetry::chain(&error))),
            }
        }
        for order in orders {
            let _ = self.reports.try_send(Report::Did { order, result: Outcome::Done });
        }
        let _ = asked.send(released);
    }

    fn trends(&mut self, sample: &Sample) {
        let node = [sample.node.cpu, sample.node.memory, sample.node.io];
        for (trend, now) in self.ratios.iter_mut().zip(node) {
            trend.update(sample.at, now);
        }
    }

    fn publish(&mut self) {
        let state = self.law.state();
        if state != self.state.0 {
            tracing::info!(from = self.state.0.as_str(), to = state.as_str(), "governor");
            self.metrics().transition(state.as_str());
            self.state = (state, Instant::now());
            self.deps.metrics.lag().watch_closely(state > State::Calm);
        }
        // The same decision comes with each look: told once a second while it does.
        if self.counted.1.elapsed() >= Duration::from_secs(1) {
            let (suppressed, before) = (self.law.suppressed(), self.counted.0);
            let both =
                [("rate_limit", suppressed.rate_limit, before.rate_limit), ("no_candidate", suppressed.no_candidate, before.no_candidate)];
            for (reason, _, _) in both.into_iter().filter(|(_, now, before)| now > before) {
                self.metrics().suppressed(reason);
            }
            self.counted = (suppressed, Instant::now());
        }
        let mut signals = [(Level::Calm, 0.0); Signal::ALL.len()];
        let mut levels = [0; Signal::ALL.len()];
        for ((_, reading), (shown, level)) in self.law.signals().all().zip(signals.iter_mut().zip(&mut levels)) {
            *shown = (reading.level, reading.value);
            *level = reading.level as u8;
        }
        self.shared.view.glance(Glance { state, since: self.state.1, signals });
        let mut throttled = [0; 4];
        let mut frozen = 0;
        let does = self.deps.wish != GovernorWish::Observe;
        for (target, knob, held) in self.law.held().filter(|_| does) {
            if knob == Knob::Freeze {
                frozen += 1;
            } else if matches!(target, Target::Pod { .. }) {
                let place = Resource::ALL.iter().position(|resource| *resource == held.resource).unwrap_or(0);
                throttled[place] += 1;
            }
        }
        let (info, features) = offered(&self.deps.features, Info { profile: self.mode(), ..self.deps.info });
        let ratios = [self.ratios[0].now, self.ratios[1].now, self.ratios[2].now];
        let place = State::ALL.iter().position(|one| *one == state).unwrap_or(0);
        self.metrics().set_snapshot(&Snapshot { info: Some(info), features, state: place, levels, throttled, frozen, ratios });

        let stance = (self.law.stance(), self.law.waiting());
        if self.stance.as_ref() != Some(&stance) {
            let (now, waiting) = stance.clone();
            if self.deps.wish == GovernorWish::Observe || self.reports.try_send(Report::Stands { stance: now, waiting }).is_ok() {
                self.stance = Some(stance);
            }
        }
    }
}

impl Trend {
    fn update(&mut self, at: Duration, now: Option<Stall>) {
        let Some(now) = now else {
            self.now = None;
            return;
        };
        let share = |from: (Duration, Stall), of: fn(&Stall) -> u64| {
            let over = at.saturating_sub(from.0).as_secs_f64() * 1e6;
            if over > 0.0 { (of(&now).saturating_sub(of(&from.1)) as f64 / over).min(1.0) as f32 } else { 0.0 }
        };
        let both = |of: fn(&Stall) -> u64| Ratio { w1: share(self.second, of), w10: share(self.ten[0], of) };
        if self.second.0 != Duration::ZERO {
            self.now = Some(Ratios { waiting: both(|stall| stall.some_us), stalled: both(|stall| stall.full_us) });
        }
        if at.saturating_sub(self.second.0) >= Duration::from_secs(1) {
            self.second = (at, now);
        }
        if self.ten[1].0 == Duration::ZERO {
            self.ten = [(at, now); 2];
        } else if at.saturating_sub(self.ten[1].0) >= Duration::from_secs(5) {
            self.ten = [self.ten[1], (at, now)];
        }
    }
}
