//! What the project promises in numbers, measured on this machine with the release binaries and real containerd.
//!
//! `cargo bench --package edge-agent-tests -- [size|start|footprint|ready|wire|server]... [--pairs N] [--window SECONDS]`;
//! without names all of them. Needs what the whole-system tests need (see `it/system`): root, containerd, EDGE_IMAGES.
//! Each line is one number, with its limit where there is one; a missed limit is said, and is no failure: timings of one
//! run on a busy machine prove nothing.

mod api;
mod footprint;
mod ready;
mod report;
mod server;
mod size;
mod start;
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../it/system/mod.rs"]
mod system;
mod wire;

use std::time::Duration;

use system::Machine;

/// What the command line asks for.
struct Choice {
    names: Vec<String>,
    /// Pairs of single pod starts.
    pairs: usize,
    /// Rounds of thirty at once.
    rounds: usize,
    /// How long idle things are watched.
    window: Duration,
}

type Bench = fn(&Machine, &Choice);

const ALL: [(&str, Bench); 6] = [
    ("size", size::run),
    ("start", start::run),
    ("ready", ready::run),
    ("wire", wire::run),
    ("footprint", footprint::run),
    ("server", server::run),
];

fn main() {
    let choice = match parse(std::env::args().skip(1)) {
        Ok(choice) => choice,
        Err(problem) => {
            eprintln!("{problem}");
            std::process::exit(2);
        }
    };
    let chosen: Vec<_> =
        ALL.iter().filter(|(name, _)| choice.names.is_empty() || choice.names.iter().any(|wanted| wanted == name)).collect();
    for (name, bench) in chosen {
        system::run(name, |machine| bench(machine, &choice));
    }
}

fn parse(args: impl Iterator<Item = String>) -> Result<Choice, String> {
    let mut choice = Choice { names: Vec::new(), pairs: 200, rounds: 5, window: Duration::from_secs(60) };
    // Cargo adds --bench by itself.
    let mut args = args.filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut number =
            || args.next().and_then(|text| text.parse::<usize>().ok()).filter(|n| *n > 0).ok_or(format!("{arg} needs a number above 0"));
        match arg.as_str() {
            "--pairs" => choice.pairs = number()?,
            "--rounds" => choice.rounds = number()?,
            "--window" => choice.window = Duration::from_secs(number()? as u64),
            name if ALL.iter().any(|(known, _)| *known == name) => choice.names.push(arg),
            other => {
                let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
                return Err(format!("{other} is none of {}, --pairs, --rounds, --window", known.join(", ")));
            }
        }
    }
    Ok(choice)
}
