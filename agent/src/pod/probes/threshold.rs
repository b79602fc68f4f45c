//! How many results in a row settle something. Pure.

use crate::api::pod::Probe;

/// Counts equal results.
#[derive(Debug, Default)]
pub(super) struct Threshold {
    last: Option<bool>,
    run: u32,
}

impl Threshold {
    /// The settled result, once enough equal ones came in a row.
    pub(super) fn add(&mut self, probe: &Probe, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let needed = if good {
            probe.success_threshold.max(1)
        } else if probe.failure_threshold == 0 {
            3
        } else {
            probe.failure_threshold
        };
        (self.run >= needed).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_settle_in_a_row_only() {
        let probe = Probe { success_threshold: 2, failure_threshold: 3, ..Default::default() };
        let mut threshold = Threshold::default();
        let given = [true, false, false, true, true, true, false, false, false];
        let settled: Vec<Option<bool>> = given.into_iter().map(|good| threshold.add(&probe, good)).collect();
        assert_eq!(settled, [None, None, None, None, Some(true), Some(true), None, None, Some(false)]);
    }
}
