//! The secrets this server hands out: the join token and service account tokens.
//!
//! The join token is a file, `<data-dir>/token`, in K3s' full form; its password is both that of user `server` and
//! that of user `node`. Service account tokens are ES256 JWTs with the claims of a real API server, bound to the
//! pod they were issued for: they end with it. Nothing issued is stored; verification asks the registry.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::{Registry, kind};
use crate::auth::{Credentials, Identity, Token};
use crate::files;
use crate::pki::{self, hex, random};
use crate::supervisor::{AGENT_GROUP, BOOTSTRAPPERS, SERVER_GROUP};

/// Audience and issuer of service account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// What the API server itself accepts when a caller names no audience.
const API_AUDIENCES: [&str; 2] = [ISSUER, "k3s"];
/// A deleted pod's tokens are good for this much longer, so that it can end in order.
const DELETED_POD_GRACE: Duration = Duration::from_secs(60);

/// Verifies what callers present and issues service account tokens.
pub struct Tokens {
    password: String,
    key: EcdsaKeyPair,
    key_id: String,
    registry: Arc<Registry>,
}

/// What a token is issued for.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// Namespace of the service account.
    pub namespace: &'a str,
    /// The ServiceAccount object.
    pub account: &'a Value,
    /// The Pod object the token ends with, if it is bound to one.
    pub pod: Option<&'a Value>,
    /// Empty: the API server's own.
    pub audiences: Vec<String>,
    /// How long it is good for.
    pub lifetime: Duration,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
    nbf: u64,
    sub: String,
}

#[derive(Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Ref>,
    serviceaccount: Ref,
}

#[derive(Serialize, Deserialize, Clone)]
struct Ref {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
}

/// Reads the password of `path`, or makes one, and writes the token in full form with the hash of `ca_pem`.
pub fn token_file(path: &Path, ca_pem: &str) -> io::Result<String> {
    let password = match fs::read_to_string(path) {
        Ok(text) => password_of(text.trim()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "is not a join token; delete it to have a new one made (agents then need the new one)",
            )
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => hex(&random::<16>()),
        Err(error) => return Err(error),
    };
    let hash = hex(digest(&SHA256, ca_pem.as_bytes()).as_ref());
    let token = format!("K10{hash}::server:{password}\n");
    files::write(path, token.as_bytes(), 0o600)?;
    Ok(password)
}

/// The password of a full token or of a short one.
fn password_of(token: &str) -> Option<String> {
    let password = match token.strip_prefix("K10") {
        None => token,
        Some(rest) => rest.split_once("::").map_or(rest, |(_, rest)| rest).split_once(':')?.1,
    };
    (!password.is_empty()).then(|| password.to_owned())
}

impl Tokens {
    /// `service_key` is PKCS#8 of a P-256 key.
    pub fn new(password: String, service_key: &[u8], registry: Arc<Registry>) -> Result<Tokens, pki::Error> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, service_key, &SystemRandom::new())
            .map_err(|_| pki::Error::ServiceKey { path: "tls/service.key".into() })?;
        let key_id = URL_SAFE_NO_PAD.encode(digest(&SHA256, key.public_key().as_ref()));
        Ok(Tokens { password, key, key_id, registry })
    }

    /// A signed token and when it ends.
    pub fn issue(&self, claim: &Claim<'_>, now: SystemTime) -> (String, SystemTime) {
        let seconds = unix(now);
        let end = seconds + claim.lifetime.as_secs();
        let account = reference(claim.account);
        let node = claim.pod.and_then(|pod| pod["spec"]["nodeName"].as_str()).map(|name| Ref {
            name: name.to_owned(),
            uid: self.registry.get(&kind::NODE, None, name).ok().and_then(|node| node["metadata"]["uid"].as_str().map(str::to_owned)),
        });
        let audiences = if claim.audiences.is_empty() {
            API_AUDIENCES.iter().map(|audience| (*audience).to_owned()).collect()
        } else {
            claim.audiences.clone()
        };
        let claims = Claims {
            aud: audiences,
            exp: end,
            iat: seconds,
            iss: ISSUER.to_owned(),
            jti: uuid(),
            sub: format!("system:serviceaccount:{}:{}", claim.namespace, account.name),
            nbf: seconds,
            kubernetes: Bound { namespace: claim.namespace.to_owned(), node, pod: claim.pod.map(reference), serviceaccount: account },
        };
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let payload = serde_json::to_vec(&claims).expect("plain strings serialise");
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("the kernel's random source answers");
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        (token, UNIX_EPOCH + Duration::from_secs(end))
    }

    /// The claims, if signature, issuer and time are good.
    fn verified(&self, token: &str, now: SystemTime) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key()).verify(signed.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let seconds = unix(now);
        // One minute: boards' clocks differ from each other, not from the server's, but NTP may step it.
        let good = claims.iss == ISSUER && claims.nbf <= seconds + 60 && seconds < claims.exp;
        good.then_some(claims)
    }

    /// Whether what the token is bound to still exists.
    fn bound_objects_exist(&self, claims: &Claims, now: SystemTime) -> bool {
        let namespace = Some(claims.kubernetes.namespace.as_str());
        let same = |kind, reference: &Ref| {
            self.registry
                .get(kind, namespace, &reference.name)
                .ok()
                .filter(|object| object["metadata"]["uid"].as_str() == reference.uid.as_deref())
        };
        if same(&kind::SERVICE_ACCOUNT, &claims.kubernetes.serviceaccount).is_none() {
            return false;
        }
        let Some(pod) = &claims.kubernetes.pod else {
            return true;
        };
        let Some(pod) = same(&kind::POD, pod) else {
            return false;
        };
        match pod["metadata"]["deletionTimestamp"].as_str().map(|text| OffsetDateTime::parse(text, &Rfc3339)) {
            Some(Ok(deleted)) => SystemTime::from(deleted) + DELETED_POD_GRACE > now,
            _ => true,
        }
    }

    fn service_account(&self, token: &str, audiences: &[String], now: SystemTime) -> Option<Token> {
        let claims = self.verified(token, now)?;
        if !self.bound_objects_exist(&claims, now) {
            return None;
        }
        let wanted: Vec<String> =
            if audiences.is_empty() { API_AUDIENCES.iter().map(|audience| (*audience).to_owned()).collect() } else { audiences.to_vec() };
        let audiences: Vec<String> = wanted.into_iter().filter(|audience| claims.aud.contains(audience)).collect();
        if audiences.is_empty() {
            return None;
        }
        let bound = claims.kubernetes;
        let mut extra = vec![("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)])];
        for (what, reference) in [("node", &bound.node), ("pod", &bound.pod)] {
            if let Some(reference) = reference {
                extra.push((format!("authentication.kubernetes.io/{what}-name"), vec![reference.name.clone()]));
                if let Some(uid) = &reference.uid {
                    extra.push((format!("authentication.kubernetes.io/{what}-uid"), vec![uid.clone()]));
                }
            }
        }
        let mut identity = Identity::new(claims.sub, &["system:serviceaccounts", &format!("system:serviceaccounts:{}", bound.namespace)]);
        identity.uid = bound.serviceaccount.uid.unwrap_or_default();
        identity.extra = extra;
        Some(Token { identity, audiences })
    }

    /// A bootstrap token, `<id>.<secret>`, of Secret `kube-system/bootstrap-token-<id>`.
    fn bootstrap(&self, token: &str, now: SystemTime) -> Option<Token> {
        let (id, secret) = token.split_once('.')?;
        let plain = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !plain(id, 6) || !plain(secret, 16) {
            return None;
        }
        let object = self.registry.get(&kind::SECRET, Some("kube-system"), &format!("bootstrap-token-{id}")).ok()?;
        let field = |name: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(object["data"][name].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let alive = match field("expiration") {
            None => true,
            Some(text) => OffsetDateTime::parse(&text, &Rfc3339).is_ok_and(|end| SystemTime::from(end) > now),
        };
        let good = object["type"] == "bootstrap.kubernetes.io/token"
            && object["metadata"]["deletionTimestamp"].is_null()
            && field("token-id").as_deref() == Some(id)
            && field("token-secret").is_some_and(|stored| same(stored.as_bytes(), secret.as_bytes()))
            && field("usage-bootstrap-authentication").as_deref() == Some("true")
            && alive;
        if !good {
            return None;
        }
        let mut identity = Identity::new(format!("system:bootstrap:{id}"), &[BOOTSTRAPPERS]);
        if let Some(groups) = field("auth-extra-groups") {
            identity.groups.extend(groups.split(',').filter(|group| group.starts_with("system:bootstrappers:")).map(str::to_owned));
        }
        Some(Token { identity, audiences: Vec::new() })
    }
}

impl Credentials for Tokens {
    fn basic(&self, user: &str, password: &str) -> Option<Identity> {
        let group = match user {
            "node" => AGENT_GROUP,
            "server" => SERVER_GROUP,
            _ => return None,
        };
        same(password.as_bytes(), self.password.as_bytes()).then(|| Identity::new(user, &[group]))
    }

    fn bearer(&self, token: &str, audiences: &[String]) -> Option<Token> {
        let now = SystemTime::now();
        self.service_account(token, audiences, now).or_else(|| self.bootstrap(token, now))
    }
}

/// Compares digests, so that the time taken says nothing about where two secrets differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    digest(&SHA256, a).as_ref() == digest(&SHA256, b).as_ref()
}

fn reference(object: &Value) -> Ref {
    let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
    Ref { name: text("name").unwrap_or_default(), uid: text("uid") }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A random (version 4) UUID.
pub fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_survives_and_hash_follows_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let password = token_file(&path, "one").unwrap();
        assert_eq!(password.len(), 32);
        assert_eq!(token_file(&path, "two").unwrap(), password);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("K10{}::server:{password}\n", hex(digest(&SHA256, b"two").as_ref())));
        fs::write(&path, "my own: word\n").unwrap();
        assert_eq!(token_file(&path, "one").unwrap(), "my own: word");
        fs::write(&path, "\n").unwrap();
        assert!(token_file(&path, "one").is_err());
    }

    fn tokens() -> Tokens {
        let key = rcgen::KeyPair::generate().unwrap();
        let registry = Registry::open(Path::new(":memory:")).unwrap();
        Tokens::new("secret".to_owned(), &key.serialize_der(), registry).unwrap()
    }

    #[test]
    fn tampered_foreign_and_expired_tokens_are_refused() {
        let tokens = tokens();
        let account = json!({ "metadata": { "name": "default", "uid": "u1" } });
        let pod = json!({ "metadata": { "name": "p", "uid": "u2" }, "spec": { "nodeName": "n" } });
        let claim =
            Claim { namespace: "default", account: &account, pod: Some(&pod), audiences: Vec::new(), lifetime: Duration::from_secs(600) };
        let now = SystemTime::now();
        let (token, end) = tokens.issue(&claim, now);
        let claims = tokens.verified(&token, now).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:default:default");
        assert_eq!(claims.aud, API_AUDIENCES);
        assert_eq!(claims.kubernetes.pod.unwrap().uid.as_deref(), Some("u2"));
        assert!(tokens.verified(&token, end).is_none(), "expired");
        assert!(tokens.verified(&token, now - Duration::from_secs(120)).is_none(), "from the future");
        assert!(self::tokens().verified(&token, now).is_none(), "another cluster's key");
        let parts: Vec<&str> = token.split('.').collect();
        let other = tokens.issue(&Claim { namespace: "kube-system", ..claim }, now).0;
        let other: Vec<&str> = other.split('.').collect();
        let swapped = format!("{}.{}.{}", parts[0], other[1], parts[2]);
        assert!(tokens.verified(&swapped, now).is_none(), "another payload");
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert!(tokens.verified(&format!("{none}.{}.", parts[1]), now).is_none(), "alg none");
    }

    #[test]
    fn passwords_go_by_user() {
        let tokens = tokens();
        for (user, password, group) in [
            ("node", "secret", Some(AGENT_GROUP)),
            ("server", "secret", Some(SERVER_GROUP)),
            ("", "secret", None),
            ("foo", "secret", None),
            ("node", "wrong", None),
        ] {
            let got = tokens.basic(user, password).map(|identity| identity.groups.concat());
            assert_eq!(got.as_deref(), group, "{user}");
        }
    }
}
