//! Processes that a test starts, and only those.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process with a log of its own; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Process {
    /// Starts `command` in a session of its own, its output appended to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("log file opens");
        let copy = file.try_clone().expect("log file is shared");
        command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Gone already is as good.
        let _ = kill(as_pid(self.child.id()), signal);
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// None while it runs.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("own child")
    }

    /// The last lines of its log.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log, 40)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn as_pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("the kernel's pids fit"))
}

/// The last `lines` lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output of a success; the error is everything there is to see.
    pub(crate) fn ok(self) -> Result<String, String> {
        if self.code == Some(0) { Ok(self.stdout) } else { Err(format!("{self:?}")) }
    }
}

/// Runs to the end, or kills it after `limit`; then `code` is `None`.
pub(crate) fn output(mut command: Command, limit: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut out = child.stdout.take().expect("piped");
    let mut err = child.stderr.take().expect("piped");
    let read = |source: &mut dyn Read| {
        let mut data = Vec::new();
        let _ = source.read_to_end(&mut data);
        String::from_utf8_lossy(&data).into_owned()
    };
    let group = Pid::from_raw(-as_pid(child.id()).as_raw());
    let began = Instant::now();
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || read(&mut out));
        let stderr = scope.spawn(move || read(&mut err));
        let mut code = None;
        loop {
            if let Some(status) = child.try_wait().expect("own child") {
                code = code.or(status.code());
                break;
            }
            if began.elapsed() > limit {
                let _ = kill(group, Signal::SIGKILL);
                let _ = child.wait();
                code = None;
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whatever the command left in its group would hold the pipes open.
        let _ = kill(group, Signal::SIGKILL);
        Output { code, stdout: stdout.join().expect("reads"), stderr: stderr.join().expect("reads") }
    })
}

/// Runs a short command that must succeed.
#[track_caller]
pub(crate) fn sh(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    output(command, Duration::from_secs(30)).ok().unwrap_or_else(|seen| panic!("{program} {args:?}: {seen}"))
}

/// Pids whose command line names something below `dir`.
pub(crate) fn naming(dir: &Path) -> Vec<i32> {
    let needle = format!("{}/", dir.display());
    let own = as_pid(std::process::id()).as_raw();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&needle)
        })
        .collect()
}
