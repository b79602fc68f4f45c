//! TLS towards a K3s server: the chain is checked against the cluster's CA, the name against the real host or one
//! of the names every server carries (k3s-agent.md 2.1).

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::addr::ServerAddr;
use crate::cahash::schemes;
use crate::error::{Error, Result};
use crate::pem;

/// A certificate chain and its key, both PEM text as they stand on disk.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The leaf first, then the CA certificates the server appended.
    pub cert_pem: Vec<u8>,
    /// `PRIVATE KEY` (ours) or `EC PRIVATE KEY` (a server's shared one).
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("cert_pem", &self.cert_pem.len()).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// The chain as DER, leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        pem::certificates(&self.cert_pem).into_iter().map(CertificateDer::from).collect()
    }

    /// The private key as DER.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let block = pem::blocks(&self.key_pem).into_iter().find(pem::Block::is_private_key);
        let block = block.ok_or_else(|| unusable("private key", "no private key in it"))?;
        PrivateKeyDer::try_from(block.der).map_err(|reason| unusable("private key", reason))
    }

    /// `notBefore` and `notAfter` of the leaf.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime)> {
        let ders = pem::certificates(&self.cert_pem);
        let der = ders.first().ok_or_else(|| unusable("certificate", "no certificate in it"))?;
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| unusable("certificate", e))?;
        let time = |t: x509_parser::time::ASN1Time| SystemTime::from(t.to_datetime());
        Ok((time(cert.validity().not_before), time(cert.validity().not_after)))
    }

    /// Checks that key and certificate belong together.
    pub fn check(&self, what: &str) -> Result<()> {
        let certified =
            rustls::sign::CertifiedKey::from_der(self.chain(), self.key()?, &ring::default_provider()).map_err(|e| unusable(what, e))?;
        certified.keys_match().map_err(|e| unusable(what, e))
    }
}

fn unusable(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Certificate { what: what.to_owned(), reason: reason.to_string() }
}

/// A client configuration that trusts every certificate of `roots_pem` as a root (K3s bundles may hold
/// intermediates and cross-signed roots), offers `identity` when asked, and these ALPN protocols in order.
pub fn client_config(roots_pem: &[u8], identity: Option<&KeyPair>, alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(pem::certificates(roots_pem).into_iter().map(CertificateDer::from));
    if added == 0 {
        return Err(unusable("server CA", "no certificate in it"));
    }
    build(Arc::new(ClusterVerifier { roots }), identity, alpn)
}

/// For the very first `GET /cacerts` only: nothing secret may be sent over it.
pub(crate) fn unverified_config() -> Result<Arc<ClientConfig>> {
    build(Arc::new(NoVerifier), None, &["http/1.1"])
}

fn build(verifier: Arc<dyn ServerCertVerifier>, identity: Option<&KeyPair>, alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("TLS set-up", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.key()?).map_err(|e| unusable("client certificate", e))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    // Made for four servers with eight sessions each; the default has room for 32 from the start, 30 KB in each identity.
    config.resumption = Resumption::in_memory_sessions(32);
    Ok(Arc::new(config))
}

/// The one crypto provider of the project.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The name a connection is opened with.
pub fn server_name(server: &ServerAddr) -> Result<ServerName<'static>> {
    ServerName::try_from(server.host.clone())
        .map_err(|_| Error::Address { value: server.to_string(), reason: "the host is neither an IP address nor a DNS name" })
}

/// Names on every K3s server certificate, checked after the real one.
const CLUSTER_NAMES: [&str; 2] = ["127.0.0.1", "kubernetes"];

#[derive(Debug)]
struct ClusterVerifier {
    roots: RootCertStore,
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms.all)?;
        verify_server_name(&cert, server_name).or_else(|e| {
            let known = CLUSTER_NAMES.iter().filter_map(|n| ServerName::try_from(*n).ok());
            if known.into_iter().any(|name| verify_server_name(&cert, &name).is_ok()) { Ok(()) } else { Err(e) }
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &ring::default_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &ring::default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Accepts any certificate. The CA bundle fetched over it counts only after its hash was compared.
#[derive(Debug)]
struct NoVerifier;

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Turns what a TLS connect said into the one line an operator needs.
pub fn connect_error(server: &ServerAddr, error: io::Error) -> Error {
    let server = server.clone();
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(reason)) = tls else {
        return match tls {
            Some(_) => Error::Tls { server, source: error },
            None => Error::Unreachable { server, source: error },
        };
    };
    let now = || rfc3339(OffsetDateTime::from(SystemTime::now()));
    let at = |t: &UnixTime| {
        let known = i64::try_from(t.as_secs()).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        known.map_or_else(unknown, rfc3339)
    };
    match reason {
        CertificateError::Expired => Error::CertificateExpired { server, at: unknown(), now: now() },
        CertificateError::ExpiredContext { not_after, .. } => Error::CertificateExpired { server, at: at(not_after), now: now() },
        CertificateError::NotValidYet => Error::CertificateNotYetValid { server, at: unknown(), now: now() },
        CertificateError::NotValidYetContext { not_before, .. } => Error::CertificateNotYetValid { server, at: at(not_before), now: now() },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Error::ServerName { server, source: error },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Error::CaUnknown { server, source: error },
        _ => Error::Tls { server, source: error },
    }
}

fn unknown() -> String {
    "at an unknown time".to_owned()
}

fn rfc3339(t: OffsetDateTime) -> String {
    let t = t.replace_nanosecond(0).unwrap_or(t);
    t.format(&Rfc3339).unwrap_or_else(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recording, now_of_recordings};

    fn verify(host: &str, now: UnixTime) -> std::result::Result<(), String> {
        // The server answers kubelet certificates with the server CA behind: enough to check a real chain whose root
        // has serial number 0 and no key identifiers to follow.
        let recording = Recording::load("cert-serving-kubelet");
        let roots_pem = Recording::load("cacerts").response_body();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pem::certificates(&roots_pem).into_iter().map(CertificateDer::from));
        let chain: Vec<CertificateDer<'_>> = pem::certificates(&recording.response_body()).into_iter().map(CertificateDer::from).collect();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let verifier = ClusterVerifier { roots };
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(|_| ()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_default_k3s_ca_with_serial_number_zero_is_accepted() {
        verify("10.99.0.41", now_of_recordings()).unwrap();
    }

    #[test]
    fn any_host_is_accepted_when_the_certificate_names_the_loopback_address() {
        verify("vip.example", now_of_recordings()).unwrap();
    }

    #[test]
    fn clocks_behind_and_ahead_are_told_apart() {
        let early = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_000_000_000));
        let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(3_000_000_000));
        assert!(verify("10.99.0.41", early).unwrap_err().contains("not valid yet"));
        assert!(verify("10.99.0.41", late).unwrap_err().contains("expired"));
    }

    #[test]
    fn tls_errors_become_the_line_an_operator_needs() {
        let server = ServerAddr::new("k3s.example", 6443);
        let tls = |e: CertificateError| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(e));
        let rows = [
            (tls(CertificateError::Expired), "ended", true),
            (tls(CertificateError::NotValidYet), "set the clock", true),
            (tls(CertificateError::UnknownIssuer), "not signed by the cluster CA", false),
            (tls(CertificateError::NotValidForName), "--tls-san", false),
            (io::Error::from(io::ErrorKind::ConnectionRefused), "cannot reach", true),
        ];
        for (error, want, retry) in rows {
            let error = connect_error(&server, error);
            assert!(error.to_string().contains(want) && error.to_string().contains("k3s.example:6443"), "{error}");
            assert_eq!(error.is_retryable(), retry, "{error}");
        }
    }
}
