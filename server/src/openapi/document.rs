//! The OpenAPI documents, v2 and v3, built from the schema table and the kinds. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::schema::{Field, Type, TypeDef, schema};
use crate::api::kind::KINDS;
use crate::api::{GIT_VERSION, Kind};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

/// The two dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// `/openapi/v2`: everything in one document.
pub(super) fn v2() -> Value {
    let mut definitions = Map::new();
    for ty in &schema().types {
        definitions.insert(ty.definition(), definition(ty, Dialect::V2));
    }
    builtins(&mut definitions, Dialect::V2);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths(KINDS.iter().copied(), Dialect::V2),
        "definitions": definitions,
    })
}

/// `/openapi/v3/...`: one group version with the types it reaches.
pub(super) fn v3(group: &str) -> Value {
    let kinds: Vec<&Kind> = KINDS.iter().copied().filter(|k| k.group == group).collect();
    let mut reached = BTreeSet::new();
    for kind in &kinds {
        reach(schema().of(kind.group, kind.kind), &mut reached);
    }
    let mut schemas = Map::new();
    for index in reached {
        let ty = schema().at(index);
        schemas.insert(ty.definition(), definition(ty, Dialect::V3));
    }
    builtins(&mut schemas, Dialect::V3);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths(kinds.into_iter(), Dialect::V3),
        "components": {"schemas": schemas},
    })
}

fn reach(ty: Option<&TypeDef>, reached: &mut BTreeSet<usize>) {
    let Some(ty) = ty else { return };
    let index = schema().types.iter().position(|t| std::ptr::eq(t, ty)).unwrap_or(0);
    if reached.insert(index) {
        for field in &ty.fields {
            reach_type(&field.ty, reached);
        }
    }
}

fn reach_type(ty: &Type, reached: &mut BTreeSet<usize>) {
    match ty {
        Type::Ref(index) => reach(Some(schema().at(*index)), reached),
        Type::List(item) | Type::Map(item) => reach_type(item, reached),
        _ => {}
    }
}

fn definition(ty: &TypeDef, dialect: Dialect) -> Value {
    let mut properties = Map::new();
    let kind = KINDS.iter().find(|k| schema().of(k.group, k.kind).is_some_and(|root| std::ptr::eq(root, ty)));
    let scale = ty.definition() == "io.k8s.api.autoscaling.v1.Scale";
    if kind.is_some() || scale {
        properties.insert(
            "apiVersion".to_owned(),
            json!({"type": "string",
            "description": "APIVersion defines the versioned schema of this representation of an object."}),
        );
        properties.insert(
            "kind".to_owned(),
            json!({"type": "string",
            "description": "Kind is a string value representing the REST resource this object represents."}),
        );
    }
    for field in &ty.fields {
        properties.insert(field.name.clone(), property(field, dialect));
    }
    let mut out = json!({"type": "object", "description": ty.text});
    if !properties.is_empty() {
        out["properties"] = Value::Object(properties);
    }
    let required: Vec<&str> = ty.fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if ty.open {
        out["x-kubernetes-preserve-unknown-fields"] = json!(true);
    }
    if let Some(kind) = kind {
        out["x-kubernetes-group-version-kind"] = json!([gvk(kind.group, kind.version, kind.kind)]);
    } else if scale {
        out["x-kubernetes-group-version-kind"] = json!([gvk("autoscaling", "v1", "Scale")]);
    }
    out
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn property(field: &Field, dialect: Dialect) -> Value {
    let mut out = type_schema(&field.ty, dialect);
    // In v3 a reference stands alone, so what is said beside it goes around it.
    if dialect == Dialect::V3 {
        if let Some(target) = out.get("$ref").cloned() {
            out = json!({"allOf": [{"$ref": target}]});
        }
    }
    out["description"] = json!(field.text);
    let mut strategy = Vec::new();
    if let Some(key) = field.keys.first() {
        out["x-kubernetes-patch-merge-key"] = json!(key);
        out["x-kubernetes-list-type"] = json!("map");
        out["x-kubernetes-list-map-keys"] = json!(field.keys);
        strategy.push("merge");
    } else if field.set {
        out["x-kubernetes-list-type"] = json!("set");
        strategy.push("merge");
    }
    if field.retain_keys {
        strategy.push("retainKeys");
    }
    if !strategy.is_empty() {
        out["x-kubernetes-patch-strategy"] = json!(strategy.join(","));
    }
    out
}

fn type_schema(ty: &Type, dialect: Dialect) -> Value {
    let reference = |name: &str| {
        let root = match dialect {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{root}{name}")})
    };
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Object => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        Type::IntOrString => reference(INT_OR_STRING),
        Type::Quantity => reference(QUANTITY),
        Type::Time => reference(TIME),
        Type::MicroTime => reference(MICRO_TIME),
        Type::Ref(index) => reference(&schema().at(*index).definition()),
        Type::List(item) => json!({"type": "array", "items": type_schema(item, dialect)}),
        Type::Map(item) => {
            json!({"type": "object", "additionalProperties": type_schema(item, dialect)})
        }
    }
}

fn builtins(definitions: &mut Map<String, Value>, dialect: Dialect) {
    let either = |text: &str| match dialect {
        Dialect::V2 => json!({"type": "string", "description": text}),
        Dialect::V3 => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}], "description": text})
        }
    };
    definitions.insert(QUANTITY.to_owned(), either("Quantity is a fixed-point representation of a number."));
    let mut number_or_name = either("IntOrString is a number or the name of one.");
    number_or_name["format"] = json!("int-or-string");
    definitions.insert(INT_OR_STRING.to_owned(), number_or_name);
    for (name, text) in [(TIME, "Time as RFC 3339."), (MICRO_TIME, "Time as RFC 3339 with microseconds.")] {
        definitions.insert(name.to_owned(), json!({"type": "string", "format": "date-time", "description": text}));
    }
}

fn paths<'a>(kinds: impl Iterator<Item = &'a Kind>, dialect: Dialect) -> Value {
    let mut out = Map::new();
    for kind in kinds {
        let collection = kind.path(kind.namespaced.then_some("{namespace}"));
        let operation = |action: &str, parameters: &[&str]| operation(kind, action, parameters, dialect);
        let write = ["dryRun", "fieldManager", "fieldValidation"];
        out.insert(
            collection.clone(),
            json!({"get": operation("list", &["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion"]),
                "post": operation("post", &write)}),
        );
        out.insert(
            format!("{collection}/{{name}}"),
            json!({"get": operation("get", &[]), "put": operation("put", &write),
                "patch": operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"]),
                "delete": operation("delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"])}),
        );
    }
    Value::Object(out)
}

fn operation(kind: &Kind, action: &str, parameters: &[&str], dialect: Dialect) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let ty = match *name {
                "limit" | "gracePeriodSeconds" => "integer",
                "force" => "boolean",
                _ => "string",
            };
            let mut parameter = json!({"name": name, "in": "query"});
            match dialect {
                Dialect::V2 => parameter["type"] = json!(ty),
                Dialect::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
            }
            parameter
        })
        .collect();
    json!({
        "operationId": format!("{action}{}{}", kind.group.replace('.', "_"), kind.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind.group, kind.version, kind.kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.clone());
                }
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_has_its_target() {
        let mut documents = vec![v2()];
        documents.extend(["", "apps", "discovery.k8s.io", "coordination.k8s.io"].map(v3));
        for document in documents {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for target in found {
                let pointer = target.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{target}");
            }
        }
    }

    #[test]
    fn kubectl_finds_merge_keys_and_parameters() {
        let document = v3("apps");
        let schemas = &document["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    }
}
