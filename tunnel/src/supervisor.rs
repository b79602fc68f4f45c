//! The supervisor's HTTP API as an agent uses it (k3s-agent.md 2): the CA first, without credentials; then
//! configuration, CA files, certificates and the list of servers, over TLS with that CA.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use hyper::Method;
use tokio_rustls::rustls::ClientConfig;

use crate::addr::ServerAddr;
use crate::cahash::ca_hash;
use crate::config::ServerConfig;
use crate::error::{Error, Result};
use crate::http::{Call, call};
use crate::keys;
use crate::pem;
use crate::tls::{KeyPair, client_config, unverified_config};
use crate::token::Token;

/// The certificates an agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertKind {
    /// Server certificate of the kubelet port, signed by the server CA.
    ServingKubelet,
    /// `system:node:NAME`.
    ClientKubelet,
    /// `system:kube-proxy`.
    ClientKubeProxy,
    /// `system:k3s-controller`.
    ClientController,
}

impl CertKind {
    /// File name without extension, on disk and in the request path.
    pub fn name(self) -> &'static str {
        match self {
            CertKind::ServingKubelet => "serving-kubelet",
            CertKind::ClientKubelet => "client-kubelet",
            CertKind::ClientKubeProxy => "client-kube-proxy",
            CertKind::ClientController => "client-k3s-controller",
        }
    }
}

/// What proves that a node name is this machine's (k3s-agent.md 2.5, 2.6).
#[derive(Debug, Clone)]
pub struct NodeHeaders {
    /// Lower-case node name.
    pub name: String,
    /// From the node password file.
    pub password: String,
    /// Addresses for the serving certificate.
    pub ips: Vec<IpAddr>,
    /// Where the password is kept, for the error when the name is taken.
    pub password_file: PathBuf,
}

impl NodeHeaders {
    fn list(&self) -> Vec<(&'static str, String)> {
        // Without spaces: an address after one gives a 500.
        let ips = self.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        let mut headers = vec![("k3s-Node-Name", self.name.clone()), ("k3s-Node-Password", self.password.clone())];
        if !ips.is_empty() {
            headers.push(("k3s-Node-IP", ips));
        }
        headers
    }
}

/// A client of one server whose CA was verified.
#[derive(Clone)]
pub struct Supervisor {
    server: ServerAddr,
    authorization: Option<String>,
    identity: Option<KeyPair>,
    ca: Bytes,
    hash: String,
    /// With the client certificate, when there is one.
    tls: Arc<ClientConfig>,
    /// Without it.
    plain: Arc<ClientConfig>,
}

impl Supervisor {
    /// Fetches the CA bundle unverified, compares its hash with the token's, fetches it again verified by itself,
    /// and only then is ready to send credentials. Without a hash in the token the CA is trusted on first use.
    pub async fn connect(server: &ServerAddr, token: &Token) -> Result<Supervisor> {
        let bundle = call(server, unverified_config()?, &Call::get("/cacerts")).await?;
        let hash = ca_hash(&bundle, SystemTime::now()).map_err(|e| answer(server, "/cacerts", &e))?;
        if let Some(expected) = token.ca_hash().filter(|expected| *expected != hash) {
            return Err(Error::CaHashMismatch { server: server.clone(), expected: expected.to_owned(), seen: hash });
        }
        let supervisor = Supervisor::with_ca(server, bundle.clone(), Some(token), None)?;
        let again = call(server, supervisor.plain.clone(), &Call::get("/cacerts")).await?;
        if again != bundle {
            let seen = ca_hash(&again, SystemTime::now()).map_err(|e| answer(server, "/cacerts", &e))?;
            return Err(Error::CaHashMismatch { server: server.clone(), expected: hash, seen });
        }
        Ok(supervisor)
    }

    /// A client that trusts a CA bundle known from before.
    pub fn with_ca(server: &ServerAddr, ca: impl Into<Bytes>, token: Option<&Token>, identity: Option<KeyPair>) -> Result<Supervisor> {
        let ca = ca.into();
        let plain = client_config(&ca, None, &["http/1.1"])?;
        let tls = match &identity {
            Some(pair) => client_config(&ca, Some(pair), &["http/1.1"])?,
            None => plain.clone(),
        };
        Ok(Supervisor {
            server: server.clone(),
            authorization: token.map(Token::authorization),
            identity,
            hash: ca_hash(&ca, SystemTime::now())?,
            ca,
            tls,
            plain,
        })
    }

    /// Offers a client certificate with every further call. A basic token beats it, it beats a bootstrap token.
    pub fn offer(&mut self, identity: KeyPair) -> Result<()> {
        self.tls = client_config(&self.ca, Some(&identity), &["http/1.1"])?;
        self.identity = Some(identity);
        Ok(())
    }

    /// The server it talks to.
    pub fn server(&self) -> &ServerAddr {
        &self.server
    }

    /// The CA bundle, as `/cacerts` gave it.
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// Hash of the CA bundle, 64 lower-case hex characters: what a full token pins.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// `GET /v1-k3s/config`.
    pub async fn config(&self) -> Result<ServerConfig> {
        let path = "/v1-k3s/config";
        let body = self.send(&Call::get(path)).await?;
        serde_json::from_slice(&body).map_err(|e| answer(&self.server, path, &e))
    }

    /// `GET /v1-k3s/client-ca.crt`: who may call the kubelet port. PEM.
    pub async fn client_ca(&self) -> Result<Vec<u8>> {
        self.bundle("/v1-k3s/client-ca.crt").await
    }

    /// `GET /v1-k3s/server-ca.crt`: whom to trust from now on. PEM.
    pub async fn server_ca(&self) -> Result<Vec<u8>> {
        self.bundle("/v1-k3s/server-ca.crt").await
    }

    async fn bundle(&self, path: &str) -> Result<Vec<u8>> {
        let body = self.send(&Call::get(path)).await?;
        if pem::certificates(&body).is_empty() {
            return Err(answer(&self.server, path, &"no certificate in it"));
        }
        Ok(body.to_vec())
    }

    /// Has `key` (PEM, PKCS#8) certified. A private key in the answer replaces it: the certificate belongs to that
    /// one (k3s-agent.md 2.4). The kubelet kinds need `node`.
    pub async fn certificate(&self, kind: CertKind, key: &[u8], node: Option<&NodeHeaders>) -> Result<KeyPair> {
        let path = format!("/v1-k3s/{}.crt", kind.name());
        let request = Call {
            method: Method::POST,
            path: &path,
            headers: node.map(NodeHeaders::list).unwrap_or_default(),
            authorization: None,
            body: keys::request(key)?.into(),
        };
        let body = self.send(&request).await.map_err(|e| name_taken(e, node))?;
        let (pair, replaced) = split_answer(&body, key).map_err(|e| answer(&self.server, &path, &e))?;
        pair.check(kind.name()).map_err(|e| answer(&self.server, &path, &e))?;
        if replaced {
            tracing::warn!(certificate = kind.name(), server = %self.server, "server sent a private key shared by all nodes, upgrade it");
        }
        Ok(pair)
    }

    /// `GET /v1-k3s/apiservers`: all servers, in no order; empty while the server starts.
    pub async fn apiservers(&self) -> Result<Vec<ServerAddr>> {
        let path = "/v1-k3s/apiservers";
        let body = self.send(&Call::get(path)).await?;
        parse_apiservers(&body).map_err(|e| answer(&self.server, path, &e))
    }

    /// `GET /v1-k3s/readyz`. Errors with [`Error::Refused`] and a 5xx code while the server's core starts.
    pub async fn readyz(&self) -> Result<()> {
        self.send(&Call::get("/v1-k3s/readyz")).await.map(|_| ())
    }

    /// Sends with the token and the client certificate; a 401, or a TLS alert, while a certificate was offered is
    /// tried once more without it, the whole request again (k3s-agent.md 2.6: the Node may be gone, the token still
    /// counts; or the certificate is of another cluster).
    async fn send(&self, request: &Call<'_>) -> Result<Bytes> {
        let request = Call { authorization: self.authorization.clone(), ..request.clone() };
        let first = call(&self.server, self.tls.clone(), &request).await;
        let refused = matches!(first, Err(Error::Refused { code: 401, .. } | Error::Tls { .. }));
        let retry = refused && self.identity.is_some() && self.authorization.is_some();
        let result = if retry { call(&self.server, self.plain.clone(), &request).await } else { first };
        result.map_err(|error| match error {
            Error::Refused { server, code: 401, message, .. } if self.authorization.is_none() => {
                Error::CertificateRejected { server, message }
            }
            Error::Refused { server, code: 401, message, .. } => Error::TokenRejected { server, message },
            other => other,
        })
    }
}

fn answer(server: &ServerAddr, path: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::Answer { server: server.clone(), path: path.to_owned(), reason: reason.to_string() }
}

fn name_taken(error: Error, node: Option<&NodeHeaders>) -> Error {
    match (error, node) {
        (Error::Refused { server, code: 403, message, .. }, Some(node)) if message.contains("hash does not match") => {
            Error::NameTaken { server, node: node.name.clone(), message, file: node.password_file.clone() }
        }
        (other, _) => other,
    }
}

/// Certificates and key material of an answer, sorted by PEM type; `true` when a returned key replaced ours.
fn split_answer(body: &[u8], key: &[u8]) -> std::result::Result<(KeyPair, bool), String> {
    let (keys, rest): (Vec<_>, Vec<_>) = pem::blocks(body).into_iter().partition(pem::Block::is_private_key);
    let cert_pem: String = rest.iter().filter(|b| b.is_certificate()).map(|b| b.text.as_str()).collect();
    if cert_pem.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    let key_pem: String = keys.iter().map(|b| b.text.as_str()).collect();
    let replaced = !key_pem.is_empty();
    let key_pem = if replaced { key_pem.into_bytes() } else { key.to_vec() };
    Ok((KeyPair { cert_pem: cert_pem.into_bytes(), key_pem }, replaced))
}

/// A JSON list of `ip:port`, or `null`.
fn parse_apiservers(body: &[u8]) -> std::result::Result<Vec<ServerAddr>, String> {
    let list: Option<Vec<String>> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    list.unwrap_or_default().iter().map(|text| text.parse().map_err(|e: Error| e.to_string())).collect()
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
