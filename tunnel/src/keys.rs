//! Private keys and certificate requests: EC P-256, made once beside the certificate and reused for every later
//! request (k3s-agent.md 2.4).

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::error::{Error, Result};
use crate::pem;

fn unusable(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Certificate { what: what.to_owned(), reason: reason.to_string() }
}

/// A new key as PEM (`PRIVATE KEY`, PKCS#8).
pub fn generate() -> Result<Vec<u8>> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unusable("new private key", e))?;
    Ok(pem::encode("PRIVATE KEY", &key.serialize_der()).into_bytes())
}

/// The DER (not PEM: a server would answer PEM with its shared key) of a request with empty subject for `key_pem`.
pub fn request(key_pem: &[u8]) -> Result<Vec<u8>> {
    let key = load(key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|e| unusable("certificate request", e))?;
    Ok(request.der().to_vec())
}

/// Whether a key on disk may be certified again: only one made here. What a server handed out is shared by every
/// node (`EC PRIVATE KEY`) and must not live on once the server signs requests.
pub fn is_ours(key_pem: &[u8]) -> bool {
    load(key_pem).is_ok()
}

fn load(key_pem: &[u8]) -> Result<KeyPair> {
    let block = pem::blocks(key_pem).into_iter().find(|b| b.label == "PRIVATE KEY");
    let block = block.ok_or_else(|| unusable("private key", "no PKCS#8 key in it"))?;
    KeyPair::try_from(block.der).map_err(|e| unusable("private key", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    #[test]
    fn requests_are_der_with_empty_subject_and_our_public_key() {
        let key = generate().unwrap();
        assert!(is_ours(&key));
        let der = request(&key).unwrap();
        let (rest, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        let info = &parsed.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(info.subject_pki.subject_public_key.data.as_ref(), load(&key).unwrap().public_key_raw());
        // The recorded request of the reference agent is of the same length but for the signature's padding.
        let recorded = crate::testing::Recording::load("cert-serving-kubelet").request_body();
        assert!(recorded.len().abs_diff(der.len()) < 16, "{} {}", recorded.len(), der.len());
    }

    #[test]
    fn a_key_of_the_server_is_not_certified_again() {
        assert!(!is_ours(pem::encode("EC PRIVATE KEY", &[1; 40]).as_bytes()));
        assert!(!is_ours(b""));
    }
}
