//! Strategic merge patches, by the merge keys of the schema table.
//!
//! Rules: Kubernetes `staging/src/k8s.io/apimachinery/pkg/util/strategicpatch`. Pure.

use serde_json::{Map, Value};

use crate::openapi::schema::{Field, Type, TypeDef, schema};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`. Without a type, objects merge and lists are replaced.
///
/// # Errors
/// A sentence for the 400 answer when the patch is malformed.
pub(super) fn merge(target: &mut Value, patch: Value, ty: Option<&TypeDef>) -> Result<(), String> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err("a strategic merge patch must be a JSON object".to_owned());
    };
    merge_map(target, patch, ty, None)
}

/// `ty` describes the fields; for maps `values` describes each value.
fn merge_map(
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    ty: Option<&TypeDef>,
    values: Option<&Type>,
) -> Result<(), String> {
    match patch.remove(PATCH) {
        Some(Value::String(directive)) if directive == "replace" => {
            *target = strip_map(patch);
            return Ok(());
        }
        Some(Value::String(directive)) if directive == "delete" => {
            target.clear();
            return Ok(());
        }
        None => {}
        Some(Value::String(directive)) if directive == "merge" => {}
        Some(other) => return Err(format!("unknown patch directive {other}")),
    }
    if let Some(Value::Array(keep)) = patch.remove(RETAIN) {
        target.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    let mut orders = Map::new();
    let mut removals = Map::new();
    patch.retain(|key, value| {
        if let Some(field) = key.strip_prefix(ORDER) {
            orders.insert(field.to_owned(), value.take());
        } else if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            removals.insert(field.to_owned(), value.take());
        } else {
            return true;
        }
        false
    });
    for (field, remove) in removals {
        if let (Some(Value::Array(list)), Value::Array(remove)) = (target.get_mut(&field), remove) {
            list.retain(|item| !remove.contains(item));
        }
    }
    for (name, change) in patch {
        let field = ty.and_then(|t| t.field(&name));
        let shape = field.map(|f| &f.ty).or(values);
        let order = orders.remove(&name);
        if change.is_null() {
            target.remove(&name);
            continue;
        }
        match (target.get_mut(&name), change) {
            (Some(Value::Object(old)), Value::Object(change)) => {
                let (ty, values) = inner(shape);
                merge_map(old, change, ty, values)?;
            }
            (Some(Value::Array(old)), Value::Array(change)) => {
                merge_list(old, change, field, order.as_ref())?;
            }
            (_, Value::Array(change)) => {
                let mut fresh = Vec::new();
                merge_list(&mut fresh, change, field, order.as_ref())?;
                target.insert(name, Value::Array(fresh));
            }
            (_, change) => {
                target.insert(name, strip(change));
            }
        }
    }
    // An order without changes still sorts.
    for (name, order) in orders {
        let field = ty.and_then(|t| t.field(&name));
        if let Some(Value::Array(list)) = target.get_mut(&name) {
            sort(list, &order, field.and_then(|f| f.keys.first()), &list.clone());
        }
    }
    Ok(())
}

fn inner(shape: Option<&Type>) -> (Option<&'static TypeDef>, Option<&Type>) {
    match shape {
        Some(Type::Ref(index)) => (Some(schema().at(*index)), None),
        Some(Type::Map(values)) => (None, Some(values)),
        _ => (None, None),
    }
}

fn merge_list(old: &mut Vec<Value>, change: Vec<Value>, field: Option<&Field>, order: Option<&Value>) -> Result<(), String> {
    let before = old.clone();
    match field {
        Some(Field { keys, ty, .. }) if !keys.is_empty() => {
            let key = &keys[0];
            let item_type = match ty {
                Type::List(item) => inner(Some(item)).0,
                _ => None,
            };
            merge_keyed(old, change, key, item_type)?;
            if let Some(order) = order {
                sort(old, order, Some(key), &before);
            }
        }
        Some(Field { set: true, .. }) => {
            for item in change {
                if !old.contains(&item) {
                    old.push(item);
                }
            }
            if let Some(order) = order {
                sort(old, order, None, &before);
            }
        }
        _ => *old = change.into_iter().map(strip).collect(),
    }
    Ok(())
}

fn merge_keyed(old: &mut Vec<Value>, change: Vec<Value>, key: &str, ty: Option<&TypeDef>) -> Result<(), String> {
    let is_replace = |item: &Value| item[PATCH] == "replace";
    if change.iter().any(is_replace) {
        let keep = |item: &Value| !(is_replace(item) && item.as_object().is_some_and(|m| m.len() == 1));
        *old = change.into_iter().filter(keep).map(strip).collect();
        return Ok(());
    }
    for item in change {
        let Value::Object(mut item) = item else {
            return Err(format!("a list merged by {key} must hold objects"));
        };
        let Some(id) = item.get(key).cloned() else {
            return Err(format!("map: {} does not contain declared merge key: {key}", Value::Object(item)));
        };
        if item.get(PATCH).is_some_and(|d| d == "delete") {
            old.retain(|o| o.get(key) != Some(&id));
            continue;
        }
        let found = old.iter_mut().find(|o| o.get(key) == Some(&id));
        match found.and_then(Value::as_object_mut) {
            Some(found) => merge_map(found, item, ty, None)?,
            None => {
                item.remove(PATCH);
                let mut fresh = Map::new();
                merge_map(&mut fresh, item, ty, None)?;
                old.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// Puts the items named in `order` into that order and the others where they stood beside them.
fn sort(list: &mut Vec<Value>, order: &Value, key: Option<&String>, before: &[Value]) {
    let Some(order) = order.as_array() else {
        return;
    };
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    };
    let wanted: Vec<Value> = order.iter().map(id).collect();
    let position = |item: &Value| wanted.iter().position(|w| *w == id(item));
    let (mut named, others): (Vec<Value>, Vec<Value>) = list.drain(..).partition(|i| position(i).is_some());
    named.sort_by_key(|item| position(item));
    let stood = |item: &Value| before.iter().position(|b| id(b) == id(item));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        match (named.peek(), others.peek()) {
            (Some(left), Some(right)) => {
                let left_first = matches!((stood(left), stood(right)), (Some(l), Some(r)) if l < r);
                list.extend(if left_first { named.next() } else { others.next() });
            }
            (Some(_), None) => list.extend(named.next()),
            (None, _) => {
                list.extend(others);
                return;
            }
        }
    }
}

/// A value that enters an object for the first time: without directives and nulls.
fn strip(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(strip_map(map)),
        Value::Array(list) => {
            let kept = list.into_iter().filter(|i| !matches!(i.get(PATCH).and_then(Value::as_str), Some("delete")));
            Value::Array(kept.map(strip).collect())
        }
        other => other,
    }
}

fn strip_map(map: Map<String, Value>) -> Map<String, Value> {
    let kept = map.into_iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    kept.map(|(key, value)| (key, strip(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_patches_merge_as_kubernetes_does() {
        let pod = || json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
        let rows = [
            (
                "container by name",
                pod(),
                json!({"spec": {"containers": [{"name": "b", "image": "z"}]}}),
                json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "z"}]}}),
            ),
            (
                "container deleted",
                pod(),
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                json!({"spec": {"containers": [{"name": "b", "image": "y"}]}}),
            ),
            (
                "list replaced",
                pod(),
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
                json!({"spec": {"containers": [{"name": "c"}]}}),
            ),
            (
                "order of elements",
                pod(),
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                    "containers": [{"name": "c", "image": "w"}]}}),
                json!({"spec": {"containers": [{"name": "c", "image": "w"}, {"name": "b", "image": "y"}, {"name": "a", "image": "x"}]}}),
            ),
            (
                "new element without nulls and directives",
                json!({"spec": {}}),
                json!({"spec": {"containers": [{"name": "c", "image": null, "env": [{"name": "A", "$patch": "delete"}]}]}}),
                json!({"spec": {"containers": [{"name": "c", "env": []}]}}),
            ),
            (
                "null removes",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"a": null}}}),
                json!({"metadata": {"labels": {"b": "2"}}}),
            ),
            (
                "atomic list replaced",
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
            (
                "primitive list as a set",
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            (
                "volume keeps only its named source",
                json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
            ),
            (
                "conditions by type",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
            ),
            (
                "map replaced as a whole",
                json!({"spec": {"nodeSelector": {"a": "1"}}}),
                json!({"spec": {"nodeSelector": {"$patch": "replace", "b": "2"}}}),
                json!({"spec": {"nodeSelector": {"b": "2"}}}),
            ),
        ];
        let ty = schema().of("", "Pod");
        for (name, mut target, patch, expected) in rows {
            merge(&mut target, patch, ty).unwrap();
            assert_eq!(target, expected, "{name}");
        }
    }

    #[test]
    fn deployment_strategy_switches_type() {
        let mut target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        merge(&mut target, patch, schema().of("apps", "Deployment")).unwrap();
        assert_eq!(target, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    }

    #[test]
    fn malformed_patches_are_named() {
        let ty = schema().of("", "Pod");
        let mut target = json!({"spec": {"containers": []}});
        assert!(merge(&mut target, json!([1]), ty).is_err());
        let error = merge(&mut target, json!({"spec": {"containers": [{"image": "x"}]}}), ty).unwrap_err();
        assert!(error.contains("does not contain declared merge key: name"), "{error}");
    }
}
