//! Reading a log file to a client: from the right line, on through growth and rotation, to the container's end.
//!
//! Disk reads run on a blocking thread, one block at a time and only as fast as the client takes them. Following waits
//! on inotify for the log's directory; a slow tick only notices that the container has ended.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::logs::{Formatter, LogOptions};

/// Read from the file at once.
const BLOCK: usize = 32 * 1024;

/// Step when looking backwards for the start of the last lines.
const BACKWARDS: u64 = 16 * 1024;

/// How often a follower looks whether the container still runs while nothing is written.
const STILL_RUNNING: Duration = Duration::from_secs(1);

/// A longer line is handed on in parts, so that memory stays bounded. Runtimes split at 16 KiB.
const LONGEST_LINE: usize = 256 * 1024;

/// The file behind a log and what was read of it.
struct Reader {
    path: PathBuf,
    file: File,
    /// The file that took its place; gone over to once this one is read to its end.
    next: Option<File>,
    /// Bytes read but not yet ended by a newline.
    held: Vec<u8>,
    formatter: Formatter,
}

/// What one turn of reading found.
enum Turn {
    /// Something for the client.
    Data(Bytes),
    /// All there is for now.
    End,
    /// The byte limit is reached.
    Full,
}

impl Reader {
    fn open(path: PathBuf, options: &LogOptions) -> io::Result<Self> {
        let mut file = File::open(&path)?;
        if let Some(lines) = options.tail {
            let start = start_of_last_lines(&file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self { path, file, next: None, held: Vec::new(), formatter: Formatter::new(options) })
    }

    /// Reads on until there is something to send or the file ends.
    fn turn(&mut self) -> io::Result<Turn> {
        let mut block = vec![0; BLOCK];
        let mut out = Vec::new();
        loop {
            if self.formatter.is_full() {
                return Ok(if out.is_empty() { Turn::Full } else { Turn::Data(out.into()) });
            }
            let count = self.file.read(&mut block)?;
            if count == 0 {
                return Ok(if out.is_empty() { Turn::End } else { Turn::Data(out.into()) });
            }
            self.take(&block[..count], &mut out);
            if out.len() >= BLOCK {
                return Ok(Turn::Data(out.into()));
            }
        }
    }

    /// Splits into lines, keeping the unfinished rest.
    fn take(&mut self, mut data: &[u8], out: &mut Vec<u8>) {
        while let Some(at) = data.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = data.split_at(at);
            data = &rest[1..];
            if self.held.is_empty() {
                self.formatter.push(line, out);
            } else {
                self.held.extend_from_slice(line);
                self.formatter.push(&std::mem::take(&mut self.held), out);
            }
        }
        self.held.extend_from_slice(data);
        if self.held.len() > LONGEST_LINE {
            self.formatter.push(&std::mem::take(&mut self.held), out);
        }
    }

    /// What stands behind the last newline when nothing more will come.
    fn rest(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.formatter.push(&std::mem::take(&mut self.held), &mut out);
        (!out.is_empty()).then(|| out.into())
    }

    /// At the end of a file: whether there is more to read, because another one is at the path now. Between the last read
    /// and the rotation the container may have written, so the old one is read once more before the new.
    fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        if let Some(next) = self.next.take() {
            self.file = next;
            return Ok(true);
        }
        let new = match File::open(&self.path) {
            Ok(new) => new,
            // Between renaming and reopening there is no file.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let (old, now) = (self.file.metadata()?, new.metadata()?);
        if (old.dev(), old.ino()) == (now.dev(), now.ino()) {
            return Ok(false);
        }
        self.next = Some(new);
        Ok(true)
    }
}

/// Offset at which the last `lines` lines begin. A file without a final newline counts its rest as a line.
fn start_of_last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 || length == 0 {
        return Ok(length);
    }
    let mut found = 0;
    let mut end = length;
    let mut block = vec![0; usize::try_from(BACKWARDS).unwrap_or(usize::MAX)];
    while end > 0 {
        let start = end.saturating_sub(BACKWARDS);
        let part = &mut block[..usize::try_from(end - start).unwrap_or(usize::MAX)];
        file.read_exact_at(part, start)?;
        for (at, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let newline = start + at as u64;
            // The newline that ends the file ends the last line; it does not begin one.
            if newline + 1 == length {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok(newline + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// Wakes when something in a directory changes. An inotify descriptor is read like a pipe: what the events say does not
/// matter here, only that there are some.
struct DirectoryWatch(pipe::Receiver);

impl DirectoryWatch {
    fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(directory, changes)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(inotify.into())?))
    }

    /// Returns after at least one change since the last call. Dropping the future loses nothing.
    async fn changed(&mut self) -> io::Result<()> {
        // Room for many events; one with the longest name needs 272 bytes.
        self.0.read(&mut [0; 4096]).await.map(drop)
    }
}

struct Follow<R> {
    reader: Reader,
    watch: Option<DirectoryWatch>,
    running: R,
    done: bool,
}

/// Opens the log and returns its bytes as the client wants them. With `follow` the stream ends when `running` turned
/// false and the file is read to its end, survives rotation, and otherwise waits.
pub(crate) async fn open<R>(
    path: PathBuf,
    options: LogOptions,
    running: R,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static>
where
    R: Fn() -> bool + Send + 'static,
{
    // The watch stands before the file is opened, so that no change falls between.
    let watch = match (options.follow, path.parent()) {
        (true, Some(directory)) => Some(DirectoryWatch::new(directory)?),
        _ => None,
    };
    let reader = blocking(move || Reader::open(path, &options)).await??;
    Ok(unfold(Follow { reader, watch, running, done: false }, next))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

type Next<R> = Option<(io::Result<Bytes>, Follow<R>)>;

async fn next<R: Fn() -> bool + Send + 'static>(mut follow: Follow<R>) -> Next<R> {
    while !follow.done {
        // Asked before reading: what a container wrote before it ended is then surely read.
        let running = follow.watch.is_some() && (follow.running)();
        let turned = blocking(move || {
            let turn = follow.reader.turn();
            (turn, follow)
        });
        let turn;
        (turn, follow) = match turned.await {
            Ok(turned) => turned,
            Err(error) => {
                tracing::warn!(%error, "log reader ended");
                return None;
            }
        };
        match turn {
            Ok(Turn::Data(data)) => return Some((Ok(data), follow)),
            Ok(Turn::Full) => return None,
            Err(error) => {
                follow.done = true;
                return Some((Err(error), follow));
            }
            Ok(Turn::End) => {}
        }
        match follow.reader.reopen_if_rotated() {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                follow.done = true;
                return Some((Err(error), follow));
            }
        }
        if !running {
            follow.done = true;
            if let Some(rest) = follow.reader.rest() {
                return Some((Ok(rest), follow));
            }
            return None;
        }
        if let Some(watch) = &mut follow.watch {
            // Both arms only wait: an event not yet read stays in the descriptor.
            tokio::select! {
                changed = watch.changed() => if let Err(error) = changed {
                    follow.done = true;
                    return Some((Err(error), follow));
                },
                () = tokio::time::sleep(STILL_RUNNING) => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn line(number: usize) -> String {
        format!("2026-11-23T02:00:00.{number:09}Z stdout F line {number}\n")
    }

    async fn all(stream: impl Stream<Item = io::Result<Bytes>>) -> String {
        let mut stream = std::pin::pin!(stream);
        let mut out = Vec::new();
        while let Some(part) = stream.next().await {
            out.extend_from_slice(&part.expect("reads"));
        }
        String::from_utf8(out).expect("utf-8")
    }

    #[tokio::test]
    async fn tail_counts_lines_from_the_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0.log");
        let whole: String = (0..2000).map(line).collect();
        std::fs::write(&path, &whole).expect("write");
        for (tail, first) in [(0, None), (1, Some(1999)), (3, Some(1997)), (1999, Some(1)), (2000, Some(0)), (5000, Some(0))] {
            let options = LogOptions { tail: Some(tail), ..LogOptions::default() };
            let got = all(open(path.clone(), options, || false).await.expect("opens")).await;
            let wanted: String = first.map_or_else(String::new, |first| (first..2000).map(|n| format!("line {n}\n")).collect());
            assert!(got == wanted, "tail {tail}: {} lines", got.lines().count());
        }
        std::fs::write(&path, whole + "2026-11-23T02:00:00Z stdout F no newline").expect("write");
        let options = LogOptions { tail: Some(2), ..LogOptions::default() };
        assert_eq!(all(open(path, options, || false).await.expect("opens")).await, "line 1999\nno newline\n");
    }

    #[tokio::test]
    async fn following_goes_through_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(1)).expect("write");
        let running = Arc::new(AtomicBool::new(true));
        let alive = Arc::clone(&running);
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let stream = open(path.clone(), options, move || alive.load(Ordering::SeqCst)).await.expect("opens");
        let mut stream = std::pin::pin!(stream);
        let limit = Duration::from_secs(10);
        let mut next = async |wanted: &str| {
            let got = tokio::time::timeout(limit, stream.next()).await.expect("in time").expect("more").expect("reads");
            assert_eq!(got, wanted);
        };
        next("line 1\n").await;
        let mut file = File::options().append(true).open(&path).expect("open");
        file.write_all(line(2).as_bytes()).expect("write");
        next("line 2\n").await;
        std::fs::rename(&path, dir.path().join("0.log.20261123-020000")).expect("rename");
        file.write_all(line(3).as_bytes()).expect("write");
        next("line 3\n").await;
        std::fs::write(&path, line(4)).expect("write");
        next("line 4\n").await;
        running.store(false, Ordering::SeqCst);
        assert!(tokio::time::timeout(limit, stream.next()).await.expect("in time").is_none());
    }

    #[tokio::test]
    async fn a_missing_file_is_an_error() {
        let path = Path::new("/nonexistent/0.log").to_owned();
        let opened = open(path, LogOptions::default(), || false).await;
        assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    }
}
