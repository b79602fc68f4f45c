//! Garbage collection: dependents of owners that are gone, finalizers of owners that wait for their dependents,
//! the contents of namespaces that end, and old events.
//!
//! An object is deleted when it names owners and none of them exists. An owner is looked up at the moment of the
//! decision, after its dependents were read: a dependent never exists before its owner does.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Context, Controller};
use crate::api::kind::{self, KINDS};
use crate::api::{ApiStatus, DeleteOptions, Kind, Propagation, Selectors, Subresource, meta};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Events live an hour, as in every Kubernetes cluster.
const EVENT_LIFE: time::Duration = time::Duration::hours(1);
const EVENT_LOOK: Duration = Duration::from_secs(60);

/// Owner-reference garbage collection, namespace deletion, event expiry.
pub struct Garbage {
    pub context: Context,
}

/// One object that names owners.
struct Dependent {
    kind: &'static Kind,
    object: Arc<Value>,
}

/// What the existence of its owners means for an object.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// No owner exists any more.
    Delete,
    /// Some do not: the references with these UIDs go.
    Forget(Vec<String>),
    /// All owners that exist wait for this object to go first.
    DeleteForWaiting,
}

/// How an owner reference stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Exists,
    /// Being deleted in the foreground, and this reference blocks it.
    Waits,
    /// Being deleted, and its dependents are to be spared.
    Spares,
    Gone,
}

fn judge(owners: &[(String, Owner)]) -> Verdict {
    let gone = |o: &Owner| *o == Owner::Gone;
    if owners.is_empty() {
        Verdict::Keep
    } else if owners.iter().all(|(_, o)| gone(o)) {
        Verdict::Delete
    } else if owners.iter().any(|(_, o)| matches!(o, Owner::Exists | Owner::Spares)) {
        let forgotten: Vec<String> = owners.iter().filter(|(_, o)| gone(o)).map(|(uid, _)| uid.clone()).collect();
        if forgotten.is_empty() { Verdict::Keep } else { Verdict::Forget(forgotten) }
    } else {
        Verdict::DeleteForWaiting
    }
}

fn references(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

fn holds(object: &Value, finalizer: &str) -> bool {
    meta::is_deleting(object) && meta::finalizers(object).any(|f| f == finalizer)
}

fn place<'a>(kind: &Kind, object: &'a Value) -> Option<&'a str> {
    kind.namespaced.then(|| meta::namespace(object))
}

impl Garbage {
    fn owner(&self, dependent: &Dependent, reference: &Value) -> Owner {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        // A kind this server does not keep cannot be judged.
        let Some(kind) = kind::by_object(text("apiVersion"), text("kind")) else {
            return Owner::Exists;
        };
        let namespace = kind.namespaced.then(|| meta::namespace(&dependent.object));
        match self.context.registry.get(kind, namespace, text("name")) {
            Ok(owner) if meta::uid(&owner) == text("uid") => {
                if holds(&owner, ORPHAN) {
                    Owner::Spares
                } else if holds(&owner, FOREGROUND) && reference["blockOwnerDeletion"] == true {
                    Owner::Waits
                } else {
                    Owner::Exists
                }
            }
            _ => Owner::Gone,
        }
    }

    async fn collect(&self, dependent: &Dependent) -> Result<(), ApiStatus> {
        let (kind, object) = (dependent.kind, &dependent.object);
        let owners: Vec<(String, Owner)> =
            references(object).map(|r| (r["uid"].as_str().unwrap_or_default().to_owned(), self.owner(dependent, r))).collect();
        match judge(&owners) {
            Verdict::Keep => Ok(()),
            Verdict::Delete => self.delete(kind, object, Propagation::Background).await,
            Verdict::DeleteForWaiting => self.delete(kind, object, Propagation::Foreground).await,
            Verdict::Forget(uids) => {
                tracing::debug!(kind = kind.kind, name = meta::name(object), "owner references removed");
                self.forget(kind, object, &uids).await
            }
        }
    }

    async fn delete(&self, kind: &'static Kind, object: &Value, propagation: Propagation) -> Result<(), ApiStatus> {
        if meta::is_deleting(object) {
            return Ok(());
        }
        let options = DeleteOptions {
            uid: Some(meta::uid(object).to_owned()),
            // Pods have no dependents, and waiting for their kubelet is what foreground means for them.
            propagation: (kind != &kind::POD).then_some(propagation),
            ..DeleteOptions::default()
        };
        tracing::debug!(kind = kind.kind, name = meta::name(object), "garbage collected");
        let registry = &self.context.registry;
        gone_is_fine(registry.delete(kind, place(kind, object), meta::name(object), options, &self.context.actor).await)
    }

    async fn forget(&self, kind: &'static Kind, object: &Value, uids: &[String]) -> Result<(), ApiStatus> {
        let registry = &self.context.registry;
        let (name, actor) = (meta::name(object), &self.context.actor);
        let change = |object: &mut Value| {
            let Some(list) = object["metadata"]["ownerReferences"].as_array_mut() else {
                return false;
            };
            let before = list.len();
            list.retain(|r| !uids.iter().any(|uid| r["uid"] == uid.as_str()));
            list.len() != before
        };
        gone_is_fine(registry.modify(kind, place(kind, object), name, Subresource::Main, actor, change).await)
    }

    /// Lets an owner go that waits for nothing any more.
    async fn release(&self, kind: &'static Kind, owner: &Value, dependents: &[Dependent]) -> Result<(), ApiStatus> {
        let uid = meta::uid(owner);
        let of_this = |d: &&Dependent| references(&d.object).any(|r| r["uid"] == uid);
        let mut finalizer = None;
        if holds(owner, ORPHAN) {
            for dependent in dependents.iter().filter(of_this) {
                self.forget(dependent.kind, &dependent.object, &[uid.to_owned()]).await?;
            }
            finalizer = Some(ORPHAN);
        } else if holds(owner, FOREGROUND) {
            let blocks = |d: &&Dependent| references(&d.object).any(|r| r["uid"] == uid && r["blockOwnerDeletion"] == true);
            finalizer = (!dependents.iter().any(|d| blocks(&d))).then_some(FOREGROUND);
        }
        let Some(finalizer) = finalizer else {
            return Ok(());
        };
        let change = |object: &mut Value| {
            let Some(list) = object["metadata"]["finalizers"].as_array_mut() else {
                return false;
            };
            let before = list.len();
            list.retain(|f| f != finalizer);
            list.len() != before
        };
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        let name = meta::name(owner);
        gone_is_fine(registry.modify(kind, place(kind, owner), name, Subresource::Main, actor, change).await)
    }

    /// Empties a namespace that is being deleted, then lets it go.
    async fn end_namespace(&self, namespace: &Value) -> Result<(), ApiStatus> {
        let name = meta::name(namespace);
        let (registry, actor) = (&self.context.registry, &self.context.actor);
        let mut left = 0;
        for kind in KINDS.iter().copied().filter(|k| k.namespaced && *k != &kind::EVENT_V1) {
            for object in registry.list(kind, Some(name), &Selectors::default()).0 {
                self.delete(kind, &object, Propagation::Background).await?;
            }
            left += registry.list(kind, Some(name), &Selectors::default()).0.len();
        }
        if left > 0 {
            return Ok(());
        }
        let change = |namespace: &mut Value| {
            namespace["spec"]["finalizers"] = json!([]);
            true
        };
        gone_is_fine(registry.modify(&kind::NAMESPACE, None, name, Subresource::Main, actor, change).await)
    }

    async fn expire_events(&self) -> Result<(), ApiStatus> {
        let now = OffsetDateTime::now_utc();
        for event in self.context.registry.list(&kind::EVENT, None, &Selectors::default()).0 {
            if last_seen(&event).is_some_and(|seen| now - seen > EVENT_LIFE) {
                self.delete(&kind::EVENT, &event, Propagation::Background).await?;
            }
        }
        Ok(())
    }
}

fn last_seen(event: &Value) -> Option<OffsetDateTime> {
    let times =
        [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"], &event["metadata"]["creationTimestamp"]];
    times.into_iter().filter_map(Value::as_str).filter_map(meta::parse_time).max()
}

fn gone_is_fine<T>(done: Result<T, ApiStatus>) -> Result<(), ApiStatus> {
    match done {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

impl Controller for Garbage {
    const NAME: &'static str = "garbage";

    fn kinds(&self) -> &'static [&'static Kind] {
        // Leases and events change all the time and own nothing; those of a lost owner go with its deletion.
        static WATCHED: [&Kind; 9] = [
            &kind::NAMESPACE,
            &kind::NODE,
            &kind::POD,
            &kind::DEPLOYMENT,
            &kind::REPLICA_SET,
            &kind::SERVICE,
            &kind::ENDPOINT_SLICE,
            &kind::CONFIG_MAP,
            &kind::SECRET,
        ];
        &WATCHED
    }

    async fn round(&mut self) -> Result<Option<Duration>, ApiStatus> {
        let registry = &self.context.registry;
        let mut dependents = Vec::new();
        let mut ending = Vec::new();
        for kind in KINDS.iter().copied().filter(|k| *k != &kind::EVENT_V1) {
            for object in registry.list(kind, None, &Selectors::default()).0 {
                if meta::is_deleting(&object) {
                    ending.push((kind, Arc::clone(&object)));
                }
                if references(&object).next().is_some() {
                    dependents.push(Dependent { kind, object });
                }
            }
        }
        // One object that cannot be collected does not keep the others.
        let mut failed = Ok(());
        for dependent in &dependents {
            failed = failed.and(self.collect(dependent).await);
        }
        for (kind, owner) in &ending {
            failed = failed.and(self.release(kind, owner, &dependents).await);
            if *kind == &kind::NAMESPACE {
                failed = failed.and(self.end_namespace(owner).await);
            }
        }
        failed.and(self.expire_events().await)?;
        Ok(Some(EVENT_LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_goes_with_its_last_owner() {
        let row = |owners: &[Owner]| {
            let owners: Vec<(String, Owner)> = owners.iter().enumerate().map(|(n, o)| (n.to_string(), *o)).collect();
            judge(&owners)
        };
        assert_eq!(row(&[]), Verdict::Keep);
        assert_eq!(row(&[Owner::Exists]), Verdict::Keep);
        assert_eq!(row(&[Owner::Spares]), Verdict::Keep);
        assert_eq!(row(&[Owner::Gone]), Verdict::Delete);
        assert_eq!(row(&[Owner::Gone, Owner::Gone]), Verdict::Delete);
        assert_eq!(row(&[Owner::Exists, Owner::Gone]), Verdict::Forget(vec!["1".to_owned()]));
        assert_eq!(row(&[Owner::Waits]), Verdict::DeleteForWaiting);
        assert_eq!(row(&[Owner::Waits, Owner::Gone]), Verdict::DeleteForWaiting);
        assert_eq!(row(&[Owner::Waits, Owner::Exists]), Verdict::Keep);
    }
}
