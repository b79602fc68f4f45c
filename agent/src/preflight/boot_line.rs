//! The one line of `cmdline.txt`, and the partition the firmware reads it from.
//!
//! The rules are the last paragraph of section 7 of the governor reference. The partition is found in the table of mounts, never by
//! the version of the system. What the kernel was told does not matter here: effects are judged elsewhere.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};

/// The firmware gives the kernel no more.
const LIMIT: usize = 1000;

/// What shall be different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Edit {
    /// Words that have to be there; missing ones go to the end, behind what the device tree says.
    pub add: Vec<&'static str>,
    pub remove: Vec<Unwanted>,
}

/// Words that switch something off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// `cgroup_disable=memory`; other controllers in the same word stay.
    MemoryOff,
    /// `systemd.unified_cgroup_hierarchy=0`.
    LegacyHierarchy,
}

/// Why the line is not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it has {0} lines with text instead of one")]
    Lines(usize),
    #[error("its line has no root=, so the firmware does not boot from it")]
    NoRoot,
    #[error("the line would have {0} bytes, more than the 1000 the firmware passes on")]
    TooLong(usize),
}

/// The text with the edit made; the same text if nothing was missing. Everything else in it stays byte for byte.
pub(super) fn edit(text: &str, edit: &Edit) -> Result<String, Refusal> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let [line] = lines.as_slice() else { return Err(Refusal::Lines(lines.len())) };
    if !words(line).any(|word| word.starts_with("root=")) {
        return Err(Refusal::NoRoot);
    }
    let mut changed = (*line).to_owned();
    for unwanted in &edit.remove {
        changed = without(&changed, *unwanted);
    }
    for word in &edit.add {
        if !is_last(&changed, word) {
            changed = format!("{} {word}", changed.trim_end());
        }
    }
    if changed == *line {
        return Ok(text.to_owned());
    }
    if changed.trim().len() > LIMIT {
        return Err(Refusal::TooLong(changed.trim().len()));
    }
    Ok(text.replacen(line, &changed, 1))
}

/// Whether the line has the word and none behind it takes it back: the kernel keeps the last of `psi=1 psi=0`.
fn is_last(line: &str, word: &str) -> bool {
    words(line).filter(|known| *known == word || word == "psi=1" && known.starts_with("psi=")).last() == Some(word)
}

/// The words of a line.
pub(super) fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty())
}

/// Whether the word is one of these.
pub(super) fn is_unwanted(word: &str, unwanted: Unwanted) -> bool {
    match unwanted {
        Unwanted::MemoryOff => word.strip_prefix("cgroup_disable=").is_some_and(|list| list.split(',').any(|name| name == "memory")),
        Unwanted::LegacyHierarchy => {
            let value = word.strip_prefix("systemd.unified_cgroup_hierarchy=");
            value.is_some_and(|value| matches!(value, "0" | "no" | "false" | "off" | "n" | "f"))
        }
    }
}

/// Spaces between the words that stay are kept.
fn without(line: &str, unwanted: Unwanted) -> String {
    let mut kept = String::with_capacity(line.len());
    for piece in line.split_inclusive(' ') {
        let word = piece.trim_end();
        if !is_unwanted(word, unwanted) {
            kept.push_str(piece);
            continue;
        }
        let others: Vec<&str> = match (unwanted, word.split_once('=')) {
            (Unwanted::MemoryOff, Some((_, list))) => list.split(',').filter(|name| !name.is_empty() && *name != "memory").collect(),
            (Unwanted::MemoryOff | Unwanted::LegacyHierarchy, _) => Vec::new(),
        };
        if !others.is_empty() {
            kept.push_str(&format!("cgroup_disable={}{}", others.join(","), &piece[word.len()..]));
        }
    }
    kept.trim_end().to_owned()
}

/// The mounted partition of the firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// `/boot/firmware`, or `/boot` on older systems.
    pub place: String,
    pub read_only: bool,
    /// Text of `cmdline.txt`.
    pub line: String,
    /// Text of `config.txt`, empty if there is none.
    pub config: String,
    /// The firmware chooses between two systems, so that a change here may not be the one that boots.
    pub tryboot: Option<&'static str>,
    /// The line is older than this boot, which therefore read it if any boot does.
    pub before_boot: bool,
}

impl Firmware {
    /// Below `root`; None where no such partition is mounted or it has no `cmdline.txt`.
    pub(super) fn find(root: &Path) -> Option<Firmware> {
        let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        let (place, read_only) = ["/boot/firmware", "/boot"].into_iter().find_map(|place| Some((place, mounted(&mounts, place)?)))?;
        let directory = root.join(&place[1..]);
        let line = std::fs::read_to_string(directory.join("cmdline.txt")).ok()?;
        let config = std::fs::read_to_string(directory.join("config.txt")).unwrap_or_default();
        let written = std::fs::metadata(directory.join("cmdline.txt")).and_then(|file| file.modified()).ok();
        let started_by_tryboot = std::fs::read(root.join("proc/device-tree/chosen/bootloader/tryboot"));
        let tryboot = if directory.join("autoboot.txt").exists() {
            Some("autoboot.txt chooses between boot partitions")
        } else if started_by_tryboot.is_ok_and(|value| value.iter().any(|byte| *byte != 0)) {
            Some("this boot is a trial (tryboot)")
        } else if settings(&config)
            .any(|(key, value)| (key == "cmdline" && value != "cmdline.txt") || (key == "os_prefix" && !value.is_empty()))
        {
            Some("config.txt names another file (cmdline= or os_prefix=)")
        } else {
            None
        };
        let before_boot = written.zip(booted(root)).is_some_and(|(written, booted)| written < booted);
        Some(Firmware { place: place.to_owned(), read_only, line, config, tryboot, before_boot })
    }

    /// Whether the line has the word, and that counts.
    pub(super) fn has(&self, word: &str) -> bool {
        is_last(&self.line, word)
    }

    /// Whether the line has such a word.
    pub(super) fn has_unwanted(&self, unwanted: Unwanted) -> bool {
        words(&self.line).any(|word| is_unwanted(word, unwanted))
    }
}

/// `key=value` lines of `config.txt`.
pub(super) fn settings(config: &str) -> impl Iterator<Item = (&str, &str)> {
    config.lines().filter_map(|line| line.trim().split_once('=')).map(|(key, value)| (key.trim(), value.trim()))
}

/// When the kernel started, by the clock as it is now.
fn booted(root: &Path) -> Option<SystemTime> {
    let stat = std::fs::read_to_string(root.join("proc/stat")).ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Whether `place` is a mount point, and if so whether it is read-only.
fn mounted(mountinfo: &str, place: &str) -> Option<bool> {
    // The last mount on a place hides the others.
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(place))?;
    Some(line.split(' ').nth(5)?.split(',').any(|option| option == "ro"))
}

/// Puts `new` in the place of a file: beside it, synced, the old one kept as `backup`, renamed, read again. All with the mode of the old
/// one, which may have its reason.
///
/// FAT has no rename that survives a power cut for certain; the backup is what remains then.
pub(super) fn replace(file: &Path, backup: Option<&Path>, new: &str) -> anyhow::Result<()> {
    let directory = file.parent().context("a file has a directory")?;
    let sync_directory = || {
        std::fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("syncing {}", directory.display()))
    };
    let mode = std::fs::metadata(file).map_or(0o644, |old| old.permissions().mode());
    if let Some(backup) = backup {
        let old = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        write_synced(backup, &old, mode)?;
    }
    let beside = PathBuf::from(format!("{}.new", file.display()));
    write_synced(&beside, new.as_bytes(), mode)?;
    sync_directory()?;
    std::fs::rename(&beside, file).with_context(|| format!("renaming {}", beside.display()))?;
    sync_directory()?;
    let read = std::fs::read(file).with_context(|| format!("reading {} again", file.display()))?;
    let old = backup.map_or_else(|| "its backup".to_owned(), |backup| backup.display().to_string());
    ensure!(read == new.as_bytes(), "{} reads back differently; put {old} in its place", file.display());
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode & 0o777).open(path)?;
        // Against the umask and the mode of one that a power cut left here; FAT has none to set.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777));
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
#[path = "boot_line_tests.rs"]
mod tests;
