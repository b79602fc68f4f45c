//! The killer of SD cards: a ring of buffered writes, or of small ones that each wait for the disk.
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use super::{Failed, noise};
use crate::arguments::Kind;
use crate::machine;
use crate::report::Run;

pub(crate) fn ring(run: &Run) -> Result<(), Failed> {
    let synced = run.arguments.kind == Kind::WriteFsync;
    let block = noise(if synced { 4 << 10 } else { 1 << 20 });
    let wanted = run.arguments.bytes.unwrap_or(1 << 30).min(machine::free_space(&run.arguments.dir) / 2);
    let path = run.arguments.dir.join(format!("hog-{}", run.arguments.kind.name()));
    let mut file: File = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)
        .map_err(|error| format!("{}: {error}; --dir names a directory to write to", path.display()))?;
    let mut at = 0;
    while !run.is_over() {
        let began = Instant::now();
        let written = file.write_all(&block).and_then(|()| if synced { file.sync_data() } else { Ok(()) });
        run.took(began.elapsed());
        match written {
            Ok(()) => {
                run.did(block.len() as u64);
                at += block.len() as u64;
                if at >= wanted {
                    at = 0;
                    let _ = file.rewind();
                }
                run.holds(at);
            }
            Err(error) => {
                run.was_refused_io(&error);
                run.pause(Duration::from_millis(10));
                at = 0;
                let _ = file.rewind();
            }
        }
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}
