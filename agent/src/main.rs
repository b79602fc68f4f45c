//! `edge-agent`: parse, act, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    agent::memory::tune();
    let cli = agent::cli::Cli::parse();
    if matches!(cli.command, agent::cli::Command::Run(_)) {
        agent::memory::without_thread_caches();
    }
    match agent::commands::run(cli, started) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            agent::commands::complain(&error);
            ExitCode::from(agent::commands::exit_code(&error))
        }
    }
}
