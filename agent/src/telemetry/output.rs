//! Where log lines go. Nobody who logs waits for it: a line that finds no room is dropped and counted, because the reader may be
//! the very thing that a starved board has no time for.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

const JOURNAL: &str = "/run/systemd/journal/socket";

/// A pipe that is ready takes this much without blocking (`PIPE_BUF`).
const READY: usize = 4096;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that nobody took.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Where the lines of this process go.
#[derive(Debug)]
pub(super) enum Output {
    /// The journal's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram a line.
    Journal { socket: UnixDatagram, path: PathBuf },
    /// Standard error. What is no terminal, pipe or socket but a file may still make the writer wait for its disk.
    Stderr,
}

impl Output {
    /// The journal where standard error is connected to it, standard error elsewhere.
    pub(super) fn of_process() -> Self {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        if is_stderr(&stream) {
            if let Ok(journal) = Self::journal(Path::new(JOURNAL)) {
                return journal;
            }
        }
        Self::Stderr
    }

    fn journal(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self::Journal { socket, path: path.to_owned() })
    }

    pub(super) fn is_journal(&self) -> bool {
        matches!(self, Self::Journal { .. })
    }
}

/// `DEVICE:INODE` of the stream that the service manager made; a shell below it may have redirected ours.
fn is_stderr(stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(ours) = io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata()) else { return false };
    device.parse() == Ok(ours.dev()) && inode.parse() == Ok(ours.ino())
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { output: self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { output: self, level: *meta.level() }
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    output: &'a Output,
    level: Level,
}

impl Write for Line<'_> {
    /// Takes all of it, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let taken = match self.output {
            Output::Journal { socket, path } => match socket.send_to(&datagram(self.level, line), path) {
                Ok(_) => true,
                // No journal any more: the stream may still have a reader.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    to_ready(io::stderr(), line)
                }
                Err(_) => false,
            },
            Output::Stderr => to_ready(io::stderr(), line),
        };
        if !taken {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes as long as `out` is ready for more. The descriptor stays as it is: others share it.
fn to_ready(out: impl AsFd, mut line: &[u8]) -> bool {
    while !line.is_empty() {
        let mut ready = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO) != Ok(1) {
            return false;
        }
        let now = line.get(..READY).unwrap_or(line);
        match nix::unistd::write(&out, now) {
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Fields of a journal entry. A text of several lines goes with its length, as the protocol wants it.
fn datagram(level: Level, line: &[u8]) -> Vec<u8> {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let text = line.trim_ascii_end();
    let mut entry = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=edge-agent\nMESSAGE").into_bytes();
    if text.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(text.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(text);
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_journal_that_does_not_read_costs_lines_and_no_time() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).expect("bound");
        let output = Output::journal(&path).expect("made");
        let before = dropped();
        // A blocking socket would stop here for ever.
        for _ in 0..10_000 {
            Line { output: &output, level: Level::WARN }.write_all(b" WARN heartbeat: lease not renewed\n").expect("never fails");
        }
        assert!(dropped() > before);
        let mut entry = [0; 128];
        let length = journal.recv(&mut entry).expect("the first is there");
        let wanted = b"PRIORITY=4\nSYSLOG_IDENTIFIER=edge-agent\nMESSAGE= WARN heartbeat: lease not renewed\n";
        assert_eq!(entry.get(..length), Some(wanted.as_slice()));
    }

    #[test]
    fn several_lines_go_with_their_length() {
        let entry = datagram(Level::ERROR, b"a\nb\n");
        assert_eq!(entry, b"PRIORITY=3\nSYSLOG_IDENTIFIER=edge-agent\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_left_when_it_is_full() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let line = [b'x'; 3000];
        let taken = (0..1000).take_while(|_| to_ready(&writer, &line)).count();
        assert!((1..1000).contains(&taken), "{taken}");
        drop(writer);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).expect("reads");
        assert!(all.len() >= taken * line.len());
    }

    #[test]
    fn only_our_own_stream_is_the_journals() {
        for other in ["", "1", "0:0", "a:b"] {
            assert!(!is_stderr(other), "{other}");
        }
    }
}
