//! The ladder for memory: watch, brake, freeze, evict, cull (governor reference, section 3.6).

use std::collections::HashMap;
use std::time::Duration;

use super::action::{Action, Knob, Order, Resource, Setting, Target};
use super::law::{Scene, Stance, State, target};
use super::pressing::{Danger, STRIKES, choose, contributes, danger, grounds, hungry, insists, peers, settle, situation};
use super::sample::Preference;
use super::signal::{Level, Signal};
use super::victim::{Candidate, Need, candidates, describe};
use crate::QosClass;

const MIB: u64 = 1 << 20;
const STEP: Duration = Duration::from_millis(200);
/// Still pressing for so long: the next rung.
const TO_FREEZE: Duration = Duration::from_secs(1);
const TO_EVICT: Duration = Duration::from_secs(2);
/// How long a pod stands still before it is decided.
const FROZEN: Duration = Duration::from_secs(10);
/// Frozen and waiting for the next eviction to be allowed; after that it runs on, braked.
const FROZEN_AT_MOST: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(3);
/// A killed pod's memory comes back within this, or somebody else has to go.
const ENDS: Duration = Duration::from_secs(2);
/// With all calm a braked pod that wants more gets a tenth more so often.
const LOOSEN: Duration = Duration::from_secs(1);
/// Kept after it was needed last.
const CALM: Duration = Duration::from_secs(5);
/// With most of its limit unused.
const SATISFIED: Duration = Duration::from_secs(2);
const LEAVE_WATCH: Duration = Duration::from_secs(30);
/// One that was frozen and comes back within this is evicted, not frozen again.
const FORGIVEN: Duration = Duration::from_secs(60);
const CONDITION_AFTER: Duration = Duration::from_secs(2);
/// A taint that comes and goes costs the server more than one that stays a little.
const CONDITION_STAYS: Duration = Duration::from_secs(60);
const PULLS_WAIT_AT_MOST: Duration = Duration::from_secs(60);
const MOST_BRAKED: usize = 3;
const SMALLEST_BRAKE: u64 = 16 * MIB;
/// Pages read again a second that make a pod one that thrashes.
const THRASHING: f64 = 200.0;
const RECLAIM: u64 = 16 * MIB;

#[derive(Debug)]
struct Ending {
    target: Target,
    deadline: Duration,
    killed: bool,
}

/// Where it stands.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    state: State,
    entered: Duration,
    pressing: Option<Duration>,
    /// When it last pressed, or warned.
    pressed: Duration,
    warned: Duration,
    warning_since: Option<Duration>,
    frozen: Option<(Target, Duration)>,
    ending: Option<Ending>,
    thawed: HashMap<Target, Duration>,
    /// Pods whose brake was let off since it was set.
    loosened: HashMap<Target, Duration>,
    reclaimed: Duration,
    condition: Option<Duration>,
    stance: Stance,
}

impl Ladder {
    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn stance(&self) -> Stance {
        self.stance
    }

    pub(super) fn step(&mut self, scene: &mut Scene<'_>) -> Vec<Order> {
        let mut orders = Vec::new();
        let now = scene.now;
        self.thawed.retain(|_, at| now.saturating_sub(*at) < FORGIVEN);
        self.loosened.retain(|whom, _| scene.book.get(whom, Knob::MemoryHigh).is_some());
        self.follow_ending(scene, &mut orders);
        if self.frozen.as_ref().is_some_and(|(target, _)| scene.pod(target).is_none()) {
            self.frozen = None;
        }
        let danger = danger(scene);
        let hungry = hungry(scene);
        for target in &hungry {
            scene.book.needed(now, target, Knob::MemoryHigh);
        }
        let presses = danger.holds >= Level::Act || hungry.iter().any(|target| insists(scene, &danger, target));
        if presses {
            self.pressing.get_or_insert(now);
            self.pressed = now;
        } else {
            self.pressing = None;
        }
        if danger.now >= Level::Warn || presses {
            self.warned = now;
            self.warning_since.get_or_insert(now);
        } else {
            self.warning_since = None;
        }

        if danger.holds == Level::Emergency {
            self.cull(scene, &danger, &mut orders);
        } else if now.saturating_sub(self.entered) >= STEP {
            self.climb(scene, &danger, &mut orders);
        }
        self.thaw(scene, &mut orders);
        if self.state == State::Brake && danger.now == Level::Calm {
            self.loosen(scene, &danger, &hungry, &mut orders);
        }
        self.step_down(scene, &mut orders);
        self.tell(scene);
        orders
    }

    fn enter(&mut self, now: Duration, state: State) {
        self.state = state;
        self.entered = now;
    }

    fn presses_for(&self, now: Duration) -> Duration {
        // What pressed before this rung was entered has been answered by entering it.
        self.pressing.map_or(Duration::ZERO, |since| now.saturating_sub(since.max(self.entered)))
    }

    fn climb(&mut self, scene: &mut Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        let now = scene.now;
        match self.state {
            State::Calm if danger.level >= Level::Warn => self.enter(now, State::Watch),
            State::Calm => {}
            State::Watch if self.pressing.is_some() && !scene.booting() => {
                self.enter(now, State::Brake);
                self.brake(scene, danger, orders);
            }
            State::Watch => self.reclaim_cold(scene, danger, orders),
            State::Brake if self.presses_for(now) >= TO_FREEZE && self.ending.is_none() => self.freeze(scene, danger, orders),
            State::Brake if danger.now >= Level::Act && self.ending.is_none() => self.brake(scene, danger, orders),
            State::Freeze if self.presses_for(now) >= TO_EVICT && self.ending.is_none() => self.evict(scene, danger, orders),
            State::Brake | State::Freeze | State::Evict | State::Cull => {}
        }
    }

    /// Cold files of the pod that is least worth keeping, so that nobody warm loses pages.
    fn reclaim_cold(&mut self, scene: &Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        if danger.now < Level::Warn || scene.now.saturating_sub(self.reclaimed) < Duration::from_secs(1) {
            return;
        }
        let coldest = scene
            .pods
            .iter()
            .filter(|pod| pod.pod.facts.qos == QosClass::BestEffort && !pod.pod.facts.protected)
            .filter(|pod| pod.pod.facts.preference != Preference::Avoid)
            .filter(|pod| pod.pod.used.memory.saturating_sub(pod.pod.used.relief) >= RECLAIM)
            .min_by(|a, b| a.thrash.total_cmp(&b.thrash));
        if let Some(pod) = coldest {
            self.reclaimed = scene.now;
            let action = Action::Reclaim { target: target(pod), bytes: RECLAIM, files_only: true };
            orders.push(Order { action, resource: Resource::Memory, why: scene.signals.say(danger.worst) });
        }
    }

    fn brake(&mut self, scene: &mut Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        let now = scene.now;
        let braked = scene.book.iter().filter(|(_, knob, _)| *knob == Knob::MemoryHigh).count();
        let found = candidates(scene.pods, &situation(scene), Need::Usual);
        let Some(first) = found.first() else {
            scene.suppressed.no_candidate += 1;
            return;
        };
        // Whoever waits for memory or grows; with nobody doing either the first has to do, but not a second one. One whose brake was let
        // off is as free as another.
        let free = |candidate: &&Candidate<'_>| {
            let whom = target(candidate.of);
            let held = scene.book.get(&whom, Knob::MemoryHigh).is_some();
            if held { self.loosened.contains_key(&whom) } else { braked < MOST_BRAKED }
        };
        let next = found.iter().filter(free).find(contributes).or_else(|| Some(first).filter(free).filter(|_| braked == 0));
        let Some(candidate) = next else { return };
        // Somebody braked shall show its effect before the next one is.
        let last = scene.book.iter().filter(|(_, knob, _)| *knob == Knob::MemoryHigh).map(|(_, _, held)| held.made).max();
        if last.is_some_and(|since| now.saturating_sub(since) < STEP * 2) {
            return;
        }
        let why = format!("{}; {}", grounds(scene, danger), describe(&found));
        let pod = candidate.of;
        let whom = target(pod);
        let used = pod.pod.used;
        let high = (used.memory / 10 * 9).max(pod.pod.facts.memory_request).max(SMALLEST_BRAKE);
        if used.high.is_none_or(|now| high < now) {
            if self.loosened.remove(&whom).is_some() && contributes(&candidate) {
                // Where its own class is full it is why; else it may have met somebody else's hunger once more.
                scene.book.strike(&whom, Knob::MemoryHigh, if danger.worst == Signal::Brake { STRIKES } else { 1 });
            }
            orders.push(scene.book.set(now, &whom, Setting::MemoryHigh(high), Resource::Memory, why.clone()));
        }
        if pod.thrash > THRASHING {
            orders.push(scene.book.set(now, &whom, Setting::CpuMax(crate::CPU_PERIOD_US / 5), Resource::Memory, why.clone()));
            if let Some(io) = scene.settings.io {
                orders.push(scene.book.set(now, &whom, Setting::IoMax(io.scaled(1, 2, io)), Resource::Memory, why.clone()));
            }
        }
        if scene.sample.swap_total > 0 && scene.book.get(&Target::BestEffort, Knob::SwapMax).is_none() {
            let swap = scene.sample.best_effort.swap;
            orders.push(scene.book.set(now, &Target::BestEffort, Setting::SwapMax(swap), Resource::Memory, why));
        }
        scene.signals.held_back();
    }

    fn freeze(&mut self, scene: &mut Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        let now = scene.now;
        if scene.book.iter().any(|(_, knob, _)| knob == Knob::Freeze) {
            // For the disk, and for five seconds at most: one pod stands still at a time.
            return;
        }
        let found = candidates(scene.pods, &situation(scene), Need::Usual);
        let Some(first) = choose(scene, danger, &found) else {
            scene.suppressed.no_candidate += 1;
            self.entered = now;
            return;
        };
        let whom = target(first.of);
        if self.thawed.contains_key(&whom) {
            self.end(scene, first, &found, danger, orders);
            return;
        }
        let why = format!("{}; {}", grounds(scene, danger), describe(&found));
        orders.push(scene.book.set(now, &whom, Setting::Freeze, Resource::Memory, why.clone()));
        if scene.settings.zram {
            let bytes = first.of.pod.used.memory / 4;
            orders.push(Order {
                action: Action::Reclaim { target: whom.clone(), bytes, files_only: false },
                resource: Resource::Memory,
                why,
            });
        }
        self.frozen = Some((whom, now));
        self.pressing = None;
        self.enter(now, State::Freeze);
        scene.signals.held_back();
    }

    fn evict(&mut self, scene: &mut Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        let found = candidates(scene.pods, &situation(scene), Need::Usual);
        let frozen = self.frozen.as_ref().map(|(target, _)| target.clone());
        let chosen = found.iter().find(|candidate| Some(target(candidate.of)) == frozen).or_else(|| choose(scene, danger, &found));
        match chosen {
            Some(candidate) => self.end(scene, candidate, &found, danger, orders),
            None => {
                scene.suppressed.no_candidate += 1;
                self.entered = scene.now;
            }
        }
    }

    /// In order: asked to stop, and made to after a short grace.
    fn end(&mut self, scene: &mut Scene<'_>, chosen: &Candidate<'_>, found: &[Candidate<'_>], danger: &Danger, orders: &mut Vec<Order>) {
        let now = scene.now;
        if !scene.rates.may_evict(now) {
            scene.suppressed.rate_limit += 1;
            // It is looked at again after another rung's time.
            self.pressing = Some(now);
            return;
        }
        let whom = target(chosen.of);
        if let Some((frozen, _)) = self.frozen.take() {
            orders.extend(scene.book.restore(now, &frozen, Knob::Freeze, "it is evicted, or another pod is"));
        }
        // Whoever stands still for the disk does not hear that it should stop.
        orders.extend(scene.book.restore(now, &whom, Knob::Freeze, "it is evicted"));
        let facts = &chosen.of.pod.facts;
        let grace = facts.grace.min(GRACE);
        let why = format!("{}; {}", grounds(scene, danger), describe(found));
        orders.push(Order { action: Action::Evict { target: whom.clone(), grace }, resource: Resource::Memory, why });
        scene.rates.evicted(now, &facts.workload);
        scene.signals.relieved(settle(scene) + grace);
        self.ending = Some(Ending { target: whom, deadline: now + grace, killed: false });
        self.enter(now, State::Evict);
    }

    fn cull(&mut self, scene: &mut Scene<'_>, danger: &Danger, orders: &mut Vec<Order>) {
        let now = scene.now;
        if self.ending.as_ref().is_some_and(|ending| ending.killed) {
            return;
        }
        if scene.booting() && scene.signals.of(danger.worst).lasting(Level::Emergency, now).is_none_or(|held| held < Duration::from_secs(1))
        {
            return;
        }
        if !scene.rates.may_kill(now) {
            scene.suppressed.rate_limit += 1;
            return;
        }
        let found = candidates(scene.pods, &situation(scene), Need::Last);
        // Whoever is held at its brake no longer is why.
        let free = |candidate: &&Candidate<'_>| scene.book.get(&target(candidate.of), Knob::MemoryHigh).is_none();
        let Some(first) = peers(&found).filter(free).find(contributes).or(found.first()) else {
            scene.suppressed.no_candidate += 1;
            return;
        };
        let whom = target(first.of);
        let why = format!("{}; {}", grounds(scene, danger), describe(&found));
        orders.push(Order { action: Action::Kill { target: whom.clone() }, resource: Resource::Memory, why });
        scene.rates.killed(now, &first.of.pod.facts.workload);
        scene.signals.relieved(settle(scene));
        if self.frozen.as_ref().is_some_and(|(frozen, _)| *frozen == whom) {
            self.frozen = None;
            scene.book.forget(&whom);
        }
        self.ending = Some(Ending { target: whom, deadline: now + ENDS, killed: true });
        self.enter(now, State::Cull);
    }

    /// A pod that was to end and has not is killed; one that is gone makes room for the next.
    fn follow_ending(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let Some(ending) = &mut self.ending else { return };
        let alive = scene.pods.iter().any(|pod| target(pod) == ending.target && pod.pod.used.tasks > 0);
        if !alive {
            scene.book.forget(&ending.target);
            self.ending = None;
        } else if scene.now >= ending.deadline {
            if ending.killed {
                // It hangs in the kernel; others have to help.
                self.ending = None;
            } else {
                let action = Action::Kill { target: ending.target.clone() };
                orders.push(Order { action, resource: Resource::Memory, why: "it did not stop within its grace".to_owned() });
                ending.killed = true;
                ending.deadline = scene.now + ENDS;
            }
        }
    }

    fn thaw(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let now = scene.now;
        let Some((frozen, since)) = self.frozen.clone() else { return };
        let held = now.saturating_sub(since);
        let over = if self.pressing.is_none() { held >= FROZEN } else { held >= FROZEN_AT_MOST };
        if over {
            orders.extend(scene.book.restore(now, &frozen, Knob::Freeze, "it was calm while the pod stood still"));
            self.frozen = None;
            // It shows now whether it still wants more than it may have.
            scene.book.needed(now, &frozen, Knob::MemoryHigh);
            self.thawed.insert(frozen, now);
            self.enter(now, State::Brake);
        }
    }

    /// A braked pod that wants more, on a board that is calm, gets more: it may only have been hit by somebody else's hunger. Whether it
    /// makes the board suffer again tells which.
    fn loosen(&mut self, scene: &mut Scene<'_>, danger: &Danger, hungry: &[Target], orders: &mut Vec<Order>) {
        let now = scene.now;
        for whom in hungry {
            if insists(scene, danger, whom) {
                continue;
            }
            let Some(held) = scene.book.get(whom, Knob::MemoryHigh) else { continue };
            let (Setting::MemoryHigh(high), made) = (held.setting, held.made) else { continue };
            if now.saturating_sub(made) < LOOSEN {
                continue;
            }
            self.loosened.insert(whom.clone(), now);
            // Up to what all pods may have together: whether that is too much is seen while it is still held.
            let more = (high / 10 * 11).min(scene.settings.pods_max);
            if more > high {
                orders.push(scene.book.set(now, whom, Setting::MemoryHigh(more), Resource::Memory, "calm".to_owned()));
            }
        }
    }

    fn step_down(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let now = scene.now;
        let mut done: Vec<Target> = scene
            .book
            .iter()
            .filter(|(target, knob, held)| {
                matches!(target, Target::Pod { .. }) && *knob != Knob::Freeze && held.resource == Resource::Memory
            })
            .filter(|(target, knob, held)| {
                let unneeded = now.saturating_sub(held.needed);
                let satisfied = match held.setting {
                    Setting::MemoryHigh(high) => scene.pod(target).is_some_and(|pod| pod.pod.used.memory < high / 10 * 7),
                    _ => false,
                };
                // What goes with a brake ends with it, and by itself where there is none.
                (*knob == Knob::MemoryHigh || scene.book.get(target, Knob::MemoryHigh).is_none())
                    && self.frozen.as_ref().is_none_or(|(frozen, _)| frozen != *target)
                    && (unneeded >= held.patience(CALM) || satisfied && unneeded >= SATISFIED)
            })
            .map(|(target, _, _)| target.clone())
            .collect();
        done.dedup();
        for whom in done {
            self.loosened.remove(&whom);
            orders.extend(scene.book.restore_all(now, Resource::Memory, "it wants no more than it has", |target, _| *target == whom));
        }
        let braked = scene.book.iter().any(|(_, knob, held)| held.resource == Resource::Memory && knob != Knob::SwapMax);
        let calm = now.saturating_sub(self.pressed) >= CALM;
        if calm && !braked && self.ending.is_none() {
            orders.extend(scene.book.restore_all(now, Resource::Memory, "calm", |_, _| true));
        }
        let settled = self.ending.is_none() && self.frozen.is_none();
        match self.state {
            // Another pod was frozen before: it is decided next.
            State::Evict | State::Cull if self.ending.is_none() && self.frozen.is_some() => self.enter(now, State::Freeze),
            State::Evict | State::Cull | State::Freeze if settled => self.enter(now, State::Brake),
            State::Brake if settled && calm && !scene.book.holds(Resource::Memory) => self.enter(now, State::Watch),
            State::Watch if now.saturating_sub(self.warned) >= LEAVE_WATCH => self.enter(now, State::Calm),
            State::Calm | State::Watch | State::Brake | State::Freeze | State::Evict | State::Cull => {}
        }
    }

    fn tell(&mut self, scene: &Scene<'_>) {
        let now = scene.now;
        let pressed = self.state >= State::Brake;
        let own = [Signal::OwnMem, Signal::OwnRefault].iter().any(|signal| scene.signals.of(*signal).now >= Level::Warn);
        let briefly = self.warning_since.is_some_and(|since| now.saturating_sub(since) < PULLS_WAIT_AT_MOST);
        let due = pressed && now.saturating_sub(self.entered.min(self.pressed)) >= CONDITION_AFTER;
        if due || pressed && self.condition.is_some() {
            self.condition = Some(now);
        }
        let condition = self.condition.is_some_and(|last| now.saturating_sub(last) < CONDITION_STAYS);
        if !condition {
            self.condition = None;
        }
        self.stance = Stance {
            no_pulls: pressed || self.state == State::Watch && own && briefly,
            guaranteed_only: pressed,
            memory_pressure: condition,
        };
    }
}
