//! Pure: two statuses in, the smallest strategic merge patch out.

use serde_json::{Map, Value, json};

use crate::api::pod::PodStatus;

/// Lists of a pod status that the server merges by a key; all others are replaced whole.
const MERGED: &[(&str, &str)] = &[("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// Never removed, even when we have no value: the server or an earlier agent set them once and for all.
const KEPT: &[&str] = &["qosClass", "startTime"];

/// What to send so that `base` becomes `wanted`; None when they say the same. Conditions of other writers stay.
pub fn status_patch(base: &PodStatus, wanted: &PodStatus, uid: &str) -> Option<Value> {
    let base = serde_json::to_value(base).ok()?;
    let wanted = serde_json::to_value(wanted).ok()?;
    let (Value::Object(base), Value::Object(wanted)) = (base, wanted) else { return None };
    let mut status = Map::new();
    for (key, value) in &wanted {
        let old = base.get(key).unwrap_or(&Value::Null);
        match MERGED.iter().find(|(name, _)| name == key) {
            Some((_, merge_key)) => merged_list(key, merge_key, old, value, &mut status),
            None => {
                if let Some(change) = change(old, value) {
                    status.insert(key.clone(), change);
                }
            }
        }
    }
    for (key, value) in &base {
        if wanted.contains_key(key) || KEPT.contains(&key.as_str()) || key == "conditions" {
            continue;
        }
        match MERGED.iter().find(|(name, _)| name == key) {
            Some((_, merge_key)) => merged_list(key, merge_key, value, &Value::Array(Vec::new()), &mut status),
            None => {
                status.insert(key.clone(), Value::Null);
            }
        }
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

/// What changes `old` to `new` in a merge: objects member by member with null for what goes, the rest whole.
fn change(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return Some(new.clone()) };
    let mut out = Map::new();
    for (key, value) in new {
        if let Some(change) = change(old.get(key).unwrap_or(&Value::Null), value) {
            out.insert(key.clone(), change);
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        out.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(out))
}

fn merged_list(name: &str, merge_key: &str, old: &Value, new: &Value, out: &mut Map<String, Value>) {
    let empty = Vec::new();
    let (old, new) = (old.as_array().unwrap_or(&empty), new.as_array().unwrap_or(&empty));
    let find = |list: &[Value], wanted: &Value| list.iter().find(|item| item.get(merge_key) == wanted.get(merge_key)).cloned();
    let mut items = Vec::new();
    let mut added = false;
    for item in new {
        match find(old, item) {
            None => {
                added = true;
                items.push(item.clone());
            }
            Some(before) => {
                if let Some(Value::Object(mut change)) = change(&before, item) {
                    change.insert(merge_key.to_owned(), item[merge_key].clone());
                    items.push(Value::Object(change));
                }
            }
        }
    }
    // A condition that is not ours is another writer's; an address we no longer see is gone.
    if name != "conditions" {
        for item in old.iter().filter(|item| find(new, item).is_none()) {
            items.push(json!({merge_key: item[merge_key], "$patch": "delete"}));
        }
    }
    if items.is_empty() {
        return;
    }
    if added {
        let order: Vec<Value> = new.iter().map(|item| json!({merge_key: item[merge_key]})).collect();
        out.insert(format!("$setElementOrder/{name}"), Value::Array(order));
    }
    out.insert(name.to_owned(), Value::Array(items));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    fn patch(base: Value, wanted: Value) -> Option<Value> {
        status_patch(&status(base), &status(wanted), "u1").map(|patch| patch["status"].clone())
    }

    fn condition(kind: &str, value: &str) -> Value {
        json!({"type": kind, "status": value, "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn equal_statuses_and_another_order_of_conditions_send_nothing() {
        let base = json!({"phase": "Running", "conditions": [condition("Ready", "True"), condition("PodScheduled", "True")]});
        let other = json!({"phase": "Running", "conditions": [condition("PodScheduled", "True"), condition("Ready", "True")]});
        assert_eq!(patch(base.clone(), base.clone()), None);
        assert_eq!(patch(base, other), None);
    }

    #[test]
    fn the_uid_goes_with_every_patch() {
        let patch = status_patch(&PodStatus::default(), &status(json!({"phase": "Pending"})), "u1").unwrap();
        assert_eq!(patch, json!({"metadata": {"uid": "u1"}, "status": {"phase": "Pending"}}));
    }

    #[test]
    fn new_conditions_come_with_their_order_and_changed_ones_alone() {
        let base = json!({"conditions": [condition("PodScheduled", "True"), condition("example.com/gate", "True")]});
        let wanted = json!({"conditions": [condition("Ready", "False"), condition("PodScheduled", "True")]});
        assert_eq!(
            patch(base, wanted),
            Some(json!({
                "conditions": [condition("Ready", "False")],
                "$setElementOrder/conditions": [{"type": "Ready"}, {"type": "PodScheduled"}],
            }))
        );
        let base = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastProbeTime": null, "lastTransitionTime": null}]});
        let wanted = json!({"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}]});
        assert_eq!(patch(base, wanted), Some(json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]})));
    }

    #[test]
    fn container_statuses_are_replaced_whole_and_addresses_by_key() {
        let base = json!({"podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}], "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]});
        let wanted = json!({"podIP": "10.1.0.3", "podIPs": [{"ip": "10.1.0.3"}], "containerStatuses": [{"name": "a", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]});
        let patch = patch(base, wanted).unwrap();
        assert_eq!(patch["podIPs"], json!([{"ip": "10.1.0.3"}, {"ip": "10.1.0.2", "$patch": "delete"}]));
        assert_eq!(patch["podIP"], "10.1.0.3");
        assert_eq!(patch["containerStatuses"][0]["state"]["running"]["startedAt"], "2026-01-01T00:00:00Z");
        assert!(patch["containerStatuses"][0]["state"].get("waiting").is_none());
    }

    #[test]
    fn what_is_gone_becomes_null_except_what_is_set_once() {
        let base = json!({"phase": "Pending", "message": "m", "reason": "r", "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z"});
        assert_eq!(patch(base, json!({"phase": "Running"})), Some(json!({"phase": "Running", "message": null, "reason": null})));
    }
}
