//! What waits for the next boot, and whether that boot did it.
//!
//! `preflight --fix` and `join --yes` record which checks they repaired in files that only a boot reads. After it the effect
//! decides (controllers, pressure), never the words on the kernel command line; then the record goes. Kept as
//! `DATA-DIR/agent/reboot-required.json`:
//!
//! ```json
//! {"boot_id": "of the boot that wrote it", "at": "2026-11-23T14:00:00Z", "checks": ["memory-controller", "psi"]}
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ledger::write_whole;
use crate::node::status::Extra;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// `/proc/sys/kernel/random/boot_id` of the boot that made the changes.
    pub boot_id: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Ids of the checks that were repaired.
    pub checks: Vec<String>,
}

/// What the kernel really offers, of what boot flags decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effects {
    /// `/sys/fs/cgroup` is a cgroup v2 mount.
    pub cgroup_v2: bool,
    /// `memory` is in its `cgroup.controllers`.
    pub memory_controller: bool,
    /// `/proc/pressure/memory` can be opened and read.
    pub psi: bool,
}

/// What has become of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The machine has not booted since: condition `RebootRequired`.
    Required(Vec<String>),
    /// It has, and everything that can be seen took effect.
    Done(Vec<String>),
    /// It has, and these did not take effect: another boot will not help.
    Ineffective(Vec<String>),
}

impl Outcome {
    /// Status of the node condition `RebootRequired`.
    pub fn is_required(&self) -> bool {
        match self {
            Outcome::Required(_) => true,
            Outcome::Done(_) | Outcome::Ineffective(_) => false,
        }
    }

    /// Reason of the condition and of the event.
    pub fn reason(&self) -> &'static str {
        match self {
            Outcome::Required(_) => "BootFlagsChanged",
            Outcome::Done(_) => "BootFlagsEffective",
            Outcome::Ineffective(_) => "BootFlagsIneffective",
        }
    }

    /// The node condition.
    pub fn condition(&self) -> Extra {
        Extra { kind: KIND.to_owned(), holds: self.is_required(), reason: self.reason().to_owned(), message: self.message() }
    }

    /// One line for the condition, the event and the log.
    pub fn message(&self) -> String {
        match self {
            Outcome::Required(checks) => format!("repaired, in effect after a reboot: {}", checks.join(", ")),
            Outcome::Done(checks) => format!("in effect since this boot: {}", checks.join(", ")),
            Outcome::Ineffective(checks) => {
                format!("repaired and rebooted, but without effect: {}", checks.join(", "))
            }
        }
    }
}

/// The condition of the Node.
const KIND: &str = "RebootRequired";

/// Where it is kept.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/reboot-required.json")
}

/// Adds `checks` to what waits for a reboot.
pub fn record(data_dir: &Path, checks: &[&str]) -> anyhow::Result<()> {
    let boot_id = boot_id();
    let mut known = read(data_dir).filter(|pending| pending.boot_id == boot_id).map(|pending| pending.checks).unwrap_or_default();
    for check in checks {
        if !known.iter().any(|known| known == check) {
            known.push((*check).to_owned());
        }
    }
    let pending = Pending { boot_id, at: crate::clock::now(), checks: known };
    write_whole(&path(data_dir), &serde_json::to_vec(&pending)?)
}

/// The record, if there is one.
pub fn read(data_dir: &Path) -> Option<Pending> {
    serde_json::from_slice(&std::fs::read(path(data_dir)).ok()?).ok()
}

/// Compares the record with this boot. None where nothing is recorded.
pub fn look(data_dir: &Path) -> Option<Outcome> {
    Some(judge(&read(data_dir)?, &boot_id(), Effects::look()))
}

/// Puts what was repaired since the agent started among the conditions. Mostly the look at a file that is not there. One that the server
/// still has from before, although `preflight` has settled it since, is over.
pub fn amend(conditions: &mut Vec<Extra>, data_dir: &Path) {
    let now = look(data_dir).filter(Outcome::is_required).map(|outcome| outcome.condition());
    if let Some(now) = now {
        conditions.retain(|condition| condition.kind != now.kind);
        conditions.push(now);
    } else if conditions.iter().all(|condition| condition.kind != KIND) {
        let message = "nothing waits for a reboot".to_owned();
        conditions.push(Extra { kind: KIND.to_owned(), holds: false, reason: "NothingPending".to_owned(), message });
    }
}

/// Whether a repair was recorded in this boot.
pub fn is_of_this_boot(data_dir: &Path) -> bool {
    read(data_dir).is_some_and(|pending| pending.boot_id == boot_id())
}

/// The same, and removes the record once a boot has come after it. For the start of the agent and the end of `preflight`.
pub fn settle(data_dir: &Path) -> Option<Outcome> {
    let outcome = look(data_dir)?;
    if !outcome.is_required() {
        let _ = std::fs::remove_file(path(data_dir));
    }
    Some(outcome)
}

fn judge(pending: &Pending, boot_id: &str, effects: Effects) -> Outcome {
    if pending.boot_id == boot_id {
        return Outcome::Required(pending.checks.clone());
    }
    // What leaves no trace that can be read (swap, graphics memory) is believed.
    let missing = |check: &&String| match check.as_str() {
        "cgroup-v2" => !effects.cgroup_v2,
        "memory-controller" | "late-cgroup-disable" => !effects.memory_controller,
        "psi" => !effects.psi,
        _ => false,
    };
    let without: Vec<String> = pending.checks.iter().filter(missing).cloned().collect();
    if without.is_empty() { Outcome::Done(pending.checks.clone()) } else { Outcome::Ineffective(without) }
}

impl Effects {
    /// Looks at this machine.
    pub fn look() -> Effects {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Effects {
            cgroup_v2: nix::sys::statfs::statfs(root).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC),
            memory_controller: controllers.split_whitespace().any(|word| word == "memory"),
            psi: has_pressure(Path::new("/proc")),
        }
    }
}

/// Opening is not enough: kernels with pressure compiled in but off refuse the read.
pub(crate) fn has_pressure(proc_root: &Path) -> bool {
    File::open(proc_root.join("pressure/memory")).and_then(std::io::read_to_string).is_ok_and(|text| text.starts_with("some"))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Effects = Effects { cgroup_v2: true, memory_controller: true, psi: true };

    fn pending(checks: &[&str]) -> Pending {
        Pending { boot_id: "first".to_owned(), at: String::new(), checks: checks.iter().map(|check| (*check).to_owned()).collect() }
    }

    #[test]
    fn the_effect_after_a_boot_decides() {
        let words = |checks: &[&str]| checks.iter().map(|check| (*check).to_owned()).collect::<Vec<_>>();
        let both = ["memory-controller", "psi"];
        let no_psi = Effects { psi: false, ..ALL };
        let cases = [
            (&both[..], "first", ALL, Outcome::Required(words(&both))),
            (&both, "second", ALL, Outcome::Done(words(&both))),
            (&both, "second", no_psi, Outcome::Ineffective(words(&["psi"]))),
            (&["cgroup-v2"], "second", Effects { cgroup_v2: false, ..ALL }, Outcome::Ineffective(words(&["cgroup-v2"]))),
            (
                &["late-cgroup-disable"],
                "second",
                Effects { memory_controller: false, ..ALL },
                Outcome::Ineffective(words(&["late-cgroup-disable"])),
            ),
            (&["swap"], "second", Effects::default(), Outcome::Done(words(&["swap"]))),
        ];
        for (checks, boot, effects, outcome) in cases {
            assert_eq!(judge(&pending(checks), boot, effects), outcome, "{checks:?} {boot}");
        }
    }

    #[test]
    fn records_of_one_boot_add_up_and_one_of_an_earlier_boot_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(settle(dir.path()), None);
        record(dir.path(), &["psi"]).unwrap();
        let done = Outcome::Done(vec!["swap".to_owned()]).condition();
        let mut conditions = vec![Extra { kind: "MemoryPressure".to_owned(), ..done.clone() }, done];
        record(dir.path(), &["psi", "swap"]).unwrap();
        amend(&mut conditions, dir.path());
        assert_eq!(conditions.len(), 2, "another condition stays, the older word about this one goes");
        assert_eq!((conditions[0].kind.as_str(), &conditions[1]), ("MemoryPressure", &look(dir.path()).unwrap().condition()));
        assert!(conditions[1].holds && conditions[1].message.ends_with("psi, swap"), "{conditions:?}");
        let outcome = settle(dir.path()).unwrap();
        assert_eq!(outcome.message(), "repaired, in effect after a reboot: psi, swap");
        assert!(read(dir.path()).is_some(), "it stays until the machine has booted");
        write_whole(&path(dir.path()), &serde_json::to_vec(&pending(&["swap"])).unwrap()).unwrap();
        assert_eq!(settle(dir.path()), Some(Outcome::Done(vec!["swap".to_owned()])));
        assert_eq!(read(dir.path()), None);
    }
}
