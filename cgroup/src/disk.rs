//! The whole disks behind a directory, as `io.max` wants them: of a partition its disk, of a mapped or encrypted device or an array
//! the disks below it, of a file system with device numbers of its own (btrfs) the device it was mounted from.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::MountInfos;

use crate::{Error, Result};

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// Name below `/dev`, such as `mmcblk0`.
    pub name: String,
}

/// Where to look; the machine's own `/proc` and `/sys` but for tests.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/proc`
    pub proc_root: PathBuf,
    /// `/sys`
    pub sys_root: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { proc_root: "/proc".into(), sys_root: "/sys".into() }
    }
}

/// How deep devices may be stacked: partition on RAID on LVM on LUKS is four.
const DEEPEST: usize = 8;

/// The disks behind `path` or its nearest existing ancestor, sorted. Fails where there is none, as on tmpfs, NFS or overlay.
pub fn behind(roots: &Roots, path: &Path) -> Result<Vec<Disk>> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let device = fs::metadata(existing).map_err(|source| Error::Read { path: existing.to_owned(), source })?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let refuse = |why: String| Error::NoDisk { path: path.to_owned(), why };
    let (major, minor) = if major == 0 { mounted_from(roots, major, minor).map_err(refuse)? } else { (major, minor) };
    disks(roots, major, minor).map_err(refuse)
}

/// The disks below the block device with these numbers.
fn disks(roots: &Roots, major: u64, minor: u64) -> Result<Vec<Disk>, String> {
    let link = roots.sys_root.join(format!("dev/block/{major}:{minor}"));
    let start = fs::canonicalize(&link).map_err(|_| format!("device {major}:{minor} is not in {}", link.display()))?;
    let mut found = BTreeSet::new();
    let mut open = vec![(start, 0)];
    while let Some((at, depth)) = open.pop() {
        if depth > DEEPEST {
            return Err(format!("devices below {major}:{minor} are stacked too deep"));
        }
        let slaves: Vec<PathBuf> = fs::read_dir(at.join("slaves")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        if !slaves.is_empty() {
            for slave in slaves {
                let real = fs::canonicalize(&slave).map_err(|error| format!("{}: {error}", slave.display()))?;
                open.push((real, depth + 1));
            }
        } else if at.join("partition").exists() {
            let disk = at.parent().ok_or_else(|| format!("{} is a partition of nothing", at.display()))?;
            open.push((disk.to_owned(), depth + 1));
        } else {
            found.insert(disk_at(&at)?);
        }
    }
    Ok(found.into_iter().collect())
}

fn disk_at(at: &Path) -> Result<Disk, String> {
    let text = fs::read_to_string(at.join("dev")).map_err(|error| format!("{}: {error}", at.join("dev").display()))?;
    let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let numbers = text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| format!("{} holds {text:?}", at.join("dev").display()))?;
    // What is a directory in /dev is an exclamation mark in /sys.
    Ok(Disk { major, minor, name: name.replace('!', "/") })
}

/// The numbers of the device from which the file system with device numbers of its own is mounted.
fn mounted_from(roots: &Roots, major: u64, minor: u64) -> Result<(u64, u64), String> {
    let path = roots.proc_root.join("self/mountinfo");
    let open = fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mounts = MountInfos::from_read(open).map_err(|error| format!("{}: {error}", path.display()))?;
    let numbers = format!("{major}:{minor}");
    let Some(mount) = mounts.into_iter().find(|mount| mount.majmin == numbers) else {
        return Err(format!("file system {numbers} is not among the mounts"));
    };
    let source = mount.mount_source.unwrap_or_default();
    let device = fs::metadata(&source).ok().filter(|found| found.rdev() != 0).map(|found| found.rdev());
    match device {
        Some(device) => Ok((nix::sys::stat::major(device), nix::sys::stat::minor(device))),
        None => Err(format!("file system of type {} is on no disk of this machine", mount.fs_type)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/sys` with these devices: path below `devices`, numbers, whether a partition, devices below.
    fn machine(devices: &[(&str, &str, bool, &[&str])]) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        for (path, numbers, partition, slaves) in devices {
            let at = sys.join("devices").join(path);
            fs::create_dir_all(at.join("slaves")).unwrap();
            fs::write(at.join("dev"), format!("{numbers}\n")).unwrap();
            if *partition {
                fs::write(at.join("partition"), "1\n").unwrap();
            }
            for slave in *slaves {
                let name = slave.rsplit('/').next().unwrap();
                std::os::unix::fs::symlink(sys.join("devices").join(slave), at.join("slaves").join(name)).unwrap();
            }
            std::os::unix::fs::symlink(&at, sys.join("dev/block").join(numbers)).unwrap();
        }
        let roots = Roots { proc_root: dir.path().join("proc"), sys_root: sys };
        (dir, roots)
    }

    #[test]
    fn partitions_and_stacks_lead_to_whole_disks() {
        let (_dir, roots) = machine(&[
            ("mmc/block/mmcblk0", "179:0", false, &[]),
            ("mmc/block/mmcblk0/mmcblk0p2", "179:2", true, &[]),
            ("virtio/block/vda", "254:0", false, &[]),
            ("virtio/block/vda/vda1", "254:1", true, &[]),
            ("pci/cciss!c0d0", "104:0", false, &[]),
            ("virtual/block/dm-0", "253:0", false, &["virtio/block/vda/vda1"]),
            ("virtual/block/dm-1", "253:1", false, &["virtual/block/dm-0"]),
            ("virtual/block/md0", "9:0", false, &["mmc/block/mmcblk0/mmcblk0p2", "virtio/block/vda"]),
            ("virtual/block/dm-9", "253:9", false, &["virtual/block/dm-9"]),
        ]);
        let names = |major, minor| disks(&roots, major, minor).map(|all| all.into_iter().map(|disk| disk.name).collect::<Vec<_>>());
        assert_eq!(names(179, 2).unwrap(), ["mmcblk0"]);
        assert_eq!(names(254, 1).unwrap(), ["vda"]);
        assert_eq!(names(254, 0).unwrap(), ["vda"]);
        assert_eq!(names(104, 0).unwrap(), ["cciss/c0d0"]);
        assert_eq!(names(253, 1).unwrap(), ["vda"], "LVM on LUKS on a partition");
        assert_eq!(names(9, 0).unwrap(), ["mmcblk0", "vda"]);
        assert!(names(253, 9).unwrap_err().contains("too deep"));
        assert!(names(7, 7).unwrap_err().contains("7:7"));
        let card = disks(&roots, 179, 2).unwrap().remove(0);
        assert_eq!((card.major, card.minor), (179, 0));
    }

    #[test]
    fn what_is_on_no_disk_says_so() {
        let roots = Roots::default();
        let error = behind(&roots, Path::new("/proc/self")).unwrap_err().to_string();
        assert!(error.contains("/proc/self") && error.contains("type proc"), "{error}");
    }
}
