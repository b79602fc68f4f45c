//! The signals: what of a [`Sample`] means danger, how much of it, and since when (governor reference, section 3.5).
//!
//! Danger is what hurts the agent; what hurts pods only says whose doing it is. Pressure of the whole node is high whenever
//! throttling works, so it counts only while something of ours suffers or memory is short.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sample::{Sample, Scope, Stall};
use super::window::Window;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Share of a second in which the agent waited for memory.
    OwnMem,
    /// Pages of the agent read again after they were taken from it, a second.
    OwnRefault,
    /// How late the heartbeat woke, seconds.
    HbLag,
    /// How long a small write to the agent's state takes, seconds.
    OwnIo,
    /// Share of a second in which the agent waited for the processor.
    OwnCpu,
    /// Share of a second in which a class of pods waited for memory while it hit its brake.
    Brake,
    /// What should be free against what is.
    Avail,
    /// Share of ten seconds in which all of the node waited for memory.
    NodeMem,
    /// Share of what the disk can read that goes into pages read again.
    Thrash,
    /// Used share of the swap space.
    Swap,
    /// Share of ten seconds in which something waited for a disk.
    NodeIo,
    /// Used share of the tasks pods, or all, may have.
    Tasks,
    /// Used share of the disk.
    Disk,
    /// Used share of its inodes.
    Inodes,
    /// Used share of the connection tracking table.
    Conntrack,
    /// 1 for undervoltage, 2 for a processor below 70 % of its speed.
    Heat,
}

impl Signal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Signal; 16] = [
        Signal::OwnMem,
        Signal::OwnRefault,
        Signal::HbLag,
        Signal::OwnIo,
        Signal::OwnCpu,
        Signal::Brake,
        Signal::Avail,
        Signal::NodeMem,
        Signal::Thrash,
        Signal::Swap,
        Signal::NodeIo,
        Signal::Tasks,
        Signal::Disk,
        Signal::Inodes,
        Signal::Conntrack,
        Signal::Heat,
    ];

    /// The label `signal` of the metrics.
    pub fn as_str(self) -> &'static str {
        self.rule().name
    }

    /// A value of this signal with its unit.
    pub fn words(self, value: f64) -> String {
        match self {
            Signal::Avail => format!("1/{:.1} of what should be available", value.max(0.01)),
            _ => format!("{value:.1}{}", self.rule().unit),
        }
    }

    fn rule(self) -> &'static Rule {
        &RULES[self as usize]
    }
}

/// How bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    #[default]
    Calm,
    /// Worth a closer look.
    Warn,
    /// Something is to be done.
    Act,
    /// At once.
    Emergency,
}

const NEVER: f64 = f64::INFINITY;
const QUICK: Duration = Duration::from_millis(200);
const SLOW: Duration = Duration::from_secs(2);
const AT_ONCE: Duration = Duration::ZERO;
/// A level is left after so long below its exit: calmer levels last longer.
const LEAVE_ACT: Duration = Duration::from_secs(10);
const LEAVE_WARN: Duration = Duration::from_secs(30);
/// [`Sample::heartbeat_lag`] is the worst of the last second or two.
const LAG_REMEMBERED: Duration = Duration::from_secs(2);

struct Rule {
    name: &'static str,
    unit: &'static str,
    /// Warn, act, emergency.
    at: [f64; 3],
    /// How long each must hold to count.
    hold: [Duration; 3],
    /// Share of a threshold below which its level is left.
    exit: f64,
    /// A hot or starved processor makes everything slower; such thresholds grow with it.
    latency: bool,
}

const fn rule(name: &'static str, unit: &'static str, at: [f64; 3], hold: Duration) -> Rule {
    Rule { name, unit, at, hold: [hold; 3], exit: 0.5, latency: false }
}

/// Watching is free and begins at once, so that acting need not wait for it once the 200 ms are over.
const fn quick(name: &'static str, unit: &'static str, at: [f64; 3]) -> Rule {
    Rule { hold: [AT_ONCE, QUICK, QUICK], ..rule(name, unit, at, QUICK) }
}

const fn latency(rule: Rule) -> Rule {
    Rule { latency: true, ..rule }
}

/// The table of section 3.5. `avail` has its own thresholds, from the machine's size.
#[rustfmt::skip]
const RULES: [Rule; 16] = [
    latency(quick("own_mem", "%", [2.0, 5.0, 20.0])),
    quick("own_refault", "/s", [5.0, 50.0, 500.0]),
    latency(rule("hb_lag", " s", [0.05, 0.25, 1.0], AT_ONCE)),
    latency(rule("own_io", " s", [0.3, 1.0, 5.0], AT_ONCE)),
    latency(quick("own_cpu", "%", [10.0, 30.0, 60.0])),
    quick("brake", "%", [5.0, 10.0, NEVER]),
    Rule { exit: 0.8, ..quick("avail", "x", [NEVER; 3]) },
    Rule { hold: [SLOW, SLOW, Duration::from_secs(3)], ..rule("node_mem", "%", [5.0, 15.0, 40.0], SLOW) },
    rule("thrash", "%", [10.0, 30.0, 60.0], SLOW),
    Rule { exit: 0.9, ..rule("swap", "%", [60.0, 80.0, 95.0], SLOW) },
    rule("node_io", "%", [20.0, 40.0, NEVER], SLOW),
    Rule { exit: 0.8, ..rule("tasks", "%", [70.0, 85.0, 95.0], AT_ONCE) },
    Rule { exit: 0.95, ..rule("disk", "%", [80.0, 90.0, 95.0], SLOW) },
    Rule { exit: 0.95, ..rule("inodes", "%", [80.0, 90.0, 95.0], SLOW) },
    Rule { exit: 0.9, ..rule("conntrack", "%", [80.0, 90.0, 95.0], SLOW) },
    rule("heat", "", [0.5, 1.5, NEVER], SLOW),
];

/// One signal now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// In the signal's unit.
    pub value: f64,
    /// What the value alone says.
    pub now: Level,
    /// With hold and exit times.
    pub level: Level,
    /// Since when the value has been at each of warn, act, emergency.
    since: [Option<Duration>; 3],
    /// Since when it has been below the exit of each.
    below: [Option<Duration>; 3],
}

impl Reading {
    fn update(&mut self, rule: &Rule, at: [f64; 3], now: Duration, value: f64) {
        const LEVELS: [Level; 3] = [Level::Warn, Level::Act, Level::Emergency];
        self.value = value;
        self.now = Level::Calm;
        for (i, threshold) in at.into_iter().enumerate() {
            if value >= threshold {
                self.now = LEVELS[i];
                let since = *self.since[i].get_or_insert(now);
                if now.saturating_sub(since) >= rule.hold[i] && LEVELS[i] > self.level {
                    self.level = LEVELS[i];
                }
            } else {
                self.since[i] = None;
            }
        }
        // Each level is left on its own after its patience, so that leaving one does not make the next last longer.
        for (i, threshold) in at.into_iter().enumerate() {
            if value >= threshold * rule.exit {
                self.below[i] = None;
            } else {
                self.below[i].get_or_insert(now);
            }
        }
        let patience = |i: usize| if i == 0 { LEAVE_WARN } else { LEAVE_ACT };
        while self.level > Level::Calm {
            let i = self.level as usize - 1;
            match self.below[i] {
                Some(since) if now.saturating_sub(since) >= patience(i) => self.level = if i == 0 { Level::Calm } else { LEVELS[i - 1] },
                Some(_) | None => break,
            }
        }
    }

    /// For how long the value has been at `level` or above.
    pub fn lasting(&self, level: Level, now: Duration) -> Option<Duration> {
        let index = (level as usize).checked_sub(1)?;
        self.since[index].map(|since| now.saturating_sub(since))
    }
}

/// What thresholds depend on beside the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    /// `MemTotal`, bytes.
    pub memory: u64,
    /// What should stay free, bytes.
    pub headroom: u64,
    /// What the disk can read, bytes a second.
    pub read_bps: u64,
    /// Size of a page, bytes.
    pub page: u64,
}

/// All signals, from one sample to the next.
#[derive(Debug, Clone)]
pub struct Signals {
    board: Board,
    now: Duration,
    readings: [Reading; Signal::ALL.len()],
    own_mem: Window,
    own_refaults: Window,
    own_cpu: Window,
    classes: [Class; 2],
    node_mem: Window,
    node_io: Window,
    thrash: Window,
    best_effort_cpu: Window,
    kubepods_io: Window,
    io_now: Window,
    /// Until then what the whole node waits for is the aftermath of an ending pod.
    settling: Duration,
    /// Until then the worst lag that is remembered may be from before a pod ended.
    late_before: Duration,
    /// Shares of the last second, per cent, that are no danger but tell whether a limit is still wanted.
    pub(super) wanted: Wanted,
}

/// Whether pods still want what they are kept from.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Wanted {
    /// Waiting of BestEffort pods for the processor, per cent of a second.
    pub(super) cpu: f64,
    /// Waiting of pods for disks, per cent of a second.
    pub(super) io: f64,
}

/// A class of pods with a brake.
#[derive(Debug, Clone)]
struct Class {
    stall: Window,
    hits: Window,
}

impl Class {
    fn new() -> Class {
        Class { stall: Window::new(SECOND), hits: Window::new(SECOND) }
    }

    /// The stall of a class that hit its brake in the last second, per cent.
    fn read(&mut self, now: Duration, scope: &Scope) -> f64 {
        let hits = self.hits.rate(now, scope.high_events + scope.max_events).unwrap_or(0.0);
        let stall = percent(&mut self.stall, now, scope.stalls.memory, |stall| stall.some_us);
        if hits > 0.0 { stall } else { 0.0 }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const TEN: Duration = Duration::from_secs(10);

fn percent(window: &mut Window, now: Duration, stall: Option<Stall>, kind: fn(&Stall) -> u64) -> f64 {
    // Microseconds a second to per cent.
    stall.and_then(|stall| window.rate(now, kind(&stall))).map_or(0.0, |us| us / 1e4)
}

impl Signals {
    /// Nothing known yet.
    pub fn new(board: Board) -> Signals {
        Signals {
            board,
            now: Duration::ZERO,
            readings: Default::default(),
            own_mem: Window::new(SECOND),
            own_refaults: Window::new(SECOND),
            own_cpu: Window::new(SECOND),
            classes: [Class::new(), Class::new()],
            node_mem: Window::new(TEN),
            node_io: Window::new(TEN),
            thrash: Window::new(Duration::from_secs(2)),
            best_effort_cpu: Window::new(SECOND),
            kubepods_io: Window::new(SECOND),
            io_now: Window::new(SECOND),
            settling: Duration::ZERO,
            late_before: Duration::ZERO,
            wanted: Wanted::default(),
        }
    }

    /// Takes the next sample.
    pub fn update(&mut self, sample: &Sample) {
        let now = sample.at;
        self.now = now;
        let slow = match sample.frequency {
            Some(share) if share > 0.0 && share < 0.7 => f64::from(1.0 / share).min(2.5),
            Some(_) | None => 1.0,
        };
        let own_mem = percent(&mut self.own_mem, now, sample.agent.stalls.memory, |stall| stall.some_us);
        let own_cpu = percent(&mut self.own_cpu, now, sample.agent.stalls.cpu, |stall| stall.some_us);
        let refaults = self.own_refaults.rate(now, sample.agent.refaults).unwrap_or(0.0);
        let [burstable, best_effort] = &mut self.classes;
        let brake = burstable.read(now, &sample.burstable).max(best_effort.read(now, &sample.best_effort));
        let node_mem = percent(&mut self.node_mem, now, sample.node.memory, |stall| stall.full_us);
        let node_io = percent(&mut self.node_io, now, sample.node.io, |stall| stall.some_us);
        let again = self.thrash.rate(now, sample.swapped_in + sample.file_refaults).unwrap_or(0.0);
        self.wanted = Wanted {
            cpu: percent(&mut self.best_effort_cpu, now, sample.best_effort.stalls.cpu, |stall| stall.some_us),
            io: percent(&mut self.kubepods_io, now, sample.kubepods.stalls.io, |stall| stall.some_us).max(percent(
                &mut self.io_now,
                now,
                sample.node.io,
                |stall| stall.some_us,
            )),
        };

        self.set(Signal::OwnMem, own_mem, slow);
        self.set(Signal::OwnRefault, refaults, 1.0);
        self.set(Signal::HbLag, if now < self.late_before { 0.0 } else { sample.heartbeat_lag.as_secs_f64() }, slow);
        self.set(Signal::OwnIo, sample.write_age.as_secs_f64(), slow);
        self.set(Signal::OwnCpu, own_cpu, slow);
        self.set(Signal::Brake, brake, 1.0);
        self.set_available(sample.available);
        let short = self.of(Signal::OwnMem).now.max(self.of(Signal::Avail).now).max(self.of(Signal::OwnRefault).now) >= Level::Warn;
        let counted = |value: f64| if short { value } else { 0.0 };
        self.set(Signal::NodeMem, if now < self.settling { 0.0 } else { counted(node_mem) }, 1.0);
        self.set(Signal::Thrash, counted(again * self.board.page as f64 / self.board.read_bps.max(1) as f64 * 100.0), 1.0);
        // Full compressed swap is bad only as far as it takes memory.
        let swap =
            if sample.zram > 0 { share(sample.zram, Some(self.board.memory)) } else { share(sample.swap_used, Some(sample.swap_total)) };
        self.set(Signal::Swap, swap, 1.0);
        let stuck = self.of(Signal::OwnIo).now >= Level::Warn;
        self.set(Signal::NodeIo, if stuck { node_io } else { 0.0 }, 1.0);
        // Ending pods does not help against tasks that others have.
        let most = if sample.kubepods.tasks * 2 >= sample.tasks { f64::INFINITY } else { Signal::Tasks.rule().at[2] - 0.1 };
        let tasks = share(sample.kubepods.tasks, sample.kubepods.tasks_max).max(share(sample.tasks, Some(sample.tasks_max)).min(most));
        self.set(Signal::Tasks, tasks, 1.0);
        for (signal, used) in [(Signal::Disk, sample.disk), (Signal::Inodes, sample.inodes), (Signal::Conntrack, sample.conntrack)] {
            self.set(signal, f64::from(used) * 100.0, 1.0);
        }
        let heat = if slow > 1.0 { 2.0 } else { f64::from(u8::from(sample.undervoltage)) };
        self.set(Signal::Heat, heat, 1.0);
    }

    fn set(&mut self, signal: Signal, value: f64, slow: f64) {
        let rule = signal.rule();
        let factor = if rule.latency { slow } else { 1.0 };
        self.readings[signal as usize].update(rule, rule.at.map(|at| at * factor), self.now, value);
    }

    /// Twice what should be free is calm, half of it an emergency; a warning comes with 5 % of all memory more.
    fn set_available(&mut self, available: u64) {
        let headroom = self.board.headroom.max(1) as f64;
        // A sample without it, as on a machine that does not say, is no shortage.
        let value = if available == 0 { 0.0 } else { headroom / available as f64 };
        let warn = headroom / (headroom + self.board.memory as f64 / 20.0);
        self.readings[Signal::Avail as usize].update(Signal::Avail.rule(), [warn, 1.0, 2.0], self.now, value);
    }

    /// One of them.
    pub fn of(&self, signal: Signal) -> &Reading {
        &self.readings[signal as usize]
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (Signal, &Reading)> {
        Signal::ALL.into_iter().zip(&self.readings)
    }

    /// For people: `own_mem 7.2% (5%)`, with the threshold it is above.
    pub fn say(&self, signal: Signal) -> String {
        let (rule, reading) = (signal.rule(), self.of(signal));
        let unit = rule.unit;
        if signal == Signal::Avail {
            let free = self.board.headroom as f64 / reading.value.max(f64::MIN_POSITIVE) / f64::from(1 << 20);
            return format!("{free:.0} MiB available of {} that should be", self.board.headroom >> 20);
        }
        let above = (reading.now.max(Level::Warn) as usize).saturating_sub(1);
        let limit = rule.at[above];
        format!("{} {:.1}{unit}, limit {limit}{unit}", rule.name, reading.value)
    }

    /// A pod is held back: what its class waited for before says nothing any more.
    pub(super) fn held_back(&mut self) {
        for class in &mut self.classes {
            class.stall.restart(self.now);
            class.hits.restart(self.now);
        }
        self.readings[Signal::Brake as usize].since = [None; 3];
    }

    /// A pod is ending: what is measured from here on counts, and the node's own pressure only after `settle`.
    pub(super) fn relieved(&mut self, settle: Duration) {
        let now = self.now;
        for window in [&mut self.own_mem, &mut self.own_refaults, &mut self.node_mem, &mut self.thrash] {
            window.restart(now);
        }
        for class in &mut self.classes {
            class.stall.restart(now);
            class.hits.restart(now);
        }
        self.settling = now + settle;
        self.late_before = now + LAG_REMEMBERED;
        for signal in [Signal::OwnMem, Signal::OwnRefault, Signal::Brake, Signal::NodeMem, Signal::Thrash, Signal::Avail, Signal::HbLag] {
            self.readings[signal as usize].since = [None; 3];
        }
    }
}

/// Per cent of `most` that is used; 0 without a limit.
fn share(used: u64, most: Option<u64>) -> f64 {
    match most {
        Some(most) if most > 0 => used as f64 / most as f64 * 100.0,
        Some(_) | None => 0.0,
    }
}
