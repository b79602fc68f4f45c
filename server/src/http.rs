//! The listener: TLS, HTTP/1.1 and HTTP/2, and the way from a request to its handler.
use crate::api::Registry;
use crate::auth::{Caller, Identity, SharedCredentials};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::{Request, Response};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Taken, or given back for the next handler.
pub enum Handled {
    Response(BoxFuture<'static, Response<Body>>),
    NotMine(Request<Incoming>),
}

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
    pub name: String,
    /// get, list, watch, create, update, patch, delete, deletecollection
    pub verb: &'static str,
}

/// Handlers beside the plain REST API. Bodies of requests are unread and `hyper::upgrade::on` works.
pub trait Extra: Send + Sync + 'static {
    /// Paths outside the Kubernetes API: `/cacerts`, `/ping`, `/v1-k3s/...`. Does its own checks of `caller`.
    fn supervisor(&self, request: Request<Incoming>, caller: Caller) -> Handled;
    /// Already authorised: pods/{log,exec,attach,portforward,proxy}, nodes/proxy, serviceaccounts/token.
    fn subresource(
        &self,
        info: RequestInfo,
        request: Request<Incoming>,
        identity: Identity,
    ) -> Handled;
}

/// Everything a listener needs.
pub struct Server {
    pub registry: Arc<Registry>,
    pub credentials: SharedCredentials,
    pub extra: Arc<dyn Extra>,
    /// PEM bundle that client certificates are verified against.
    pub client_ca_pem: Vec<u8>,
}

/// TLS with an optional, unverified client certificate (it is verified for each request), ALPN h2 and http/1.1.
pub fn tls_config(
    cert_chain_pem: &[u8],
    key_pem: &[u8],
) -> Result<Arc<tokio_rustls::rustls::ServerConfig>, BoxError> {
    let _ = (cert_chain_pem, key_pem);
    Err("not yet".into())
}

/// Accepts until `stop` turns true, then lets running requests end for a few seconds.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<tokio_rustls::rustls::ServerConfig>>,
    server: Arc<Server>,
    stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let _ = (listener, tls, server, stop);
    Ok(())
}

/// A body held in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    use http_body_util::BodyExt as _;
    Body::new(http_body_util::Full::new(bytes.into()).map_err(|never| match never {}))
}

/// A Status as an answer.
pub fn error_response(status: &crate::api::ApiStatus) -> Response<Body> {
    let mut response = Response::new(full(status.body()));
    *response.status_mut() = hyper::StatusCode::from_u16(status.code)
        .unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}
