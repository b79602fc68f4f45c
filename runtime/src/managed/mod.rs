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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use self::config::{Generation, Snapshotter};
use self::process::Process;
use crate::client::failed;
use crate::{Client, ContainerId, Error, Result, SandboxId};

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
/// A log of this many bytes is put aside at the next start.
const LARGEST_LOG: u64 = 4 << 20;
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

    /// Ends shims that serve nothing: containerd forgets one when a call to start a sandbox is given up at the wrong
    /// moment (the agent was killed), and each holds 4 MB until somebody ends it. Judged twice, `patience` apart, so that
    /// none that is just starting is taken. Returns how many.
    pub async fn sweep(options: &ManagedOptions, patience: Duration) -> usize {
        let look = || async {
            if process::shims_of(&options.socket).is_empty() {
                return Vec::new();
            }
            match known_containers(&options.socket).await {
                Ok(known) => process::idle_shims(&options.socket, &known),
                Err(_) => Vec::new(),
            }
        };
        let first = look().await;
        if first.is_empty() {
            return 0;
        }
        tokio::time::sleep(patience).await;
        let still = look().await;
        let idle: Vec<Process> = first.into_iter().filter(|p| still.contains(p)).collect();
        for shim in &idle {
            tracing::info!(pid = shim.pid, "forgotten shim ended");
            shim.signal(Signal::SIGKILL);
        }
        idle.len()
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

    /// For leave, purge and the quickstart's clean-up: ends all pods, shims and the daemon itself, unmounts what they
    /// mounted and removes the run-time state. What is below `root` stays. Works also when the daemon is gone already;
    /// doing it twice is harmless.
    pub async fn stop(options: &ManagedOptions) -> Result<()> {
        if let Some(process) = options.living() {
            let polite = tokio::time::timeout(Duration::from_secs(60), empty(&options.socket));
            match polite.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "pods are ended the hard way"),
                Err(_) => tracing::warn!("pods took too long and are ended the hard way"),
            }
            end(process).await;
        }
        let options = options.clone();
        tokio::task::spawn_blocking(move || {
            process::kill_trees(&process::shims_of(&options.socket));
            unmount_below(&[&options.state, &options.root]);
            for file in [&options.socket, &with_suffix(&options.socket, ".ttrpc")] {
                let _ = fs::remove_file(file);
            }
            match fs::remove_dir_all(&options.state) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_error("remove", &options.state, e)),
                _ => Ok(()),
            }
        })
        .await
        .unwrap_or_else(|_| Ok(()))
    }
}

/// Ids of all containers containerd itself knows, sandboxes among them.
async fn known_containers(socket: &Path) -> Result<BTreeSet<String>> {
    let mut request = Request::new(ListContainersRequest::default());
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    let call = async { ContainersClient::new(Client::connect(socket).channel()).list(request).await };
    let answer = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        .map_err(|status| failed("containers.List", "", status))?;
    let containers = answer.into_inner().containers;
    Ok(containers.into_iter().map(|c| c.id).collect())
}

async fn generation() -> Result<Generation> {
    let missing = |problem: String| Error::Program { program: "containerd".into(), problem };
    let output = tokio::process::Command::new("containerd")
        .arg("--version")
        .output()
        .await
        .map_err(|e| missing(format!("cannot be run ({e}); apt-get install containerd runc containernetworking-plugins")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Generation::parse(&text).ok_or_else(|| missing(format!("1.6 or later is needed, this one says {:?}", text.trim())))
}

/// The kernel refuses an overlay on top of another one, which is what the root of a container usually is.
fn snapshotter(root: &Path) -> Snapshotter {
    match statfs(root) {
        Ok(found) if found.filesystem_type() == OVERLAYFS_SUPER_MAGIC => {
            tracing::warn!(
                root = %root.display(),
                "images are copied because the data directory is on an overlay; put it on a disk"
            );
            Snapshotter::Native
        }
        _ => Snapshotter::Overlayfs,
    }
}

fn create_dir(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|e| file_error("create", directory, e))
}

fn prepare(options: &ManagedOptions, config: &str) -> Result<()> {
    create_dir(&options.state)?;
    for file in [&options.socket, &options.log] {
        if let Some(directory) = file.parent() {
            create_dir(directory)?;
        }
    }
    // One old log is kept; the daemon itself never turns over.
    if fs::metadata(&options.log).is_ok_and(|log| log.len() > LARGEST_LOG) {
        let old = with_suffix(&options.log, ".1");
        fs::rename(&options.log, &old).map_err(|e| file_error("rename", &options.log, e))?;
    }
    let file = options.config_file();
    let draft = with_suffix(&file, ".new");
    fs::write(&draft, config).and_then(|()| fs::rename(&draft, &file)).map_err(|e| file_error("write", &file, e))
}

fn spawn(options: &ManagedOptions) -> Result<Managed> {
    let log =
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&options.log).map_err(|e| file_error("open", &options.log, e))?;
    let error_log = log.try_clone().map_err(|e| file_error("open", &options.log, e))?;
    let mut command = Command::new("containerd");
    command
        .arg("--config")
        .arg(options.config_file())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log)
        .env_clear()
        .env("PATH", search_path());
    // A proxy is how some sites reach their registry.
    for (key, value) in std::env::vars_os() {
        let name = key.to_string_lossy().to_ascii_uppercase();
        if matches!(name.as_str(), "HTTP_PROXY" | "HTTPS_PROXY" | "NO_PROXY" | "TMPDIR") {
            command.env(key, value);
        }
    }
    detach::own_session(&mut command);
    let child = tokio::process::Command::from(command)
        .kill_on_drop(false)
        .spawn()
        .map_err(|e| Error::Program { program: "containerd".into(), problem: format!("cannot be started: {e}") })?;
    let process = child.id().and_then(Process::find).ok_or_else(|| options.failed("it ended at once"))?;
    // Before it has started anything itself: shims are born into its group.
    for group in &options.cgroups {
        let file = group.join("cgroup.procs");
        if let Err(error) = fs::write(&file, process.pid.to_string()) {
            tracing::warn!(file = %file.display(), %error, "containerd stays outside its cgroup");
        }
    }
    let file = options.pid_file();
    fs::write(&file, process.to_line()).map_err(|e| file_error("write", &file, e))?;
    Ok(Managed { pid: process.pid, adopted: false, process, child: Some(child), socket: options.socket.clone() })
}

/// runc, shims and `iptables` are looked for here; a unit's or a cron job's PATH may lack the sbin directories.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
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

/// Ends and removes every pod, through CRI, so that networks are taken down properly.
async fn empty(socket: &Path) -> Result<()> {
    let client = Client::connect(socket);
    let mut work = tokio::task::JoinSet::new();
    for container in client.list_containers(BTreeMap::new()).await? {
        let client = client.clone();
        work.spawn(async move {
            let id = ContainerId::from(container.id);
            client.stop_container(&id, Duration::ZERO).await
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap_or(Ok(()))?;
    }
    for sandbox in client.list_sandboxes(BTreeMap::new()).await? {
        let client = client.clone();
        work.spawn(async move {
            let id = SandboxId::from(sandbox.id);
            client.stop_pod_sandbox(&id).await?;
            client.remove_pod_sandbox(&id).await
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// Unmounts everything below the directories, the last mounted first.
fn unmount_below(directories: &[&Path]) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in mounts_below(&table, directories).iter().rev() {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
            tracing::warn!(mount = %point.display(), %error, "cannot be unmounted");
        }
    }
}

/// Mount points strictly below any of the directories, in the order they were mounted.
fn mounts_below(mountinfo: &str, directories: &[&Path]) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| directories.iter().any(|directory| point.starts_with(directory) && point != directory))
        .collect()
}

/// The kernel writes blanks and the like as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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

    #[test]
    fn only_mounts_of_this_instance_are_taken_down() {
        let table = "\
22 1 0:1 / /run rw - tmpfs tmpfs rw
30 22 0:2 / /run/edge-1/state/a\\040b rw - overlay overlay rw
31 22 0:3 / /run/edge-1/state rw - tmpfs tmpfs rw
32 22 0:4 / /run/edge-10/state/x rw - overlay overlay rw
33 22 0:5 / /data/snap/1 rw shared:2 - overlay overlay rw
";
        let found = mounts_below(table, &[Path::new("/run/edge-1/state"), Path::new("/data")]);
        assert_eq!(found, [PathBuf::from("/run/edge-1/state/a b"), PathBuf::from("/data/snap/1")]);
    }

    #[tokio::test]
    async fn a_socket_path_the_kernel_refuses_is_named_before_anything_starts() {
        let options = ManagedOptions { socket: format!("/run/{}", "x".repeat(120)).into(), ..Default::default() };
        let error = Managed::start(&options).await.unwrap_err().to_string();
        assert!(error.contains("longer than 107 bytes"), "{error}");
    }
}
