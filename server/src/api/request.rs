//! Reading a request: its path as Kubernetes reads it, its query, what it accepts, its body. Pure but for the body.

use std::collections::HashMap;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, header};
use serde_json::Value;

use super::status::ApiStatus;
use crate::openapi::wire;

/// Larger bodies are refused with 413, as by the real server.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// What a Kubernetes API path asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub group: String,
    pub version: String,
    pub resource: String,
    /// With what follows it, for example `proxy/containerLogs/…` is subresource `proxy` and rest `containerLogs/…`.
    pub subresource: String,
    pub rest: String,
    pub namespace: String,
    /// Also set for collections whose field selector names one object.
    pub name: String,
    /// get, list, watch, create, update, patch, delete, deletecollection
    pub verb: &'static str,
}

impl RequestInfo {
    /// `None` when the path is not one of a resource (`/api`, `/apis/apps/v1`, `/version`).
    pub fn parse(method: &Method, path: &str, query: &Query) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').map(percent_decode);
        let (group, version) = match parts.next()?.as_str() {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let mut parts: Vec<String> = parts.collect();
        let mut namespace = String::new();
        if parts.len() > 2 && parts[0] == "namespaces" && !["status", "finalize"].contains(&parts[2].as_str()) {
            namespace = parts[1].clone();
            parts.drain(..2);
        } else if parts.len() > 1 && parts[0] == "namespaces" {
            namespace.clone_from(&parts[1]);
        }
        let mut parts = parts.into_iter();
        let resource = parts.next().filter(|r| !r.is_empty())?;
        let mut info = Self {
            group,
            version,
            resource,
            name: parts.next().unwrap_or_default(),
            subresource: parts.next().unwrap_or_default(),
            rest: parts.collect::<Vec<_>>().join("/"),
            namespace,
            verb: "",
        };
        let collection = info.name.is_empty();
        info.verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            Method::GET | Method::HEAD if query.flag("watch") => "watch",
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            _ => "",
        };
        if collection && ["list", "watch", "deletecollection"].contains(&info.verb) {
            let fields = query.get("fieldSelector");
            let named = fields.split(',').find_map(|f| f.strip_prefix("metadata.name="));
            info.name = named.map(|n| n.trim_start_matches('=').to_owned()).unwrap_or_default();
        }
        Some(info)
    }
}

/// The query string, decoded.
#[derive(Debug, Clone, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(&key.replace('+', " ")), percent_decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    /// Empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|v| matches!(v.as_str(), "" | "1" | "true" | "True" | "TRUE"))
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>, ApiStatus> {
        match self.get(key) {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| ApiStatus::bad_request(format!("invalid value for {key}: {text:?} is not a number")))
            }
        }
    }

    /// `dryRun=All`.
    pub fn dry_run(&self) -> Result<bool, ApiStatus> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(ApiStatus::bad_request(format!("dryRun: Unsupported value: \"{other}\": supported values: \"All\""))),
        }
    }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How an answer is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    /// kubectl's columns; `meta.k8s.io/v1` or `v1beta1`.
    Table(&'static str),
    /// Metadata only.
    Partial,
}

/// Chooses by `Accept`.
///
/// # Errors
/// 406 when nothing acceptable can be written.
pub fn accepted(headers: &HeaderMap) -> Result<Format, ApiStatus> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Ok(Format::Json);
    }
    for range in &ranges {
        if !["application/json", "*/*", "application/*"].contains(&range.media.as_str()) {
            continue;
        }
        match (range.param("as"), range.param("g"), range.param("v")) {
            ("", _, _) => return Ok(Format::Json),
            ("Table", "meta.k8s.io", "v1") => return Ok(Format::Table("meta.k8s.io/v1")),
            ("Table", "meta.k8s.io", "v1beta1") => return Ok(Format::Table("meta.k8s.io/v1beta1")),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                return Ok(Format::Partial);
            }
            _ => {}
        }
    }
    Err(ApiStatus::not_acceptable())
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone)]
pub struct MediaRange {
    pub media: String,
    params: Vec<(String, String)>,
}

impl MediaRange {
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str())
    }
}

/// All entries of all `Accept` headers, in order of preference as written.
pub fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let entries = values.flat_map(|v| v.split(',')).map(str::trim).filter(|e| !e.is_empty());
    entries
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let params = parts.filter_map(|p| p.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned()));
            MediaRange { media, params: params.collect() }
        })
        .collect()
}

/// The media type of the body, without parameters.
pub fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a body of at most `BODY_LIMIT`.
pub async fn read_body(body: Incoming) -> Result<bytes::Bytes, ApiStatus> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiStatus::too_large(BODY_LIMIT)),
        Err(error) => Err(ApiStatus::bad_request(format!("unable to read the body: {error}"))),
    }
}

/// An object sent as JSON or YAML.
///
/// # Errors
/// 415 for another media type, 400 for what does not parse.
pub fn decode(media: &str, body: &[u8]) -> Result<Value, ApiStatus> {
    match media {
        "" | "application/json" | "*/*" => serde_json::from_slice(body)
            .map_err(|error| ApiStatus::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
        "application/yaml" | "application/apply-patch+yaml" => {
            yaml_serde::from_slice(body).map_err(|error| ApiStatus::bad_request(format!("error converting YAML to JSON: {error}")))
        }
        "application/vnd.kubernetes.protobuf" => {
            wire::decode(body).map_err(|error| ApiStatus::bad_request(format!("error decoding protobuf: {error}")))
        }
        other => {
            Err(ApiStatus::unsupported_media_type(other, &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_kubernetes_reads_them() {
        let rows = [
            ("GET", "/api/v1/pods", "list pods//"),
            ("GET", "/api/v1/pods?watch=true", "watch pods//"),
            ("GET", "/api/v1/namespaces", "list namespaces//"),
            ("GET", "/api/v1/namespaces/a", "get namespaces/a/a"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update namespaces/a/a/finalize"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get pods/a/b/log"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create deployments.apps/a/"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch deployments.apps/a/d/scale"),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection pods/a/"),
            ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dx", "list nodes//x"),
            ("GET", "/api/v1/nodes/n/proxy/metrics/cadvisor", "get nodes//n/proxy metrics/cadvisor"),
            ("GET", "/api/v1", "none"),
            ("GET", "/apis/apps", "none"),
            ("GET", "/version", "none"),
        ];
        for (method, target, expected) in rows {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let method: Method = method.parse().unwrap();
            let text = match RequestInfo::parse(&method, path, &Query::parse(query)) {
                None => "none".to_owned(),
                Some(i) => {
                    let group = if i.group.is_empty() { String::new() } else { format!(".{}", i.group) };
                    let mut text = format!("{} {}{group}/{}/{}", i.verb, i.resource, i.namespace, i.name);
                    if !i.subresource.is_empty() {
                        text = format!("{text}/{}", i.subresource);
                    }
                    if !i.rest.is_empty() {
                        text = format!("{text} {}", i.rest);
                    }
                    text
                }
            };
            assert_eq!(text, expected, "{target}");
        }
    }

    #[test]
    fn accept_chooses_the_first_that_can_be_written() {
        let rows = [
            ("", Some(Format::Json)),
            ("application/json", Some(Format::Json)),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Format::Json)),
            ("application/vnd.kubernetes.protobuf", None),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Format::Table("meta.k8s.io/v1")),
            ),
            ("application/json;as=Other;v=v1;g=x,application/json", Some(Format::Json)),
            ("*/*", Some(Format::Json)),
            ("text/html", None),
        ];
        for (accept, expected) in rows {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(accepted(&headers).ok(), expected, "{accept}");
        }
    }
}
