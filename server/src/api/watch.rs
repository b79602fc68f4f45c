//! Watches: a filtered view of the store's change history.
use super::status::ApiStatus;
use serde_json::Value;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

/// One change as a watcher sees it; `object` of a bookmark has only kind and resourceVersion.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventType,
    pub object: Arc<Value>,
    pub resource_version: u64,
}

/// An open watch.
pub struct Watch {}

impl Watch {
    /// The next change; waits. `Err` (410 Expired) when the watcher fell too far behind: list again.
    pub async fn next(&mut self) -> Result<Event, ApiStatus> {
        std::future::pending().await
    }
}
