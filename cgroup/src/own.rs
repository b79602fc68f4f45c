//! Where the agent itself runs: in a group of its own beside `kubepods`, so that no pod competes inside it.
//!
//! As a systemd service it already has one, with its limits in the unit. Elsewhere it makes one, protected by
//! `memory.min` on v2 (on every ancestor too, or it does nothing: governor 2.2). On v1 a process is only taken out of
//! the root group of a hierarchy: where somebody else put it into a group, that accounting is left alone.

use std::fs;
use std::path::PathBuf;

use crate::limits::{self, Limits};
use crate::path::{Driver, Names};
use crate::value::Limit;
use crate::{Controller, Error, Hierarchy, Result, library};

/// What a part of the agent may use and is promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// Promised memory in bytes; v2 only.
    pub memory_min: Option<u64>,
    /// Most memory in bytes: a guard against a runaway.
    pub memory_max: Option<u64>,
    /// CPU shares as v1 counts them, 1024 being the default.
    pub cpu_shares: Option<u64>,
    /// CPU weight on v2, 100 being the default.
    pub cpu_weight: Option<u64>,
    /// Most tasks.
    pub pids_max: Option<u64>,
}

/// Where a process ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// systemd runs it as a service; the unit's settings hold.
    Service {
        /// The service's group.
        group: String,
    },
    /// It is in a group of its own.
    Own {
        /// That group.
        group: String,
        /// Controllers whose hierarchy it could not or may not enter.
        left_out: Vec<&'static str>,
    },
}

const AGENT: &str = "edge-agent";

/// Puts this process into `<cgroup_root>/edge-agent`, or leaves it where systemd started it as a service.
pub fn own_group(hierarchy: &Hierarchy, cgroup_root: &str, limits: &OwnLimits) -> Result<Placement> {
    let pid = std::process::id();
    let service = current_groups(hierarchy, pid)?.into_iter().find(|(_, group)| group.ends_with(".service"));
    match service {
        Some((_, group)) => Ok(Placement::Service { group }),
        None => Placement::enter(hierarchy, cgroup_root, AGENT, pid, limits),
    }
}

/// Makes `<cgroup_root>/<name>` for a part such as a containerd that this process is about to start, and returns the
/// directories whose `cgroup.procs` the new process is to be written to, one per hierarchy, before it has children.
pub fn part_group(hierarchy: &Hierarchy, cgroup_root: &str, name: &str, limits: &OwnLimits) -> Result<Vec<PathBuf>> {
    let entry = Entry::prepare(hierarchy, cgroup_root, name, std::process::id(), limits)?;
    let mut dirs = Vec::new();
    for controller in entry.v1 {
        dirs.push(hierarchy.dir(controller, &entry.group)?.path().to_owned());
    }
    if entry.v2 {
        dirs.extend(hierarchy.unified_dir(&entry.group).map(|dir| dir.path().to_owned()));
    }
    dirs.dedup();
    Ok(dirs)
}

impl Placement {
    /// Puts the living process `pid` into `<cgroup_root>/<name>`. Children it had already stay where they were.
    pub fn enter(hierarchy: &Hierarchy, cgroup_root: &str, name: &str, pid: u32, limits: &OwnLimits) -> Result<Placement> {
        let Entry { group, v1, v2, left_out } = Entry::prepare(hierarchy, cgroup_root, name, pid, limits)?;
        if !v1.is_empty() {
            library::move_process(hierarchy, &group, &v1, pid)?;
        }
        if v2 {
            library::move_process(hierarchy, &group, &[], pid)?;
        }
        Ok(Placement::Own { group, left_out })
    }
}

/// A group that is ready, and the hierarchies in which a process may enter it.
struct Entry {
    group: String,
    v1: Vec<Controller>,
    v2: bool,
    left_out: Vec<&'static str>,
}

impl Entry {
    fn prepare(hierarchy: &Hierarchy, cgroup_root: &str, name: &str, pid: u32, limits: &OwnLimits) -> Result<Entry> {
        let names = Names::new(cgroup_root, Driver::Cgroupfs)?;
        let group = names.beside(name);
        hierarchy.create(&group, false)?;
        if let Some(min) = limits.memory_min {
            protect_ancestors(hierarchy, &group, min)?;
        }
        limits::apply(
            hierarchy,
            &group,
            &Limits {
                memory_min: limits.memory_min,
                memory_max: limits.memory_max.map(Limit::At),
                cpu_shares: limits.cpu_shares,
                cpu_weight: limits.cpu_weight,
                pids_max: limits.pids_max.map(Limit::At),
                ..Limits::default()
            },
        )?;

        let now = current_groups(hierarchy, pid)?;
        let ours = names.beside(AGENT);
        let (mut v1, mut left_out) = (Vec::new(), Vec::new());
        for controller in [Controller::Cpu, Controller::CpuAcct, Controller::Memory, Controller::Pids] {
            if !hierarchy.v1().contains_key(&controller) {
                continue;
            }
            let at = now.iter().find_map(|(names, group)| {
                let here = names.split(',').any(|name| name == controller.v1_name());
                here.then_some(group.as_str())
            });
            match at {
                Some(at) if at == "/" || at == group || at == ours => v1.push(controller),
                Some(_) | None => left_out.push(controller.v1_name()),
            }
        }
        let v2 = [Controller::Cpu, Controller::Memory, Controller::Pids].into_iter().any(|controller| hierarchy.is_v2(controller));
        Ok(Entry { group, v1, v2, left_out })
    }
}

/// Raises `memory.min` of the groups between the mount and `group` to at least `min`.
fn protect_ancestors(hierarchy: &Hierarchy, group: &str, min: u64) -> Result<()> {
    if !hierarchy.is_v2(Controller::Memory) {
        return Ok(());
    }
    let mut at = group;
    while let Some((parent, _)) = at.rsplit_once('/') {
        if parent.is_empty() {
            break;
        }
        let dir = hierarchy.dir(Controller::Memory, parent)?;
        if dir.read_limit("memory.min")?.value().is_some_and(|now| now < min) {
            dir.write("memory.min", &min.to_string())?;
        }
        at = parent;
    }
    Ok(())
}

/// The process's groups as `(controllers, group)`, with no controllers for v2.
fn current_groups(hierarchy: &Hierarchy, pid: u32) -> Result<Vec<(String, String)>> {
    let path = hierarchy.proc_root().join(pid.to_string()).join("cgroup");
    let text = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            Some((controllers.to_owned(), group.to_owned()))
        })
        .collect())
}
