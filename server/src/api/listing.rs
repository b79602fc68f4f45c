//! Lists: pages, versions, and deleting what a list would show.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Response;
use serde_json::{Value, json};

use super::rest::Context;
use super::status::ApiStatus;
use super::{DeleteOptions, meta, render};
use crate::http::{Body, json_response};

/// `GET` of a collection.
///
/// Later pages are read from the present, but carry the version of the first: a watch from there brings
/// everything that changed in between.
pub(super) fn list(context: &Context) -> Result<Response<Body>, ApiStatus> {
    let selectors = context.selectors()?;
    let registry = &context.server.registry;
    let asked = context.query.number("resourceVersion")?.unwrap_or(0);
    let (mut items, mut version) = registry.list(context.kind, context.namespace(), &selectors);
    if asked > version {
        return Err(ApiStatus::timeout(format!("Too large resource version: {asked}, current: {version}")));
    }
    if context.query.get("resourceVersionMatch") == "Exact" && asked != version {
        return Err(ApiStatus::expired(format!("The provided resource version {asked} is too old.")));
    }
    let limit = context.query.number("limit")?.map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX));
    let limit = if limit == 0 { usize::MAX } else { limit };
    if let Some((first_version, after)) = read_token(context.query.get("continue"))? {
        version = first_version;
        items.retain(|item| position(item) > after);
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if items.len() > limit {
        let remaining = items.len() - limit;
        items.truncate(limit);
        if let Some(last) = items.last() {
            metadata["continue"] = json!(token(version, &position(last)));
        }
        if selectors.is_everything() {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    Ok(json_response(200, render::list(context, &metadata, &items)))
}

/// The store's order.
fn position(object: &Value) -> String {
    format!("{}/{}", meta::namespace(object), meta::name(object))
}

fn token(version: u64, after: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": after}).to_string())
}

fn read_token(text: &str) -> Result<Option<(u64, String)>, ApiStatus> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |why: String| ApiStatus::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| bad(error.to_string()))?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    match (token["rv"].as_u64(), token["start"].as_str()) {
        (Some(version), Some(after)) => Ok(Some((version, after.to_owned()))),
        _ => Err(bad("incomplete".to_owned())),
    }
}

/// `DELETE` of a collection.
pub(super) async fn delete_collection(context: &Context, options: &DeleteOptions) -> Result<Response<Body>, ApiStatus> {
    let selectors = context.selectors()?;
    let registry = &context.server.registry;
    let (items, version) = registry.list(context.kind, context.namespace(), &selectors);
    let mut deleted: Vec<Arc<Value>> = Vec::new();
    for item in items {
        let namespace = context.kind.namespaced.then(|| meta::namespace(&item));
        let done = registry.delete_with(context.kind, namespace, meta::name(&item), options, &context.identity).await;
        match done {
            Ok((object, _)) => deleted.push(object),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = json!({"resourceVersion": version.to_string()});
    Ok(json_response(200, render::list(context, &metadata, &deleted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_turn_around_and_refuse_nonsense() {
        assert_eq!(read_token(&token(7, "ns/a")).unwrap(), Some((7, "ns/a".to_owned())));
        assert_eq!(read_token("").unwrap(), None);
        assert_eq!(read_token("!!").unwrap_err().code, 400);
    }
}
