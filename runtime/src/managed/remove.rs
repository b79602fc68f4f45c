//! Taking a private containerd away: its pods, its shims, its mounts, its state.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use super::{Managed, ManagedOptions, end, file_error, process, with_suffix};
use crate::{Client, ContainerId, Result, SandboxId};

impl Managed {
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
}
