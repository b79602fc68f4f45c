//! Everything at once: each part a process of its own, so that one that is killed leaves the others, and is started again.
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Failed;
use crate::report::Run;

/// The bomb comes last: it leaves room for nobody.
const PARTS: [&str; 4] = ["cpu", "mem-slow", "write", "fork"];

pub(crate) fn all(run: &Run) -> Result<(), Failed> {
    let program = std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?;
    run.count_in("starts");
    let mut parts: Vec<(&str, Option<Child>)> = PARTS.iter().map(|kind| (*kind, None)).collect();
    while !run.is_over() {
        for (kind, child) in &mut parts {
            let ended = child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if !ended {
                continue;
            }
            let left = run.arguments.length.saturating_sub(run.elapsed()).as_secs_f64().max(0.1);
            match command(run, kind, left, &program).spawn() {
                Ok(started) => {
                    *child = Some(started);
                    run.did(1);
                }
                Err(error) => {
                    *child = None;
                    run.was_refused_io(&error);
                }
            }
        }
        run.holds(parts.iter().filter(|(_, child)| child.is_some()).count() as u64);
        run.pause(Duration::from_millis(200));
    }
    for (_, child) in &mut parts {
        if let Some(child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    Ok(())
}

/// Limits given to the storm hold for each part that knows them.
fn command(run: &Run, kind: &str, seconds: f64, program: &std::path::Path) -> Command {
    let arguments = &run.arguments;
    let mut command = Command::new(program);
    command.args(["--child", "--kind", kind, "--seconds", &seconds.to_string(), "--report", &arguments.report.as_secs_f64().to_string()]);
    command.arg("--dir").arg(&arguments.dir);
    for (name, value) in [("--bytes", arguments.bytes), ("--rate", arguments.rate), ("--count", arguments.count)] {
        if let Some(value) = value {
            command.arg(name).arg(value.to_string());
        }
    }
    if let Some(threads) = arguments.threads {
        command.arg("--threads").arg(threads.to_string());
    }
    command.stdin(Stdio::null());
    command
}
