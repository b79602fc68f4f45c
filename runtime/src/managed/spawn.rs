//! What a start needs: the program's version, the file system's snapshotter, directories, and the process itself.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::config::{Generation, Snapshotter};
use super::process::Process;
use super::{Managed, ManagedOptions, create_dir, detach, file_error, with_suffix};
use crate::{Error, Result};

/// Percent its heap may grow before it is collected; 100 is Go's own. Measured with 1.6.20: 5 MB less of 45 once images were
/// imported, for 8 % more CPU per pod start; at 50 it is 3 MB for 2 %. A small board has less memory to spare than processor.
const GARBAGE: &str = "25";

/// A log of this many bytes is put aside at the next start.
const LARGEST_LOG: u64 = 4 << 20;

pub(super) async fn generation() -> Result<Generation> {
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
pub(super) fn snapshotter(root: &Path) -> Snapshotter {
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

pub(super) fn prepare(options: &ManagedOptions, config: &str) -> Result<()> {
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

pub(super) fn spawn(options: &ManagedOptions) -> Result<Managed> {
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
        .env("PATH", search_path())
        .env("GOGC", GARBAGE);
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
