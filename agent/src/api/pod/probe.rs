//! Probes and lifecycle hooks.

use serde::{Deserialize, Serialize};

use super::{Unknown, is_default};

/// A number or a name: `80` or `"http"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        IntOrString::Int(0)
    }
}

/// v1 Probe; the server fills in the defaults. Exactly one handler is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    #[serde(skip_serializing_if = "is_default")]
    pub exec: Option<ExecAction>,
    #[serde(skip_serializing_if = "is_default")]
    pub http_get: Option<HttpGetAction>,
    #[serde(skip_serializing_if = "is_default")]
    pub tcp_socket: Option<TcpSocketAction>,
    #[serde(skip_serializing_if = "is_default")]
    pub grpc: Option<GrpcAction>,
    /// All times in seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub initial_delay_seconds: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout_seconds: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub period_seconds: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub success_threshold: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub failure_threshold: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub termination_grace_period_seconds: Option<i64>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A command run in the container, without a shell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecAction {
    pub command: Vec<String>,
}

/// A GET request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpGetAction {
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    pub port: IntOrString,
    /// The pod's address when empty.
    #[serde(skip_serializing_if = "is_default")]
    pub host: String,
    /// `HTTP` or `HTTPS`.
    #[serde(skip_serializing_if = "is_default")]
    pub scheme: String,
    #[serde(skip_serializing_if = "is_default")]
    pub http_headers: Vec<HttpHeader>,
}

/// One header of an [`HttpGetAction`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
}

/// A connection that only has to be accepted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpSocketAction {
    pub port: IntOrString,
    #[serde(skip_serializing_if = "is_default")]
    pub host: String,
}

/// grpc.health.v1 Check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcAction {
    pub port: u16,
    #[serde(skip_serializing_if = "is_default")]
    pub service: Option<String>,
}

/// A plain wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SleepAction {
    pub seconds: i64,
}

/// v1 Lifecycle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    #[serde(skip_serializing_if = "is_default")]
    pub post_start: Option<LifecycleHandler>,
    #[serde(skip_serializing_if = "is_default")]
    pub pre_stop: Option<LifecycleHandler>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// v1 LifecycleHandler; exactly one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LifecycleHandler {
    #[serde(skip_serializing_if = "is_default")]
    pub exec: Option<ExecAction>,
    #[serde(skip_serializing_if = "is_default")]
    pub http_get: Option<HttpGetAction>,
    /// Accepted by the API and always a failure: the kubelet never implemented it.
    #[serde(skip_serializing_if = "is_default")]
    pub tcp_socket: Option<TcpSocketAction>,
    #[serde(skip_serializing_if = "is_default")]
    pub sleep: Option<SleepAction>,
    #[serde(flatten)]
    pub unknown: Unknown,
}
