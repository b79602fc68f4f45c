//! How long a small write to the agent's state takes, measured by a thread of its own that may hang on the card for as long as it likes.
//!
//! It writes only when asked: on a calm board nothing is written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::metrics::Metrics;

/// At most so often.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Bell {
    wanted: bool,
    stop: bool,
}

/// The probe as its thread and the governor's see it.
pub(super) struct Probe {
    path: PathBuf,
    began: Instant,
    bell: Mutex<Bell>,
    rings: Condvar,
    /// When the outstanding write began, microseconds after `began`; 0: none.
    since: AtomicU64,
    /// How long the last one took, microseconds, until it is asked for.
    last: AtomicU64,
    /// When the last one was asked for.
    asked: AtomicU64,
}

impl Probe {
    pub(super) fn new(data_dir: &Path) -> Probe {
        Probe {
            path: data_dir.join("agent/write-probe"),
            began: Instant::now(),
            bell: Mutex::default(),
            rings: Condvar::new(),
            since: AtomicU64::new(0),
            last: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Asks for a write, if the last one is long enough ago. Never waits.
    pub(super) fn ask(&self) {
        let now = self.now();
        let asked = self.asked.load(Ordering::Relaxed);
        if self.since.load(Ordering::Relaxed) != 0 || asked != 0 && now - asked < EVERY.as_micros() as u64 {
            return;
        }
        if let Ok(mut bell) = self.bell.try_lock() {
            self.asked.store(now, Ordering::Relaxed);
            bell.wanted = true;
            self.rings.notify_one();
        }
    }

    /// Age of the outstanding write, or how long the one took that ended since this was asked last.
    pub(super) fn age(&self) -> Duration {
        let ended = self.last.swap(0, Ordering::Relaxed);
        let outstanding = match self.since.load(Ordering::Relaxed) {
            0 => 0,
            since => self.now().saturating_sub(since),
        };
        Duration::from_micros(ended.max(outstanding))
    }

    pub(super) fn stop(&self) {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.rings.notify_one();
    }

    /// Waits to be asked; false: it is over.
    fn wait(&self) -> bool {
        let mut bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if bell.stop {
                return false;
            }
            if bell.wanted {
                bell.wanted = false;
                return true;
            }
            bell = self.rings.wait(bell).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, metrics: &Metrics) {
        let mut file: Option<File> = None;
        while self.wait() {
            let began = Instant::now();
            self.since.store(self.now(), Ordering::Relaxed);
            let wrote = write(&self.path, &mut file);
            let took = began.elapsed();
            self.last.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
            self.since.store(0, Ordering::Relaxed);
            metrics.governor().observe_storage_probe(took);
            if let Err(error) = wrote {
                file = None;
                tracing::debug!(path = %self.path.display(), %error, "write probe failed");
            }
        }
    }
}

/// One byte, in place and on the disk.
fn write(path: &Path, file: &mut Option<File>) -> io::Result<()> {
    if file.is_none() {
        *file = Some(OpenOptions::new().create(true).write(true).truncate(false).open(path)?);
    }
    let Some(open) = file else { return Ok(()) };
    open.write_all_at(b"1", 0)?;
    open.sync_data()
}

/// Starts the thread; it ends with [`Probe::stop`], once the write it may be in comes back.
pub(super) fn start(probe: Arc<Probe>, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let run = move || probe.run(&metrics);
    std::thread::Builder::new().name("write-probe".to_owned()).stack_size(64 << 10).spawn(run).context("starting the write probe")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_writes_when_asked_and_tells_how_long_it_took() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("agent")).unwrap();
        let probe = Arc::new(Probe::new(dir.path()));
        let metrics = Arc::new(Metrics::new("0"));
        start(Arc::clone(&probe), metrics).unwrap();
        assert_eq!(probe.age(), Duration::ZERO);
        assert!(!probe.path.exists(), "nothing is written unasked");
        let until = Instant::now() + Duration::from_secs(20);
        // An outstanding write has an age before its file is there.
        let mut told = Duration::ZERO;
        while told == Duration::ZERO || !probe.path.exists() {
            probe.ask();
            told = told.max(probe.age());
            assert!(Instant::now() < until, "no answer");
            std::thread::yield_now();
        }
        probe.stop();
    }
}
