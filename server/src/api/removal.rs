//! The REST verbs that take away or let go: delete, evict, finalize; and binding, the other pod subresource.

use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::Value;

use super::kind::{self, Kind};
use super::request::{self, Query};
use super::rest::{Context, answer};
use super::status::{ApiStatus, Cause};
use super::{DeleteOptions, Propagation, Subresource, meta};
use crate::http::{Body, json_response};

pub(super) async fn delete_options(context: &Context, media: &str, request: Request<Incoming>) -> Result<DeleteOptions, ApiStatus> {
    let bytes = request::read_body(request.into_body()).await?;
    let body = if bytes.is_empty() { Value::Null } else { request::decode(media, &bytes)? };
    read_delete_options(&context.query, &body)
}

/// From query and body; the body wins.
fn read_delete_options(query: &Query, body: &Value) -> Result<DeleteOptions, ApiStatus> {
    let mut options = DeleteOptions { dry_run: query.dry_run()?, ..DeleteOptions::default() };
    if let Some(seconds) = query.number("gracePeriodSeconds")? {
        options.grace_period = i64::try_from(seconds).ok();
    }
    if let Some(seconds) = body["gracePeriodSeconds"].as_i64() {
        options.grace_period = Some(seconds);
    }
    let text = |v: &Value| v.as_str().map(str::to_owned);
    options.uid = text(&body["preconditions"]["uid"]);
    options.resource_version = text(&body["preconditions"]["resourceVersion"]);
    options.dry_run |= body["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All"));
    let policy = text(&body["propagationPolicy"]).unwrap_or_else(|| query.get("propagationPolicy").to_owned());
    options.propagation = match policy.as_str() {
        "" => body["orphanDependents"].as_bool().map(|o| if o { Propagation::Orphan } else { Propagation::Background }),
        "Background" => Some(Propagation::Background),
        "Foreground" => Some(Propagation::Foreground),
        "Orphan" => Some(Propagation::Orphan),
        other => {
            return Err(ApiStatus::bad_request(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
    };
    Ok(options)
}

/// Kinds whose deletion answers with the object instead of a Status.
fn returns_object(kind: &Kind) -> bool {
    [&kind::POD, &kind::SERVICE, &kind::SERVICE_ACCOUNT].contains(&kind)
}

pub(super) async fn delete(context: &Context, options: DeleteOptions) -> Result<Response<Body>, ApiStatus> {
    let (kind, name) = (context.kind, &context.info.name);
    let (object, gone) = context.server.registry.delete_with(kind, context.namespace(), name, &options, &context.identity).await?;
    if gone && !returns_object(kind) {
        let status = ApiStatus::deleted(kind, name, meta::uid(&object));
        return Ok(json_response(200, status.body()));
    }
    Ok(answer(context, 200, &object, &[]))
}

/// `POST pods/NAME/binding`.
pub(super) async fn bind(context: &Context, pod: &str, body: &Value) -> Result<Response<Body>, ApiStatus> {
    let node = body["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        let cause =
            Cause { reason: "FieldValueRequired".to_owned(), message: "Required value".to_owned(), field: "target.name".to_owned() };
        return Err(ApiStatus::invalid(context.kind, pod, vec![cause]));
    }
    let namespace = context.namespace().unwrap_or_default();
    if !context.query.dry_run()? {
        context.server.registry.bind(namespace, pod, node, &context.identity).await?;
    }
    Ok(json_response(201, ApiStatus::success(201).body()))
}

/// `POST pods/NAME/eviction`: there are no disruption budgets, so it deletes.
pub(super) async fn evict(context: &Context, body: &Value) -> Result<Response<Body>, ApiStatus> {
    let mut options = read_delete_options(&context.query, &body["deleteOptions"])?;
    options.dry_run |= context.query.dry_run()?;
    let registry = &context.server.registry;
    registry.delete_with(context.kind, context.namespace(), &context.info.name, &options, &context.identity).await?;
    Ok(json_response(201, ApiStatus::success(201).body()))
}

/// `PUT namespaces/NAME/finalize`: only `spec.finalizers` changes.
pub(super) async fn finalize(context: &Context, (object, _): (Value, Vec<String>)) -> Result<Response<Body>, ApiStatus> {
    let finalizers = object["spec"]["finalizers"].clone();
    let registry = &context.server.registry;
    let stored = registry
        .modify(context.kind, None, &context.info.name, Subresource::Main, &context.identity, |namespace| {
            namespace["spec"]["finalizers"] = finalizers.clone();
            true
        })
        .await?;
    Ok(answer(context, 200, &stored, &[]))
}
