//! The listener: TLS, HTTP/1.1 and HTTP/2, and the way from a request to its handler.
//!
//! Paths of the Kubernetes API go to `api::rest`, everything else to `Extra` first. Each connection is a task;
//! `stop` ends the watches at once and gives the rest a few seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

pub use crate::api::request::RequestInfo;
use crate::api::{ApiStatus, Registry, rest};
use crate::auth::peer::PeerVerifier;
pub use crate::auth::peer::server_config as tls_config;
use crate::auth::{Caller, Identity, PeerCert, SharedCredentials, authn};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time requests have to end after `stop`.
const DRAIN: Duration = Duration::from_secs(3);

/// Taken, or given back for the next handler.
#[allow(clippy::large_enum_variant)] // made and matched at once, never kept
pub enum Handled {
    Response(BoxFuture<'static, Response<Body>>),
    NotMine(Request<Incoming>),
}

/// Handlers beside the plain REST API. Bodies of requests are unread and `hyper::upgrade::on` works.
pub trait Extra: Send + Sync + 'static {
    /// Paths outside the Kubernetes API: `/cacerts`, `/ping`, `/v1-k3s/...`. Does its own checks of `caller`.
    fn supervisor(&self, request: Request<Incoming>, caller: Caller) -> Handled;
    /// Already authorised: pods/{log,exec,attach,portforward,proxy}, nodes/proxy, serviceaccounts/token.
    fn subresource(&self, info: RequestInfo, request: Request<Incoming>, identity: Identity) -> Handled;
}

/// Everything a listener needs.
pub struct Server {
    pub registry: Arc<Registry>,
    pub credentials: SharedCredentials,
    pub extra: Arc<dyn Extra>,
    /// PEM bundle that client certificates are verified against.
    pub client_ca_pem: Vec<u8>,
}

/// Accepts until `stop` turns true, then lets running requests end for a few seconds.
///
/// # Errors
/// When the client CA bundle is unusable.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    server: Arc<Server>,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let verifier = PeerVerifier::new(&server.client_ca_pem).map_err(std::io::Error::other)?;
    let verifier = Arc::new(verifier);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Ended connections are only forgotten; dropping the future loses nothing.
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
                let (server, verifier, stop) = (Arc::clone(&server), Arc::clone(&verifier), stop.clone());
                connections.spawn(connection(stream, remote, acceptor, verifier, server, stop));
            }
            Err(error) => {
                tracing::warn!(error = %error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::debug!(open = connections.len(), "connections cut at the end");
    }
    Ok(())
}

/// Waits for the end; the guard of `wait_for` must not live across awaits.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    verifier: Arc<PeerVerifier>,
    server: Arc<Server>,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, %remote, "no-delay");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(error = %error, %remote, "tls handshake"),
        Err(_) => return tracing::debug!(%remote, "tls handshake took too long"),
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| verifier.judge(chain)).map(Arc::new);
    let watching = stop.clone();
    let service = service_fn(move |request| {
        let (server, peer, stop) = (Arc::clone(&server), peer.clone(), watching.clone());
        async move { Ok::<_, std::convert::Infallible>(respond(server, request, peer, remote, stop).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(250);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(error = %error, %remote, "connection ended");
    }
}

async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
    peer: Option<Arc<PeerCert>>,
    remote: SocketAddr,
    stop: watch::Receiver<bool>,
) -> Response<Body> {
    let started = std::time::Instant::now();
    let caller = authn::authenticate(request.headers(), peer.as_deref(), remote, &*server.credentials, SystemTime::now());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let user = match &caller.api {
        authn::Login::As(identity) => identity.user.clone(),
        authn::Login::Anonymous | authn::Login::Rejected => String::new(),
    };
    let mut response = route(server, request, caller, stop).await;
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    tracing::debug!(%method, path, user, status = response.status().as_u16(), elapsed = ?started.elapsed(), "request");
    response
}

async fn route(server: Arc<Server>, request: Request<Incoming>, caller: Caller, stop: watch::Receiver<bool>) -> Response<Body> {
    let request = if is_api(request.uri().path()) {
        request
    } else {
        match server.extra.supervisor(request, caller.clone()) {
            Handled::Response(response) => return response.await,
            Handled::NotMine(request) => request,
        }
    };
    let authn::Login::As(identity) = caller.api else {
        return error_response(&ApiStatus::unauthorized());
    };
    match rest::handle(server, request, identity, stop).await {
        Ok(response) => response,
        Err(status) => error_response(&status),
    }
}

/// Whether the path belongs to the Kubernetes API server.
fn is_api(path: &str) -> bool {
    const ROOTS: &[&str] = &["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];
    ROOTS.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// A body held in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Body::new(http_body_util::Full::new(bytes.into()).map_err(|never| match never {}))
}

/// A JSON answer.
pub fn json_response(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A Status as an answer.
pub fn error_response(status: &ApiStatus) -> Response<Body> {
    json_response(if status.code == 0 { 200 } else { status.code }, status.body())
}
