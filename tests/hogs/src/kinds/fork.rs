//! Processes that nobody waits for.
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;

use crate::raw;
use crate::report::Run;

pub(crate) fn forever(run: &Run) {
    let limit = run.arguments.count.unwrap_or(u64::MAX);
    let mut children = Vec::new();
    run.count_in("processes");
    while !run.is_over() {
        if children.len() as u64 >= limit {
            run.wait_for_end();
            break;
        }
        match raw::fork_idle() {
            Ok(child) => {
                children.push(child);
                run.did(1);
                run.holds(children.len() as u64);
            }
            // Again at once: this is what a bomb does.
            Err(errno) => run.was_refused(errno),
        }
    }
    for child in &children {
        let _ = kill(*child, Signal::SIGKILL);
    }
    for child in children {
        let _ = waitpid(child, None);
    }
}
