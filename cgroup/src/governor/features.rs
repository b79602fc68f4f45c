//! What this machine lets the governor do, found out by doing it in a group made for that: kernel versions and option lists mislead
//! (governor reference, section 6.2).

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::action::Knob;
use super::trigger::shortest_window;
use super::{knob, ledger};
use crate::{CgroupDir, Controller, Hierarchy, Layout};

/// `CAP_SYS_RESOURCE`, as `CapEff` of `/proc/self/status` counts.
const SYS_RESOURCE: u32 = 24;

/// What works. `false` also where it could not be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Features {
    /// The arrangement of hierarchies.
    pub layout: Layout,
    /// There was a group to try it in.
    pub group: bool,
    /// `memory.min`
    pub memory_min: bool,
    /// `memory.high`
    pub memory_high: bool,
    /// `memory.swap.max`
    pub swap_max: bool,
    /// `memory.reclaim` (Linux 5.19)
    pub reclaim: bool,
    /// `memory.reclaim` takes `swappiness=`.
    pub reclaim_swappiness: bool,
    /// `cpu.max`
    pub cpu_max: bool,
    /// `cpu.idle` (Linux 5.15)
    pub cpu_idle: bool,
    /// `io.max` on the disk of the pods.
    pub io_max: bool,
    /// `pids.max`
    pub pids_max: bool,
    /// `cgroup.freeze`, and the group says that it stands still.
    pub freeze: bool,
    /// `cgroup.kill` (Linux 5.14)
    pub kill: bool,
    /// `/proc/pressure`
    pub psi: bool,
    /// `memory.pressure` of a group.
    pub psi_group: bool,
    /// The shortest window of a PSI trigger, milliseconds; `None` where none can be set.
    pub psi_window_ms: Option<u64>,
    /// Extended attributes `trusted.*` on groups.
    pub xattr: bool,
    /// The process may do what needs `CAP_SYS_RESOURCE`.
    pub sys_resource: bool,
}

impl Features {
    /// Tries everything in a group `edge-probe` made below `parent` (a path from the mount), and removes it. `disk` is the `MAJ:MIN` of
    /// the disk of the pods. Where the group cannot be made nothing that needs one works.
    pub fn probe(hierarchy: &Hierarchy, parent: &str, disk: Option<&str>) -> Features {
        let pressure = hierarchy.proc_root().join("pressure/memory");
        let found = Features {
            layout: hierarchy.layout(),
            group: false,
            memory_min: false,
            memory_high: false,
            swap_max: false,
            reclaim: false,
            reclaim_swappiness: false,
            cpu_max: false,
            cpu_idle: false,
            io_max: false,
            pids_max: false,
            freeze: false,
            kill: false,
            psi: matches!(crate::psi::read_file(&pressure), Ok(Some(_))),
            psi_group: false,
            psi_window_ms: shortest_window(&pressure),
            xattr: false,
            sys_resource: has_capability(hierarchy.proc_root(), SYS_RESOURCE),
        };
        match Scratch::make(hierarchy, &format!("{}/edge-probe", parent.trim_end_matches('/'))) {
            Ok(scratch) => found.with_group(hierarchy, &scratch.dir, disk),
            Err(error) => {
                tracing::debug!(%error, "no group to try the kernel's features in");
                found
            }
        }
    }

    fn with_group(self, hierarchy: &Hierarchy, dir: &CgroupDir, disk: Option<&str>) -> Features {
        // Reads back, so that a file of a fake tree is as good as one of the kernel; a value that changes nothing, so that none is harmed.
        let takes = |controller: Controller, file: &str, value: &str| {
            hierarchy.is_v2(controller) && dir.has(file) && dir.write(file, value).is_ok() && dir.read(file).is_ok_and(|now| now == value)
        };
        let reclaims = |value: &str| match dir.write("memory.reclaim", value) {
            Ok(()) => true,
            // An empty group has nothing to give.
            Err(crate::Error::Write { source, .. }) => source.raw_os_error() == Some(nix::libc::EAGAIN),
            Err(_) => false,
        };
        let reclaim = hierarchy.is_v2(Controller::Memory) && reclaims("4096");
        let v2_freezer = hierarchy.unified().is_some();
        Features {
            group: true,
            memory_min: takes(Controller::Memory, "memory.min", "0"),
            memory_high: takes(Controller::Memory, "memory.high", "max"),
            swap_max: takes(Controller::Memory, "memory.swap.max", "max"),
            reclaim,
            reclaim_swappiness: reclaim && reclaims("4096 swappiness=0"),
            cpu_max: takes(Controller::Cpu, "cpu.max", "max 100000"),
            cpu_idle: takes(Controller::Cpu, "cpu.idle", "0"),
            io_max: hierarchy.is_v2(Controller::Io)
                && disk.is_some_and(|disk| knob::set(dir, Knob::IoMax, &format!("{disk} wbps=max"), Some(disk)).is_ok()),
            pids_max: takes(Controller::Pids, "pids.max", "max"),
            freeze: v2_freezer && freezes(dir),
            kill: dir.write("cgroup.kill", "1").is_ok(),
            psi_group: matches!(crate::psi::read_file(&dir.path().join("memory.pressure")), Ok(Some(_))),
            xattr: keeps_attribute(dir),
            ..self
        }
    }

    /// What the ladder of the governor lacks, by the kernel's names; empty on a fully capable machine. Without `io.max` only the disk is not
    /// held, without the kill at once or the attribute there is another way.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            (self.memory_min, "memory.min"),
            (self.memory_high, "memory.high"),
            (self.swap_max, "memory.swap.max"),
            (self.reclaim, "memory.reclaim"),
            (self.cpu_max, "cpu.max"),
            (self.cpu_idle, "cpu.idle"),
            (self.io_max, "io.max"),
            (self.pids_max, "pids.max"),
            (self.freeze, "cgroup.freeze"),
            (self.kill, "cgroup.kill"),
            (self.psi, "/proc/pressure"),
            (self.psi_group, "memory.pressure"),
            (self.psi_window_ms.is_some(), "PSI triggers"),
            (self.xattr, "trusted extended attributes"),
            (self.sys_resource, "CAP_SYS_RESOURCE"),
        ];
        all.into_iter().filter(|(works, _)| !works).map(|(_, name)| name).collect()
    }
}

fn freezes(dir: &CgroupDir) -> bool {
    let stands_still = || dir.read_key("cgroup.events", "frozen").is_ok_and(|frozen| frozen == Some(1));
    let frozen = dir.write("cgroup.freeze", "1").is_ok() && stands_still();
    dir.write("cgroup.freeze", "0").is_ok() && frozen
}

fn keeps_attribute(dir: &CgroupDir) -> bool {
    let kept = ledger::keep_original(dir, Knob::Freeze, "0") && ledger::original(dir, Knob::Freeze).as_deref() == Some("0");
    ledger::drop_original(dir, Knob::Freeze);
    kept
}

fn has_capability(proc_root: &Path, bit: u32) -> bool {
    let Ok(status) = fs::read_to_string(proc_root.join("self/status")) else {
        return false;
    };
    let set = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << bit) != 0)
}

/// A group of our own, removed with this value.
struct Scratch {
    dir: CgroupDir,
}

impl Scratch {
    fn make(hierarchy: &Hierarchy, group: &str) -> crate::Result<Scratch> {
        let dir = knob::v2_dir(hierarchy, group, Controller::Freezer)?;
        if hierarchy.layout() == Layout::V2 {
            hierarchy.create(group, false)?;
        } else if !dir.exists() {
            // In the v2 hierarchy alone, which has no controllers to hand down.
            fs::create_dir_all(dir.path()).map_err(|source| crate::Error::Create { path: dir.path().to_owned(), source })?;
        }
        Ok(Scratch { dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(self.dir.path()) {
            tracing::debug!(path = %self.dir.path().display(), %error, "group kept");
        }
    }
}
