//! Server-side apply: one manager's configuration merged into an object. Pure.
//!
//! Each applying manager's fields are remembered in `metadata.managedFields` in the usual FieldsV1 form. What a
//! manager applied before and does not any more is removed, unless another applies it too. Fields changed by other
//! means (edit, scale, controllers) belong to no one here and are simply set again.

use serde_json::{Map, Value, json};

use super::kind::Kind;
use super::meta;
use super::status::{ApiStatus, Cause};
use super::strategic;
use crate::openapi::schema::{Field, Type, TypeDef, schema};

/// One request.
pub(super) struct Applied<'a> {
    pub(super) config: &'a Value,
    pub(super) manager: &'a str,
    pub(super) force: bool,
}

/// Fields that say which object is meant, and those the server owns.
const UNOWNED: &[&str] = &["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"];

/// The object after the apply; without `live` the one to create.
///
/// # Errors
/// 409 with each field another manager applies with another value, unless forced; 400 for a malformed configuration.
pub(super) fn merge(kind: &Kind, name: &str, live: Option<&Value>, applied: &Applied<'_>) -> Result<Value, ApiStatus> {
    let ty = schema().of(kind.group, kind.kind);
    let mut config = applied.config.clone();
    meta::metadata_mut(&mut config).remove("managedFields");
    let owned = root_fields(&config, ty);
    let mut entries: Vec<Value> = live
        .and_then(|l| l["metadata"]["managedFields"].as_array())
        .map(|list| list.iter().filter(|e| e["manager"] != applied.manager).cloned().collect())
        .unwrap_or_default();
    let before = live.and_then(|l| fields_of(l, applied.manager)).unwrap_or_default();
    let mut next = live.cloned().unwrap_or_else(|| json!({}));

    let mut conflicts = Vec::new();
    for entry in &mut entries {
        let mut theirs = entry["fieldsV1"].as_object().cloned().unwrap_or_default();
        let mut found = Vec::new();
        disputed(&owned, &mut theirs, &config, live.unwrap_or(&Value::Null), "", &mut found);
        if found.is_empty() {
            continue;
        }
        if applied.force {
            entry["fieldsV1"] = Value::Object(theirs);
        } else {
            let other = entry["manager"].as_str().unwrap_or_default();
            let why = format!("conflict with \"{other}\" using {}", kind.api_version());
            conflicts.extend(found.into_iter().map(|field| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: why.clone(),
                field,
            }));
        }
    }
    if !conflicts.is_empty() {
        return Err(ApiStatus::apply_conflict(conflicts));
    }
    let others: Vec<&Map<String, Value>> = entries.iter().filter_map(|e| e["fieldsV1"].as_object()).collect();
    remove_given_up(&mut next, &before, &owned, &others);
    strategic::merge(&mut next, config, ty).map_err(ApiStatus::bad_request)?;
    entries.push(json!({
        "manager": applied.manager, "operation": "Apply", "apiVersion": kind.api_version(), "time": meta::now(),
        "fieldsType": "FieldsV1", "fieldsV1": owned,
    }));
    let metadata = meta::metadata_mut(&mut next);
    metadata.insert("name".to_owned(), json!(name));
    metadata.insert("managedFields".to_owned(), Value::Array(entries));
    Ok(next)
}

/// An apply that changes nothing does not become a change by its time.
pub(super) fn keep_time(current: &Value, next: &mut Value) {
    let mut same = next.clone();
    let before = current["metadata"]["managedFields"].as_array().map_or(&[][..], Vec::as_slice);
    for entry in same["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
        let earlier = before.iter().find(|e| e["manager"] == entry["manager"] && e["fieldsV1"] == entry["fieldsV1"]);
        if let Some(earlier) = earlier {
            entry["time"] = earlier["time"].clone();
        }
    }
    *next = same;
}

fn fields_of(object: &Value, manager: &str) -> Option<Map<String, Value>> {
    let mut entries = object["metadata"]["managedFields"].as_array()?.iter();
    entries.find(|e| e["manager"] == manager)?["fieldsV1"].as_object().cloned()
}

fn root_fields(config: &Value, ty: Option<&TypeDef>) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, value) in config.as_object().into_iter().flatten() {
        match name.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => {
                let mut value = value.clone();
                if let Some(map) = value.as_object_mut() {
                    map.retain(|name, _| !UNOWNED.contains(&name.as_str()));
                    if map.is_empty() {
                        continue;
                    }
                }
                out.insert("f:metadata".to_owned(), fields(&value, ty.and_then(|t| t.field(name))));
            }
            _ => {
                out.insert(format!("f:{name}"), fields(value, ty.and_then(|t| t.field(name))));
            }
        }
    }
    out
}

/// A value's fields in FieldsV1 form; `{}` for what is set as a whole.
fn fields(value: &Value, field: Option<&Field>) -> Value {
    match (value, field) {
        (Value::Array(list), Some(field)) if !field.keys.is_empty() => {
            let item = match &field.ty {
                Type::List(item) => type_of(item),
                _ => None,
            };
            let members = list.iter().map(|one| {
                let mut inner = object_fields(one, item, None);
                inner.insert(".".to_owned(), json!({}));
                (item_key(one, &field.keys), Value::Object(inner))
            });
            Value::Object(members.collect())
        }
        (Value::Array(list), Some(Field { set: true, .. })) => {
            Value::Object(list.iter().map(|one| (format!("v:{one}"), json!({}))).collect())
        }
        (Value::Object(map), Some(field)) if !map.is_empty() => match &field.ty {
            Type::Ref(index) => Value::Object(object_fields(value, Some(schema().at(*index)), None)),
            Type::Map(values) => Value::Object(object_fields(value, None, Some(values))),
            _ => json!({}),
        },
        _ => json!({}),
    }
}

fn object_fields(value: &Value, ty: Option<&TypeDef>, values: Option<&Type>) -> Map<String, Value> {
    let members = value.as_object().into_iter().flatten();
    members
        .map(|(name, value)| {
            let inner = match values.and_then(type_of) {
                Some(ty) => Value::Object(object_fields(value, Some(ty), None)),
                None => fields(value, ty.and_then(|t| t.field(name))),
            };
            (format!("f:{name}"), inner)
        })
        .collect()
}

fn type_of(ty: &Type) -> Option<&'static TypeDef> {
    match ty {
        Type::Ref(index) => Some(schema().at(*index)),
        _ => None,
    }
}

/// `k:{"name":"x"}`. Keys with a default that is not given count as absent.
fn item_key(item: &Value, keys: &[String]) -> String {
    let named: Map<String, Value> = keys.iter().filter_map(|k| item.get(k).map(|value| (k.clone(), value.clone()))).collect();
    format!("k:{}", Value::Object(named))
}

/// The part of `object` a FieldsV1 member stands for.
fn member<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    let (form, text) = key.split_once(':')?;
    match form {
        "f" => object.get(text),
        "k" => {
            let wanted: Value = serde_json::from_str(text).ok()?;
            let same = |item: &&Value| wanted.as_object().is_some_and(|w| w.iter().all(|(k, v)| item.get(k) == Some(v)));
            object.as_array()?.iter().find(same)
        }
        "v" => {
            let wanted: Value = serde_json::from_str(text).ok()?;
            object.as_array()?.iter().find(|item| **item == wanted)
        }
        _ => None,
    }
}

/// Finds what both apply with different values, and takes it out of `theirs`.
fn disputed(ours: &Map<String, Value>, theirs: &mut Map<String, Value>, config: &Value, live: &Value, path: &str, found: &mut Vec<String>) {
    for (key, inner) in ours.iter().filter(|(key, _)| *key != ".") {
        let Some(their_inner) = theirs.get_mut(key) else {
            continue;
        };
        let below = match key.split_once(':') {
            Some(("f", name)) => format!("{path}.{name}"),
            Some((_, item)) => format!("{path}[{}]", item.trim_matches(['{', '}']).replace("\":", "\"=")),
            None => continue,
        };
        let null = Value::Null;
        let (wanted, is) = (member(config, key).unwrap_or(&null), member(live, key).unwrap_or(&null));
        match (inner.as_object().filter(|m| !m.is_empty()), their_inner.as_object_mut().filter(|m| !m.is_empty())) {
            (Some(inner), Some(their_inner)) => disputed(inner, their_inner, wanted, is, &below, found),
            _ if wanted != is => {
                found.push(below);
                theirs.remove(key);
            }
            _ => {}
        }
    }
}

/// Removes what was applied before and is not any more.
fn remove_given_up(object: &mut Value, before: &Map<String, Value>, now: &Map<String, Value>, others: &[&Map<String, Value>]) {
    let empty = Map::new();
    for (key, inner) in before.iter().filter(|(key, _)| *key != ".") {
        let others: Vec<&Map<String, Value>> = others.iter().filter_map(|o| o.get(key)).map(|v| v.as_object().unwrap_or(&empty)).collect();
        match now.get(key) {
            None if others.is_empty() => remove_member(object, key),
            kept => {
                let now = kept.and_then(Value::as_object).unwrap_or(&empty);
                // Set as a whole by us or by someone else now: nothing inside is given up.
                let whole = kept.is_some() && now.is_empty() || others.iter().any(|o| o.is_empty());
                if let (false, Some(inner), Some(part)) = (whole, inner.as_object(), member_mut(object, key)) {
                    remove_given_up(part, inner, now, &others);
                }
            }
        }
    }
}

fn position(list: &[Value], key: &str) -> Option<usize> {
    let (form, text) = key.split_once(':')?;
    let wanted: Value = serde_json::from_str(text).ok()?;
    list.iter().position(|item| match form {
        "k" => wanted.as_object().is_some_and(|w| w.iter().all(|(k, v)| item.get(k) == Some(v))),
        _ => *item == wanted,
    })
}

fn member_mut<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match object {
        Value::Object(map) => map.get_mut(key.strip_prefix("f:")?),
        Value::Array(list) => position(list, key).and_then(|at| list.get_mut(at)),
        _ => None,
    }
}

fn remove_member(object: &mut Value, key: &str) {
    match object {
        Value::Object(map) => {
            if let Some(name) = key.strip_prefix("f:") {
                map.remove(name);
            }
        }
        Value::Array(list) => {
            if let Some(at) = position(list, key) {
                list.remove(at);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use super::*;

    fn config(containers: Value, labels: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels},
            "spec": {"containers": containers}})
    }

    fn apply(live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApiStatus> {
        merge(&kind::POD, "p", live, &Applied { config, manager, force })
    }

    #[test]
    fn what_a_manager_gives_up_goes_and_the_rest_stays() {
        let first = config(json!([{"name": "a", "image": "x", "env": [{"name": "A", "value": "1"}]}]), json!({"l": "1", "m": "1"}));
        let mut live = apply(None, &first, "one", false).unwrap();
        live["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        live["metadata"]["labels"]["other"] = json!("kept");
        let second = config(json!([{"name": "a", "image": "y"}]), json!({"l": "2"}));
        let live = apply(Some(&live), &second, "one", false).unwrap();
        assert_eq!(live["metadata"]["labels"], json!({"l": "2", "other": "kept"}));
        assert_eq!(live["spec"]["containers"], json!([{"name": "a", "image": "y", "imagePullPolicy": "Always"}]));
        assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn two_managers_share_and_dispute() {
        let mine = config(json!([{"name": "a", "image": "x"}]), json!({"l": "1"}));
        let live = apply(None, &mine, "one", false).unwrap();
        let same = config(json!([{"name": "a", "image": "x"}]), json!({"n": "1"}));
        let live = apply(Some(&live), &same, "two", false).unwrap();
        let other = config(json!([{"name": "a", "image": "z"}]), json!({"n": "1"}));
        let refused = apply(Some(&live), &other, "two", false).unwrap_err();
        assert_eq!((refused.code, refused.reason), (409, "Conflict"));
        let causes = refused.details.unwrap().causes;
        assert_eq!(causes[0].field, ".spec.containers[\"name\"=\"a\"].image");
        assert_eq!(causes[0].message, "conflict with \"one\" using v1");
        let live = apply(Some(&live), &other, "two", true).unwrap();
        assert_eq!(live["spec"]["containers"][0]["image"], "z");
        // One no longer owns the image, so giving it up does not take it away.
        let less = config(json!([{"name": "a"}]), json!({"l": "1"}));
        let live = apply(Some(&live), &less, "one", false).unwrap();
        assert_eq!(live["spec"]["containers"][0]["image"], "z");
        assert_eq!(live["metadata"]["labels"], json!({"l": "1", "n": "1"}));
    }
}
