//! How often the governor may end pods (governor reference, section 3.8).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const BETWEEN_EVICTIONS: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(300);
const MOST_IN_WINDOW: usize = 3;
const BETWEEN_KILLS: Duration = Duration::from_millis(500);
const HOUR: Duration = Duration::from_secs(3600);
/// So many ends of one workload within an hour make it wait.
const TOLERATED: usize = 3;
const FIRST_WAIT: Duration = Duration::from_secs(600);

/// What was ended, and when.
#[derive(Debug, Default)]
pub(super) struct Rates {
    evictions: VecDeque<Duration>,
    last_kill: Option<Duration>,
    ended: HashMap<String, VecDeque<Duration>>,
}

impl Rates {
    pub(super) fn may_evict(&self, now: Duration) -> bool {
        let recent = self.evictions.iter().filter(|at| now.saturating_sub(**at) < WINDOW).count();
        let last = self.evictions.back().is_none_or(|at| now.saturating_sub(*at) >= BETWEEN_EVICTIONS);
        last && recent < MOST_IN_WINDOW
    }

    pub(super) fn may_kill(&self, now: Duration) -> bool {
        self.last_kill.is_none_or(|at| now.saturating_sub(at) >= BETWEEN_KILLS)
    }

    pub(super) fn evicted(&mut self, now: Duration, workload: &str) {
        self.evictions.push_back(now);
        while self.evictions.len() > MOST_IN_WINDOW {
            self.evictions.pop_front();
        }
        self.note(now, workload);
    }

    pub(super) fn killed(&mut self, now: Duration, workload: &str) {
        self.last_kill = Some(now);
        self.note(now, workload);
    }

    fn note(&mut self, now: Duration, workload: &str) {
        self.ended.retain(|_, at| at.back().is_some_and(|last| now.saturating_sub(*last) < HOUR * 6));
        let at = self.ended.entry(workload.to_owned()).or_default();
        at.push_back(now);
        while at.len() > 8 {
            at.pop_front();
        }
    }

    /// Workloads that may not start again yet, with the moment from which they may: 10 minutes after the third end within an hour,
    /// doubled with each further one, an hour at most.
    pub(super) fn waiting(&self, now: Duration) -> Vec<(String, Duration)> {
        let mut list: Vec<_> = self.ended.iter().filter_map(|(workload, at)| Some((workload.clone(), until(at, now)?))).collect();
        list.sort();
        list
    }
}

fn until(at: &VecDeque<Duration>, now: Duration) -> Option<Duration> {
    let last = *at.back()?;
    let recent = at.iter().filter(|one| last.saturating_sub(**one) < HOUR).count();
    let beyond = recent.checked_sub(TOLERATED)?;
    let wait = FIRST_WAIT.saturating_mul(1 << beyond.min(4)).min(MINUTE * 60);
    Some(last + wait).filter(|end| *end > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_eviction_in_ten_seconds_and_three_in_five_minutes() {
        let mut rates = Rates::default();
        assert!(rates.may_evict(at(0)));
        for second in [0, 10, 20] {
            assert!(rates.may_evict(at(second)), "{second}");
            rates.evicted(at(second), "w");
            assert!(!rates.may_evict(at(second + 9)), "{second}");
        }
        assert!(!rates.may_evict(at(299)));
        assert!(rates.may_evict(at(300)));
    }

    #[test]
    fn kills_are_half_a_second_apart() {
        let mut rates = Rates::default();
        rates.killed(at(5), "w");
        assert!(!rates.may_kill(at(5) + Duration::from_millis(499)));
        assert!(rates.may_kill(at(5) + Duration::from_millis(500)));
    }

    #[test]
    fn a_workload_that_keeps_being_ended_waits_longer_and_longer() {
        let mut rates = Rates::default();
        rates.evicted(at(0), "w");
        rates.killed(at(100), "w");
        assert!(rates.waiting(at(100)).is_empty());
        rates.evicted(at(200), "w");
        assert_eq!(rates.waiting(at(200)), [("w".to_owned(), at(800))]);
        assert!(rates.waiting(at(800)).is_empty());
        rates.evicted(at(900), "w");
        assert_eq!(rates.waiting(at(901)), [("w".to_owned(), at(2100))]);
        rates.evicted(at(9000), "w");
        assert!(rates.waiting(at(9001)).is_empty(), "the hour is over");
    }
}
