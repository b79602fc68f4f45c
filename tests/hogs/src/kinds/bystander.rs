//! A pod that minds its own business: the same piece of work so many times a second. What it loses, a hog took. A piece that
//! comes too late is left out, so `rate` falls below what was asked for as soon as the machine cannot keep up.
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::noise;
use crate::report::Run;

/// Share of a core that all pieces together take.
const DUTY: f64 = 0.1;

pub(crate) fn work(run: &Run) {
    let rate = run.arguments.rate.unwrap_or(50).clamp(1, 10_000);
    let period = Duration::from_secs_f64(1.0 / rate as f64);
    let mut memory = noise(usize::try_from(run.arguments.bytes.unwrap_or(4 << 20)).unwrap_or(4 << 20));
    let pages = pages_for(period.mul_f64(DUTY), &mut memory);
    run.count_in("pieces");
    run.holds(memory.len() as u64);
    let mut due = Instant::now();
    let mut at = 0;
    while !run.is_over() {
        let now = Instant::now();
        if now < due {
            run.pause(due - now);
            continue;
        }
        at = piece(&mut memory, at, pages);
        run.took(due.elapsed());
        run.did(1);
        due += period;
        // Late by more than one: those in between are lost.
        let lost = due.elapsed().as_nanos() / period.as_nanos().max(1);
        due += period * u32::try_from(lost).unwrap_or(u32::MAX);
    }
}

/// Adds up whole pages and writes to each, going round: all of its memory is in use.
fn piece(memory: &mut [u8], from: usize, pages: usize) -> usize {
    let all = memory.len() / 4096;
    for page in from..from + pages {
        let start = page % all.max(1) * 4096;
        let end = (start + 4096).min(memory.len());
        let page = &mut memory[start..end];
        let sum = page.iter().fold(0u8, |sum, byte| black_box(sum.wrapping_add(*byte)));
        if let Some(first) = page.first_mut() {
            *first = sum;
        }
    }
    (from + pages) % all.max(1)
}

/// How many pages make a piece of that length, by the fastest of some tries on this machine as it is now.
fn pages_for(length: Duration, memory: &mut [u8]) -> usize {
    const TRY: usize = 64;
    let fastest = (0..8)
        .map(|_| {
            let began = Instant::now();
            piece(memory, 0, TRY);
            began.elapsed()
        })
        .min()
        .unwrap_or(length);
    let pages = length.as_secs_f64() / (fastest.as_secs_f64() / TRY as f64).max(1e-9);
    (pages as usize).clamp(1, 1 << 20)
}
