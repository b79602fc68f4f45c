//! `edge-agent leave`: gives the pods away, stops, and removes what this instance made and nothing else.
//!
//! Every step is safe to repeat, and one that fails is reported and does not keep the others from running: a node that
//! cannot reach its server must still be able to leave.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use cgroup::{Driver, Hierarchy, PodTree};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::watch;
use tunnel::{ServerAddr, identity, tls};

use crate::api::client::{PatchType, Settings};
use crate::api::meta::List;
use crate::api::pod::Pod;
use crate::api::servers::Servers;
use crate::api::watch::query_escape;
use crate::api::{Client, Error};
use crate::app::managed_options;
use crate::config::{CgroupDriver, Config, DEFAULT_FILE};

/// Pods get this long to go elsewhere.
const DRAIN: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(30);

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Leaves. With `purge` also data, images and configuration go.
pub async fn run(mut config: Config, purge: bool) -> anyhow::Result<()> {
    let mut left = 0;
    let mut report = |what: &str, result: anyhow::Result<()>| match result {
        Ok(()) => say(what),
        Err(error) => {
            left += 1;
            say(&format!("not done: {what}: {}", crate::telemetry::chain(error.as_ref())));
        }
    };
    let client = client(&config);
    match &client {
        Ok(client) => report("pods given away", drain(client, &config).await),
        Err(error) => say(&format!("pods are not given away: {error:#}")),
    }
    report("agent stopped", stop_agent(&config).await);
    crate::app::choose_runtime(&mut config).await;
    if config.container_runtime_endpoint.is_none() {
        let stopped = runtime::managed::Managed::stop(&managed_options(&config)).await;
        report("containerd of this instance stopped", stopped.map_err(Into::into));
    }
    report("pod network removed", remove_network(&config));
    report("control groups removed", remove_groups(&config));
    if purge {
        report("data removed", purge_data(&config));
    }
    if let Ok(client) = &client {
        match client.delete(&format!("/api/v1/nodes/{}", config.node_name), &json!({})).await {
            Ok(()) => say("node object deleted"),
            Err(error) if error.is_not_found() => {}
            // The API does not let a node delete itself.
            Err(_) => say(&format!("an administrator has to remove the node object: kubectl delete node {}", config.node_name)),
        }
    }
    anyhow::ensure!(left == 0, "{left} of the steps above were not done; run it again");
    Ok(())
}

fn client(config: &Config) -> anyhow::Result<Client> {
    let server = ServerAddr::from_url(&config.server)?;
    let identity = identity::load(&config.data_dir)?.context("this instance never joined")?;
    let tls = tls::client_config(&identity.server_ca, Some(&identity.kubelet_client), &["h2"])?;
    let (_, servers) = watch::channel(vec![server.clone()]);
    let (_, tls) = watch::channel(tls);
    Ok(Client::new(Servers::new(&server, servers, tls), Settings::default()))
}

/// Cordons, evicts what a controller can start elsewhere, and waits until it is gone from here.
async fn drain(client: &Client, config: &Config) -> anyhow::Result<()> {
    let node = format!("/api/v1/nodes/{}", config.node_name);
    match client.patch_only(&node, PatchType::Merge, &json!({"spec": {"unschedulable": true}})).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error).context("cordoning the node"),
    }
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", query_escape(&config.node_name));
    let until = Instant::now() + DRAIN;
    let mut asked = false;
    loop {
        let pods: List<Pod> = client.get(&path).await.context("listing the pods of this node")?;
        let movable: Vec<&Pod> = pods.items.iter().filter(|pod| moves(pod)).collect();
        if movable.is_empty() {
            return Ok(());
        }
        if !asked {
            asked = true;
            for pod in movable.iter().filter(|pod| !pod.is_deleting()) {
                evict(client, pod).await.with_context(|| format!("evicting {}", pod.full_name()))?;
            }
        }
        anyhow::ensure!(Instant::now() < until, "{} pods are still here after {} s", movable.len(), DRAIN.as_secs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Whether leaving has to wait for the pod: not for those of daemon sets, and not for ended ones.
fn moves(pod: &Pod) -> bool {
    !pod.is_terminal() && !pod.metadata.owner_references.iter().any(|owner| owner.kind == "DaemonSet" || owner.kind == "Node")
}

async fn evict(client: &Client, pod: &Pod) -> Result<(), Error> {
    let meta = &pod.metadata;
    let path = format!("/api/v1/namespaces/{}/pods/{}", meta.namespace, meta.name);
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": meta.name, "namespace": meta.namespace},
        "deleteOptions": {"preconditions": {"uid": meta.uid}},
    });
    match client.post::<serde::de::IgnoredAny>(&format!("{path}/eviction"), &body).await {
        Ok(_) => Ok(()),
        // A server without evictions; or the pod is gone, which the second call says too.
        Err(error) if error.is_not_found() || error.code() == 405 => {
            match client.delete(&path, &json!({"preconditions": {"uid": meta.uid}})).await {
                Err(error) if !error.is_not_found() => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

/// The service where it is one, else the process behind the control socket.
async fn stop_agent(config: &Config) -> anyhow::Result<()> {
    if Path::new("/run/systemd/system").exists() && config.sources.iter().any(|path| path == Path::new(DEFAULT_FILE)) {
        let mut disable = tokio::process::Command::new("systemctl");
        let status = disable.args(["disable", "--now", "edge-agent.service"]).status().await.context("running systemctl")?;
        anyhow::ensure!(status.success(), "systemctl disable --now edge-agent.service failed");
        return Ok(());
    }
    let Ok(socket) = tokio::net::UnixStream::connect(config.control_socket()).await else { return Ok(()) };
    let pid = socket.peer_cred().context("asking who the agent is")?.pid().context("the agent has no process id here")?;
    drop(socket);
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("stopping process {pid}"))?;
    let until = Instant::now() + STOP;
    while tokio::net::UnixStream::connect(config.control_socket()).await.is_ok() {
        anyhow::ensure!(Instant::now() < until, "process {pid} still runs after {} s", STOP.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn remove_network(config: &Config) -> anyhow::Result<()> {
    let conf_dir = if config.cni_conf_dir.as_os_str().is_empty() { Path::new(crate::app::SYSTEM_CNI) } else { &config.cni_conf_dir };
    network::cni::remove_conflist(conf_dir)?;
    network::Routes::open(network::routes::PROTOCOL)?.remove()?;
    network::Firewall::new(&config.node_name).remove()?;
    network::delete_interface(&config.bridge)?;
    // Only where the cluster's backend made this instance make them.
    if identity::load(&config.data_dir)?.is_some_and(|identity| identity.config.flannel_backend == "vxlan") {
        network::delete_interface("flannel.1")?;
        network::delete_interface("flannel-v6.1")?;
    }
    Ok(())
}

fn remove_groups(config: &Config) -> anyhow::Result<()> {
    let driver = match config.cgroup_driver {
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Systemd => Driver::Systemd,
    };
    let tree = PodTree::new(Hierarchy::detect()?, &config.cgroup_root, driver)?;
    tree.remove_all()?;
    let root = config.cgroup_root.trim_end_matches('/');
    let mut ours = vec![format!("{root}/edge-agent"), format!("{root}/containerd")];
    if !root.is_empty() {
        ours.push(root.to_owned());
    }
    for group in ours {
        for directory in tree.hierarchy().every_dir(&group) {
            // Groups with somebody else's processes or groups inside refuse, and stay.
            let _ = std::fs::remove_dir(directory.path());
        }
    }
    Ok(())
}

fn purge_data(config: &Config) -> anyhow::Result<()> {
    let ours = [config.data_dir.clone(), config.run_dir.clone(), config.root_dir.join("pods")];
    unmount_below(&ours)?;
    for directory in &ours {
        remove(directory)?;
    }
    // Shared places: only if nobody else has anything there.
    let _ = std::fs::remove_dir(&config.root_dir);
    for source in &config.sources {
        match std::fs::remove_file(source) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(|| source.display().to_string()),
            Ok(()) | Err(_) => {}
        }
        if let Some(parent) = source.parent().filter(|parent| parent.extension().is_some_and(|ext| ext == "d")) {
            let _ = std::fs::remove_dir(parent);
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(directory.components().count() > 2, "{} is not a directory of one instance", directory.display());
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Volumes and sandboxes may still be mounted; removing files through a mount would remove somebody else's.
fn unmount_below(directories: &[PathBuf]) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mut targets: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .filter(|target| directories.iter().any(|directory| target.starts_with(directory)))
        .collect();
    targets.sort();
    for target in targets.iter().rev() {
        umount2(target, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", target.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_can_live_elsewhere_hold_up_leaving() {
        let pod = |phase: &str, owner: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"ownerReferences": [{"kind": owner}]}, "status": {"phase": phase}})).unwrap()
        };
        assert!(moves(&pod("Running", "ReplicaSet")));
        assert!(!moves(&pod("Running", "DaemonSet")));
        assert!(!moves(&pod("Succeeded", "ReplicaSet")));
    }

    #[test]
    fn a_root_is_never_removed() {
        assert!(remove(Path::new("/")).is_err());
        assert!(remove(Path::new("/var")).is_err());
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        remove(&dir.path().join("a")).unwrap();
        remove(&dir.path().join("a")).unwrap();
        assert!(!dir.path().join("a").exists());
    }
}
