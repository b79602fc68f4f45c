//! What the API looks like, for kubectl and for ourselves: one table, three uses.

pub mod conform;
pub mod schema;

use hyper::{HeaderMap, Response};

use crate::api::ApiStatus;
use crate::http::Body;

/// Answers below `/openapi`.
pub fn handle(parts: &[&str], headers: &HeaderMap) -> Result<Response<Body>, ApiStatus> {
    let _ = (parts, headers);
    Err(ApiStatus::no_such_path())
}
