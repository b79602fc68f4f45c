//! Recorded boards replayed through the law: the orders and states it gives are those written down beside the trace.
//!
//! A trace is a file of lines as `cargo run -p cgroup --example record` prints them, after a first line with the board's [`Settings`]. After a
//! wanted change of the law `REPLAY_ACCEPT=1 cargo test -p cgroup replay` writes the new orders; look at the difference before it is committed.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Law, Pod, Sample, Settings, State, Target};

#[derive(Deserialize)]
struct First {
    settings: Settings,
}

#[derive(Deserialize)]
struct Line {
    sample: Sample,
    #[serde(default)]
    pods: Vec<Pod>,
}

fn replay(trace: &str) -> String {
    let mut lines = trace.lines();
    let first: First = serde_json::from_str(lines.next().expect("settings")).expect("settings");
    let mut law = Law::new(first.settings);
    let mut state = State::Calm;
    let mut out = String::new();
    for line in lines {
        let Line { sample, pods } = serde_json::from_str(line).expect("a sample");
        law.observe(&sample);
        let orders = law.decide(if law.wants_pods() { &pods } else { &[] });
        let at = sample.at.as_secs_f64();
        for order in orders {
            let whom = match order.action.target() {
                Target::Pod { uid, .. } => uid,
                Target::BestEffort => "besteffort",
                Target::Burstable => "burstable",
                Target::Kubepods => "kubepods",
            };
            writeln!(out, "{at:.2} {} {} {whom}: {}", order.resource.as_str(), order.action.name(), order.why).expect("written");
        }
        if law.state() != state {
            state = law.state();
            writeln!(out, "{at:.2} is {}", state.as_str()).expect("written");
        }
    }
    writeln!(out, "ends {}, holds {}", law.state().as_str(), law.held().count()).expect("written");
    out
}

fn traces() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let entries = fs::read_dir(dir).expect("there are traces");
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.expect("read").path()).filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
    found.sort();
    found
}

#[test]
fn recorded_boards_get_the_orders_that_are_written_down() {
    let traces = traces();
    assert!(!traces.is_empty());
    for path in traces {
        let orders = replay(&fs::read_to_string(&path).expect("read"));
        let golden = path.with_extension("orders");
        if std::env::var_os("REPLAY_ACCEPT").is_some() {
            fs::write(&golden, &orders).expect("written");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(orders, expected, "{}", path.display());
    }
}
