//! Taking memory back from a group, which keeps the writer in the kernel for as long as it takes: done by a thread of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::action::Knob;
use super::knob;
use crate::{CgroupDir, Error, Result};

/// How long a lowered limit may keep the governor.
const PATIENCE: Duration = Duration::from_millis(20);

/// What one write to `memory.reclaim` asks for; a limit to be lowered waits for no more than that.
const CHUNK: u64 = 4 << 20;

/// All it does is write files.
const STACK: usize = 64 * 1024;

/// How far a lowered limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The group is below it.
    Finished,
    /// The kernel is taking memory back, or has not begun.
    StillAtIt,
}

/// The thread. It is started at once, before the governor's own has its precedence, and when needed if that failed.
#[derive(Debug)]
pub(super) struct Reclaimer {
    shared: Arc<Shared>,
    started: bool,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// At most one per group.
    lower: VecDeque<Lower>,
    /// Whose limit is being written, and what is to be written after it.
    current: Option<(CgroupDir, Option<String>)>,
    /// The newest only.
    reclaim: Option<Reclaim>,
    stop: bool,
}

#[derive(Debug)]
struct Lower {
    dir: CgroupDir,
    value: String,
    answer: SyncSender<Result<()>>,
}

#[derive(Debug)]
struct Reclaim {
    dir: CgroupDir,
    left: u64,
    files_only: bool,
}

impl Reclaimer {
    pub(super) fn new() -> Reclaimer {
        let mut reclaimer = Reclaimer { shared: Arc::default(), started: false };
        if let Err(error) = reclaimer.start() {
            tracing::warn!(%error, "no thread to take memory back yet");
        }
        reclaimer
    }

    /// Whether a limit of this group waits to be written or is being written, so that its file may hold an earlier one.
    pub(super) fn is_at(&self, dir: &CgroupDir) -> bool {
        let work = self.shared.lock();
        work.current.as_ref().is_some_and(|(current, _)| current == dir) || work.lower.iter().any(|lower| lower.dir == *dir)
    }

    /// Writes `memory.high` and waits a moment.
    pub(super) fn lower(&mut self, dir: &CgroupDir, value: &str) -> Result<Outcome> {
        let (answer, answered) = sync_channel(1);
        self.start()?;
        {
            let mut work = self.shared.lock();
            work.lower.retain(|lower| lower.dir != *dir);
            work.lower.push_back(Lower { dir: dir.clone(), value: value.to_owned(), answer });
        }
        self.shared.changed.notify_one();
        match answered.recv_timeout(PATIENCE) {
            Ok(done) => done.map(|()| Outcome::Finished),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(Outcome::StillAtIt),
        }
    }

    /// To be called before `value`, which takes nothing back, is written to a group's limit: lower ones that were not written yet are
    /// forgotten, and one that is being written does not have the last word.
    pub(super) fn overrule(&mut self, dir: &CgroupDir, value: &str) {
        let mut work = self.shared.lock();
        work.lower.retain(|lower| lower.dir != *dir);
        if let Some((_, after)) = work.current.as_mut().filter(|(current, _)| current == dir) {
            *after = Some(value.to_owned());
        }
    }

    /// Asks for memory, in place of what was asked for before.
    pub(super) fn reclaim(&mut self, dir: &CgroupDir, bytes: u64, files_only: bool) {
        match self.start() {
            Ok(()) => {
                self.shared.lock().reclaim = Some(Reclaim { dir: dir.clone(), left: bytes, files_only });
                self.shared.changed.notify_one();
            }
            Err(error) => tracing::warn!(%error, "no thread to take memory back"),
        }
    }

    fn start(&mut self) -> Result<()> {
        if !self.started {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("edge-reclaim".to_owned()).stack_size(STACK).spawn(move || run(&shared));
            thread.map_err(|source| Error::Create { path: PathBuf::from("thread edge-reclaim"), source })?;
            self.started = true;
        }
        Ok(())
    }
}

impl Drop for Reclaimer {
    /// The thread may be in the kernel for seconds; it is not waited for.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Lower(Lower),
    Reclaim(Reclaim),
}

fn run(shared: &Shared) {
    let mut swappiness = true;
    while let Some(next) = next(shared) {
        match next {
            Next::Lower(Lower { dir, value, answer }) => {
                let done = knob::write(&dir, Knob::MemoryHigh, &value);
                let mut work = shared.lock();
                if let Some((dir, Some(after))) = work.current.take() {
                    // Under the lock, so that who overrules this one is later.
                    if let Err(error) = knob::write(&dir, Knob::MemoryHigh, &after) {
                        tracing::debug!(%error, "limit not raised again");
                    }
                }
                drop(work);
                if let Err(error) = &done {
                    tracing::debug!(%error, "limit not lowered");
                }
                // Who does not wait any more reads the file.
                let _ = answer.try_send(done);
            }
            Next::Reclaim(mut reclaim) => {
                if chunk(&mut reclaim, &mut swappiness) {
                    let mut work = shared.lock();
                    if work.reclaim.is_none() {
                        work.reclaim = Some(reclaim);
                    }
                }
            }
        }
    }
}

fn next(shared: &Shared) -> Option<Next> {
    let mut work = shared.lock();
    loop {
        if work.stop {
            return None;
        }
        if let Some(lower) = work.lower.pop_front() {
            work.current = Some((lower.dir.clone(), None));
            return Some(Next::Lower(lower));
        }
        if let Some(reclaim) = work.reclaim.take() {
            return Some(Next::Reclaim(reclaim));
        }
        work = shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Asks for one piece. Whether there is more to ask for.
fn chunk(reclaim: &mut Reclaim, swappiness: &mut bool) -> bool {
    let bytes = reclaim.left.min(CHUNK);
    let path = reclaim.dir.path().join("memory.reclaim");
    match ask(&path, bytes, reclaim.files_only, swappiness) {
        Ok(()) => {
            reclaim.left -= bytes;
            reclaim.left > 0
        }
        Err(error) => {
            // EAGAIN: there was less to be had.
            tracing::debug!(path = %path.display(), %error, "memory not taken back");
            false
        }
    }
}

/// Kernels that do not know `swappiness=` take it for a mistake; with them, what may be swapped may be swapped.
fn ask(path: &Path, bytes: u64, files_only: bool, swappiness: &mut bool) -> std::io::Result<()> {
    let write = |text: &str| {
        std::fs::OpenOptions::new().write(true).open(path).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
    };
    if files_only && *swappiness {
        match write(&format!("{bytes} swappiness=0")) {
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => *swappiness = false,
            done => return done,
        }
    }
    write(&bytes.to_string())
}
