//! A private containerd for machines that run none. It outlives the agent: it stands in a session of its own, and a
//! restarted agent adopts it.
//!
//! ```text
//!   start: pid file ─► that process alive, ours, same configuration? ─ yes ─► wait until CRI answers: adopted
//!                                │ no (gone, or the configuration changed: it is ended, its pods run on)
//!                                ▼
//!          write config.toml ─► spawn ─► pid file ─► wait until CRI answers: started
//! ```

mod config;
mod detach;
mod process;
mod remove;
mod spawn;
mod sweep;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::Instant;

use self::process::Process;
use self::spawn::{generation, prepare, snapshotter, spawn};
use crate::{Client, Error, Result};

/// Everything a private containerd is made of. All paths are absolute and belong to this instance alone.
#[derive(Debug, Clone, Default)]
pub struct ManagedOptions {
    /// Images and snapshots; survives reboots. On a file system overlayfs can stand on.
    pub root: PathBuf,
    /// Run-time state; below `/run`. Also holds `config.toml` and `containerd.pid`.
    pub state: PathBuf,
    /// The unix socket to serve on: at most 107 bytes.
    pub socket: PathBuf,
    /// Where the CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration list is read from.
    pub cni_conf_dir: PathBuf,
    /// Image of the pause process, for example `rancher/mirrored-pause:3.10.2`.
    pub pause_image: String,
    /// Do not lower `oom_score_adj` below the agent's own: needed where CAP_SYS_RESOURCE is missing.
    pub restrict_oom: bool,
    /// Cgroup directories (one for v2, one per hierarchy for v1) the daemon is put into.
    pub cgroups: Vec<PathBuf>,
    /// runc talks to systemd for cgroups.
    pub systemd_cgroup: bool,
    /// File the daemon's output is appended to.
    pub log: PathBuf,
    /// Directory with one `hosts.toml` per registry, containerd's `config_path`.
    pub registry_config: Option<PathBuf>,
}

/// A living private containerd. Dropping this leaves it alive.
#[derive(Debug)]
pub struct Managed {
    /// Its process id.
    pub pid: u32,
    /// It was already there: a former agent started it.
    pub adopted: bool,
    process: Process,
    child: Option<tokio::process::Child>,
    socket: PathBuf,
}

/// How long a containerd may take to answer. On a Raspberry Pi with a cold SD card it takes several seconds.
const READY: Duration = Duration::from_secs(60);
/// How long it may take to end when asked.
const END: Duration = Duration::from_secs(15);
/// When forgotten shims are looked for: soon after a start, for a killed agent leaves them, and now and then.
const FIRST_SWEEP: Duration = Duration::from_secs(30);
const NEXT_SWEEP: Duration = Duration::from_secs(3600);
/// How long a shim without work may take to get some.
const PATIENCE: Duration = Duration::from_secs(20);
/// `sun_path` with its final zero.
const LONGEST_SOCKET: usize = 107;

impl ManagedOptions {
    /// Where the daemon's configuration is written.
    pub fn config_file(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    fn pid_file(&self) -> PathBuf {
        self.state.join("containerd.pid")
    }

    /// The living process a former agent started with these options. Usually the pid file names it; when that agent
    /// died before it was written, or somebody removed it, the process table does.
    fn living(&self) -> Option<Process> {
        let ours = self.config_file();
        let noted = fs::read_to_string(self.pid_file())
            .ok()
            .and_then(|line| Process::from_line(&line))
            .filter(|process| process.is_alive() && process::has_argument(process.pid, &ours));
        noted.or_else(|| process::with_argument("containerd", &ours))
    }

    fn failed(&self, problem: impl Into<String>) -> Error {
        let mut problem = problem.into();
        let tail = tail(&self.log);
        if !tail.is_empty() {
            problem = format!("{problem}; last words: {tail}");
        }
        Error::Managed { socket: self.socket.clone(), problem, log: self.log.clone() }
    }
}

/// Whether this process holds CAP_SYS_RESOURCE, without which `oom_score_adj` cannot be lowered and every sandbox of a
/// containerd with default settings fails. Unreadable counts as missing: restricting is always safe.
pub fn may_lower_oom_score() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .is_some_and(|effective| effective & (1 << CAP_SYS_RESOURCE) != 0)
}

impl Managed {
    /// Adopts the living containerd of these options, or starts one and waits until CRI answers. One whose
    /// configuration differs is restarted; its pods run on meanwhile.
    pub async fn start(options: &ManagedOptions) -> Result<Managed> {
        if options.socket.as_os_str().len() > LONGEST_SOCKET {
            return Err(options.failed(format!("the socket's path is longer than {LONGEST_SOCKET} bytes; choose a shorter run directory")));
        }
        let generation = generation().await?;
        create_dir(&options.root)?;
        let wanted = config::render(options, generation, snapshotter(&options.root));
        if let Some(process) = options.living() {
            if fs::read_to_string(options.config_file()).is_ok_and(|found| found == wanted) {
                let mut managed = Managed { pid: process.pid, adopted: true, process, child: None, socket: options.socket.clone() };
                managed.ready(options).await?;
                tracing::info!(pid = process.pid, "containerd adopted");
                return Ok(managed);
            }
            tracing::info!(pid = process.pid, "containerd restarts with a changed configuration");
            end(process).await;
        }
        prepare(options, &wanted)?;
        let began = Instant::now();
        let mut managed = spawn(options)?;
        managed.ready(options).await?;
        tracing::info!(pid = managed.pid, took_ms = began.elapsed().as_millis(), "containerd started");
        Ok(managed)
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// The socket it serves on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns when the daemon has ended, for whatever reason. May be dropped and called again.
    pub async fn ended(&mut self) {
        if let Some(child) = &mut self.child {
            // Also collects the zombie.
            let _ = child.wait().await;
            return;
        }
        // Not our child, so nobody tells us; but its end of a connection goes when it goes. It closes a silent
        // connection after two minutes, and then we make another.
        while self.process.is_alive() {
            match UnixStream::connect(&self.socket).await {
                Ok(mut stream) => {
                    let mut greeting = [0; 256];
                    while stream.read(&mut greeting).await.is_ok_and(|n| n > 0) {}
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Starts the daemon again whenever it ends, with a pause that grows while it does not stay up. Never returns.
    pub async fn keep(mut self, options: ManagedOptions) {
        let mut pause = Duration::from_millis(100);
        loop {
            let since = Instant::now();
            let sweeper = async {
                let mut next = FIRST_SWEEP;
                loop {
                    tokio::time::sleep(next).await;
                    Managed::sweep(&options, PATIENCE).await;
                    next = NEXT_SWEEP;
                }
            };
            tokio::select! {
                () = self.ended() => {}
                // Never ends; dropped between two looks it has done nothing yet.
                () = sweeper => {}
            }
            if since.elapsed() > Duration::from_secs(60) {
                pause = Duration::from_millis(100);
            }
            tracing::warn!(pid = self.pid, "containerd ended, starting it again");
            self = loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
                match Managed::start(&options).await {
                    Ok(managed) => break managed,
                    Err(error) => tracing::error!(%error, "containerd does not start"),
                }
            };
        }
    }

    /// Waits until CRI answers and says it is ready. The network may still be missing: that is the node's business.
    async fn ready(&mut self, options: &ManagedOptions) -> Result<()> {
        let client = self.client();
        let end = Instant::now() + READY;
        let mut last = String::from("no answer");
        loop {
            if let Some(child) = &mut self.child {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(options.failed(format!("it ended at once, {status}")));
                }
            } else if !self.process.is_alive() {
                return Err(options.failed("it ended"));
            }
            match tokio::time::timeout(Duration::from_secs(5), client.status()).await {
                Ok(Ok(answer)) => {
                    let conditions = answer.status.unwrap_or_default().conditions;
                    match conditions.iter().find(|c| c.r#type == "RuntimeReady") {
                        Some(condition) if !condition.status => {
                            last = condition.message.clone();
                        }
                        _ => return Ok(()),
                    }
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            if Instant::now() >= end {
                return Err(options.failed(format!("not ready within {} s: {last}", READY.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn create_dir(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|e| file_error("create", directory, e))
}

/// Asks the daemon to end, and kills it if it does not. Its shims live on.
async fn end(process: Process) {
    process.signal(Signal::SIGTERM);
    let limit = Instant::now() + END;
    while process.is_alive() {
        if Instant::now() >= limit {
            process.signal(Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

/// The end of the log, as one line.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(2).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_path_the_kernel_refuses_is_named_before_anything_starts() {
        let options = ManagedOptions { socket: format!("/run/{}", "x".repeat(120)).into(), ..Default::default() };
        let error = Managed::start(&options).await.unwrap_err().to_string();
        assert!(error.contains("longer than 107 bytes"), "{error}");
    }
}
