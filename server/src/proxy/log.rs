//! `kubectl logs`: the kubelet's `/containerLogs`, passed on chunk by chunk.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::{Proxy, query, target};
use crate::api::{ApiStatus, Cause, kind};
use crate::http::{Body, RequestInfo, full};

/// Parameters handed on as they came.
const PASSED: [&str; 8] = ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
/// Of an error answer; more is cut, as by the real server.
const ERROR_LIMIT: usize = 2048;

pub(super) async fn serve(proxy: &Proxy, info: &RequestInfo, request: Request<Incoming>) -> Result<Response<Body>, ApiStatus> {
    let pairs = query::pairs(request.uri().query().unwrap_or_default());
    check(&pairs, &info.name)?;
    let pod = proxy.registry.get(&kind::POD, Some(&info.namespace), &info.name)?;
    let container = target::container(&pod, query::first(&pairs, "container").unwrap_or_default())?;
    // A pod no node has yet has no log; the real server answers with nothing, too.
    let Some(node) = target::node(&pod) else {
        return Ok(text(full("")));
    };
    let passed = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| PASSED.contains(key));
    let passed = query::encode(passed);
    let mark = if passed.is_empty() { "" } else { "?" };
    let uri = format!("/containerLogs/{}/{}/{container}{mark}{passed}", info.namespace, info.name);
    let request = Request::get(uri).body(Full::new(Bytes::new())).map_err(|error| ApiStatus::bad_request(error.to_string()))?;
    let answer = proxy.kubelets.send(node, request).await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(text(Body::new(answer.into_body().map_err(Into::into))));
    }
    let body = Limited::new(answer.into_body(), ERROR_LIMIT).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Err(refused(status, String::from_utf8_lossy(&body).trim(), &info.name))
}

fn text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// What the real server makes of a kubelet's refusal.
fn refused(status: StatusCode, message: &str, pod: &str) -> ApiStatus {
    match status {
        StatusCode::BAD_REQUEST => ApiStatus::bad_request(message),
        StatusCode::INTERNAL_SERVER_ERROR => ApiStatus::internal(message),
        StatusCode::NOT_FOUND => {
            let mut found = ApiStatus::not_found(&kind::POD, pod);
            found.message = format!("the server could not find the requested resource ( pods/log {pod}): {message}");
            found
        }
        other => {
            let mut failure = ApiStatus::internal("");
            failure.code = other.as_u16();
            failure.reason = "";
            failure.message = message.to_owned();
            failure
        }
    }
}

/// The checks of PodLogOptions.
fn check(pairs: &[(String, String)], pod: &str) -> Result<(), ApiStatus> {
    let mut causes = Vec::new();
    let mut wrong = |field: &str, value: &str, why: &str| {
        causes.push(Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {value}: {why}"),
            field: field.to_owned(),
        });
    };
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(value) = query::first(pairs, field) {
            match value.parse::<i64>() {
                Ok(number) if number >= least => {}
                Ok(_) => wrong(field, value, why),
                Err(_) => {
                    return Err(ApiStatus::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")));
                }
            }
        }
    }
    if query::first(pairs, "sinceSeconds").is_some() && query::first(pairs, "sinceTime").is_some() {
        causes.push(Cause {
            reason: "FieldValueForbidden".to_owned(),
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
            field: String::new(),
        });
    }
    if causes.is_empty() {
        return Ok(());
    }
    let mut status = ApiStatus::invalid(&kind::POD, pod, causes);
    status.message = status.message.replacen("Pod ", "PodLogOptions ", 1);
    Err(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_before_a_node_is_asked() {
        for (query, code) in [
            ("tailLines=10&follow=true", 200),
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("tailLines=many", 400),
            ("sinceSeconds=1&sinceTime=2026-11-23T00:00:00Z", 422),
        ] {
            let got = check(&query::pairs(query), "web").map_or_else(|error| error.code, |()| 200);
            assert_eq!(got, code, "{query}");
        }
    }
}
