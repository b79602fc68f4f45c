//! Performing steps. Each does one thing, tells the user by an event, and leaves what it saw in the observation.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use cgroup::PodCgroup;
use runtime::cri;
use runtime::observe::sandbox_seen;

use super::dns::{self, HostResolver};
use super::history::RETRY;
use super::images::{self, PullPolicy};
use super::step::{Step, StopAll};
use super::time::{self, Nanos, SECOND};
use super::translate::{self, SandboxInputs};
use super::volumes;
use super::worker::Worker;
use super::{NodeFacts, env, hooks, hosts, resources};
use crate::events::Type;

/// Sandboxes carry this, so that an orphan is known to be this node's.
pub(super) const INSTANCE: &str = "edge-agent.io/node";
/// Pause while the runtime has no network configuration yet.
const NETWORK_PAUSE: Nanos = SECOND / 2;
/// The first pause between tries of a pod's volumes; doubled each time.
const VOLUME_FIRST_PAUSE: Nanos = SECOND / 2;
/// The longest pause between tries of a pod's volumes.
const VOLUME_PAUSE: Nanos = 120 * SECOND;
/// The server's authoriser learns of a binding, and what issues tokens of a pod, a moment after the node does; a refusal that
/// soon says nothing.
const AUTHORISER: Nanos = 2 * SECOND;
const AUTHORISER_PAUSE: Nanos = SECOND / 10;

/// A step that failed was told to the user and noted in the history; the worker goes on.
pub(super) type Done = Result<(), ()>;

impl Worker {
    /// Performs a step. True: nothing is left of the pod.
    pub(super) async fn perform(&mut self, step: Step) -> bool {
        match step {
            Step::Wait { .. } => {}
            Step::FindVolumes => self.find_volumes().await,
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

    pub(super) fn node(&self) -> Arc<NodeFacts> {
        self.deps().node.borrow().clone()
    }

    /// What the sandbox was or is to be made with.
    pub(super) fn sandbox_config(
        &self,
        attempt: u32,
        resolved: &dns::Resolved,
        hostname: String,
        cgroup_parent: String,
    ) -> cri::PodSandboxConfig {
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

    pub(super) fn dns(&self) -> dns::Resolved {
        let config = &self.deps().config;
        let host = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        dns::resolve(&self.pod, &config.cluster_dns, &config.cluster_domain, &HostResolver::parse(&host))
    }

    async fn find_volumes(&mut self) {
        if self.volumes_ready {
            // They are made: what has gone since keeps nobody from a new sandbox.
            self.history.volumes_found = true;
            return;
        }
        let (pod, mut inbox) = (self.pod.clone(), self.inbox());
        let found = tokio::select! {
            found = volumes::find(&self.shared.deps, &pod) => found,
            () = Worker::told_to_stop(&mut inbox) => return,
        };
        match found {
            Ok(()) => self.history.volumes_found = true,
            Err(failure) => self.volumes_failed(&failure),
        }
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
        let Some(first) = self.pod.all_containers().next() else {
            return (images, inputs);
        };
        let Ok(name) = images::with_tag(&first.image) else {
            return (images, inputs);
        };
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

    pub(super) fn volumes_done(&mut self) {
        self.volumes_ready = true;
        self.volume_failures = 0;
        self.arm_refresh();
    }

    /// When to ask again, where a refusal says nothing yet.
    pub(super) fn not_yet_allowed(&self, message: &str) -> Option<Nanos> {
        let now = time::now();
        let unknown = || message.ends_with(&format!("pod \"{}\" not found", self.pod.metadata.name));
        let early = now - self.start_time < AUTHORISER;
        (early && (message.contains(" is forbidden: ") || unknown())).then_some(now + AUTHORISER_PAUSE)
    }

    pub(super) fn volumes_failed(&mut self, failure: &volumes::Failure) {
        let now = time::now();
        if let Some(soon) = self.not_yet_allowed(&failure.message) {
            self.history.retry_at = Some(soon);
            return;
        }
        self.event(None, Type::Warning, "FailedMount", &failure.to_string());
        let pause = VOLUME_FIRST_PAUSE << self.volume_failures.min(8);
        self.volume_failures += 1;
        self.history.retry_at = Some(now + pause.min(VOLUME_PAUSE));
    }

    /// The pod's cgroup and directories; returns the cgroup parent for CRI.
    async fn prepare(&mut self) -> Result<String, ()> {
        let (tree, dirs, uid) = (self.deps().pod_tree.clone(), self.dirs.clone(), self.uid.clone());
        let qos = resources::qos(&self.pod);
        let amounts = resources::pod_amounts(&self.pod);
        let pids = self.deps().config.pod_pids_limit.and_then(|p| u64::try_from(p).ok());
        let work = tokio::task::spawn_blocking(move || {
            dirs.make().map_err(|e| ("Failed", format!("error making pod data directories: {e}")))?;
            let group = PodCgroup {
                uid: &uid,
                qos,
                cpu_shares: amounts.cpu_shares,
                cpu_quota: amounts.cpu_quota,
                memory_limit: amounts.memory_limit,
                pids,
            };
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
}
