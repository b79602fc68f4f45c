//! The ladder for the disk: all pods' limit halved, the writer's own, a freeze, and last an eviction (governor reference, section 3.6).
//!
//! A short queue is the only protection a card offers, so the limit of all pods goes first.

use std::time::Duration;

use super::action::{Action, IoLimits, Knob, Order, Resource, Setting, Target};
use super::law::{Scene, State, target};
use super::sample::Preference;
use super::signal::{Level, Reading, Signal};
use super::track::Tracked;
use crate::QosClass;

const STEP: Duration = Duration::from_secs(2);
const RAISE: Duration = Duration::from_secs(10);
/// Nobody waits for a disk for so long: the limits have nothing left to do.
const UNWANTED: Duration = Duration::from_secs(3);
const UNWANTED_BELOW: f64 = 10.0;
const FROZEN: Duration = Duration::from_secs(5);
const EMERGENCY: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(3);
/// Below this nobody is the one to blame, bytes a second.
const A_WRITER: f64 = 256.0 * 1024.0;

/// Where it stands.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    /// Steps taken since it was calm.
    steps: u32,
    moved: Duration,
    unwanted: Option<Duration>,
    emergency: Option<Duration>,
    frozen: Option<(Target, Duration)>,
    evicted: bool,
}

impl Ladder {
    pub(super) fn state(&self) -> State {
        match self.steps {
            0 => State::Calm,
            _ if self.evicted => State::Evict,
            _ if self.frozen.is_some() => State::Freeze,
            _ => State::Brake,
        }
    }

    /// Pulls write too.
    pub(super) fn no_pulls(&self) -> bool {
        self.steps >= 3
    }

    pub(super) fn step(&mut self, scene: &mut Scene<'_>) -> Vec<Order> {
        let now = scene.now;
        let mut orders = Vec::new();
        let Reading { now: level, level: lasting, .. } = *scene.signals.of(Signal::OwnIo);
        // A write that ends after nine seconds, and then the next: the age alone would begin anew with each.
        self.emergency = if lasting == Level::Emergency { self.emergency.or(Some(now)) } else { None };
        self.thaw(scene, &mut orders);
        if level >= Level::Act && !scene.booting() {
            if self.steps == 0 || now.saturating_sub(self.moved) >= STEP {
                self.moved = now;
                self.steps += 1;
                self.up(scene, &mut orders);
            }
            self.unwanted = None;
        } else if self.steps > 0 {
            self.down(scene, &mut orders);
        }
        orders
    }

    fn up(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let now = scene.now;
        let why = scene.signals.say(Signal::OwnIo);
        if let Some(most) = scene.settings.io {
            let current = limits_of(scene, &Target::Kubepods).unwrap_or(most);
            let lower = current.scaled(1, 2, most);
            if lower != current {
                orders.push(scene.book.set(now, &Target::Kubepods, Setting::IoMax(lower), Resource::Io, why.clone()));
            }
        }
        if self.steps < 2 {
            return;
        }
        let Some(writer) = writer(scene) else {
            scene.suppressed.no_candidate += 1;
            return;
        };
        let whom = target(writer);
        let facts = writer.pod.facts.clone();
        let why = format!("{why}; {} writes {:.1} MiB/s", facts.name, writer.written / 1_048_576.0);
        let rate = writer.written as u64;
        let stuck = scene.signals.of(Signal::OwnIo).now == Level::Emergency;
        if stuck && self.emergency.is_some_and(|since| now.saturating_sub(since) >= EMERGENCY) {
            if scene.rates.may_evict(now) {
                let held = self.frozen.take().map(|(frozen, _)| frozen);
                for frozen in held.iter().chain([&whom]) {
                    orders.extend(scene.book.restore(now, frozen, Knob::Freeze, "it is evicted, or another pod is"));
                }
                self.evicted = true;
                self.emergency = None;
                scene.rates.evicted(now, &facts.workload);
                orders.push(Order { action: Action::Evict { target: whom, grace: facts.grace.min(GRACE) }, resource: Resource::Io, why });
            } else {
                scene.suppressed.rate_limit += 1;
            }
        } else if self.steps >= 4 && self.frozen.is_none() && scene.book.iter().all(|(_, knob, _)| knob != Knob::Freeze) {
            orders.push(scene.book.set(now, &whom, Setting::Freeze, Resource::Io, why));
            self.frozen = Some((whom, now));
        } else if scene.settings.io.is_some() && scene.book.get(&whom, Knob::IoMax).is_none() {
            let limits = IoLimits { rbps: u64::MAX, wbps: rate / 2, riops: u64::MAX, wiops: u64::MAX };
            let limits = limits.scaled(1, 1, scene.settings.io.unwrap_or(IoLimits::FLOOR));
            orders.push(scene.book.set(now, &whom, Setting::IoMax(limits), Resource::Io, why));
        }
    }

    fn thaw(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let Some((frozen, since)) = self.frozen.clone() else { return };
        if scene.pod(&frozen).is_none() || scene.book.get(&frozen, Knob::Freeze).is_none() {
            self.frozen = None;
        } else if scene.now.saturating_sub(since) >= FROZEN {
            orders.extend(scene.book.restore(scene.now, &frozen, Knob::Freeze, "the disk had its time"));
            self.frozen = None;
        }
    }

    fn down(&mut self, scene: &mut Scene<'_>, orders: &mut Vec<Order>) {
        let now = scene.now;
        if scene.signals.wanted.io < UNWANTED_BELOW {
            let since = *self.unwanted.get_or_insert(now);
            if now.saturating_sub(since) >= UNWANTED && self.frozen.is_none() {
                orders.extend(scene.book.restore_all(now, Resource::Io, "nobody waits for the disk", |_, _| true));
                *self = Ladder { moved: now, ..Ladder::default() };
                return;
            }
        } else {
            self.unwanted = None;
        }
        if now.saturating_sub(self.moved) < RAISE {
            return;
        }
        self.moved = now;
        let most = scene.settings.io.unwrap_or(IoLimits::FLOOR);
        let held: Vec<(Target, IoLimits)> = scene
            .book
            .iter()
            .filter(|(_, knob, held)| *knob == Knob::IoMax && held.resource == Resource::Io)
            .filter_map(|(target, _, held)| match held.setting {
                Setting::IoMax(limits) => Some((target.clone(), limits)),
                _ => None,
            })
            .collect();
        for (whom, limits) in held {
            let higher = limits.scaled(5, 4, most);
            if higher.wbps >= most.wbps {
                orders.extend(scene.book.restore(now, &whom, Knob::IoMax, "calm"));
            } else {
                orders.push(scene.book.set(now, &whom, Setting::IoMax(higher), Resource::Io, "calm".to_owned()));
            }
        }
        if !scene.book.holds(Resource::Io) {
            *self = Ladder { moved: now, ..Ladder::default() };
        }
    }
}

fn limits_of(scene: &Scene<'_>, whom: &Target) -> Option<IoLimits> {
    match scene.book.get(whom, Knob::IoMax)?.setting {
        Setting::IoMax(limits) => Some(limits),
        _ => None,
    }
}

/// The pod that writes most, if it writes at least half of all.
fn writer<'a>(scene: &Scene<'a>) -> Option<&'a Tracked> {
    let all: f64 = scene.pods.iter().map(|pod| pod.written).sum();
    scene
        .pods
        .iter()
        .filter(|pod| {
            let facts = &pod.pod.facts;
            !facts.protected && facts.qos != QosClass::Guaranteed && facts.preference != Preference::Avoid
        })
        .filter(|pod| pod.written >= A_WRITER && pod.written * 2.0 >= all)
        .max_by(|a, b| a.written.total_cmp(&b.written).then_with(|| b.pod.facts.uid.cmp(&a.pod.facts.uid)))
}
