//! Failures as the supervisor writes them: a Status without `apiVersion`, a final newline, `Connection: close`.

use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::http::{Body, full};

/// One refused request.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    body: String,
}

#[derive(Serialize)]
struct Status<'a> {
    kind: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    message: &'a str,
}

impl Failure {
    fn new(status: StatusCode, reason: &'static str, message: &str, cause: Option<&str>) -> Failure {
        let document = Status {
            kind: "Status",
            metadata: Empty {},
            status: "Failure",
            message,
            reason,
            details: cause.map(|message| Details { causes: [Cause { message }] }),
            code: status.as_u16(),
        };
        let mut body = go_escape(&serde_json::to_string(&document).expect("plain strings serialise"));
        body.push('\n');
        Failure { status, body }
    }

    /// 400
    pub fn bad_request(message: &str) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    /// 401
    pub fn unauthorized(message: &str) -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized", message, None)
    }

    /// 403
    pub fn forbidden(message: &str) -> Failure {
        Failure::new(StatusCode::FORBIDDEN, "Forbidden", message, None)
    }

    /// 404
    pub fn not_found(message: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "NotFound", message, None)
    }

    /// 500, with the cause repeated in `details` as K3s does.
    pub fn internal(cause: &str) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &format!("Internal error occurred: {cause}"), Some(cause))
    }

    /// 503
    pub fn unavailable(message: &str) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message, None)
    }

    /// This failure's document followed by that of `other`: what a refused tunnel upgrade answers.
    pub fn and(mut self, other: &Failure) -> Failure {
        self.body.push_str(&other.body);
        self
    }

    /// The status code.
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// The body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// As an answer.
    pub fn response(self) -> Response<Body> {
        let mut response = Response::new(full(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Go's encoder writes these three as escapes, so that JSON can stand in HTML.
fn go_escape(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
