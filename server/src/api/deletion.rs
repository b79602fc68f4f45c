//! Deletions: what one does now, and when a marked object is gone. Pure.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::kind::{self, Kind};
use super::registry::{DeleteOptions, Propagation};
use super::status::ApiStatus;
use super::{admission, meta};
use crate::auth::Actor;

/// A finalizer that keeps an owner until its blocking dependents are gone.
const FOREGROUND: &str = "foregroundDeletion";
/// A finalizer that keeps an owner until its dependents no longer name it.
const ORPHAN: &str = "orphan";

/// Marked for deletion, and nothing holds it any more.
pub(super) fn is_finished(kind: &Kind, object: &Value) -> bool {
    if !meta::is_deleting(object) || meta::finalizers(object).next().is_some() {
        return false;
    }
    if kind == &kind::NAMESPACE {
        return object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

/// What a deletion does now.
pub(super) enum Deletion {
    Remove,
    /// Store this, with `deletionTimestamp`.
    Mark(Value),
    AlreadyMarked,
}

/// Decides a deletion.
pub(super) fn decide(
    kind: &'static Kind,
    name: &str,
    current: &Value,
    options: &DeleteOptions,
    actor: &Actor,
) -> Result<Deletion, ApiStatus> {
    check_preconditions(kind, name, current, options)?;
    admission::delete(kind, current, actor)?;
    let mut next = current.clone();
    let mut finalizers: Vec<String> = meta::finalizers(current).map(str::to_owned).collect();
    finalizers.retain(|f| options.propagation.is_none() || (f != FOREGROUND && f != ORPHAN));
    match options.propagation {
        Some(Propagation::Foreground) => finalizers.push(FOREGROUND.to_owned()),
        Some(Propagation::Orphan) => finalizers.push(ORPHAN.to_owned()),
        Some(Propagation::Background) | None => {}
    }
    if finalizers.is_empty() {
        meta::metadata_mut(&mut next).remove("finalizers");
    } else {
        next["metadata"]["finalizers"] = json!(finalizers);
    }
    let grace = grace_period(kind, current, options);
    let held =
        !finalizers.is_empty() || (kind == &kind::NAMESPACE && current["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()));
    if grace == 0 && !held {
        return Ok(Deletion::Remove);
    }
    if meta::is_deleting(current) {
        let before = current["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if grace >= before && next == *current {
            return Ok(Deletion::AlreadyMarked);
        }
        if grace < before {
            mark(&mut next, grace);
        }
        return Ok(Deletion::Mark(next));
    }
    mark(&mut next, grace);
    if let Some(generation) = current["metadata"]["generation"].as_i64() {
        next["metadata"]["generation"] = json!(generation + 1);
    }
    if kind == &kind::NAMESPACE {
        next["status"]["phase"] = json!("Terminating");
    }
    Ok(Deletion::Mark(next))
}

fn mark(object: &mut Value, grace: i64) {
    let when = OffsetDateTime::now_utc() + time::Duration::seconds(grace);
    object["metadata"]["deletionTimestamp"] = json!(meta::time_text(when));
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
}

/// Only pods that run somewhere are given time.
fn grace_period(kind: &Kind, current: &Value, options: &DeleteOptions) -> i64 {
    if kind != &kind::POD {
        return 0;
    }
    let unassigned = current["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let ended = matches!(current["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unassigned || ended {
        return 0;
    }
    let own = current["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_period.unwrap_or(own).max(0)
}

fn check_preconditions(kind: &Kind, name: &str, current: &Value, options: &DeleteOptions) -> Result<(), ApiStatus> {
    if let Some(uid) = &options.uid {
        if uid != meta::uid(current) {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(current));
            return Err(ApiStatus::conflict_because(kind, name, &why));
        }
    }
    if let Some(version) = &options.resource_version {
        let has = meta::get(current, "resourceVersion");
        if version != has {
            let why = format!("Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {has}");
            return Err(ApiStatus::conflict_because(kind, name, &why));
        }
    }
    Ok(())
}
