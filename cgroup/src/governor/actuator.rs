//! Doing what the law orders: writes control files of groups and knows how to undo it. Decides nothing.
//!
//! What a knob held is kept before it is changed (see [`super::ledger`]). A value that somebody else writes meanwhile, as systemd does at
//! `daemon-reload` and the agent when its reservation changes, is the one that comes back later.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::action::{Action, Knob, Setting, Target};
use super::knob;
use super::ledger::{self, Hold, Ledger};
use super::reclaim::{Outcome, Reclaimer};
use super::sensor::boottime;
use crate::kill::signal_all;
use crate::{CgroupDir, Controller, Error, PodTree, Result};

/// How long a group may take to stand still before that is reported as still going on.
const FREEZE_PATIENCE: Duration = Duration::from_millis(50);

/// How long the loop of signals may take where there is no `cgroup.kill`.
const KILL_PATIENCE: Duration = Duration::from_millis(250);

/// Given to the actuator once.
#[derive(Debug, Clone)]
pub struct ActuatorOptions {
    /// `MAJ:MIN` of the whole disk that [`Setting::IoMax`] is about.
    pub disk: Option<String>,
    /// A directory on a tmpfs for the ledger.
    pub run_dir: PathBuf,
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The knob holds `now`.
    Set {
        /// What it held.
        before: String,
        /// What it holds, as the kernel rounded it.
        now: String,
        /// It works already: the group stands still, or the memory above the limit was taken back. Otherwise the kernel is at it.
        settled: bool,
    },
    /// The knob has its own value again.
    Restored {
        /// What it held.
        before: String,
        /// What it holds.
        now: String,
    },
    /// Another thread asks the kernel to take memory back.
    Begun,
    /// All processes were killed.
    Killed,
    /// There was nothing to undo.
    Nothing,
    /// The group is not there any more, and with it what was set.
    Gone,
    /// Not done with control groups: [`Action::Evict`]. A frozen pod does not hear that it should stop, so thaw it first.
    LeftToCaller,
}

/// What [`Actuator::reassert`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reasserted {
    /// Knobs somebody else had written; they hold our value again.
    pub overwritten: usize,
    /// Knobs that were released from outside: forgotten.
    pub released: usize,
    /// Knobs whose group is gone.
    pub gone: usize,
}

/// The one writer of the governor. Not for several threads.
///
/// Has a thread of its own for what blocks in the kernel; it inherits scheduling and priority of the thread that makes this value, so make
/// it before raising those.
#[derive(Debug)]
pub struct Actuator {
    tree: PodTree,
    disk: Option<String>,
    ledger: Ledger,
    reclaimer: Reclaimer,
}

impl Actuator {
    /// Holds nothing. Call [`super::recover`] first: what an earlier governor left would count as the original.
    pub fn new(tree: PodTree, options: ActuatorOptions) -> Actuator {
        Actuator { tree, disk: options.disk, ledger: Ledger::new(&options.run_dir), reclaimer: Reclaimer::new() }
    }

    /// What does not have its own value now.
    pub fn held(&self) -> &[Hold] {
        self.ledger.held()
    }

    /// Does one thing. Returns within 100 ms, a busy machine aside.
    pub fn apply(&mut self, action: &Action) -> Result<Done> {
        let done = match action {
            Action::Set { target, setting } => self.set(target, setting),
            Action::Restore { target, knob } => self.restore(target, *knob),
            Action::Reclaim { target, bytes, files_only } => self.reclaim(target, *bytes, *files_only),
            Action::Kill { target } => self.kill(target),
            Action::Evict { .. } => Ok(Done::LeftToCaller),
        };
        match done {
            Err(error) if error.is_gone() && !self.is_there(action.target()) => {
                self.forget_all(action.target())?;
                Ok(Done::Gone)
            }
            done => done,
        }
    }

    /// Undoes everything that is held, thawing first.
    pub fn release_all(&mut self) -> Vec<Result<Done>> {
        let mut held: Vec<(Target, Knob)> = self.held().iter().map(|held| (held.target.clone(), held.knob)).collect();
        held.sort_by_key(|(_, knob)| *knob != Knob::Freeze);
        held.into_iter().map(|(target, knob)| self.apply(&Action::Restore { target, knob })).collect()
    }

    /// Looks whether every knob still holds what it was set to, and sets it again where not. Call it every two seconds.
    pub fn reassert(&mut self) -> Reasserted {
        let mut found = Reasserted::default();
        for held in self.ledger.held().to_vec() {
            let same = |other: &Hold| other.target == held.target && other.knob == held.knob;
            let dir = match knob::dir(self.tree.hierarchy(), &held.group, held.knob) {
                Ok(dir) if dir.exists() => dir,
                Ok(_) | Err(_) => {
                    found.gone += 1;
                    self.lend(&held.group, held.knob, false);
                    self.note(|ledger| ledger.forget(same));
                    continue;
                }
            };
            if self.was_released(&dir, &held) {
                found.released += 1;
                self.lend(&held.group, held.knob, false);
                self.note(|ledger| ledger.forget(same));
                continue;
            }
            match self.again(&dir, &held) {
                Ok(false) => {}
                Ok(true) => found.overwritten += 1,
                Err(error) => tracing::warn!(group = held.group, %error, "throttle not set again"),
            }
        }
        found
    }

    /// Whether the knob had to be set again.
    fn again(&mut self, dir: &CgroupDir, held: &Hold) -> Result<bool> {
        let now = knob::read(dir, held.knob, self.disk.as_deref())?;
        if knob::same(held.knob, &held.set, &now) || (held.knob == Knob::MemoryHigh && self.reclaimer.is_at(dir)) {
            return Ok(false);
        }
        let held = self.take_over(dir, held.clone(), now)?;
        match held.knob {
            Knob::MemoryHigh => self.lower(dir, &held.set).map(drop)?,
            knob => knob::set(dir, knob, &held.set, self.disk.as_deref()).map(drop)?,
        }
        Ok(true)
    }

    /// Whether [`super::recover`] ran elsewhere since, as `edge-agent governor release` does.
    fn was_released(&self, dir: &CgroupDir, held: &Hold) -> bool {
        if held.with_group { ledger::original(dir, held.knob).is_none() } else { !self.ledger.exists() }
    }

    /// Somebody wrote `now` to what we hold: that comes back later. Whoever thaws a pod has no other original in mind.
    fn take_over(&mut self, dir: &CgroupDir, mut held: Hold, now: String) -> Result<Hold> {
        if held.knob != Knob::Freeze {
            held.original = now;
            if held.with_group {
                ledger::keep_original(dir, held.knob, &held.original);
            }
            self.ledger.put(held.clone())?;
        }
        Ok(held)
    }

    fn set(&mut self, target: &Target, setting: &Setting) -> Result<Done> {
        let knob = setting.knob();
        let group = knob::group(&self.tree, target)?;
        let dir = knob::dir(self.tree.hierarchy(), &group, knob)?;
        let wanted = knob::text(setting, self.disk.as_deref())?;
        let before = knob::read(&dir, knob, self.disk.as_deref())?;
        let known = self.ledger.find(target, knob).filter(|held| !self.was_released(&dir, held)).cloned();
        match known.clone() {
            None => {
                // Of an earlier governor, if recovery failed.
                let original = ledger::original(&dir, knob).unwrap_or_else(|| before.clone());
                let with_group = ledger::keep_original(&dir, knob, &original);
                let since_us = u64::try_from(boottime().as_micros()).unwrap_or(u64::MAX);
                let held = Hold { target: target.clone(), knob, group: group.clone(), original, set: wanted.clone(), since_us, with_group };
                match self.ledger.put(held) {
                    Err(error) if !with_group => return Err(error),
                    Err(error) => tracing::warn!(%error, "ledger of the governor not written"),
                    Ok(()) => {}
                }
            }
            Some(held) => {
                let ours = knob::same(knob, &held.set, &before) || (knob == Knob::MemoryHigh && self.reclaimer.is_at(&dir));
                let mut held = if ours { held } else { self.take_over(&dir, held, before.clone())? };
                held.set.clone_from(&wanted);
                self.note(|ledger| ledger.put(held));
            }
        }
        self.lend(&group, knob, true);
        let done = match setting {
            Setting::MemoryHigh(_) => self.lower(&dir, &wanted),
            Setting::Freeze => knob::set(&dir, knob, &wanted, None).map(|now| (now, stands_still(&dir))),
            Setting::SwapMax(_) | Setting::CpuMax(_) | Setting::CpuIdle | Setting::IoMax(_) => {
                knob::set(&dir, knob, &wanted, self.disk.as_deref()).map(|now| (now, true))
            }
        };
        match done {
            Ok((now, settled)) => Ok(Done::Set { before, now, settled }),
            Err(error) => {
                self.take_back(target, knob, &dir, known);
                Err(error)
            }
        }
    }

    /// A value the kernel refused is not held: what was held before is, or nothing.
    fn take_back(&mut self, target: &Target, knob: Knob, dir: &CgroupDir, known: Option<Hold>) {
        match known {
            Some(held) => self.note(|ledger| ledger.put(held)),
            None => match self.restore(target, knob) {
                Ok(_) => {}
                Err(error) => tracing::debug!(path = %dir.path().display(), %error, "refused setting not taken back"),
            },
        }
    }

    /// Sets `memory.high`. Below what is in use the kernel takes memory back before the write returns, so that another thread does it;
    /// the limit itself holds from the first moment.
    fn lower(&mut self, dir: &CgroupDir, wanted: &str) -> Result<(String, bool)> {
        let in_use = dir.read_u64("memory.current").unwrap_or(0);
        let knob = Knob::MemoryHigh;
        if wanted.parse().map_or(true, |limit: u64| limit >= in_use) {
            self.reclaimer.overrule(dir, wanted);
            return knob::set(dir, knob, wanted, None).map(|now| (now, true));
        }
        let outcome = self.reclaimer.lower(dir, wanted)?;
        let found = knob::read(dir, knob, None)?;
        match outcome {
            Outcome::Finished if !knob::same(knob, wanted, &found) => {
                Err(Error::NotApplied { path: dir.path().join(knob.file()), wanted: wanted.to_owned(), found })
            }
            Outcome::Finished => Ok((found, true)),
            Outcome::StillAtIt => Ok((found, false)),
        }
    }

    fn restore(&mut self, target: &Target, knob: Knob) -> Result<Done> {
        let group = knob::group(&self.tree, target)?;
        let dir = knob::dir(self.tree.hierarchy(), &group, knob)?;
        let held = self.ledger.find(target, knob).cloned();
        let Some(mut original) = ledger::original(&dir, knob).or_else(|| held.as_ref().map(|held| held.original.clone())) else {
            return Ok(Done::Nothing);
        };
        let underway = knob == Knob::MemoryHigh && self.reclaimer.is_at(&dir);
        if let Some(held) = held.filter(|held| held.knob != Knob::Freeze && !underway) {
            let now = knob::read(&dir, knob, self.disk.as_deref())?;
            if !knob::same(knob, &held.set, &now) && !knob::same(knob, &original, &now) {
                original = now;
            }
        }
        if underway {
            self.reclaimer.overrule(&dir, &original);
        }
        let before = ledger::restore(&dir, knob, &original)?;
        ledger::drop_original(&dir, knob);
        self.lend(&group, knob, false);
        self.note(|ledger| ledger.forget(|held| held.target == *target && held.knob == knob));
        Ok(Done::Restored { before, now: original })
    }

    fn reclaim(&mut self, target: &Target, bytes: u64, files_only: bool) -> Result<Done> {
        let group = knob::group(&self.tree, target)?;
        let dir = knob::v2_dir(self.tree.hierarchy(), &group, Controller::Memory)?;
        // Says whether the kernel has it; there is nothing to read.
        if !dir.has("memory.reclaim") {
            let source = std::io::ErrorKind::Unsupported.into();
            let path = dir.path().join("memory.reclaim");
            return if dir.exists() { Err(Error::Write { path, value: bytes.to_string(), source }) } else { Ok(Done::Gone) };
        }
        self.reclaimer.reclaim(&dir, bytes, files_only);
        Ok(Done::Begun)
    }

    fn kill(&mut self, target: &Target) -> Result<Done> {
        let group = knob::group(&self.tree, target)?;
        let dir = knob::v2_dir(self.tree.hierarchy(), &group, Controller::Freezer)?;
        if !dir.exists() {
            self.forget_all(target)?;
            return Ok(Done::Gone);
        }
        match dir.write("cgroup.kill", "1") {
            Err(error) if error.is_gone() => self.kill_one_by_one(&dir, &group)?,
            done => done?,
        }
        // They die frozen as well, but a container that is started in the group again would stand still.
        if self.ledger.find(target, Knob::Freeze).is_some() {
            self.restore(target, Knob::Freeze)?;
        }
        Ok(Done::Killed)
    }

    /// Before Linux 5.14. Hold still so that nobody is born meanwhile; on v2 frozen tasks die.
    fn kill_one_by_one(&self, dir: &CgroupDir, group: &str) -> Result<()> {
        let frozen = dir.read("cgroup.freeze").is_ok_and(|text| text == "1");
        if !frozen && dir.has("cgroup.freeze") {
            dir.write("cgroup.freeze", "1")?;
            stands_still(dir);
        }
        let start = Instant::now();
        let mut left = signal_all(self.tree.hierarchy(), group)?;
        while !left.is_empty() && start.elapsed() < KILL_PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
            left = signal_all(self.tree.hierarchy(), group)?;
        }
        if !frozen && dir.has("cgroup.freeze") {
            dir.write("cgroup.freeze", "0")?;
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(Error::StillBusy { group: group.to_owned(), pids: left.into_iter().collect(), waited: KILL_PATIENCE })
        }
    }

    fn forget_all(&mut self, target: &Target) -> Result<()> {
        for held in self.ledger.held().iter().filter(|held| held.target == *target) {
            self.lend(&held.group, held.knob, false);
        }
        self.ledger.forget(|held| held.target == *target)
    }

    /// Tells who keeps reservations standing that these files are ours for now, or not any more.
    fn lend(&self, group: &str, knob: Knob, ours: bool) {
        self.tree.standing().mark_lent(group, knob.file(), ours);
        if knob == Knob::CpuIdle {
            // An idle group has no weight, and refuses one.
            self.tree.standing().mark_lent(group, "cpu.weight", ours);
        }
    }

    fn is_there(&self, target: &Target) -> bool {
        let group = knob::group(&self.tree, target);
        group.ok().and_then(|group| self.tree.hierarchy().unified_dir(&group)).is_some_and(|dir| dir.exists())
    }

    /// The file is a convenience where attributes work: failing is told, not fatal.
    fn note(&mut self, change: impl FnOnce(&mut Ledger) -> Result<()>) {
        if let Err(error) = change(&mut self.ledger) {
            tracing::warn!(%error, "ledger of the governor not written");
        }
    }
}

/// Waits a little until every task of a frozen group stands still.
fn stands_still(dir: &CgroupDir) -> bool {
    let start = Instant::now();
    loop {
        if dir.read_key("cgroup.events", "frozen").is_ok_and(|frozen| frozen == Some(1)) {
            return true;
        }
        if start.elapsed() >= FREEZE_PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
