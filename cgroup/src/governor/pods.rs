//! Reading what each pod uses. Done only while something is wrong, so it may allocate, but not take long.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::sample::{Pod, PodFacts, PodUse};
use super::sensor::{boottime, refaults};
use super::source::{keyed, leading, stall, summed};
use crate::{Controller, PodTree};

/// How long one walk may take (governor reference, section 3.10).
const BUDGET: Duration = Duration::from_millis(20);

/// The pods' groups. Their directories stay open, so that a reading does not walk paths; the files do not, because each open file of this
/// kind holds a page of kernel memory.
#[derive(Debug)]
pub struct PodReader {
    tree: PodTree,
    dirs: HashMap<String, OwnedFd>,
    /// The last reading of each, for a walk that runs out of time.
    last: HashMap<String, PodUse>,
    /// Where the next walk begins, if the last one ran out of time.
    next: usize,
    budget: Duration,
    buffer: Box<[u8]>,
}

impl PodReader {
    /// Opens nothing yet.
    pub fn new(tree: PodTree) -> PodReader {
        PodReader { tree, dirs: HashMap::new(), last: HashMap::new(), next: 0, budget: BUDGET, buffer: vec![0; 16 * 1024].into() }
    }

    /// With another time for one walk than 20 ms. At least one pod is read each time.
    #[must_use]
    pub fn with_budget(self, budget: Duration) -> PodReader {
        PodReader { budget, ..self }
    }

    /// What the pods use that have a group, in the order of `facts`. Those for which there was no time are as they were read last, see
    /// [`PodUse::read`]; the next call begins with the first of them. Empty where the memory controller is not in cgroup v2.
    pub fn read(&mut self, facts: &[PodFacts]) -> Vec<Pod> {
        if !self.tree.hierarchy().is_v2(Controller::Memory) {
            return Vec::new();
        }
        self.dirs.retain(|uid, _| facts.iter().any(|pod| pod.uid == *uid));
        self.last.retain(|uid, _| facts.iter().any(|pod| pod.uid == *uid));
        let start = Instant::now();
        let mut pods = Vec::with_capacity(facts.len());
        let first = if self.next < facts.len() { self.next } else { 0 };
        let mut next = None;
        for n in 0..facts.len() {
            let at = (first + n) % facts.len();
            let late = n > 0 && start.elapsed() >= self.budget;
            if late {
                next.get_or_insert(at);
            }
            let used = if late { self.last.get(&facts[at].uid).copied() } else { self.read_one(&facts[at]) };
            match used {
                Some(used) => {
                    self.last.insert(facts[at].uid.clone(), used);
                    pods.push(Pod { facts: facts[at].clone(), used });
                }
                None => drop(self.last.remove(&facts[at].uid)),
            }
        }
        self.next = next.unwrap_or(0);
        pods
    }

    fn read_one(&mut self, pod: &PodFacts) -> Option<PodUse> {
        let known = self.dirs.remove(&pod.uid);
        let dir = known.or_else(|| self.open(pod))?;
        // A pod's group that was removed and made again.
        let (dir, used) = match use_of(&dir, &mut self.buffer) {
            Some(used) => (dir, used),
            None => {
                let dir = self.open(pod)?;
                let used = use_of(&dir, &mut self.buffer)?;
                (dir, used)
            }
        };
        self.dirs.insert(pod.uid.clone(), dir);
        Some(used)
    }

    fn open(&self, pod: &PodFacts) -> Option<OwnedFd> {
        let group = self.tree.cgroup_parent(&pod.uid, pod.qos).ok()?;
        let dir = self.tree.hierarchy().dir(Controller::Memory, &group).ok()?;
        open(dir.path(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
    }
}

/// `None` if the group is gone.
fn use_of(dir: &OwnedFd, buffer: &mut [u8]) -> Option<PodUse> {
    let mut used =
        PodUse { read: boottime(), memory: leading(read(dir, "memory.current", buffer).ok()?).unwrap_or(0), ..PodUse::default() };
    let mut number = |file| read(dir, file, buffer).ok().and_then(leading);
    used.swap = number("memory.swap.current").unwrap_or(0);
    used.high = number("memory.high");
    used.tasks = number("pids.current").unwrap_or(0);
    used.frozen = number("cgroup.freeze") == Some(1);
    if let Ok(text) = read(dir, "memory.stat", buffer) {
        let pages = |key| keyed(text, key).unwrap_or(0);
        // Before 5.18 there is no sum of the kernel's memory.
        let kernel =
            keyed(text, "kernel").unwrap_or_else(|| ["kernel_stack", "pagetables", "percpu", "slab", "sock"].map(pages).iter().sum());
        used.relief = pages("anon").saturating_add(pages("shmem")).saturating_add(kernel);
        used.thrash = refaults(text).saturating_add(pages("pgscan"));
    }
    if let Ok(text) = read(dir, "memory.pressure", buffer) {
        used.memory_stall_us = stall(text).map_or(0, |stall| stall.some_us);
    }
    if let Ok(text) = read(dir, "io.stat", buffer) {
        used.written = summed(text, "wbytes");
    }
    if let Ok(text) = read(dir, "cpu.stat", buffer) {
        used.cpu_us = keyed(text, "usage_usec").unwrap_or(0);
    }
    if let Ok(text) = read(dir, "pids.events", buffer) {
        used.fork_failures = keyed(text, "max").unwrap_or(0);
    }
    Some(used)
}

fn read<'b>(dir: &OwnedFd, file: &str, buffer: &'b mut [u8]) -> Result<&'b str, Errno> {
    let fd = openat(dir, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let n = File::from(fd).read(buffer).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    std::str::from_utf8(&buffer[..n]).map_err(|_| Errno::EILSEQ)
}
