//! CRI's RuntimeService.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::Path;

use containerd_client::events as payload;
use runtime::cri::runtime_service_server::RuntimeService;
use runtime::cri::{self, ContainerState, PodSandboxState};
use tonic::{Request, Status};

use super::state::{
    Container, Inner, Reply, Sandbox, end, find_image, name_of, new_id, no_container, no_sandbox, now, ok, selected, stop_sandbox,
};

#[tonic::async_trait]
impl RuntimeService for Inner {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        let _state = self.enter("Version", "").await?;
        ok(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "containerd".into(),
            runtime_version: "1.6.20".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Reply<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let mut state = self.enter("RunPodSandbox", metadata.name.clone()).await?;
        let taken = state.sandboxes.iter().find(|(_, other)| {
            let other = other.config.metadata.clone().unwrap_or_default();
            (other.uid, other.attempt) == (metadata.uid.clone(), metadata.attempt)
        });
        if let Some((id, _)) = taken {
            return Err(Status::unknown(format!("failed to reserve sandbox name \"{name}\": name \"{name}\" is reserved for \"{id}\"")));
        }
        let id = new_id(&mut state);
        let created_at = now(&mut state);
        let host_network = config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref())
            .and_then(|s| s.namespace_options.as_ref())
            .is_some_and(|n| n.network() == cri::NamespaceMode::Node);
        let ip = if host_network {
            String::new()
        } else {
            let host = u32::try_from(state.number % 0xffff).unwrap_or(1);
            Ipv4Addr::from(0x0a2a_0000 + host).to_string()
        };
        state.sandboxes.insert(id.clone(), Sandbox { config, handler: request.runtime_handler, ready: true, created_at, ip });
        ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(&self, request: Request<cri::StopPodSandboxRequest>) -> Reply<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.enter("StopPodSandbox", id.clone()).await?;
        let was_ready = state.sandboxes.get(&id).is_some_and(|s| s.ready);
        let mut ended = stop_sandbox(&mut state, &id).ok_or_else(|| no_sandbox(&id))?;
        drop(state);
        if was_ready {
            ended.push((id, 137));
        }
        self.exits(ended);
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: Request<cri::RemovePodSandboxRequest>) -> Reply<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.enter("RemovePodSandbox", id.clone()).await?;
        let ended = stop_sandbox(&mut state, &id).unwrap_or_default();
        let mut gone: Vec<String> = Vec::new();
        state.containers.retain(|container_id, container| {
            let stays = container.sandbox != id;
            if !stays {
                gone.push(container_id.clone());
            }
            stays
        });
        if state.sandboxes.remove(&id).is_some() {
            gone.push(id);
        }
        drop(state);
        self.exits(ended);
        for id in gone {
            self.publish("/containers/delete", &payload::ContainerDelete { id });
        }
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: Request<cri::PodSandboxStatusRequest>) -> Reply<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.enter("PodSandboxStatus", id.clone()).await?;
        let sandbox = state.sandboxes.get(&id).ok_or_else(|| no_sandbox(&id))?;
        let options = sandbox.config.linux.as_ref().and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.clone());
        let status = cri::PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: sandbox_state(sandbox).into(),
            created_at: sandbox.created_at,
            // A stopped sandbox has given its address back.
            network: Some(cri::PodSandboxNetworkStatus {
                ip: if sandbox.ready { sandbox.ip.clone() } else { String::new() },
                additional_ips: Vec::new(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options }) }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            runtime_handler: sandbox.handler.clone(),
        };
        ok(cri::PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandbox(&self, request: Request<cri::ListPodSandboxRequest>) -> Reply<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.enter("ListPodSandbox", "").await?;
        let items = state
            .sandboxes
            .iter()
            .filter(|(id, sandbox)| (filter.id.is_empty() || filter.id == **id) && selected(&filter.label_selector, &sandbox.config.labels))
            .map(|(id, sandbox)| cri::PodSandbox {
                id: id.clone(),
                metadata: sandbox.config.metadata.clone(),
                state: sandbox_state(sandbox).into(),
                created_at: sandbox.created_at,
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
                runtime_handler: sandbox.handler.clone(),
            })
            .collect();
        ok(cri::ListPodSandboxResponse { items })
    }

    async fn create_container(&self, request: Request<cri::CreateContainerRequest>) -> Reply<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut state = self.enter("CreateContainer", metadata.name.clone()).await?;
        let sandbox_id = request.pod_sandbox_id;
        let ready = state.sandboxes.get(&sandbox_id).ok_or_else(|| no_sandbox(&sandbox_id))?.ready;
        if !ready {
            return Err(Status::unknown(format!(
                "failed to get sandbox container task: no running task found: task {sandbox_id} not found: not found"
            )));
        }
        let taken = state.containers.iter().find(|(_, other)| {
            let other_metadata = other.config.metadata.clone().unwrap_or_default();
            other.sandbox == sandbox_id && other_metadata == metadata
        });
        if let Some((id, _)) = taken {
            let name = &metadata.name;
            return Err(Status::unknown(format!("failed to reserve container name \"{name}\": name \"{name}\" is reserved for \"{id}\"")));
        }
        let wanted = config.image.clone().unwrap_or_default().image;
        let image =
            find_image(&state, &wanted).ok_or_else(|| Status::not_found(format!("failed to resolve image \"{wanted}\": not found")))?;
        let id = new_id(&mut state);
        let created_at = now(&mut state);
        let directory = request.sandbox_config.unwrap_or_default().log_directory;
        let log = Path::new(&directory).join(&config.log_path).display().to_string();
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated.into(),
            created_at,
            image: image.repo_tags.first().map(|tag| cri::ImageSpec { image: tag.clone(), ..Default::default() }),
            image_ref: image.repo_digests.first().cloned().unwrap_or(image.id),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: log.clone(),
            ..Default::default()
        };
        state.containers.insert(id.clone(), Container { sandbox: sandbox_id, config, log, status });
        ok(cri::CreateContainerResponse { container_id: id })
    }

    async fn start_container(&self, request: Request<cri::StartContainerRequest>) -> Reply<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.enter("StartContainer", id.clone()).await?;
        let time = now(&mut state);
        let container = state.containers.get_mut(&id).ok_or_else(|| no_container(&id))?;
        if container.status.state() != ContainerState::ContainerCreated {
            return Err(Status::unknown(format!(
                "failed to set starting state for container \"{id}\": container is in {} state",
                container.status.state().as_str_name()
            )));
        }
        container.status.set_state(ContainerState::ContainerRunning);
        container.status.started_at = time;
        let name = name_of(&container.config);
        let log = container.log.clone();
        let ends = state.ends_at_once.get_mut(&name).and_then(VecDeque::pop_front);
        if let Some(code) = ends {
            end(&mut state, &id, code, if code == 0 { "Completed" } else { "Error" });
        }
        drop(state);
        touch(&log);
        self.publish("/tasks/start", &payload::TaskStart { container_id: id.clone(), pid: 1 });
        if let Some(code) = ends {
            self.exits(vec![(id, code)]);
        }
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Reply<cri::StopContainerResponse> {
        let request = request.into_inner();
        let id = request.container_id;
        let mut state = self.enter("StopContainer", id.clone()).await?;
        if !state.containers.contains_key(&id) {
            return Err(no_container(&id));
        }
        let code = if request.timeout > 0 { 143 } else { 137 };
        let ended = end(&mut state, &id, code, "Error");
        drop(state);
        if ended {
            self.exits(vec![(id, code)]);
        }
        ok(cri::StopContainerResponse {})
    }

    async fn remove_container(&self, request: Request<cri::RemoveContainerRequest>) -> Reply<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.enter("RemoveContainer", id.clone()).await?;
        let ended = end(&mut state, &id, 137, "Error");
        let existed = state.containers.remove(&id).is_some();
        drop(state);
        if ended {
            self.exits(vec![(id.clone(), 137)]);
        }
        if existed {
            self.publish("/containers/delete", &payload::ContainerDelete { id });
        }
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: Request<cri::ListContainersRequest>) -> Reply<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.enter("ListContainers", "").await?;
        let containers = state
            .containers
            .iter()
            .filter(|(id, container)| {
                (filter.id.is_empty() || filter.id == **id)
                    && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox)
                    && selected(&filter.label_selector, &container.config.labels)
            })
            .map(|(id, container)| cri::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                image: container.config.image.clone(),
                image_ref: container.status.image_ref.clone(),
                state: container.status.state,
                created_at: container.status.created_at,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
                image_id: String::new(),
            })
            .collect();
        ok(cri::ListContainersResponse { containers })
    }

    async fn container_status(&self, request: Request<cri::ContainerStatusRequest>) -> Reply<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ContainerStatus", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ContainerStatusResponse { status: Some(container.status.clone()), info: BTreeMap::new() })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Reply<cri::UpdateContainerResourcesResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("UpdateContainerResources", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(&self, request: Request<cri::ReopenContainerLogRequest>) -> Reply<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ReopenContainerLog", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        touch(&container.log);
        ok(cri::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Reply<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let command = request.cmd.join(" ");
        let state = self.enter("ExecSync", command.clone()).await?;
        let running = state.containers.get(&request.container_id).ok_or_else(|| no_container(&request.container_id))?.status.state()
            == ContainerState::ContainerRunning;
        if !running {
            return Err(Status::unknown("container is in CONTAINER_EXITED state"));
        }
        let answer = state.answers.get(&command).cloned().unwrap_or_default();
        ok(cri::ExecSyncResponse { stdout: answer.stdout.into(), stderr: answer.stderr.into(), exit_code: answer.exit_code })
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("Exec", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ExecResponse { url: "http://127.0.0.1:1/exec/token".into() })
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Reply<cri::AttachResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("Attach", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::AttachResponse { url: "http://127.0.0.1:1/attach/token".into() })
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Reply<cri::PortForwardResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.enter("PortForward", id.clone()).await?;
        state.sandboxes.get(&id).ok_or_else(|| no_sandbox(&id))?;
        ok(cri::PortForwardResponse { url: "http://127.0.0.1:1/portforward/token".into() })
    }

    async fn container_stats(&self, request: Request<cri::ContainerStatsRequest>) -> Reply<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ContainerStats", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ContainerStatsResponse { stats: Some(stats(&id, container)) })
    }

    async fn list_container_stats(&self, _: Request<cri::ListContainerStatsRequest>) -> Reply<cri::ListContainerStatsResponse> {
        let state = self.enter("ListContainerStats", "").await?;
        let stats = state
            .containers
            .iter()
            .filter(|(_, c)| c.status.state() == ContainerState::ContainerRunning)
            .map(|(id, c)| stats(id, c))
            .collect();
        ok(cri::ListContainerStatsResponse { stats })
    }

    async fn update_runtime_config(&self, _: Request<cri::UpdateRuntimeConfigRequest>) -> Reply<cri::UpdateRuntimeConfigResponse> {
        let _state = self.enter("UpdateRuntimeConfig", "").await?;
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Reply<cri::StatusResponse> {
        let state = self.enter("Status", "").await?;
        let condition = |name: &str, up: bool, reason: &str, message: &str| cri::RuntimeCondition {
            r#type: name.into(),
            status: up,
            reason: if up { String::new() } else { reason.into() },
            message: if up { String::new() } else { message.into() },
        };
        ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, "", ""),
                    condition(
                        "NetworkReady",
                        !state.network_down,
                        "NetworkPluginNotReady",
                        "Network plugin returns error: cni plugin not initialized",
                    ),
                ],
            }),
            ..Default::default()
        })
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Reply<cri::RuntimeConfigResponse> {
        // As containerd 1.6 and 1.7 answer.
        Err(Status::unimplemented("unknown method RuntimeConfig"))
    }
}

fn sandbox_state(sandbox: &Sandbox) -> PodSandboxState {
    if sandbox.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

fn stats(id: &str, container: &Container) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        ..Default::default()
    }
}

/// The log file is there from the start on.
fn touch(log: &str) {
    let path = Path::new(log);
    if let Some(directory) = path.parent() {
        let _ = std::fs::create_dir_all(directory);
    }
    let _ = std::fs::OpenOptions::new().create(true).append(true).open(path);
}
