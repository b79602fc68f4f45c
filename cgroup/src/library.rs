//! The part of cgroups-rs this crate uses, pointed at our own idea of where the hierarchies are.
//!
//! It makes v1 groups (with the parent's cpuset, in every hierarchy at once), moves processes, freezes and kills. It is not
//! used for control files: it creates files that do not exist and answers 0 for what it cannot read.

use std::path::PathBuf;

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cgroup::Cgroup;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuacct::CpuAcctController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::devices::DevicesController;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Hierarchy as LibraryHierarchy, Subsystem};

use crate::{Controller, Error, Hierarchy, Result};

/// Our mounts in the shape cgroups-rs wants.
#[derive(Debug, Clone)]
struct Mounts {
    v2: bool,
    root: PathBuf,
    homes: Vec<(Controller, PathBuf)>,
}

impl Mounts {
    fn v1(hierarchy: &Hierarchy) -> Mounts {
        let homes: Vec<_> = hierarchy.v1().iter().map(|(controller, mount)| (*controller, mount.clone())).collect();
        Mounts { v2: false, root: homes.first().map(|(_, mount)| mount.clone()).unwrap_or_default(), homes }
    }

    fn v2(mount: PathBuf) -> Mounts {
        Mounts { v2: true, homes: vec![(Controller::Freezer, mount.clone())], root: mount }
    }
}

impl LibraryHierarchy for Mounts {
    fn subsystems(&self) -> Vec<Subsystem> {
        let v2 = self.v2;
        self.homes
            .iter()
            .map(|(controller, mount)| {
                let (at, base) = (mount.clone(), mount.clone());
                match controller {
                    Controller::Cpu => Subsystem::Cpu(CpuController::new(at, base, v2)),
                    Controller::CpuAcct => Subsystem::CpuAcct(CpuAcctController::new(at, base)),
                    Controller::CpuSet => Subsystem::CpuSet(CpuSetController::new(at, base, v2)),
                    Controller::Memory => Subsystem::Mem(MemController::new(at, base, v2)),
                    Controller::Pids => Subsystem::Pid(PidController::new(at, base, v2)),
                    Controller::Io => Subsystem::BlkIo(BlkIoController::new(at, base, v2)),
                    Controller::Devices => Subsystem::Devices(DevicesController::new(at, base)),
                    Controller::Freezer => Subsystem::Freezer(FreezerController::new(at, base, v2)),
                }
            })
            .collect()
    }

    fn root(&self) -> PathBuf {
        self.root.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        Cgroup::load(Box::new(self.clone()), "")
    }

    fn parent_control_group(&self, path: &str) -> Cgroup {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        Cgroup::load(Box::new(self.clone()), parent)
    }

    fn v2(&self) -> bool {
        self.v2
    }
}

/// Makes `group` in every v1 hierarchy that holds one of our controllers.
pub(crate) fn create_v1(hierarchy: &Hierarchy, group: &str) -> Result<()> {
    let at = group.trim_matches('/');
    Cgroup::new(Box::new(Mounts::v1(hierarchy)), at).map(drop).map_err(failed("create", group))
}

/// Moves a process into `group` in the given v1 hierarchies or, if `controllers` is empty, in the v2 one.
pub(crate) fn move_process(hierarchy: &Hierarchy, group: &str, controllers: &[Controller], pid: u32) -> Result<()> {
    let mounts = if controllers.is_empty() {
        match hierarchy.unified() {
            Some(mount) => Mounts::v2(mount.to_owned()),
            None => return Ok(()),
        }
    } else {
        let mut mounts = Mounts::v1(hierarchy);
        mounts.homes.retain(|(controller, _)| controllers.contains(controller));
        mounts
    };
    Cgroup::load(Box::new(mounts), group.trim_matches('/'))
        .add_task_by_tgid(CgroupPid::from(u64::from(pid)))
        .map_err(failed("move a process into", group))
}

/// Lets everything frozen in `group` (not below it) run again, so that it can die.
pub(crate) fn thaw(hierarchy: &Hierarchy, group: &str) -> Result<()> {
    let mounts = match (hierarchy.v1().get(&Controller::Freezer), hierarchy.unified()) {
        (Some(_), _) => Mounts::v1(hierarchy),
        (None, Some(mount)) => Mounts::v2(mount.to_owned()),
        (None, None) => return Ok(()),
    };
    let group_handle = Cgroup::load(Box::new(mounts), group.trim_matches('/'));
    match group_handle.controller_of::<FreezerController>() {
        Some(freezer) => freezer.thaw().map_err(failed("thaw", group)),
        None => Ok(()),
    }
}

/// Kills everything in and below `group` at once (`cgroup.kill`, Linux 5.14).
pub(crate) fn kill_v2(mount: PathBuf, group: &str) -> Result<()> {
    Cgroup::load(Box::new(Mounts::v2(mount)), group.trim_matches('/')).kill().map_err(failed("kill", group))
}

fn failed(operation: &'static str, group: &str) -> impl FnOnce(cgroups_rs::fs::error::Error) -> Error + use<> {
    let group = group.to_owned();
    move |source| Error::Library { operation, group, source }
}
