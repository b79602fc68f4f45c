//! What groups use, as the kubelet reports it: working set is usage less inactive file pages, CPU in nanoseconds.
//!
//! A value that the kernel does not offer is `None`, never 0.

use std::fs;

use procfs::{FromRead, Meminfo};

use crate::dir::{CgroupDir, keyed};
use crate::psi::{self, Pressure, Resource};
use crate::value::Limit;
use crate::{Controller, Error, Hierarchy, Result};

/// Memory of a group and all below it, bytes unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// Usage less inactive file pages: what eviction and `kubectl top` look at.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults since the group was made.
    pub page_faults: u64,
    /// Those that had to read from a disk.
    pub major_page_faults: u64,
    /// The hard limit.
    pub limit: Limit,
}

/// Processor time of a group and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Nanoseconds since the group was made.
    pub usage_ns: u64,
    /// Nanoseconds for which the group was kept from running by its quota; `None` without a quota file.
    pub throttled_ns: Option<u64>,
}

/// Pressure on a group by resource; `None` where the kernel does not measure it, as in every v1 hierarchy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// `cpu.pressure`
    pub cpu: Option<Pressure>,
    /// `memory.pressure`
    pub memory: Option<Pressure>,
    /// `io.pressure`
    pub io: Option<Pressure>,
}

/// One reading of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Memory, `None` without a memory controller.
    pub memory: Option<Memory>,
    /// CPU, `None` without CPU accounting.
    pub cpu: Option<Cpu>,
    /// Tasks.
    pub tasks: Option<u64>,
    /// Processes killed because the group, or one below it on v2, was out of memory.
    pub oom_kills: Option<u64>,
    /// Pressure.
    pub pressure: Pressures,
}

/// Reads a group (a path from the mounts, such as `/kubepods`). An error that [`Error::is_gone`] means that it ended.
pub fn group(hierarchy: &Hierarchy, group: &str) -> Result<Stats> {
    let memory = if hierarchy.has(Controller::Memory) {
        Some(memory(&hierarchy.dir(Controller::Memory, group)?, hierarchy.is_v2(Controller::Memory))?)
    } else {
        None
    };
    Ok(Stats {
        memory,
        cpu: cpu(hierarchy, group)?,
        tasks: number_if_there(hierarchy, Controller::Pids, group, "pids.current")?,
        oom_kills: oom_kills(hierarchy, group)?,
        pressure: pressures(hierarchy, group)?,
    })
}

/// Reads the whole machine. On v2 the root group has no memory files, so that memory is what `/proc/meminfo` calls not free.
pub fn node(hierarchy: &Hierarchy) -> Result<Stats> {
    let root = hierarchy.dir(Controller::Memory, "/").ok();
    let memory = match root {
        Some(dir) if !hierarchy.is_v2(Controller::Memory) => memory(&dir, false)?,
        v2 => node_memory(hierarchy, v2)?,
    };
    let proc_root = hierarchy.proc_root();
    Ok(Stats {
        memory: Some(memory),
        cpu: cpu(hierarchy, "/")?,
        tasks: None,
        oom_kills: node_oom_kills(hierarchy),
        pressure: Pressures {
            cpu: psi::read_in(proc_root, Resource::Cpu)?,
            memory: psi::read_in(proc_root, Resource::Memory)?,
            io: psi::read_in(proc_root, Resource::Io)?,
        },
    })
}

fn memory(dir: &CgroupDir, v2: bool) -> Result<Memory> {
    let (usage_file, limit_file, inactive, rss, faults, major) = if v2 {
        ("memory.current", "memory.max", "inactive_file", "anon", "pgfault", "pgmajfault")
    } else {
        ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault")
    };
    let usage = dir.read_u64(usage_file)?;
    let stat = dir.read("memory.stat")?;
    let number = |key| match keyed(&stat, key) {
        Some(Ok(number)) => Ok(number),
        Some(Err(())) | None => Err(dir.parse_error("memory.stat", &stat, "lines of a key and a number")),
    };
    Ok(Memory {
        usage,
        working_set: usage.saturating_sub(number(inactive)?),
        rss: number(rss)?,
        page_faults: number(faults)?,
        major_page_faults: number(major)?,
        limit: dir.read_limit(limit_file)?,
    })
}

fn node_memory(hierarchy: &Hierarchy, root: Option<CgroupDir>) -> Result<Memory> {
    let path = hierarchy.proc_root().join("meminfo");
    let meminfo = fs::File::open(&path).map_err(|source| Error::Read { path: path.clone(), source }).and_then(|open| {
        Meminfo::from_read(open).map_err(|_| Error::Parse { path: path.clone(), text: String::new(), expected: "memory totals" })
    })?;
    let stat = root.and_then(|dir| dir.read("memory.stat").ok()).unwrap_or_default();
    let number = |key, otherwise| match keyed(&stat, key) {
        Some(Ok(number)) => number,
        Some(Err(())) | None => otherwise,
    };
    let usage = meminfo.mem_total.saturating_sub(meminfo.mem_free);
    let inactive = number("inactive_file", meminfo.inactive_file.unwrap_or(0));
    Ok(Memory {
        usage,
        working_set: usage.saturating_sub(inactive),
        rss: number("anon", meminfo.anon_pages.unwrap_or(0)),
        page_faults: number("pgfault", 0),
        major_page_faults: number("pgmajfault", 0),
        limit: Limit::None,
    })
}

fn cpu(hierarchy: &Hierarchy, group: &str) -> Result<Option<Cpu>> {
    if hierarchy.is_v2(Controller::CpuAcct) {
        let dir = hierarchy.dir(Controller::CpuAcct, group)?;
        let text = dir.read("cpu.stat")?;
        return match keyed(&text, "usage_usec") {
            Some(Ok(us)) => Ok(Some(Cpu {
                usage_ns: us.saturating_mul(1000),
                throttled_ns: keyed(&text, "throttled_usec").and_then(Result::ok).map(|us| us.saturating_mul(1000)),
            })),
            Some(Err(())) | None => Err(dir.parse_error("cpu.stat", &text, "CPU times")),
        };
    }
    let Some(usage_ns) = number_if_there(hierarchy, Controller::CpuAcct, group, "cpuacct.usage")? else {
        return Ok(None);
    };
    let throttled_ns = match hierarchy.dir(Controller::Cpu, group) {
        Ok(dir) => dir.read_key("cpu.stat", "throttled_time").unwrap_or(None),
        Err(_) => None,
    };
    Ok(Some(Cpu { usage_ns, throttled_ns }))
}

fn number_if_there(hierarchy: &Hierarchy, controller: Controller, group: &str, file: &str) -> Result<Option<u64>> {
    if !hierarchy.has(controller) {
        return Ok(None);
    }
    hierarchy.dir(controller, group)?.read_u64(file).map(Some)
}

/// Processes killed for want of memory in `group`: v2 counts the groups below too, v1 only the group itself.
pub fn oom_kills(hierarchy: &Hierarchy, group: &str) -> Result<Option<u64>> {
    if !hierarchy.has(Controller::Memory) {
        return Ok(None);
    }
    let dir = hierarchy.dir(Controller::Memory, group)?;
    if hierarchy.is_v2(Controller::Memory) {
        dir.read_key("memory.events", "oom_kill")
    } else {
        dir.read_key("memory.oom_control", "oom_kill")
    }
}

fn node_oom_kills(hierarchy: &Hierarchy) -> Option<u64> {
    let text = fs::read_to_string(hierarchy.proc_root().join("vmstat")).ok()?;
    keyed(&text, "oom_kill")?.ok()
}

/// What a group lost, and how near it is to its limits. What the kernel does not offer is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Swap in use, bytes.
    pub swap: Option<u64>,
    /// Pages of files that were read again after they had been taken away.
    pub refaults: Option<u64>,
    /// How often each limit of its memory was met; v2 only.
    pub events: Option<MemoryEvents>,
    /// The most tasks; `None` without a limit, too.
    pub tasks_max: Option<u64>,
}

/// `memory.events`: of the group and all below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
}

/// Reads them. An error that [`Error::is_gone`] means that the group ended.
pub fn bounds(hierarchy: &Hierarchy, group: &str) -> Result<Bounds> {
    let mut bounds = Bounds::default();
    if hierarchy.has(Controller::Pids) {
        bounds.tasks_max = hierarchy.dir(Controller::Pids, group)?.read_limit("pids.max")?.value();
    }
    if !hierarchy.has(Controller::Memory) {
        return Ok(bounds);
    }
    let dir = hierarchy.dir(Controller::Memory, group)?;
    let number = |text: &str, key| keyed(text, key).and_then(std::result::Result::ok);
    let stat = dir.read("memory.stat")?;
    if hierarchy.is_v2(Controller::Memory) {
        bounds.refaults = number(&stat, "workingset_refault_file");
        bounds.swap = dir.has("memory.swap.current").then(|| dir.read_u64("memory.swap.current")).transpose()?;
        let events = dir.read("memory.events")?;
        let count = |key| number(&events, key).unwrap_or(0);
        bounds.events = Some(MemoryEvents {
            low: count("low"),
            high: count("high"),
            max: count("max"),
            oom: count("oom"),
            oom_kill: count("oom_kill"),
        });
    } else {
        bounds.refaults = number(&stat, "total_workingset_refault_file");
        bounds.swap = number(&stat, "total_swap");
    }
    Ok(bounds)
}

/// Pressure on a group, from the v2 hierarchy.
pub fn pressures(hierarchy: &Hierarchy, group: &str) -> Result<Pressures> {
    let Some(dir) = hierarchy.unified_dir(group) else {
        return Ok(Pressures::default());
    };
    let read = |resource: Resource| psi::read_file(&dir.path().join(format!("{}.pressure", resource.as_str())));
    Ok(Pressures { cpu: read(Resource::Cpu)?, memory: read(Resource::Memory)?, io: read(Resource::Io)? })
}
