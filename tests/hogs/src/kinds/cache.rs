//! Files read in a loop, so that the page cache holds nothing else. Own files are holes: they fill the cache as fast as memory
//! and cost no space. Those below `--tree` are on the disk, so that it is busy too.
use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;

use super::Failed;
use crate::arguments::Kind;
use crate::report::Run;
use crate::{machine, raw};

const FILE: u64 = 64 << 20;
const PAGE: usize = 4096;

pub(crate) fn read(run: &Run) -> Result<(), Failed> {
    let mut own = Vec::new();
    if run.arguments.tree.is_none() {
        let bytes = run.arguments.bytes.unwrap_or(machine::memory() * 3);
        for number in 0..bytes.div_ceil(FILE) {
            let path = run.arguments.dir.join(format!("hog-cache-{number}"));
            let made = File::create(&path).and_then(|file| file.set_len(FILE.min(bytes - number * FILE)));
            made.map_err(|error| format!("{}: {error}; --dir names a directory for files", path.display()))?;
            own.push(path);
        }
    }
    let mut buffer = vec![0; 1 << 20];
    while !run.is_over() {
        let before = run.done();
        match &run.arguments.tree {
            Some(tree) => below(run, tree, &mut buffer),
            None => own.iter().for_each(|path| one(run, path, &mut buffer)),
        }
        if run.done() == before && !run.is_over() {
            return Err("nothing to read: --tree names a directory with files".to_owned());
        }
    }
    for path in own {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Every regular file below a directory; links are not followed.
fn below(run: &Run, dir: &Path, buffer: &mut [u8]) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if run.is_over() {
            return;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => below(run, &entry.path(), buffer),
            Ok(kind) if kind.is_file() => one(run, &entry.path(), buffer),
            _ => {}
        }
    }
}

fn one(run: &Run, path: &Path, buffer: &mut [u8]) {
    let outcome = File::open(path)
        .and_then(|file| if run.arguments.kind == Kind::CacheMap { mapped(run, &file) } else { plainly(run, file, buffer) });
    if let Err(error) = outcome {
        run.was_refused_io(&error);
    }
}

fn plainly(run: &Run, mut file: File, buffer: &mut [u8]) -> std::io::Result<()> {
    while !run.is_over() {
        match file.read(buffer)? {
            0 => break,
            length => run.did(length as u64),
        }
    }
    Ok(())
}

fn mapped(run: &Run, file: &File) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let size = usize::try_from(length).map_err(|_| Errno::EFBIG)?;
    if size > 0 {
        std::hint::black_box(raw::read_mapped(file, size, PAGE)?);
        run.did(length);
    }
    Ok(())
}
