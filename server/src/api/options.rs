//! How a write or a deletion is meant.

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subresource {
    /// Everything but `status` (where the kind has a status subresource).
    Main,
    /// `status`, and of metadata what the kind's status endpoint lets through.
    Status,
}

/// What happens to the objects that name the deleted one as owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds; `None` takes the pod's own.
    pub grace_period: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// At once, whatever the pod's grace period.
    pub fn now() -> Self {
        Self { grace_period: Some(0), ..Self::default() }
    }
}
