//! What the governor holds, written down so that everything comes back: with the group itself as an extended attribute, which dies with the
//! group, and in a file on a tmpfs, which says it to people and stands in where the kernel refuses the attribute.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use serde::{Deserialize, Serialize};

use super::action::{Knob, Target};
use super::knob;
use crate::{CgroupDir, Error, PodTree, QosClass, Result};

const FILE: &str = "governor.json";

/// Followed by a dot and the control file's name.
const ATTRIBUTE: &str = "trusted.edge_agent.orig";

/// Lines of `io.max` and `cpu.max` are far shorter.
const LONGEST_ORIGINAL: usize = 256;

/// One knob that does not hold its own value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Whose.
    pub target: Target,
    /// What.
    pub knob: Knob,
    /// The group, as a path from the mount.
    pub group: String,
    /// What it held before, and will again.
    pub original: String,
    /// What it was set to.
    pub set: String,
    /// Since when, microseconds on the clock of [`super::Sample::at`].
    pub since_us: u64,
    /// The original is with the group; otherwise only in the ledger.
    pub with_group: bool,
}

/// The list of what is held, with its file.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    held: Vec<Hold>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    held: Vec<Hold>,
}

impl Ledger {
    /// An empty one, to be kept in `run_dir`. What the file says is for [`recover`].
    pub(super) fn new(run_dir: &Path) -> Ledger {
        Ledger { path: run_dir.join(FILE), held: Vec::new() }
    }

    pub(super) fn held(&self) -> &[Hold] {
        &self.held
    }

    pub(super) fn find(&self, target: &Target, knob: Knob) -> Option<&Hold> {
        self.held.iter().find(|held| held.target == *target && held.knob == knob)
    }

    /// Replaces the entry of the same target and knob, and writes the file.
    pub(super) fn put(&mut self, entry: Hold) -> Result<()> {
        match self.held.iter_mut().find(|held| held.target == entry.target && held.knob == entry.knob) {
            Some(held) => *held = entry,
            None => self.held.push(entry),
        }
        self.save()
    }

    /// Forgets entries and writes the file, if there were any.
    pub(super) fn forget(&mut self, gone: impl Fn(&Hold) -> bool) -> Result<()> {
        let before = self.held.len();
        self.held.retain(|held| !gone(held));
        if self.held.len() == before { Ok(()) } else { self.save() }
    }

    /// A rename is all the safety a tmpfs needs. The file is there exactly while something is held.
    fn save(&self) -> Result<()> {
        let done = if self.held.is_empty() {
            remove(&self.path)
        } else {
            let text = serde_json::to_vec(&Document { held: self.held.clone() }).map_err(io::Error::other);
            let new = self.path.with_extension("json.new");
            text.and_then(|text| {
                fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
                fs::write(&new, text)?;
                fs::rename(&new, &self.path)
            })
        };
        done.map_err(|source| Error::Write { path: self.path.clone(), value: "what the governor holds".to_owned(), source })
    }

    /// Whether the file is there, which it is while something is held and nobody else released it.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the file says is held. A file that cannot be read says nothing, with a line in the log.
fn read(run_dir: &Path) -> Vec<Hold> {
    let path = run_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ledger of the governor not read");
            return Vec::new();
        }
    };
    match serde_json::from_slice::<Document>(&text) {
        Ok(document) => document.held,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "ledger of the governor not understood");
            Vec::new()
        }
    }
}

/// The original of a knob that is kept with its group.
pub(super) fn original(dir: &CgroupDir, knob: Knob) -> Option<String> {
    let mut buffer = [0u8; LONGEST_ORIGINAL];
    let n = getxattr(dir.path(), attribute(knob), &mut buffer[..]).ok()?;
    String::from_utf8(buffer[..n].to_vec()).ok()
}

/// Keeps the original of a knob with its group. `false` where the kernel refuses such attributes.
pub(super) fn keep_original(dir: &CgroupDir, knob: Knob, text: &str) -> bool {
    setxattr(dir.path(), attribute(knob), text.as_bytes(), XattrFlags::empty()).is_ok()
}

pub(super) fn drop_original(dir: &CgroupDir, knob: Knob) {
    // What is not there need not be removed, and a group that is gone took it along.
    let _ = removexattr(dir.path(), attribute(knob));
}

fn attribute(knob: Knob) -> String {
    format!("{ATTRIBUTE}.{}", knob.file())
}

/// A knob that got its own value back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// The group, as a path from the mount.
    pub group: String,
    /// What.
    pub knob: Knob,
    /// What it held.
    pub from: String,
    /// What it holds now.
    pub to: String,
}

/// What [`recover`] did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// What is as it was before the governor.
    pub undone: Vec<Undone>,
    /// What could not be undone.
    pub failed: Vec<Error>,
}

/// Undoes whatever a governor left: first thaws, then restores, what the groups of pods and classes themselves say, then what only the
/// ledger in `run_dir` knows and is still as the ledger says. For the start of the agent, for after its end, and for
/// `edge-agent governor release`: an [`super::Actuator`] that lives notices and forgets what it held.
///
/// Stops at nothing: what fails is in the answer and stays to be tried again.
pub fn recover(tree: &PodTree, run_dir: &Path) -> Recovered {
    let mut all = Recovered::default();
    let listed = read(run_dir);
    let mut left = Vec::new();
    // What holds tasks still comes first.
    let mut knobs = Knob::ALL;
    knobs.sort_by_key(|knob| *knob != Knob::Freeze);
    let groups = groups(tree);
    for knob in knobs {
        for group in &groups {
            let Ok(dir) = knob::dir(tree.hierarchy(), group, knob) else {
                continue;
            };
            if let Some(original) = original(&dir, knob) {
                match restore(&dir, knob, &original) {
                    Ok(from) => {
                        drop_original(&dir, knob);
                        all.undone.push(Undone { group: group.clone(), knob, from, to: original });
                    }
                    Err(error) => {
                        left.extend(listed.iter().find(|held| held.group == *group && held.knob == knob).cloned());
                        all.failed.push(error);
                    }
                }
            }
        }
        for held in listed.iter().filter(|held| held.knob == knob) {
            let known = |undone: &Undone| undone.group == held.group && undone.knob == knob;
            if all.undone.iter().any(known) || left.contains(held) {
                continue;
            }
            match restore_listed(tree, held) {
                Ok(None) => {}
                Ok(Some(undone)) => all.undone.push(undone),
                Err(error) => {
                    left.push(held.clone());
                    all.failed.push(error);
                }
            }
        }
    }
    let ledger = Ledger { path: run_dir.join(FILE), held: left };
    if let Err(error) = ledger.save() {
        all.failed.push(error);
    }
    all
}

/// Writes the original if the knob still holds what the ledger says; `None` if there is nothing to do. The group must be one of ours still.
fn restore_listed(tree: &PodTree, held: &Hold) -> Result<Option<Undone>> {
    if knob::group(tree, &held.target)? != held.group {
        return Ok(None);
    }
    let dir = knob::dir(tree.hierarchy(), &held.group, held.knob)?;
    if !dir.exists() {
        return Ok(None);
    }
    let found = knob::read(&dir, held.knob, disk_of(held.knob, &held.original))?;
    if !knob::same(held.knob, &held.set, &found) {
        return Ok(None);
    }
    let from = restore(&dir, held.knob, &held.original)?;
    Ok(Some(Undone { group: held.group.clone(), knob: held.knob, from, to: held.original.clone() }))
}

/// Writes an original back. Returns what was there.
pub(super) fn restore(dir: &CgroupDir, knob: Knob, original: &str) -> Result<String> {
    let disk = disk_of(knob, original);
    let from = knob::read(dir, knob, disk)?;
    knob::set(dir, knob, original, disk)?;
    Ok(from)
}

/// The disk a line of `io.max` is about.
fn disk_of(knob: Knob, text: &str) -> Option<&str> {
    match knob {
        Knob::IoMax => text.split(' ').next(),
        _ => None,
    }
}

/// All groups the governor may have touched.
fn groups(tree: &PodTree) -> Vec<String> {
    let mut groups = vec![tree.kubepods(), tree.class(QosClass::Burstable), tree.class(QosClass::BestEffort)];
    match tree.list_pods() {
        Ok(pods) => groups.extend(pods.iter().filter_map(|pod| tree.cgroup_parent(&pod.uid, pod.qos).ok())),
        Err(error) => tracing::warn!(%error, "groups of pods not listed"),
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(set: &str) -> Hold {
        Hold {
            target: Target::BestEffort,
            knob: Knob::SwapMax,
            group: "/kubepods/besteffort".into(),
            original: "max".into(),
            set: set.into(),
            since_us: 1_500_000,
            with_group: true,
        }
    }

    #[test]
    fn the_file_is_there_while_something_is_held() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("edge-agent");
        let mut ledger = Ledger::new(&dir);
        ledger.put(held("4096")).unwrap();
        ledger.put(held("8192")).unwrap();
        assert_eq!(read(&dir), [held("8192")], "one entry for a knob");
        assert_eq!(ledger.find(&Target::BestEffort, Knob::SwapMax), Some(&held("8192")));
        ledger.forget(|_| true).unwrap();
        assert!(!ledger.exists());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        ledger.forget(|_| true).unwrap();
    }

    #[test]
    fn a_broken_file_says_nothing() {
        let run = tempfile::tempdir().unwrap();
        for text in ["", "{\"held\":[{\"target\":\"nobody\"}]}", "{}"] {
            fs::write(run.path().join(FILE), text).unwrap();
            assert_eq!(read(run.path()), [], "{text:?}");
        }
    }
}
