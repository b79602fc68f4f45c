//! `edge-server`: reads the command line, starts the server, and says what is wrong when that fails.

use std::process::ExitCode;

use clap::Parser;
use server::app::{self, Options};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(if options.debug { LevelFilter::DEBUG } else { LevelFilter::INFO })
        .with_ansi(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no async runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(app::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "edge-server ended");
            ExitCode::FAILURE
        }
    }
}
