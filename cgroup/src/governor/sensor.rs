//! Reading what the governor sees, from files that stay open: one [`Sample`] costs some sixty reads and no allocation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::time::{ClockId, clock_gettime};

use super::sample::{Sample, Scope, Stalls};
use super::source::{Source, keyed, leading, stall};
use crate::{Controller, Hierarchy, PodTree, QosClass};

/// How often that is read which moves slowly.
const SLOW: Duration = Duration::from_secs(10);

/// `/proc/vmstat` and `memory.stat` of a kernel with everything are a quarter of it.
const BUFFER: usize = 32 * 1024;

/// Devices of compressed memory that are looked at.
const ZRAM_DEVICES: usize = 4;

/// The groups that are watched all the time, as paths from the cgroup mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes {
    /// `edge.slice`, or the agent's own group.
    pub agent: String,
    /// The service of containerd and its shims.
    pub runtime: String,
    /// All pods.
    pub kubepods: String,
    /// Burstable pods.
    pub burstable: String,
    /// BestEffort pods.
    pub best_effort: String,
}

impl Scopes {
    /// Those of a tree of pods, and the two groups beside it.
    pub fn of(tree: &PodTree, agent: &str, runtime: &str) -> Scopes {
        Scopes {
            agent: agent.to_owned(),
            runtime: runtime.to_owned(),
            kubepods: tree.kubepods(),
            burstable: tree.class(QosClass::Burstable),
            best_effort: tree.class(QosClass::BestEffort),
        }
    }
}

/// Where the sensor looks. `/proc` is where the [`Hierarchy`] says.
#[derive(Debug, Clone)]
pub struct SensorOptions {
    /// `/sys`.
    pub sys_root: PathBuf,
    /// A directory on the disk whose space is watched: that of the state.
    pub state_dir: PathBuf,
}

/// What the sensor is told by others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs {
    /// See [`Sample::heartbeat_lag`].
    pub heartbeat_lag: Duration,
    /// See [`Sample::write_age`].
    pub write_age: Duration,
    /// See [`Sample::frequency`].
    pub frequency: Option<f32>,
    /// See [`Sample::undervoltage`].
    pub undervoltage: bool,
}

/// The node's counters.
#[derive(Debug)]
pub struct Sensor {
    node: Pressures,
    scopes: [ScopeFiles; 5],
    meminfo: Source,
    vmstat: Source,
    loadavg: Source,
    threads_max: Source,
    conntrack_count: Source,
    conntrack_max: Source,
    zram: [Source; ZRAM_DEVICES],
    state_dir: PathBuf,
    slow: Slow,
    /// Whose `memory.stat` is read this time, beside the agent's: it costs as much as all other files of a group.
    turn: usize,
    buffer: Box<[u8]>,
}

/// What is read every [`SLOW`] only.
#[derive(Debug, Default, Clone, Copy)]
struct Slow {
    due: Duration,
    tasks_max: u64,
    disk: f32,
    inodes: f32,
    conntrack: f32,
}

impl Sensor {
    /// Opens nothing yet: what is missing is looked for at each reading, at most once a second.
    pub fn new(hierarchy: &Hierarchy, scopes: &Scopes, options: &SensorOptions) -> Sensor {
        let proc_root = hierarchy.proc_root();
        let file = |name: &str| Source::new(proc_root.join(name));
        let groups = [&scopes.agent, &scopes.runtime, &scopes.kubepods, &scopes.burstable, &scopes.best_effort];
        Sensor {
            node: Pressures::new(|resource| file(&format!("pressure/{resource}"))),
            scopes: groups.map(|group| ScopeFiles::new(hierarchy, group)),
            meminfo: file("meminfo"),
            vmstat: file("vmstat"),
            loadavg: file("loadavg"),
            threads_max: file("sys/kernel/threads-max"),
            conntrack_count: file("sys/net/netfilter/nf_conntrack_count"),
            conntrack_max: file("sys/net/netfilter/nf_conntrack_max"),
            zram: std::array::from_fn(|n| Source::new(options.sys_root.join(format!("block/zram{n}/mm_stat")))),
            state_dir: options.state_dir.clone(),
            slow: Slow::default(),
            turn: 0,
            buffer: vec![0; BUFFER].into(),
        }
    }

    /// One reading. What the kernel does not offer is `None` or 0.
    pub fn read(&mut self, inputs: Inputs) -> Sample {
        let at = boottime();
        let slow = at >= self.slow.due;
        if slow {
            self.read_slow(at);
        }
        let buffer = &mut self.buffer;
        let node = self.node.read(buffer, at);
        self.turn = self.turn % (self.scopes.len() - 1) + 1;
        let mut scope = |n: usize| self.scopes[n].read(buffer, at, slow, n == 0 || n == self.turn);
        let [agent, runtime, kubepods, burstable, best_effort] = [scope(0), scope(1), scope(2), scope(3), scope(4)];
        let mut sample = Sample {
            at,
            node,
            agent,
            runtime,
            kubepods,
            burstable,
            best_effort,
            heartbeat_lag: inputs.heartbeat_lag,
            write_age: inputs.write_age,
            frequency: inputs.frequency,
            undervoltage: inputs.undervoltage,
            tasks_max: self.slow.tasks_max,
            disk: self.slow.disk,
            inodes: self.slow.inodes,
            conntrack: self.slow.conntrack,
            ..Sample::default()
        };
        if let Some(text) = self.meminfo.read(buffer, at) {
            let bytes = |key| keyed(text, key).unwrap_or(0).saturating_mul(1024);
            sample.available = bytes("MemAvailable");
            sample.swap_total = bytes("SwapTotal");
            sample.swap_used = sample.swap_total.saturating_sub(bytes("SwapFree"));
        }
        // The refaults come before it.
        if let Some(text) = self.vmstat.read_until(buffer, at, |text| keyed(text, "pswpin").is_some()) {
            sample.swapped_in = keyed(text, "pswpin").unwrap_or(0);
            sample.file_refaults = keyed(text, "workingset_refault_file").or_else(|| keyed(text, "workingset_refault")).unwrap_or(0);
        }
        sample.tasks = self.loadavg.read(buffer, at).and_then(tasks).unwrap_or(0);
        if sample.swap_total > 0 {
            sample.zram = self.zram.iter_mut().filter_map(|device| zram_used(device.read(buffer, at)?)).sum();
        }
        sample
    }

    fn read_slow(&mut self, at: Duration) {
        let buffer = &mut self.buffer;
        let conntrack = match (self.conntrack_count.number(buffer, at), self.conntrack_max.number(buffer, at)) {
            (Some(count), Some(max)) => share(count, max),
            _ => 0.0,
        };
        let (disk, inodes) = disk(&self.state_dir).unwrap_or_default();
        let tasks_max = self.threads_max.number(buffer, at).unwrap_or(0);
        self.slow = Slow { due: at + SLOW, tasks_max, disk, inodes, conntrack };
    }
}

/// Time since boot, suspension included: the clock of [`Sample::at`].
pub fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Three pressure files.
#[derive(Debug)]
struct Pressures {
    cpu: Source,
    memory: Source,
    io: Source,
}

impl Pressures {
    fn new(file: impl Fn(&str) -> Source) -> Pressures {
        Pressures { cpu: file("cpu"), memory: file("memory"), io: file("io") }
    }

    fn read(&mut self, buffer: &mut [u8], at: Duration) -> Stalls {
        let mut one = |source: &mut Source| stall(source.read(buffer, at)?);
        Stalls { cpu: one(&mut self.cpu), memory: one(&mut self.memory), io: one(&mut self.io) }
    }
}

/// The files of one scope.
#[derive(Debug)]
struct ScopeFiles {
    pressures: Pressures,
    current: Source,
    swap: Source,
    events_local: Source,
    events: Source,
    stat: Source,
    pids: Source,
    pids_max: Source,
    tasks_max: Option<u64>,
    refaults: u64,
}

impl ScopeFiles {
    fn new(hierarchy: &Hierarchy, group: &str) -> ScopeFiles {
        let unified = hierarchy.unified_dir(group);
        let file = |name: &str| unified.as_ref().map_or_else(Source::absent, |dir| Source::new(dir.path().join(name)));
        let of = |controller: Controller, name: &str| if hierarchy.is_v2(controller) { file(name) } else { Source::absent() };
        ScopeFiles {
            pressures: Pressures::new(|resource| file(&format!("{resource}.pressure"))),
            current: of(Controller::Memory, "memory.current"),
            swap: of(Controller::Memory, "memory.swap.current"),
            events_local: of(Controller::Memory, "memory.events.local"),
            events: of(Controller::Memory, "memory.events"),
            stat: of(Controller::Memory, "memory.stat"),
            pids: of(Controller::Pids, "pids.current"),
            pids_max: of(Controller::Pids, "pids.max"),
            tasks_max: None,
            refaults: 0,
        }
    }

    fn read(&mut self, buffer: &mut [u8], at: Duration, slow: bool, stat: bool) -> Scope {
        if slow {
            self.tasks_max = self.pids_max.number(buffer, at);
        }
        let mut scope = Scope {
            stalls: self.pressures.read(buffer, at),
            memory: self.current.number(buffer, at).unwrap_or(0),
            swap: self.swap.number(buffer, at).unwrap_or(0),
            tasks: self.pids.number(buffer, at).unwrap_or(0),
            tasks_max: self.tasks_max,
            ..Scope::default()
        };
        if let Some(text) = self.events_local.read(buffer, at) {
            scope.high_events = keyed(text, "high").unwrap_or(0);
            scope.max_events = keyed(text, "max").unwrap_or(0);
        }
        if let Some(text) = self.events.read(buffer, at) {
            scope.oom_kills = keyed(text, "oom_kill").unwrap_or(0);
        }
        if slow || stat {
            self.refaults = self.stat.read(buffer, at).map_or(0, refaults);
        }
        scope.refaults = self.refaults;
        scope
    }
}

/// Refaults of both kinds; kernels before 5.9 have one counter for both.
pub(super) fn refaults(stat: &str) -> u64 {
    match (keyed(stat, "workingset_refault_anon"), keyed(stat, "workingset_refault_file")) {
        (None, None) => keyed(stat, "workingset_refault").unwrap_or(0),
        (anon, file) => anon.unwrap_or(0).saturating_add(file.unwrap_or(0)),
    }
}

/// The number of tasks: what follows the slash in `0.20 0.18 0.12 1/80 11206`.
fn tasks(loadavg: &str) -> Option<u64> {
    leading(loadavg.split_once('/')?.1)
}

/// `mem_used_total`, the third number.
fn zram_used(mm_stat: &str) -> Option<u64> {
    leading(mm_stat.split_ascii_whitespace().nth(2)?)
}

/// Used shares of space and inodes, as `df` counts them.
fn disk(dir: &Path) -> Option<(f32, f32)> {
    let now = statvfs(dir).ok()?;
    let used = now.blocks().saturating_sub(now.blocks_free());
    let inodes = now.files().saturating_sub(now.files_free());
    Some((share(used as u64, (used + now.blocks_available()) as u64), share(inodes as u64, now.files() as u64)))
}

fn share(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_inside_lines() {
        assert_eq!(tasks("0.20 0.18 0.12 1/812 11206\n"), Some(812));
        assert_eq!(tasks("0.20"), None);
        assert_eq!(zram_used("  4096   74 12288        0    12288        0        0        0        0\n"), Some(12_288));
        assert_eq!(zram_used("1 2"), None);
        assert_eq!(refaults("workingset_refault_anon 3\nworkingset_refault_file 4\n"), 7);
        assert_eq!(refaults("workingset_refault 9\n"), 9);
        assert_eq!((share(1, 4), share(1, 0)), (0.25, 0.0));
    }
}
