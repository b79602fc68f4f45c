//! A reading that several scrapes share: files of the kernel are read once a second at most, however often somebody asks.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// As old as a reading may be.
const AGE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Cached<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Cached<T> {
    /// The last reading, or a new one where that is too old.
    pub(super) fn get(&self, read: impl FnOnce() -> T) -> T {
        self.get_at(Instant::now(), read)
    }

    fn get_at(&self, now: Instant, read: impl FnOnce() -> T) -> T {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((at, value)) if now.saturating_duration_since(*at) < AGE => value.clone(),
            _ => {
                let value = read();
                *held = Some((now, value.clone()));
                value
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_scrapes_is_one_reading_a_second() {
        let cached = Cached::default();
        let now = Instant::now();
        let reads = std::cell::Cell::new(0);
        let read = || {
            reads.set(reads.get() + 1);
            reads.get()
        };
        for millis in 0..1000 {
            assert_eq!(cached.get_at(now + Duration::from_millis(millis), read), 1);
        }
        assert_eq!(cached.get_at(now + AGE, read), 2);
    }
}
