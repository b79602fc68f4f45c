//! Kubernetes events: best effort, counted instead of repeated, never in the way of a pod.

use crate::api::pod::Pod;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    Normal,
    Warning,
}

/// Handle to the event writer; a full queue drops the event and counts it.
#[derive(Clone)]
pub struct Recorder {}

impl Recorder {
    /// An event about a pod; `field_path` like `spec.containers{name}`.
    pub fn pod_event(&self, _pod: &Pod, _field_path: Option<&str>, _kind: Type, _reason: &str, _message: &str) {}

    /// An event about this node.
    pub fn node_event(&self, _kind: Type, _reason: &str, _message: &str) {}
}
