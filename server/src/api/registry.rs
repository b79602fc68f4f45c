//! The registry: every read and write of an object, for HTTP and controllers alike.
use super::kind::Kind;
use super::selector::Selectors;
use super::status::ApiStatus;
use super::watch::Watch;
use crate::auth::Actor;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subresource {
    Main,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds; `None` takes the pod's own.
    pub grace_period: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// All objects carry `apiVersion`, `kind`, `metadata.resourceVersion`. Reads come from memory and are cheap;
/// writes return when they are on disk.
pub struct Registry {}

impl Registry {
    pub fn open(database: &Path) -> Result<Arc<Self>, ApiStatus> {
        let _ = database;
        Ok(Arc::new(Self {}))
    }
    pub fn get(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _ = namespace;
        Err(ApiStatus::not_found(kind, name))
    }
    /// Objects in key order and the resourceVersion to watch from. `namespace` `None` = all.
    pub fn list(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        selectors: &Selectors,
    ) -> (Vec<Arc<Value>>, u64) {
        let _ = (kind, namespace, selectors);
        (Vec::new(), 0)
    }
    /// Defaults, admits, validates, stores. `metadata.namespace` is filled from `namespace`.
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        actor: &Actor,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _ = (namespace, object, actor);
        Err(ApiStatus::not_found(kind, ""))
    }
    /// Replaces; 409 when `metadata.resourceVersion` is set and old. `Subresource::Status` takes only `status`.
    pub async fn update(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        object: Value,
        sub: Subresource,
        actor: &Actor,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _ = (namespace, object, sub, actor);
        Err(ApiStatus::not_found(kind, name))
    }
    pub async fn patch(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        patch_type: PatchType,
        patch: Value,
        sub: Subresource,
        actor: &Actor,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _ = (namespace, patch_type, patch, sub, actor);
        Err(ApiStatus::not_found(kind, name))
    }
    /// Read, change, write, again on conflict. `change` returns false to leave the object as it is. For controllers.
    pub async fn modify(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        sub: Subresource,
        actor: &Actor,
        change: impl FnMut(&mut Value) -> bool + Send,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _ = (namespace, sub, actor, change);
        Err(ApiStatus::not_found(kind, name))
    }
    /// Removes, or starts a graceful or finalised deletion. Ok(None) = gone, Ok(Some) = still there with deletionTimestamp.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        options: DeleteOptions,
        actor: &Actor,
    ) -> Result<Option<Arc<Value>>, ApiStatus> {
        let _ = (namespace, options, actor);
        Err(ApiStatus::not_found(kind, name))
    }
    /// Sets `spec.nodeName` of an unassigned pod (the binding subresource); 409 when it already has one.
    pub async fn bind(
        &self,
        namespace: &str,
        pod: &str,
        node: &str,
        actor: &Actor,
    ) -> Result<(), ApiStatus> {
        let _ = (namespace, node, actor);
        Err(ApiStatus::not_found(&super::kind::POD, pod))
    }
    /// Changes after `from`; 410 when that is too old. `from` comes from `list`.
    pub fn watch(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        selectors: Selectors,
        from: u64,
    ) -> Result<Watch, ApiStatus> {
        let _ = (kind, namespace, selectors, from);
        Ok(Watch {})
    }
}
