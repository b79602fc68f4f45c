//! One GET request for probes and hooks: no keep-alive, no proxy, TLS unverified as the contract wants it.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};

use crate::api::pod::HttpHeader;

const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: u32 = 10;

/// Where and how to ask.
#[derive(Debug, Clone)]
pub struct Get {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// With query, starting with `/`.
    pub path: String,
    pub headers: Vec<HttpHeader>,
    /// `kube-probe/1.36`, `kube-lifecycle/1.36`.
    pub user_agent: &'static str,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub body: String,
    /// The answer sends to another host, where a probe does not follow.
    pub left_host: bool,
}

/// Asks, following redirects on the same host. The error is text for an event.
pub async fn get(request: &Get, limit: Duration) -> Result<Answer, String> {
    let shown = format!("Get \"{}\"", url(request));
    match tokio::time::timeout(limit, follow(request.clone())).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{shown}: {error}")),
        Err(_) => Err(format!("{shown}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

fn url(request: &Get) -> String {
    let host = if request.host.contains(':') { format!("[{}]", request.host) } else { request.host.clone() };
    format!("{}://{host}:{}{}", if request.https { "https" } else { "http" }, request.port, request.path)
}

async fn follow(mut request: Get) -> Result<Answer, String> {
    for _ in 0..=MAX_REDIRECTS {
        let (answer, location) = once(&request).await?;
        let Some(location) = location.filter(|_| matches!(answer.code, 301 | 302 | 303 | 307 | 308)) else {
            return Ok(answer);
        };
        let target = location.parse::<hyper::Uri>().map_err(|e| format!("failed to parse Location header \"{location}\": {e}"))?;
        if let Some(host) = target.host() {
            if host.trim_matches(['[', ']']) != request.host {
                return Ok(Answer { left_host: true, ..answer });
            }
            request.https = target.scheme_str() == Some("https");
            request.port = target.port_u16().unwrap_or(if request.https { 443 } else { 80 });
        }
        let path = target.path_and_query().map_or("/", |p| p.as_str());
        request.path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    }
    Err("stopped after 10 redirects".to_owned())
}

async fn once(request: &Get) -> Result<(Answer, Option<String>), String> {
    let stream = connect(&request.host, request.port).await?;
    if !request.https {
        return exchange(request, stream).await;
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(request.host.clone()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(request, stream).await
}

/// A connection; the error reads as Go's `dial tcp …`.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    TcpStream::connect((host, port)).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            format!("dial tcp {shown}: connect: connection refused")
        }
        std::io::ErrorKind::HostUnreachable => {
            format!("dial tcp {shown}: connect: no route to host")
        }
        _ => format!("dial tcp {shown}: {e}"),
    })
}

async fn exchange(request: &Get, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(Answer, Option<String>), String> {
    let text = |e: hyper::Error| e.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = crate::task::spawn(connection);
    let answer = async {
        let mut message = hyper::Request::get(&request.path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let headers = message.headers_mut();
        let authority = if request.host.contains(':') {
            format!("[{}]:{}", request.host, request.port)
        } else {
            format!("{}:{}", request.host, request.port)
        };
        headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|e| e.to_string())?);
        headers.insert(USER_AGENT, HeaderValue::from_static(request.user_agent));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        for header in &request.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|e| e.to_string())?;
            let value = HeaderValue::from_str(&header.value).map_err(|e| e.to_string())?;
            if name == ACCEPT && value.is_empty() {
                headers.remove(ACCEPT)
            } else {
                headers.insert(name, value)
            };
        }
        let response = sender.send_request(message).await.map_err(text)?;
        let code = response.status().as_u16();
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(text)?.data_ref() {
                bytes.extend_from_slice(data);
            }
            if bytes.len() >= MAX_BODY {
                bytes.truncate(MAX_BODY);
                break;
            }
        }
        Ok((Answer { code, body: String::from_utf8_lossy(&bytes).into_owned(), left_host: false }, location))
    }
    .await;
    connection.abort();
    answer
}

/// Accepts any certificate: probes ask whether somebody answers, not who.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answers: Vec<String>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        crate::task::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn request(port: u16) -> Get {
        Get { https: false, host: "127.0.0.1".to_owned(), port, path: "/".to_owned(), headers: Vec::new(), user_agent: "kube-probe/1.36" }
    }

    #[tokio::test]
    async fn answers_and_redirects() {
        let plain = |code: u16, more: &str| format!("HTTP/1.1 {code} X\r\n{more}content-length: 2\r\n\r\nhi");
        let table = [
            (vec![plain(200, "")], (200, false)),
            (vec![plain(500, "")], (500, false)),
            (vec![plain(302, "location: /there\r\n"), plain(204, "")], (204, false)),
            (vec![plain(302, "location: http://example.com/\r\n")], (302, true)),
        ];
        for (answers, wanted) in table {
            let port = server(answers).await;
            let got = get(&request(port), Duration::from_secs(5)).await.unwrap();
            assert_eq!((got.code, got.left_host), wanted);
        }
    }

    #[tokio::test]
    async fn nobody_there_reads_as_a_kubelet_says_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = get(&request(port), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
