//! Containers of a pod spec.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Lifecycle, Probe, ResourceList, SeLinuxOptions, SecurityProfile, Unknown, is_default};
use crate::api::quantity::Quantity;

/// Field of ephemeral containers only.
pub const TARGET: &str = "targetContainerName";

/// v1 Container: regular, init or ephemeral.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; the server fills it in.
    #[serde(skip_serializing_if = "is_default")]
    pub image_pull_policy: String,
    #[serde(skip_serializing_if = "is_default")]
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<ContainerPort>,
    #[serde(skip_serializing_if = "is_default")]
    pub env_from: Vec<EnvFromSource>,
    #[serde(skip_serializing_if = "is_default")]
    pub env: Vec<EnvVar>,
    #[serde(skip_serializing_if = "is_default")]
    pub resources: ResourceRequirements,
    /// What an in-place resize would do; the server adds it on its own.
    #[serde(skip_serializing_if = "is_default")]
    pub resize_policy: Vec<Value>,
    /// `Always` makes an init container a sidecar; the other values override the pod's policy.
    #[serde(skip_serializing_if = "is_default")]
    pub restart_policy: Option<super::RestartPolicy>,
    #[serde(skip_serializing_if = "is_default")]
    pub volume_mounts: Vec<VolumeMount>,
    #[serde(skip_serializing_if = "is_default")]
    pub liveness_probe: Option<Box<Probe>>,
    #[serde(skip_serializing_if = "is_default")]
    pub readiness_probe: Option<Box<Probe>>,
    #[serde(skip_serializing_if = "is_default")]
    pub startup_probe: Option<Box<Probe>>,
    #[serde(skip_serializing_if = "is_default")]
    pub lifecycle: Option<Box<Lifecycle>>,
    /// In the container; `/dev/termination-log` when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub termination_message_path: String,
    /// `File` (the default) or `FallbackToLogsOnError`.
    #[serde(skip_serializing_if = "is_default")]
    pub termination_message_policy: String,
    #[serde(skip_serializing_if = "is_default")]
    pub security_context: Option<Box<SecurityContext>>,
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub stdin_once: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub tty: bool,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Container {
    /// The container whose processes an ephemeral container is to see. The one field that only those have, so it stays among
    /// the unknown ones.
    pub fn target(&self) -> Option<&str> {
        self.unknown.get(TARGET)?.as_str().filter(|name| !name.is_empty())
    }

    /// Whether this init container keeps running beside the regular ones.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(super::RestartPolicy::Always)
    }
}

/// v1 ContainerPort.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
    #[serde(rename = "hostIP", skip_serializing_if = "is_default")]
    pub host_ip: String,
}

/// v1 ResourceRequirements.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    #[serde(skip_serializing_if = "is_default")]
    pub limits: ResourceList,
    #[serde(skip_serializing_if = "is_default")]
    pub requests: ResourceList,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// v1 EnvVar.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVar {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value_from: Option<EnvVarSource>,
}

/// Where a variable's value comes from; exactly one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVarSource {
    #[serde(skip_serializing_if = "is_default")]
    pub field_ref: Option<FieldSelector>,
    #[serde(skip_serializing_if = "is_default")]
    pub resource_field_ref: Option<ResourceFieldSelector>,
    #[serde(skip_serializing_if = "is_default")]
    pub config_map_key_ref: Option<KeySelector>,
    #[serde(skip_serializing_if = "is_default")]
    pub secret_key_ref: Option<KeySelector>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A field of the pod itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FieldSelector {
    #[serde(skip_serializing_if = "is_default")]
    pub api_version: String,
    pub field_path: String,
}

/// A resource amount of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceFieldSelector {
    #[serde(skip_serializing_if = "is_default")]
    pub container_name: String,
    /// `limits.cpu`, `requests.memory`, …
    pub resource: String,
    #[serde(skip_serializing_if = "is_default")]
    pub divisor: Option<Quantity>,
}

/// One key of a ConfigMap or Secret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeySelector {
    pub name: String,
    pub key: String,
    #[serde(skip_serializing_if = "is_default")]
    pub optional: Option<bool>,
}

/// All keys of a ConfigMap or Secret as variables.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvFromSource {
    #[serde(skip_serializing_if = "is_default")]
    pub prefix: String,
    #[serde(skip_serializing_if = "is_default")]
    pub config_map_ref: Option<OptionalReference>,
    #[serde(skip_serializing_if = "is_default")]
    pub secret_ref: Option<OptionalReference>,
}

/// An object by name that may be allowed to be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptionalReference {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub optional: Option<bool>,
}

/// v1 VolumeMount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeMount {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    pub mount_path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub sub_path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub sub_path_expr: String,
    /// `None`, `HostToContainer` or `Bidirectional`.
    #[serde(skip_serializing_if = "is_default")]
    pub mount_propagation: Option<String>,
    /// `Disabled`, `IfPossible` or `Enabled`.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive_read_only: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// v1 SecurityContext.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    #[serde(skip_serializing_if = "is_default")]
    pub capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_user: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_group: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_non_root: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub read_only_root_filesystem: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub allow_privilege_escalation: Option<bool>,
    /// `Default` or `Unmasked`.
    #[serde(skip_serializing_if = "is_default")]
    pub proc_mount: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp_profile: Option<SecurityProfile>,
    #[serde(skip_serializing_if = "is_default")]
    pub app_armor_profile: Option<SecurityProfile>,
    #[serde(skip_serializing_if = "is_default")]
    pub se_linux_options: Option<SeLinuxOptions>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Linux capabilities by name without `CAP_`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    #[serde(skip_serializing_if = "is_default")]
    pub add: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub drop: Vec<String>,
}
