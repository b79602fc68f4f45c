//! TLS of the kubelet port: our serving certificate, and a client certificate asked for but not demanded.
//!
//! As in a kubelet the handshake takes any client certificate whose key the client owns; whether it chains to the client
//! CA is judged per request ([`ClientCa::subject`]), so that a stranger gets a readable 401 instead of a broken
//! handshake, and an expired certificate stops working on an open connection.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use tunnel::tls::KeyPair;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who a client certificate says its owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Common name.
    pub user: String,
    /// Organisations.
    pub groups: Vec<String>,
}

/// The CA whose certificates identify clients.
#[derive(Debug, Clone)]
pub struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// From `client-ca.crt`.
    pub fn new(pem: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for der in tunnel::pem::certificates(pem) {
            roots.add(CertificateDer::from(der)).context("client CA certificate")?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tunnel::tls::provider())
            .allow_unauthenticated()
            .build()
            .context("client CA")?;
        Ok(Self(verifier))
    }

    /// Owner of a chain (leaf first) that leads to this CA and is valid at `now`; `None` when it does not.
    pub fn subject(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Option<Subject> {
        let (leaf, intermediates) = chain.split_first()?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        if let Err(error) = self.0.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since_epoch)) {
            tracing::debug!(%error, "client certificate refused");
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        Some(Subject { user, groups })
    }
}

/// What the kubelet port serves with; replaced as a whole when certificates are renewed.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) clients: ClientCa,
}

impl Credentials {
    /// Checks that key and certificate belong together and that the CA parses. ALPN is `http/1.1` only: exec needs
    /// upgrades, and the API server accepts that choice.
    pub fn new(serving: &KeyPair, client_ca_pem: &[u8]) -> Result<Self> {
        let clients = ClientCa::new(client_ca_pem)?;
        let mut server = ServerConfig::builder_with_provider(tunnel::tls::provider())
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_client_cert_verifier(Arc::new(Asking(Arc::clone(&clients.0))))
            .with_single_cert(serving.chain(), serving.key()?)
            .context("kubelet serving certificate")?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The servers are the callers; the default has room for 256 sessions from the start, 30 KB.
        server.session_storage = ServerSessionMemoryCache::new(8);
        Ok(Self { server: Arc::new(server), clients })
    }
}

/// Takes every client certificate during the handshake but checks that the client owns its key.
#[derive(Debug)]
struct Asking(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Asking {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
