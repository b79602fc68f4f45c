//! What an ended container says of itself: its termination message, or the end of its log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use runtime::observe::ObservedContainer;

use super::volumes::{self, PodDirs};
use crate::api::pod::Pod;

/// Where an ended container left its last words.
pub(super) struct LastWords {
    file: PathBuf,
    /// Read instead when the file is empty.
    log: Option<PathBuf>,
}

const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

impl LastWords {
    pub(super) fn of(pod: &Pod, dirs: &PodDirs, container: &ObservedContainer) -> LastWords {
        let policy = pod.every_container().find(|c| c.name == container.name).map(|c| c.termination_message_policy.as_str());
        let fallback = policy == Some("FallbackToLogsOnError") && container.exit_code != 0 && !container.log_path.is_empty();
        LastWords {
            file: volumes::termination_log(dirs, &container.name, container.attempt),
            log: fallback.then(|| PathBuf::from(&container.log_path)),
        }
    }

    /// Reads them; empty when there are none.
    pub(super) fn read(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = fs::File::open(&self.file) {
            let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
        }
        if bytes.is_empty() {
            return self.log.as_ref().map(|log| log_tail(&read_end(log))).unwrap_or_default();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The last part of a file, from a line's beginning.
fn read_end(path: &std::path::Path) -> String {
    const WINDOW: u64 = 64 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(if length > WINDOW { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) } else { text })
    };
    read().unwrap_or_default()
}

/// Text of the last CRI log lines.
fn log_tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for line in &lines[lines.len().saturating_sub(MAX_LOG_LINES)..] {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        out.push_str(parts.next().unwrap_or_default());
        if tag.starts_with('F') {
            out.push('\n');
        }
    }
    let mut start = out.len().saturating_sub(MAX_LOG_MESSAGE);
    while !out.is_char_boundary(start) {
        start += 1;
    }
    out.split_off(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_come_from_the_file_then_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("0.log"));
        let words = LastWords { file: file.clone(), log: Some(log.clone()) };
        assert_eq!(words.read(), "");
        fs::write(&log, "2026-01-01T00:00:00.1Z stdout F line1\n2026-01-01T00:00:00.2Z stderr P li\n2026-01-01T00:00:00.2Z stderr F ne2\n")
            .unwrap();
        assert_eq!(words.read(), "line1\nline2\n");
        fs::write(&file, "from-file").unwrap();
        assert_eq!(words.read(), "from-file");
        fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(words.read().len(), 4096);
    }
}
