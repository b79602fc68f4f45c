//! One way to answer HTTP/1.1 for every listener of the agent: kubelet port, health, metrics, control socket.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Body of every answer: whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A client that does not send the next request's headers in this time is dropped. Longer than Go's 90 s for idle
/// connections, so that it is the API server that closes them and no request meets a closing connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a listener pauses after `accept` failed (descriptors exhausted), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Whole body from bytes.
pub fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Answer with a status, a content type and a whole body.
pub fn answer(status: StatusCode, content_type: &'static str, data: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(data));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Plain text answer, as Go's `http.Error` types it.
pub fn text(status: StatusCode, data: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", data)
}

/// JSON answer; a value that does not serialise is a 500 that says so.
pub fn json<T: serde::Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(data) => answer(StatusCode::OK, "application/json", data),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Serves one connection until its peer leaves or `stop` turns true. Upgrades are possible.
pub async fn connection<S, H, F>(io: S, handler: H, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // Dropping the other arm loses nothing: it only waits for the stop signal.
        ended = served.as_mut() => log_end(ended),
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            log_end(served.await);
        }
    }
}

/// Returns when everything is to end, also when whoever would say so is gone.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Accepts plain TCP connections and serves each with `handler` until `stop`; at most `limit` at a time.
pub async fn plain<H, F>(listener: TcpListener, limit: usize, handler: H, mut stop: watch::Receiver<bool>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limit));
    loop {
        let accepted = tokio::select! {
            // accept() is cancel safe: a connection not yet returned stays in the queue.
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        match accepted {
            Ok((socket, _)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    let (handler, stop) = (handler.clone(), stop.clone());
                    crate::task::spawn(async move {
                        connection(socket, handler, stop).await;
                        drop(slot);
                    });
                }
                Err(_) => tracing::debug!("connection refused, too many at once"),
            },
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Values of one query parameter set, decoded: `a=1&b=x%20y`.
pub fn query_pairs(query: Option<&str>) -> Vec<(String, String)> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Percent and plus decoding of a query part; malformed escapes stay as they are.
fn decode(text: &str) -> String {
    let raw = text.as_bytes();
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let escaped = (raw[at] == b'%')
            .then(|| raw.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (raw[at], escaped) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', None) => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = query_pairs(Some("command=sh&command=-c&command=echo+%22a%26b%22&tty&bad=%zz"));
        let wanted = [("command", "sh"), ("command", "-c"), ("command", "echo \"a&b\""), ("tty", ""), ("bad", "%zz")];
        assert_eq!(pairs, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(query_pairs(None).is_empty());
    }
}
