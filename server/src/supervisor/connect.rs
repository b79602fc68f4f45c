//! `/v1-k3s/connect`: the upgrade that turns an agent's request into its tunnel.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Failure;
use crate::auth::Identity;
use crate::http::{Body, full};
use crate::tunnel_server::Sessions;

/// Answers 101 and hands the connection to `sessions` under the node's name.
pub(super) fn upgrade(request: Request<Incoming>, identity: &Identity, sessions: &Arc<Sessions>) -> Result<Response<Body>, Failure> {
    let node = identity.node().ok_or_else(|| Failure::unauthorized("not authorized"))?.to_owned();
    let accept = accept_key(request.method(), request.headers(), &node)?;
    sessions.adopt(node, hyper::upgrade::on(request));
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = HeaderValue::from_str(&accept).map_err(|_| Failure::internal("websocket accept key"))?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The `Sec-WebSocket-Accept` value. Sub-protocols, extensions and `Origin` are not looked at, as in K3s.
fn accept_key(method: &Method, headers: &HeaderMap, node: &str) -> Result<String, Failure> {
    const NOT: &str = "websocket: the client is not using the websocket protocol: ";
    let refuse = |message: String| {
        Err(Failure::bad_request(&message).and(&Failure::bad_request(&format!("Error during upgrade for host [{node}]: {message}"))))
    };
    if !has_token(headers, &CONNECTION, "upgrade") {
        return refuse(format!("{NOT}'upgrade' token not found in 'Connection' header"));
    }
    if !has_token(headers, &UPGRADE, "websocket") {
        return refuse(format!("{NOT}'websocket' token not found in 'Upgrade' header"));
    }
    if method != Method::GET {
        return refuse(format!("{NOT}request method is not GET"));
    }
    if !has_token(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return refuse("websocket: unsupported version: 13 not found in 'Sec-Websocket-Version' header".to_owned());
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|value| value.to_str().ok());
    match key.filter(|key| is_key(key)) {
        Some(key) => Ok(derive_accept_key(key.as_bytes())),
        None => refuse(
            "websocket: not a websocket handshake: 'Sec-WebSocket-Key' header must be Base64 encoded value of 16-byte in length".to_owned(),
        ),
    }
}

fn is_key(key: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// Whether a comma separated header, possibly repeated, has `token` in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_of_the_recording_gets_the_recorded_key() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "YSNZf6ioQd6zUyA+POnsSA=="),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(accept_key(&Method::GET, &headers, "wire1").unwrap(), "lZ6LdA24lxu6QZ1PlgtTow12oqA=");
        for missing in ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key"] {
            let mut headers = headers.clone();
            headers.remove(missing);
            assert_eq!(accept_key(&Method::GET, &headers, "wire1").unwrap_err().code(), 400, "{missing}");
        }
    }

    #[test]
    fn plain_get_gets_two_documents() {
        let failure = accept_key(&Method::GET, &HeaderMap::new(), "wire1").unwrap_err();
        assert_eq!(failure.body().lines().count(), 2);
        assert!(failure.body().contains("Error during upgrade for host [wire1]: websocket: the client"));
    }
}
