//! One HTTP/1.1 request over one TLS connection, with a limit on time and size. K3s' own agent opens a new
//! connection per call too (k3s-agent.md 1.4): joining makes a dozen calls in a lifetime.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ClientConfig};

use crate::addr::ServerAddr;
use crate::error::{Error, Result};
use crate::link::tls_connect;
use crate::status;

/// K3s' limit for one call.
const LIMIT: Duration = Duration::from_secs(10);
/// No answer of the supervisor is near this long, in bytes.
const MAX_BODY: usize = 4 << 20;

/// One call.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Bytes,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a str) -> Call<'a> {
        Call { method: Method::GET, path, headers: Vec::new(), authorization: None, body: Bytes::new() }
    }
}

/// Sends one request and reads the whole answer. Any status but 2xx is [`Error::Refused`].
pub(crate) async fn call(server: &ServerAddr, tls: Arc<ClientConfig>, call: &Call<'_>) -> Result<Bytes> {
    let late = || Error::Unreachable { server: server.clone(), source: io::Error::from(io::ErrorKind::TimedOut) };
    let (status, retry_after, body) = timeout(LIMIT, exchange(server, tls, call)).await.map_err(|_| late())??;
    if status.is_success() {
        return Ok(body);
    }
    Err(Error::Refused {
        server: server.clone(),
        path: call.path.to_owned(),
        code: status.as_u16(),
        message: status::message(&body),
        retry_after,
    })
}

async fn exchange(server: &ServerAddr, tls: Arc<ClientConfig>, call: &Call<'_>) -> Result<(StatusCode, Option<Duration>, Bytes)> {
    let answer = |reason: String| Error::Answer { server: server.clone(), path: call.path.to_owned(), reason };
    let stream = tls_connect(server, tls).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(server, e))?;
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(call.path)
        .header(HOST, server.to_string())
        .header(hyper::header::USER_AGENT, concat!("edge-agent/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    if let Some(value) = &call.authorization {
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Full::new(call.body.clone())).map_err(|e| answer(e.to_string()))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| broken(server, e))?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| answer(e.to_string()))?;
        Ok((status, retry_after.map(Duration::from_secs), body.to_bytes()))
    };
    // The connection is polled beside the request: no task outlives this call.
    let mut talk = std::pin::pin!(talk);
    tokio::select! {
        result = &mut talk => result,
        // A connection that ends may leave an answer already read.
        _ = connection => talk.await,
    }
}

/// The connection broke in the middle of the exchange. With TLS 1.3 that is also how a server refuses a client
/// certificate: after the handshake, by an alert.
fn broken(server: &ServerAddr, error: hyper::Error) -> Error {
    let server = server.clone();
    let alert = tls_alert(&error);
    let source = io::Error::other(error);
    if alert { Error::Tls { server, source } } else { Error::Unreachable { server, source } }
}

fn tls_alert(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    let tls = io.and_then(|e| e.get_ref()?.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::AlertReceived(_)))
}
