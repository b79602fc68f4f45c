//! `spec` of a Pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Container, ResourceList, Unknown, Volume, is_default};

/// v1 PodSpec. A field that is absent here lands in `unknown` and makes admission refuse the pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    #[serde(skip_serializing_if = "is_default")]
    pub volumes: Vec<Volume>,
    #[serde(skip_serializing_if = "is_default")]
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    /// Added while the pod runs, by `kubectl debug`; started once and never again.
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral_containers: Vec<Container>,
    #[serde(skip_serializing_if = "is_default")]
    pub restart_policy: RestartPolicy,
    /// Seconds; the server fills in 30.
    #[serde(skip_serializing_if = "is_default")]
    pub termination_grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub active_deadline_seconds: Option<i64>,
    /// `ClusterFirst`, `ClusterFirstWithHostNet`, `Default` or `None`.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_policy: String,
    #[serde(skip_serializing_if = "is_default")]
    pub dns_config: Option<PodDnsConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub service_account_name: String,
    /// Deprecated alias of `serviceAccountName`, always equal to it.
    #[serde(skip_serializing_if = "is_default")]
    pub service_account: String,
    #[serde(skip_serializing_if = "is_default")]
    pub automount_service_account_token: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub node_name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub host_network: bool,
    #[serde(rename = "hostPID", skip_serializing_if = "is_default")]
    pub host_pid: bool,
    #[serde(rename = "hostIPC", skip_serializing_if = "is_default")]
    pub host_ipc: bool,
    /// `false` asks for a user namespace, which this agent does not make.
    #[serde(skip_serializing_if = "is_default")]
    pub host_users: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub share_process_namespace: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub security_context: Option<PodSecurityContext>,
    #[serde(skip_serializing_if = "is_default")]
    pub image_pull_secrets: Vec<LocalReference>,
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: String,
    #[serde(skip_serializing_if = "is_default")]
    pub subdomain: String,
    #[serde(rename = "setHostnameAsFQDN", skip_serializing_if = "is_default")]
    pub set_hostname_as_fqdn: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub host_aliases: Vec<HostAlias>,
    /// v1 Affinity as it came; only required node affinity is read, at admission.
    #[serde(skip_serializing_if = "is_default")]
    pub affinity: Option<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub tolerations: Vec<Toleration>,
    #[serde(skip_serializing_if = "is_default")]
    pub priority: Option<i32>,
    #[serde(skip_serializing_if = "is_default")]
    pub priority_class_name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub preemption_policy: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub scheduler_name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub topology_spread_constraints: Vec<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub scheduling_gates: Vec<Value>,
    #[serde(skip_serializing_if = "is_default")]
    pub readiness_gates: Vec<ReadinessGate>,
    #[serde(skip_serializing_if = "is_default")]
    pub runtime_class_name: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub overhead: ResourceList,
    #[serde(skip_serializing_if = "is_default")]
    pub enable_service_links: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub os: Option<PodOs>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// When an ended container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// `{name: …}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalReference {
    pub name: String,
}

/// `spec.os`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodOs {
    pub name: String,
}

/// One extra block of `/etc/hosts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

/// A condition that somebody else must set before the pod is Ready.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessGate {
    pub condition_type: String,
}

/// v1 Toleration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    #[serde(skip_serializing_if = "is_default")]
    pub key: String,
    /// `Equal` (the default) or `Exists`.
    #[serde(skip_serializing_if = "is_default")]
    pub operator: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: String,
    /// Empty tolerates every effect.
    #[serde(skip_serializing_if = "is_default")]
    pub effect: String,
    #[serde(skip_serializing_if = "is_default")]
    pub toleration_seconds: Option<i64>,
}

/// v1 PodDNSConfig.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodDnsConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub searches: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub options: Vec<PodDnsOption>,
}

/// One resolver option, for example `ndots` with value `2`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodDnsOption {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub value: Option<String>,
}

/// v1 PodSecurityContext.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSecurityContext {
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_user: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_group: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_non_root: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub supplemental_groups: Vec<i64>,
    /// `Merge` (the default) or `Strict`.
    #[serde(skip_serializing_if = "is_default")]
    pub supplemental_groups_policy: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub fs_group: Option<i64>,
    /// `Always` (the default) or `OnRootMismatch`.
    #[serde(skip_serializing_if = "is_default")]
    pub fs_group_change_policy: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub sysctls: Vec<Sysctl>,
    #[serde(skip_serializing_if = "is_default")]
    pub seccomp_profile: Option<SecurityProfile>,
    #[serde(skip_serializing_if = "is_default")]
    pub app_armor_profile: Option<SecurityProfile>,
    #[serde(skip_serializing_if = "is_default")]
    pub se_linux_options: Option<SeLinuxOptions>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// One kernel parameter of the pod's namespaces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

/// A seccomp or AppArmor profile: type `RuntimeDefault`, `Unconfined` or `Localhost`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityProfile {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub localhost_profile: Option<String>,
}

/// v1 SELinuxOptions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeLinuxOptions {
    #[serde(skip_serializing_if = "is_default")]
    pub user: String,
    #[serde(skip_serializing_if = "is_default")]
    pub role: String,
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    #[serde(skip_serializing_if = "is_default")]
    pub level: String,
}
