//! Spawning, at one copy of the scheduler's code instead of one per future.

use std::pin::Pin;

use tokio::task::JoinHandle;

/// As `tokio::spawn`, through a box: each future type spawned directly is another copy of tokio's task code, several
/// kilobytes in a binary that has to stay small.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let boxed: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(future);
    tokio::spawn(boxed)
}
