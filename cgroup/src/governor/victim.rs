//! Whom to act on for memory: who may be, and in which order (governor reference, section 3.7).

use std::cmp::Ordering;
use std::time::Duration;

use super::sample::Preference;
use super::track::Tracked;
use crate::QosClass;

const MIB: f64 = 1_048_576.0;
/// Ending a pod must give back at least this, or 5 % of what is missing.
const LEAST_RELIEF: u64 = 8 << 20;
/// Younger pods are still starting, unless they grow fast.
const STARTING: Duration = Duration::from_secs(2);
const FAST: f64 = 20.0 * MIB;
/// Who neither waited for memory nor grew for so long does not contribute.
const QUIET: Duration = Duration::from_secs(10);

/// How desperate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// A limit, a freeze or an eviction.
    Usual,
    /// Ending somebody at once: also pods that ask to be avoided, and Guaranteed ones when nobody else is left.
    Last,
}

/// What the choice depends on beside the pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    pub(super) now: Duration,
    /// Hard limit of all pods, bytes.
    pub(super) pods_max: u64,
    pub(super) swap_total: u64,
    /// Bytes that are missing.
    pub(super) deficit: u64,
}

/// A pod that may be acted on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) of: &'a Tracked,
    pub(super) score: f64,
}

/// Those that may be acted on, the first to be taken first. Never a protected pod; a Guaranteed one only in the last need and
/// when no other pod runs at all: its own limit bounds it, and the reservation has counted it.
pub(super) fn candidates<'a>(pods: &'a [Tracked], situation: &Situation, need: Need) -> Vec<Candidate<'a>> {
    let scanned: f64 = pods.iter().map(|pod| pod.thrash).sum();
    let mut found: Vec<Candidate<'a>> =
        pods.iter().filter(|pod| may_be(pod, situation, need)).map(|of| Candidate { of, score: score(of, situation, scanned) }).collect();
    if pods.iter().any(|pod| !pod.pod.facts.protected && pod.pod.facts.qos != QosClass::Guaranteed) {
        found.retain(|candidate| candidate.of.pod.facts.qos != QosClass::Guaranteed);
    }
    found.sort_by(order);
    found
}

fn may_be(pod: &Tracked, situation: &Situation, need: Need) -> bool {
    let (facts, used) = (&pod.pod.facts, &pod.pod.used);
    if facts.protected {
        return false;
    }
    if used.relief < LEAST_RELIEF.max(situation.deficit / 20) {
        return false;
    }
    if need == Need::Last {
        return true;
    }
    let starting = situation.now.saturating_sub(facts.started) < STARTING && pod.growth < FAST;
    let idle = pod.quiet >= QUIET && !used.frozen;
    facts.qos != QosClass::Guaranteed && facts.preference != Preference::Avoid && !starting && !idle
}

/// Bytes above the request.
fn over(pod: &Tracked) -> u64 {
    pod.pod.used.memory.saturating_sub(pod.pod.facts.memory_request)
}

fn rank(pod: &Tracked) -> u8 {
    match pod.pod.facts.qos {
        QosClass::BestEffort => 0,
        QosClass::Burstable if over(pod) > 0 => 1,
        QosClass::Burstable => 2,
        QosClass::Guaranteed => 3,
    }
}

fn order(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let facts = |candidate: &Candidate<'_>| (candidate.of.pod.facts.preference, candidate.of.pod.facts.priority, rank(candidate.of));
    facts(a)
        .cmp(&facts(b))
        .then(b.score.total_cmp(&a.score))
        // Equal in everything: by name, so that the same trace gives the same choice.
        .then_with(|| a.of.pod.facts.uid.cmp(&b.of.pod.facts.uid))
}

fn score(pod: &Tracked, situation: &Situation, scanned: f64) -> f64 {
    let part = |share: f64| if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let age = situation.now.saturating_sub(pod.pod.facts.started).as_secs_f64() / 60.0;
    0.40 * part(over(pod) as f64 / situation.pods_max.max(1) as f64)
        + 0.25 * part(pod.growth / (50.0 * MIB))
        + 0.15 * part(pod.thrash / scanned)
        + 0.10 * part(pod.pod.used.swap as f64 / situation.swap_total as f64)
        + 0.10 / (1.0 + age / 10.0)
}

/// The first five with their numbers, for the log and the event.
pub(super) fn describe(candidates: &[Candidate<'_>]) -> String {
    let one = |candidate: &Candidate<'_>| {
        let pod = candidate.of;
        format!(
            "{} ({}, {} MiB, {:+.1} MiB/s, waited {:.0}%, score {:.2})",
            pod.pod.facts.name,
            pod.pod.facts.qos,
            pod.pod.used.memory >> 20,
            pod.growth / MIB,
            pod.stall * 100.0,
            candidate.score
        )
    };
    candidates.iter().take(5).map(one).collect::<Vec<_>>().join(", then ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governor::{Pod, PodFacts, PodUse};

    const SITUATION: Situation = Situation { now: Duration::from_secs(1000), pods_max: 212 << 20, swap_total: 0, deficit: 10 << 20 };

    fn pod(name: &str, qos: QosClass, mib: u64) -> Tracked {
        let facts = PodFacts { uid: name.to_owned(), name: name.to_owned(), qos, ..PodFacts::default() };
        let used = PodUse { memory: mib << 20, relief: mib << 20, ..PodUse::default() };
        let watched = Duration::from_secs(60);
        let pod = Pod { facts, used };
        Tracked { pod, growth: 1e6, stall: 0.1, thrash: 0.0, written: 0.0, cpus: 0.0, forks_refused: 0.0, watched, quiet: Duration::ZERO }
    }

    fn names(pods: &[Tracked], need: Need) -> Vec<String> {
        candidates(pods, &SITUATION, need).iter().map(|candidate| candidate.of.pod.facts.name.clone()).collect()
    }

    #[test]
    fn the_order_of_classes_priorities_and_wishes() {
        let with = |mut pod: Tracked, change: &dyn Fn(&mut PodFacts)| {
            change(&mut pod.pod.facts);
            pod
        };
        let pods = [
            pod("guaranteed", QosClass::Guaranteed, 100),
            with(pod("burstable-under", QosClass::Burstable, 50), &|facts| facts.memory_request = 60 << 20),
            with(pod("burstable-over", QosClass::Burstable, 50), &|facts| facts.memory_request = 20 << 20),
            pod("best-effort-small", QosClass::BestEffort, 20),
            pod("best-effort-large", QosClass::BestEffort, 90),
            with(pod("dear", QosClass::BestEffort, 90), &|facts| facts.priority = 1000),
            with(pod("avoid", QosClass::BestEffort, 90), &|facts| facts.preference = Preference::Avoid),
            with(pod("prefer", QosClass::Burstable, 30), &|facts| facts.preference = Preference::Prefer),
            with(pod("critical", QosClass::BestEffort, 90), &|facts| facts.protected = true),
            pod("tiny", QosClass::BestEffort, 4),
        ];
        let usual = ["prefer", "best-effort-large", "best-effort-small", "burstable-over", "burstable-under", "dear"];
        assert_eq!(names(&pods, Need::Usual), usual);
        assert_eq!(names(&pods, Need::Last), [&usual[..], &["avoid"]].concat());
        assert_eq!(names(&pods[..1], Need::Last), ["guaranteed"], "nobody else is left");
        assert!(names(&pods[..1], Need::Usual).is_empty());
        let with_tiny = [pods[0].clone(), pods[9].clone()];
        assert!(names(&with_tiny, Need::Last).is_empty(), "one too small to help is another pod, too");
    }

    #[test]
    fn who_starts_or_stands_still_is_left_alone() {
        let mut young = pod("young", QosClass::BestEffort, 50);
        young.pod.facts.started = SITUATION.now - Duration::from_secs(1);
        assert!(names(&[young.clone()], Need::Usual).is_empty());
        young.growth = 30.0 * MIB;
        assert_eq!(names(&[young], Need::Usual), ["young"]);
        let mut quiet = pod("quiet", QosClass::BestEffort, 50);
        quiet.quiet = Duration::from_secs(11);
        assert!(names(&[quiet.clone()], Need::Usual).is_empty());
        quiet.pod.used.frozen = true;
        assert_eq!(names(&[quiet], Need::Usual), ["quiet"], "it is quiet because it is frozen");
    }

    #[test]
    fn the_growing_one_goes_before_the_large_one_of_its_class() {
        let mut growing = pod("growing", QosClass::BestEffort, 60);
        growing.growth = 40.0 * MIB;
        assert_eq!(names(&[pod("large", QosClass::BestEffort, 90), growing], Need::Usual), ["growing", "large"]);
    }
}
