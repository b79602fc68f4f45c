//! Signals to one flag.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Becomes true at SIGTERM or SIGINT. A second signal ends the process at once.
pub fn on_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let (set, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    crate::task::spawn(async move {
        for second in [false, true] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if second {
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping; pods keep running");
            set.send_replace(true);
        }
    });
    Ok(stop)
}
