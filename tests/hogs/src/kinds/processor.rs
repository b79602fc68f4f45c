//! Busy threads.
use std::hint::black_box;
use std::thread;

use crate::report::Run;
use crate::{machine, raw};

/// Rounds between two looks at the clock: some milliseconds, also on an emulated board.
const ROUNDS: u64 = 1 << 20;

pub(crate) fn busy(run: &Run) {
    let threads = run.arguments.threads.unwrap_or(machine::cores() * 2);
    run.count_in("rounds");
    thread::scope(|scope| {
        let mut running = 1;
        for _ in 1..threads {
            match thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, || spin(run)) {
                Ok(_) => running += 1,
                Err(error) => run.was_refused_io(&error),
            }
        }
        run.holds(running);
        spin(run);
    });
}

/// The same at real-time priority; where that is refused it is counted and the threads are ordinary ones.
pub(crate) fn real_time(run: &Run) {
    if let Err(errno) = raw::real_time() {
        run.was_refused(errno);
    }
    busy(run);
}

fn spin(run: &Run) {
    let mut state = 1u64;
    while !run.is_over() {
        for _ in 0..ROUNDS {
            state = black_box(state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1));
        }
        run.did(ROUNDS);
    }
}
