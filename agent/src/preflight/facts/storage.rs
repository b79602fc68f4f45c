//! The disk of the image store, swap, and room.

use std::path::{Path, PathBuf};

use cgroup::disk::Disk;
use time::OffsetDateTime;

use super::Root;
use crate::config::{Config, ContainerdMode};
use crate::storage_probe::{self, StorageProbe};

/// Where pods' data lies.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Directory of images and container file systems.
    pub store: PathBuf,
    /// The whole disk behind it.
    pub disk: Option<Disk>,
    /// The scheduler in use of that disk.
    pub scheduler: Option<String>,
    /// How fast it is: measured now or lately.
    pub probe: Option<StorageProbe>,
    pub swaps: Vec<Swap>,
    /// zram devices that write to a disk, with that disk or file.
    pub zram_writeback: Vec<(String, String)>,
    /// Swap is arranged by Raspberry Pi OS' generator (trixie).
    pub rpi_swap: bool,
    /// Swap is arranged by dphys-swapfile (bookworm).
    pub dphys_swapfile: bool,
    pub data_dir: PathBuf,
    pub data_writable: bool,
    /// Size and free bytes below the data directory.
    pub bytes: Option<(u64, u64)>,
    /// Where the operator wants pods evicted for the disk's sake: a quantity or a percentage.
    pub nodefs_available: Option<String>,
    /// The same in inodes; None where the file system has no fixed number.
    pub inodes: Option<(u64, u64)>,
    pub root_read_only: bool,
}

/// One line of `/proc/swaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    pub name: String,
    pub zram: bool,
    /// It shares the disk of the image store; None where that cannot be told.
    pub on_store: Option<bool>,
}

pub(super) fn gather(root: &Root, config: &Config, measure: bool) -> Storage {
    let store = match config.containerd {
        ContainerdMode::Managed => config.data_dir.clone(),
        ContainerdMode::Auto | ContainerdMode::System => PathBuf::from("/var/lib/containerd"),
    };
    let disk = storage_probe::disk_of(&store);
    let existing = config.data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
    let probe = if measure {
        // Usually both are on one disk, and the data directory is ours.
        let there = store.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let directory = if storage_probe::disk_of(&existing) == disk { &existing } else { there };
        storage_probe::keep_fresh(&config.data_dir, directory, disk.as_ref(), OffsetDateTime::now_utc()).ok()
    } else {
        storage_probe::load(&config.data_dir)
    };
    let (bytes, inodes) = room(&existing);
    Storage {
        scheduler: disk.as_ref().and_then(|disk| scheduler(&root.read(&format!("/sys/block/{}/queue/scheduler", disk.name))?)),
        swaps: swaps(&root.read("/proc/swaps").unwrap_or_default(), |name| on_store(name, disk.as_ref())),
        zram_writeback: zram_writeback(root),
        rpi_swap: root.exists("/etc/rpi/swap.conf") || root.exists("/usr/lib/systemd/system-generators/rpi-swap-generator"),
        dphys_swapfile: root.exists("/etc/dphys-swapfile"),
        data_writable: nix::unistd::access(&existing, nix::unistd::AccessFlags::W_OK).is_ok(),
        data_dir: config.data_dir.clone(),
        root_read_only: root.mount("/").is_some_and(|(_, options)| options.split(',').next() == Some("ro")),
        bytes,
        nodefs_available: config.eviction_hard.get("nodefs.available").cloned(),
        inodes,
        store,
        disk,
        probe,
    }
}

/// The one in brackets.
fn scheduler(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn swaps(text: &str, on_store: impl Fn(&str) -> Option<bool>) -> Vec<Swap> {
    let name = |line: &str| Some(line.split_whitespace().next()?.replace("\\040", " "));
    let swap = |name: String| Swap { zram: name.starts_with("/dev/zram"), on_store: on_store(&name), name };
    text.lines().skip(1).filter_map(name).map(swap).collect()
}

/// A partition carries the name of its disk; a file lies on one.
fn on_store(name: &str, disk: Option<&Disk>) -> Option<bool> {
    let disk = disk?;
    match name.strip_prefix("/dev/") {
        Some(device) if device.starts_with("dm-") || device.starts_with("mapper/") => None,
        Some(device) => Some(device.starts_with(&disk.name)),
        None => Some(storage_probe::disk_of(Path::new(name))? == *disk),
    }
}

fn zram_writeback(root: &Root) -> Vec<(String, String)> {
    let devices = root.names("/sys/block").into_iter().filter(|name| name.starts_with("zram"));
    let backing = |name: String| {
        let behind = root.read(&format!("/sys/block/{name}/backing_dev"))?.trim().to_owned();
        (behind != "none").then_some((name, behind))
    };
    devices.filter_map(backing).collect()
}

/// All and free, of bytes and of inodes.
type Room = (Option<(u64, u64)>, Option<(u64, u64)>);

fn room(path: &Path) -> Room {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return (None, None) };
    // Field widths differ between 32 and 64 bit targets.
    #[allow(clippy::useless_conversion)]
    let number = [
        stat.fragment_size().into(),
        stat.blocks().into(),
        stat.blocks_available().into(),
        stat.files().into(),
        stat.files_available().into(),
    ];
    let [unit, blocks, free, files, free_files]: [u64; 5] = number;
    ((blocks > 0).then_some((blocks * unit, free * unit)), (files > 0).then_some((files, free_files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(scheduler("none [mq-deadline] kyber\n").as_deref(), Some("mq-deadline"));
        assert_eq!(scheduler("none\n"), None);
        let text = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0  partition 441340 0 100\n/var/my\\040swap file 102396 0 -2\n";
        let found = swaps(text, |name| (!name.contains("zram")).then_some(true));
        assert_eq!(found[0], Swap { name: "/dev/zram0".to_owned(), zram: true, on_store: None });
        assert_eq!(found[1], Swap { name: "/var/my swap".to_owned(), zram: false, on_store: Some(true) });
    }

    #[test]
    fn only_zram_that_writes_to_a_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("zram0", "/dev/loop0\n"), ("zram1", "none\n"), ("sda", "x\n")] {
            std::fs::create_dir_all(dir.path().join("sys/block").join(name)).unwrap();
            std::fs::write(dir.path().join("sys/block").join(name).join("backing_dev"), text).unwrap();
        }
        assert_eq!(zram_writeback(&Root(dir.path().to_owned())), [("zram0".to_owned(), "/dev/loop0".to_owned())]);
    }
}
