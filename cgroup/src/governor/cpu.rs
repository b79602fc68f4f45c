//! The ladder for the processor: BestEffort pods run when nobody else does, then a quarter of the processors, then the greediest
//! Burstable pod. Nobody is frozen or ended for it (governor reference, section 3.6).

use std::time::Duration;

use super::action::{Knob, Order, Resource, Setting, Target};
use super::law::{Scene, State, target};
use super::sample::Preference;
use super::signal::{Level, Signal};
use super::track::Tracked;
use crate::{CPU_PERIOD_US, QosClass};

const STEP: Duration = Duration::from_secs(2);
/// What was shed shows in the temperature after this.
const COOLS: Duration = Duration::from_secs(20);
/// Watched for so long, what a pod uses is known.
const KNOWN: Duration = Duration::from_secs(1);
/// Processors; less is nothing to shed.
const A_USER: f64 = 0.1;
const CALM: Duration = Duration::from_secs(5);
/// Nobody waits for the processor for so long: the limits have nothing left to do.
const UNWANTED: Duration = Duration::from_secs(3);
const UNWANTED_BELOW: f64 = 10.0;

/// Where it stands.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    rung: u8,
    moved: Duration,
    needed: Duration,
    unwanted: Option<Duration>,
    /// For heat alone, which takes its time.
    cooling: bool,
}

impl Ladder {
    pub(super) fn state(&self) -> State {
        if self.rung == 0 { State::Calm } else { State::Brake }
    }

    /// Whether it holds something and no hurry is needed.
    pub(super) fn cools(&self) -> bool {
        self.cooling && self.rung > 0
    }

    pub(super) fn step(&mut self, scene: &mut Scene<'_>) -> Vec<Order> {
        let now = scene.now;
        let waits = scene.signals.of(Signal::OwnCpu);
        // A processor that is too hot has to shed work whoever waits.
        let hot = scene.signals.of(Signal::Heat).level >= Level::Act;
        if (waits.now >= Level::Act && waits.level >= Level::Act || hot) && !scene.booting() {
            self.needed = now;
            self.unwanted = None;
            let (signal, step) = if waits.now.min(waits.level) >= Level::Act { (Signal::OwnCpu, STEP) } else { (Signal::Heat, COOLS) };
            self.cooling = signal == Signal::Heat;
            let sheds = self.cooling && scene.book.get(&Target::BestEffort, Knob::CpuMax).is_none() && best_effort(scene) >= A_USER;
            // What somebody uses is known from the second look on.
            let known = !self.cooling || scene.pods.iter().any(|pod| pod.watched >= KNOWN);
            if known && (self.rung < 3 || sheds) && (self.rung == 0 || now.saturating_sub(self.moved) >= step) {
                return self.up(scene, signal, sheds);
            }
            return Vec::new();
        }
        self.down(scene)
    }

    fn up(&mut self, scene: &mut Scene<'_>, signal: Signal, sheds: bool) -> Vec<Order> {
        let now = scene.now;
        self.moved = now;
        // BestEffort pods that do not wait for the processor are not in the way, but they heat it; running only when nobody else does would
        // not change that.
        let in_the_way = scene.signals.wanted.cpu >= UNWANTED_BELOW;
        let next = match signal {
            Signal::Heat if sheds => 2,
            Signal::Heat => 3,
            _ if in_the_way => self.rung + 1,
            _ => 3,
        };
        let why = scene.signals.say(signal);
        let quarter = scene.settings.cpus * CPU_PERIOD_US / 4;
        let before = self.rung;
        self.rung = next.max(before);
        match next {
            1 => vec![scene.book.set(now, &Target::BestEffort, Setting::CpuIdle, Resource::Cpu, why)],
            2 => vec![scene.book.set(now, &Target::BestEffort, Setting::CpuMax(quarter), Resource::Cpu, why)],
            _ => {
                let Some(pod) = greediest(scene) else {
                    scene.suppressed.no_candidate += 1;
                    self.rung = before;
                    return Vec::new();
                };
                let requested = pod.pod.facts.cpu_request * CPU_PERIOD_US / 1000;
                let why = format!("{why}; {} uses {:.2} processors", pod.pod.facts.name, pod.cpus);
                let whom = target(pod);
                vec![scene.book.set(now, &whom, Setting::CpuMax(quarter.max(requested)), Resource::Cpu, why)]
            }
        }
    }

    fn down(&mut self, scene: &mut Scene<'_>) -> Vec<Order> {
        let now = scene.now;
        if self.rung == 0 {
            return Vec::new();
        }
        let idle = scene.book.get(&Target::BestEffort, Knob::CpuIdle);
        let lowered = idle.is_some();
        self.unwanted = if lowered && scene.signals.wanted.cpu < UNWANTED_BELOW { self.unwanted.or(Some(now)) } else { None };
        let unwanted = self.unwanted.is_some_and(|since| now.saturating_sub(since) >= UNWANTED);
        let patience = idle.map_or(CALM, |held| held.patience(CALM));
        if !unwanted && now.saturating_sub(self.needed) < patience {
            return Vec::new();
        }
        *self = Ladder { moved: now, ..Ladder::default() };
        let why = if unwanted { "nobody waits for the processor" } else { "calm" };
        scene.book.restore_all(now, Resource::Cpu, why, |_, _| true)
    }
}

/// Processors that BestEffort pods use.
fn best_effort(scene: &Scene<'_>) -> f64 {
    scene.pods.iter().filter(|pod| pod.pod.facts.qos == QosClass::BestEffort).map(|pod| pod.cpus).sum()
}

/// The Burstable pod that is furthest above its request.
fn greediest<'a>(scene: &Scene<'a>) -> Option<&'a Tracked> {
    let over = |pod: &Tracked| pod.cpus - pod.pod.facts.cpu_request as f64 / 1000.0;
    scene
        .pods
        .iter()
        .filter(|pod| pod.pod.facts.qos == QosClass::Burstable && !pod.pod.facts.protected && over(pod) > 0.05)
        .filter(|pod| pod.pod.facts.preference != Preference::Avoid)
        .max_by(|a, b| over(a).total_cmp(&over(b)).then_with(|| b.pod.facts.uid.cmp(&a.pod.facts.uid)))
}
