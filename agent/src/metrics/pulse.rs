//! When the loops that must never stand still turned last; `/healthz` asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Turns of the two loops, in milliseconds after `began`; 0: not yet.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    sync: AtomicU64,
    lease: AtomicU64,
}

/// A loop of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// Hands assignments and events to the pods' workers, and reached the container runtime.
    Sync,
    /// Tried to renew the lease, with whatever success.
    Lease,
}

impl Loop {
    /// Longer than this between two turns means that it stands still. The kubelet gives its loop five minutes; a lease
    /// is tried every ten seconds.
    fn limit(self) -> Duration {
        match self {
            Loop::Sync => Duration::from_secs(300),
            Loop::Lease => Duration::from_secs(60),
        }
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), sync: AtomicU64::new(0), lease: AtomicU64::new(0) }
    }
}

impl Pulse {
    fn of(&self, which: Loop) -> &AtomicU64 {
        match which {
            Loop::Sync => &self.sync,
            Loop::Lease => &self.lease,
        }
    }

    /// This loop turned.
    pub fn turned(&self, which: Loop) {
        self.turned_at(which, Instant::now());
    }

    fn turned_at(&self, which: Loop, now: Instant) {
        let millis = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        self.of(which).store(millis.max(1), Ordering::Relaxed);
    }

    /// Why this loop is not well, if it is not. One that has not begun yet is well: the node is still coming up.
    pub fn trouble(&self, which: Loop) -> Option<String> {
        self.trouble_at(which, Instant::now())
    }

    fn trouble_at(&self, which: Loop, now: Instant) -> Option<String> {
        let last = self.of(which).load(Ordering::Relaxed);
        let quiet = now.saturating_duration_since(self.began).saturating_sub(Duration::from_millis(last));
        if last == 0 || quiet <= which.limit() {
            return None;
        }
        let (quiet, limit) = (quiet.as_secs(), which.limit().as_secs());
        Some(match which {
            Loop::Sync => format!(
                "sync loop took longer than expected: last turn {quiet} s ago, limit {limit} s; does containerd answer? journalctl -u containerd"
            ),
            Loop::Lease => format!("lease not tried for {quiet} s, limit {limit} s; restart edge-agent, its pods run on"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_told_after_its_limit() {
        let pulse = Pulse::default();
        let at = |seconds| pulse.began + Duration::from_secs(seconds);
        assert_eq!(pulse.trouble_at(Loop::Sync, at(9_999)), None, "not begun yet");
        pulse.turned_at(Loop::Sync, at(1));
        pulse.turned_at(Loop::Lease, at(100));
        assert_eq!(pulse.trouble_at(Loop::Sync, at(301)), None);
        assert!(pulse.trouble_at(Loop::Sync, at(302)).is_some_and(|why| why.contains("301 s ago")));
        assert_eq!(pulse.trouble_at(Loop::Lease, at(159)), None);
        assert!(pulse.trouble_at(Loop::Lease, at(161)).is_some_and(|why| why.contains("61 s")));
        pulse.turned_at(Loop::Lease, at(161));
        assert_eq!(pulse.trouble_at(Loop::Lease, at(162)), None);
    }
}
