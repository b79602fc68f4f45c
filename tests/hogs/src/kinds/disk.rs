//! A file system with no space, and one with no inodes.
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Failed, noise};
use crate::report::Run;

/// Files in one directory.
const DIRECTORY: u64 = 1000;
/// Space taken at once, at first.
const PIECE: u64 = 256 << 20;

/// Takes space in large pieces without writing to it, as that would take a card minutes, then writes until there is not a
/// block left, and keeps trying. What was taken stays, as it would.
pub(crate) fn fill(run: &Run) -> Result<(), Failed> {
    let limit = run.arguments.bytes.unwrap_or(u64::MAX);
    let block = noise(1 << 20);
    let path = run.arguments.dir.join("hog-disk");
    let mut file = File::create(&path).map_err(|error| begins_with(&path, &error))?;
    let (mut length, mut written) = (block.len(), 0u64);
    let mut piece = PIECE;
    while piece >= block.len() as u64 && !run.is_over() {
        if written + piece <= limit && take(&file, written, piece).is_ok() {
            written += piece;
            run.did(piece);
            run.holds(written);
        } else {
            piece /= 2;
        }
    }
    file.seek(std::io::SeekFrom::Start(written)).map_err(|error| begins_with(&path, &error))?;
    while !run.is_over() {
        if written >= limit {
            run.wait_for_end();
            break;
        }
        let began = Instant::now();
        let outcome = file.write(&block[..length]);
        run.took(began.elapsed());
        match outcome {
            Ok(bytes) => {
                written += bytes as u64;
                run.did(bytes as u64);
                run.holds(written);
            }
            Err(error) => {
                run.was_refused_io(&error);
                length = 4 << 10;
                run.pause(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

/// Space without contents; a file system that cannot give it has it written instead.
fn take(file: &File, from: u64, length: u64) -> Result<(), Errno> {
    let offset = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
    fallocate(file, FallocateFlags::empty(), offset(from)?, offset(length)?)
}

/// Empty files until there are `--count`, or no more can be made.
pub(crate) fn names(run: &Run) -> Result<(), Failed> {
    let limit = run.arguments.count.unwrap_or(1_000_000);
    run.count_in("files");
    let (mut made, mut dir) = (0u64, run.arguments.dir.join("hog-inode-0"));
    std::fs::create_dir_all(&dir).map_err(|error| begins_with(&dir, &error))?;
    while !run.is_over() {
        if made >= limit {
            run.wait_for_end();
            break;
        }
        let outcome = if made % DIRECTORY == 0 {
            dir.set_file_name(format!("hog-inode-{}", made / DIRECTORY));
            std::fs::create_dir_all(&dir)
        } else {
            Ok(())
        };
        let began = Instant::now();
        let outcome = outcome.and_then(|()| File::create(dir.join(made.to_string())));
        run.took(began.elapsed());
        match outcome {
            Ok(_) => {
                made += 1;
                run.did(1);
                run.holds(made);
            }
            Err(error) => {
                run.was_refused_io(&error);
                run.pause(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

fn begins_with(path: &Path, error: &std::io::Error) -> Failed {
    format!("{}: {error}; --dir names a directory to write to", path.display())
}
