//! Removing a group with everything in and below it, in every hierarchy.
//!
//! v2 kills a whole tree in one write; v1 needs a loop of signals, and frozen processes must be thawed to die. Only
//! groups below the given path are touched, and pid 0 (a process of another pid namespace) is never signalled.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::dir::CgroupDir;
use crate::hierarchy::Layout;
use crate::{Error, Hierarchy, Result, library};

const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Kills what is left in `group` and removes it. A group that does not exist is removed already.
/// Blocks up to `patience`, then fails with [`Error::StillBusy`], after which it may be called again.
pub(crate) fn remove_group(hierarchy: &Hierarchy, group: &str, patience: Duration) -> Result<()> {
    let dirs: Vec<CgroupDir> = hierarchy.every_dir(group).into_iter().filter(CgroupDir::exists).collect();
    if dirs.is_empty() {
        return Ok(());
    }
    empty_group(hierarchy, group, &dirs, patience)?;
    for dir in &dirs {
        remove_tree(dir, patience)?;
    }
    Ok(())
}

/// Sends everything in and below `group` the signal that kills, once, and returns who was there. Thaws nothing.
pub(crate) fn signal_all(hierarchy: &Hierarchy, group: &str) -> Result<BTreeSet<i32>> {
    let dirs: Vec<CgroupDir> = hierarchy.every_dir(group).into_iter().filter(CgroupDir::exists).collect();
    let pids = processes_below(&dirs)?;
    for pid in &pids {
        // Whoever ended meanwhile, or hangs in the kernel, is seen in the next round.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    Ok(pids)
}

/// Removes `group` wherever nothing lives in it or below it; kills nothing.
pub(crate) fn remove_if_empty(hierarchy: &Hierarchy, group: &str) {
    for dir in hierarchy.every_dir(group) {
        match fs::remove_dir(dir.path()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(path = %dir.path().display(), %error, "group kept"),
        }
    }
}

fn empty_group(hierarchy: &Hierarchy, group: &str, dirs: &[CgroupDir], patience: Duration) -> Result<()> {
    let start = Instant::now();
    let mut wait = FIRST_WAIT;
    let mut first = true;
    loop {
        let pids = processes_below(dirs)?;
        if pids.is_empty() {
            return Ok(());
        }
        if first {
            tracing::info!(group, processes = pids.len(), "killing leftover processes");
            thaw_below(hierarchy, group);
            first = false;
        }
        if start.elapsed() > patience {
            return Err(Error::StillBusy { group: group.to_owned(), pids: pids.into_iter().collect(), waited: patience });
        }
        let at_once = match (hierarchy.layout(), hierarchy.unified()) {
            (Layout::V2, Some(mount)) => library::kill_v2(mount.to_owned(), group).is_ok(),
            _ => false,
        };
        if !at_once {
            for pid in pids {
                // Whoever ended meanwhile, or hangs in the kernel, is seen in the next round.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// The processes in and below the directories, never ourselves or pid 1.
fn processes_below(dirs: &[CgroupDir]) -> Result<BTreeSet<i32>> {
    let own = nix::unistd::getpid().as_raw();
    let mut pids = BTreeSet::new();
    for dir in dirs {
        for group in descendants(dir)? {
            match group.processes() {
                Ok(found) => pids.extend(found.into_iter().filter(|pid| *pid != own && *pid != 1)),
                // A group that vanished has no processes; v2 answers EOPNOTSUPP for a threaded one, whose
                // processes its domain lists.
                Err(Error::Read { source, .. })
                    if matches!(source.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::EOPNOTSUPP)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(pids)
}

fn thaw_below(hierarchy: &Hierarchy, group: &str) {
    let Ok(dir) = hierarchy.dir(crate::Controller::Freezer, group) else {
        return;
    };
    for below in descendants(&dir).unwrap_or_default() {
        let relative = match below.path().strip_prefix(dir.path()) {
            Ok(relative) => relative.to_string_lossy().into_owned(),
            Err(_) => continue,
        };
        if let Err(error) = library::thaw(hierarchy, &format!("{group}/{relative}")) {
            tracing::debug!(group, %error, "not thawed");
        }
    }
}

/// The directory and all groups below it, parents first.
fn descendants(dir: &CgroupDir) -> Result<Vec<CgroupDir>> {
    let mut all = vec![dir.clone()];
    let mut next = 0;
    while next < all.len() {
        let children: Vec<_> = {
            let at = &all[next];
            at.children()?.iter().map(|name| at.child(name)).collect()
        };
        all.extend(children);
        next += 1;
    }
    Ok(all)
}

/// Removes the group and all below it, deepest first. The kernel may need a moment after the last process.
fn remove_tree(dir: &CgroupDir, patience: Duration) -> Result<()> {
    for group in descendants(dir)?.into_iter().rev() {
        let start = Instant::now();
        let mut wait = FIRST_WAIT;
        loop {
            match fs::remove_dir(group.path()) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && start.elapsed() < patience => {
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                Err(source) => {
                    return Err(Error::Remove { path: group.path().to_owned(), source });
                }
            }
        }
    }
    Ok(())
}
