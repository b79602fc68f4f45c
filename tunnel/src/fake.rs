//! A K3s server for the tests of this crate: real TLS on loopback, a CA with serial number 0 and no key
//! identifiers as K3s makes it, scripted answers, certificates signed from requests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::addr::ServerAddr;
use crate::backoff::random_u64;
use crate::cahash::ca_hash;
use crate::{pem, tls};

/// A certificate authority as K3s makes one.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(0u64));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2090, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let pem = pem::encode("CERTIFICATE", cert.der());
        Ca { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a DER request, the CA behind it, as a server answers.
    pub(crate) fn sign(&self, request: &[u8], name: &str) -> Option<String> {
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).ok()?;
        request.params.distinguished_name.push(DnType::CommonName, name);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (request.params.not_before, request.params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1));
        let cert = request.signed_by(&self.issuer).unwrap();
        Some(pem::encode("CERTIFICATE", cert.der()) + &self.pem)
    }

    /// The same as a K3s server does it at `now`: dated back an hour, for 365 days, with a serial number of its own.
    pub(crate) fn sign_at(&self, request: &[u8], name: &str, now: OffsetDateTime) -> String {
        let mut request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
        request.params.distinguished_name.push(DnType::CommonName, name);
        request.params.serial_number = Some(SerialNumber::from(random_u64()));
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        (request.params.not_before, request.params.not_after) = (now - time::Duration::HOUR, now + time::Duration::days(365));
        let cert = request.signed_by(&self.issuer).unwrap();
        pem::encode("CERTIFICATE", cert.der()) + &self.pem
    }

    /// A leaf with a key of its own: PEM certificate and PEM key.
    pub(crate) fn issue(&self, name: &str, sans: &[&str], years: (i32, i32)) -> tls::KeyPair {
        let names: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        tls::KeyPair {
            cert_pem: (pem::encode("CERTIFICATE", cert.der()) + &self.pem).into_bytes(),
            key_pem: pem::encode("PRIVATE KEY", &key.serialize_der()).into_bytes(),
        }
    }
}

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// Whether a client certificate was shown.
    pub(crate) certificate: bool,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

type Script = Box<dyn Fn(&Seen) -> Option<(u16, String)> + Send + Sync>;

/// A running server. Answers everything a join asks for, unless the script answers first.
pub(crate) struct Fake {
    pub(crate) addr: ServerAddr,
    pub(crate) server_ca: Arc<Ca>,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn this_year() -> i32 {
    OffsetDateTime::now_utc().year()
}

impl Fake {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static) -> Fake {
        let ca = Arc::new(Ca::new("k3s-server-ca@1"));
        let leaf = ca.issue("k3s", &["kubernetes", "127.0.0.1"], (2020, 2090));
        Fake::start_with(ca, leaf, script).await
    }

    pub(crate) async fn start_with(
        server_ca: Arc<Ca>,
        leaf: tls::KeyPair,
        script: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Fake {
        let client_ca = Arc::new(Ca::new("k3s-client-ca@1"));
        let acceptor = acceptor(&leaf, &client_ca);
        Fake::start_behind(acceptor, (server_ca, client_ca), script).await
    }

    pub(crate) async fn start_behind(
        acceptor: TlsAcceptor,
        (server_ca, client_ca): (Arc<Ca>, Arc<Ca>),
        script: impl Fn(&Seen) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Fake {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (listener, addr) = listen().await;
        let script: Arc<Script> = Arc::new(Box::new(script));
        let state = (server_ca.clone(), client_ca.clone(), seen.clone(), script);
        let task = tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else {
                    return;
                };
                let (acceptor, state) = (acceptor.clone(), state.clone());
                tokio::spawn(async move {
                    // A client that refuses our certificate ends here.
                    let Ok(stream) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let certificate = stream.get_ref().1.peer_certificates().is_some();
                    let service = service_fn(move |request| answer(request, certificate, state.clone()));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Fake { addr, server_ca, seen, task }
    }

    pub(crate) fn hash(&self) -> String {
        ca_hash(self.server_ca.pem.as_bytes(), std::time::SystemTime::now()).unwrap()
    }

    pub(crate) fn token(&self) -> crate::Token {
        crate::Token::parse(&format!("K10{}::server:secret", self.hash())).unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A listener on loopback and its address.
pub(crate) async fn listen() -> (TcpListener, ServerAddr) {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, ServerAddr::new("127.0.0.1", port))
}

/// TLS as a K3s server does it: a client certificate is asked for and not required.
pub(crate) fn acceptor(leaf: &tls::KeyPair, client_ca: &Ca) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(server_config(leaf, client_ca)))
}

/// The same by a clock of its own.
pub(crate) fn acceptor_at(leaf: &tls::KeyPair, client_ca: &Ca, clock: Arc<dyn TimeProvider>) -> TlsAcceptor {
    let mut config = server_config(leaf, client_ca);
    config.time_provider = clock;
    TlsAcceptor::from(Arc::new(config))
}

fn server_config(leaf: &tls::KeyPair, client_ca: &Ca) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(pem::certificates(client_ca.pem.as_bytes()).into_iter().map(CertificateDer::from));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider()).allow_unauthenticated().build().unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pem::blocks(&leaf.key_pem).remove(0).der));
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain(), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

type State = (Arc<Ca>, Arc<Ca>, Arc<Mutex<Vec<Seen>>>, Arc<Script>);

async fn answer(
    request: Request<hyper::body::Incoming>,
    certificate: bool,
    (server_ca, client_ca, log, script): State,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let header =
        |(n, v): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| (n.to_string(), v.to_str().unwrap_or_default().to_owned());
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        headers: parts.headers.iter().map(header).collect(),
        body: body.collect().await?.to_bytes(),
        certificate,
    };
    log.lock().unwrap().push(seen.clone());
    let (status, text) = script(&seen).unwrap_or_else(|| default_answer(&seen, &server_ca, &client_ca));
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

fn default_answer(seen: &Seen, server_ca: &Ca, client_ca: &Ca) -> (u16, String) {
    if seen.path == "/cacerts" {
        return (200, server_ca.pem.clone());
    }
    if seen.header("authorization").is_none() && !seen.certificate {
        return (403, failure(403, "forbidden"));
    }
    let recorded = |name: &str| String::from_utf8(crate::testing::Recording::load(name).response_body()).unwrap();
    match seen.path.as_str() {
        "/v1-k3s/config" => (200, recorded("config-ok")),
        "/v1-k3s/apiservers" => (200, recorded("apiservers")),
        "/v1-k3s/server-ca.crt" => (200, server_ca.pem.clone()),
        "/v1-k3s/client-ca.crt" => (200, client_ca.pem.clone()),
        "/v1-k3s/serving-kubelet.crt" => (200, server_ca.sign(&seen.body, "node").unwrap()),
        p if p.ends_with(".crt") && seen.method == "POST" => (200, client_ca.sign(&seen.body, "node").unwrap()),
        _ => (404, failure(404, "not found")),
    }
}

/// An error body without `apiVersion`, as the supervisor writes it.
pub(crate) fn failure(code: u16, message: &str) -> String {
    format!("{{\"kind\":\"Status\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"{message}\",\"reason\":\"X\",\"code\":{code}}}\n")
}
