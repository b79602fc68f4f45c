//! What a Deployment reports of itself: counts, and the conditions `kubectl rollout status` reads.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::rollout::{Step, View};
use crate::controllers::{clock, object};

/// Something the rollout just did that the Progressing condition mentions.
#[derive(Debug, PartialEq)]
pub(super) enum Note {
    Created(String),
}

pub(super) fn note(step: &Step) -> Option<Note> {
    match step {
        Step::CreateSet { set, .. } => Some(Note::Created(object::name(set).to_owned())),
        Step::Scale { .. } | Step::AnnotateSet { .. } | Step::SetRevision(_) | Step::DeleteSet(_) => None,
    }
}

struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
    unavailable: i64,
}

fn counts(view: &View<'_>) -> Counts {
    let sum = |field: &str| view.all().map(|set| object::count(set, field)).sum::<i64>();
    let available = sum("availableReplicas");
    let asked: i64 = view.all().map(object::replicas).sum();
    Counts {
        replicas: sum("replicas"),
        updated: view.new.map_or(0, |set| object::count(set, "replicas")),
        ready: sum("readyReplicas"),
        available,
        unavailable: (asked - available).max(0),
    }
}

/// Every pod is of the newest template and available.
pub(super) fn is_complete(view: &View<'_>) -> bool {
    let counts = counts(view);
    let wanted = view.replicas();
    counts.updated == wanted && counts.replicas == wanted && counts.available == wanted
}

/// The status, and when the progress deadline has to be looked at again.
pub(super) fn status(view: &View<'_>, notes: &[Note], now: OffsetDateTime) -> (Value, Option<Duration>) {
    let before = &view.deployment["status"];
    let counts = counts(view);
    let mut status = json!({ "observedGeneration": view.deployment["metadata"]["generation"] });
    let fields = [
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
    ];
    for (field, count) in fields.into_iter().filter(|(_, count)| *count > 0) {
        status[field] = json!(count);
    }
    if before["collisionCount"].is_i64() {
        status["collisionCount"] = before["collisionCount"].clone();
    }
    status["conditions"] = if before["conditions"].is_array() { before["conditions"].clone() } else { json!([]) };
    let text = clock::text(now);
    let enough = counts.available >= view.replicas() - view.max_unavailable();
    let available = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, "Available", available.0, available.1, available.2, &text);
    let again = progressing(view, &counts, notes, &mut status, now);
    replica_failure(view, &mut status, &text);
    (status, again)
}

fn set(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str, now: &str) {
    let present = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
    if present.is_some_and(|present| present["status"] == value && present["reason"] == reason) {
        return;
    }
    let condition = json!({ "type": kind, "status": value, "reason": reason, "message": message, "lastUpdateTime": now });
    object::set_condition(status, condition, now);
}

fn progressing(view: &View<'_>, counts: &Counts, notes: &[Note], status: &mut Value, now: OffsetDateTime) -> Option<Duration> {
    let text = clock::text(now);
    let deadline = view.deployment["spec"]["progressDeadlineSeconds"].as_i64()?;
    let before = object::condition(view.deployment, "Progressing");
    let reason = before.and_then(|condition| condition["reason"].as_str()).unwrap_or_default();
    if view.deployment["spec"]["paused"] == true {
        // Time spent paused does not count against the deadline.
        set(status, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", &text);
        return None;
    }
    if reason == "DeploymentPaused" {
        set(status, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", &text);
    }
    let subject = |what: &str| match view.new {
        Some(set) => format!("ReplicaSet \"{}\" {what}.", object::name(set)),
        None => format!("Deployment \"{}\" {what}.", object::name(view.deployment)),
    };
    if let Some(Note::Created(name)) = notes.first() {
        let message = format!("Created new replica set \"{name}\"");
        set(status, "Progressing", "True", "NewReplicaSetCreated", &message, &text);
        return Some(Duration::from_secs(deadline.unsigned_abs() + 1));
    }
    // Once this template was fully rolled out, later losses of pods are no rollout.
    let settled = reason == "NewReplicaSetAvailable" && view.old.iter().all(|set| object::replicas(set) == 0);
    let mentions_new = |condition: &Value| {
        view.new
            .is_some_and(|set| condition["message"].as_str().is_some_and(|message| message.contains(&format!("\"{}\"", object::name(set)))))
    };
    if settled && before.is_some_and(mentions_new) {
        return None;
    }
    if is_complete(view) {
        set(status, "Progressing", "True", "NewReplicaSetAvailable", &subject("has successfully progressed"), &text);
        // The same reason for an older template: the message has to follow.
        if reason == "NewReplicaSetAvailable" {
            let condition = json!({ "type": "Progressing", "status": "True", "reason": reason,
                "message": subject("has successfully progressed"), "lastUpdateTime": text });
            object::set_condition(status, condition, &text);
        }
        return None;
    }
    if has_progressed(view, counts) {
        let condition = json!({
            "type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
            "message": subject("is progressing"), "lastUpdateTime": text,
        });
        object::set_condition(status, condition, &text);
        return Some(Duration::from_secs(deadline.unsigned_abs() + 1));
    }
    let since = before.and_then(|condition| condition["lastUpdateTime"].as_str()).and_then(clock::parse);
    let Some(since) = since else {
        set(status, "Progressing", "True", "ReplicaSetUpdated", &subject("is progressing"), &text);
        return Some(Duration::from_secs(deadline.unsigned_abs() + 1));
    };
    if reason == "NewReplicaSetAvailable" {
        return None;
    }
    let left = since + time::Duration::seconds(deadline) - now;
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Some(left + Duration::from_secs(1)),
        _ => {
            set(status, "Progressing", "False", "ProgressDeadlineExceeded", &subject("has timed out progressing"), &text);
            None
        }
    }
}

/// More of the new, less of the old, or more of them ready than the last status said.
fn has_progressed(view: &View<'_>, now: &Counts) -> bool {
    let before = |field: &str| object::count(view.deployment, field);
    now.updated > before("updatedReplicas")
        || now.replicas - now.updated < before("replicas") - before("updatedReplicas")
        || now.ready > before("readyReplicas")
        || now.available > before("availableReplicas")
}

fn replica_failure(view: &View<'_>, status: &mut Value, now: &str) {
    let failure = view.new.and_then(|set| object::condition(set, "ReplicaFailure"));
    match failure {
        Some(failure) => {
            let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
            set(status, "ReplicaFailure", &text("status"), &text("reason"), &text("message"), now);
        }
        None => {
            if let Some(conditions) = status["conditions"].as_array_mut() {
                conditions.retain(|condition| condition["type"] != "ReplicaFailure");
            }
        }
    }
}
