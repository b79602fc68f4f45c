//! Whether an object fits the schema table: unknown fields and wrong types. Pure.

use serde_json::Value;

use super::schema::{Type, TypeDef, schema};
use crate::api::Kind;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Paths of fields the kind does not have.
    pub unknown: Vec<String>,
    /// One sentence for each wrong type, as Go's JSON decoder says it.
    pub wrong: Vec<String>,
}

/// Checks an object of a kind.
pub fn check(kind: &Kind, object: &Value) -> Found {
    let mut found = Found::default();
    if let Some(ty) = schema().of(kind.group, kind.kind) {
        fields(ty, object, "", &mut found);
    }
    found
}

/// Takes out the fields that the kind does not have, as decoding does; [`check`] names them.
pub fn prune(kind: &Kind, object: &mut Value) {
    if let Some(ty) = schema().of(kind.group, kind.kind) {
        prune_fields(ty, object, true);
    }
}

fn prune_fields(ty: &TypeDef, object: &mut Value, top: bool) {
    let Some(map) = object.as_object_mut() else { return };
    map.retain(|name, _| ty.field(name).is_some() || ty.open || name.starts_with('$') || (top && (name == "kind" || name == "apiVersion")));
    for (name, value) in map {
        if let Some(field) = ty.field(name) {
            prune_value(&field.ty, value);
        }
    }
}

fn prune_value(ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::Ref(index), value) => prune_fields(schema().at(*index), value, false),
        (Type::List(item), Value::Array(list)) => list.iter_mut().for_each(|one| prune_value(item, one)),
        (Type::Map(item), Value::Object(map)) => map.values_mut().for_each(|one| prune_value(item, one)),
        _ => {}
    }
}

fn fields(ty: &TypeDef, object: &Value, path: &str, found: &mut Found) {
    for (name, value) in object.as_object().into_iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match ty.field(name) {
            Some(field) => visit(&field.ty, value, &below, &ty.name, found),
            None if path.is_empty() && ["kind", "apiVersion"].contains(&name.as_str()) => {}
            // Directives of strategic merge patches.
            None if ty.open || name.starts_with('$') => {}
            None => found.unknown.push(below),
        }
    }
}

fn visit(ty: &Type, value: &Value, path: &str, owner: &str, found: &mut Found) {
    if value.is_null() {
        return;
    }
    let expected = match (ty, value) {
        (Type::Ref(index), Value::Object(_)) => {
            return fields(schema().at(*index), value, path, found);
        }
        (Type::List(item), Value::Array(list)) => {
            for (index, one) in list.iter().enumerate() {
                visit(item, one, &format!("{path}[{index}]"), owner, found);
            }
            return;
        }
        (Type::Map(item), Value::Object(map)) => {
            for (name, one) in map {
                visit(item, one, &format!("{path}.{name}"), owner, found);
            }
            return;
        }
        (Type::String | Type::Bytes | Type::Time | Type::MicroTime, Value::String(_))
        | (Type::Bool, Value::Bool(_))
        | (Type::Object, Value::Object(_))
        | (Type::Quantity | Type::IntOrString, Value::String(_) | Value::Number(_)) => return,
        (Type::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            return;
        }
        (Type::Int64, Value::Number(n)) if n.is_i64() => return,
        (Type::String | Type::Bytes | Type::Time | Type::MicroTime, _) => "string",
        (Type::Bool, _) => "bool",
        (Type::Int32, _) => "int32",
        (Type::Int64, _) => "int64",
        (Type::Quantity, _) => "resource.Quantity",
        (Type::IntOrString, _) => "intstr.IntOrString",
        (Type::List(_), _) => "[]",
        (Type::Map(_), _) => "map[string]string",
        (Type::Object | Type::Ref(_), _) => "object",
    };
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    found.wrong.push(format!("{got} into Go struct field {owner}.{path} of type {expected}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kind;
    use serde_json::json;

    #[test]
    fn unknown_fields_and_wrong_types_are_named() {
        let rows = [
            (
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}], "volumes": [{"name": "v", "csi": {"any": 1}}]}}),
                "",
                "",
            ),
            (json!({"spec": {"containerz": []}}), "spec.containerz", ""),
            (json!({"spec": {"containers": [{"name": "c", "imagee": "x"}]}}), "spec.containers[0].imagee", ""),
            (
                json!({"spec": {"terminationGracePeriodSeconds": "30"}}),
                "",
                "string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
            ),
            (json!({"metadata": {"labels": {"a": 1}}}), "", "number into Go struct field ObjectMeta.metadata.labels.a of type string"),
        ];
        for (object, unknown, wrong) in rows {
            let found = check(&kind::POD, &object);
            assert_eq!(found.unknown.join(","), unknown, "{object}");
            assert_eq!(found.wrong.join(","), wrong, "{object}");
        }
    }

    #[test]
    fn unknown_fields_are_taken_out_and_all_others_stay() {
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"any": "x"}, "nope": 1}, "nope": 1,
            "spec": {"nope": 1, "$patch": "replace", "containers": [{"name": "c", "nope": {"a": 1}, "resources": {"limits": {"any": "1"}}}]}});
        prune(&kind::POD, &mut object);
        let left = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"any": "x"}},
            "spec": {"$patch": "replace", "containers": [{"name": "c", "resources": {"limits": {"any": "1"}}}]}});
        assert_eq!(object, left);
    }

    /// What a real server and kubelet write has no field that would be lost here.
    #[test]
    fn recorded_objects_have_no_unknown_fields() {
        fn visit(value: &Value, seen: &mut usize, unknown: &mut Vec<String>) {
            let kind = kind::KINDS
                .iter()
                .find(|kind| value["kind"] == kind.kind && value["apiVersion"] == kind.api_version() && value["metadata"].is_object());
            if let Some(kind) = kind {
                *seen += 1;
                unknown.extend(check(kind, value).unknown.into_iter().map(|path| format!("{} {path}", kind.kind)));
            }
            // A pod's life as a kubelet reported it.
            for report in value["transitions"].as_array().into_iter().flatten() {
                *seen += 1;
                let pod = json!({"metadata": report["metadata"], "spec": value["spec"], "status": report["status"]});
                unknown.extend(check(&kind::POD, &pod).unknown);
            }
            match value {
                Value::String(text) if text.starts_with('{') => {
                    if let Ok(body) = serde_json::from_str(text) {
                        visit(&body, seen, unknown);
                    }
                }
                Value::Array(list) => list.iter().for_each(|one| visit(one, seen, unknown)),
                Value::Object(map) => map.values().for_each(|one| visit(one, seen, unknown)),
                _ => {}
            }
        }
        let recordings = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings");
        let (mut seen, mut unknown) = (0, Vec::new());
        for directory in ["k3s", "kubelet"] {
            for file in std::fs::read_dir(recordings.join(directory)).unwrap().flatten() {
                let text = std::fs::read(file.path()).unwrap();
                if let Ok(value) = serde_json::from_slice(&text) {
                    visit(&value, &mut seen, &mut unknown);
                }
            }
        }
        assert!(seen > 50, "only {seen} objects were found");
        unknown.sort();
        unknown.dedup();
        assert_eq!(unknown, Vec::<String>::new());
    }
}
