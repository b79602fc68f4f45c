//! Values that are to stand in control files whoever else writes there: the one module that knows the last value it wrote.
//!
//! [`Standing::hold`] applies and remembers, [`Standing::verify`] reads everything back and writes again what others changed. What the
//! governor lowers for a while it borrows ([`Standing::lend`]), so that nobody fights over a file. Groups that are not there yet are
//! skipped, not made. A promise (`memory.min`) holds only if every ancestor promises as much as all below it together, so ancestors
//! are raised along with it and read back too (governor reference, section 2.2).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::io::IoMax;
use crate::limits::{self, Limits, Write};
use crate::slice::Manager;
use crate::{Controller, Hierarchy, Result};

/// Limits that are to stand on a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What the group is to an operator: `agent`, `runtime`, `kubepods`, `burstable`, `besteffort`, `system`, `user`.
    pub scope: &'static str,
    /// Several holders may stand on one group with different knobs; the newest of each name counts.
    pub part: &'static str,
    /// A path from the mounts.
    pub group: String,
    /// The values.
    pub limits: Limits,
    /// The group is a unit of systemd, which has to be told.
    pub unit: bool,
    /// `memory.max` waits while more is in use: a limit must not kill who was there before it.
    pub gentle: bool,
}

/// One value as it stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// As in [`Held`].
    pub scope: Cow<'static, str>,
    /// Path of the group.
    pub group: String,
    /// `min`, `low`, `high`, `max`, `swap_max` in bytes, `pids`, `cpu_weight`, `io_read_bps` and so on. No limit is left out.
    pub kind: Cow<'static, str>,
    /// As it was read from the kernel.
    pub value: u64,
    /// The governor has the file for now.
    pub lent: bool,
}

/// A value that others changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// As in [`Held`].
    pub scope: &'static str,
    /// Path of the group.
    pub group: String,
    /// The control file.
    pub file: &'static str,
    /// What it held.
    pub found: String,
    /// Why it could not be set again; `None`: it was.
    pub failed: Option<String>,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    writes: Vec<Write>,
    /// What each file held when it was last read, in the order of `writes`.
    found: Vec<Option<String>>,
}

/// The group that pulls images, and what it may write meanwhile.
#[derive(Debug)]
struct Pulls {
    group: String,
    unit: bool,
    disks: Vec<IoMax>,
    limited: bool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    pulls: Option<Pulls>,
    /// Ancestors of promises and what they have to promise at least.
    ancestors: BTreeMap<String, u64>,
}

/// The values of one instance.
#[derive(Debug)]
pub struct Standing {
    hierarchy: Hierarchy,
    manager: Option<Manager>,
    inner: Mutex<Inner>,
    /// Group and file of what the governor has. Apart from the rest, which is locked while the kernel is written to.
    lent: Mutex<BTreeSet<(String, String)>>,
    /// Images that are being pulled.
    pulling: AtomicUsize,
}

impl Standing {
    pub(crate) fn new(hierarchy: Hierarchy, manager: Option<Manager>) -> Standing {
        Standing { hierarchy, manager, inner: Mutex::default(), lent: Mutex::default(), pulling: AtomicUsize::new(0) }
    }

    /// Whether systemd runs this machine, so that units can be told.
    pub fn has_systemd(&self) -> bool {
        self.manager.is_some()
    }

    pub(crate) fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lent(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the governor has a file from now on. Unlike [`Standing::lend`] and [`Standing::give_back`] this waits for nobody who writes.
    pub(crate) fn mark_lent(&self, group: &str, file: &str, lent: bool) {
        let key = (group.to_owned(), file.to_owned());
        if lent {
            self.lent().insert(key);
        } else {
            self.lent().remove(&key);
        }
    }

    /// Applies the limits and keeps them standing. Returns the controllers that are not available. A group that does not exist
    /// is remembered and gets them when it does.
    pub fn hold(&self, held: Held) -> Result<Vec<Controller>> {
        self.hold_in(&mut self.lock(), held)
    }

    fn hold_in(&self, inner: &mut Inner, held: Held) -> Result<Vec<Controller>> {
        let writes = limits::writes(&held.limits, |controller| self.hierarchy.is_v2(controller));
        inner.entries.retain(|entry| entry.held.group != held.group || entry.held.part != held.part);
        let mut entry = Entry { found: vec![None; writes.len()], writes, held };
        let applied = self.apply_entry(&mut entry);
        inner.entries.push(entry);
        let promises = inner.entries.iter().filter_map(|entry| Some((entry.held.group.as_str(), entry.held.limits.memory_min?)));
        inner.ancestors = if self.hierarchy.is_v2(Controller::Memory) { covering(promises) } else { BTreeMap::new() };
        for (group, min) in &inner.ancestors {
            self.cover(group, *min)?;
        }
        applied
    }

    /// Applies limits that nobody watches, such as a pod's.
    pub(crate) fn apply_once(&self, group: &str, limits: &Limits, unit: bool) -> Result<Vec<Controller>> {
        if let Some(manager) = self.manager.as_ref().filter(|_| unit) {
            manager.set(group, limits, self.hierarchy.is_v2(Controller::Cpu))?;
        }
        limits::apply(&self.hierarchy, group, limits)
    }

    fn apply_entry(&self, entry: &mut Entry) -> Result<Vec<Controller>> {
        let held = &entry.held;
        let exists = self.hierarchy.every_dir(&held.group).iter().any(crate::CgroupDir::exists);
        if !exists && !held.unit {
            return Ok(Vec::new());
        }
        let mut wanted = held.limits.clone();
        if held.gentle && self.would_kill(held) {
            wanted.memory_max = None;
        }
        for (_, file) in self.lent().iter().filter(|(group, _)| *group == held.group) {
            wanted.leave(file);
        }
        if !exists {
            // systemd remembers for the unit's next start.
            if let Some(manager) = &self.manager {
                manager.set(&held.group, &wanted, self.hierarchy.is_v2(Controller::Cpu))?;
            }
            return Ok(Vec::new());
        }
        let unavailable = self.apply_once(&held.group, &wanted, held.unit)?;
        for (write, found) in entry.writes.iter().zip(&mut entry.found) {
            *found = self.read(&entry.held.group, write);
        }
        Ok(unavailable)
    }

    fn would_kill(&self, held: &Held) -> bool {
        let Some(max) = held.limits.memory_max.and_then(crate::value::Limit::value) else { return false };
        let used =
            crate::stat::group(&self.hierarchy, &held.group).ok().and_then(|stats| stats.memory).map_or(0, |memory| memory.working_set);
        used > max
    }

    fn read(&self, group: &str, write: &Write) -> Option<String> {
        self.hierarchy.dir(write.controller, group).ok()?.read(write.file).ok()
    }

    /// While images are pulled, `group` (containerd's, `unit` if it is a service) writes no more to `disks` than pods may. A limit that an
    /// earlier agent left is taken off.
    pub fn limit_pulls(&self, group: &str, unit: bool, disks: Vec<IoMax>) -> Result<()> {
        let mut inner = self.lock();
        let leftover = self.hierarchy.is_v2(Controller::Io)
            && self.hierarchy.dir(Controller::Io, group).is_ok_and(|dir| dir.read("io.max").is_ok_and(|text| text.contains("wbps=")));
        inner.pulls = Some(Pulls { group: group.to_owned(), unit, disks, limited: leftover });
        self.sync_pulls_in(&mut inner)
    }

    /// A pull begins or ends. Returns whether [`Standing::sync_pulls`] has something to do.
    pub fn set_pulling(&self, on: bool) -> bool {
        if on { self.pulling.fetch_add(1, Ordering::Relaxed) == 0 } else { self.pulling.fetch_sub(1, Ordering::Relaxed) == 1 }
    }

    /// Sets the limit of pulls as it is to be now; does nothing when it is. Blocks.
    pub fn sync_pulls(&self) -> Result<()> {
        self.sync_pulls_in(&mut self.lock())
    }

    fn sync_pulls_in(&self, inner: &mut Inner) -> Result<()> {
        let limited = self.pulling.load(Ordering::Relaxed) > 0;
        let Some(pulls) = inner.pulls.as_mut().filter(|pulls| pulls.limited != limited && !pulls.disks.is_empty()) else { return Ok(()) };
        pulls.limited = limited;
        let limits = Limits { io_max: pulls.disks.iter().map(|disk| disk.of_pulls(limited)).collect(), ..Limits::default() };
        let held = Held { scope: "runtime", part: "pulls", group: pulls.group.clone(), limits, unit: pulls.unit, gentle: false };
        self.hold_in(inner, held).map(drop)
    }

    /// Stops watching `part` of `group`, and leaves its values.
    pub fn release(&self, group: &str, part: &str) {
        self.lock().entries.retain(|entry| entry.held.group != group || entry.held.part != part);
    }

    pub(crate) fn release_below(&self, group: &str) {
        let below = format!("{group}/");
        self.lock().entries.retain(|entry| entry.held.group != group && !entry.held.group.starts_with(&below));
    }

    /// Gives the file to the governor, which may write to it until [`Standing::give_back`]. Returns what it is to hold otherwise,
    /// as it is written, one text per holder; empty when nothing stands there.
    pub fn lend(&self, group: &str, file: &str) -> Vec<String> {
        self.mark_lent(group, file, true);
        originals(&self.lock(), group, file)
    }

    /// What the file is to hold, without borrowing it.
    pub fn original(&self, group: &str, file: &str) -> Vec<String> {
        originals(&self.lock(), group, file)
    }

    /// Takes the file back and writes what is to stand there.
    pub fn give_back(&self, group: &str, file: &str) -> Result<()> {
        let inner = self.lock();
        self.mark_lent(group, file, false);
        for entry in inner.entries.iter().filter(|entry| entry.held.group == group) {
            for write in entry.writes.iter().filter(|write| write.file == file) {
                self.hierarchy.dir(write.controller, group)?.write(write.file, &write.value)?;
            }
        }
        Ok(())
    }

    /// Reads every file, writes again what others changed, and says what that was.
    pub fn verify(&self) -> Vec<Drift> {
        let mut inner = self.lock();
        let lent = self.lent().clone();
        let Inner { entries, ancestors, .. } = &mut *inner;
        let mut drift = Vec::new();
        for entry in entries.iter_mut() {
            self.verify_entry(entry, &lent, &mut drift);
        }
        for (group, min) in ancestors.iter() {
            match self.cover(group, *min) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    drift.push(Drift {
                        scope: "ancestor",
                        group: group.clone(),
                        file: "memory.min",
                        found: found.to_string(),
                        failed: None,
                    });
                }
                Err(error) if error.is_gone() => {}
                Err(error) => {
                    let failed = Some(error.to_string());
                    drift.push(Drift { scope: "ancestor", group: group.clone(), file: "memory.min", found: String::new(), failed });
                }
            }
        }
        drift
    }

    fn verify_entry(&self, entry: &mut Entry, lent: &BTreeSet<(String, String)>, drift: &mut Vec<Drift>) {
        if entry.found.iter().all(Option::is_none) {
            // The group was not there before: nobody changed anything.
            if let Err(error) = self.apply_entry(entry) {
                tracing::debug!(group = %entry.held.group, %error, "limits of a group not set");
            }
            return;
        }
        let held = &entry.held;
        let is_lent = |write: &Write| !lent.is_empty() && lent.contains(&(held.group.clone(), write.file.to_owned()));
        let mut changed = Vec::new();
        let mut gentle = None;
        for (at, write) in entry.writes.iter().enumerate() {
            let found = self.read(&held.group, write);
            if let Some(text) = found.as_deref().filter(|text| !write.holds(text) && !is_lent(write)) {
                let waits = held.gentle && write.file == "memory.max" && *gentle.get_or_insert_with(|| self.would_kill(held));
                if !waits {
                    changed.push((at, text.to_owned()));
                }
            }
            entry.found[at] = found;
        }
        if changed.is_empty() {
            return;
        }
        let mut told = Ok(());
        if let Some(manager) = self.manager.as_ref().filter(|_| held.unit && !entry.writes.iter().any(is_lent)) {
            told = manager.set(&held.group, &held.limits, self.hierarchy.is_v2(Controller::Cpu));
        }
        for (at, found) in changed {
            let write = &entry.writes[at];
            let again = self.hierarchy.dir(write.controller, &held.group).and_then(|dir| dir.write(write.file, &write.value));
            let now = self.read(&held.group, write);
            let failed = match (&told, again, &now) {
                (Err(error), _, _) => Some(error.to_string()),
                (Ok(()), Err(error), _) => Some(error.to_string()),
                (Ok(()), Ok(()), Some(text)) if !write.holds(text) => Some(format!("it holds {text} again at once")),
                (Ok(()), Ok(()), _) => None,
            };
            entry.found[at] = now;
            drift.push(Drift { scope: held.scope, group: held.group.clone(), file: write.file, found, failed });
        }
    }

    /// Raises `memory.min` of `group` to at least `min` and says what it held, if that was less.
    fn cover(&self, group: &str, min: u64) -> Result<Option<u64>> {
        let dir = self.hierarchy.dir(Controller::Memory, group)?;
        match dir.read_limit("memory.min")?.value() {
            Some(found) if found < min => dir.write("memory.min", &min.to_string()).map(|()| Some(found)),
            Some(_) | None => Ok(None),
        }
    }

    /// What stands, as it was last read.
    pub fn applied(&self) -> Vec<Applied> {
        let inner = self.lock();
        let mut list = Vec::new();
        for entry in &inner.entries {
            for (write, found) in entry.writes.iter().zip(&entry.found) {
                let Some(found) = found else { continue };
                let lent = self.lent().contains(&(entry.held.group.clone(), write.file.to_owned()));
                for (kind, value) in values(write, found) {
                    list.push(Applied {
                        scope: Cow::Borrowed(entry.held.scope),
                        group: entry.held.group.clone(),
                        kind: Cow::Borrowed(kind),
                        value,
                        lent,
                    });
                }
            }
        }
        list
    }

    /// What does not hold although it was asked for, a sentence each: values the kernel has no file for or did not keep, and promises
    /// that an ancestor does not cover.
    pub fn unheld(&self) -> Vec<String> {
        let inner = self.lock();
        let mut list = Vec::new();
        for entry in &inner.entries {
            let held = &entry.held;
            for (write, found) in entry.writes.iter().zip(&entry.found) {
                if self.lent().contains(&(held.group.clone(), write.file.to_owned())) {
                    continue;
                }
                let exists = || self.hierarchy.dir(write.controller, &held.group).is_ok_and(|dir| dir.exists());
                match found {
                    Some(found) if write.holds(found) => {}
                    Some(found) => list.push(format!("{} of {} is {found} instead of {}", write.file, held.group, write.value)),
                    None if exists() => list.push(format!("{} has no {}", held.group, write.file)),
                    // Nothing runs there yet, or the controller is missing, which is said once for the machine.
                    None => {}
                }
            }
            if let Some(min) = held.limits.memory_min.filter(|_| self.hierarchy.is_v2(Controller::Memory)) {
                list.extend(self.uncovered(&held.group, min));
            }
        }
        list
    }

    fn uncovered(&self, group: &str, min: u64) -> Option<String> {
        ancestors_of(group).find_map(|ancestor| {
            let found = self.hierarchy.dir(Controller::Memory, ancestor).ok()?.read_limit("memory.min").ok()?.value()?;
            (found < min).then(|| format!("memory.min of {ancestor} is {found}, so the {min} promised to {group} do not hold"))
        })
    }
}

fn originals(inner: &Inner, group: &str, file: &str) -> Vec<String> {
    let of_group = inner.entries.iter().filter(|entry| entry.held.group == group);
    of_group.flat_map(|entry| &entry.writes).filter(|write| write.file == file).map(|write| write.value.clone()).collect()
}

/// The groups above `group`, nearest first, without the root, which has no promises to make.
fn ancestors_of(group: &str) -> impl Iterator<Item = &str> {
    let mut at = group;
    std::iter::from_fn(move || {
        at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
        (!at.is_empty()).then_some(at)
    })
}

/// What the groups above promises have to promise: the sum of those below. A group with a promise of its own is somebody's decision.
fn covering<'a>(promises: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let own: BTreeMap<&str, u64> = promises.collect();
    let mut wanted: BTreeMap<String, u64> = BTreeMap::new();
    for (group, min) in &own {
        for ancestor in ancestors_of(group).take_while(|ancestor| !own.contains_key(ancestor)) {
            *wanted.entry(ancestor.to_owned()).or_default() += min;
        }
    }
    wanted
}

/// The numbers in a control file's text under the names operators see.
fn values(write: &Write, found: &str) -> Vec<(&'static str, u64)> {
    let kind = match write.file {
        "memory.min" => "min",
        "memory.low" => "low",
        "memory.high" => "high",
        "memory.max" | "memory.limit_in_bytes" => "max",
        "memory.swap.max" => "swap_max",
        "pids.max" => "pids",
        "cpu.weight" | "cpu.shares" => "cpu_weight",
        "io.max" => return io_values(write, found),
        _ => return Vec::new(),
    };
    crate::value::Limit::parse(found).and_then(crate::value::Limit::value).map(|value| (kind, value)).into_iter().collect()
}

fn io_values(write: &Write, found: &str) -> Vec<(&'static str, u64)> {
    let device = write.value.split(' ').next().unwrap_or_default();
    let line = found.lines().find(|line| line.split(' ').next() == Some(device)).unwrap_or_default();
    let kinds = [("rbps=", "io_read_bps"), ("wbps=", "io_write_bps"), ("riops=", "io_read_iops"), ("wiops=", "io_write_iops")];
    let of = |key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key)?.parse().ok());
    kinds.into_iter().filter_map(|(key, kind)| Some((kind, of(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_cover_the_sum_below_and_decisions_stand() {
        let covered = |promises: &[(&'static str, u64)]| covering(promises.iter().copied()).into_iter().collect::<Vec<_>>();
        assert_eq!(covered(&[("/edge-agent", 24), ("/containerd", 64)]), []);
        assert_eq!(covered(&[("/a/b/edge-agent", 24), ("/a/b/containerd", 64)]), [("/a".to_owned(), 88), ("/a/b".to_owned(), 88)]);
        let units =
            [("/edge.slice", 24), ("/edge.slice/edge-agent.service", 24), ("/system.slice", 110), ("/system.slice/containerd.service", 64)];
        assert_eq!(covered(&units), []);
        assert_eq!(covered(&units[1..2]), [("/edge.slice".to_owned(), 24)]);
    }
}
