//! The hash in a join token (k3s-agent.md 1.3): of one certificate the literal text, of a bundle the DER of the
//! root its first certificate leads to.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::error::{Error, Result};
use crate::pem;

/// How many signatures one bundle may cost, as in Go.
const MAX_CHECKS: usize = 100;

/// Lower-case hex SHA-256 that a token for this CA carries.
///
/// `bundle` is the body of `GET /cacerts`, byte for byte; `now` decides which chains of a bundle with several
/// certificates count. Errors when there is no certificate in it.
pub fn ca_hash(bundle: &[u8], now: SystemTime) -> Result<String> {
    let ders = pem::certificates(bundle);
    let hashed: &[u8] = match ders.len() {
        0 => {
            return Err(Error::Certificate { what: "CA bundle".into(), reason: "no certificate in it".into() });
        }
        1 => bundle,
        _ => match root_of_first(&ders, now) {
            Some(at) => &ders[at],
            None => bundle,
        },
    };
    Ok(sha256_hex(hashed))
}

/// Lower-case hex SHA-256.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(::ring::digest::digest(&::ring::digest::SHA256, bytes).as_ref())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Candidate<'a> {
    index: usize,
    cert: X509Certificate<'a>,
    subject_key: &'a [u8],
    authority_key: &'a [u8],
}

/// Index of the last certificate of the first valid chain, in the order Go's verifier finds chains.
fn root_of_first(ders: &[Vec<u8>], now: SystemTime) -> Option<usize> {
    let mut all = Vec::new();
    for (index, der) in ders.iter().enumerate() {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let (subject_key, authority_key) = key_ids(der);
        all.push(Candidate { index, cert, subject_key, authority_key });
    }
    let now = i64::try_from(now.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    let now = ASN1Time::from_timestamp(now).ok()?;
    let (leaf, others) = all.split_first()?;
    let is_root = |c: &Candidate<'_>| c.authority_key.is_empty() || c.authority_key == c.subject_key;
    let roots: Vec<&Candidate<'_>> = others.iter().filter(|c| is_root(c)).collect();
    let rest: Vec<&Candidate<'_>> = others.iter().filter(|c| !is_root(c)).collect();
    if !valid(leaf, now) {
        return None;
    }
    if let Some(same) = roots.iter().find(|r| ders[r.index] == ders[leaf.index]) {
        return Some(same.index);
    }
    let mut search = Search { roots, rest, now, checks: 0 };
    search.from(&mut vec![leaf])
}

fn key_ids(der: &[u8]) -> (&[u8], &[u8]) {
    use x509_parser::extensions::ParsedExtension;
    let (mut subject, mut authority): (&[u8], &[u8]) = (&[], &[]);
    if let Ok((_, cert)) = X509Certificate::from_der(der) {
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject = id.0,
                ParsedExtension::AuthorityKeyIdentifier(id) => authority = id.key_identifier.as_ref().map_or(&[], |k| k.0),
                _ => {}
            }
        }
    }
    (subject, authority)
}

struct Search<'a, 'b> {
    roots: Vec<&'b Candidate<'a>>,
    rest: Vec<&'b Candidate<'a>>,
    now: ASN1Time,
    checks: usize,
}

impl<'a, 'b> Search<'a, 'b> {
    /// Depth first: direct roots before intermediates, so the first hit is Go's first chain.
    fn from(&mut self, chain: &mut Vec<&'b Candidate<'a>>) -> Option<usize> {
        let child = *chain.last()?;
        for root in parents(child, &self.roots) {
            if self.accepts(child, root, chain) {
                return Some(root.index);
            }
        }
        for parent in parents(child, &self.rest) {
            if self.accepts(child, parent, chain) {
                chain.push(parent);
                if let Some(found) = self.from(chain) {
                    return Some(found);
                }
                chain.pop();
            }
        }
        None
    }

    fn accepts(&mut self, child: &Candidate<'a>, parent: &Candidate<'a>, chain: &[&Candidate<'a>]) -> bool {
        let twin = |c: &&Candidate<'a>| {
            c.cert.subject().as_raw() == parent.cert.subject().as_raw() && c.cert.public_key().raw == parent.cert.public_key().raw
        };
        if chain.iter().any(twin) || !valid(parent, self.now) || !may_sign(parent, chain.len() - 1) || !serves(parent) {
            return false;
        }
        self.checks += 1;
        self.checks <= MAX_CHECKS && signed_by(&child.cert, &parent.cert)
    }
}

/// Certificates with the wanted subject; those whose key id fits first, those that say nothing next.
fn parents<'a, 'b>(child: &Candidate<'a>, pool: &[&'b Candidate<'a>]) -> Vec<&'b Candidate<'a>> {
    let mut found: Vec<&'b Candidate<'a>> =
        pool.iter().copied().filter(|c| c.cert.subject().as_raw() == child.cert.issuer().as_raw()).collect();
    found.sort_by_key(|c| match (c.subject_key, child.authority_key) {
        (have, want) if have == want && !have.is_empty() => 0,
        (have, want) if have.is_empty() || want.is_empty() => 1,
        _ => 2,
    });
    found
}

fn valid(candidate: &Candidate<'_>, now: ASN1Time) -> bool {
    candidate.cert.validity().is_valid_at(now)
}

/// CA certificates only, with the right to sign, and within their own length limit.
fn may_sign(parent: &Candidate<'_>, below: usize) -> bool {
    let Ok(Some(constraints)) = parent.cert.basic_constraints() else {
        return false;
    };
    let long_enough = constraints.value.path_len_constraint.is_none_or(|max| below <= max as usize);
    let may = match parent.cert.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    constraints.value.ca && long_enough && may
}

/// No extended usage, or one that allows server certificates.
fn serves(parent: &Candidate<'_>) -> bool {
    match parent.cert.extended_key_usage() {
        Ok(Some(usage)) => usage.value.any || usage.value.server_auth,
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Signature check with the TLS stack's own algorithms.
fn signed_by(child: &X509Certificate<'_>, parent: &X509Certificate<'_>) -> bool {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let wanted = child.signature_algorithm.algorithm.as_bytes();
    let key = parent.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    // The TLS stack knows algorithms by their whole DER identifier; comparing what it names is enough here.
    algorithms.all.iter().any(|algorithm| {
        let signature_fits = contains_oid(algorithm.signature_alg_id().as_ref(), wanted);
        let key_fits = contains_oid(algorithm.public_key_alg_id().as_ref(), key.algorithm.algorithm.as_bytes())
            && curve.as_ref().is_none_or(|c| contains_oid(algorithm.public_key_alg_id().as_ref(), c.as_bytes()));
        signature_fits
            && key_fits
            && algorithm.verify_signature(&key.subject_public_key.data, child.tbs_certificate.as_ref(), &child.signature_value.data).is_ok()
    })
}

fn contains_oid(identifier: &[u8], oid: &[u8]) -> bool {
    let Ok(len) = u8::try_from(oid.len()) else {
        return false;
    };
    identifier.windows(oid.len() + 2).any(|w| w[0] == 6 && w[1] == len && &w[2..] == oid)
}

/// Schemes the verifiers of this crate offer.
pub(crate) fn schemes() -> Vec<SignatureScheme> {
    ring::default_provider().signature_verification_algorithms.supported_schemes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    use std::time::Duration;

    /// The file of k3s-agent.md 1.3.
    const VECTOR: &str = "-----BEGIN CERTIFICATE-----
MIIBnTCCAUOgAwIBAgIUYCi/oCQfa/SXkziJhxGBJVW55tgwCgYIKoZIzj0EAwIw
IzEhMB8GA1UEAwwYazNzLXNlcnZlci1jYUAxNzAwMDAwMDAwMCAXDTI2MTEyMjIy
Mjk1N1oYDzIxMjYxMDI5MjIyOTU3WjAjMSEwHwYDVQQDDBhrM3Mtc2VydmVyLWNh
QDE3MDAwMDAwMDAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASOmKXZGmeUvDa/
c//D1Inp1uXYs2Sji6gXzM5KM84hgFC7bYr0ApH1fxyCVoXx3pWlSPUOaKq/SibH
nkFtf+PEo1MwUTAdBgNVHQ4EFgQUofkMU8e+oTUQ9me1gKhH+aAXXgYwHwYDVR0j
BBgwFoAUofkMU8e+oTUQ9me1gKhH+aAXXgYwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNIADBFAiEA5v8/K/WzII0KhX8Kt1vT0ffFNEF/8wUFh/rC8OHSX4cC
IHE7nqegQOoqRlKSQWz7j9jd5stMqNjjc39tq5Dx6Opi
-----END CERTIFICATE-----
";

    #[test]
    fn one_certificate_is_hashed_as_text_with_its_final_newline() {
        let now = SystemTime::now();
        assert_eq!(VECTOR.len(), 619);
        assert_eq!(ca_hash(VECTOR.as_bytes(), now).unwrap(), "f5aca231df6e09ec78c40ecdedb171fe5745535cb4d3362da64e8dc7cd73f189");
        assert_eq!(ca_hash(VECTOR.trim_end().as_bytes(), now).unwrap(), "61d9b8f3fd87a5868d86162da6a66a4652cb5c8bf28529079d486c2c9aed39b0");
        assert!(ca_hash(b"<html>", now).is_err());
    }

    /// Bundles given to a K3s v1.36.3 server as its `server-ca.crt`, and the hash it wrote into its token.
    #[test]
    fn bundles_hash_as_a_real_server_hashes_them() {
        let now = UNIX_EPOCH + Duration::from_secs(crate::testing::now_of_recordings().as_secs());
        for (name, want) in [
            ("cacerts-rotated.pem", "98e171e3a4f75a4480627e17034f9de6ca23dd60d014b15dcd61cf77627dc6b2"),
            ("cacerts-cross-signed.pem", "6b112a86ebb2119c06a5a8f77acc79afb9bba268c10a9f2897b8e82342e661ac"),
            ("cacerts-without-root.pem", "002ea885355641b9d0806c6a9161f58f247ccecf20cec9fe21f85e0f1fb7c096"),
        ] {
            let bundle = crate::testing::read(name);
            assert_eq!(ca_hash(bundle.as_bytes(), now).unwrap(), want, "{name}");
        }
    }

    struct Ca {
        params: CertificateParams,
        key: KeyPair,
    }

    fn ca(name: &str, until: i32) -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params.use_authority_key_identifier_extension = true;
        Ca { params, key: KeyPair::generate().unwrap() }
    }

    impl Ca {
        fn own(&self) -> String {
            self.params.self_signed(&self.key).unwrap().pem()
        }
        fn by(&self, issuer: &Ca) -> String {
            let issuer = Issuer::from_params(&issuer.params, &issuer.key);
            self.params.signed_by(&self.key, &issuer).unwrap().pem()
        }
    }

    fn der_hash(pem_text: &str) -> String {
        sha256_hex(&pem::certificates(pem_text.as_bytes())[0])
    }

    #[test]
    fn a_bundle_is_hashed_by_the_root_its_first_certificate_leads_to() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_000_000); // November 2026
        let (intermediate, new, old, dead) = (ca("intermediate", 2036), ca("new root", 2036), ca("old root", 2036), ca("dead root", 2024));
        let rotated = [intermediate.by(&new), new.own(), new.by(&old), old.own()];
        let rows = [
            ("after a rotation: the new self-signed root", rotated.concat(), der_hash(&rotated[1])),
            ("only a cross-signed new root: the old root", [intermediate.by(&new), new.by(&old), old.own()].concat(), String::new()),
            ("first entry self-signed: no chain, the text", [new.own(), intermediate.by(&new)].concat(), "text".into()),
            ("no root in it: the text", [intermediate.by(&new), old.own()].concat(), "text".into()),
            ("expired root: the text", [intermediate.by(&dead), dead.own()].concat(), "text".into()),
            ("its own twin in the bundle", rotated[1].repeat(2), String::new()),
            ("the same key signed once more is no root of itself: the text", [new.own(), new.own()].concat(), "text".into()),
        ];
        for (name, text, want) in rows {
            let want = match want.as_str() {
                "text" => sha256_hex(text.as_bytes()),
                "" => sha256_hex(pem::certificates(text.as_bytes()).last().unwrap()),
                _ => want,
            };
            assert_eq!(ca_hash(text.as_bytes(), now).unwrap(), want, "{name}");
        }
    }
}
