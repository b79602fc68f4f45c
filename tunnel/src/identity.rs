//! A node's identity: the CA files, certificates and configuration a join brings, and the same from disk for a
//! start without network. Files are named as K3s names them, below `data-dir/agent` (k3s-agent.md 6.11).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::addr::ServerAddr;
use crate::balancer;
use crate::config::ServerConfig;
use crate::error::{Error, Result};
use crate::renewal::Validity;
use crate::supervisor::{CertKind, NodeHeaders, Supervisor};
use crate::tls::KeyPair;
use crate::token::Token;
use crate::{files, keys, password};

/// What a joined node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whom to trust as server; PEM bundle.
    pub server_ca: Vec<u8>,
    /// Who may call the kubelet port; PEM bundle.
    pub client_ca: Vec<u8>,
    /// `system:node:NAME`.
    pub kubelet_client: KeyPair,
    /// Server certificate of the kubelet port.
    pub kubelet_serving: KeyPair,
    /// `system:k3s-controller`: may watch nodes, services, endpoint slices.
    pub controller: KeyPair,
    /// `system:kube-proxy`.
    pub kube_proxy: KeyPair,
    /// The server's configuration.
    pub config: ServerConfig,
}

/// What a join needs.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The configured server, possibly a load balancer's address.
    pub server: ServerAddr,
    /// Absent: the certificate of an earlier join is used instead.
    pub token: Option<Token>,
    /// Files live below `data_dir/agent`.
    pub data_dir: PathBuf,
    /// Lower-case RFC 1123 subdomain.
    pub node_name: String,
    /// For the serving certificate: node IPs, then external IPs.
    pub node_ips: Vec<IpAddr>,
    /// `/etc/rancher/node/password` unless configured otherwise.
    pub node_password_file: PathBuf,
}

const KINDS: [CertKind; 4] = [CertKind::ServingKubelet, CertKind::ClientKubelet, CertKind::ClientKubeProxy, CertKind::ClientController];

/// Where everything is.
struct Layout {
    agent: PathBuf,
}

impl Layout {
    fn of(data_dir: &Path) -> Layout {
        Layout { agent: data_dir.join("agent") }
    }
    fn server_ca(&self) -> PathBuf {
        self.agent.join("server-ca.crt")
    }
    fn client_ca(&self) -> PathBuf {
        self.agent.join("client-ca.crt")
    }
    fn cert(&self, kind: CertKind) -> PathBuf {
        self.agent.join(format!("{}.crt", kind.name()))
    }
    fn key(&self, kind: CertKind) -> PathBuf {
        self.agent.join(format!("{}.key", kind.name()))
    }
    fn config(&self) -> PathBuf {
        self.agent.join("etc/server-config.json")
    }
    /// Server and CA hash of the first join with a token that pins nothing.
    fn pin(&self) -> PathBuf {
        self.agent.join("etc/server-ca.pin")
    }
    fn old_password(&self) -> PathBuf {
        self.agent.join("node-password.txt")
    }

    fn pair(&self, kind: CertKind) -> Result<Option<KeyPair>> {
        match (files::read(&self.cert(kind))?, files::read(&self.key(kind))?) {
            (Some(cert_pem), Some(key_pem)) => Ok(Some(KeyPair { cert_pem, key_pem })),
            _ => Ok(None),
        }
    }

    /// The key of an earlier join, or a new one. On disk before the request, so that key and certificate never
    /// belong to different joins.
    fn key_for(&self, kind: CertKind) -> Result<Vec<u8>> {
        if let Some(key) = files::read(&self.key(kind))?.filter(|key| keys::is_ours(key)) {
            return Ok(key);
        }
        let key = keys::generate()?;
        files::write(&self.key(kind), &key)?;
        Ok(key)
    }
}

/// Joins: verifies the server, fetches everything, writes it to disk. Repeating it renews the certificates.
///
/// The configured server is tried first, then those a balancer file for the same URL lists (k3s-agent.md 5.3).
/// Errors say whether trying again can help ([`Error::is_retryable`]).
pub async fn join(options: &JoinOptions) -> Result<Identity> {
    check_name(&options.node_name)?;
    let layout = Layout::of(&options.data_dir);
    files::dir(&layout.agent, 0o700)?;
    let mut candidates = vec![options.server.clone()];
    let stored = balancer::load(&options.data_dir, &options.server)?;
    candidates.extend(stored.into_iter().filter(|s| *s != options.server));
    let mut first = None;
    for server in &candidates {
        match join_at(server, options, &layout).await {
            Ok(identity) => return Ok(identity),
            Err(error) if error.is_unreachable() && candidates.len() > 1 => {
                tracing::warn!(%server, %error, "server does not answer, trying the next");
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    // The configured server's error is the one the operator can act on.
    Err(first.unwrap_or_else(|| Error::NoCredentials { dir: options.data_dir.clone() }))
}

async fn join_at(server: &ServerAddr, options: &JoinOptions, layout: &Layout) -> Result<Identity> {
    let supervisor = introduce(server, options, layout).await?;
    let config = first_answer(&supervisor, options.token.as_ref()).await?;
    config.check(&options.node_ips).map_err(|reason| Error::Config { reason })?;
    let node = NodeHeaders {
        name: options.node_name.clone(),
        password: password::load_or_create(&options.node_password_file, Some(&layout.old_password()))?,
        ips: options.node_ips.clone(),
        password_file: options.node_password_file.clone(),
    };
    let mut key = Vec::new();
    for kind in KINDS {
        key.push(layout.key_for(kind)?);
    }
    // One after the other where the node password is checked: the first request creates it on the server.
    let kubelet = async {
        let serving = supervisor.certificate(CertKind::ServingKubelet, &key[0], Some(&node)).await?;
        let client = supervisor.certificate(CertKind::ClientKubelet, &key[1], Some(&node)).await?;
        Ok((serving, client))
    };
    let ((kubelet_serving, kubelet_client), kube_proxy, controller, client_ca, server_ca) = tokio::try_join!(
        kubelet,
        supervisor.certificate(CertKind::ClientKubeProxy, &key[2], None),
        supervisor.certificate(CertKind::ClientController, &key[3], None),
        supervisor.client_ca(),
        supervisor.server_ca(),
    )?;
    let identity = Identity { server_ca, client_ca, kubelet_client, kubelet_serving, controller, kube_proxy, config };
    identity.store(layout)?;
    files::write(&layout.pin(), format!("{} {}\n", options.server, supervisor.hash()).as_bytes())?;
    Ok(identity)
}

/// A verified supervisor with the best credentials at hand.
async fn introduce(server: &ServerAddr, options: &JoinOptions, layout: &Layout) -> Result<Supervisor> {
    let known = layout.pair(CertKind::ClientKubelet)?.filter(|pair| pair.check("client-kubelet").is_ok());
    let Some(token) = &options.token else {
        let missing = || Error::NoCredentials { dir: options.data_dir.clone() };
        let ca = files::read(&layout.server_ca())?.ok_or_else(missing)?;
        return Supervisor::with_ca(server, ca, None, Some(known.ok_or_else(missing)?));
    };
    let mut supervisor = Supervisor::connect(server, token).await?;
    if token.ca_hash().is_none() {
        match pinned(layout, &options.server)? {
            Some(expected) if expected != supervisor.hash() => {
                let seen = supervisor.hash().to_owned();
                return Err(Error::CaPinMismatch { server: server.clone(), expected, seen, file: layout.pin() });
            }
            Some(_) => {}
            None => {
                tracing::warn!(%server, ca_hash = supervisor.hash(), "token pins no CA, trusting the one the server shows")
            }
        }
    }
    if let Some(pair) = known {
        supervisor.offer(pair)?;
    }
    Ok(supervisor)
}

/// The hash kept for this configured server.
fn pinned(layout: &Layout, server: &ServerAddr) -> Result<Option<String>> {
    let content = files::read(&layout.pin())?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let found = text.trim().split_once(' ').filter(|(name, _)| *name == server.to_string());
    Ok(found.map(|(_, hash)| hash.to_owned()))
}

/// The configuration. A bootstrap token works only some seconds after the server's start and until then gets 403
/// and 401 (k3s-agent.md 1.2), so these count only when they last.
async fn first_answer(supervisor: &Supervisor, token: Option<&Token>) -> Result<ServerConfig> {
    let tries = if token.is_some_and(Token::is_bootstrap) { 5 } else { 1 };
    for _ in 1..tries {
        match supervisor.config().await {
            Err(Error::TokenRejected { .. } | Error::Refused { code: 403, .. }) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return other,
        }
    }
    supervisor.config().await
}

/// The identity of an earlier join, `None` when there is none or it is not whole. Expired certificates load: the
/// caller decides what to do with them.
pub fn load(data_dir: &Path) -> Result<Option<Identity>> {
    let layout = Layout::of(data_dir);
    let ca = (files::read(&layout.server_ca())?, files::read(&layout.client_ca())?);
    let mut pairs = Vec::new();
    for kind in KINDS {
        let Some(pair) = layout.pair(kind)? else {
            return Ok(None);
        };
        pair.check(&layout.cert(kind).display().to_string())?;
        pairs.push(pair);
    }
    let (pairs, (Some(server_ca), Some(client_ca)), Some(config)) = (pairs, ca, files::read(&layout.config())?) else {
        return Ok(None);
    };
    let config = serde_json::from_slice(&config)
        .map_err(|e| Error::Certificate { what: layout.config().display().to_string(), reason: e.to_string() })?;
    let [kubelet_serving, kubelet_client, kube_proxy, controller] = <[KeyPair; 4]>::try_from(pairs).expect("one pair per kind was read");
    Ok(Some(Identity { server_ca, client_ca, kubelet_client, kubelet_serving, controller, kube_proxy, config }))
}

impl Identity {
    fn store(&self, layout: &Layout) -> Result<()> {
        for (kind, pair) in KINDS.into_iter().zip([&self.kubelet_serving, &self.kubelet_client, &self.kube_proxy, &self.controller]) {
            files::write(&layout.key(kind), &pair.key_pem)?;
            files::write(&layout.cert(kind), &pair.cert_pem)?;
        }
        files::write(&layout.server_ca(), &self.server_ca)?;
        files::write(&layout.client_ca(), &self.client_ca)?;
        let config = serde_json::to_vec_pretty(&self.config).expect("plain data serialises");
        files::write(&layout.config(), &config)
    }

    /// From when to when each of the four certificates counts.
    pub fn validities(&self) -> Result<Vec<Validity>> {
        let pairs = [&self.kubelet_client, &self.kubelet_serving, &self.controller, &self.kube_proxy];
        pairs.into_iter().map(|pair| pair.validity().map(|(from, until)| Validity { from, until })).collect()
    }

    /// When the first of the certificates ends. [`crate::renewal`] renews them well before.
    pub fn expires(&self) -> Result<SystemTime> {
        Ok(self.validities()?.into_iter().map(|v| v.until).min().unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// The earliest time a right clock can show: the cluster's CA and the certificates were made by then. A server before
    /// v1.35.3 dates certificates back to the CA's own start, so this is a bound and not an estimate.
    pub fn not_before(&self) -> SystemTime {
        let from = |pem: &[u8]| KeyPair { cert_pem: pem.to_vec(), key_pem: Vec::new() }.validity().ok().map(|(from, _)| from);
        let leaves = self.validities().unwrap_or_default().into_iter().map(|v| v.from);
        from(&self.server_ca).into_iter().chain(leaves).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// A client of any server of the cluster with the node's certificate and no token.
    pub fn supervisor(&self, server: &ServerAddr) -> Result<Supervisor> {
        Supervisor::with_ca(server, self.server_ca.clone(), None, Some(self.kubelet_client.clone()))
    }
}

/// Node names must be lower-case RFC 1123 subdomains already here: the server lower-cases them in certificates and
/// accepts the rest unchecked, with trouble later (k3s-agent.md 2.5).
pub fn check_name(name: &str) -> Result<()> {
    let err = |reason| Err(Error::NodeName { name: name.to_owned(), reason });
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > 253 {
        return err("it must have 1 to 253 characters");
    }
    if !name.chars().all(|c| edge(c) || c == '-' || c == '.') {
        return err("only lower-case letters, digits, '-' and '.' are allowed");
    }
    if !name.split('.').all(|part| part.starts_with(edge) && part.ends_with(edge)) {
        return err("each part must start and end with a letter or digit");
    }
    Ok(())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
