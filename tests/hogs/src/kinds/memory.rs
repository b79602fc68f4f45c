//! Anonymous memory that zram cannot make smaller. Pages are copies of one block of noise, so that filling is as fast as memory.
use std::time::Duration;

use super::noise;
use crate::machine;
use crate::report::Run;

const PAGE: usize = 4096;
/// Bytes taken at once: small against any board, large against the cost of a call.
const PIECE: usize = 1 << 20;

/// Full speed to `bytes`, then over them again and again.
pub(crate) fn fast(run: &Run, bytes: u64) {
    let mut held = Held::new();
    while held.bytes() < bytes && !run.is_over() {
        held.grow(run);
    }
    held.touch_until_over(run);
}

/// A ramp, then a loop over the set.
pub(crate) fn slow(run: &Run) {
    let rate = run.arguments.rate.unwrap_or(10 << 20);
    let bytes = run.arguments.bytes.unwrap_or(machine::memory() + machine::swap() / 2);
    let mut held = Held::new();
    while held.bytes() < bytes && !run.is_over() {
        if held.bytes() as f64 >= run.elapsed().as_secs_f64() * rate as f64 {
            run.pause(Duration::from_millis(5));
        } else {
            held.grow(run);
        }
    }
    held.touch_until_over(run);
}

struct Held {
    noise: Vec<u8>,
    pieces: Vec<Vec<u8>>,
}

impl Held {
    fn new() -> Self {
        Self { noise: noise(PIECE), pieces: Vec::new() }
    }

    fn bytes(&self) -> u64 {
        (self.pieces.len() * PIECE) as u64
    }

    /// Takes and fills one piece more; a refusal is counted and waited for.
    fn grow(&mut self, run: &Run) {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(PIECE).is_err() || self.pieces.try_reserve(1).is_err() {
            run.was_refused(nix::errno::Errno::ENOMEM);
            run.pause(Duration::from_millis(10));
            return;
        }
        let began = std::time::Instant::now();
        piece.extend_from_slice(&self.noise);
        run.took(began.elapsed());
        self.pieces.push(piece);
        run.did(PIECE as u64);
        run.holds(self.bytes());
    }

    /// Writes to each page in turn, so that one that was swapped out comes in and has to go out again.
    fn touch_until_over(&mut self, run: &Run) {
        if self.pieces.is_empty() {
            return run.wait_for_end();
        }
        while !run.is_over() {
            for piece in &mut self.pieces {
                let began = std::time::Instant::now();
                for page in piece.chunks_mut(PAGE) {
                    page[0] = page[0].wrapping_add(1);
                }
                std::hint::black_box(&piece);
                run.took(began.elapsed());
                run.did(PIECE as u64);
                if run.is_over() {
                    return;
                }
            }
        }
    }
}
