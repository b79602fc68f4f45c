//! What a hog reached, as lines of JSON:
//!
//! `{"at":1790000000123,"kind":"fork","seconds":3.000,"done":210,"unit":"processes","rate":0.0,"held":210,"refused":4711,"errno":"EAGAIN","worst_ms":0.0,"end":false}`
//!
//! `at` is milliseconds since 1970; `done` counts from the start and `rate` is its growth a second since the line before; `held` is
//! what is in use now; `refused` are calls the kernel refused, `errno` the last reason; `worst_ms` is the longest single call or piece of
//! work since the line before. The last line has `end` true, and the rate and the worst of the whole run.
use std::io::Write;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use crate::arguments::Arguments;

/// One running hog: its arguments, its time and what it reached.
pub(crate) struct Run {
    pub(crate) arguments: Arguments,
    until: Instant,
    tally: Arc<Tally>,
}

struct Tally {
    kind: &'static str,
    started: Instant,
    unit: Mutex<&'static str>,
    done: AtomicU64,
    held: AtomicU64,
    refused: AtomicU64,
    errno: AtomicI32,
    worst_us: AtomicU64,
    since: Mutex<Since>,
}

/// What was so at the line before.
struct Since {
    at: Instant,
    done: u64,
    /// Of the whole run.
    worst_us: u64,
    ended: bool,
}

impl Run {
    pub(crate) fn start(arguments: Arguments) -> Self {
        let started = Instant::now();
        let tally = Arc::new(Tally {
            kind: arguments.kind.name(),
            started,
            unit: Mutex::new("bytes"),
            done: AtomicU64::new(0),
            held: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            errno: AtomicI32::new(0),
            worst_us: AtomicU64::new(0),
            since: Mutex::new(Since { at: started, done: 0, worst_us: 0, ended: false }),
        });
        Self { until: started + arguments.length, arguments, tally }
    }

    /// Prints a line each `period` from a thread of its own. A machine that gives no thread gets the last line only.
    pub(crate) fn report_each(&self, period: Duration) {
        let tally = Arc::clone(&self.tally);
        let printing = move || {
            let mut next = Instant::now() + period;
            loop {
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                tally.print(false);
                next = (next + period).max(Instant::now());
            }
        };
        if let Err(error) = std::thread::Builder::new().stack_size(64 << 10).spawn(printing) {
            eprintln!("hog: no lines until the end: {error}");
        }
    }

    /// SIGTERM ends the program with its last line, also as a container's first process, which the default action would spare.
    pub(crate) fn end_on_sigterm(&self) {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        if signals.thread_block().is_err() {
            return;
        }
        let tally = Arc::clone(&self.tally);
        let waiting = move || {
            if signals.wait().is_ok() {
                tally.print(true);
                std::process::exit(0);
            }
        };
        if std::thread::Builder::new().stack_size(64 << 10).spawn(waiting).is_err() {
            let _ = signals.thread_unblock();
        }
    }

    pub(crate) fn print_last(&self) {
        self.tally.print(true);
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.tally.started.elapsed()
    }

    /// What `done` counts.
    pub(crate) fn count_in(&self, unit: &'static str) {
        *self.tally.unit.lock().expect("no holder panics") = unit;
    }

    pub(crate) fn did(&self, amount: u64) {
        self.tally.done.fetch_add(amount, Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn done(&self) -> u64 {
        self.tally.done.load(Relaxed)
    }

    pub(crate) fn holds(&self, amount: u64) {
        self.tally.held.store(amount, Relaxed);
    }

    pub(crate) fn was_refused(&self, errno: Errno) {
        self.tally.refused.fetch_add(1, Relaxed);
        self.tally.errno.store(errno as i32, Relaxed);
    }

    pub(crate) fn was_refused_io(&self, error: &std::io::Error) {
        self.was_refused(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw));
    }

    /// One call or piece of work took that long.
    pub(crate) fn took(&self, time: Duration) {
        self.tally.worst_us.fetch_max(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Waits, but not longer than the run. Between tries of what is refused, so that the kernel is asked often but not only.
    pub(crate) fn pause(&self, time: Duration) {
        std::thread::sleep(time.min(self.until.saturating_duration_since(Instant::now())));
    }

    /// Keeps what is held until the time is over.
    pub(crate) fn wait_for_end(&self) {
        self.pause(self.until.saturating_duration_since(Instant::now()));
    }
}

impl Tally {
    fn print(&self, end: bool) {
        let Some(line) = self.line(end, Instant::now(), SystemTime::now()) else { return };
        // A reader that is gone or slow is no reason to stop.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }

    /// None after the last one.
    fn line(&self, end: bool, now: Instant, wall: SystemTime) -> Option<String> {
        let done = self.done.load(Relaxed);
        let mut since = self.since.lock().expect("no holder panics");
        if since.ended {
            return None;
        }
        let worst = self.worst_us.swap(0, Relaxed);
        let all = worst.max(since.worst_us);
        let before = std::mem::replace(&mut *since, Since { at: now, done, worst_us: all, ended: end });
        let (from, done_before, worst) = if end { (self.started, 0, all) } else { (before.at, before.done, worst) };
        let passed = now.saturating_duration_since(from).as_secs_f64();
        let rate = if passed > 0.0 { done.saturating_sub(done_before) as f64 / passed } else { 0.0 };
        let errno = match self.errno.load(Relaxed) {
            0 => String::from("null"),
            number => format!("\"{:?}\"", Errno::from_raw(number)),
        };
        Some(format!(
            "{{\"at\":{},\"kind\":\"{}\",\"seconds\":{:.3},\"done\":{done},\"unit\":\"{}\",\"rate\":{rate:.1},\"held\":{},\"refused\":{},\"errno\":{errno},\"worst_ms\":{:.1},\"end\":{end}}}\n",
            wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis()),
            self.kind,
            now.saturating_duration_since(self.started).as_secs_f64(),
            self.unit.lock().expect("no holder panics"),
            self.held.load(Relaxed),
            self.refused.load(Relaxed),
            worst as f64 / 1000.0,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Asked, parse};

    #[test]
    fn the_rate_and_the_worst_are_those_since_the_line_before_and_at_the_end_of_all() {
        let Ok(Asked::Run(arguments)) = parse(["--kind", "fork"].iter().map(|word| (*word).to_owned())) else { panic!("arguments") };
        let run = Run::start(arguments);
        run.count_in("processes");
        run.did(30);
        run.took(Duration::from_millis(7));
        run.was_refused(Errno::EAGAIN);
        let wall = UNIX_EPOCH + Duration::from_millis(5);
        let line = |second: u64, end| run.tally.line(end, run.tally.started + Duration::from_secs(second), wall);
        assert_eq!(
            line(2, false).unwrap(),
            "{\"at\":5,\"kind\":\"fork\",\"seconds\":2.000,\"done\":30,\"unit\":\"processes\",\"rate\":15.0,\"held\":0,\"refused\":1,\"errno\":\"EAGAIN\",\"worst_ms\":7.0,\"end\":false}\n"
        );
        run.did(4);
        run.holds(9);
        let second = line(4, false).unwrap();
        for part in ["\"done\":34", "\"rate\":2.0", "\"held\":9", "\"worst_ms\":0.0"] {
            assert!(second.contains(part), "{part} in {second}");
        }
        let last = line(17, true).unwrap();
        for part in ["\"rate\":2.0", "\"worst_ms\":7.0", "\"end\":true"] {
            assert!(last.contains(part), "{part} in {last}");
        }
        assert_eq!(line(18, false), None, "nothing after the last");
    }
}
