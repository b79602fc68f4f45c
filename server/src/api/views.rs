//! Kinds that are two views of one stored thing: `events.k8s.io/v1` over core events. Pure.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::kind::{self, Kind};

const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// What a client sent, as it is stored.
pub(super) fn to_stored(kind: &Kind, object: Value) -> Value {
    if kind == &kind::EVENT_V1 { rename(object, "v1", |(new, old)| (*new, *old)) } else { object }
}

/// What is stored, as the client asked to see it.
pub(super) fn to_served<'a>(kind: &Kind, object: &'a Value) -> Cow<'a, Value> {
    if kind == &kind::EVENT_V1 {
        Cow::Owned(rename(object.clone(), "events.k8s.io/v1", |(new, old)| (*old, *new)))
    } else if kind == &kind::EVENT && object["apiVersion"] != "v1" {
        let mut object = object.clone();
        object["apiVersion"] = json!("v1");
        Cow::Owned(object)
    } else {
        Cow::Borrowed(object)
    }
}

fn rename(mut object: Value, version: &str, direction: fn(&(&'static str, &'static str)) -> (&'static str, &'static str)) -> Value {
    if let Some(map) = object.as_object_mut() {
        for pair in RENAMED {
            let (from, to) = direction(pair);
            if let Some(value) = map.remove(from) {
                map.insert(to.to_owned(), value);
            }
        }
        if map.contains_key("apiVersion") {
            map.insert("apiVersion".to_owned(), json!(version));
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_turn_around_without_loss() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"name": "p"}, "note": "n", "reportingController": "c", "deprecatedCount": 2});
        let stored = to_stored(&kind::EVENT_V1, new.clone());
        assert_eq!(stored["involvedObject"]["name"], "p");
        assert_eq!(*to_served(&kind::EVENT_V1, &stored), new);
        assert_eq!(to_served(&kind::EVENT, &stored)["message"], "n");
    }
}
