//! Waiting times between attempts: exponential, with jitter so that a fleet does not return in step.

use std::time::Duration;

/// Doubles from `first` to `ceiling`; each wait is drawn from the upper half of its step.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    step: Duration,
}

impl Backoff {
    pub fn new(first: Duration, ceiling: Duration) -> Backoff {
        Backoff { first, ceiling, step: first }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = jitter(self.step);
        self.step = (self.step * 2).min(self.ceiling);
        wait
    }

    /// Something worked: start small again.
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

/// A duration between half of `full` and `full`.
pub fn jitter(full: Duration) -> Duration {
    full / 2 + full.mul_f64(0.5 * random_fraction())
}

/// Between 0 and 1, from the system's random source.
pub fn random_fraction() -> f64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0u8; 4];
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_ceiling_and_stay_in_the_upper_half() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for full in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait();
            assert!(wait >= Duration::from_millis(full / 2) && wait <= Duration::from_millis(full), "{wait:?} of {full}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
