//! Requests to the API server over one HTTP/2 connection.

use bytes::Bytes;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::meta::Object;
use super::watch::Watch;

/// How a patch body is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Merge,
    Strategic,
    Json,
}

/// Cheap to clone; all clones share one connection. Every unary call has a deadline of 10 s.
#[derive(Clone)]
pub struct Client {}

/// Status code and body of an answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    pub body: Bytes,
}

fn unconnected() -> Error {
    Error::Transport { server: String::new(), cause: "not connected".to_owned() }
}

impl Client {
    /// `path` starts with `/api` or `/apis` and may carry a query.
    pub async fn get<T: DeserializeOwned>(&self, _path: &str) -> Result<T, Error> {
        Err(unconnected())
    }
    pub async fn post<T: DeserializeOwned>(&self, _path: &str, _body: &impl Serialize) -> Result<T, Error> {
        Err(unconnected())
    }
    pub async fn put<T: DeserializeOwned>(&self, _path: &str, _body: &impl Serialize) -> Result<T, Error> {
        Err(unconnected())
    }
    pub async fn patch<T: DeserializeOwned>(&self, _path: &str, _kind: PatchType, _body: &impl Serialize) -> Result<T, Error> {
        Err(unconnected())
    }
    pub async fn delete(&self, _path: &str, _body: &impl Serialize) -> Result<(), Error> {
        Err(unconnected())
    }
    /// Any request; answers of 400 and above are errors too.
    pub async fn raw(&self, _method: Method, _path: &str, _content_type: &str, _body: Bytes) -> Result<Answer, Error> {
        Err(unconnected())
    }
    /// Endless list+watch of a collection; `path` without query, `selector` like `fieldSelector=spec.nodeName%3Dn`.
    pub fn watch<T: DeserializeOwned + Object>(&self, path: &str, selector: &str) -> Watch<T> {
        Watch::new(self.clone(), path, selector)
    }
}
