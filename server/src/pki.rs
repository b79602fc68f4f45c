//! The two certificate authorities and everything they sign.
//!
//! Same shape as K3s: `k3s-server-ca@<time>` signs what serves, `k3s-client-ca@<time>` signs who may call.
//! CAs live ten years, leaves 365 days, and every `notBefore` lies one hour back so that a board whose clock is
//! slightly behind can join. Called by `main` once at start and by the supervisor for each certificate request.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::files;

const BACKDATED: Duration = Duration::hours(1);
const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(365);

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file below `tls/` could not be read or written.
    #[error("certificate file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A key or certificate on disk is damaged.
    #[error("cannot use {}; restore it, or delete the tls directory to start a new cluster", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    /// Signing failed.
    #[error("sign certificate")]
    Sign(#[from] rcgen::Error),
    /// The body of a certificate request is not exactly one DER PKCS#10 request with a good signature.
    #[error("body is not a DER encoded certificate signing request")]
    NotACsr,
    /// ring refused to create or load the service account key.
    #[error("service account key {}", path.display())]
    ServiceKey {
        /// The file.
        path: PathBuf,
    },
}

/// A certificate (with the chain of its CA) and its key, both PEM.
#[derive(Clone)]
pub struct CertKey {
    /// Leaf first, then the CA.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// What a leaf is for; decides the extended key usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

/// Everything a leaf says besides its key and times.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Common name.
    pub common_name: String,
    /// Organization, the group of a client.
    pub organization: Option<String>,
    /// Server or client.
    pub usage: Usage,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
}

impl Leaf {
    /// A client identity without names.
    pub fn client(common_name: &str, organization: Option<&str>) -> Leaf {
        Leaf {
            common_name: common_name.to_owned(),
            organization: organization.map(str::to_owned),
            usage: Usage::Client,
            dns: Vec::new(),
            ips: Vec::new(),
        }
    }
}

/// One certificate authority, able to sign.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// The CA certificate as it stands in the file, byte for byte: the token's hash is over these bytes.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    fn open(dir: &Path, file: &str, name: &str, now: OffsetDateTime) -> Result<Ca, Error> {
        let cert_path = dir.join(format!("{file}.crt"));
        let key_path = dir.join(format!("{file}.key"));
        // The key is written before the certificate, so a certificate on disk means the pair is whole.
        let cert_pem = match read(&cert_path)? {
            Some(pem) => pem,
            None => return Ca::create(&cert_path, &key_path, name, now),
        };
        let key_pem =
            read(&key_path)?.ok_or_else(|| Error::File { path: key_path.clone(), source: io::Error::from(io::ErrorKind::NotFound) })?;
        let key = KeyPair::from_pem(&key_pem).map_err(|source| Error::Damaged { path: key_path, source })?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|source| Error::Damaged { path: cert_path, source })?;
        Ok(Ca { cert_pem, issuer })
    }

    fn create(cert_path: &Path, key_path: &Path, name: &str, now: OffsetDateTime) -> Result<Ca, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{name}@{}", now.unix_timestamp()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        // Serial 0, as K3s has it: agents that would trip over it should do so here and not in the field.
        params.serial_number = Some(SerialNumber::from_slice(&[0]));
        params.not_before = now - BACKDATED;
        params.not_after = now - BACKDATED + CA_LIFETIME;
        let cert_pem = normalise_pem(&params.self_signed(&key)?.pem());
        put(key_path, key.serialize_pem().as_bytes(), 0o600)?;
        put(cert_path, cert_pem.as_bytes(), 0o644)?;
        Ok(Ca { issuer: Issuer::from_ca_cert_pem(&cert_pem, key)?, cert_pem })
    }

    /// Signs `leaf` for `key`. Returns the leaf followed by this CA, PEM.
    pub fn sign(&self, leaf: &Leaf, key: &impl PublicKeyData, now: OffsetDateTime) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        if let Some(organization) = &leaf.organization {
            subject.push(DnType::OrganizationName, organization.clone());
        }
        subject.push(DnType::CommonName, leaf.common_name.clone());
        params.distinguished_name = subject;
        params.is_ca = IsCa::NoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match leaf.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        for name in &leaf.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(leaf.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.serial_number = Some(serial()?);
        params.not_before = now - BACKDATED;
        params.not_after = now - BACKDATED + LEAF_LIFETIME;
        let pem = normalise_pem(&params.signed_by(key, &self.issuer)?.pem());
        Ok(format!("{pem}{}", self.cert_pem))
    }

    /// Creates a key and a certificate for it.
    pub fn issue(&self, leaf: &Leaf, now: OffsetDateTime) -> Result<CertKey, Error> {
        let key = KeyPair::generate()?;
        Ok(CertKey { cert_pem: self.sign(leaf, &key, now)?, key_pem: key.serialize_pem() })
    }

    /// Signs the public key of the PKCS#10 request `csr`, exactly one DER value; nothing else of it is used.
    ///
    /// K3s signs a key of its own and sends that private key out when the body is anything else. This server answers
    /// [`Error::NotACsr`] instead: a key that several nodes share is no identity. It also checks the request's
    /// signature, which K3s does not; a real agent always signs it.
    pub fn sign_csr(&self, leaf: &Leaf, csr: &[u8], now: OffsetDateTime) -> Result<String, Error> {
        match X509CertificationRequest::from_der(csr) {
            Ok(([], _)) => {}
            _ => return Err(Error::NotACsr),
        }
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(|_| Error::NotACsr)?;
        self.sign(leaf, &request.public_key, now)
    }
}

/// All key material of one cluster.
pub struct Pki {
    /// Signs serving certificates; its file is `/cacerts`.
    pub server_ca: Ca,
    /// Signs client identities.
    pub client_ca: Ca,
    /// PKCS#8 of the key that signs service account tokens (P-256).
    pub service_key: Vec<u8>,
}

impl Pki {
    /// Loads the material below `dir`, creating what is missing. `now` dates new CAs.
    pub fn open(dir: &Path, now: OffsetDateTime) -> Result<Pki, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.to_owned(), source })?;
        Ok(Pki {
            server_ca: Ca::open(dir, "server-ca", "k3s-server-ca", now)?,
            client_ca: Ca::open(dir, "client-ca", "k3s-client-ca", now)?,
            service_key: service_key(&dir.join("service.key"))?,
        })
    }
}

fn service_key(path: &Path) -> Result<Vec<u8>, Error> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem).map(|key| key.serialize_der()).map_err(|source| Error::Damaged { path: path.to_owned(), source });
    }
    let key = KeyPair::generate()?;
    put(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key.serialize_der())
}

/// 63 random bits, as Go's `crypto/x509` users in K3s make them.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = random::<8>();
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// `N` bytes from the system's random source.
pub fn random<const N: usize>() -> [u8; N] {
    use ring::rand::SecureRandom;
    let mut bytes = [0_u8; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).expect("the kernel's random source answers");
    bytes
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// Go's PEM has plain newlines and one at the end; the CA hash is over these bytes.
fn normalise_pem(pem: &str) -> String {
    let mut text = pem.replace("\r\n", "\n");
    while text.ends_with('\n') {
        text.pop();
    }
    text.push('\n');
    text
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    files::write(path, bytes, mode).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::parse_x509_certificate;
    use x509_parser::pem::Pem;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_795_396_859).unwrap()
    }

    #[test]
    fn authorities_survive_a_restart_and_look_like_those_of_k3s() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), now()).unwrap();
        let second = Pki::open(dir.path(), now() + Duration::days(1)).unwrap();
        assert_eq!(first.server_ca.cert_pem(), second.server_ca.cert_pem());
        assert_eq!(first.service_key, second.service_key);
        let pem = Pem::iter_from_buffer(first.client_ca.cert_pem().as_bytes()).next().unwrap().unwrap();
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.subject().to_string(), "CN=k3s-client-ca@1795396859");
        assert_eq!(cert.serial, 0_u32.into());
        assert!(cert.is_ca());
        assert_eq!(cert.validity().not_before.timestamp(), 1_795_396_859 - 3600);
        assert_eq!(cert.validity().not_after.timestamp(), 1_795_396_859 - 3600 + 3650 * 86400);
        assert!(first.client_ca.cert_pem().ends_with("-----END CERTIFICATE-----\n"));
    }

    #[test]
    fn leaf_signed_after_a_restart_verifies() {
        let dir = tempfile::tempdir().unwrap();
        drop(Pki::open(dir.path(), now()).unwrap());
        let pki = Pki::open(dir.path(), now()).unwrap();
        let pair = pki.client_ca.issue(&Leaf::client("system:node:a", Some("system:nodes")), now()).unwrap();
        let pems: Vec<Pem> = Pem::iter_from_buffer(pair.cert_pem.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(pems.len(), 2);
        let (_, leaf) = parse_x509_certificate(&pems[0].contents).unwrap();
        let (_, ca) = parse_x509_certificate(&pems[1].contents).unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
        assert_eq!(leaf.subject().to_string(), "O=system:nodes, CN=system:node:a");
    }

    #[test]
    fn anything_but_one_der_request_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let leaf = Leaf::client("x", None);
        pki.client_ca.sign_csr(&leaf, csr.der(), now()).unwrap();
        let mut longer = csr.der().to_vec();
        longer.push(0);
        let mut forged = csr.der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for body in [&b""[..], csr.pem().unwrap().as_bytes(), &longer, &forged] {
            assert!(matches!(pki.client_ca.sign_csr(&leaf, body, now()), Err(Error::NotACsr)));
        }
    }
}
