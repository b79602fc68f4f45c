//! How late the heartbeat's thread wakes: the governor's signal that the agent itself suffers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two wakes while all is calm; close enough to see a board that stands still, too rare to cost anything.
const CALM: Duration = Duration::from_secs(1);
/// While the governor watches closely.
const CLOSE: Duration = Duration::from_millis(100);
/// Lags are remembered by the second they were seen in.
const SLOTS: usize = 2;

/// Written by the heartbeat's thread, read by the governor's; atomics only.
#[derive(Debug)]
pub struct Lag {
    began: Instant,
    /// When the next wake is due, microseconds after `began`; 0 before the first.
    due: AtomicU64,
    /// The second each slot is about (plus one, so that 0 is none), in the upper half; the worst lag in it, microseconds, in the lower.
    worst: [AtomicU64; SLOTS],
    close: AtomicBool,
}

impl Default for Lag {
    fn default() -> Self {
        Self { began: Instant::now(), due: AtomicU64::new(0), worst: Default::default(), close: AtomicBool::new(false) }
    }
}

impl Lag {
    /// The worst lag of the last second or two, and, where a wake is overdue right now, how long it is.
    pub fn recent(&self) -> Duration {
        self.recent_at(Instant::now())
    }

    /// Wakes ten times a second instead of once, from the next wake on.
    pub fn watch_closely(&self, closely: bool) {
        self.close.store(closely, Ordering::Relaxed);
    }

    /// Plans the next wake.
    pub(super) fn plan(&self, now: Instant) -> Instant {
        let planned = now + if self.close.load(Ordering::Relaxed) { CLOSE } else { CALM };
        self.due.store(self.micros(planned), Ordering::Relaxed);
        planned
    }

    /// The wake planned for `planned` happened at `now`. Returns how much later that was.
    pub(super) fn woke(&self, planned: Instant, now: Instant) -> Duration {
        let lag = now.saturating_duration_since(planned);
        let second = self.second(now);
        let slot = &self.worst[usize::from(second % 2 == 1)];
        let micros = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        // One writer: no other store can come between.
        let before = slot.load(Ordering::Relaxed);
        let worst = if before >> 32 == second { (before & u64::from(u32::MAX)).max(micros) } else { micros };
        slot.store(second << 32 | worst, Ordering::Relaxed);
        lag
    }

    fn recent_at(&self, now: Instant) -> Duration {
        let second = self.second(now);
        let fresh = |value: u64| if (value >> 32) + 1 >= second { value & u64::from(u32::MAX) } else { 0 };
        let seen = self.worst.iter().map(|slot| fresh(slot.load(Ordering::Relaxed))).max().unwrap_or(0);
        let due = self.due.load(Ordering::Relaxed);
        let overdue = if due == 0 { 0 } else { self.micros(now).saturating_sub(due) };
        Duration::from_micros(seen.max(overdue))
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Counted from one.
    fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_secs() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_the_last_seconds_and_what_is_overdue_now() {
        let lag = Lag::default();
        let at = |millis| lag.began + Duration::from_millis(millis);
        assert_eq!(lag.recent_at(at(5_000)), Duration::ZERO, "no wake was planned yet");

        let planned = lag.plan(at(0));
        assert_eq!(planned, at(1_000));
        assert_eq!(lag.recent_at(at(1_000)), Duration::ZERO, "due, not late");
        assert_eq!(lag.recent_at(at(1_400)), Duration::from_millis(400), "not woken yet");
        assert_eq!(lag.woke(planned, at(1_450)), Duration::from_millis(450));
        let planned = lag.plan(at(1_450));
        assert_eq!(lag.recent_at(at(1_500)), Duration::from_millis(450));
        lag.woke(planned, at(2_451));
        let planned = lag.plan(at(2_451));
        assert_eq!(lag.recent_at(at(2_900)), Duration::from_millis(450), "a second later it still counts");
        assert_eq!(lag.recent_at(at(3_100)), Duration::from_millis(1), "the one after is forgotten");
        lag.woke(planned, at(3_451));
        lag.plan(at(3_451));
        assert_eq!(lag.recent_at(at(9_451)), Duration::from_secs(5), "the thread stands still");
    }

    #[test]
    fn wakes_are_closer_while_the_governor_watches() {
        let lag = Lag::default();
        lag.watch_closely(true);
        assert_eq!(lag.plan(lag.began), lag.began + CLOSE);
        lag.watch_closely(false);
        assert_eq!(lag.plan(lag.began), lag.began + CALM);
    }
}
