//! Which containerd runs the pods: a configured one, the system's, or one of our own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use cgroup::OwnLimits;
use runtime::managed::{Managed, ManagedOptions, may_lower_oom_score};

use super::machine_setup::Prepared;
use crate::backoff::Backoff;
use crate::config::{CgroupDriver, Config, ContainerdMode};
use crate::registries;

const SYSTEM_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where a runtime that does not say reads network configuration from.
pub(crate) const SYSTEM_CNI: &str = "/etc/cni/net.d";

/// A runtime that answers.
pub(super) struct Runtime {
    pub client: runtime::Client,
    /// Where it reads network configuration from.
    pub cni_conf_dir: PathBuf,
    /// Restarts our own containerd when it ends; nothing for a foreign one. Dropping it stops no containerd.
    pub keeper: Option<Keeper>,
}

/// Ends the watching task with itself.
pub(super) struct Keeper(tokio::task::JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Decides, and completes the paths that depend on it. Where a system's containerd does not answer yet, `cni_conf_dir` stays empty.
pub(crate) async fn choose(config: &mut Config) {
    let system = match config.containerd {
        ContainerdMode::System => true,
        ContainerdMode::Managed => false,
        ContainerdMode::Auto => config.container_runtime_endpoint.is_some() || answers(Path::new(SYSTEM_SOCKET)).await,
    };
    let unset = config.cni_conf_dir.as_os_str().is_empty();
    if system {
        let socket = config.container_runtime_endpoint.get_or_insert_with(|| PathBuf::from(SYSTEM_SOCKET)).clone();
        if unset && socket.exists() {
            let client = runtime::Client::connect(&socket);
            if let Ok(Ok(dir)) = tokio::time::timeout(Duration::from_secs(3), client.cni_conf_dir()).await {
                config.cni_conf_dir = dir.unwrap_or_else(|| PathBuf::from(SYSTEM_CNI));
            }
        }
    } else if unset {
        config.cni_conf_dir = config.data_dir.join("agent/etc/cni/net.d");
    }
}

/// Where a system's containerd reads network configuration from: it is asked, as our drop-in and its owner may both have set it.
async fn cni_conf_dir(client: &runtime::Client, config: &Config) -> PathBuf {
    if !config.cni_conf_dir.as_os_str().is_empty() {
        return config.cni_conf_dir.clone();
    }
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        // It answers this once it has loaded its sandboxes.
        match tokio::time::timeout(Duration::from_secs(5), client.cni_conf_dir()).await {
            Ok(Ok(dir)) => return dir.unwrap_or_else(|| PathBuf::from(SYSTEM_CNI)),
            Ok(Err(error)) => tracing::debug!(
                error = crate::telemetry::chain(&error),
                "container runtime does not say where it reads network configuration"
            ),
            Err(_) => {}
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn answers(socket: &Path) -> bool {
    if !socket.exists() {
        return false;
    }
    let client = runtime::Client::connect(socket);
    matches!(tokio::time::timeout(Duration::from_secs(3), client.version()).await, Ok(Ok(_)))
}

/// Connects or starts, and waits until CRI answers.
pub(super) async fn start(config: &Config, machine: &Prepared) -> anyhow::Result<Runtime> {
    if let Some(socket) = &config.container_runtime_endpoint {
        if let Some(file) = &config.registries_file {
            // The drop-in of our package has the system's containerd read this directory; another one is told here how to.
            let certs = registries::write(Some(file), certs_dir(config))?.unwrap_or_default();
            tracing::info!(path = %file.display(), config_path = %certs.display(), "credentials are used; for mirrors this containerd has to have this config_path");
        }
        let client = runtime::Client::connect(socket);
        wait(&client, socket).await;
        check_driver(&client, config).await?;
        let cni_conf_dir = cni_conf_dir(&client, config).await;
        return Ok(Runtime { client, cni_conf_dir, keeper: None });
    }
    std::fs::create_dir_all(&config.cni_conf_dir).with_context(|| format!("making {}", config.cni_conf_dir.display()))?;
    let mut options = options(config, machine);
    options.registry_config = registries::write(config.registries_file.as_deref(), certs_dir(config))?;
    let managed = Managed::start(&options).await.context("starting a containerd of our own")?;
    let client = managed.client();
    Ok(Runtime { client, cni_conf_dir: config.cni_conf_dir.clone(), keeper: Some(Keeper(crate::task::spawn(managed.keep(options)))) })
}

/// How registries are reached, for containerd's `config_path`; read at each pull.
fn certs_dir(config: &Config) -> PathBuf {
    config.data_dir.join("agent/etc/containerd/certs.d")
}

/// How our own containerd is made; `leave` stops it with the same.
pub(crate) fn managed_options(config: &Config) -> ManagedOptions {
    let restrict_oom = !may_lower_oom_score();
    ManagedOptions {
        root: config.data_dir.join("containerd"),
        state: config.run_dir.join("containerd"),
        socket: config.run_dir.join("containerd.sock"),
        cni_bin_dir: config.cni_bin_dir.clone(),
        cni_conf_dir: config.cni_conf_dir.clone(),
        pause_image: config.pause_image.clone(),
        restrict_oom,
        cgroups: Vec::new(),
        systemd_cgroup: config.cgroup_driver == CgroupDriver::Systemd,
        log: config.data_dir.join("containerd.log"),
        registry_config: None,
    }
}

fn options(config: &Config, machine: &Prepared) -> ManagedOptions {
    let mut options = managed_options(config);
    if options.restrict_oom {
        tracing::warn!("CAP_SYS_RESOURCE is missing: oom scores of containers cannot be lowered, the kernel may choose any of them first");
    }
    let limits = OwnLimits { memory_min: Some(machine.reservation.containerd_min()), ..OwnLimits::default() };
    match cgroup::part_group(machine.pod_tree.hierarchy(), &config.cgroup_root, "containerd", &limits) {
        Ok(cgroups) => options.cgroups = cgroups,
        Err(error) => tracing::warn!(error = %crate::telemetry::chain(&error), "containerd stays in the agent's control group"),
    }
    options
}

async fn wait(client: &runtime::Client, socket: &Path) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut told = false;
    loop {
        let problem = match tokio::time::timeout(Duration::from_secs(5), client.version()).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => crate::telemetry::chain(&error),
            Err(_) => "no answer".to_owned(),
        };
        if !told {
            told = true;
            tracing::warn!(socket = %socket.display(), error = problem, "container runtime does not answer yet; is containerd running, with its cri plugin enabled?");
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Where the runtime says how it manages cgroups, both have to agree, or pods escape their limits.
async fn check_driver(client: &runtime::Client, config: &Config) -> anyhow::Result<()> {
    let Ok(Ok(Some(theirs))) = tokio::time::timeout(Duration::from_secs(5), client.cgroup_driver()).await else { return Ok(()) };
    let systemd = theirs == runtime::cri::CgroupDriver::Systemd;
    let ours = config.cgroup_driver == CgroupDriver::Systemd;
    let name = |systemd: bool| if systemd { "systemd" } else { "cgroupfs" };
    anyhow::ensure!(
        systemd == ours,
        crate::config::Problems(vec![format!(
            "the container runtime manages cgroups with {}, this agent with {}; set kubelet-arg: cgroup-driver={}",
            name(systemd),
            name(ours),
            name(systemd)
        )])
    );
    Ok(())
}
