//! The registry: every read and write of an object, for HTTP and controllers alike.
//!
//! A write is prepared from the newest version in memory (defaults, admission, validation) and handed to the
//! store with the version it was made from. If another write came first, it is prepared again, unless the
//! caller named a version: then it is a conflict.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::apply::{self, Applied};
use super::kind::{self, KINDS, Kind};
pub use super::options::{DeleteOptions, Propagation, Subresource};
pub use super::patch::PatchType;
use super::selector::Selectors;
use super::status::ApiStatus;
use super::watch::Watch;
use super::{deletion, meta, patch, prepare, seeds, service};
use crate::auth::Actor;
use crate::store::{Key, Refused, Store, Stored, Write};

/// Rounds of preparing a write anew before giving up with a conflict.
const ROUNDS: usize = 20;

/// All objects carry `apiVersion`, `kind`, `metadata.resourceVersion`. Reads come from memory and are cheap;
/// writes return when they are on disk.
pub struct Registry {
    store: Store,
    /// Held while a service's addresses are chosen, so that no two get the same.
    services: tokio::sync::Mutex<()>,
}

impl Registry {
    /// Opens the database; a new one gets the four namespaces of K3s with their service accounts.
    ///
    /// # Errors
    /// 500 naming the database when it cannot be opened, for example because another server runs on it.
    pub fn open(database: &Path) -> Result<Arc<Self>, ApiStatus> {
        let mut storages: Vec<&'static str> = KINDS.iter().map(|k| k.storage).collect();
        storages.sort_unstable();
        storages.dedup();
        let store = Store::open(database, &storages, seeds::seeds()).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            ApiStatus::internal(format!("{error}{cause}"))
        })?;
        Ok(Arc::new(Self { store, services: tokio::sync::Mutex::new(()) }))
    }

    /// The version of the last write.
    pub fn version(&self) -> u64 {
        self.store.version()
    }

    /// One object.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, kind: &'static Kind, namespace: Option<&str>, name: &str) -> Result<Arc<Value>, ApiStatus> {
        self.stored(kind, namespace, name).map(|s| s.value)
    }

    fn stored(&self, kind: &'static Kind, namespace: Option<&str>, name: &str) -> Result<Stored, ApiStatus> {
        self.store.get(kind.storage, namespace.unwrap_or_default(), name).ok_or_else(|| ApiStatus::not_found(kind, name))
    }

    /// Objects in key order and the resourceVersion to watch from. `namespace` `None` = all.
    pub fn list(&self, kind: &'static Kind, namespace: Option<&str>, selectors: &Selectors) -> (Vec<Arc<Value>>, u64) {
        let listing = self.store.list(kind.storage, namespace, |object| selectors.matches(object));
        (listing.objects.into_iter().map(|s| s.value).collect(), listing.version)
    }

    /// Changes after `from`, which comes from `list`; 0 begins with the present objects as `Added` and a `Bookmark`.
    ///
    /// # Errors
    /// 410 when `from` is too old.
    pub fn watch(&self, kind: &'static Kind, namespace: Option<&str>, selectors: Selectors, from: u64) -> Result<Watch, ApiStatus> {
        Watch::open(&self.store, kind, namespace, selectors, from)
    }

    /// Defaults, admits, validates, stores. `metadata.namespace` is filled from `namespace`.
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        actor: &Actor,
    ) -> Result<Arc<Value>, ApiStatus> {
        self.create_with(kind, namespace, object, actor, false).await
    }

    /// As `create`; with `dry_run` everything but the storing.
    pub async fn create_with(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        actor: &Actor,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiStatus> {
        self.create_managed(kind, namespace, object, actor, dry_run, None).await
    }

    async fn create_managed(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        actor: &Actor,
        dry_run: bool,
        managed: Option<Value>,
    ) -> Result<Arc<Value>, ApiStatus> {
        let generated = meta::name(&object).is_empty() && !meta::get(&object, "generateName").is_empty();
        let _services = if kind == &kind::SERVICE { Some(self.services.lock().await) } else { None };
        for _ in 0..ROUNDS {
            let mut ready = prepare::create(self, kind, namespace, object.clone(), actor)?;
            if let Some(managed) = &managed {
                meta::metadata_mut(&mut ready).insert("managedFields".to_owned(), managed.clone());
            }
            if kind == &kind::SERVICE {
                service::allocate(&self.list(kind, None, &Selectors::default()).0, &mut ready, None)?;
            }
            let name = meta::name(&ready).to_owned();
            let key = key(kind, namespace, &name);
            if dry_run {
                if self.store.get(kind.storage, &key.namespace, &name).is_some() {
                    return Err(ApiStatus::already_exists(kind, &name));
                }
                return Ok(Arc::new(ready));
            }
            match self.store.write(Write::Create { key, value: ready }).await {
                Ok(stored) => {
                    if kind == &kind::NAMESPACE {
                        self.default_account(&name).await;
                    }
                    return Ok(stored.value);
                }
                Err(Refused::Exists) if generated => {}
                Err(Refused::Exists) => return Err(ApiStatus::already_exists(kind, &name)),
                Err(other) => return Err(ApiStatus::internal(other)),
            }
        }
        Err(ApiStatus::already_exists(kind, meta::get(&object, "generateName")))
    }

    /// Each namespace has the service account its pods run with by default.
    async fn default_account(&self, namespace: &str) {
        let actor = Actor::system("serviceaccount-controller");
        let account = json!({"metadata": {"name": "default"}});
        let made = self.create(&kind::SERVICE_ACCOUNT, Some(namespace), account, &actor);
        if let Err(error) = Box::pin(made).await {
            tracing::debug!(namespace, error = %error, "default service account not created");
        }
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
        self.update_with(kind, namespace, name, object, sub, actor, false).await
    }

    /// As `update`; with `dry_run` everything but the storing.
    #[allow(clippy::too_many_arguments)] // the request's own parts
    pub async fn update_with(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        object: Value,
        sub: Subresource,
        actor: &Actor,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiStatus> {
        let make = |_: &Value| Ok(Some(object.clone()));
        self.change(kind, namespace, name, sub, actor, dry_run, make).await
    }

    /// Patches; a version in the patch is a condition.
    #[allow(clippy::too_many_arguments)] // the request's own parts
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
        self.patch_with(kind, namespace, name, patch_type, patch, sub, actor, false).await
    }

    /// As `patch`; with `dry_run` everything but the storing.
    #[allow(clippy::too_many_arguments)] // the request's own parts
    pub async fn patch_with(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        patch_type: PatchType,
        patch: Value,
        sub: Subresource,
        actor: &Actor,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiStatus> {
        let make = |current: &Value| {
            let mut next = current.clone();
            // Left in, it would make a condition of every patch. A JSON patch may test it.
            if patch_type != PatchType::Json {
                meta::metadata_mut(&mut next).remove("resourceVersion");
            }
            patch::apply_to(kind, &mut next, patch_type, &patch)?;
            if patch_type == PatchType::Json && next["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"] {
                meta::metadata_mut(&mut next).remove("resourceVersion");
            }
            Ok(Some(next))
        };
        self.change(kind, namespace, name, sub, actor, dry_run, make).await
    }

    /// Read, change, write, again on conflict. `change` returns false to leave the object as it is. For controllers.
    pub async fn modify(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        sub: Subresource,
        actor: &Actor,
        mut change: impl FnMut(&mut Value) -> bool + Send,
    ) -> Result<Arc<Value>, ApiStatus> {
        let make = |current: &Value| {
            let mut next = current.clone();
            if !change(&mut next) {
                return Ok(None);
            }
            meta::metadata_mut(&mut next).remove("resourceVersion");
            Ok(Some(next))
        };
        self.change(kind, namespace, name, sub, actor, false, make).await
    }

    /// The one way of changing an object that exists. `make` gives the wanted state, or `None` for "as it is".
    #[allow(clippy::too_many_arguments)] // the request's own parts
    pub(super) async fn change(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        sub: Subresource,
        actor: &Actor,
        dry_run: bool,
        make: impl FnMut(&Value) -> Result<Option<Value>, ApiStatus> + Send,
    ) -> Result<Arc<Value>, ApiStatus> {
        self.change_with(kind, namespace, name, sub, actor, dry_run, false, make).await
    }

    /// As `change`; `managed` when `make` sets `managedFields` itself.
    #[allow(clippy::too_many_arguments)] // the request's own parts
    async fn change_with(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        sub: Subresource,
        actor: &Actor,
        dry_run: bool,
        managed: bool,
        mut make: impl FnMut(&Value) -> Result<Option<Value>, ApiStatus> + Send,
    ) -> Result<Arc<Value>, ApiStatus> {
        let _services = if kind == &kind::SERVICE { Some(self.services.lock().await) } else { None };
        for _ in 0..ROUNDS {
            let current = self.stored(kind, namespace, name)?;
            let Some(mut next) = make(&current.value)? else {
                return Ok(current.value);
            };
            if !managed {
                prepare::keep_managed(&current.value, &mut next);
            }
            let named = meta::get(&next, "resourceVersion");
            let conditional = !named.is_empty() && named != "0";
            if conditional && named != meta::get(&current.value, "resourceVersion") {
                return Err(ApiStatus::conflict(kind, name));
            }
            let Some(mut next) = prepare::update(kind, namespace, name, &current.value, next, sub, actor)? else {
                return Ok(current.value);
            };
            if kind == &kind::SERVICE {
                let all = self.list(kind, None, &Selectors::default()).0;
                service::allocate(&all, &mut next, Some(&current.value))?;
            }
            if dry_run {
                return Ok(Arc::new(next));
            }
            let key = key(kind, namespace, name);
            let write = if deletion::is_finished(kind, &next) {
                Write::Delete { key, expected: current.version, value: Some(next) }
            } else {
                Write::Replace { key, expected: current.version, value: next }
            };
            match self.store.write(write).await {
                Ok(stored) => return Ok(stored.value),
                Err(Refused::Changed) if !conditional => {}
                Err(refused) => return Err(refusal(kind, name, refused)),
            }
        }
        Err(ApiStatus::conflict(kind, name))
    }

    /// Server-side apply: creates the object, or merges one manager's configuration into it.
    /// Says whether it was created.
    #[allow(clippy::too_many_arguments)] // the request's own parts
    pub(super) async fn apply(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        applied: &Applied<'_>,
        sub: Subresource,
        actor: &Actor,
        dry_run: bool,
    ) -> Result<(Arc<Value>, bool), ApiStatus> {
        if self.get(kind, namespace, name).is_err() && sub == Subresource::Main {
            let object = apply::merge(kind, name, None, applied)?;
            let managed = Some(object["metadata"]["managedFields"].clone());
            let made = self.create_managed(kind, namespace, object, actor, dry_run, managed).await;
            // Created by someone else in between: then it is a merge.
            if !made.as_ref().is_err_and(ApiStatus::is_already_exists) {
                return made.map(|object| (object, true));
            }
        }
        let make = |current: &Value| {
            let mut next = apply::merge(kind, name, Some(current), applied)?;
            let version = applied.config["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            meta::metadata_mut(&mut next).insert("resourceVersion".to_owned(), json!(version));
            apply::keep_time(current, &mut next);
            Ok(Some(next))
        };
        let changed = self.change_with(kind, namespace, name, sub, actor, dry_run, true, make);
        changed.await.map(|object| (object, false))
    }

    /// Removes, or starts a graceful or finalised deletion. `Ok(None)` = gone, `Ok(Some)` = still there with
    /// `deletionTimestamp`.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        options: DeleteOptions,
        actor: &Actor,
    ) -> Result<Option<Arc<Value>>, ApiStatus> {
        match self.delete_with(kind, namespace, name, &options, actor).await? {
            (_, true) => Ok(None),
            (object, false) => Ok(Some(object)),
        }
    }

    /// As `delete`, with the object's last state and whether it is gone.
    pub(super) async fn delete_with(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
        actor: &Actor,
    ) -> Result<(Arc<Value>, bool), ApiStatus> {
        for _ in 0..ROUNDS {
            let current = self.stored(kind, namespace, name)?;
            let step = deletion::decide(kind, name, &current.value, options, actor)?;
            let key = key(kind, namespace, name);
            let (write, gone) = match step {
                deletion::Deletion::Remove => {
                    if options.dry_run {
                        return Ok((current.value, true));
                    }
                    (Write::Delete { key, expected: current.version, value: None }, true)
                }
                deletion::Deletion::Mark(next) => {
                    if options.dry_run {
                        return Ok((Arc::new(next), false));
                    }
                    (Write::Replace { key, expected: current.version, value: next }, false)
                }
                deletion::Deletion::AlreadyMarked => return Ok((current.value, false)),
            };
            match self.store.write(write).await {
                Ok(stored) => return Ok((stored.value, gone)),
                Err(Refused::Changed) if options.resource_version.is_none() => {}
                Err(refused) => return Err(refusal(kind, name, refused)),
            }
        }
        Err(ApiStatus::conflict(kind, name))
    }

    /// Sets `spec.nodeName` of an unassigned pod (the binding subresource).
    ///
    /// # Errors
    /// 409 when the pod has a node or is being deleted.
    pub async fn bind(&self, namespace: &str, pod: &str, node: &str, actor: &Actor) -> Result<(), ApiStatus> {
        let kind = &kind::POD;
        for _ in 0..ROUNDS {
            let current = self.stored(kind, Some(namespace), pod)?;
            let next = prepare::bind(kind, pod, &current.value, node)?;
            let write = Write::Replace { key: key(kind, Some(namespace), pod), expected: current.version, value: next };
            match self.store.write(write).await {
                Ok(_) => {
                    tracing::debug!(namespace, pod, node, by = actor.user, "pod bound");
                    return Ok(());
                }
                Err(Refused::Changed) => {}
                Err(refused) => return Err(refusal(kind, pod, refused)),
            }
        }
        Err(ApiStatus::conflict(kind, pod))
    }
}

fn refusal(kind: &Kind, name: &str, refused: Refused) -> ApiStatus {
    match refused {
        Refused::Exists => ApiStatus::already_exists(kind, name),
        Refused::Missing => ApiStatus::not_found(kind, name),
        Refused::Changed => ApiStatus::conflict(kind, name),
        Refused::Disk | Refused::Closed => ApiStatus::internal(refused),
    }
}

/// Where an object of a kind is stored.
pub(super) fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> Key {
    Key { storage: kind.storage, namespace: namespace.unwrap_or_default().to_owned(), name: name.to_owned() }
}
