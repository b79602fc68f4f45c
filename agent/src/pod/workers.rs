//! Pod UID to worker: started, told, retired.

use tokio::sync::watch;

use super::{Deps, View};
use crate::assignments::Assignments;

/// All pod workers of this node.
pub struct Workers {
    _deps: Deps,
    view: View,
}

impl Workers {
    /// Nothing runs until [`Workers::run`].
    pub fn new(deps: Deps) -> Workers {
        Workers { _deps: deps, view: View::default() }
    }

    /// What the workers see, for readers.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Runs until `stop` becomes true. Stopping leaves every pod running.
    pub async fn run(self, assignments: watch::Receiver<Assignments>, mut stop: watch::Receiver<bool>) {
        let _ = assignments;
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
