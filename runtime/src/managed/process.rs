//! Processes as `/proc` shows them: who is alive, who is ours, who is whose child.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process and the moment it began, which together never mean another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks since boot.
    pub(super) started: u64,
}

impl Process {
    /// The living process of this id; a zombie is not alive.
    pub(super) fn find(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        (stat.state != 'Z' && stat.state != 'X').then_some(Self { pid, started: stat.started })
    }

    pub(super) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Sends a signal if the process is still the same one.
    pub(super) fn signal(self, signal: Signal) {
        if self.is_alive() {
            end(self.pid, signal);
        }
    }

    /// `"PID STARTED\n"`.
    pub(super) fn to_line(self) -> String {
        format!("{} {}\n", self.pid, self.started)
    }

    pub(super) fn from_line(line: &str) -> Option<Self> {
        let (pid, started) = line.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }
}

struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything, so fields are counted from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    Some(Stat { state: fields.first()?.chars().next()?, parent: fields.get(1)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
}

/// The command line of a process; empty for kernel threads and for what is gone.
fn arguments(pid: u32) -> Vec<String> {
    fs::read(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .split(|b| *b == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// Whether one argument of a living process is this path.
pub(super) fn has_argument(pid: u32, path: &Path) -> bool {
    arguments(pid).iter().any(|argument| Path::new(argument) == path)
}

/// The process of this program name that was given this path.
pub(super) fn with_argument(program: &str, path: &Path) -> Option<Process> {
    all()
        .into_iter()
        .filter(|pid| {
            arguments(*pid).first().is_some_and(|first| Path::new(first).file_name() == Some(program.as_ref())) && has_argument(*pid, path)
        })
        .find_map(Process::find)
}

/// Shims that report to the containerd of `socket`.
pub(super) fn shims_of(socket: &Path) -> Vec<Process> {
    let socket = socket.to_string_lossy();
    all()
        .into_iter()
        .filter(|pid| {
            let arguments = arguments(*pid);
            arguments.first().is_some_and(|program| program.contains("containerd-shim"))
                && arguments.windows(2).any(|pair| pair[0] == "-address" && pair[1] == socket)
        })
        .filter_map(Process::find)
        .collect()
}

/// Shims of `socket` that serve nothing: `known` has no container of their id, and no process lives below them.
pub(super) fn idle_shims(socket: &Path, known: &BTreeSet<String>) -> Vec<Process> {
    let parents: BTreeSet<u32> = all().into_iter().filter_map(stat).filter(|child| child.state != 'Z').map(|child| child.parent).collect();
    shims_of(socket)
        .into_iter()
        .filter(|shim| !parents.contains(&shim.pid))
        .filter(|shim| {
            let arguments = arguments(shim.pid);
            let id = arguments.windows(2).find(|pair| pair[0] == "-id");
            id.is_some_and(|pair| !known.contains(&pair[1]))
        })
        .collect()
}

/// Kills shims with everything below them: the first process of each container, and with it its process namespace.
pub(super) fn kill_trees(roots: &[Process]) {
    let mut doomed: BTreeSet<u32> = roots.iter().map(|p| p.pid).collect();
    // The shims first, or they would report and clean up half of what goes.
    for root in roots {
        root.signal(Signal::SIGSTOP);
    }
    loop {
        let children: Vec<u32> = all()
            .into_iter()
            .filter(|pid| !doomed.contains(pid))
            .filter(|pid| stat(*pid).is_some_and(|s| doomed.contains(&s.parent)))
            .collect();
        if children.is_empty() {
            break;
        }
        doomed.extend(children);
    }
    for pid in doomed {
        end(pid, Signal::SIGKILL);
    }
}

fn end(pid: u32, signal: Signal) {
    let Ok(pid) = i32::try_from(pid) else { return };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %signal, %error, "process cannot be signalled"),
    }
}

fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_id_and_its_beginning() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert_eq!(Process::from_line(&me.to_line()), Some(me));
        let other = Process { started: me.started + 1, ..me };
        assert!(!other.is_alive());
        assert_eq!(Process::from_line("12"), None);
    }

    #[test]
    fn odd_names_do_not_shift_the_fields() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started), ('S', 3, 4242));
    }
}
