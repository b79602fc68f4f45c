//! Starting one container: volumes, image, configuration, create, start, postStart hook; and stopping one that is sick.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::observe::container_seen;
use runtime::{ContainerId, SandboxId, cri};

use super::fields::Addresses;
use super::history::{Failure, RETRY};
use super::step::Kill;
use super::steps::Done;
use super::time::{self, Nanos, SECOND};
use super::translate::{self, ContainerInputs, ImageUser};
use super::volumes::{self, MountInputs};
use super::worker::Worker;
use super::{env, hooks, hosts, reasons, resources, unsupported};
use crate::api::pod::{Container, Pod};
use crate::events::Type;

/// A container whose postStart hook takes longer is told as running meanwhile.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

impl Worker {
    /// Notes why a container did not start, and tells it.
    pub(super) fn fail(&mut self, container: &str, reason: &'static str, message: String, retry_at: Nanos) {
        self.event(Some(container), Type::Warning, "Failed", &format!("Error: {message}"));
        self.history.failed(container, Failure { reason, message, retry_at });
    }

    pub(super) async fn start(&mut self, name: &str, attempt: u32) -> Done {
        let pod = self.pod.clone();
        let Some(container) = pod.every_container().find(|c| c.name == name) else {
            return Err(());
        };
        let Some(sandbox) = self.seen.sandbox().cloned() else {
            return Err(());
        };
        let began = Instant::now();
        if !self.volumes_ready {
            let done = volumes::set_up(&self.shared.deps, &pod, &self.dirs, &self.shared.host_ips, &self.pod_ips()).await;
            match done {
                Ok(()) => self.volumes_done(),
                Err(failure) => {
                    self.volumes_failed(&failure);
                    return Err(());
                }
            }
        }
        let target = match self.debug_target(container) {
            Ok(target) => target,
            Err(message) => {
                self.fail(name, reasons::CREATE_CONTAINER_CONFIG_ERROR, message, time::now() + RETRY);
                return Err(());
            }
        };
        let image = self.image(container).await?;
        let user = ImageUser::of(&image);
        if let Err(message) = translate::check_non_root(&pod, container, &user) {
            self.fail(name, reasons::CREATE_CONTAINER_CONFIG_ERROR, message, time::now() + RETRY);
            return Err(());
        }
        let config = match self.container_config(&pod, container, attempt, &image, user).await {
            Ok(config) => translate::sees_processes_of(config, target.as_ref()),
            Err(message) => {
                match self.not_yet_allowed(&message) {
                    Some(retry_at) => {
                        self.history.failed(name, Failure { reason: reasons::CONTAINER_CREATING, message: String::new(), retry_at });
                    }
                    None => self.fail(name, reasons::CREATE_CONTAINER_CONFIG_ERROR, message, time::now() + RETRY),
                }
                return Err(());
            }
        };
        let ended = self.seen.container(name).filter(|c| c.finished_at > 0);
        if let Some(counted) = ended.and_then(|ended| self.history.counted_end(container, &ended.id, ended.finished_at)) {
            self.history.restarting(container, counted, time::now());
        }
        let parent = self.deps().pod_tree.cgroup_parent(&self.uid, resources::qos(&pod)).unwrap_or_default();
        let hostname = hosts::sandbox_hostname(&pod, &self.deps().config.cluster_domain).unwrap_or_default();
        let sandbox_config = self.sandbox_config(sandbox.attempt, &self.dns(), hostname, parent);
        let configured = began.elapsed();
        let made = self.deps().runtime.create_container(&sandbox.id, config, sandbox_config).await;
        let id = match made {
            Ok(id) => id,
            Err(error) => {
                self.stale = true;
                let message = error.runtime_message().map_or_else(|| error.to_string(), str::to_owned);
                self.fail(name, reasons::CREATE_CONTAINER_ERROR, message, time::now() + RETRY);
                return Err(());
            }
        };
        tracing::debug!(container_id = %id, container = name, ?configured, elapsed = ?(began.elapsed() - configured), "container made");
        self.event(Some(name), Type::Normal, "Created", "Container created");
        self.start_made(container, &sandbox.id, &id).await
    }

    /// The instance whose processes an ephemeral container is to see, if it names one. An ephemeral container is judged only
    /// here, for it comes after admission.
    fn debug_target(&self, container: &Container) -> Result<Option<ContainerId>, String> {
        if !self.pod.is_ephemeral(&container.name) {
            return Ok(None);
        }
        let missing = unsupported::ephemeral_fields(container);
        if !missing.is_empty() {
            return Err(format!("this agent does not implement {}", missing.join(", ")));
        }
        let Some(wanted) = container.target() else { return Ok(None) };
        let target = self.seen.container(wanted).ok_or_else(|| format!("unable to find target container {wanted}"))?;
        Ok(Some(target.id.clone()))
    }

    /// A container that a former agent made and did not start.
    pub(super) async fn start_created(&mut self, name: &str, id: &ContainerId) -> Done {
        let pod = self.pod.clone();
        let Some(container) = pod.every_container().find(|c| c.name == name) else {
            return Err(());
        };
        let Some(sandbox) = self.seen.sandbox().map(|s| s.id.clone()) else {
            return Err(());
        };
        match self.start_container(name, id).await {
            Ok(()) => self.started(container, &sandbox, id).await,
            Err(Some(error)) if error.runtime_message().is_some() && !error.is_unavailable() => {
                // Made by a call that nobody waited for to the end, it may lack what it needs, such as the namespaces of its
                // sandbox: that is neither an attempt nor a failure of this pod. It is made again.
                tracing::info!(pod = %pod.full_name(), container = name, container_id = %id, error = %error, "container of a former agent made again");
                self.discard(std::slice::from_ref(id), &[]).await;
                Err(())
            }
            Err(_) => Err(()),
        }
    }

    async fn start_made(&mut self, container: &Container, sandbox: &SandboxId, id: &ContainerId) -> Done {
        match self.start_container(&container.name, id).await {
            Ok(()) => self.started(container, sandbox, id).await,
            Err(Some(error)) => {
                let message = error.runtime_message().map_or_else(|| error.to_string(), str::to_owned);
                // The instance ended with its failed start: its back-off counts. One that did not is tried again.
                let retry_at = if error.is_unavailable() { time::now() + SECOND } else { time::now() };
                self.fail(&container.name, reasons::RUN_CONTAINER_ERROR, message, retry_at);
                Err(())
            }
            Err(None) => Err(()),
        }
    }

    /// Asks the runtime to start what was made; no error tells of a start that somebody else made.
    async fn start_container(&mut self, name: &str, id: &ContainerId) -> Result<(), Option<runtime::Error>> {
        let asked = Instant::now();
        let started = self.deps().runtime.start_container(id).await;
        tracing::debug!(container_id = %id, container = name, elapsed = ?asked.elapsed(), "container start answered");
        let Err(error) = started else { return Ok(()) };
        self.stale = true;
        if error.is_not_to_be_started() {
            // A former agent's call is or was at it: how that ends shows in a moment, and is no failure of ours.
            let retry_at = time::now() + SECOND / 4;
            self.history.failed(name, Failure { reason: reasons::CONTAINER_CREATING, message: String::new(), retry_at });
            return Err(None);
        }
        Err(Some(error))
    }

    /// What follows a start.
    async fn started(&mut self, container: &Container, sandbox: &SandboxId, id: &ContainerId) -> Done {
        let name = container.name.as_str();
        self.event(Some(name), Type::Normal, "Started", "Container started");
        self.history.started(name);
        match self.deps().runtime.container_status(id).await {
            Ok(status) => {
                let seen = container_seen(sandbox.to_string(), status);
                self.seen.containers.retain(|c| c.id != *id);
                let at = self.seen.containers.iter().position(|c| c.name.as_str() >= name).unwrap_or(self.seen.containers.len());
                self.seen.containers.insert(at, seen);
            }
            Err(_) => self.stale = true,
        }
        self.link_log(name, id);
        self.post_start(container, id).await
    }

    async fn post_start(&mut self, container: &Container, id: &ContainerId) -> Done {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else {
            return Ok(());
        };
        let client = self.deps().runtime.clone();
        let mut inbox = self.inbox();
        let (pod, address) = (self.pod.clone(), self.address());
        let running = hooks::run(&client, &pod, container, id, &hook, &address, Duration::ZERO);
        tokio::pin!(running);
        let quick = tokio::select! {
            done = &mut running => Some(done),
            () = tokio::time::sleep(SHOWN_AFTER) => None,
            () = Worker::told_to_stop(&mut inbox) => return Ok(()),
        };
        let ended = match quick {
            Some(done) => done,
            None => {
                self.tell_now("post start hook");
                tokio::select! {
                    done = &mut running => done,
                    () = Worker::told_to_stop(&mut inbox) => return Ok(()),
                }
            }
        };
        let Err(message) = ended else { return Ok(()) };
        let name = container.name.as_str();
        self.event(Some(name), Type::Warning, "FailedPostStartHook", "PostStartHook failed");
        self.event(Some(name), Type::Normal, "Killing", "FailedPostStartHook");
        let grace = self.pod.spec.termination_grace_period_seconds.unwrap_or(30);
        self.stop_one(container, id, grace).await;
        self.history.failed(name, Failure { reason: reasons::POST_START_HOOK_ERROR, message, retry_at: time::now() });
        self.stale = true;
        Err(())
    }

    /// Log shippers look for `<pod>_<namespace>_<container>-<id>.log`.
    fn link_log(&self, container: &str, id: &ContainerId) {
        let Some(dir) = &self.deps().config.container_logs_dir else {
            return;
        };
        let Some(log) = self.seen.containers.iter().find(|c| c.id == *id).map(|c| c.log_path.clone()).filter(|p| !p.is_empty()) else {
            return;
        };
        let meta = &self.pod.metadata;
        let name = format!("{}_{}_{container}-{id}", meta.name, meta.namespace);
        let link = dir.join(format!("{}.log", name.chars().take(251).collect::<String>()));
        let _ = fs::create_dir_all(dir);
        if let Err(error) = std::os::unix::fs::symlink(&log, &link) {
            tracing::debug!(path = %link.display(), error = %error, "log link not made");
        }
    }

    async fn container_config(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        attempt: u32,
        image: &cri::Image,
        user: ImageUser,
    ) -> Result<cri::ContainerConfig, String> {
        let inputs = match self.inputs.remove(&container.name) {
            Some(inputs) => inputs,
            None => env::gather(&self.deps().objects, pod, container).await,
        }?;
        let (node, pod_ips) = (self.node(), self.pod_ips());
        let addresses = Addresses { pod_ips: &pod_ips, host_ips: &self.shared.host_ips };
        let variables = env::build(pod, container, &inputs, addresses, &node)?;
        let (dirs, domain) = (self.dirs.clone(), self.deps().config.cluster_domain.clone());
        let (pod_, container_, ips, vars) = (pod.clone(), container.clone(), pod_ips.clone(), variables.clone());
        let work = tokio::task::spawn_blocking(move || {
            let logs = dirs.logs.join(&container_.name);
            fs::create_dir_all(&logs)
                .and_then(|()| fs::set_permissions(&logs, fs::Permissions::from_mode(0o755)))
                .map_err(|e| format!("create {}: {e}", logs.display()))?;
            let inputs = MountInputs { env: &vars, pod_ips: &ips, cluster_domain: &domain, attempt };
            volumes::container_mounts(&pod_, &container_, &dirs, &inputs)
        });
        let mounts = work.await.map_err(|e| e.to_string())??;
        let seccomp = self.deps().config.root_dir.join("seccomp").display().to_string();
        let inputs = ContainerInputs {
            attempt,
            image: image.id.clone(),
            image_user: user,
            env: &variables,
            mounts,
            node: &node,
            cgroup_v2: self.shared.cgroup_v2,
            seccomp_dir: &seccomp,
        };
        Ok(translate::container_config(pod, container, inputs))
    }

    pub(super) async fn kill(&mut self, name: &str, id: &ContainerId, why: Kill) {
        let pod = self.pod.clone();
        let Some(container) = pod.every_container().find(|c| c.name == name) else {
            return;
        };
        let text = match why {
            Kill::Changed => format!("Container {name} definition changed, will be restarted"),
            Kill::FailedLiveness => {
                format!("Container {name} failed liveness probe, will be restarted")
            }
            Kill::FailedStartup => {
                format!("Container {name} failed startup probe, will be restarted")
            }
            Kill::Unknown => {
                format!("Container {name} is in unknown state, try killing it before restart")
            }
        };
        self.event(Some(name), Type::Normal, "Killing", &text);
        let of_probe = match why {
            Kill::FailedLiveness => container.liveness_probe.as_ref(),
            Kill::FailedStartup => container.startup_probe.as_ref(),
            Kill::Changed | Kill::Unknown => None,
        };
        let grace = of_probe.and_then(|p| p.termination_grace_period_seconds).or(pod.spec.termination_grace_period_seconds).unwrap_or(30);
        let before = self.seen.containers.iter().filter(|c| c.name == name && c.id != *id && c.finished_at > 0);
        let before = before.map(|c| c.finished_at).max();
        self.stop_one(container, id, grace).await;
        self.history.killed(container, id, before, time::now());
        self.stale = true;
    }
}
