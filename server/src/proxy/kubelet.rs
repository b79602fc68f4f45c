//! The way to a node's kubelet server: a tunnel connection, TLS inside it, HTTP/1.1 inside that.
//!
//! The serving certificate is verified against the server CA with the node's InternalIP as its name: loopback stands in
//! every node's certificate, so it would let one node answer for another.

use std::error::Error as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tracing::debug;

use crate::api::{ApiStatus, Registry, kind};
use crate::auth::MASTERS;
use crate::pki::{Leaf, Pki};
use crate::tunnel_server::{self, Sessions};

/// As long as a real API server waits for the TLS handshake with a kubelet.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until the kubelet's answer begins. Streams then last as long as they last.
const ANSWER: Duration = Duration::from_secs(60);

/// The client certificate is made anew after this; it is good for a year.
const RENEWAL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Dials kubelet servers.
pub struct Kubelets {
    registry: Arc<Registry>,
    sessions: Arc<Sessions>,
    pki: Arc<Pki>,
    tls: Mutex<Option<(Instant, TlsConnector)>>,
}

/// Where a node's kubelet server is, as the Node object says.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    ip: IpAddr,
    port: u16,
}

impl Kubelets {
    /// Calls as `system:apiserver` in `system:masters`, with certificates of `pki`.
    pub fn new(registry: Arc<Registry>, sessions: Arc<Sessions>, pki: Arc<Pki>) -> Kubelets {
        Kubelets { registry, sessions, pki, tls: Mutex::new(None) }
    }

    fn connector(&self) -> anyhow::Result<TlsConnector> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, connector)) = &*tls {
            if since.elapsed() < RENEWAL {
                return Ok(connector.clone());
            }
        }
        let connector = connector(&self.pki)?;
        *tls = Some((Instant::now(), connector.clone()));
        Ok(connector)
    }

    /// Sends `request` (path and query only) to the kubelet server of `node`. The body is small and in memory.
    pub async fn send(&self, node: &str, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ApiStatus> {
        let object = self.registry.get(&kind::NODE, None, node)?;
        let address = address(&object)
            .ok_or_else(|| ApiStatus::internal(format!("no preferred addresses found; known addresses: [] of node {node}")))?;
        let url = format!("https://{}:{}{}", bracket(address.ip), address.port, request.uri());
        let fail = |why: String| {
            debug!(node, error = why, "kubelet unreachable");
            unreachable(&format!("Get \"{url}\": {why}"))
        };
        let stream = match self.dial(node, &address).await {
            // Nothing was sent yet, so a link that went down in this moment costs one more dial, not the request.
            Err(Dial::Ended(why)) => {
                debug!(node, error = why, "tunnel connection ended during the handshake, dialling again");
                self.dial(node, &address).await
            }
            first => first,
        };
        let stream = stream.map_err(|error| match error {
            Dial::Ended(why) | Dial::Failed(why) => fail(why),
            Dial::Internal(status) => status,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| fail(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "kubelet connection ended");
            }
        });
        let host = format!("{}:{}", bracket(address.ip), address.port);
        let host = host.parse().map_err(|_| ApiStatus::internal("host header"))?;
        request.headers_mut().insert(hyper::header::HOST, host);
        match tokio::time::timeout(ANSWER, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            // A refused dial behind the tunnel shows as an end of stream here.
            Ok(Err(error)) if error.source().is_none() => Err(fail("EOF".to_owned())),
            Ok(Err(error)) => Err(fail(error.to_string())),
            Err(_) => Err(fail("timeout awaiting response headers".to_owned())),
        }
    }

    /// A TLS stream to the kubelet server, through the oldest session of the node.
    async fn dial(&self, node: &str, address: &Address) -> Result<TlsStream<impl AsyncRead + AsyncWrite + Send + Unpin + use<>>, Dial> {
        let dialled = self.sessions.open(node, &format!("127.0.0.1:{}", address.port)).await;
        let stream = dialled.map_err(|error| {
            let code = match error {
                tunnel_server::Error::NoSession { .. } => "502: 502 Bad Gateway".to_owned(),
                tunnel_server::Error::Broken { source, .. } => format!("500: {source}"),
            };
            Dial::Failed(format!("proxy error from 127.0.0.1 while dialing {}:{}, code {code}", bracket(address.ip), address.port))
        })?;
        let name = ServerName::IpAddress(address.ip.into());
        let connector = self.connector().map_err(|error| Dial::Internal(ApiStatus::internal(error)))?;
        match tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Err(Dial::Ended(error.to_string()))
            }
            Ok(Err(error)) => Err(Dial::Failed(error.to_string())),
            Err(_) => Err(Dial::Failed("net/http: TLS handshake timeout".to_owned())),
        }
    }
}

/// Why there is no connection to a kubelet server.
enum Dial {
    /// The tunnelled connection ended before the handshake did.
    Ended(String),
    Failed(String),
    Internal(ApiStatus),
}

fn connector(pki: &Pki) -> anyhow::Result<TlsConnector> {
    let leaf = Leaf::client("system:apiserver", Some(MASTERS));
    let identity = pki.client_ca.issue(&leaf, OffsetDateTime::now_utc())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pki.server_ca.cert_pem().as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

fn bracket(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// InternalIP first, then ExternalIP, as K3s' API server prefers them; the port of the Node's daemon endpoint.
fn address(node: &Value) -> Option<Address> {
    let addresses = node["status"]["addresses"].as_array()?;
    let ip = ["InternalIP", "ExternalIP"].iter().find_map(|kind| {
        addresses.iter().find(|address| address["type"] == *kind).and_then(|address| address["address"].as_str()?.parse().ok())
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(10250);
    Some(Address { ip, port })
}

/// A plain 500 without a reason: kubectl prints `Error from server: <message>`.
fn unreachable(message: &str) -> ApiStatus {
    let mut status = ApiStatus::internal("");
    status.reason = "";
    status.message = message.to_owned();
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn address_follows_the_node_object() {
        let node = json!({ "status": {
            "addresses": [{ "type": "Hostname", "address": "a" }, { "type": "ExternalIP", "address": "1.2.3.4" },
                { "type": "InternalIP", "address": "10.99.0.41" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10255 } },
        } });
        let expected = Address { ip: "10.99.0.41".parse().unwrap(), port: 10255 };
        assert_eq!(address(&node), Some(expected));
        assert_eq!(address(&json!({ "status": {} })), None);
    }
}
