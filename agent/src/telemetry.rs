//! Logs, and errors with their whole chain.

mod output;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use output::Output;
pub use output::dropped;

/// Logs to the journal, else to standard error, without ever waiting for them; `RUST_LOG` wins over `debug`. Under the journal lines
/// carry no time, it has one already.
pub fn start(debug: bool) {
    let ours = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let quiet = ["h2", "hyper", "hyper_util", "rustls", "tonic", "tower", "tokio_tungstenite", "tungstenite"];
    let default =
        || quiet.into_iter().fold(Targets::new().with_default(ours), |targets, name| targets.with_target(name, LevelFilter::WARN));
    let targets = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok()).unwrap_or_else(default);
    let output = Output::of_process();
    let timed = !output.is_journal();
    let layer = fmt::layer().with_writer(output).with_ansi(false);
    let layer = if timed { layer.boxed() } else { layer.without_time().boxed() };
    // A second call, in tests, changes nothing.
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
}

/// The cause chain of an error on one line; a cause that its effect already quotes is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}
