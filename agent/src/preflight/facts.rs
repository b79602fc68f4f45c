//! What the checks look at, read once and judged elsewhere. `None` stands for what the machine does not say.
//!
//! Everything below `/proc`, `/sys`, `/etc`, `/boot` and `/run` is read below one root, so that tests bring their own.

pub(super) mod board;
pub(super) mod boot;
pub(super) mod cgroups;
pub(super) mod kernel;
pub(super) mod node;
pub(super) mod runtime;
pub(super) mod services;
pub(super) mod storage;

use std::path::{Path, PathBuf};

use crate::config::Config;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// A few small files: no programs, no connections, nothing written. For the start of the agent.
    Cheap,
    /// Everything but the measurement of the disk.
    Look,
    /// Everything.
    Full,
}

/// Everything a check may know.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Runs as root.
    pub root: bool,
    /// `MemTotal`.
    pub memory_mib: u64,
    pub boot: boot::Boot,
    pub cgroups: cgroups::Cgroups,
    pub storage: storage::Storage,
    pub kernel: kernel::Kernel,
    pub services: services::Services,
    pub runtime: runtime::Runtime,
    pub board: board::Hardware,
    /// What one instance needs beside the list; not looked at by [`Depth::Cheap`].
    pub node: Option<node::Node>,
}

impl Facts {
    /// Looks at this machine for this instance.
    pub fn gather(config: &Config, depth: Depth) -> Facts {
        Facts::gather_in(Path::new("/"), config, depth)
    }

    /// The same below another root.
    pub fn gather_in(root: &Path, config: &Config, depth: Depth) -> Facts {
        let root = Root(root.to_owned());
        let is_root = nix::unistd::geteuid().is_root();
        let processes = services::processes(&root);
        // An agent at work is not disturbed by measuring its disk.
        let running = std::os::unix::net::UnixStream::connect(config.control_socket()).is_ok();
        let measure = depth == Depth::Full && is_root && !running;
        let storage = storage::gather(&root, config, measure);
        let runtime = runtime::gather(&root, config, depth);
        Facts {
            root: is_root,
            memory_mib: root.meminfo_kib("MemTotal").unwrap_or(0) / 1024,
            boot: boot::gather(&root, config),
            cgroups: cgroups::gather(&root, storage.disk.as_ref(), depth != Depth::Cheap && is_root),
            services: services::gather(&root, processes, depth),
            board: board::gather(&root, depth),
            kernel: kernel::gather(&root),
            node: (depth != Depth::Cheap).then(|| node::gather(&root, config, running)),
            storage,
            runtime,
        }
    }
}

/// Where the machine's files are.
#[derive(Debug, Clone)]
pub(super) struct Root(pub PathBuf);

impl Root {
    /// The place of an absolute path.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The text of a file, if there is one that can be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok()
    }

    /// A file that holds a number.
    pub(super) fn number<N: std::str::FromStr>(&self, path: &str) -> Option<N> {
        self.read(path)?.trim().parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// Names in a directory, sorted.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// One line of `/proc/meminfo`.
    pub(super) fn meminfo_kib(&self, key: &str) -> Option<u64> {
        let text = self.read("/proc/meminfo")?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// Type and options of the file system mounted last at `place`: options of the mount, then of the file system.
    pub(super) fn mount(&self, place: &str) -> Option<(String, String)> {
        let text = self.read("/proc/self/mountinfo")?;
        let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some(place))?;
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?.to_owned();
        Some((kind, format!("{},{}", left.split(' ').nth(5)?, right.nth(1).unwrap_or_default())))
    }
}

/// Whether a program is in the usual directories, `PATH` included.
pub(super) fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(name).is_file())
}
