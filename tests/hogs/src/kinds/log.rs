//! More lines than anybody reads.
use std::io::Write;
use std::time::{Duration, Instant};

use crate::report::Run;

const LINE: usize = 1000;
const LINES: usize = 256;

pub(crate) fn lines(run: &Run) {
    let rate = run.arguments.rate.unwrap_or(50 << 20) as f64;
    let mut line = vec![b'x'; LINE - 1];
    line.push(b'\n');
    let block = line.repeat(LINES);
    let mut written = 0u64;
    while !run.is_over() {
        if written as f64 >= run.elapsed().as_secs_f64() * rate {
            run.pause(Duration::from_millis(1));
            continue;
        }
        let began = Instant::now();
        let out = std::io::stdout().lock().write_all(&block);
        run.took(began.elapsed());
        match out {
            Ok(()) => {
                written += block.len() as u64;
                run.did(block.len() as u64);
            }
            Err(error) => {
                run.was_refused_io(&error);
                run.pause(Duration::from_millis(10));
            }
        }
    }
}
