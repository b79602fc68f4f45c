//! A cgroup tree of ordinary files in a temporary directory, for one of the three layouts.
//!
//! Point `cgroup::Hierarchy::detect_in` at [`FakeCgroupfs::proc_root`]. Unlike the kernel it does not fill a new directory with control files,
//! check values, or let a directory with files be removed: [`FakeCgroupfs::group`] makes a group as the kernel would, and what only the
//! kernel does is tested against the real one.

use std::fs;
use std::path::{Path, PathBuf};

/// Controllers of the v1 hierarchies, each mounted by itself.
const V1: &[(&str, &[(&str, &str)])] = &[
    ("cpu", &[("cpu.shares", "1024"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "-1"), ("cpu.stat", "throttled_time 0")]),
    ("cpuacct", &[("cpuacct.usage", "0")]),
    ("cpuset", &[("cpuset.cpus", ""), ("cpuset.mems", "")]),
    (
        "memory",
        &[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("memory.usage_in_bytes", "0"),
            ("memory.stat", "total_rss 0\ntotal_pgfault 0\ntotal_pgmajfault 0\ntotal_inactive_file 0"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0"),
        ],
    ),
    ("pids", &[("pids.max", "max"), ("pids.current", "0")]),
    ("freezer", &[("freezer.state", "THAWED")]),
];

const V2: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpuset cpu io memory pids"),
    ("cgroup.subtree_control", ""),
    ("cgroup.events", "populated 0\nfrozen 0"),
    ("cgroup.freeze", "0"),
    ("cgroup.kill", ""),
    ("cpu.weight", "100"),
    ("cpu.max", "max 100000"),
    ("cpu.idle", "0"),
    ("cpu.stat", "usage_usec 0\nnr_throttled 0\nthrottled_usec 0"),
    ("io.max", ""),
    ("io.stat", ""),
    ("memory.current", "0"),
    ("memory.min", "0"),
    ("memory.low", "0"),
    ("memory.high", "max"),
    ("memory.max", "max"),
    ("memory.reclaim", ""),
    ("memory.swap.current", "0"),
    ("memory.swap.max", "max"),
    ("memory.stat", "anon 0\npgfault 0\npgmajfault 0\ninactive_file 0"),
    ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0"),
    ("memory.events.local", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0"),
    ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"),
    ("pids.max", "max"),
    ("pids.current", "0"),
    ("pids.events", "max 0"),
];

/// Which layout to imitate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One v2 mount.
    V2,
    /// v1 mounts, and a v2 mount without controllers.
    Hybrid,
    /// v1 mounts.
    V1,
}

/// The tree; removed with the value.
#[derive(Debug)]
pub struct FakeCgroupfs {
    root: tempfile::TempDir,
    kind: Kind,
}

impl FakeCgroupfs {
    /// A machine with that layout, its root groups, and 1 GiB of memory.
    pub fn new(kind: Kind) -> FakeCgroupfs {
        let root = tempfile::tempdir().expect("temporary directory");
        let fake = FakeCgroupfs { root, kind };
        let proc_self = fake.proc_root().join("self");
        fs::create_dir_all(&proc_self).expect("create proc");
        let meminfo = "MemTotal: 1048576 kB\nMemFree: 524288 kB\nBuffers: 0 kB\nCached: 0 kB\nSwapCached: 0 kB\nActive: 0 kB\n\
                       Inactive: 0 kB\nActive(anon): 0 kB\nInactive(anon): 0 kB\nActive(file): 0 kB\nInactive(file): 1024 kB\n\
                       SwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\nMapped: 0 kB\nSlab: 0 kB\n\
                       Committed_AS: 0 kB\nVmallocTotal: 0 kB\nVmallocUsed: 0 kB\nVmallocChunk: 0 kB\n";
        fs::write(fake.proc_root().join("meminfo"), meminfo).expect("write meminfo");
        let mut mounts = String::new();
        let mut mount = |at: &Path, kind: &str, options: &str| {
            let id = mounts.lines().count() + 30;
            mounts += &format!("{id} 23 0:{id} / {} rw,relatime - {kind} {kind} rw,{options}\n", at.display());
        };
        if kind != Kind::V2 {
            for (name, _) in V1 {
                mount(&fake.mount(name), "cgroup", name);
            }
            mount(&fake.mount("systemd"), "cgroup", "xattr,name=systemd");
        }
        if kind != Kind::V1 {
            mount(&fake.mount("unified"), "cgroup2", "nsdelegate");
        }
        fs::write(proc_self.join("mountinfo"), mounts).expect("write mountinfo");
        fake.group("/");
        if kind != Kind::V2 {
            fake.set("cpuset", "/", "cpuset.cpus", "0-3");
            fake.set("cpuset", "/", "cpuset.mems", "0");
        }
        fake
    }

    /// Stands for `/proc`.
    pub fn proc_root(&self) -> PathBuf {
        self.root.path().join("proc")
    }

    /// Makes a group in every hierarchy, with the files and defaults the kernel would give it.
    pub fn group(&self, group: &str) -> &FakeCgroupfs {
        if self.kind != Kind::V2 {
            for (controller, files) in V1 {
                self.fill(&self.mount(controller), group, files);
            }
            self.fill(&self.mount("systemd"), group, &[]);
        }
        match self.kind {
            Kind::V2 => self.fill(&self.mount("unified"), group, V2),
            Kind::Hybrid => self.fill(&self.mount("unified"), group, &[("cgroup.controllers", "")]),
            Kind::V1 => {}
        }
        self
    }

    /// Where a hierarchy is mounted: a v1 controller's name, or `unified`.
    pub fn mount(&self, hierarchy: &str) -> PathBuf {
        self.root.path().join("cgroup").join(hierarchy)
    }

    /// What a control file holds.
    pub fn get(&self, hierarchy: &str, group: &str, file: &str) -> String {
        let path = self.path(hierarchy, group).join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
    }

    /// Makes a control file hold something, as the kernel would.
    pub fn set(&self, hierarchy: &str, group: &str, file: &str, value: &str) -> &FakeCgroupfs {
        let path = self.path(hierarchy, group).join(file);
        fs::write(&path, format!("{value}\n")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self
    }

    fn path(&self, hierarchy: &str, group: &str) -> PathBuf {
        self.mount(hierarchy).join(group.trim_matches('/'))
    }

    fn fill(&self, mount: &Path, group: &str, files: &[(&str, &str)]) {
        let dir = mount.join(group.trim_matches('/'));
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for (name, value) in files.iter().chain(&[("cgroup.procs", "")]) {
            fs::write(dir.join(name), format!("{value}\n")).expect("write control file");
        }
    }
}
