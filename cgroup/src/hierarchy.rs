//! Which cgroup layout this machine has and where each controller lives.
//!
//! Read from the list of mounts alone: kernel version, kernel command line and `/proc/cgroups` all mislead (governor reference,
//! sections 1.4 and 6.2). The process root is an argument, so that tests bring their own tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::MountInfos;

use crate::dir::CgroupDir;
use crate::mode::{self, GovernorMode, Probed};
use crate::{Error, Result, library};

/// The arrangement of hierarchies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One cgroup v2 hierarchy with all controllers.
    V2,
    /// Controllers in v1 hierarchies and a cgroup v2 mount beside them.
    Hybrid,
    /// v1 hierarchies only.
    V1,
}

/// A resource controller this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time: `cpu`.
    Cpu,
    /// CPU accounting, a controller of its own on v1 only and part of `cpu` on v2: `cpuacct`.
    CpuAcct,
    /// Placement: `cpuset`.
    CpuSet,
    /// Memory: `memory`.
    Memory,
    /// Number of tasks: `pids`.
    Pids,
    /// Block devices: `io` on v2, `blkio` on v1.
    Io,
    /// Device access, v1 only: `devices`.
    Devices,
    /// Freezing, a controller on v1 only: `freezer`.
    Freezer,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 8] = [
        Controller::Cpu,
        Controller::CpuAcct,
        Controller::CpuSet,
        Controller::Memory,
        Controller::Pids,
        Controller::Io,
        Controller::Devices,
        Controller::Freezer,
    ];

    /// The name in `cgroup.controllers`, or the v1 name of those that v2 does not have.
    pub fn v2_name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::CpuAcct => "cpuacct",
            Controller::CpuSet => "cpuset",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Io => "io",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
        }
    }

    /// The mount option on v1.
    pub fn v1_name(self) -> &'static str {
        match self {
            Controller::Io => "blkio",
            other => other.v2_name(),
        }
    }
}

/// What the messages of [`Hierarchy::advice`] depend on beside the mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board {
    /// The device tree calls this machine a Raspberry Pi.
    pub raspberry_pi: bool,
    /// `/proc/pressure` exists.
    pub psi: bool,
}

impl Board {
    /// Looks at the machine whose `/proc` is at `proc_root`.
    pub fn detect(proc_root: &Path) -> Board {
        let model = fs::read_to_string(proc_root.join("device-tree/model")).unwrap_or_default();
        Board { raspberry_pi: model.contains("Raspberry Pi"), psi: proc_root.join("pressure/memory").exists() }
    }
}

/// The mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    layout: Layout,
    proc_root: PathBuf,
    unified: Option<PathBuf>,
    unified_controllers: BTreeSet<Controller>,
    v1: BTreeMap<Controller, PathBuf>,
    /// v1 mounts that hold none of our controllers (`name=systemd`, `net_cls`, ...): runtimes make groups there too.
    v1_other: Vec<PathBuf>,
}

impl Hierarchy {
    /// Looks at this machine.
    pub fn detect() -> Result<Hierarchy> {
        Hierarchy::detect_in(Path::new("/proc"))
    }

    /// Looks at the machine whose process file system is mounted at `proc_root`.
    pub fn detect_in(proc_root: &Path) -> Result<Hierarchy> {
        let path = proc_root.join("self/mountinfo");
        let open = fs::File::open(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let mounts = MountInfos::from_read(open).map_err(|error| Error::Mounts { path: path.clone(), detail: error.to_string() })?;

        let mut v1 = BTreeMap::new();
        let mut v1_other = Vec::new();
        let mut unified: Option<PathBuf> = None;
        for mount in mounts {
            match mount.fs_type.as_str() {
                "cgroup" => {
                    let mut ours = false;
                    for controller in Controller::ALL {
                        if mount.super_options.contains_key(controller.v1_name()) {
                            ours = true;
                            v1.entry(controller).or_insert_with(|| mount.mount_point.clone());
                        }
                    }
                    if !ours {
                        v1_other.push(mount.mount_point);
                    }
                }
                // The first one wins, except that the usual place beats a copy mounted elsewhere (containers have them).
                "cgroup2" => {
                    let usual = mount.mount_point.starts_with("/sys/fs/cgroup");
                    let replace = match &unified {
                        None => true,
                        Some(known) => usual && !known.starts_with("/sys/fs/cgroup"),
                    };
                    if replace {
                        unified = Some(mount.mount_point);
                    }
                }
                _ => {}
            }
        }
        let unified_controllers = match &unified {
            None => BTreeSet::new(),
            Some(mount) => {
                let words = CgroupDir::new(mount).read("cgroup.controllers")?;
                Controller::ALL.into_iter().filter(|c| words.split_whitespace().any(|word| word == c.v2_name())).collect()
            }
        };
        let layout = match (&unified, v1.is_empty()) {
            (Some(_), true) => Layout::V2,
            (Some(_), false) => Layout::Hybrid,
            (None, false) => Layout::V1,
            (None, true) => return Err(Error::NotMounted { mountinfo: path }),
        };
        Ok(Hierarchy { layout, proc_root: proc_root.to_owned(), unified, unified_controllers, v1, v1_other })
    }

    /// The arrangement.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Where `/proc` is.
    pub fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    /// The cgroup v2 mount, if there is one; on a hybrid machine it usually has no controllers.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Whether some hierarchy offers the controller. `cpuacct` is part of `cpu` on v2, freezing is part of v2 itself.
    pub fn has(&self, controller: Controller) -> bool {
        self.home(controller).is_some()
    }

    /// Whether the controller lives in the v2 hierarchy, so that its files have their v2 names.
    pub fn is_v2(&self, controller: Controller) -> bool {
        !self.v1.contains_key(&controller) && self.has(controller)
    }

    /// The controllers that live in v1 hierarchies, with their mounts.
    pub(crate) fn v1(&self) -> &BTreeMap<Controller, PathBuf> {
        &self.v1
    }

    fn home(&self, controller: Controller) -> Option<&Path> {
        if let Some(mount) = self.v1.get(&controller) {
            return Some(mount);
        }
        let on_v2 = match controller {
            Controller::CpuAcct => Controller::Cpu,
            other => other,
        };
        let offered = self.unified_controllers.contains(&on_v2) || (controller == Controller::Freezer && self.layout == Layout::V2);
        self.unified.as_deref().filter(|_| offered)
    }

    /// The directory of `group` (a path from the mount, `/` for the root) in the controller's hierarchy.
    pub fn dir(&self, controller: Controller, group: &str) -> Result<CgroupDir> {
        match self.home(controller) {
            Some(mount) => Ok(below(mount, group)),
            None => Err(Error::MissingController {
                controller: controller.v2_name(),
                remedy: self.missing_remedy(controller, Board::detect(&self.proc_root)),
            }),
        }
    }

    /// The directory of `group` in the v2 hierarchy, if one is mounted.
    pub fn unified_dir(&self, group: &str) -> Option<CgroupDir> {
        self.unified.as_deref().map(|mount| below(mount, group))
    }

    /// The directories of `group` in every mounted hierarchy, each once, whether or not the group exists there.
    pub fn every_dir(&self, group: &str) -> Vec<CgroupDir> {
        let mounts: BTreeSet<&Path> = self.v1.values().chain(&self.v1_other).chain(&self.unified).map(PathBuf::as_path).collect();
        mounts.into_iter().map(|mount| below(mount, group)).collect()
    }

    /// Makes `group` and its ancestors in every hierarchy that holds one of our controllers, each with its parent's
    /// cpuset on v1 and with controllers handed down on v2. `for_groups` is whether child groups, not processes, will live in it.
    pub fn create(&self, group: &str, for_groups: bool) -> Result<()> {
        if !self.v1.is_empty() {
            library::create_v1(self, group)?;
        }
        match &self.unified {
            // A v2 mount without controllers beside v1 is the runtimes' business.
            Some(mount) if self.layout == Layout::V2 || !self.unified_controllers.is_empty() => self.create_v2(mount, group, for_groups),
            Some(_) | None => Ok(()),
        }
    }

    /// cgroups-rs' v2 creation ignores every error and assumes the mount point, hence our own.
    fn create_v2(&self, mount: &Path, group: &str, for_groups: bool) -> Result<()> {
        let mut at = CgroupDir::new(mount);
        let names: Vec<&str> = group.split('/').filter(|name| !name.is_empty()).collect();
        for name in names {
            self.hand_down(&at)?;
            at = at.child(name);
            match fs::create_dir(at.path()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(Error::Create { path: at.path().to_owned(), source });
                }
            }
        }
        if for_groups { self.hand_down(&at) } else { Ok(()) }
    }

    /// Enables for the children of `dir` what they lack. Without cpu, memory or pids limits would be fiction: an error.
    fn hand_down(&self, dir: &CgroupDir) -> Result<()> {
        let enabled = dir.read("cgroup.subtree_control")?;
        for controller in &self.unified_controllers {
            let name = controller.v2_name();
            if enabled.split_whitespace().any(|word| word == name) {
                continue;
            }
            match dir.write("cgroup.subtree_control", &format!("+{name}")) {
                Ok(()) => {}
                Err(error) if matches!(controller, Controller::Cpu | Controller::Memory | Controller::Pids) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(controller = name, %error, "optional controller not enabled");
                }
            }
        }
        Ok(())
    }

    /// What an operator should know and do about this machine, one message each; empty on a fully capable one.
    pub fn advice(&self, board: Board) -> Vec<String> {
        // What the process itself may do is said where it matters.
        let probed = Probed { io: true, ..Probed::listed(self, board, true) };
        let mut advice = GovernorMode::judge(&probed).messages(board.raspberry_pi);
        if self.layout != Layout::V2 {
            let missing = [Controller::Memory, Controller::Cpu, Controller::Pids].into_iter().filter(|controller| !self.has(*controller));
            advice.extend(missing.map(|controller| self.missing_remedy(controller, board)));
            advice.extend((!board.psi).then(|| mode::psi_off(board.raspberry_pi)));
        }
        advice
    }

    fn missing_remedy(&self, controller: Controller, board: Board) -> String {
        let name = controller.v2_name();
        match (controller, self.layout) {
            (Controller::Memory, _) if board.raspberry_pi => mode::memory_missing(true).to_owned(),
            (Controller::Memory, Layout::V2) => mode::memory_missing(false).to_owned(),
            (_, Layout::V2) => format!("controller \"{name}\" not in /sys/fs/cgroup/cgroup.controllers"),
            (_, Layout::Hybrid | Layout::V1) => {
                format!("controller \"{}\" is mounted nowhere", controller.v1_name())
            }
        }
    }
}

fn below(mount: &Path, group: &str) -> CgroupDir {
    CgroupDir::new(mount.join(group.trim_matches('/')))
}
