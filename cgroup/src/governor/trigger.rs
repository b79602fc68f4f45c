//! PSI triggers: the kernel says when tasks stalled for long enough, so that the governor need not look twenty times a second.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::sensor::Scopes;
use crate::psi::Resource;
use crate::{Hierarchy, PodTree, QosClass};

/// Each group with a privileged trigger costs a kernel thread.
pub const MOST_POD_TRIGGERS: usize = 8;

/// How long a trigger that could not be set is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// Whose pressure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The whole machine.
    Node,
    /// The agent.
    Agent,
    /// All pods.
    Kubepods,
    /// Burstable pods.
    Burstable,
    /// BestEffort pods.
    BestEffort,
    /// One pod, by UID.
    Pod(String),
}

/// A trigger that fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub place: Place,
    /// What tasks waited for.
    pub resource: Resource,
    /// All tasks waited, not only some.
    pub full: bool,
}

/// Why [`Triggers::wait`] returned; both empty when the time was over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wake {
    /// The triggers that fired; each at most once per window.
    pub events: Vec<Event>,
    /// Somebody called [`Waker::wake`].
    pub woken: bool,
}

/// Wakes the thread that waits, from any other.
#[derive(Debug, Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Returns at once. Several calls before the thread looks are one.
    pub fn wake(&self) {
        if let Err(error) = self.0.write(1) {
            tracing::debug!(%error, "governor not woken");
        }
    }
}

/// All triggers of the governor. They live as long as this value.
#[derive(Debug)]
pub struct Triggers {
    tree: PodTree,
    fixed: Vec<Trigger>,
    pods: Vec<Trigger>,
    wake: Arc<EventFd>,
}

impl Triggers {
    /// Sets the triggers of governor reference, section 3.5. What cannot be set (no PSI, no such group yet) is tried again while
    /// waiting. Fails only without an eventfd.
    pub fn new(tree: &PodTree, scopes: &Scopes) -> io::Result<Triggers> {
        let fixed = FIXED.iter().map(|(place, rule)| Trigger::new(tree.hierarchy(), scopes, place.clone(), *rule)).collect();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        Ok(Triggers { tree: tree.clone(), fixed, pods: Vec::new(), wake })
    }

    /// For other threads.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// How many triggers are set. 0 means that only the time-out and [`Waker`] end a wait.
    pub fn armed(&self) -> usize {
        self.fixed.iter().chain(&self.pods).filter(|trigger| trigger.file.is_some()).count()
    }

    /// Watches the memory of these pods, the first [`MOST_POD_TRIGGERS`] of them, and of no others.
    pub fn watch_pods<'a>(&mut self, pods: impl IntoIterator<Item = (&'a str, QosClass)>) {
        let mut kept = Vec::new();
        for (uid, qos) in pods.into_iter().take(MOST_POD_TRIGGERS) {
            match self.pods.iter().position(|trigger| matches!(&trigger.place, Place::Pod(known) if known == uid)) {
                Some(at) => kept.push(self.pods.swap_remove(at)),
                None => {
                    let group = self.tree.cgroup_parent(uid, qos).ok();
                    let dir = group.and_then(|group| self.tree.hierarchy().unified_dir(&group));
                    if let Some(dir) = dir {
                        kept.push(Trigger::at(Place::Pod(uid.to_owned()), CLASS, dir.path().join("memory.pressure")));
                    }
                }
            }
        }
        self.pods = kept;
    }

    /// Waits until a trigger fires, [`Waker::wake`] is called, or the time is over.
    pub fn wait(&mut self, timeout: Duration) -> Wake {
        let now = Instant::now();
        for trigger in self.fixed.iter_mut().chain(&mut self.pods) {
            trigger.set_again(now);
        }
        let mut wake = Wake::default();
        let mut lost = Vec::new();
        {
            let set = || self.fixed.iter().chain(&self.pods).filter_map(|trigger| Some((trigger, trigger.file.as_ref()?)));
            let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            fds.extend(set().map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
            let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => return wake,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "governor cannot wait for pressure");
                    return wake;
                }
            }
            let answer = |fd: &PollFd<'_>| fd.revents().unwrap_or_else(PollFlags::empty);
            wake.woken = answer(&fds[0]).contains(PollFlags::POLLIN);
            for (fd, (trigger, _)) in fds[1..].iter().zip(set()) {
                // A group that is gone answers both, for ever.
                if answer(fd).intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
                    lost.push(trigger.path.clone());
                } else if answer(fd).contains(PollFlags::POLLPRI) {
                    let (resource, full) = (trigger.rule.resource, trigger.rule.full);
                    wake.events.push(Event { place: trigger.place.clone(), resource, full });
                }
            }
        }
        if wake.woken {
            // Sets the counter back; another thread may have been quicker only if there were two waiting.
            let _ = self.wake.read();
        }
        for path in lost {
            for trigger in self.fixed.iter_mut().chain(&mut self.pods).filter(|trigger| trigger.path == path) {
                trigger.file = None;
                trigger.retry = Some(now + RETRY);
            }
        }
        wake
    }
}

/// What a trigger watches for: milliseconds of stalling within a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    resource: Resource,
    full: bool,
    stall_ms: u64,
    window_ms: u64,
}

const fn some(resource: Resource, stall_ms: u64, window_ms: u64) -> Rule {
    Rule { resource, full: false, stall_ms, window_ms }
}

const fn full(resource: Resource, stall_ms: u64, window_ms: u64) -> Rule {
    Rule { resource, full: true, stall_ms, window_ms }
}

const CLASS: Rule = some(Resource::Memory, 20, 200);

const FIXED: [(Place, Rule); 8] = [
    (Place::Node, some(Resource::Memory, 100, 1000)),
    (Place::Node, full(Resource::Memory, 50, 1000)),
    (Place::Node, full(Resource::Io, 300, 2000)),
    (Place::Agent, some(Resource::Memory, 10, 500)),
    (Place::Agent, some(Resource::Io, 200, 2000)),
    (Place::Kubepods, CLASS),
    (Place::Burstable, CLASS),
    (Place::BestEffort, CLASS),
];

impl Rule {
    /// As the kernel takes it, with a window of that length and the same share of it.
    fn text(self, window_ms: u64) -> String {
        let kind = if self.full { "full" } else { "some" };
        format!("{kind} {} {}\0", self.stall_ms * window_ms * 1000 / self.window_ms, window_ms * 1000)
    }

    /// What to try: as wanted; no shorter than older kernels allow; and as an unprivileged process may, in multiples of two seconds.
    fn windows(self) -> [u64; 3] {
        [self.window_ms, self.window_ms.max(500), self.window_ms.max(500).next_multiple_of(2000)]
    }
}

/// One trigger; set while `file` is open.
#[derive(Debug)]
struct Trigger {
    place: Place,
    rule: Rule,
    path: PathBuf,
    file: Option<File>,
    /// Not to be tried before.
    retry: Option<Instant>,
}

impl Trigger {
    fn new(hierarchy: &Hierarchy, scopes: &Scopes, place: Place, rule: Rule) -> Trigger {
        let group = match &place {
            Place::Agent => Some(&scopes.agent),
            Place::Kubepods => Some(&scopes.kubepods),
            Place::Burstable => Some(&scopes.burstable),
            Place::BestEffort => Some(&scopes.best_effort),
            Place::Node | Place::Pod(_) => None,
        };
        let name = rule.resource.as_str();
        let dir = group.and_then(|group| hierarchy.unified_dir(group));
        let path = match (group, dir) {
            (None, _) => hierarchy.proc_root().join("pressure").join(name),
            (Some(_), Some(dir)) => dir.path().join(format!("{name}.pressure")),
            // No such file: tried in vain, which is cheap.
            (Some(_), None) => PathBuf::from("/nonexistent"),
        };
        Trigger::at(place, rule, path)
    }

    fn at(place: Place, rule: Rule, path: PathBuf) -> Trigger {
        let mut trigger = Trigger { place, rule, path, file: None, retry: None };
        trigger.set_again(Instant::now());
        trigger
    }

    fn set_again(&mut self, now: Instant) {
        if self.file.is_some() || self.retry.is_some_and(|retry| now < retry) {
            return;
        }
        self.file = set(&self.path, self.rule).ok();
        self.retry = Some(now + RETRY);
    }
}

/// Sets a trigger and returns what must stay open for it.
fn set(path: &std::path::Path, rule: Rule) -> io::Result<File> {
    let mut refused = None;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    for window_ms in rule.windows() {
        match file.write(rule.text(window_ms).as_bytes()) {
            Ok(_) => return Ok(file),
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
}

/// The shortest window, milliseconds, that a trigger on this pressure file may have; `None` where none can be set.
pub(super) fn shortest_window(path: &std::path::Path) -> Option<u64> {
    CLASS.windows().into_iter().find(|window_ms| {
        let rule = Rule { stall_ms: CLASS.stall_ms * window_ms / CLASS.window_ms, window_ms: *window_ms, ..CLASS };
        let open = OpenOptions::new().read(true).write(true).open(path);
        open.and_then(|mut file| file.write(rule.text(*window_ms).as_bytes())).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_windows_keep_the_share() {
        let texts = |rule: Rule| rule.windows().map(|window| rule.text(window));
        assert_eq!(texts(CLASS), ["some 20000 200000\0", "some 50000 500000\0", "some 200000 2000000\0"]);
        assert_eq!(texts(FIXED[1].1), ["full 50000 1000000\0", "full 50000 1000000\0", "full 100000 2000000\0"]);
        assert_eq!(texts(FIXED[2].1), ["full 300000 2000000\0"; 3]);
    }
}
