//! Volumes of a pod spec.

use serde::{Deserialize, Serialize};

use super::{FieldSelector, ResourceFieldSelector, Unknown, is_default};
use crate::api::quantity::Quantity;

/// v1 Volume. A source this agent lacks (persistentVolumeClaim, csi, …) lands in `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub config_map: Option<ConfigMapVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub secret: Option<SecretVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub empty_dir: Option<EmptyDirVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub host_path: Option<HostPathVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub projected: Option<ProjectedVolume>,
    #[serde(rename = "downwardAPI", skip_serializing_if = "is_default")]
    pub downward_api: Option<DownwardApiVolume>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// One key written to one relative path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Option<u32>,
}

/// v1 ConfigMapVolumeSource; also a source of a projected volume, then without `default_mode`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMapVolume {
    pub name: String,
    /// All keys when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    #[serde(skip_serializing_if = "is_default")]
    pub default_mode: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    pub optional: Option<bool>,
}

/// v1 SecretVolumeSource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretVolume {
    pub secret_name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    #[serde(skip_serializing_if = "is_default")]
    pub default_mode: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    pub optional: Option<bool>,
}

/// v1 SecretProjection: as a secret volume, but with `name`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretProjection {
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub items: Vec<KeyToPath>,
    #[serde(skip_serializing_if = "is_default")]
    pub optional: Option<bool>,
}

/// v1 EmptyDirVolumeSource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EmptyDirVolume {
    /// Empty: the node's disk. `Memory`: tmpfs. Others are refused.
    #[serde(skip_serializing_if = "is_default")]
    pub medium: String,
    #[serde(skip_serializing_if = "is_default")]
    pub size_limit: Option<Quantity>,
}

/// v1 HostPathVolumeSource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPathVolume {
    pub path: String,
    /// Empty: no check.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: Option<String>,
}

/// v1 ProjectedVolumeSource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProjectedVolume {
    pub sources: Vec<VolumeProjection>,
    #[serde(skip_serializing_if = "is_default")]
    pub default_mode: Option<u32>,
}

/// One source of a projected volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeProjection {
    #[serde(skip_serializing_if = "is_default")]
    pub config_map: Option<ConfigMapVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub secret: Option<SecretProjection>,
    #[serde(rename = "downwardAPI", skip_serializing_if = "is_default")]
    pub downward_api: Option<DownwardApiVolume>,
    #[serde(skip_serializing_if = "is_default")]
    pub service_account_token: Option<ServiceAccountTokenProjection>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// v1 ServiceAccountTokenProjection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccountTokenProjection {
    #[serde(skip_serializing_if = "is_default")]
    pub audience: String,
    #[serde(skip_serializing_if = "is_default")]
    pub expiration_seconds: Option<i64>,
    pub path: String,
}

/// v1 DownwardAPIVolumeSource; also a source of a projected volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DownwardApiVolume {
    #[serde(skip_serializing_if = "is_default")]
    pub items: Vec<DownwardApiFile>,
    #[serde(skip_serializing_if = "is_default")]
    pub default_mode: Option<u32>,
}

/// One file of a downward API volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DownwardApiFile {
    pub path: String,
    #[serde(skip_serializing_if = "is_default")]
    pub field_ref: Option<FieldSelector>,
    #[serde(skip_serializing_if = "is_default")]
    pub resource_field_ref: Option<ResourceFieldSelector>,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Option<u32>,
}
