//! Volumes of pods on disk: made before containers, refreshed while they run, taken down when nothing runs any more.
//!
//! Layout below `<root-dir>/pods/<uid>` is the kubelet's (kubelet-contract 5 and appendix C), so that its tools and tests
//! find things. Everything is idempotent; what is mounted is read from the kernel, never remembered.

mod atomic;
mod container;
mod host_path;
mod mounts;
mod ownership;
mod payload;
mod subpath;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Deps, NodeFacts};
use crate::api::pod::{Pod, Volume};
use crate::api::quantity::Quantity;

pub use container::{MountInputs, container_mounts, termination_log};
pub use mounts::{Mounted, unmount_below};

/// A volume that could not be made. The message is the kubelet's, without its prefix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub struct Failure {
    pub volume: String,
    pub message: String,
}

/// Where the things of one pod are.
#[derive(Debug, Clone)]
pub struct PodDirs {
    /// `<root-dir>/pods/<uid>`.
    pub root: PathBuf,
    /// `<pod-log-dir>/<namespace>_<name>_<uid>`.
    pub logs: PathBuf,
}

impl PodDirs {
    pub fn new(root_dir: &Path, pod_logs_dir: &Path, pod: &Pod) -> PodDirs {
        let meta = &pod.metadata;
        PodDirs {
            root: root_dir.join("pods").join(&meta.uid),
            logs: pod_logs_dir.join(format!("{}_{}_{}", meta.namespace, meta.name, meta.uid)),
        }
    }

    /// Makes the directories a pod needs before its sandbox.
    pub fn make(&self) -> io::Result<()> {
        for dir in [self.root.clone(), self.root.join("volumes"), self.root.join("plugins"), self.root.join("containers")] {
            make_dir(&dir, 0o750)?;
        }
        make_dir(&self.logs, 0o755)
    }

    /// Host directory of a volume; a hostPath volume is its path.
    pub fn volume(&self, volume: &Volume) -> PathBuf {
        if let Some(host) = &volume.host_path {
            return PathBuf::from(&host.path);
        }
        self.root.join("volumes").join(plugin(volume)).join(&volume.name)
    }

    pub fn etc_hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }
}

/// Directory and parents with a mode that umask does not touch; an existing one keeps its mode.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn plugin(volume: &Volume) -> &'static str {
    if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else {
        "kubernetes.io~empty-dir"
    }
}

/// Volumes that follow ConfigMaps and Secrets are looked at this often.
const REFRESH: Duration = Duration::from_secs(75);
/// Tokens, and the cluster's CA, which hardly ever changes: often enough for the shortest token there is (600 s).
const REFRESH_TOKENS: Duration = Duration::from_secs(240);
/// The ConfigMap every default token volume has.
const ROOT_CA: &str = "kube-root-ca.crt";

/// How often the files of this pod's volumes are to be made anew; None when nothing of them can change.
pub fn refresh_period(pod: &Pod) -> Option<Duration> {
    let other = |name: &str| name != ROOT_CA;
    let projected = |v: &Volume| {
        v.projected
            .as_ref()
            .is_some_and(|p| p.sources.iter().any(|s| s.secret.is_some() || s.config_map.as_ref().is_some_and(|c| other(&c.name))))
    };
    let volumes = &pod.spec.volumes;
    if volumes.iter().any(|v| v.secret.is_some() || v.config_map.as_ref().is_some_and(|c| other(&c.name)) || projected(v)) {
        return Some(REFRESH);
    }
    let slow = |v: &Volume| v.config_map.is_some() || v.projected.is_some() || v.downward_api.is_some();
    volumes.iter().any(slow).then_some(REFRESH_TOKENS)
}

/// Whether a volume of the pod rests on something that may not be there: a ConfigMap, a Secret, a path of the host. Tokens
/// and the cluster's CA are always to be had.
pub fn may_be_missing(pod: &Pod) -> bool {
    let in_projected = |v: &Volume| {
        let sources = v.projected.iter().flat_map(|p| &p.sources);
        sources.into_iter().any(|s| s.secret.is_some() || s.config_map.as_ref().is_some_and(|c| c.name != ROOT_CA))
    };
    let of_host = |v: &Volume| v.host_path.as_ref().is_some_and(|h| h.kind.as_deref().is_some_and(|kind| !kind.is_empty()));
    pod.spec.volumes.iter().any(|v| v.config_map.is_some() || v.secret.is_some() || of_host(v) || in_projected(v))
}

/// Looks for what the volumes rest on, tokens apart; writes nothing but the paths of the host that are to be made.
pub async fn find(deps: &Deps, pod: &Arc<Pod>) -> Result<(), Failure> {
    let node = deps.node.borrow().clone();
    for volume in &pod.spec.volumes {
        let failed = |message| Failure { volume: volume.name.clone(), message };
        let ask = payload::Ask { pod, node: &node, host_ips: &[], pod_ips: &[], tokens: false };
        payload::gather(deps, volume, &ask).await.map_err(failed)?;
        if let Some(host) = volume.host_path.clone() {
            let work = tokio::task::spawn_blocking(move || host_path::prepare(&host.path, host.kind.as_deref().unwrap_or_default()));
            work.await.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes or refreshes every volume of the pod. The addresses are what downward API files may ask for.
pub async fn set_up(deps: &Deps, pod: &Arc<Pod>, dirs: &PodDirs, host_ips: &[String], pod_ips: &[String]) -> Result<(), Failure> {
    let node = deps.node.borrow().clone();
    let mut payloads = BTreeMap::new();
    for volume in &pod.spec.volumes {
        let failed = |message| Failure { volume: volume.name.clone(), message };
        let ask = payload::Ask { pod, node: &node, host_ips, pod_ips, tokens: true };
        if let Some(files) = payload::gather(deps, volume, &ask).await.map_err(failed)? {
            payloads.insert(volume.name.clone(), files);
        }
    }
    let (pod, dirs) = (pod.clone(), dirs.clone());
    let work = tokio::task::spawn_blocking(move || write_all(&pod, &dirs, &payloads, &node));
    work.await.map_err(|e| Failure { volume: String::new(), message: e.to_string() })?
}

fn write_all(pod: &Pod, dirs: &PodDirs, payloads: &BTreeMap<String, payload::Files>, node: &NodeFacts) -> Result<(), Failure> {
    let mounted = Mounted::read();
    let group = pod.spec.security_context.as_ref().and_then(|c| c.fs_group);
    let on_mismatch = pod.spec.security_context.as_ref().and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
    for volume in &pod.spec.volumes {
        write_one(pod, dirs, volume, payloads.get(&volume.name), node, &mounted, group, on_mismatch)
            .map_err(|message| Failure { volume: volume.name.clone(), message })?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn write_one(
    pod: &Pod,
    dirs: &PodDirs,
    volume: &Volume,
    files: Option<&payload::Files>,
    node: &NodeFacts,
    mounted: &Mounted,
    group: Option<i64>,
    on_mismatch: bool,
) -> Result<(), String> {
    let dir = dirs.volume(volume);
    if let Some(host) = &volume.host_path {
        return host_path::prepare(&host.path, host.kind.as_deref().unwrap_or_default());
    }
    let text = |what: &str, error: io::Error| format!("{what} {}: {error}", dir.display());
    let in_memory = volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.as_ref().is_some_and(|e| e.medium == "Memory");
    let fresh = !dir.is_dir();
    if fresh {
        fs::create_dir_all(&dir).map_err(|e| text("create", e))?;
    }
    if in_memory && !mounted.contains(&dir) {
        let size = volume.empty_dir.as_ref().map(|_| memory_size(pod, volume, node)).unwrap_or_default();
        mounts::tmpfs(&dir, size).map_err(|e| text("mount tmpfs on", e))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).map_err(|e| text("chmod", e))?;
    } else if fresh {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).map_err(|e| text("chmod", e))?;
    }
    match files {
        Some(files) => atomic::write(&dir, files, group),
        None => match group {
            Some(group) => ownership::apply(&dir, group, on_mismatch).map_err(|e| text("set group of", e)),
            None => Ok(()),
        },
    }
}

/// Bytes a memory volume may hold: the least of its limit, the pod's and the node's memory; None for no limit.
fn memory_size(pod: &Pod, volume: &Volume, node: &NodeFacts) -> Option<i64> {
    let own = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()).map(Quantity::value);
    let of_pod = super::resources::pod_amounts(pod).memory_limit.and_then(|m| i64::try_from(m).ok());
    let of_node = node.allocatable.get("memory").map(Quantity::value);
    [own, of_pod, of_node].into_iter().flatten().filter(|size| *size > 0).min()
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if fs::read(path).is_ok_and(|have| have == content) && !content.is_empty() {
        return Ok(());
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Unmounts everything below the pod's directory and removes its volumes. Never crosses into a mount that stays.
pub fn tear_down(dirs: &PodDirs) -> io::Result<()> {
    unmount_below(&dirs.root)?;
    for name in ["volume-subpaths", "volumes"] {
        remove_tree(&dirs.root.join(name))?;
    }
    Ok(())
}

/// Removes what is left of a pod: its logs and its directory. The directory last: it is what a later agent finds.
pub fn forget(dirs: &PodDirs) -> io::Result<()> {
    unmount_below(&dirs.root)?;
    remove_tree(&dirs.logs)?;
    remove_tree(&dirs.root)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
