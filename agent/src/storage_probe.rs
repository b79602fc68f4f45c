//! How fast the disk below the data directory is: measured at most once a month, kept, and used for `io.max`.
//!
//! `preflight` and `join` measure, the running agent only reads. Kept as `DATA-DIR/agent/storage-probe.json`:
//!
//! ```json
//! {"read_bps": 41943040, "write_bps": 20971520, "write_iops": 480, "read_iops": 1500, "device": "179:0", "at": "2026-11-23T14:00:00Z"}
//! ```
//!
//! Bytes and operations per second; what could not be measured (a file system without direct reads) is `null`. `device` is the
//! whole disk as `io.max` wants it (governor reference, section 2.3), `null` where no disk can be told.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroup::disk::Disk;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::ledger::write_whole;

/// One measurement. Rates are per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageProbe {
    /// Bytes read in sequence past the page cache.
    pub read_bps: Option<u64>,
    /// Bytes written in sequence and synced.
    pub write_bps: Option<u64>,
    /// Synchronous writes of 4 KiB at random places.
    pub write_iops: Option<u64>,
    /// Reads of 4 KiB at random places past the page cache.
    pub read_iops: Option<u64>,
    /// `MAJ:MIN` of the whole disk.
    pub device: Option<String>,
    /// When, RFC 3339 in UTC.
    pub at: String,
}

/// As `io.max` wants it.
pub fn number(disk: &Disk) -> String {
    format!("{}:{}", disk.major, disk.minor)
}

/// Age after which a measurement is made again.
const KEEP: time::Duration = time::Duration::days(30);
const SEQUENTIAL: usize = 8 << 20;
const CHUNK: usize = 512 << 10;
const BLOCK: usize = 4096;
const RANDOM: usize = 100;
/// What each part may take, together below 3 s; a slower disk is judged by what was done until then.
const WRITE: Duration = Duration::from_millis(1300);
const SYNCED: Duration = Duration::from_millis(800);
const READ: Duration = Duration::from_millis(400);

/// Where it is kept.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/storage-probe.json")
}

/// The last measurement, however old; None where there is none or it cannot be read.
pub fn load(data_dir: &Path) -> Option<StorageProbe> {
    serde_json::from_slice(&std::fs::read(path(data_dir)).ok()?).ok()
}

/// The last measurement if it is of `disk` and younger than a month, else a new one, which is kept if the data directory
/// exists. Takes up to 3 s of writes on `directory` (at most 8.4 MiB, in a file without a name).
pub fn keep_fresh(data_dir: &Path, directory: &Path, disk: Option<&Disk>, now: OffsetDateTime) -> anyhow::Result<StorageProbe> {
    let device = disk.map(number);
    if let Some(kept) = load(data_dir).filter(|kept| is_fresh(kept, device.as_deref(), now)) {
        return Ok(kept);
    }
    let probe = StorageProbe { device, at: crate::clock::seconds(now), ..measure(directory)? };
    if data_dir.is_dir() {
        write_whole(&path(data_dir), &serde_json::to_vec(&probe)?)?;
    }
    Ok(probe)
}

fn is_fresh(probe: &StorageProbe, device: Option<&str>, now: OffsetDateTime) -> bool {
    let age = crate::clock::parse(&probe.at).map(|at| now - at);
    probe.device.as_deref() == device && age.is_some_and(|age| age >= time::Duration::ZERO && age < KEEP)
}

/// The whole disk behind the file system of `path` or its nearest existing ancestor. None where the kernel shows none (overlay,
/// tmpfs, network) or several.
pub fn disk_of(path: &Path) -> Option<Disk> {
    match cgroup::disk::behind(&cgroup::disk::Roots::default(), path).ok()?.as_slice() {
        [disk] => Some(disk.clone()),
        _ => None,
    }
}

fn measure(directory: &Path) -> io::Result<StorageProbe> {
    let name = directory.join(format!(".edge-agent-storage-probe.{}", std::process::id()));
    let open =
        |flags: i32, create: bool| OpenOptions::new().read(true).write(true).create(create).mode(0o600).custom_flags(flags).open(&name);
    let direct = open(libc::O_DIRECT, true);
    let is_direct = direct.is_ok();
    let flags = if is_direct { libc::O_DIRECT } else { 0 };
    let opened = direct.or_else(|_| open(0, true)).and_then(|file| Ok((file, open(flags | libc::O_DSYNC, false)?)));
    // Without a name it is gone with this process, whatever happens.
    let _ = std::fs::remove_file(&name);
    let (file, synced) = opened?;

    let buffer = Aligned::new(CHUNK);
    let start = Instant::now();
    let mut written = 0;
    while written < SEQUENTIAL && start.elapsed() < WRITE {
        file.write_all_at(buffer.block(CHUNK), written as u64)?;
        written += CHUNK;
    }
    file.sync_data()?;
    let write_bps = rate(written, start.elapsed());
    let blocks = written / BLOCK;
    let write_iops = random(blocks, SYNCED, |at| synced.write_all_at(buffer.block(BLOCK), at))?;
    let (mut read_bps, mut read_iops) = (None, None);
    if is_direct {
        read_bps = Some(sequential_read(&file, written)?);
        let mut buffer = Aligned::new(BLOCK);
        read_iops = Some(random(blocks, READ, |at| file.read_exact_at(buffer.block_mut(BLOCK), at))?);
    }
    Ok(StorageProbe { read_bps, write_bps: Some(write_bps), write_iops: Some(write_iops), read_iops, device: None, at: String::new() })
}

fn sequential_read(file: &File, length: usize) -> io::Result<u64> {
    let mut buffer = Aligned::new(CHUNK);
    let start = Instant::now();
    let mut read = 0;
    while read < length && start.elapsed() < READ {
        file.read_exact_at(buffer.block_mut(CHUNK), read as u64)?;
        read += CHUNK;
    }
    Ok(rate(read, start.elapsed()))
}

/// Operations per second at places that do not follow each other.
fn random(blocks: usize, at_most: Duration, mut operation: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
    let start = Instant::now();
    let mut place = 1;
    let mut done = 0;
    while done < RANDOM && start.elapsed() < at_most {
        place = (place * 1103 + 977) % blocks;
        operation((place * BLOCK) as u64)?;
        done += 1;
    }
    Ok(rate(done, start.elapsed()))
}

fn rate(amount: usize, took: Duration) -> u64 {
    (amount as f64 / took.as_secs_f64().max(1e-6)) as u64
}

/// Bytes that begin at a multiple of the page size, as direct reads and writes want them; not all the same, as some media compress.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(size: usize) -> Aligned {
        let mut noise: u32 = 0x9e37_79b9;
        let fill = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            noise as u8
        });
        let bytes: Vec<u8> = fill.take(size + BLOCK).collect();
        let start = bytes.as_ptr().align_offset(BLOCK);
        Aligned { bytes, start }
    }

    fn block(&self, size: usize) -> &[u8] {
        &self.bytes[self.start..self.start + size]
    }

    fn block_mut(&mut self, size: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn kept(device: Option<&str>, at: &str) -> StorageProbe {
        StorageProbe {
            read_bps: Some(1),
            write_bps: Some(2),
            write_iops: Some(3),
            read_iops: None,
            device: device.map(str::to_owned),
            at: at.to_owned(),
        }
    }

    #[test]
    fn a_measurement_counts_for_its_disk_and_a_month() {
        let now = datetime!(2026-11-23 12:00 UTC);
        let cases = [
            (Some("8:0"), "2026-11-23T11:00:00Z", true),
            (Some("8:0"), "2026-10-24T12:00:01Z", true),
            (Some("8:0"), "2026-10-24T12:00:00Z", false),
            (Some("8:16"), "2026-11-23T11:00:00Z", false),
            (None, "2026-11-23T11:00:00Z", false),
            (Some("8:0"), "2026-11-23T13:00:00Z", false),
            (Some("8:0"), "yesterday", false),
        ];
        for (device, at, fresh) in cases {
            assert_eq!(is_fresh(&kept(device, at), Some("8:0"), now), fresh, "{device:?} {at}");
        }
    }

    #[test]
    fn it_is_measured_once_kept_as_documented_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let now = datetime!(2026-11-23 12:00 UTC);
        let disk = Disk { name: "mmcblk0".to_owned(), major: 179, minor: 0 };
        // Before there is a data directory nothing is kept.
        let first = keep_fresh(&data, dir.path(), Some(&disk), now).unwrap();
        assert!(first.write_bps.unwrap() > 0 && first.write_iops.unwrap() > 0, "{first:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::create_dir(&data).unwrap();
        let second = keep_fresh(&data, &data, Some(&disk), now).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path(&data)).unwrap()).unwrap();
        let names: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(names, ["at", "device", "read_bps", "read_iops", "write_bps", "write_iops"]);
        assert_eq!(json["device"], "179:0");
        assert_eq!(load(&data), Some(second.clone()));
        assert_eq!(keep_fresh(&data, Path::new("/nowhere"), Some(&disk), now + time::Duration::days(1)).unwrap(), second);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "only the directory of the kept file");
    }
}
