//! What each kind does until its time is over.
mod bystander;
mod cache;
mod connections;
mod disk;
mod fork;
mod handles;
mod log;
mod memory;
mod processor;
mod sampler;
mod storm;
mod write;

use crate::arguments::Kind;
use crate::machine;
use crate::report::Run;

/// Why a hog could not even begin.
pub(crate) type Failed = String;

pub(crate) fn run(run: &Run) -> Result<(), Failed> {
    match run.arguments.kind {
        Kind::Cpu => processor::busy(run),
        Kind::Rt => processor::real_time(run),
        Kind::Fork => fork::forever(run),
        Kind::MemFast => memory::fast(run, run.arguments.bytes.unwrap_or(machine::memory() * 2)),
        Kind::MemSlow => memory::slow(run),
        Kind::MemOwn => memory::fast(run, run.arguments.bytes.unwrap_or(machine::own_limit().saturating_mul(2))),
        Kind::Cache | Kind::CacheMap => return cache::read(run),
        Kind::Write | Kind::WriteFsync => return write::ring(run),
        Kind::Fd => handles::files(run),
        Kind::Inotify => handles::inotify(run),
        Kind::Log => log::lines(run),
        Kind::Disk => return disk::fill(run),
        Kind::Inode => return disk::names(run),
        Kind::Conn => return connections::open(run),
        Kind::Sink => return connections::accept(run),
        Kind::Storm => return storm::all(run),
        Kind::Bystander => bystander::work(run),
        Kind::Sampler => return sampler::watch(run),
    }
    Ok(())
}

/// Bytes that no compression makes smaller, the same each time (xorshift64*).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(length.next_multiple_of(8));
    while out.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(length);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_every_byte_about_equally_often() {
        let mut seen = [0u32; 256];
        for byte in noise(64 << 10) {
            seen[usize::from(byte)] += 1;
        }
        assert!(seen.iter().all(|times| (150..370).contains(times)), "{seen:?}");
    }
}
