//! What the API looks like, for kubectl and for ourselves: one table, three uses.
//!
//! `schema` is the table; `document` and `proto` tell kubectl, `conform` checks what comes in, and patches merge
//! by its keys.

pub mod conform;
mod document;
mod proto;
pub mod schema;
pub mod wire;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::ApiStatus;
use crate::api::kind::KINDS;
use crate::api::request::media_ranges;
use crate::http::{Body, full, json_response};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `@` may be asked for but is no valid media type to answer with; clients check.
const V2_PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Documents do not change while the server runs; each is written when first asked for.
static WRITTEN: LazyLock<Mutex<HashMap<String, Bytes>>> = LazyLock::new(|| Mutex::new(HashMap::new()));

fn written(name: &str, write: impl FnOnce() -> Vec<u8>) -> Bytes {
    let mut documents = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    documents.entry(name.to_owned()).or_insert_with(|| Bytes::from(write())).clone()
}

fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Answers below `/openapi`.
///
/// # Errors
/// 404 for an unknown document, 406 for a form it is not written in.
pub fn handle(parts: &[&str], headers: &HeaderMap) -> Result<Response<Body>, ApiStatus> {
    let (body, media) = match parts {
        ["openapi", "v2"] => match v2_form(headers)? {
            V2_PROTOBUF => (written("v2 protobuf", || proto::document(&document::v2())), V2_PROTOBUF_ANSWER),
            json => (written("v2", || text(&document::v2())), json),
        },
        ["openapi", "v3"] => return Ok(json_response(200, text(&index()))),
        ["openapi", "v3", rest @ ..] => {
            let group = group_of(rest).ok_or_else(ApiStatus::no_such_path)?;
            if !accepts_json(headers) {
                return Err(ApiStatus::not_acceptable());
            }
            (written(&rest.join("/"), || text(&document::v3(group))), "application/json")
        }
        _ => return Err(ApiStatus::no_such_path()),
    };
    let tag = tag(&body);
    if headers.get(IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == tag.as_bytes()) {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let mut response = json_response(200, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}

fn v2_form(headers: &HeaderMap) -> Result<&'static str, ApiStatus> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Ok("application/json");
    }
    let form = |media: &str| match media {
        V2_PROTOBUF => Some(V2_PROTOBUF),
        "application/json" | "*/*" | "application/*" => Some("application/json"),
        _ => None,
    };
    ranges.iter().find_map(|r| form(&r.media)).ok_or_else(ApiStatus::not_acceptable)
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let ranges = media_ranges(headers);
    ranges.is_empty() || ranges.iter().any(|r| ["application/json", "*/*", "application/*"].contains(&r.media.as_str()))
}

/// The group of `api/v1` or `apis/GROUP/v1`.
fn group_of(parts: &[&str]) -> Option<&'static str> {
    let wanted = match parts {
        ["api", "v1"] => "",
        ["apis", group, "v1"] => group,
        _ => return None,
    };
    KINDS.iter().find(|k| k.group == wanted).map(|k| k.group)
}

fn index() -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let path = if kind.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/v1", kind.group) };
        if !paths.contains_key(&path) {
            let body = written(&path, || text(&document::v3(kind.group)));
            let hash = tag(&body).trim_matches('"').to_owned();
            paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
        }
    }
    json!({"paths": paths})
}

fn tag(body: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    let hex: String = digest.as_ref().iter().take(16).map(|b| format!("{b:02X}")).collect();
    format!("\"{hex}\"")
}
