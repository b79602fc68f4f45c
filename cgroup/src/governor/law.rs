//! The control law: from what is seen to what is to be done. Pure; time comes with the samples.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::{Action, IoLimits, Knob, Order, Resource, Target};
use super::book::{Book, Held};
use super::rate::Rates;
use super::sample::{Pod, Sample};
use super::signal::{Board, Level, Reading, Signal, Signals};
use super::track::{Tracked, Tracks};
use super::{cpu, io, memory, tasks};

/// With triggers armed, calm machines are looked at once a second.
const IDLE: Duration = Duration::from_secs(1);
/// After a stall, and while anything is held.
const ARMED: Duration = Duration::from_millis(50);
/// For so long after the last one, then half as often each time.
const STAY_ARMED: Duration = Duration::from_secs(2);
/// A booting machine is busy with itself.
const BOOTING: Duration = Duration::from_secs(60);

/// Signals of which one alone makes a ladder climb.
const ACTING: [Signal; 7] =
    [Signal::OwnMem, Signal::OwnRefault, Signal::OwnIo, Signal::OwnCpu, Signal::Brake, Signal::Avail, Signal::Tasks];
/// These are told, not acted on by looking at pods.
const TOLD: [Signal; 5] = [Signal::Disk, Signal::Inodes, Signal::Conntrack, Signal::Heat, Signal::Swap];

/// What does not change while the agent runs. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// `MemTotal`.
    pub memory: u64,
    /// What should stay free (H of the reservation).
    pub headroom: u64,
    /// Hard limit of all pods.
    pub pods_max: u64,
    /// Processors.
    pub cpus: u64,
    /// `io.max` of all pods as the reservation set it; `None` where it could not.
    pub io: Option<IoLimits>,
    /// What the disk can read a second.
    pub read_bps: u64,
    /// Size of a page.
    pub page: u64,
    /// Swap is memory, compressed (zram), and not a disk.
    pub zram: bool,
}

/// How far the governor went; the highest over the ladders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing.
    #[default]
    Calm,
    /// Looks often.
    Watch,
    /// Limits somebody further.
    Brake,
    /// Holds a pod still.
    Freeze,
    /// Ends a pod in order.
    Evict,
    /// Ends pods at once.
    Cull,
}

impl State {
    /// All of them.
    pub const ALL: [State; 6] = [State::Calm, State::Watch, State::Brake, State::Freeze, State::Evict, State::Cull];

    /// The label `state` of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Calm => "calm",
            State::Watch => "watch",
            State::Brake => "brake",
            State::Freeze => "freeze",
            State::Evict => "evict",
            State::Cull => "cull",
        }
    }
}

/// What the rest of the agent keeps to meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stance {
    /// No pull of an image begins.
    pub no_pulls: bool,
    /// No Burstable or BestEffort pod starts.
    pub guaranteed_only: bool,
    /// The node's condition `MemoryPressure`.
    pub memory_pressure: bool,
}

/// Why something decided was not ordered; labels of `edge_agent_governor_suppressed_total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Suppressed {
    /// Too soon after the last time.
    pub rate_limit: u64,
    /// Nobody may be acted on.
    pub no_candidate: u64,
}

/// What a ladder decides on.
pub(super) struct Scene<'a> {
    pub(super) now: Duration,
    pub(super) settings: &'a Settings,
    pub(super) signals: &'a mut Signals,
    pub(super) sample: &'a Sample,
    pub(super) pods: &'a [Tracked],
    pub(super) book: &'a mut Book,
    pub(super) rates: &'a mut Rates,
    pub(super) suppressed: &'a mut Suppressed,
}

impl Scene<'_> {
    pub(super) fn booting(&self) -> bool {
        self.now < BOOTING
    }

    pub(super) fn pod(&self, target: &Target) -> Option<&Tracked> {
        match target {
            Target::Pod { uid, .. } => self.pods.iter().find(|pod| pod.pod.facts.uid == *uid),
            Target::BestEffort | Target::Burstable | Target::Kubepods => None,
        }
    }
}

/// The group of a pod.
pub(super) fn target(pod: &Tracked) -> Target {
    Target::Pod { uid: pod.pod.facts.uid.clone(), qos: pod.pod.facts.qos }
}

/// The law with what it remembers.
#[derive(Debug)]
pub struct Law {
    settings: Settings,
    signals: Signals,
    sample: Sample,
    tracks: Tracks,
    book: Book,
    rates: Rates,
    memory: memory::Ladder,
    io: io::Ladder,
    cpu: cpu::Ladder,
    tasks: tasks::Ladder,
    suppressed: Suppressed,
    /// When something was last above calm.
    stirred: Duration,
}

impl Law {
    /// Calm, holding nothing.
    pub fn new(settings: Settings) -> Law {
        let board = Board { memory: settings.memory, headroom: settings.headroom, read_bps: settings.read_bps, page: settings.page };
        Law {
            settings,
            signals: Signals::new(board),
            sample: Sample::default(),
            tracks: Tracks::default(),
            book: Book::default(),
            rates: Rates::default(),
            memory: memory::Ladder::default(),
            io: io::Ladder::default(),
            cpu: cpu::Ladder::default(),
            tasks: tasks::Ladder::default(),
            suppressed: Suppressed::default(),
            stirred: Duration::ZERO,
        }
    }

    /// Takes the next sample.
    pub fn observe(&mut self, sample: &Sample) {
        self.sample = *sample;
        self.signals.update(sample);
        if ACTING.iter().any(|signal| self.signals.of(*signal).now > Level::Calm) || self.acts() {
            self.stirred = sample.at;
        }
    }

    /// Whether a signal that is answered by itself has been bad enough for its hold time, and is.
    pub fn has_to_act(&self) -> bool {
        ACTING.iter().map(|signal| self.signals.of(*signal)).any(|reading| reading.now >= Level::Act && reading.level >= Level::Act)
    }

    /// Whether [`Law::decide`] has to know the pods. On a calm machine they are not looked at.
    pub fn wants_pods(&self) -> bool {
        let warns = |(signal, reading): (Signal, &Reading)| reading.now >= Level::Warn && !TOLD.contains(&signal);
        let hot = self.signals.of(Signal::Heat).level >= Level::Act;
        self.state() > State::Calm || !self.book.is_empty() || hot || self.signals.all().any(warns)
    }

    /// Whether it is at something that has to be looked at often.
    fn acts(&self) -> bool {
        let cpu = if self.cpu.cools() { State::Watch } else { self.cpu.state() };
        self.memory.state().max(self.io.state()).max(self.tasks.state()).max(cpu) > State::Watch
    }

    /// What is to be done now, in order. `pods` are those of this moment, or none where [`Law::wants_pods`] says no.
    pub fn decide(&mut self, pods: &[Pod]) -> Vec<Order> {
        let now = self.sample.at;
        let tracked = self.tracks.update(now, pods);
        self.book.keep(|uid| pods.iter().any(|pod| pod.facts.uid == uid));
        let mut scene = Scene {
            now,
            settings: &self.settings,
            signals: &mut self.signals,
            sample: &self.sample,
            pods: &tracked,
            book: &mut self.book,
            rates: &mut self.rates,
            suppressed: &mut self.suppressed,
        };
        let mut orders = self.memory.step(&mut scene);
        orders.extend(self.tasks.step(&mut scene));
        orders.extend(self.io.step(&mut scene));
        orders.extend(self.cpu.step(&mut scene));
        orders
    }

    /// An order that could not be carried out; a group that is gone is no failure. Nothing is held that was not set.
    pub fn failed(&mut self, action: &Action, gone: bool) {
        match action {
            _ if gone => self.book.forget(action.target()),
            Action::Set { target, setting } => self.book.forget_one(target, setting.knob()),
            Action::Restore { .. } | Action::Reclaim { .. } | Action::Evict { .. } | Action::Kill { .. } => {}
        }
    }

    /// Undoes everything, for an agent that stops and for `edge-agent governor release`.
    pub fn release(&mut self) -> Vec<Order> {
        let now = self.sample.at;
        let orders = Resource::ALL.into_iter().flat_map(|resource| self.book.restore_all(now, resource, "released", |_, _| true)).collect();
        self.memory = memory::Ladder::default();
        self.io = io::Ladder::default();
        self.cpu = cpu::Ladder::default();
        self.tasks = tasks::Ladder::default();
        orders
    }

    /// How far it went.
    pub fn state(&self) -> State {
        self.memory.state().max(self.io.state()).max(self.cpu.state()).max(self.tasks.state())
    }

    /// What the rest of the agent keeps to.
    pub fn stance(&self) -> Stance {
        let memory = self.memory.stance();
        Stance { no_pulls: memory.no_pulls || self.io.no_pulls(), ..memory }
    }

    /// When to look again at the latest.
    pub fn period(&self) -> Duration {
        let quiet = self.sample.at.saturating_sub(self.stirred);
        if self.acts() || quiet <= STAY_ARMED {
            return if self.stirred == Duration::ZERO && self.state() == State::Calm { IDLE } else { ARMED };
        }
        let doubled = (quiet - STAY_ARMED).as_secs().min(5);
        ARMED.saturating_mul(1 << doubled).min(IDLE)
    }

    /// Workloads that may not start again before the moment given.
    pub fn waiting(&self) -> Vec<(String, Duration)> {
        self.rates.waiting(self.sample.at)
    }

    /// The signals, for metrics and `status`.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// What was decided and not ordered, counted.
    pub fn suppressed(&self) -> Suppressed {
        self.suppressed
    }

    /// What it holds.
    pub fn held(&self) -> impl Iterator<Item = (&Target, Knob, &Held)> {
        self.book.iter()
    }
}
