//! The container runtime: is there one, does it speak CRI, and how does it manage control groups.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Depth, Root, program};
use crate::config::{CgroupDriver, Config, ContainerdMode};

/// What is known about containerd.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// The agent runs one of its own, whatever the system has.
    pub managed: bool,
    /// Somebody else's has to be there (`containerd: system`, or a socket was named).
    pub required: bool,
    pub socket: PathBuf,
    /// The socket was asked, or need not be.
    pub asked: bool,
    /// Answer of the socket; None where nobody asked or listens.
    pub answer: Option<Answer>,
    pub containerd_program: bool,
    pub runc_program: bool,
    /// Our package has containerd started with CRI on and the right driver.
    pub packaged: bool,
    /// The agent's own choice is systemd.
    pub agent_systemd: bool,
    /// Text of `/etc/containerd/config.toml`.
    pub config: Option<String>,
}

/// What the socket said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Name and version, or why CRI does not answer.
    pub cri: Result<String, String>,
    /// The runtime's conditions that are not met, with their messages.
    pub unmet: Vec<String>,
    /// It manages cgroups through systemd; None where it does not say.
    pub systemd: Option<bool>,
}

pub(in crate::preflight) const CONFIG: &str = "/etc/containerd/config.toml";
/// What our unit drop-in has containerd started with.
const MERGED: &str = "/run/edge-agent/containerd.toml";
const SOCKET: &str = "/run/containerd/containerd.sock";
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn gather(root: &Root, config: &Config, depth: Depth) -> Runtime {
    let managed = config.containerd == ContainerdMode::Managed;
    let socket = config.container_runtime_endpoint.clone().unwrap_or_else(|| PathBuf::from(SOCKET));
    let mut answer = if managed || depth == Depth::Cheap || !socket.exists() { None } else { question(&socket) };
    let text = root.read(CONFIG);
    if let Some(answer) = answer.as_mut().filter(|answer| answer.systemd.is_none()) {
        // containerd before 2.0 does not say, its configuration does.
        answer.systemd = root.read(MERGED).or_else(|| text.clone()).map(|text| systemd_cgroup(&text));
    }
    let required = config.containerd == ContainerdMode::System || config.container_runtime_endpoint.is_some();
    Runtime {
        managed,
        required,
        asked: managed || depth != Depth::Cheap || !(required || socket.exists()),
        socket,
        answer,
        containerd_program: program("containerd"),
        runc_program: program("runc"),
        packaged: root.exists("/usr/lib/systemd/system/containerd.service.d/40-edge-agent.conf"),
        agent_systemd: config.cgroup_driver == CgroupDriver::Systemd,
        config: text,
    }
}

/// The last word of a configuration about it.
fn systemd_cgroup(text: &str) -> bool {
    let value = |line: &str| Some(line.trim().strip_prefix("SystemdCgroup")?.trim_start().strip_prefix('=')?.trim() == "true");
    text.lines().filter_map(value).next_back().unwrap_or(false)
}

/// Asks on a thread of its own: the caller may be one that serves others. None where nobody listens.
fn question(socket: &Path) -> Option<Answer> {
    std::os::unix::net::UnixStream::connect(socket).ok()?;
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        let asking = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let answer = async {
            let client = runtime::Client::connect(&socket);
            let version = client.version().await.map_err(|error| crate::telemetry::chain(&error))?;
            let conditions = client.status().await.ok().and_then(|answer| answer.status).map(|status| status.conditions);
            // Without pods' network the runtime is as ready as it can be before the agent has written its configuration.
            let unmet = |c: &runtime::cri::RuntimeCondition| !c.status && c.r#type == "RuntimeReady";
            let driver = client.cgroup_driver().await.ok().flatten();
            Ok(Answer {
                cri: Ok(format!("{} {}", version.runtime_name, version.runtime_version)),
                unmet: conditions.unwrap_or_default().iter().filter(|c| unmet(c)).map(|c| format!("{}: {}", c.r#type, c.message)).collect(),
                systemd: driver.map(|driver| driver == runtime::cri::CgroupDriver::Systemd),
            })
        };
        let refused = |why: String| Answer { cri: Err(why), unmet: Vec::new(), systemd: None };
        Some(asking.block_on(async {
            match tokio::time::timeout(LIMIT, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(why)) => refused(why),
                Err(_) => refused(format!("no answer within {} s", LIMIT.as_secs())),
            }
        }))
    })
    .join()
    .ok()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_who_manages_cgroups() {
        assert!(systemd_cgroup("[x.options]\n  SystemdCgroup = true\n"));
        assert!(!systemd_cgroup("  SystemdCgroup = false\n"));
        assert!(!systemd_cgroup("# SystemdCgroup = true\n"), "containerd's default is its own driver");
    }
}
