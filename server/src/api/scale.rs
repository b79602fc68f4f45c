//! The scale subresource of deployments and replica sets.

use hyper::Response;
use serde_json::{Value, json};

use super::patch::{self, PatchType};
use super::request::Format;
use super::rest::Context;
use super::status::{ApiStatus, Cause};
use super::{Kind, Subresource, meta, render, table};
use crate::http::{Body, json_response};

/// The scale of an object.
fn of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {}, "status": {}});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale["metadata"][field] = metadata[field].clone();
    }
    scale["spec"]["replicas"] = json!(object["spec"]["replicas"].as_i64().unwrap_or(0));
    scale["status"]["replicas"] = json!(object["status"]["replicas"].as_i64().unwrap_or(0));
    scale["status"]["selector"] = json!(selector_text(&object["spec"]["selector"]));
    scale
}

/// A label selector as kubectl writes it.
pub(super) fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

pub(super) fn get(context: &Context) -> Result<Response<Body>, ApiStatus> {
    let object = context.server.registry.get(context.kind, context.namespace(), &context.info.name)?;
    Ok(answer(context, &object))
}

fn answer(context: &Context, object: &Value) -> Response<Body> {
    let scale = of(object);
    let shown = match context.format {
        Format::Json => scale,
        Format::Table(version) => {
            let row = table::row(&SCALE, &scale, context.query.get("includeObject"));
            table::table(&SCALE, version, &json!({"resourceVersion": scale["metadata"]["resourceVersion"]}), vec![row])
        }
        Format::Partial => render::partial(&scale),
    };
    let mut out = serde_json::to_vec(&shown).unwrap_or_default();
    out.push(b'\n');
    json_response(200, out)
}

/// Replaces (`patch` `None`) or patches the scale.
pub(super) async fn set(context: &Context, patch: Option<PatchType>, body: Value) -> Result<Response<Body>, ApiStatus> {
    let (kind, name) = (context.kind, &context.info.name);
    let dry_run = context.query.dry_run()?;
    let make = |current: &Value| {
        let mut scale = of(current);
        match patch {
            Some(patch_type) => {
                // Left in, it would make a condition of every patch.
                meta::metadata_mut(&mut scale).remove("resourceVersion");
                patch::apply_to(&SCALE, &mut scale, patch_type, &body)?;
            }
            None => scale = body.clone(),
        }
        let replicas = wanted(kind, name, &scale)?;
        let mut next = current.clone();
        let version = scale["metadata"]["resourceVersion"].clone();
        next["metadata"]["resourceVersion"] = if version.is_null() { json!("") } else { version };
        next["spec"]["replicas"] = json!(replicas);
        Ok(Some(next))
    };
    let registry = &context.server.registry;
    let stored = registry.change(kind, context.namespace(), name, Subresource::Main, &context.identity, dry_run, make).await?;
    Ok(answer(context, &stored))
}

static SCALE: Kind = Kind {
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    plural: "scales",
    singular: "scale",
    short: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: false,
    generation: false,
    storage: "",
};

fn wanted(kind: &Kind, name: &str, scale: &Value) -> Result<i64, ApiStatus> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        Value::Number(number) => number.as_i64().unwrap_or(-1),
        _ => return Err(ApiStatus::bad_request("spec.replicas must be a number")),
    };
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".to_owned(),
        };
        let _ = kind;
        return Err(ApiStatus::invalid(&SCALE, name, vec![cause]));
    }
    Ok(replicas)
}
