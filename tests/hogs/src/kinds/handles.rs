//! Things a process, a user or the machine has only so many of.
use std::fs::File;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::machine;
use crate::report::Run;

pub(crate) fn files(run: &Run) {
    run.count_in("files");
    collect(run, || File::open("/dev/null"));
}

/// Instances with a watch each: they are counted by user, and a container's root is the node's.
pub(crate) fn inotify(run: &Run) {
    run.count_in("instances");
    collect(run, || {
        let instance = Inotify::init(InitFlags::IN_CLOEXEC)?;
        instance.add_watch("/", AddWatchFlags::IN_CREATE)?;
        Ok(instance)
    });
}

/// Makes and keeps until refused, then keeps asking.
fn collect<T>(run: &Run, mut make: impl FnMut() -> std::io::Result<T>) {
    machine::open_files_to_the_limit();
    let limit = run.arguments.count.unwrap_or(u64::MAX);
    let mut held = Vec::new();
    while !run.is_over() {
        if held.len() as u64 >= limit {
            return run.wait_for_end();
        }
        match make() {
            Ok(one) => {
                held.push(one);
                run.did(1);
                run.holds(held.len() as u64);
            }
            Err(error) => {
                run.was_refused_io(&error);
                run.pause(Duration::from_millis(10));
            }
        }
    }
}
