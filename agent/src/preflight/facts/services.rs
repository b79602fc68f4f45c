//! systemd's units and settings, processes that matter, the clock, and `/tmp`.

use std::collections::BTreeMap;

use super::{Depth, Root};
use crate::preflight::command::ask;

/// What runs beside the agent.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// PID 1 is systemd.
    pub systemd: bool,
    /// Asked for by name; None where nobody could be asked.
    pub units: Option<BTreeMap<&'static str, Unit>>,
    /// Names of running processes, each once.
    pub processes: Vec<String>,
    pub journal: Journal,
    /// Size of `/tmp` if it is in memory.
    pub tmp_mib: Option<u64>,
    /// `RuntimeWatchdogSec` in seconds; None where nobody could be asked.
    pub watchdog_seconds: Option<u64>,
    pub watchdog_device: bool,
    /// The clock follows a server of time; None where nobody could be asked.
    pub clock_synchronised: Option<bool>,
    pub year: i32,
}

/// Effective properties of a unit that is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Of its running process, else as configured.
    pub oom_score: i64,
    pub delegate: bool,
    /// None: without limit.
    pub tasks_max: Option<u64>,
    /// 0 while it does not run.
    pub pid: u32,
    /// It waits for the clock (`time-sync.target`).
    pub after_time_sync: bool,
}

/// Effective settings of journald; None: its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    pub storage: Option<String>,
    pub runtime_max: Option<String>,
}

/// Units whose end would take the board out of reach. Not ssh: sshd keeps its listener alive itself (-1000) and gives logins the score
/// it was started with, so a low one would protect whatever is started over ssh.
pub(in crate::preflight) const DAEMONS: [&str; 3] = ["systemd-journald.service", "dbus.service", "NetworkManager.service"];
pub(in crate::preflight) const CONTAINERD: &str = "containerd.service";
pub(in crate::preflight) const AGENT: &str = "edge-agent.service";
const UNITS: [&str; 5] = [DAEMONS[0], DAEMONS[1], DAEMONS[2], CONTAINERD, AGENT];

pub(super) fn gather(root: &Root, processes: Vec<String>, depth: Depth) -> Services {
    let systemd = root.exists("/run/systemd/system");
    let may_ask = systemd && depth != Depth::Cheap;
    Services {
        systemd,
        units: if may_ask { units(root) } else { None },
        processes,
        journal: journal(root),
        tmp_mib: root.mount("/tmp").filter(|(kind, _)| kind == "tmpfs").and_then(|_| tmp_mib(root)),
        watchdog_seconds: if may_ask {
            ask(&["systemctl", "show", "--property=RuntimeWatchdogUSec", "--value"]).ok().map(|text| seconds(&text))
        } else {
            None
        },
        watchdog_device: root.exists("/dev/watchdog0"),
        clock_synchronised: if may_ask {
            ask(&["timedatectl", "show", "--property=NTPSynchronized", "--value"]).ok().map(|text| text.trim() == "yes")
        } else {
            None
        },
        year: time::OffsetDateTime::now_utc().year(),
    }
}

/// One question for all of them; systemd answers in the order asked, an empty line between two.
fn units(root: &Root) -> Option<BTreeMap<&'static str, Unit>> {
    let mut argv = vec!["systemctl", "show", "--property=LoadState,OOMScoreAdjust,Delegate,TasksMax,MainPID,After"];
    argv.extend(UNITS);
    let text = ask(&argv).ok()?;
    let now = |pid: u32| root.number(&format!("/proc/{pid}/oom_score_adj"));
    Some(parse_units(&text, now))
}

fn parse_units(text: &str, score_of: impl Fn(u32) -> Option<i64>) -> BTreeMap<&'static str, Unit> {
    let mut found = BTreeMap::new();
    for (name, block) in UNITS.into_iter().zip(text.split("\n\n")) {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
        if value("LoadState") != "loaded" {
            continue;
        }
        let pid = value("MainPID").parse().unwrap_or(0);
        let configured = value("OOMScoreAdjust").parse().unwrap_or(0);
        let unit = Unit {
            oom_score: if pid == 0 { configured } else { score_of(pid).unwrap_or(configured) },
            delegate: value("Delegate") == "yes",
            tasks_max: value("TasksMax").parse().ok().filter(|max| *max != u64::MAX),
            pid,
            after_time_sync: value("After").split(' ').any(|unit| unit == "time-sync.target"),
        };
        found.insert(name, unit);
    }
    found
}

/// systemd writes times as `1min 10s`, `10s`, `500ms`, `0`, `infinity`, and in some versions as plain microseconds.
fn seconds(text: &str) -> u64 {
    let text = text.trim();
    if let Ok(micros) = text.parse::<u64>() {
        return if micros == u64::MAX { 0 } else { micros / 1_000_000 };
    }
    let part = |word: &str| {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &word[digits.len()..] {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            "d" => 86400,
            _ => 0,
        };
        digits.parse::<u64>().unwrap_or(0) * factor
    };
    text.split(' ').map(part).sum()
}

/// Later files win, by name over all directories; a file in `/etc` hides one of the same name in `/usr/lib`.
fn journal(root: &Root) -> Journal {
    let mut drop_ins = BTreeMap::new();
    for directory in ["/usr/lib/systemd/journald.conf.d", "/run/systemd/journald.conf.d", "/etc/systemd/journald.conf.d"] {
        for name in root.names(directory).into_iter().filter(|name| name.ends_with(".conf")) {
            let text = root.read(&format!("{directory}/{name}"));
            drop_ins.insert(name, text);
        }
    }
    let main = ["/etc/systemd/journald.conf", "/usr/lib/systemd/journald.conf"].into_iter().find_map(|path| root.read(path));
    let mut journal = Journal::default();
    for text in std::iter::once(main).chain(drop_ins.into_values()).flatten() {
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match key.trim() {
                "Storage" => journal.storage = value,
                "RuntimeMaxUse" => journal.runtime_max = value,
                _ => {}
            }
        }
    }
    journal
}

fn tmp_mib(root: &Root) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(&root.at("/tmp")).ok()?;
    // Field widths differ between 32 and 64 bit targets.
    #[allow(clippy::useless_conversion)]
    let (unit, blocks) = (u64::from(stat.fragment_size()), u64::from(stat.blocks()));
    Some((unit * blocks) >> 20)
}

/// Names of all processes.
pub(super) fn processes(root: &Root) -> Vec<String> {
    let numbers = root.names("/proc").into_iter().filter(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let mut names: Vec<String> =
        numbers.filter_map(|number| root.read(&format!("/proc/{number}/comm"))).map(|name| name.trim().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_answer_in_the_order_asked_and_the_running_process_counts() {
        let text = "LoadState=loaded\nOOMScoreAdjust=0\nDelegate=no\nTasksMax=4915\nMainPID=7\nAfter=network.target\n\n\
             LoadState=loaded\nOOMScoreAdjust=-250\nMainPID=0\n\n\
             LoadState=not-found\n\n\
             LoadState=loaded\nOOMScoreAdjust=-999\nDelegate=yes\nTasksMax=infinity\nMainPID=9\n\n\
             LoadState=loaded\nMainPID=0\nAfter=basic.target time-sync.target\n";
        let units = parse_units(text, |pid| (pid == 7).then_some(-1000));
        assert_eq!(units.keys().copied().collect::<Vec<_>>(), [CONTAINERD, "dbus.service", AGENT, "systemd-journald.service"]);
        assert_eq!(units["systemd-journald.service"], Unit { oom_score: -1000, tasks_max: Some(4915), pid: 7, ..Unit::default() });
        assert_eq!(units["dbus.service"].oom_score, -250);
        assert_eq!(units[CONTAINERD], Unit { oom_score: -999, delegate: true, pid: 9, ..Unit::default() });
        assert!(units[AGENT].after_time_sync);
    }

    #[test]
    fn times_of_systemd_are_read() {
        for (text, expected) in [("10s\n", 10), ("1min 10s", 70), ("0", 0), ("infinity", 0), ("500ms", 0), ("15000000", 15)] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn the_last_file_of_journald_wins() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("etc/systemd/journald.conf", "[Journal]\n#Storage=auto\nStorage=persistent\nRuntimeMaxUse=64M\n"),
            ("usr/lib/systemd/journald.conf.d/40-rpi.conf", "[Journal]\nStorage=volatile\n"),
            ("usr/lib/systemd/journald.conf.d/60-x.conf", "[Journal]\nRuntimeMaxUse=1M\n"),
            ("etc/systemd/journald.conf.d/60-x.conf", "[Journal]\nRuntimeMaxUse=\n"),
            ("etc/systemd/journald.conf.d/60-x.conf.bak", "RuntimeMaxUse=9M\n"),
        ];
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let journal = journal(&Root(dir.path().to_owned()));
        assert_eq!(journal, Journal { storage: Some("volatile".to_owned()), runtime_max: None });
    }
}
