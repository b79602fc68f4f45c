//! Client certificates: asked for and proven at the handshake, judged by us.
//!
//! K3s answers a certificate of a strange CA with 401, not with a TLS alert, so the handshake takes any
//! certificate whose key the client proves to hold.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PeerCert;
use crate::http::BoxError;

/// The TLS side of the listener: optional client certificate, ALPN `h2` and `http/1.1`.
///
/// # Errors
/// When the PEM texts hold no certificate or no key, or they do not belong together.
pub fn server_config(cert_chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, BoxError> {
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(cert_chain_pem).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyClient { provider }))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes any client certificate, checks only that the client has its key.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges certificate chains against the client CA.
pub struct PeerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl PeerVerifier {
    /// # Errors
    /// When the bundle holds no usable CA certificate.
    pub fn new(client_ca_pem: &[u8]) -> Result<Self, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(client_ca_pem) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { inner })
    }

    /// What a chain, leaf first, says of its holder; `None` without one or when it cannot be read.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Option<PeerCert> {
        let (leaf, intermediates) = chain.split_first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let trusted = self.inner.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok();
        let text = |values: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
            values.filter_map(|v| v.as_str().ok()).map(str::to_owned).collect::<Vec<_>>()
        };
        let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Some(PeerCert {
            common_name: text(&mut parsed.subject().iter_common_name()).into_iter().next().unwrap_or_default(),
            organizations: text(&mut parsed.subject().iter_organization()),
            not_before: at(parsed.validity().not_before.timestamp()),
            not_after: at(parsed.validity().not_after.timestamp()),
            trusted,
            der: leaf.to_vec(),
        })
    }
}
