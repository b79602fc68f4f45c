//! Performing steps. Each does one thing, tells the user by an event, and leaves what it saw in the observation.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cgroup::PodCgroup;
use runtime::observe::{container_seen, sandbox_seen};
use runtime::{ContainerId, SandboxId, cri};

use super::decide::{Kill, StopAll, Step};
use super::dns::{self, HostResolver};
use super::fields::Addresses;
use super::history::{Failure, RETRY};
use super::images::{self, PullPolicy};
use super::time::{self, Nanos, SECOND};
use super::translate::{self, ContainerInputs, ImageUser, SandboxInputs};
use super::volumes::{self, MountInputs};
use super::worker::Worker;
use super::{NodeFacts, env, hooks, hosts, reasons, resources};
use crate::api::pod::{Container, Pod};
use crate::events::Type;

/// Sandboxes carry this, so that an orphan is known to be this node's.
pub(super) const INSTANCE: &str = "edge-agent.io/node";
/// A container whose postStart hook takes longer is told as running meanwhile.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Pause while the runtime has no network configuration yet.
const NETWORK_PAUSE: Nanos = SECOND / 2;
/// The longest pause between tries of a pod's volumes.
const VOLUME_PAUSE: Nanos = 120 * SECOND;

/// A step that failed was told to the user and noted in the history; the worker goes on.
type Done = Result<(), ()>;

impl Worker {
    /// Performs a step. True: nothing is left of the pod.
    pub(super) async fn perform(&mut self, step: Step) -> bool {
        match step {
            Step::Wait { .. } => {}
            Step::RunSandbox { attempt } => {
                let _ = self.run_sandbox(attempt).await;
            }
            Step::Start { container, attempt } => {
                let _ = self.start(&container, attempt).await;
            }
            Step::Resume { container, id } => {
                let _ = self.start_created(&container, &id).await;
            }
            Step::Kill { container, id, why } => self.kill(&container, &id, why).await,
            Step::StopAll { why } => {
                if why == StopAll::SandboxChanged {
                    self.event(None, Type::Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
                }
                self.stop_all().await;
            }
            Step::StopSandboxes { sandboxes } => self.stop_sandboxes(&sandboxes).await,
            Step::Discard { containers, sandboxes } => self.discard(&containers, &sandboxes).await,
            Step::Release => self.release().await,
            Step::Finish => {
                self.deps().status.finish(&self.pod);
                self.history.finished = true;
            }
            Step::Forget => return self.forget().await,
        }
        false
    }

    pub(super) fn event(&self, container: Option<&str>, kind: Type, reason: &str, message: &str) {
        let path = container.map(|name| hooks::field_path(&self.pod, name));
        self.deps().recorder.pod_event(&self.pod, path.as_deref(), kind, reason, message);
    }

    fn node(&self) -> Arc<NodeFacts> {
        self.deps().node.borrow().clone()
    }

    /// What the sandbox was or is to be made with.
    fn sandbox_config(&self, attempt: u32, resolved: &dns::Resolved, hostname: String, cgroup_parent: String) -> cri::PodSandboxConfig {
        let inputs = SandboxInputs {
            attempt,
            hostname,
            log_directory: self.dirs.logs.display().to_string(),
            dns: resolved.config.clone(),
            cgroup_parent,
            node: &self.node(),
            cgroup_v2: self.shared.cgroup_v2,
        };
        let mut config = translate::sandbox_config(&self.pod, inputs);
        config.annotations.insert(INSTANCE.to_owned(), self.deps().config.node_name.clone());
        config
    }

    fn dns(&self) -> dns::Resolved {
        let config = &self.deps().config;
        let host = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        dns::resolve(&self.pod, &config.cluster_dns, &config.cluster_domain, &HostResolver::parse(&host))
    }

    async fn run_sandbox(&mut self, attempt: u32) -> Done {
        let resolved = self.dns();
        for (reason, message) in &resolved.warnings {
            self.event(None, Type::Warning, reason, message);
        }
        let hostname = hosts::sandbox_hostname(&self.pod, &self.deps().config.cluster_domain);
        let hostname = hostname.map_err(|problem| self.sandbox_failed(&problem))?;
        let began = Instant::now();
        let cgroup_parent = self.prepare().await?;
        let prepared = began.elapsed();
        let config = self.sandbox_config(attempt, &resolved, hostname, cgroup_parent);
        let handler = self.pod.spec.runtime_class_name.clone().unwrap_or_default();
        let client = self.deps().runtime.clone();
        let mut inbox = self.inbox();

        // Volumes, images and environment are got while the sandbox is made: none needs it.
        let wanted = if self.volumes_ready { None } else { Some(self.pod.clone()) };
        let (made, volumes, (images, inputs)) = tokio::join!(
            async {
                let asked = Instant::now();
                let id = client.run_pod_sandbox(config, &handler).await?;
                tracing::debug!(sandbox_id = %id, ?prepared, elapsed = ?asked.elapsed(), "sandbox made");
                client.pod_sandbox_status(&id).await
            },
            async {
                match &wanted {
                    Some(pod) => tokio::select! {
                        done = volumes::set_up(&self.shared.deps, pod, &self.dirs, &self.shared.host_ips, &[]) => Some(done),
                        () = Worker::told_to_stop(&mut inbox) => None,
                    },
                    None => None,
                }
            },
            self.fetch_ahead(),
        );
        self.images.extend(images);
        self.inputs.extend(inputs);
        match made {
            Ok(status) => {
                self.seen.sandboxes.insert(0, sandbox_seen(status));
                self.history.retry_at = None;
            }
            Err(error) => {
                self.stale = true;
                self.sandbox_failed(&error.event_message());
            }
        }
        match volumes {
            Some(Ok(())) => self.volumes_done(),
            Some(Err(failure)) => self.volumes_failed(&failure),
            None => {}
        }
        Ok(())
    }

    /// Image and environment of the first container to start.
    async fn fetch_ahead(&self) -> (BTreeMap<String, cri::Image>, BTreeMap<String, Result<env::Inputs, String>>) {
        let (mut images, mut inputs) = (BTreeMap::new(), BTreeMap::new());
        let Some(first) = self.pod.all_containers().next() else { return (images, inputs) };
        let Ok(name) = images::with_tag(&first.image) else { return (images, inputs) };
        let wanted = images::policy(&first.image_pull_policy, &name) != PullPolicy::Always;
        let image = async { if wanted { self.deps().runtime.image_status(&name).await.ok().flatten() } else { None } };
        let (found, got) = tokio::join!(image, env::gather(&self.deps().objects, &self.pod, first));
        if let Some(found) = found {
            images.insert(name.clone(), found);
        }
        inputs.insert(first.name.clone(), got);
        (images, inputs)
    }

    fn sandbox_failed(&mut self, problem: &str) {
        // A new node's network comes up within moments.
        if problem.contains("cni plugin not initialized") || problem.contains("cni config uninitialized") {
            let message = "network is not ready: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized";
            self.event(None, Type::Warning, "NetworkNotReady", message);
            self.history.retry_at = Some(time::now() + NETWORK_PAUSE);
            return;
        }
        self.event(None, Type::Warning, "FailedCreatePodSandBox", &format!("Failed to create pod sandbox: {problem}"));
        self.history.retry_at = Some(time::now() + RETRY);
    }

    fn volumes_done(&mut self) {
        self.volumes_ready = true;
        self.volume_failures = 0;
        self.arm_refresh();
    }

    fn volumes_failed(&mut self, failure: &volumes::Failure) {
        self.event(None, Type::Warning, "FailedMount", &failure.to_string());
        let pause = SECOND << self.volume_failures.min(7);
        self.volume_failures += 1;
        self.history.retry_at = Some(time::now() + pause.min(VOLUME_PAUSE));
    }

    /// The pod's cgroup and directories; returns the cgroup parent for CRI.
    async fn prepare(&mut self) -> Result<String, ()> {
        let (tree, dirs, uid) = (self.deps().pod_tree.clone(), self.dirs.clone(), self.uid.clone());
        let qos = resources::qos(&self.pod);
        let amounts = resources::pod_amounts(&self.pod);
        let pids = self.deps().config.pod_pids_limit.and_then(|p| u64::try_from(p).ok());
        let work = tokio::task::spawn_blocking(move || {
            dirs.make().map_err(|e| ("Failed", format!("error making pod data directories: {e}")))?;
            let group = PodCgroup { uid: &uid, qos, cpu_shares: amounts.cpu_shares, cpu_quota: amounts.cpu_quota, memory_limit: amounts.memory_limit, pids };
            tree.ensure_pod(&group).map_err(|e| ("FailedCreatePodContainer", format!("unable to ensure pod container exists: {e}")))
        });
        match work.await {
            Ok(Ok(parent)) => Ok(parent),
            Ok(Err((reason, message))) => {
                self.event(None, Type::Warning, reason, &message);
                self.history.retry_at = Some(time::now() + RETRY);
                Err(())
            }
            Err(_) => Err(()),
        }
    }

    /// Notes why a container did not start, and tells it.
    fn fail(&mut self, container: &str, reason: &'static str, message: String, retry_at: Nanos) {
        self.event(Some(container), Type::Warning, "Failed", &format!("Error: {message}"));
        self.history.failed(container, Failure { reason, message, retry_at });
    }

    async fn start(&mut self, name: &str, attempt: u32) -> Done {
        let pod = self.pod.clone();
        let Some(container) = pod.all_containers().find(|c| c.name == name) else { return Err(()) };
        let Some(sandbox) = self.seen.sandbox().cloned() else { return Err(()) };
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
        let image = self.image(container).await?;
        let user = ImageUser::of(&image);
        if let Err(message) = translate::check_non_root(&pod, container, &user) {
            self.fail(name, reasons::CREATE_CONTAINER_CONFIG_ERROR, message, time::now() + RETRY);
            return Err(());
        }
        let config = match self.container_config(&pod, container, attempt, &image, user).await {
            Ok(config) => config,
            Err(message) => {
                self.fail(name, reasons::CREATE_CONTAINER_CONFIG_ERROR, message, time::now() + RETRY);
                return Err(());
            }
        };
        if let Some(finished) = self.seen.container(name).filter(|c| c.finished_at > 0).map(|c| c.finished_at) {
            self.history.restarting(container, finished, time::now());
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

    /// A container that a former agent made and did not start.
    async fn start_created(&mut self, name: &str, id: &ContainerId) -> Done {
        let pod = self.pod.clone();
        let Some(container) = pod.all_containers().find(|c| c.name == name) else { return Err(()) };
        let Some(sandbox) = self.seen.sandbox().map(|s| s.id.clone()) else { return Err(()) };
        self.start_made(container, &sandbox, id).await
    }

    async fn start_made(&mut self, container: &Container, sandbox: &SandboxId, id: &ContainerId) -> Done {
        let name = container.name.as_str();
        let asked = Instant::now();
        let started = self.deps().runtime.start_container(id).await;
        tracing::debug!(container_id = %id, container = name, elapsed = ?asked.elapsed(), "container start answered");
        if let Err(error) = started {
            self.stale = true;
            let message = error.runtime_message().map_or_else(|| error.to_string(), str::to_owned);
            // The instance ended with its failed start: its back-off counts. One that did not is tried again.
            let retry_at = if error.is_unavailable() { time::now() + SECOND } else { time::now() };
            self.fail(name, reasons::RUN_CONTAINER_ERROR, message, retry_at);
            return Err(());
        }
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
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return Ok(()) };
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
        let Some(dir) = &self.deps().config.container_logs_dir else { return };
        let Some(log) = self.seen.containers.iter().find(|c| c.id == *id).map(|c| c.log_path.clone()).filter(|p| !p.is_empty()) else { return };
        let meta = &self.pod.metadata;
        let name = format!("{}_{}_{container}-{id}", meta.name, meta.namespace);
        let link = dir.join(format!("{}.log", name.chars().take(251).collect::<String>()));
        let _ = fs::create_dir_all(dir);
        if let Err(error) = std::os::unix::fs::symlink(&log, &link) {
            tracing::debug!(path = %link.display(), error = %error, "log link not made");
        }
    }

    async fn container_config(&mut self, pod: &Arc<Pod>, container: &Container, attempt: u32, image: &cri::Image, user: ImageUser) -> Result<cri::ContainerConfig, String> {
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
            fs::create_dir_all(&logs).and_then(|()| fs::set_permissions(&logs, fs::Permissions::from_mode(0o755))).map_err(|e| format!("create {}: {e}", logs.display()))?;
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

    /// The image of a container, pulled where the policy says so.
    async fn image(&mut self, container: &Container) -> Result<cri::Image, ()> {
        let name = container.name.as_str();
        let image = match images::with_tag(&container.image) {
            Ok(image) => image,
            Err(message) => {
                self.event(Some(name), Type::Warning, "InspectFailed", &message);
                self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::INVALID_IMAGE_NAME));
                self.history.failed(name, Failure { reason: reasons::INVALID_IMAGE_NAME, message, retry_at: time::now() + RETRY });
                return Err(());
            }
        };
        let policy = images::policy(&container.image_pull_policy, &image);
        if policy != PullPolicy::Always {
            let found = match self.images.remove(&image) {
                Some(found) => Ok(Some(found)),
                None => self.deps().runtime.image_status(&image).await,
            };
            match found {
                Ok(Some(found)) => {
                    self.event(Some(name), Type::Normal, "Pulled", &format!("Container image \"{}\" already present on machine and can be accessed by the pod", container.image));
                    return Ok(found);
                }
                Ok(None) if policy == PullPolicy::Never => {
                    let message = format!("Container image \"{}\" is not present with pull policy of Never", container.image);
                    self.event(Some(name), Type::Warning, reasons::ERR_IMAGE_NEVER_PULL, &message);
                    self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::ERR_IMAGE_NEVER_PULL));
                    self.history.failed(name, Failure { reason: reasons::ERR_IMAGE_NEVER_PULL, message, retry_at: time::now() + RETRY });
                    return Err(());
                }
                Ok(None) => {}
                Err(error) => {
                    let message = format!("Failed to inspect image \"{}\": {}", container.image, error.event_message());
                    self.event(Some(name), Type::Warning, "InspectFailed", &message);
                    self.history.failed(name, Failure { reason: reasons::IMAGE_INSPECT_ERROR, message, retry_at: time::now() + RETRY });
                    return Err(());
                }
            }
        }
        self.pull(container, &image).await
    }

    async fn pull(&mut self, container: &Container, image: &str) -> Result<cri::Image, ()> {
        let name = container.name.as_str();
        let asked = time::now();
        if let Some(until) = self.history.pull_wait(image, asked) {
            let before = self.history.failure(name).map(|f| f.message.clone()).unwrap_or_default();
            let before = if before.starts_with("Back-off") { String::new() } else { format!(": {}: {before}", reasons::ERR_IMAGE_PULL) };
            let text = format!("Back-off pulling image \"{}\"", container.image);
            self.event(Some(name), Type::Normal, "BackOff", &text);
            self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::IMAGE_PULL_BACK_OFF));
            self.history.failed(name, Failure { reason: reasons::IMAGE_PULL_BACK_OFF, message: format!("{text}{before}"), retry_at: until });
            return Err(());
        }
        self.tell_now("pull");
        self.event(Some(name), Type::Normal, "Pulling", &format!("Pulling image \"{}\"", container.image));
        let shared = self.shared.clone();
        let mut inbox = self.inbox();
        let pod = self.pod.clone();
        let config = self.seen.sandbox().map(|s| cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: pod.metadata.name.clone(), uid: pod.metadata.uid.clone(), namespace: pod.metadata.namespace.clone(), attempt: s.attempt }),
            ..Default::default()
        });
        let work = async {
            let permit = shared.pulls.acquire().await;
            let began = time::now();
            let (credentials, missing) = images::credentials(&shared.deps.objects, &pod, image).await;
            let mut last = None;
            for auth in credentials {
                match shared.deps.runtime.pull_image(image, auth, config.clone()).await {
                    Ok(reference) => {
                        drop(permit);
                        let found = shared.deps.runtime.image_status(&reference).await.ok().flatten();
                        return (missing, Ok((found.unwrap_or(cri::Image { id: reference, ..Default::default() }), began)));
                    }
                    Err(error) => last = Some(error),
                }
            }
            (missing, Err(last))
        };
        let (missing, pulled) = tokio::select! {
            done = work => done,
            () = Worker::told_to_stop(&mut inbox) => return Err(()),
        };
        if !missing.is_empty() {
            self.event(None, Type::Warning, "FailedToRetrieveImagePullSecret", &format!("Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.", missing.join(", ")));
        }
        let now = time::now();
        match pulled {
            Ok((found, began)) => {
                self.history.pulled(image);
                let message = format!(
                    "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {} bytes.",
                    container.image,
                    time::go_millis(now - began),
                    time::go_millis(now - asked),
                    found.size
                );
                self.event(Some(name), Type::Normal, "Pulled", &message);
                Ok(found)
            }
            Err(error) => {
                let message = error.map_or_else(String::new, |e| e.runtime_message().map_or_else(|| e.to_string(), str::to_owned));
                self.event(Some(name), Type::Warning, "Failed", &format!("Failed to pull image \"{}\": {message}", container.image));
                self.event(Some(name), Type::Warning, "Failed", &format!("Error: {}", reasons::ERR_IMAGE_PULL));
                self.history.pull_failed(image, now);
                // Shown for a moment, then as ImagePullBackOff.
                self.history.failed(name, Failure { reason: reasons::ERR_IMAGE_PULL, message, retry_at: now + 2 * SECOND });
                Err(())
            }
        }
    }

    async fn kill(&mut self, name: &str, id: &ContainerId, why: Kill) {
        let pod = self.pod.clone();
        let Some(container) = pod.all_containers().find(|c| c.name == name) else { return };
        let text = match why {
            Kill::Changed => format!("Container {name} definition changed, will be restarted"),
            Kill::FailedLiveness => format!("Container {name} failed liveness probe, will be restarted"),
            Kill::FailedStartup => format!("Container {name} failed startup probe, will be restarted"),
            Kill::Unknown => format!("Container {name} is in unknown state, try killing it before restart"),
        };
        self.event(Some(name), Type::Normal, "Killing", &text);
        let of_probe = match why {
            Kill::FailedLiveness => container.liveness_probe.as_ref(),
            Kill::FailedStartup => container.startup_probe.as_ref(),
            Kill::Changed | Kill::Unknown => None,
        };
        let grace = of_probe.and_then(|p| p.termination_grace_period_seconds).or(pod.spec.termination_grace_period_seconds).unwrap_or(30);
        self.stop_one(container, id, grace).await;
        self.stale = true;
    }
}
