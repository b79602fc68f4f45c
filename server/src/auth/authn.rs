//! Authentication, in K3s' order: basic password, client certificate, bearer token; the first success wins.
//!
//! Basic passwords count on supervisor paths only: the API itself knows none and answers 401 even to a good one.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::{AUTHENTICATED, Credentials, Identity};

/// The client certificate of a connection, verified against the client CA once, at its handshake.
#[derive(Debug, Clone)]
pub struct PeerCert {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Chains to the client CA and may be used by clients. The time is checked for each request.
    pub trusted: bool,
    pub der: Vec<u8>,
}

/// What the credentials of one request amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// No credentials at all, or a `Basic` value that cannot be decoded.
    Anonymous,
    /// Credentials came, none was good.
    Rejected,
    As(Identity),
}

/// A request's origin, handed to the supervisor's handlers.
#[derive(Debug, Clone)]
pub struct Caller {
    pub remote: SocketAddr,
    pub peer: Option<PeerCert>,
    /// Basic, certificate and bearer: what supervisor paths go by.
    pub supervisor: Login,
    /// Certificate and bearer: what the Kubernetes API goes by.
    pub api: Login,
}

/// Authenticates one request.
pub fn authenticate(
    headers: &HeaderMap,
    peer: Option<&PeerCert>,
    remote: SocketAddr,
    credentials: &dyn Credentials,
    now: SystemTime,
) -> Caller {
    let header = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let basic = header.and_then(decode_basic);
    let certificate = peer.map(|p| certificate(p, now));
    let bearer = header.and_then(strip_bearer).map(|token| credentials.bearer(token, &[]).map(|t| t.identity));
    let api = first([certificate.clone(), bearer.clone()]);
    let password = basic.map(|(user, password)| credentials.basic(&user, &password));
    let supervisor = first([password, certificate, bearer]);
    Caller { remote, peer: peer.cloned(), supervisor, api }
}

fn first<const N: usize>(methods: [Option<Option<Identity>>; N]) -> Login {
    let mut seen = false;
    for outcome in methods.into_iter().flatten() {
        match outcome {
            Some(mut identity) => {
                if !identity.in_group(AUTHENTICATED) {
                    identity.groups.push(AUTHENTICATED.to_owned());
                }
                return Login::As(identity);
            }
            None => seen = true,
        }
    }
    if seen { Login::Rejected } else { Login::Anonymous }
}

fn certificate(peer: &PeerCert, now: SystemTime) -> Option<Identity> {
    if !peer.trusted || now < peer.not_before || now > peer.not_after || peer.common_name.is_empty() {
        return None;
    }
    Some(Identity { user: peer.common_name.clone(), groups: peer.organizations.clone(), uid: String::new(), extra: Vec::new() })
}

fn decode_basic(header: &str) -> Option<(String, String)> {
    let encoded = strip_scheme(header, "basic")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn strip_bearer(header: &str) -> Option<&str> {
    strip_scheme(header, "bearer").map(str::trim).filter(|t| !t.is_empty())
}

fn strip_scheme<'a>(header: &'a str, scheme: &str) -> Option<&'a str> {
    let (name, rest) = header.split_once(' ')?;
    name.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;
    impl Credentials for Fake {
        fn basic(&self, user: &str, password: &str) -> Option<Identity> {
            (user == "node" && password == "good").then(|| Identity::new("node", &["k3s:agent"]))
        }
        fn bearer(&self, token: &str, _: &[String]) -> Option<super::super::Token> {
            (token == "good").then(|| super::super::Token { identity: Identity::new("sa", &[]), audiences: Vec::new() })
        }
    }

    fn cert(trusted: bool) -> PeerCert {
        PeerCert {
            common_name: "system:node:a".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now() + std::time::Duration::from_secs(60),
            trusted,
            der: Vec::new(),
        }
    }

    #[test]
    fn order_and_outcomes_follow_k3s() {
        let b64 = |s: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(s));
        type Row = (&'static str, Option<String>, Option<PeerCert>, &'static str, &'static str);
        let rows: &[Row] = &[
            ("nothing", None, None, "anonymous", "anonymous"),
            ("good password", Some(b64("node:good")), None, "node", "anonymous"),
            ("bad password", Some(b64("node:bad")), None, "rejected", "anonymous"),
            ("undecodable", Some("Basic %%%".to_owned()), None, "anonymous", "anonymous"),
            ("password beats certificate", Some(b64("node:good")), Some(cert(true)), "node", "system:node:a"),
            ("certificate beats bearer", Some("Bearer good".to_owned()), Some(cert(true)), "system:node:a", "system:node:a"),
            ("strange certificate", None, Some(cert(false)), "rejected", "rejected"),
            ("bearer after strange certificate", Some("Bearer good".to_owned()), Some(cert(false)), "sa", "sa"),
        ];
        for (name, header, peer, supervisor, api) in rows {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            let remote = SocketAddr::from(([127, 0, 0, 1], 1));
            let caller = authenticate(&headers, peer.as_ref(), remote, &Fake, SystemTime::now());
            let text = |l: &Login| match l {
                Login::Anonymous => "anonymous".to_owned(),
                Login::Rejected => "rejected".to_owned(),
                Login::As(i) => i.user.clone(),
            };
            assert_eq!((text(&caller.supervisor).as_str(), text(&caller.api).as_str()), (*supervisor, *api), "{name}");
        }
    }
}
