//! The REST face: from an authenticated request to its answer.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, WARNING};
use hyper::{Method, Request, Response};
use serde_json::Value;
use tokio::sync::watch;

use super::apply::Applied;
use super::kind::{self, Kind};
use super::request::{self, Format, Query, RequestInfo};
use super::status::ApiStatus;
use super::{PatchType, Selectors, Subresource, removal};
use super::{discovery, listing, meta, render, reviews, scale, stream, views};
use crate::auth::Identity;
use crate::auth::authz::{self, Attributes};
use crate::auth::impersonate;
use crate::http::{Body, Handled, Server, json_response};
use crate::openapi::conform;

/// Subresources served by `Extra`.
const CONNECTED: &[(&str, &str)] = &[
    ("pods", "log"),
    ("pods", "exec"),
    ("pods", "attach"),
    ("pods", "portforward"),
    ("pods", "proxy"),
    ("nodes", "proxy"),
    ("serviceaccounts", "token"),
];

/// What one request works with.
pub(super) struct Context {
    pub(super) server: Arc<Server>,
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) info: RequestInfo,
    pub(super) query: Query,
    pub(super) format: Format,
    pub(super) identity: Identity,
}

impl Context {
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(super) fn selectors(&self) -> Result<Selectors, ApiStatus> {
        Selectors::parse(self.kind, self.query.get("labelSelector"), self.query.get("fieldSelector"))
    }
}

/// Answers a request to the Kubernetes API.
///
/// # Errors
/// The Status to answer with.
pub async fn handle(
    server: Arc<Server>,
    request: Request<Incoming>,
    identity: Identity,
    stop: watch::Receiver<bool>,
) -> Result<Response<Body>, ApiStatus> {
    let identity = impersonate::apply(request.headers(), identity)?;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path = request.uri().path().to_owned();
    let Some(info) = RequestInfo::parse(request.method(), &path, &query) else {
        let verb = if request.method() == Method::HEAD { "get".to_owned() } else { request.method().as_str().to_lowercase() };
        authz::authorize(&server.registry, &identity, &Attributes::path(&verb, &path))?;
        if !["get", "head"].contains(&verb.as_str()) {
            return Err(ApiStatus::method_not_allowed());
        }
        return discovery::handle(&path, request.headers(), &query);
    };
    authz::authorize(&server.registry, &identity, &Attributes::of(&info, query.get("fieldSelector")))?;
    if info.group.is_empty() && CONNECTED.contains(&(info.resource.as_str(), info.subresource.as_str())) {
        return match Arc::clone(&server.extra).subresource(info, request, identity) {
            Handled::Response(response) => Ok(response.await),
            Handled::NotMine(_) => Err(ApiStatus::no_such_path()),
        };
    }
    if let Some(review) = reviews::find(&info) {
        let media = request::content_type(request.headers());
        if request.method() != Method::POST {
            return Err(ApiStatus::method_not_allowed());
        }
        request::accepted(request.headers())?;
        let body = request::decode(&media, &request::read_body(request.into_body()).await?)?;
        return review.answer(&server, &info, &identity, body);
    }
    let kind = kind::by_resource(&info.group, &info.version, &info.resource).ok_or_else(ApiStatus::no_such_path)?;
    let namespace = (kind.namespaced && !info.namespace.is_empty()).then(|| info.namespace.clone());
    if info.namespace.is_empty() != namespace.is_none() && kind != &kind::NAMESPACE {
        return Err(ApiStatus::no_such_path());
    }
    let format = request::accepted(request.headers())?;
    let context = Context { server, kind, namespace, info, query, format, identity };
    let media = request::content_type(request.headers());
    let head = request.method() == Method::HEAD;
    let mut response = dispatch(context, media, request, stop).await?;
    if kind == &kind::ENDPOINTS {
        let warning = HeaderValue::from_static("299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"");
        response.headers_mut().append(WARNING, warning);
    }
    Ok(if head { response.map(|_| crate::http::full("")) } else { response })
}

async fn dispatch(
    context: Context,
    media: String,
    request: Request<Incoming>,
    stop: watch::Receiver<bool>,
) -> Result<Response<Body>, ApiStatus> {
    let sub = context.info.subresource.clone();
    let named = !context.info.name.is_empty();
    // A cluster-wide path of a namespaced kind only lists and watches.
    let placed = !context.kind.namespaced || context.namespace.is_some();
    match (sub.as_str(), context.info.verb) {
        ("", "list") => listing::list(&context),
        ("", "watch") => stream::watch(&context, stop),
        ("", "get") if placed => get(&context),
        ("", "create") if placed && !named => {
            let body = body(&context, &media, request).await?;
            create(&context, body).await
        }
        ("", "update") if placed && named => {
            let body = body(&context, &media, request).await?;
            update(&context, Subresource::Main, body).await
        }
        ("", "patch") if placed && named => patch(&context, Subresource::Main, &media, request).await,
        ("", "delete") if placed => {
            let options = removal::delete_options(&context, &media, request).await?;
            removal::delete(&context, options).await
        }
        ("", "deletecollection") if placed => {
            let options = removal::delete_options(&context, &media, request).await?;
            listing::delete_collection(&context, &options).await
        }
        ("", _) => Err(ApiStatus::method_not_allowed()),
        ("status", "get") if context.kind.status => get(&context),
        ("status", "update") if context.kind.status => {
            let body = body(&context, &media, request).await?;
            update(&context, Subresource::Status, body).await
        }
        ("status", "patch") if context.kind.status => patch(&context, Subresource::Status, &media, request).await,
        ("status", _) if context.kind.status => Err(ApiStatus::method_not_allowed()),
        ("scale", verb) if context.kind.scale => match verb {
            "get" => scale::get(&context),
            "update" | "patch" => {
                let patch = if verb == "patch" { Some(patch_type(&media)?) } else { None };
                let bytes = request::read_body(request.into_body()).await?;
                let body = request::decode(if patch.is_some() { "application/yaml" } else { &media }, &bytes)?;
                scale::set(&context, patch, body).await
            }
            _ => Err(ApiStatus::method_not_allowed()),
        },
        ("binding", "create") if context.kind == &kind::POD => {
            let body = body_as_is(&media, request).await?;
            removal::bind(&context, &context.info.name, &body).await
        }
        ("eviction", "create") if context.kind == &kind::POD => {
            let body = body_as_is(&media, request).await?;
            removal::evict(&context, &body).await
        }
        ("finalize", "update") if context.kind == &kind::NAMESPACE => {
            let body = body(&context, &media, request).await?;
            removal::finalize(&context, body).await
        }
        ("binding" | "eviction", _) if context.kind == &kind::POD => Err(ApiStatus::method_not_allowed()),
        _ => Err(ApiStatus::no_such_path()),
    }
}

async fn body_as_is(media: &str, request: Request<Incoming>) -> Result<Value, ApiStatus> {
    request::decode(media, &request::read_body(request.into_body()).await?)
}

/// The object in the body, as the store's kind, checked against the schema as `fieldValidation` asks.
async fn body(context: &Context, media: &str, request: Request<Incoming>) -> Result<(Value, Vec<String>), ApiStatus> {
    let mut object = body_as_is(media, request).await?;
    let warnings = check(context, &mut object)?;
    Ok((views::to_stored(context.kind, object), warnings))
}

/// What is wrong with an object; fields that its kind does not have are taken out of it.
fn check(context: &Context, object: &mut Value) -> Result<Vec<String>, ApiStatus> {
    let kind = context.kind;
    let version = kind.api_version();
    if let Some(given) = object.get("apiVersion").and_then(Value::as_str).filter(|g| *g != version) {
        return Err(ApiStatus::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({version})"
        )));
    }
    if let Some(given) = object.get("kind").and_then(Value::as_str).filter(|g| *g != kind.kind) {
        return Err(ApiStatus::bad_request(format!(
            "{given} in version \"{}\" cannot be handled as a {}: no kind \"{given}\" is registered for this path",
            kind.version, kind.kind
        )));
    }
    let found = conform::check(kind, object);
    if let Some(wrong) = found.wrong.first() {
        return Err(ApiStatus::bad_request(format!(
            "{0} in version \"{1}\" cannot be handled as a {0}: json: cannot unmarshal {wrong}",
            kind.kind, kind.version
        )));
    }
    if !found.unknown.is_empty() {
        conform::prune(kind, object);
    }
    match context.query.get("fieldValidation") {
        "Strict" if !found.unknown.is_empty() => {
            let list: Vec<String> = found.unknown.iter().map(|p| format!("unknown field \"{p}\"")).collect();
            Err(ApiStatus::bad_request(format!(
                "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
                kind.kind,
                kind.version,
                list.join(", ")
            )))
        }
        "Ignore" | "Strict" => Ok(Vec::new()),
        "" | "Warn" => Ok(found.unknown.iter().map(|p| format!("unknown field \"{p}\"")).collect()),
        other => Err(ApiStatus::bad_request(format!(
            "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}

fn get(context: &Context) -> Result<Response<Body>, ApiStatus> {
    let object = context.server.registry.get(context.kind, context.namespace(), &context.info.name)?;
    Ok(answer(context, 200, &object, &[]))
}

pub(super) fn answer(context: &Context, code: u16, object: &Value, warnings: &[String]) -> Response<Body> {
    let mut response = json_response(code, render::object(context, object));
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - {warning:?}")) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

async fn create(context: &Context, (object, warnings): (Value, Vec<String>)) -> Result<Response<Body>, ApiStatus> {
    let dry_run = context.query.dry_run()?;
    let registry = &context.server.registry;
    let made = registry.create_with(context.kind, context.namespace(), object, &context.identity, dry_run).await?;
    Ok(answer(context, 201, &made, &warnings))
}

async fn update(context: &Context, sub: Subresource, (object, warnings): (Value, Vec<String>)) -> Result<Response<Body>, ApiStatus> {
    let dry_run = context.query.dry_run()?;
    let registry = &context.server.registry;
    let name = &context.info.name;
    let creates = sub == Subresource::Main
        && meta::get(&object, "resourceVersion").is_empty()
        && [&kind::LEASE, &kind::EVENT, &kind::ENDPOINTS].contains(&context.kind);
    if creates && registry.get(context.kind, context.namespace(), name).is_err() {
        let made = registry.create_with(context.kind, context.namespace(), object, &context.identity, dry_run).await?;
        return Ok(answer(context, 201, &made, &warnings));
    }
    let stored = registry.update_with(context.kind, context.namespace(), name, object, sub, &context.identity, dry_run).await?;
    Ok(answer(context, 200, &stored, &warnings))
}

fn patch_type(media: &str) -> Result<PatchType, ApiStatus> {
    PatchType::from_media_type(media).ok_or_else(|| ApiStatus::unsupported_media_type(media, PatchType::ACCEPTED))
}

async fn patch(context: &Context, sub: Subresource, media: &str, request: Request<Incoming>) -> Result<Response<Body>, ApiStatus> {
    let patch_type = patch_type(media)?;
    let dry_run = context.query.dry_run()?;
    let bytes = request::read_body(request.into_body()).await?;
    let media = if patch_type == PatchType::Apply { "application/apply-patch+yaml" } else { "application/json" };
    let mut body = request::decode(media, &bytes)?;
    let registry = &context.server.registry;
    let (kind, namespace, name) = (context.kind, context.namespace(), &context.info.name);
    if patch_type == PatchType::Apply {
        if context.query.get("fieldManager").is_empty() {
            return Err(ApiStatus::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        let warnings = check(context, &mut body)?;
        let config = views::to_stored(kind, body);
        let applied = Applied {
            config: &config,
            manager: context.query.get("fieldManager"),
            force: context.query.flag("force") && !context.query.get("force").is_empty(),
        };
        let (stored, created) = registry.apply(kind, namespace, name, &applied, sub, &context.identity, dry_run).await?;
        return Ok(answer(context, if created { 201 } else { 200 }, &stored, &warnings));
    }
    let warnings = match patch_type {
        PatchType::Merge | PatchType::Strategic => check(context, &mut body)?,
        PatchType::Json | PatchType::Apply => Vec::new(),
    };
    let body = if kind == &kind::EVENT_V1 { views::to_stored(kind, body) } else { body };
    let stored = registry.patch_with(kind, namespace, name, patch_type, body, sub, &context.identity, dry_run).await?;
    Ok(answer(context, 200, &stored, &warnings))
}
