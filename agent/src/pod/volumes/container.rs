//! Mounts of one container: its volumes, `/etc/hosts`, termination log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use runtime::cri;

use super::{PodDirs, make_dir, subpath, write_file};
use crate::api::pod::{Container, Pod, VolumeMount};
use crate::pod::env::{self, Value};
use crate::pod::hosts;

/// What the mounts of a container need.
pub struct MountInputs<'a> {
    pub env: &'a BTreeMap<String, Value>,
    pub pod_ips: &'a [String],
    pub cluster_domain: &'a str,
    pub attempt: u32,
}

/// Mounts of a container; writes its `/etc/hosts` and termination log. An error is for CreateContainerConfigError.
pub fn container_mounts(pod: &Pod, container: &Container, dirs: &PodDirs, inputs: &MountInputs<'_>) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        mounts.push(volume_mount(pod, container, dirs, index, mount, inputs.env)?);
    }
    let taken = |path: &str| container.volume_mounts.iter().any(|m| m.mount_path.trim_end_matches('/') == path);
    if !taken("/etc/hosts") && (pod.spec.host_network || !inputs.pod_ips.is_empty()) {
        let text = if pod.spec.host_network {
            hosts::host_network_file(&fs::read_to_string("/etc/hosts").unwrap_or_default(), &pod.spec.host_aliases)
        } else {
            hosts::pod_file(inputs.pod_ips, &hosts::names(pod, inputs.cluster_domain), &pod.spec.host_aliases)
        };
        let file = dirs.etc_hosts();
        write_file(&file, text.as_bytes(), 0o644).map_err(|e| format!("write {}: {e}", file.display()))?;
        mounts.push(plain_mount("/etc/hosts", &file));
    }
    let path = if container.termination_message_path.is_empty() { "/dev/termination-log" } else { &container.termination_message_path };
    let log = termination_log(dirs, &container.name, inputs.attempt);
    make_dir(log.parent().unwrap_or(&dirs.root), 0o750)
        .and_then(|()| if log.exists() { Ok(()) } else { write_file(&log, b"", 0o666) })
        .map_err(|e| format!("write {}: {e}", log.display()))?;
    mounts.push(plain_mount(path, &log));
    Ok(mounts)
}

/// Where an instance leaves its last words: eight hexadecimal digits, here the attempt, so that it is found again.
pub fn termination_log(dirs: &PodDirs, container: &str, attempt: u32) -> PathBuf {
    dirs.root.join("containers").join(container).join(format!("{attempt:08x}"))
}

fn plain_mount(container_path: &str, host: &Path) -> cri::Mount {
    cri::Mount { container_path: container_path.to_owned(), host_path: host.display().to_string(), ..Default::default() }
}

fn volume_mount(
    pod: &Pod,
    container: &Container,
    dirs: &PodDirs,
    index: usize,
    mount: &VolumeMount,
    env: &BTreeMap<String, Value>,
) -> Result<cri::Mount, String> {
    let volume = pod
        .spec
        .volumes
        .iter()
        .find(|v| v.name == mount.name)
        .ok_or_else(|| format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name))?;
    let root = dirs.volume(volume);
    let sub = sub_path(mount, env)?;
    let host = match sub.as_deref() {
        None => root,
        Some(sub) => {
            let pin = dirs.root.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
            subpath::pin(&root, sub, &pin).map_err(|e| {
                format!("failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}", mount.name, container.name)
            })?
        }
    };
    let inherent = volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some() || volume.downward_api.is_some();
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    let container_path = if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    Ok(cri::Mount {
        container_path,
        host_path: host.display().to_string(),
        readonly: mount.read_only || inherent,
        selinux_relabel: volume.host_path.is_none() && pod.spec.security_context.as_ref().is_some_and(|c| c.se_linux_options.is_some()),
        propagation: propagation.into(),
        ..Default::default()
    })
}

fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, Value>) -> Result<Option<String>, String> {
    if !mount.sub_path.is_empty() {
        return Ok(Some(mount.sub_path.clone()));
    }
    if mount.sub_path_expr.is_empty() {
        return Ok(None);
    }
    let text = env::expand(&mount.sub_path_expr, env);
    if text.contains("$(") || text.is_empty() || text.contains('`') || text.starts_with('/') {
        return Err(format!("failed to expand subPathExpr \"{}\" of volumeMount \"{}\"", mount.sub_path_expr, mount.name));
    }
    Ok(Some(text))
}
