//! How many commands may be starting in containers at once.
//!
//! Each start is a shim's call of runc, and twenty at once were seen to grow containerd to 352 MiB: probes of fifty pods, or a
//! script that calls `kubectl exec` in parallel, would take a small board's memory from what keeps its pods. A command that
//! runs longer than starting takes stands in nobody's way.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Commands starting at once.
pub const AT_ONCE: usize = 4;
/// A command that has not ended by then counts as started.
pub const STARTED: Duration = Duration::from_secs(2);

/// Hands out places, first come, first served.
#[derive(Clone)]
pub(crate) struct Starts(Arc<Semaphore>);

/// Leave to start one command; given back when dropped.
#[derive(Debug, Default)]
pub struct Place {
    _held: Option<OwnedSemaphorePermit>,
}

impl Starts {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Waits until fewer than [`AT_ONCE`] commands are starting.
    pub(crate) async fn place(&self) -> Place {
        // An error means closed, which nobody does.
        Place { _held: Arc::clone(&self.0).acquire_owned().await.ok() }
    }
}

impl Place {
    /// Runs what this place was taken for, and gives the place back when that ends or [`STARTED`] has passed.
    pub async fn during<T>(self, command: impl Future<Output = T>) -> T {
        let mut command = std::pin::pin!(command);
        if let Ok(done) = tokio::time::timeout(STARTED, &mut command).await {
            return done;
        }
        drop(self);
        command.await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_start_at_once() {
        let starts = Starts::new();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(timeout(SOON, starts.place()).await.expect("a free place"));
        }
        assert!(timeout(STARTED * 9, starts.place()).await.is_err(), "one too many");
        held.pop();
        timeout(SOON, starts.place()).await.expect("the place given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_when_the_command_ends_and_at_the_latest_when_it_has_started() {
        let starts = Starts::new();
        let mut running = Vec::new();
        for lasts in [Duration::from_millis(300), STARTED * 2, STARTED * 3] {
            let place = starts.place().await;
            running.push(tokio::spawn(place.during(async move {
                sleep(lasts).await;
                lasts
            })));
        }
        let endless = tokio::spawn(starts.place().await.during(pending::<()>()));
        let began = Instant::now();
        let first = starts.place().await;
        assert_eq!(began.elapsed().as_millis(), 300, "the first to end makes room");
        let (_second, _third, _fourth) = (starts.place().await, starts.place().await, starts.place().await);
        assert_eq!(began.elapsed(), STARTED, "the others have started");
        drop(first);
        for (task, lasts) in running.into_iter().zip([Duration::from_millis(300), STARTED * 2, STARTED * 3]) {
            assert_eq!(task.await.expect("runs to its end"), lasts);
        }
        endless.abort();
    }
}
