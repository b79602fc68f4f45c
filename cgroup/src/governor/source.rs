//! Files of the kernel that are read again and again: kept open, read into the caller's buffer, parsed without allocating.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use super::sample::Stall;

/// How long a file that is not there is not looked for. A group that a service made anew is found after that long.
const RETRY: Duration = Duration::from_secs(1);

/// One file, open while it exists.
#[derive(Debug, Default)]
pub(super) struct Source {
    path: Option<PathBuf>,
    file: Option<File>,
    not_before: Duration,
}

impl Source {
    /// Reads as if the kernel did not have the file.
    pub(super) fn absent() -> Source {
        Source::default()
    }

    pub(super) fn new(path: PathBuf) -> Source {
        Source { path: Some(path), file: None, not_before: Duration::ZERO }
    }

    /// What one read returns: all of the file, for those the kernel writes as one record. `now` is on any clock that does not go back.
    ///
    /// The file of a group that is gone answers `ENODEV` for ever; another group may have its place.
    pub(super) fn read<'b>(&mut self, buffer: &'b mut [u8], now: Duration) -> Option<&'b str> {
        let n = self.fill(buffer, now, |file, buffer| file.read_at(buffer, 0))?;
        text(&buffer[..n])
    }

    /// A file of many records (`/proc/vmstat`), of which one read returns a page at most, and counts everything for it: read until there is
    /// `enough`, or to its end.
    pub(super) fn read_until<'b>(&mut self, buffer: &'b mut [u8], now: Duration, enough: impl Fn(&str) -> bool) -> Option<&'b str> {
        let n = self.fill(buffer, now, |file, buffer| {
            let mut n = 0;
            loop {
                match file.read_at(&mut buffer[n..], n as u64)? {
                    0 => return Ok(n),
                    more => n += more,
                }
                if text(&buffer[..n]).is_some_and(&enough) {
                    return Ok(n);
                }
            }
        })?;
        text(&buffer[..n])
    }

    /// A file that holds one number.
    pub(super) fn number(&mut self, buffer: &mut [u8], now: Duration) -> Option<u64> {
        leading(self.read(buffer, now)?)
    }

    fn fill(
        &mut self,
        buffer: &mut [u8],
        now: Duration,
        mut read: impl FnMut(&File, &mut [u8]) -> std::io::Result<usize>,
    ) -> Option<usize> {
        if let Some(file) = &self.file {
            if let Ok(n) = read(file, buffer) {
                return Some(n);
            }
            self.file = None;
        }
        if now < self.not_before {
            return None;
        }
        let opened = self.path.as_ref().and_then(|path| File::open(path).ok());
        match opened.map(|file| (read(&file, buffer), file)) {
            Some((Ok(n), file)) => {
                self.file = Some(file);
                Some(n)
            }
            Some((Err(_), _)) | None => {
                self.not_before = now + RETRY;
                None
            }
        }
    }
}

/// Searching a `str` is many times faster than slices of bytes in a build for size: the standard library's search is not built for that.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The number a text begins with; `None` for `max`, the kernel's word for no limit.
pub(super) fn leading(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text[..digits].parse().ok()
}

/// The number after `key` in lines of `key number` or `key: number`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.split('\n').find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        let number = rest.trim_ascii_start();
        (number.len() < rest.len()).then(|| leading(number))?
    })
}

/// The sum of all `key=number` words, as `io.stat` has one per device.
pub(super) fn summed(text: &str, key: &str) -> u64 {
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| leading(word.strip_prefix(key)?.strip_prefix('=')?)).fold(0, u64::saturating_add)
}

/// The totals of a pressure file. Kernels before 5.13 have no `full` line for the processor: 0, as newer ones say for the node.
pub(super) fn stall(text: &str) -> Option<Stall> {
    let total = |kind: &str| {
        let line = text.split('\n').find(|line| line.starts_with(kind))?;
        leading(line.rsplit_once("total=")?.1)
    };
    Some(Stall { some_us: total("some ")?, full_us: total("full ").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_formats() {
        assert_eq!(leading("4096\n"), Some(4096));
        assert_eq!(leading("max\n"), None);
        assert_eq!(leading(""), None);
        let meminfo = "MemTotal:        1000 kB\nMemAvailable:     600 kB\nSwapTotal:          0 kB\n";
        assert_eq!(keyed(meminfo, "MemAvailable"), Some(600));
        assert_eq!(keyed(meminfo, "Mem"), None, "not the start of another key");
        assert_eq!(keyed("low 0\nhigh 17\nmax 3\n", "high"), Some(17));
        assert_eq!(keyed("low 0\nhigh x\n", "high"), None);
        assert_eq!(summed("179:0 rbytes=5 wbytes=70 rios=1\n8:0 rbytes=1 wbytes=7\n", "wbytes"), 77);
        let some = "some avg10=2.95 avg60=1.93 avg300=1.04 total=12516102\n";
        assert_eq!(stall(some), Some(Stall { some_us: 12_516_102, full_us: 0 }));
        let both = format!("{some}full avg10=0.50 avg60=0.00 avg300=0.00 total=7\n");
        assert_eq!(stall(&both), Some(Stall { some_us: 12_516_102, full_us: 7 }));
        assert_eq!(stall("full total=7\n"), None);
    }

    #[test]
    fn a_file_that_appears_is_found_after_a_second_and_not_looked_for_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.current");
        let mut source = Source::new(path.clone());
        let mut buffer = [0; 64];
        let at = Duration::from_millis;
        assert_eq!(source.number(&mut buffer, at(100)), None);
        std::fs::write(&path, "17\n").unwrap();
        assert_eq!(source.number(&mut buffer, at(1000)), None);
        assert_eq!(source.number(&mut buffer, at(1100)), Some(17));
        std::fs::write(&path, "18\n").unwrap();
        assert_eq!(source.number(&mut buffer, at(1100)), Some(18));
        assert_eq!(Source::absent().number(&mut buffer, at(5000)), None);
    }

    #[test]
    fn a_long_list_is_read_as_far_as_needed() {
        let mut vmstat = Source::new("/proc/vmstat".into());
        let mut buffer = vec![0; 32 * 1024];
        let text = vmstat.read_until(&mut buffer, Duration::ZERO, |_| false).unwrap().to_owned();
        assert!(text.len() > 4096 && text.ends_with("\n"), "{} bytes", text.len());
        assert_eq!(text.split('\n').count(), std::fs::read_to_string("/proc/vmstat").unwrap().split('\n').count());
        let part = vmstat.read_until(&mut buffer, Duration::ZERO, |text| keyed(text, "nr_free_pages").is_some()).unwrap();
        assert!(part.len() < text.len() && part.ends_with("\n"), "{} bytes", part.len());
    }
}
