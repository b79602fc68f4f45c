//! `status` of a Pod, as this agent writes it. Which fields are always present follows the recordings of a kubelet.

use serde::{Deserialize, Serialize};

use super::{ResourceList, is_default};

/// v1 PodStatus, the fields a node owns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `metadata.generation` of the spec this was computed from.
    #[serde(skip_serializing_if = "is_default")]
    pub observed_generation: Option<i64>,
    /// `Pending`, `Running`, `Succeeded`, `Failed`; empty when nobody set it.
    #[serde(skip_serializing_if = "is_default")]
    pub phase: String,
    #[serde(skip_serializing_if = "is_default")]
    pub conditions: Vec<PodCondition>,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    #[serde(rename = "hostIP", skip_serializing_if = "is_default")]
    pub host_ip: String,
    #[serde(rename = "hostIPs", skip_serializing_if = "is_default")]
    pub host_ips: Vec<Ip>,
    #[serde(rename = "podIP", skip_serializing_if = "is_default")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", skip_serializing_if = "is_default")]
    pub pod_ips: Vec<Ip>,
    #[serde(skip_serializing_if = "is_default")]
    pub start_time: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(skip_serializing_if = "is_default")]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
    /// `Guaranteed`, `Burstable` or `BestEffort`.
    #[serde(skip_serializing_if = "is_default")]
    pub qos_class: String,
    #[serde(skip_serializing_if = "is_default")]
    pub allocated_resources: ResourceList,
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Option<ResourceStatus>,
}

impl PodStatus {
    /// Whether the phase is one that never changes again.
    pub fn is_terminal(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// The condition of a type.
    pub fn condition(&self, kind: &str) -> Option<&PodCondition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// Status of a container of any kind.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        let all = self.init_container_statuses.iter().chain(&self.container_statuses);
        all.chain(&self.ephemeral_container_statuses).find(|c| c.name == name)
    }
}

/// One address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ip {
    pub ip: String,
}

/// v1 PodCondition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCondition {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub observed_generation: Option<i64>,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Always null.
    pub last_probe_time: Option<String>,
    pub last_transition_time: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
}

/// v1 ContainerStatus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub state: ContainerState,
    pub last_state: ContainerState,
    pub ready: bool,
    pub restart_count: i32,
    pub image: String,
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// `containerd://<64 hex>`.
    #[serde(rename = "containerID", skip_serializing_if = "is_default")]
    pub container_id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub started: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub allocated_resources: ResourceList,
    #[serde(skip_serializing_if = "is_default")]
    pub resources: Option<ResourceStatus>,
    #[serde(skip_serializing_if = "is_default")]
    pub volume_mounts: Vec<VolumeMountStatus>,
    #[serde(skip_serializing_if = "is_default")]
    pub user: Option<ContainerUser>,
}

/// v1 ContainerState: at most one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    #[serde(skip_serializing_if = "is_default")]
    pub waiting: Option<Waiting>,
    #[serde(skip_serializing_if = "is_default")]
    pub running: Option<Running>,
    #[serde(skip_serializing_if = "is_default")]
    pub terminated: Option<Terminated>,
}

/// Why a container does not run yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
}

/// Since when a container runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Running {
    pub started_at: Option<String>,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub signal: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    #[serde(rename = "containerID", skip_serializing_if = "is_default")]
    pub container_id: String,
}

/// Limits and requests in effect.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceStatus {
    #[serde(skip_serializing_if = "is_default")]
    pub limits: ResourceList,
    #[serde(skip_serializing_if = "is_default")]
    pub requests: ResourceList,
}

/// v1 VolumeMountStatus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeMountStatus {
    pub name: String,
    pub mount_path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Only with `read_only`: `Disabled` or `Enabled`.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive_read_only: Option<String>,
}

/// v1 ContainerUser.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerUser {
    #[serde(skip_serializing_if = "is_default")]
    pub linux: Option<LinuxUser>,
}

/// User and groups of a container's first process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxUser {
    pub uid: i64,
    pub gid: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub supplemental_groups: Vec<i64>,
}
