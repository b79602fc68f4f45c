//! `nodes/NAME/proxy/...`: any path of the kubelet server.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Request, Response};

use super::Proxy;
use crate::api::ApiStatus;
use crate::http::{Body, RequestInfo};

/// Of a request's body; what kubelets take is small.
const BODY_LIMIT: usize = 1024 * 1024;

pub(super) async fn serve(proxy: &Proxy, info: &RequestInfo, request: Request<Incoming>) -> Result<Response<Body>, ApiStatus> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|_| ApiStatus::too_large(BODY_LIMIT))?.to_bytes();
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("/{}{query}", info.rest.trim_start_matches('/'));
    let mut upstream = Request::builder()
        .method(parts.method)
        .uri(uri)
        .body(Full::new(body))
        .map_err(|error| ApiStatus::bad_request(error.to_string()))?;
    for name in [ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT] {
        if let Some(value) = parts.headers.get(&name) {
            upstream.headers_mut().insert(name, value.clone());
        }
    }
    if let Ok(forwarded) = HeaderValue::from_str(parts.uri.path()) {
        upstream.headers_mut().insert("x-forwarded-uri", forwarded);
    }
    let answer = proxy.kubelets.send(&info.name, upstream).await?;
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body.map_err(Into::into)));
    *response.status_mut() = parts.status;
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}
