//! Rates of counters over a sliding window.

use std::collections::VecDeque;
use std::time::Duration;

/// Readings kept per window: enough for twenty steps, whatever the pace of the samples.
const STEPS: u32 = 20;

/// How fast a counter grew over the last `span`.
#[derive(Debug, Clone)]
pub(super) struct Window {
    span: Duration,
    readings: VecDeque<(Duration, u64)>,
    /// Nothing older counts: what was measured before the governor changed things.
    from: Duration,
}

impl Window {
    pub(super) fn new(span: Duration) -> Window {
        Window { span, readings: VecDeque::with_capacity(STEPS as usize + 2), from: Duration::ZERO }
    }

    /// Takes a reading and says how much was counted per second since the start of the window; `None` while there is nothing to compare
    /// with. A counter that went back (its group was made anew) and a pause of three spans (suspended, or the clock jumped) begin anew.
    pub(super) fn rate(&mut self, now: Duration, total: u64) -> Option<f64> {
        match self.readings.back() {
            Some((at, last)) if total < *last || now < *at || now - *at > self.span * 3 => self.readings.clear(),
            Some(_) | None => {}
        }
        // The oldest kept is the youngest that covers the whole window.
        while self.readings.len() > 1 && self.readings.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= self.span) {
            self.readings.pop_front();
        }
        let rate = self.readings.front().filter(|(at, _)| now > *at).map(|(at, first)| {
            let over = (now - *at).as_secs_f64();
            (total - first) as f64 / over
        });
        let newest = self.readings.back().map(|(at, _)| *at);
        if newest.is_none_or(|at| now.saturating_sub(at) >= self.span / STEPS) {
            self.readings.push_back((now, total));
        }
        // Right after a restart a single stall would look like a second of them.
        rate.filter(|_| now.saturating_sub(self.from) >= self.span / 2)
    }

    /// Forgets what was measured so far.
    pub(super) fn restart(&mut self, now: Duration) {
        self.readings.clear();
        self.from = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_counter_has_its_rate_whatever_the_pace() {
        for pace in [10, 50, 333, 1000] {
            let mut window = Window::new(ms(1000));
            let mut last = None;
            for at in (0..5000).step_by(pace) {
                last = window.rate(ms(at as u64), at as u64 * 7);
            }
            assert!((last.unwrap() - 7000.0).abs() < 1.0, "{pace}: {last:?}");
            assert!(window.readings.len() <= STEPS as usize + 2);
        }
    }

    #[test]
    fn only_the_span_counts() {
        let mut window = Window::new(ms(1000));
        for at in (0..=2000).step_by(50) {
            window.rate(ms(at), at.min(1000) * 10);
        }
        assert_eq!(window.rate(ms(2050), 10_000), Some(0.0));
    }

    #[test]
    fn jumps_and_new_groups_begin_anew() {
        let mut window = Window::new(ms(1000));
        assert_eq!(window.rate(ms(0), 5), None);
        assert_eq!(window.rate(ms(1000), 15), Some(10.0));
        assert_eq!(window.rate(ms(9000), 999_999), None, "suspended");
        assert_eq!(window.rate(ms(9500), 3), None, "made anew");
        window.restart(ms(9600));
        assert_eq!(window.rate(ms(9600), 4), None);
        assert_eq!(window.rate(ms(9900), 5), None, "too little was seen since");
        assert_eq!(window.rate(ms(10_100), 6).map(|rate| rate as u64), Some(4), "only what came after");
    }
}
