//! The way down: hooks, stops in their order, release, removal (kubelet-contract 2.8 and 3.10).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use runtime::cri::ContainerState;
use runtime::observe::ObservedContainer;
use runtime::{Client, ContainerId, SandboxId, labels};
use tokio::time::Instant;

use super::history::RETRY;
use super::hooks;
use super::resources;
use super::time;
use super::volumes;
use super::worker::Worker;
use crate::api::pod::{Container, LifecycleHandler, Pod};
use crate::events::Type;

/// The runtime always gets this long between the stop signal and the kill.
const LEAST: Duration = Duration::from_secs(2);

/// One container to stop.
struct Target {
    container: Container,
    id: ContainerId,
    hook: Option<LifecycleHandler>,
    sidecar: bool,
}

impl Worker {
    /// Stops everything that runs, in order. A shorter grace from the server takes effect at once.
    pub(super) async fn stop_all(&mut self) {
        let targets = self.targets();
        for target in &targets {
            if self.told_killing.insert(target.id.clone()) && !self.removed {
                let name = target.container.name.clone();
                self.event(Some(&name), Type::Normal, "Killing", &format!("Stopping container {name}"));
            }
        }
        let began = Instant::now();
        let mut grace = self.grace_seconds();
        let client = self.deps().runtime.clone();
        let address = self.address();
        let mut inbox = self.inbox();
        let mut hooks_done = false;
        loop {
            let pod = self.pod.clone();
            let end = began + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            let failed = tokio::select! {
                failed = stop_in_order(&client, &pod, &targets, &address, end, grace > 0 && !hooks_done) => failed,
                shorter = shorter_grace(&mut inbox, grace) => {
                    grace = shorter;
                    // Hooks that ran were given their chance.
                    hooks_done = true;
                    continue;
                }
            };
            for (name, message) in failed {
                tracing::debug!(pod = %pod.full_name(), container = %name, message, "preStop hook failed");
                self.event(Some(&name), Type::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
            break;
        }
        self.stale = true;
    }

    fn targets(&self) -> Vec<Target> {
        let alive = |c: &&ObservedContainer| matches!(c.state, ContainerState::ContainerRunning | ContainerState::ContainerUnknown);
        self.seen
            .containers
            .iter()
            .filter(alive)
            .map(|seen| {
                let known = self.pod.every_container().find(|c| c.name == seen.name);
                // An orphan's hook is known from its annotation only.
                let told = || seen.annotations.get(labels::CONTAINER_PRE_STOP).and_then(|json| serde_json::from_str(json).ok());
                Target {
                    container: known.cloned().unwrap_or_else(|| Container { name: seen.name.clone(), ..Default::default() }),
                    id: seen.id.clone(),
                    hook: match known {
                        Some(container) => container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()),
                        None => told(),
                    },
                    sidecar: self.pod.spec.init_containers.iter().any(|c| c.name == seen.name && c.is_sidecar()),
                }
            })
            .collect()
    }

    /// Stops one container with its hook. When the whole pod is to end meanwhile this gives way: that stop has a grace of
    /// its own, which may be much shorter.
    pub(super) async fn stop_one(&self, container: &Container, id: &ContainerId, grace: i64) {
        let target = Target {
            container: container.clone(),
            id: id.clone(),
            hook: container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()),
            sidecar: false,
        };
        let end = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let (targets, address, mut inbox) = ([target], self.address(), self.inbox());
        let failed = tokio::select! {
            failed = stop_in_order(&self.deps().runtime, &self.pod, &targets, &address, end, grace > 0) => failed,
            () = Worker::told_to_stop(&mut inbox) => return,
        };
        if !failed.is_empty() {
            self.event(Some(&container.name), Type::Warning, "FailedPreStopHook", "PreStopHook failed");
        }
    }

    pub(super) async fn stop_sandboxes(&mut self, sandboxes: &[SandboxId]) {
        self.stop_tried = true;
        for id in sandboxes {
            if let Err(error) = self.deps().runtime.stop_pod_sandbox(id).await {
                self.event(
                    None,
                    Type::Warning,
                    "FailedKillPod",
                    &format!(
                        "error killing pod: failed to \"KillPodSandbox\" for \"{}\" with KillPodSandboxError: \"{}\"",
                        self.uid,
                        error.event_message()
                    ),
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        self.stale = true;
    }

    pub(super) async fn discard(&mut self, containers: &[ContainerId], sandboxes: &[SandboxId]) {
        for id in containers {
            let log = self.seen.containers.iter().find(|c| c.id == *id).map(|c| PathBuf::from(&c.log_path));
            if self.deps().runtime.remove_container(id).await.is_ok() {
                self.seen.containers.retain(|c| c.id != *id);
                let links = self.deps().config.container_logs_dir.clone();
                if let Some(log) = log.filter(|log| !log.as_os_str().is_empty()) {
                    let _ = tokio::task::spawn_blocking(move || remove_log(&log, links.as_deref())).await;
                }
            } else {
                self.stale = true;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        for id in sandboxes {
            if self.deps().runtime.remove_pod_sandbox(id).await.is_ok() {
                self.seen.sandboxes.retain(|s| s.id != *id);
            } else {
                self.stale = true;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Mounts, volumes, cgroup.
    pub(super) async fn release(&mut self) {
        let (dirs, tree, uid, qos) = (self.dirs.clone(), self.deps().pod_tree.clone(), self.uid.clone(), resources::qos(&self.pod));
        let removed = self.removed;
        let work = tokio::task::spawn_blocking(move || {
            volumes::tear_down(&dirs).map_err(|e| e.to_string())?;
            // An orphan's class is not known for sure.
            let classes = if removed { cgroup::QosClass::ALL.to_vec() } else { vec![qos] };
            classes.into_iter().try_for_each(|qos| tree.remove_pod(&uid, qos)).map_err(|e| e.to_string())
        });
        match work.await {
            Ok(Ok(())) => {
                self.history.released = true;
                self.history.retry_at = None;
                self.volumes_ready = false;
            }
            Ok(Err(problem)) => {
                tracing::warn!(pod = %self.pod.full_name(), error = %problem, "pod not released yet");
                self.history.retry_at = Some(time::now() + RETRY);
            }
            Err(_) => {}
        }
    }

    /// Runtime objects, directories, logs. True when nothing is left.
    pub(super) async fn forget(&mut self) -> bool {
        let client = self.deps().runtime.clone();
        // A sandbox whose container cannot be removed is not removed either, and the runtime does less about it.
        for container in &self.seen.containers {
            if let Err(error) = client.remove_container(&container.id).await {
                tracing::debug!(container_id = %container.id, error = %error, "container not removed yet");
                self.stale = true;
            }
        }
        for sandbox in &self.seen.sandboxes {
            if let Err(error) = client.remove_pod_sandbox(&sandbox.id).await {
                tracing::debug!(sandbox_id = %sandbox.id, error = %error, "sandbox not removed yet");
                self.stale = true;
            }
        }
        let links: Vec<PathBuf> = self.log_links();
        let dirs = self.dirs.clone();
        let gone = tokio::task::spawn_blocking(move || {
            links.iter().for_each(|link| drop(fs::remove_file(link)));
            volumes::forget(&dirs)
        })
        .await;
        if let Ok(Err(error)) = &gone {
            tracing::warn!(pod = %self.pod.full_name(), error = %error, "pod directories not removed yet");
        }
        let done = !self.stale && matches!(gone, Ok(Ok(())));
        if !done {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        done
    }

    fn log_links(&self) -> Vec<PathBuf> {
        let Some(dir) = &self.deps().config.container_logs_dir else {
            return Vec::new();
        };
        let prefix = format!("{}_{}_", self.pod.metadata.name, self.pod.metadata.namespace);
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .filter(|e| fs::read_link(e.path()).is_ok_and(|to| to.starts_with(&self.dirs.logs)))
            .map(|e| e.path())
            .collect()
    }
}

/// Removes a container's log, the parts that rotation set aside, and the links to it.
fn remove_log(log: &Path, links: Option<&Path>) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else { return };
    let aside = format!("{name}.");
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|found| found == name || found.starts_with(&aside)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for entry in links.and_then(|links| fs::read_dir(links).ok()).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|to| to == log) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A shorter grace than `current`, when the server says so.
async fn shorter_grace(inbox: &mut tokio::sync::watch::Receiver<super::worker::Assigned>, current: i64) -> i64 {
    loop {
        let wanted = {
            let assigned = inbox.borrow_and_update();
            if assigned.removed { Some(1) } else { assigned.pod.metadata.deletion_grace_period_seconds }
        };
        if let Some(wanted) = wanted.map(|w| w.max(1)).filter(|w| *w < current) {
            return wanted;
        }
        if inbox.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// All hooks at once; regular containers at once; then sidecars, last first. Returns hooks that failed.
async fn stop_in_order(
    client: &Client,
    pod: &Pod,
    targets: &[Target],
    address: &str,
    end: Instant,
    with_hooks: bool,
) -> Vec<(String, String)> {
    let (sidecars, regular): (Vec<&Target>, Vec<&Target>) = targets.iter().partition(|t| t.sidecar);
    let hook = async |target: &Target| {
        let hook = target.hook.as_ref().filter(|_| with_hooks)?;
        let left = end.saturating_duration_since(Instant::now());
        let done = tokio::time::timeout(left, hooks::run(client, pod, &target.container, &target.id, hook, address, left)).await;
        match done {
            Ok(Err(message)) => Some((target.container.name.clone(), message)),
            Ok(Ok(())) | Err(_) => None,
        }
    };
    let stop = async |target: &Target| {
        let left = end.saturating_duration_since(Instant::now()).max(LEAST);
        if let Err(error) = client.stop_container(&target.id, left).await {
            tracing::debug!(container = %target.container.name, container_id = %target.id, error = %error, "stop failed");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let regular_down = join_all(regular.iter().map(|target| async {
        let failed = hook(target).await;
        stop(target).await;
        failed
    }));
    let sidecar_hooks = join_all(sidecars.iter().map(|target| hook(target)));
    let (failed, failed_sidecars) = tokio::join!(regular_down, sidecar_hooks);
    let order = |name: &str| pod.spec.init_containers.iter().position(|c| c.name == name);
    let mut sidecars = sidecars;
    sidecars.sort_by_key(|t| std::cmp::Reverse(order(&t.container.name)));
    for target in sidecars {
        stop(target).await;
    }
    failed.into_iter().chain(failed_sidecars).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_removed_container_takes_its_whole_log_and_its_link_along() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, links) = (dir.path().join("logs"), dir.path().join("links"));
        fs::create_dir_all(&logs).unwrap();
        fs::create_dir_all(&links).unwrap();
        for name in ["1.log", "1.log.20261123-025150", "11.log", "2.log"] {
            fs::write(logs.join(name), name).unwrap();
        }
        for name in ["1.log", "2.log"] {
            symlink(logs.join(name), links.join(format!("p_n_c-{name}"))).unwrap();
        }
        remove_log(&logs.join("1.log"), Some(&links));
        let left = |dir: &Path| {
            let mut names: Vec<String> =
                fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(left(&logs), ["11.log", "2.log"]);
        assert_eq!(left(&links), ["p_n_c-2.log"]);
    }
}
