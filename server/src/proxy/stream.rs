//! exec, attach and port-forward: an upgraded connection on either side, joined.
//!
//! kubectl 1.20 asks for SPDY/3.1. kubectl 1.31 and later ask for a WebSocket first and, when the answer is anything but
//! 101, for SPDY/3.1 again; kubelets without the WebSocket feature only speak SPDY, so that is what they get here.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tracing::debug;

use super::{Proxy, query, target};
use crate::api::{ApiStatus, kind};
use crate::controllers::object;
use crate::http::{Body, RequestInfo, full};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How long a kubelet may go on after its user has closed.
const USER_GONE: Duration = Duration::from_secs(2);
/// How long the output of a kubelet that takes no more input may still take to reach a slow user.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    Exec,
    Attach,
    PortForward,
}

pub(super) async fn serve(
    proxy: &Proxy,
    what: Streaming,
    info: &RequestInfo,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiStatus> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(ApiStatus::method_not_allowed());
    }
    let pod = proxy.registry.get(&kind::POD, Some(&info.namespace), &info.name)?;
    let pairs = query::pairs(request.uri().query().unwrap_or_default());
    let uri = match what {
        Streaming::PortForward => port_forward_uri(info),
        Streaming::Exec | Streaming::Attach => {
            let container = target::container(&pod, query::first(&pairs, "container").unwrap_or_default())?;
            command_uri(what, info, &container, &pairs)?
        }
    };
    let node =
        target::node(&pod).ok_or_else(|| ApiStatus::bad_request(format!("pod {} does not have a host assigned", object::name(&pod))))?;
    if !asks_for_spdy(request.headers()) {
        return Err(ApiStatus::bad_request("unable to upgrade: only SPDY/3.1 is offered"));
    }
    let mut upstream = Request::post(uri).body(Full::new(Bytes::new())).map_err(|error| ApiStatus::bad_request(error.to_string()))?;
    let headers = upstream.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    for offered in request.headers().get_all(&STREAM_PROTOCOL) {
        headers.append(STREAM_PROTOCOL, offered.clone());
    }
    let user = hyper::upgrade::on(&mut request);
    let mut answer = proxy.kubelets.send(node, upstream).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(refusal(answer));
    }
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in [CONNECTION, UPGRADE, STREAM_PROTOCOL] {
        for value in answer.headers().get_all(&name) {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    tokio::spawn(join(user, hyper::upgrade::on(&mut answer)));
    Ok(response)
}

/// A kubelet's refusal goes to the user as it is: kubectl prints its body.
fn refusal(answer: Response<Incoming>) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body.map_err(Into::into)));
    *response.status_mut() = parts.status;
    if let Some(content_type) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

fn asks_for_spdy(headers: &HeaderMap) -> bool {
    let token = |name: &HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    token(&CONNECTION, "upgrade") && token(&UPGRADE, "spdy/3.1")
}

fn port_forward_uri(info: &RequestInfo) -> String {
    format!("/portForward/{}/{}", info.namespace, info.name)
}

/// The kubelet's own names for the streams are `input`, `output` and `error`.
fn command_uri(what: Streaming, info: &RequestInfo, container: &str, pairs: &[(String, String)]) -> Result<String, ApiStatus> {
    let (stdin, stdout, stderr, tty) =
        (query::flag(pairs, "stdin"), query::flag(pairs, "stdout"), query::flag(pairs, "stderr"), query::flag(pairs, "tty"));
    let commands: Vec<&str> = pairs.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.as_str()).collect();
    if !stdin && !stdout && !stderr {
        return Err(ApiStatus::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if tty && stderr {
        return Err(ApiStatus::bad_request("tty and stderr cannot both be true"));
    }
    if what == Streaming::Exec && commands.is_empty() {
        return Err(ApiStatus::bad_request("you must specify a command"));
    }
    let mut passed: Vec<(&str, &str)> = Vec::new();
    if what == Streaming::Exec {
        passed.extend(commands.iter().map(|command| ("command", *command)));
    }
    for (name, wanted) in [("error", stderr), ("input", stdin), ("output", stdout), ("tty", tty)] {
        if wanted {
            passed.push((name, "1"));
        }
    }
    let verb = if what == Streaming::Exec { "exec" } else { "attach" };
    Ok(format!("/{verb}/{}/{}/{container}?{}", info.namespace, info.name, query::encode(passed)))
}

/// Joins the two connections once both are upgraded.
async fn join(user: OnUpgrade, kubelet: OnUpgrade) {
    match tokio::try_join!(user, kubelet) {
        Ok((user, kubelet)) => splice(TokioIo::new(user), TokioIo::new(kubelet)).await,
        Err(error) => debug!(%error, "stream upgrade ended early"),
    }
}

/// Copies both ways. The kubelet's end ends both; until then what it has said is passed on, also when it no longer
/// listens: a command's last output is on its way while the user's client still answers to earlier frames. A user who
/// closes is gone, because SPDY has no half-close; the kubelet is told and gets a moment to end.
async fn splice(user: impl AsyncRead + AsyncWrite, kubelet: impl AsyncRead + AsyncWrite) {
    let (mut user_in, mut user_out) = split(user);
    let (mut kubelet_in, mut kubelet_out) = split(kubelet);
    let ended = {
        let down = copy(&mut kubelet_in, &mut user_out);
        tokio::pin!(down);
        tokio::select! {
            ended = &mut down => ended,
            up = copy(&mut user_in, &mut kubelet_out) => {
                let limit = if up.is_ok() { USER_GONE } else { LAST_WORDS };
                let _ = kubelet_out.shutdown().await;
                tokio::time::timeout(limit, down).await.unwrap_or(Ok(0))
            }
        }
    };
    match ended {
        Ok(bytes) => debug!(bytes, "stream ended"),
        Err(error) => debug!(%error, "stream broken"),
    }
    let _ = tokio::join!(user_out.shutdown(), kubelet_out.shutdown());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> RequestInfo {
        RequestInfo { namespace: "default".to_owned(), name: "wire-pod".to_owned(), ..RequestInfo::default() }
    }

    #[test]
    fn exec_uri_is_the_recorded_one() {
        let pairs = query::pairs("command=ls&container=c&stderr=true&stdout=true");
        let uri = command_uri(Streaming::Exec, &info(), "c", &pairs).unwrap();
        assert_eq!(uri, "/exec/default/wire-pod/c?command=ls&error=1&output=1");
        assert_eq!(port_forward_uri(&info()), "/portForward/default/wire-pod");
    }

    #[test]
    fn impossible_stream_combinations_are_refused() {
        for (query, wanted) in [
            ("command=ls", "you must specify at least 1 of stdin, stdout, stderr"),
            ("command=ls&tty=true&stderr=true", "tty and stderr cannot both be true"),
            ("stdout=true", "you must specify a command"),
        ] {
            let error = command_uri(Streaming::Exec, &info(), "c", &query::pairs(query)).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (400, wanted));
        }
    }

    #[test]
    fn only_spdy_is_upgraded() {
        let headers = |connection: &'static str, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, HeaderValue::from_static(connection));
            headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
            headers
        };
        assert!(asks_for_spdy(&headers("Upgrade", "SPDY/3.1")));
        assert!(!asks_for_spdy(&headers("Upgrade", "websocket")));
        assert!(!asks_for_spdy(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn one_side_ending_ends_both_after_its_last_bytes() {
        use tokio::io::AsyncReadExt;
        let (mut kubectl, user) = tokio::io::duplex(64);
        let (mut kubelet, backend) = tokio::io::duplex(64);
        let joined = tokio::spawn(splice(user, backend));
        kubectl.write_all(b"in").await.unwrap();
        let mut two = [0; 2];
        kubelet.read_exact(&mut two).await.unwrap();
        kubelet.write_all(b"last words").await.unwrap();
        drop(kubelet);
        let mut heard = String::new();
        kubectl.read_to_string(&mut heard).await.unwrap();
        assert_eq!((&two, heard.as_str()), (b"in", "last words"));
        joined.await.unwrap();
    }

    #[tokio::test]
    async fn output_outlives_a_kubelet_that_no_longer_listens() {
        use tokio::io::AsyncReadExt;
        let (mut kubectl, user) = tokio::io::duplex(4);
        let (kubelet, backend) = tokio::io::duplex(64);
        let (kubelet_in, mut kubelet_out) = tokio::io::split(kubelet);
        kubelet_out.write_all(b"more than fits at once").await.unwrap();
        drop((kubelet_in, kubelet_out));
        let joined = tokio::spawn(splice(user, backend));
        kubectl.write_all(b"ack").await.unwrap();
        let mut heard = String::new();
        kubectl.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "more than fits at once");
        joined.await.unwrap();
    }
}
