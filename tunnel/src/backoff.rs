//! How long to wait before the next attempt: doubling up to a limit, with jitter so that a fleet does not return
//! as one, and forgotten only after a link has lived.

use std::time::Duration;

/// Doubling delays between `min` and `max`. The jitter is an argument: random in use, fixed in tests.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// A link that lived this long resets the delays.
    lived: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `min` to `max`; reset by an attempt that lived for `lived`.
    pub fn new(min: Duration, max: Duration, lived: Duration) -> Backoff {
        Backoff { min, max: max.max(min), lived, failures: 0 }
    }

    /// The delay after an attempt that lived for `life`. `jitter` from 0 to 1 picks a point between half the delay
    /// and the whole of it.
    pub fn next(&mut self, life: Duration, jitter: f64) -> Duration {
        if life >= self.lived {
            self.failures = 0;
        }
        let full = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 1.0 };
        full.mul_f64(0.5 + jitter / 2.0)
    }
}

/// A random number from 0 to 1.
pub fn jitter() -> f64 {
    f64::from(u32::try_from(random_u64() >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

/// 64 random bits from the system; without them, the clock's lowest.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    match ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_to_the_limit_and_start_over_after_a_life() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::new(s(1), s(10), s(30));
        let delays: Vec<u64> = (0..6).map(|_| backoff.next(s(0), 1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.next(s(29), 1.0), s(10));
        assert_eq!(backoff.next(s(30), 1.0), s(1));
        assert_eq!(backoff.next(s(0), 0.0), s(1));
    }

    proptest! {
        /// Whatever the limits: never 0 in a row of failures, within bounds for every jitter, never shorter for more failures,
        /// and the jitter moves it.
        #[test]
        fn failures_in_a_row_wait_longer_and_never_not_at_all(
            min in 1u64..5000, more in 0u64..100_000, jitters in proptest::collection::vec(0.0f64..=1.0, 1..70),
        ) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min + more));
            let mut backoff = Backoff::new(min, max, Duration::from_secs(30));
            let mut full = Duration::ZERO;
            for jitter in jitters {
                let (shortest, longest) = (backoff.clone().next(Duration::ZERO, 0.0), backoff.clone().next(Duration::ZERO, 1.0));
                let delay = backoff.next(Duration::ZERO, jitter);
                prop_assert!(delay >= min / 2 && !delay.is_zero() && delay <= max);
                prop_assert!(shortest <= delay && delay <= longest && shortest < longest);
                prop_assert!(longest >= full && longest <= (full * 2).max(min));
                full = longest;
            }
            prop_assert_eq!(backoff.next(Duration::from_secs(30), 1.0), min);
        }

        #[test]
        fn random_numbers_are_fractions(_ in 0..100u8) {
            prop_assert!((0.0..=1.0).contains(&jitter()));
        }

        #[test]
        fn delays_stay_within_bounds(lives in proptest::collection::vec(0u64..100, 1..80), jitter in any::<f64>()) {
            let (min, max) = (Duration::from_millis(500), Duration::from_secs(20));
            let mut backoff = Backoff::new(min, max, Duration::from_secs(30));
            for life in lives {
                let delay = backoff.next(Duration::from_secs(life), jitter);
                prop_assert!(delay >= min / 2 && delay <= max);
            }
        }
    }
}
