//! Reading the parts of an object that controllers share an interest in.

use serde_json::{Value, json};

use crate::api::Selectors;
use crate::api::selector;

/// `metadata.name`
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`
pub fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// `metadata.uid`
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Whether deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The owner reference with `controller: true`.
pub fn controller(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

/// Whether `owner` controls `object`.
pub fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller(object).is_some_and(|reference| reference["uid"] == owner["metadata"]["uid"])
}

/// The reference by which `owner` controls what it creates.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Whether a pod's phase is final.
pub fn is_finished(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Neither finished nor being deleted.
pub fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// The condition of type `kind`, if present.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a pod's Ready condition is True.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition["status"] == "True")
}

/// `spec.replicas`, one when absent.
pub fn replicas(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// A number of `status`, zero when absent.
pub fn count(object: &Value, field: &str) -> i64 {
    object["status"][field].as_i64().unwrap_or(0)
}

/// The selector of a workload's `spec.selector`; `None` when it is empty, which would select everything.
pub fn selector(object: &Value) -> Option<Selectors> {
    let selector = &object["spec"]["selector"];
    let has = |key: &str| match &selector[key] {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    (has("matchLabels") || has("matchExpressions")).then(|| selector::Selectors::from_label_selector(selector))
}

/// Sets the condition of `wanted`'s type. `lastTransitionTime` moves only when `status` changes; returns whether
/// anything but times changed.
pub fn set_condition(status: &mut Value, mut wanted: Value, now: &str) -> bool {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return false;
    };
    match conditions.iter_mut().find(|condition| condition["type"] == wanted["type"]) {
        None => {
            wanted["lastTransitionTime"] = json!(now);
            conditions.push(wanted);
            true
        }
        Some(present) => {
            let same = |key: &str| present[key] == wanted[key];
            let unchanged = same("status") && same("reason") && same("message");
            wanted["lastTransitionTime"] = if same("status") { present["lastTransitionTime"].clone() } else { json!(now) };
            let changed = !unchanged || wanted.get("lastUpdateTime").is_some_and(|time| *time != present["lastUpdateTime"]);
            if changed {
                *present = wanted;
            }
            changed
        }
    }
}
