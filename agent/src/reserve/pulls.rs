//! While an image is pulled, containerd writes no faster than pods may: unpacking is what stalls an SD card longest.

use std::sync::Arc;

use cgroup::Standing;

/// A pull that runs; it ends with the value.
#[derive(Debug)]
pub(crate) struct Pulling(Arc<Standing>);

impl Pulling {
    /// Returns at once; the limit follows.
    pub(crate) fn begin(standing: &Arc<Standing>) -> Pulling {
        let this = Pulling(Arc::clone(standing));
        this.set(true);
        this
    }

    fn set(&self, on: bool) {
        if !self.0.set_pulling(on) {
            return;
        }
        let standing = Arc::clone(&self.0);
        let sync = move || {
            if let Err(error) = standing.sync_pulls() {
                tracing::debug!(error = %crate::telemetry::chain(&error), on, "throughput of image pulls not limited");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn_blocking(sync)),
            Err(_) => sync(),
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.set(false);
    }
}
