//! All a worker remembers between turns. Losing it (the agent died) costs only patience: a wait is shorter, a retry comes
//! earlier, a hook's failure is shown a little later. Pure; the clock comes in.

use std::collections::BTreeMap;

use runtime::ContainerId;
use runtime::observe::ObservedContainer;

use super::time::{Nanos, SECOND};
use crate::api::pod::Container;

/// First wait of a crash loop or a failing pull.
pub const INITIAL_BACK_OFF: Nanos = 10 * SECOND;
/// Longest wait.
pub const MAX_BACK_OFF: Nanos = 300 * SECOND;
/// Wait after a step that failed for a reason nobody here can mend.
pub const RETRY: Nanos = 10 * SECOND;

/// One doubling wait, as client-go's flowcontrol.Backoff counts it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackOff {
    /// What must stay the same for the wait to count.
    key: String,
    pub delay: Nanos,
    /// When it was lengthened last.
    pub since: Nanos,
}

impl BackOff {
    /// The wait after one more failure at `now`: the first is 10 s, doubled each time, forgotten after 10 quiet minutes.
    fn next(previous: Option<&BackOff>, key: &str, event: Nanos, now: Nanos) -> BackOff {
        let delay = match previous {
            Some(old) if old.key == key && event - old.since <= 2 * MAX_BACK_OFF => (old.delay * 2).min(MAX_BACK_OFF),
            _ => INITIAL_BACK_OFF,
        };
        BackOff { key: key.to_owned(), delay, since: now }
    }
}

/// Why a container could not be started, until it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    /// Not before this instant again.
    pub retry_at: Nanos,
}

/// An instance that this worker stopped in order to start it again at once.
#[derive(Debug, Clone, PartialEq)]
struct Killed {
    id: ContainerId,
    /// When the instance before it ended, if there was one.
    before: Option<Nanos>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    restarts: BTreeMap<String, BackOff>,
    pulls: BTreeMap<String, BackOff>,
    failures: BTreeMap<String, Failure>,
    killed: BTreeMap<String, Killed>,
    /// Whole-pod steps (sandbox, volumes, cgroup, release) wait until here.
    pub retry_at: Option<Nanos>,
    /// What its volumes are made of was found once.
    pub volumes_found: bool,
    /// Volumes, mounts and cgroup of this pod were taken down since the worker began.
    pub released: bool,
    /// The server was told that nothing is left.
    pub finished: bool,
}

/// What a container's restart wait belongs to: its image or resources changing starts it over.
pub fn restart_key(container: &Container) -> String {
    let amounts = serde_json::to_string(&container.resources).unwrap_or_default();
    format!("{}\n{amounts}", container.image)
}

impl History {
    /// Until when a container that ended at `finished` has to wait; None when it may start now.
    pub fn restart_wait(&self, container: &Container, finished: Nanos, now: Nanos) -> Option<(Nanos, Nanos)> {
        let back_off = self.restarts.get(&container.name).filter(|b| b.key == restart_key(container))?;
        if finished - back_off.since > 2 * MAX_BACK_OFF {
            return None;
        }
        let until = finished + back_off.delay;
        (now < until).then_some((until, back_off.delay))
    }

    /// An instance was stopped for its probe or its definition. A kubelet stops and starts in one turn, in which the newest
    /// end it knows is that of the instance before (`before`): its wait counts from there. Only where that wait is not over
    /// does it look again, and then as after any end.
    pub fn killed(&mut self, container: &Container, id: &ContainerId, before: Option<Nanos>, now: Nanos) {
        if before.is_none_or(|before| self.restart_wait(container, before, now).is_none()) {
            self.killed.insert(container.name.clone(), Killed { id: id.clone(), before });
        }
    }

    /// The end that the wait of an ended instance's successor counts from; None when nothing has to be waited for.
    pub fn counted_end(&self, container: &Container, id: &ContainerId, finished: Nanos) -> Option<Nanos> {
        match self.killed.get(&container.name).filter(|killed| killed.id == *id) {
            Some(killed) => killed.before,
            None => Some(finished),
        }
    }

    /// [`History::restart_wait`] of an instance that ended, however it did.
    pub fn wait_after(&self, container: &Container, ended: &ObservedContainer, now: Nanos) -> Option<(Nanos, Nanos)> {
        self.restart_wait(container, self.counted_end(container, &ended.id, ended.finished_at)?, now)
    }

    /// A container that ended at `finished` is started again: the next wait is longer.
    pub fn restarting(&mut self, container: &Container, finished: Nanos, now: Nanos) {
        let next = BackOff::next(self.restarts.get(&container.name), &restart_key(container), finished, now);
        self.restarts.insert(container.name.clone(), next);
    }

    /// Until when a pull of `image` that failed has to wait.
    pub fn pull_wait(&self, image: &str, now: Nanos) -> Option<Nanos> {
        let back_off = self.pulls.get(image)?;
        let until = back_off.since + back_off.delay;
        (now < until).then_some(until)
    }

    /// A pull failed. Returns the instant of the next try.
    pub fn pull_failed(&mut self, image: &str, now: Nanos) -> Nanos {
        let next = BackOff::next(self.pulls.get(image), image, now, now);
        let until = now + next.delay;
        self.pulls.insert(image.to_owned(), next);
        until
    }

    /// A pull succeeded.
    pub fn pulled(&mut self, image: &str) {
        self.pulls.remove(image);
    }

    /// Why `container` did not start, if it did not.
    pub fn failure(&self, container: &str) -> Option<&Failure> {
        self.failures.get(container)
    }

    /// Remembers why a container did not start.
    pub fn failed(&mut self, container: &str, failure: Failure) {
        self.failures.insert(container.to_owned(), failure);
    }

    /// The container started, or its failure no longer means anything.
    pub fn started(&mut self, container: &str) {
        self.failures.remove(container);
    }

    /// A changed pod object may mend what failed: everything may be tried at once.
    pub fn try_again(&mut self) {
        self.retry_at = None;
        for failure in self.failures.values_mut() {
            failure.retry_at = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str) -> Container {
        Container { name: "c".to_owned(), image: image.to_owned(), ..Default::default() }
    }

    #[test]
    fn crash_looping_container_waits_before_restart_and_longer_each_time() {
        let (c, mut history, mut now) = (container("a"), History::default(), 0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let finished = now;
            if let Some((until, delay)) = history.restart_wait(&c, finished, now) {
                assert_eq!(until, finished + delay);
                now = until;
                assert_eq!(history.restart_wait(&c, finished, now), None, "over at its end");
            }
            waits.push((now - finished) / SECOND);
            history.restarting(&c, finished, now);
            now += SECOND;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn an_instance_killed_for_its_probe_waits_from_the_end_before_it() {
        let (c, mut history, mut now) = (container("a"), History::default(), 0);
        let mut ends: Vec<Nanos> = Vec::new();
        let mut waits = Vec::new();
        for attempt in 0..6 {
            // Killed 15 s after its start each time.
            now += 15 * SECOND;
            let id = ContainerId::from(format!("c{attempt}"));
            history.killed(&c, &id, ends.last().copied(), now);
            ends.push(now);
            let counted = history.counted_end(&c, &id, now);
            let until = counted.and_then(|end| history.restart_wait(&c, end, now)).map_or(now, |w| w.0);
            waits.push((until - now) / SECOND);
            now = until;
            if let Some(end) = counted {
                history.restarting(&c, end, now);
            }
        }
        // No end is known at the first; the second makes a wait of 10 s, which is over by the third; that of 20 s is not.
        assert_eq!(waits, [0, 0, 0, 20, 40, 80]);
    }

    #[test]
    fn ten_good_minutes_forgive() {
        let (c, mut history) = (container("a"), History::default());
        history.restarting(&c, 0, 0);
        history.restarting(&c, SECOND, 11 * SECOND);
        let long_after = 11 * SECOND + 601 * SECOND;
        assert_eq!(history.restart_wait(&c, long_after, long_after), None);
        history.restarting(&c, long_after, long_after);
        assert_eq!(history.restart_wait(&c, long_after, long_after).map(|w| w.1), Some(INITIAL_BACK_OFF));
    }

    #[test]
    fn a_new_image_starts_over() {
        let mut history = History::default();
        history.restarting(&container("a"), 0, 0);
        assert!(history.restart_wait(&container("a"), SECOND, SECOND).is_some());
        assert!(history.restart_wait(&container("b"), SECOND, SECOND).is_none());
    }

    #[test]
    fn pulls_wait_from_the_failure() {
        let mut history = History::default();
        assert_eq!(history.pull_failed("i", 0), 10 * SECOND);
        assert_eq!(history.pull_wait("i", 9 * SECOND), Some(10 * SECOND));
        assert_eq!(history.pull_wait("i", 10 * SECOND), None);
        assert_eq!(history.pull_failed("i", 10 * SECOND), 30 * SECOND);
        history.pulled("i");
        assert_eq!(history.pull_wait("i", 10 * SECOND), None);
    }
}
