//! What presses for memory: the signals together, and the pods that want more than there is.

use std::time::Duration;

use super::action::{Knob, Setting, Target};
use super::law::{Scene, target};
use super::signal::{Level, Signal};
use super::track::Tracked;
use super::victim::{Candidate, Situation};

/// A pod that waits for memory for more than this share of the time wants more than it may have.
const HUNGRY: f64 = 0.10;
/// So often pressure has to come back.
pub(super) const STRIKES: u32 = 2;
/// While something still warns, so long after its brake.
const WARNED_LONG: Duration = Duration::from_secs(10);
/// Bytes a second that are growth.
const GROWS: f64 = 256.0 * 1024.0;

/// How bad it is for memory.
pub(super) struct Danger {
    pub(super) level: Level,
    pub(super) now: Level,
    /// The worst that one signal has been for its hold time, and is.
    pub(super) holds: Level,
    pub(super) worst: Signal,
}

/// Memory signals at their worst. A late heartbeat counts where memory is why; swap and thrashing where something of ours suffers.
pub(super) fn danger(scene: &Scene<'_>) -> Danger {
    let signals = &scene.signals;
    let suffers = [Signal::OwnMem, Signal::OwnRefault, Signal::Avail].iter().any(|signal| signals.of(*signal).now >= Level::Warn);
    let always = [Signal::OwnMem, Signal::OwnRefault, Signal::Brake, Signal::Avail, Signal::NodeMem];
    let then = [Signal::HbLag, Signal::Thrash, Signal::Swap];
    let counted = always.iter().chain(then.iter().filter(|_| suffers));
    let mut danger = Danger { level: Level::Calm, now: Level::Calm, holds: Level::Calm, worst: Signal::Brake };
    for signal in counted {
        let reading = signals.of(*signal);
        if reading.now > danger.now {
            danger.worst = *signal;
        }
        danger.now = danger.now.max(reading.now);
        danger.level = danger.level.max(reading.level);
        danger.holds = danger.holds.max(reading.level.min(reading.now));
    }
    danger
}

/// The signal with its numbers, or who is held at a limit it does not accept.
pub(super) fn grounds(scene: &Scene<'_>, danger: &Danger) -> String {
    match hungry(scene).first().and_then(|target| scene.pod(target)) {
        Some(pod) if danger.now < Level::Act => {
            format!("{} waits {:.0}% of the time for more memory than there is", pod.pod.facts.name, pod.stall * 100.0)
        }
        Some(_) | None => scene.signals.say(danger.worst),
    }
}

/// Waits for memory, or grows.
pub(super) fn contributes(candidate: &&Candidate<'_>) -> bool {
    candidate.of.stall >= HUNGRY || candidate.of.growth > GROWS
}

/// Who is next: who does not accept its brake, else who contributes, else the first. Pods are looked at only since the first warning, so
/// that an idle one cannot be known by what it did before.
pub(super) fn choose<'a, 'b>(scene: &Scene<'_>, danger: &Danger, found: &'b [Candidate<'a>]) -> Option<&'b Candidate<'a>> {
    let hungry = hungry(scene);
    let held = |candidate: &&Candidate<'_>| {
        let whom = target(candidate.of);
        hungry.contains(&whom) && insists(scene, danger, &whom)
    };
    peers(found).find(held).or_else(|| peers(found).find(contributes)).or(found.first())
}

/// Those that wishes and priorities put no later than the first.
pub(super) fn peers<'a, 'b>(found: &'b [Candidate<'a>]) -> impl Iterator<Item = &'b Candidate<'a>> {
    let wish = |candidate: &Candidate<'_>| (candidate.of.pod.facts.preference, candidate.of.pod.facts.priority);
    let first = found.first().map(wish);
    found.iter().take_while(move |candidate| Some(wish(candidate)) == first)
}

/// Whether a braked pod's wish for more is pressure. Once is not: any pod that uses what it has wants it back. It is where something else
/// presses, where it had its chances and each ended in pressure, and where the board is not calm even long after.
pub(super) fn insists(scene: &Scene<'_>, danger: &Danger, hungry: &Target) -> bool {
    let Some(held) = scene.book.get(hungry, Knob::MemoryHigh) else { return false };
    let long = scene.now.saturating_sub(held.since) >= WARNED_LONG;
    held.strikes >= STRIKES || danger.now >= Level::Act || danger.now >= Level::Warn && long
}

/// Braked pods that want more than they may have.
pub(super) fn hungry(scene: &Scene<'_>) -> Vec<Target> {
    let is = |pod: &&Tracked| {
        let held = scene.book.get(&target(pod), Knob::MemoryHigh);
        !pod.pod.used.frozen
            && pod.stall >= HUNGRY
            && held.is_some_and(|held| matches!(held.setting, Setting::MemoryHigh(high) if pod.pod.used.memory >= high / 10 * 9))
    };
    scene.pods.iter().filter(is).map(target).collect()
}

pub(super) fn situation(scene: &Scene<'_>) -> Situation {
    let wanted = scene.settings.headroom * 2;
    Situation {
        now: scene.now,
        pods_max: scene.settings.pods_max,
        swap_total: scene.sample.swap_total,
        deficit: wanted.saturating_sub(scene.sample.available),
    }
}

/// How long the node waits for memory after a pod ended: its pages leave compressed memory faster than a disk.
pub(super) fn settle(scene: &Scene<'_>) -> Duration {
    if scene.settings.zram || scene.sample.swap_total == 0 { Duration::from_secs(3) } else { Duration::from_secs(8) }
}
