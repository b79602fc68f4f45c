//! Control groups and pressure, seen by their effect: file system magic, controller files, and writes into a scratch group.

use std::path::Path;

use cgroup::disk::Disk;
use cgroup::{Controller, Hierarchy, Layout};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Root;
use crate::storage_probe;

/// What the kernel offers.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    /// None where no hierarchy is mounted.
    pub layout: Option<Layout>,
    pub memory: bool,
    pub cpu: bool,
    pub pids: bool,
    /// Of cpu, io, memory and pids those that the root offers and does not hand to its children. None below version 2.
    pub not_handed_down: Option<Vec<&'static str>>,
    /// Why `cgroup.subtree_control` cannot be written: the name of the error.
    pub refused: Option<String>,
    /// Of `nsdelegate` and `memory_recursiveprot` those the mount lacks. None below version 2.
    pub missing_options: Option<Vec<&'static str>>,
    pub psi: bool,
    /// Outcome of harmless writes; None where they were not tried.
    pub scratch: Option<Scratch>,
}

/// Each write: done, or the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// `memory.min` = 0.
    pub memory_min: Result<(), String>,
    /// `io.max` of the disk, `wbps=max`. None without a disk.
    pub io_max: Option<Result<(), String>>,
}

const ROOT: &str = "/sys/fs/cgroup";

pub(super) fn gather(root: &Root, disk: Option<&Disk>, may_write: bool) -> Cgroups {
    let psi = crate::reboot::has_pressure(&root.at("/proc"));
    let mount = root.at(ROOT);
    let is_v2 = statfs(&mount).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if !is_v2 {
        let hierarchy = Hierarchy::detect_in(&root.at("/proc")).ok();
        let has = |controller| hierarchy.as_ref().is_some_and(|hierarchy| hierarchy.has(controller));
        return Cgroups {
            layout: hierarchy.as_ref().map(Hierarchy::layout),
            memory: has(Controller::Memory),
            cpu: has(Controller::Cpu),
            pids: has(Controller::Pids),
            psi,
            ..Cgroups::default()
        };
    }
    let offered = root.read("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let handed = root.read("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default();
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let options = root.mount(ROOT).map(|(_, options)| options).unwrap_or_default();
    let access = nix::unistd::access(&mount.join("cgroup.subtree_control"), nix::unistd::AccessFlags::W_OK);
    Cgroups {
        layout: Some(Layout::V2),
        memory: has(&offered, "memory"),
        cpu: has(&offered, "cpu"),
        pids: has(&offered, "pids"),
        not_handed_down: Some(
            ["cpu", "io", "memory", "pids"].into_iter().filter(|name| has(&offered, name) && !has(&handed, name)).collect(),
        ),
        refused: access.err().map(|error| format!("{error:?}")),
        missing_options: Some(
            ["nsdelegate", "memory_recursiveprot"].into_iter().filter(|name| !options.split(',').any(|option| option == *name)).collect(),
        ),
        psi,
        scratch: if may_write { scratch(&mount, disk) } else { None },
    }
}

/// Writes what changes nothing into a group that exists only for it. None where no group can be made.
fn scratch(mount: &Path, disk: Option<&Disk>) -> Option<Scratch> {
    let group = mount.join(format!("edge-agent-preflight-{}", std::process::id()));
    std::fs::create_dir(&group).ok()?;
    let write = |file: &str, text: &str| std::fs::write(group.join(file), text).map_err(|error| format!("{file}: {error}"));
    let outcome = Scratch {
        memory_min: write("memory.min", "0"),
        io_max: disk.map(|disk| write("io.max", &format!("{} wbps=max", storage_probe::number(disk)))),
    };
    let _ = std::fs::remove_dir(&group);
    Some(outcome)
}
