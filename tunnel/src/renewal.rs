//! When certificates are renewed, and the loop that has it done: in the running process, well before they end.
//!
//! A kubelet renews a certificate after 70 to 90 % of its life, each at a point of its own so that a fleet that was
//! installed in one day does not return in one minute. `k3s agent` renews only when it starts (k3s-agent.md 2.8); the server permits it at
//! any time.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backoff::{Backoff, jitter};

/// Share of a certificate's life after which it is renewed at the earliest.
pub const FRACTION: f64 = 0.7;
/// No certificate is renewed again sooner, whatever the fraction says.
pub const SPACING: Duration = Duration::from_secs(60);
/// The wall clock is looked at this often while nothing is due: it may be set, or stand still in a suspended machine.
const LOOK: Duration = Duration::from_secs(3600);

/// The wall clock, so that a test can bring its own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's.
    pub fn system() -> Clock {
        Clock::from_fn(SystemTime::now)
    }

    /// Any other.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// What it shows.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

/// From when to when a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub from: SystemTime,
    /// `notAfter`.
    pub until: SystemTime,
}

impl Validity {
    /// When it is to be renewed: after `fraction` of its life and up to two thirds of the rest, as `jitter` (0 to 1) says. A
    /// fraction of 0 is at once, of 0.7 what a kubelet does.
    pub fn due_at(&self, fraction: f64, jitter: f64) -> SystemTime {
        let life = self.until.duration_since(self.from).unwrap_or_default();
        let fraction = fraction.clamp(0.0, 1.0);
        let spread = fraction.min(1.0 - fraction) * 2.0 / 3.0;
        self.from + life.mul_f64(fraction + spread * jitter.clamp(0.0, 1.0))
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// One of the certificates is due.
    Renew,
    /// None is; look again after this.
    Wait(Duration),
}

/// Decides for all certificates of a node together, which are renewed together. `rested` is how long ago they were got,
/// by a clock that nobody sets; None: by an earlier process.
pub fn decide(now: SystemTime, certificates: &[Validity], fraction: f64, jitter: f64, rested: Option<Duration>) -> Decision {
    let rest = rested.map_or(Duration::ZERO, |rested| SPACING.saturating_sub(rested));
    let due = certificates.iter().map(|c| c.due_at(fraction, jitter)).min();
    let wait = due.map_or(Duration::ZERO, |due| due.duration_since(now).unwrap_or_default()).max(rest);
    if wait.is_zero() { Decision::Renew } else { Decision::Wait(wait.min(LOOK)) }
}

/// What [`keep`] goes by.
#[derive(Debug)]
pub struct Options {
    /// Share of a certificate's life after which it is renewed, 0 to 1: [`FRACTION`].
    pub fraction: f64,
    /// The wall clock.
    pub clock: Clock,
    /// Renew first of all, whatever the certificates say.
    pub at_once: bool,
    /// The certificates were got by this process just now.
    pub fresh: bool,
    /// Something changed that may let a renewal succeed that has just failed, or the clock was set.
    pub wake: Arc<Notify>,
    /// Between failed attempts, first and longest.
    pub retry: (Duration, Duration),
}

/// Renews for ever. `renew` gets new certificates, puts them to use and returns their validities, or says what is in the
/// way.
pub async fn keep<F>(options: Options, mut certificates: Vec<Validity>, mut renew: impl FnMut() -> F) -> Infallible
where
    F: Future<Output = Result<Vec<Validity>, String>>,
{
    let (first, longest) = options.retry;
    let mut backoff = Backoff::new(first, longest, Duration::MAX);
    let mut at_once = options.at_once;
    let mut got = options.fresh.then(Instant::now);
    let mut point = jitter();
    let mut problem = String::new();
    loop {
        let now = options.clock.now();
        let decision = decide(now, &certificates, options.fraction, point, got.map(|at| at.elapsed()));
        if let (false, Decision::Wait(wait)) = (at_once, decision) {
            // Either arm leads to another look; neither carries anything.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = options.wake.notified() => {}
            }
            continue;
        }
        match renew().await {
            Ok(renewed) => {
                certificates = renewed;
                at_once = false;
                got = Some(Instant::now());
                point = jitter();
                backoff = Backoff::new(first, longest, Duration::MAX);
                problem.clear();
            }
            Err(error) => {
                let retry_in = backoff.next(Duration::ZERO, jitter());
                if error == problem {
                    tracing::debug!(error, ?retry_in, "certificates not renewed yet");
                } else {
                    let left = certificates.iter().filter_map(|c| c.until.duration_since(now).ok()).min().unwrap_or_default();
                    tracing::warn!(error, ?retry_in, left_hours = left.as_secs() / 3600, "certificates not renewed yet");
                    problem = error;
                }
                tokio::select! {
                    () = tokio::time::sleep(retry_in) => {}
                    () = async {
                        options.wake.notified().await;
                        // What woke us wakes every node of the cluster.
                        tokio::time::sleep(first.mul_f64(0.5 * jitter())).await;
                    } => {}
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
