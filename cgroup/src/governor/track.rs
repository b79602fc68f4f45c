//! What pods do over time: rates from one reading of them to the next.

use std::collections::HashMap;
use std::time::Duration;

use super::sample::{Pod, PodUse};

/// Growth is smoothed over this time (EWMA).
const GROWTH_TAU: f64 = 2.0;

/// A pod with its rates.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tracked {
    /// As last read.
    pub pod: Pod,
    /// Growth of what ending it would give back, bytes a second.
    pub growth: f64,
    /// Share of the time since the last reading in which it waited for memory, 0 to 1.
    pub stall: f64,
    /// Pages scanned or read again, a second.
    pub thrash: f64,
    /// Bytes written a second.
    pub written: f64,
    /// Processors used.
    pub cpus: f64,
    /// Forks refused a second.
    pub forks_refused: f64,
    /// For how long it has been watched.
    pub watched: Duration,
    /// For how long it has neither waited for memory nor grown.
    pub quiet: Duration,
}

#[derive(Debug)]
struct Track {
    first: Duration,
    last: Duration,
    used: PodUse,
    stirred: Duration,
    rates: Rates,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    growth: f64,
    stall: f64,
    thrash: f64,
    written: f64,
    cpus: f64,
    forks_refused: f64,
}

/// The pods seen so far.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    by_uid: HashMap<String, Track>,
}

impl Tracks {
    /// Takes a reading of all pods; those that are not in it are forgotten.
    pub(super) fn update(&mut self, now: Duration, pods: &[Pod]) -> Vec<Tracked> {
        self.by_uid.retain(|uid, _| pods.iter().any(|pod| pod.facts.uid == *uid));
        pods.iter().map(|pod| self.one(now, pod)).collect()
    }

    fn one(&mut self, now: Duration, pod: &Pod) -> Tracked {
        let used = pod.used;
        let read = if used.read == Duration::ZERO { now } else { used.read };
        let track = self.by_uid.entry(pod.facts.uid.clone()).or_insert_with(|| Track {
            first: now,
            last: read,
            used,
            stirred: now,
            rates: Rates::default(),
        });
        let over = read.saturating_sub(track.last).as_secs_f64();
        if over > 0.0 {
            let before = track.used;
            let count = |now: u64, before: u64| now.saturating_sub(before) as f64 / over;
            let grown = (used.relief as f64 - before.relief as f64) / over;
            let weight = 1.0 - (-over / GROWTH_TAU).exp();
            track.rates = Rates {
                growth: track.rates.growth + (grown - track.rates.growth) * weight,
                stall: count(used.memory_stall_us, before.memory_stall_us) / 1e6,
                thrash: count(used.thrash, before.thrash),
                written: count(used.written, before.written),
                cpus: count(used.cpu_us, before.cpu_us) / 1e6,
                forks_refused: count(used.fork_failures, before.fork_failures),
            };
            if used.memory_stall_us > before.memory_stall_us || used.relief > before.relief {
                track.stirred = now;
            }
            track.used = used;
            track.last = read;
        }
        let Rates { growth, stall, thrash, written, cpus, forks_refused } = track.rates;
        let (watched, quiet) = (now.saturating_sub(track.first), now.saturating_sub(track.stirred));
        Tracked { pod: pod.clone(), growth, stall, thrash, written, cpus, forks_refused, watched, quiet }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, used: PodUse) -> Pod {
        Pod { facts: super::super::PodFacts { uid: uid.to_owned(), ..Default::default() }, used }
    }

    #[test]
    fn rates_come_from_the_readings_and_what_is_gone_is_forgotten() {
        let mut tracks = Tracks::default();
        let at = Duration::from_millis;
        let first = tracks.update(at(0), &[pod("a", PodUse { relief: 100, ..PodUse::default() })]);
        assert_eq!((first[0].growth, first[0].watched), (0.0, at(0)));
        let used = PodUse { relief: 100 + (50 << 20), written: 1000, memory_stall_us: 250_000, fork_failures: 5, ..PodUse::default() };
        let next = &tracks.update(at(500), &[pod("a", used)])[0];
        assert_eq!((next.written, next.stall, next.forks_refused), (2000.0, 0.5, 10.0));
        assert!(next.growth > 20.0 * f64::from(1 << 20) && next.growth < 50.0 * f64::from(1 << 20), "{}", next.growth);
        assert_eq!(tracks.update(at(1500), &[pod("a", used)])[0].quiet, at(1000));
        tracks.update(at(1600), &[]);
        assert_eq!(tracks.update(at(1700), &[pod("a", used)])[0].written, 0.0, "a new pod has no past");
    }
}
