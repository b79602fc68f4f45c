//! What can go wrong between this node and a K3s server. Each message names the thing, its value and the
//! remedy; the cause, where there is one, is the `source`. Whoever logs prints the chain.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::addr::ServerAddr;

/// Errors of this crate, one variant per kind of trouble an operator would treat differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The join token does not follow the grammar of k3s-agent.md 1.1.
    #[error("join token is not valid: {reason}; copy it again from /var/lib/rancher/k3s/server/node-token on the server")]
    Token {
        /// What is wrong with it. The token itself is never printed.
        reason: &'static str,
    },

    /// A server address is neither `https://HOST[:PORT]` nor `HOST:PORT`.
    #[error("server address {value:?} is not valid: {reason}; write it as https://HOST:6443")]
    Address {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The node name is not a lower-case RFC 1123 subdomain.
    #[error("node name {name:?} is not valid: {reason}; choose another with --node-name")]
    NodeName {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// No token was given and no earlier join left a client certificate.
    #[error("no join token and no client certificate below {}; give the token with --token or --token-file", dir.display())]
    NoCredentials {
        /// The data directory that was searched.
        dir: PathBuf,
    },

    /// TCP connect, name lookup or the exchange itself failed or timed out.
    #[error("cannot reach server {server}; check that it runs, that its name resolves and that no firewall blocks the port")]
    Unreachable {
        /// The server that was tried.
        server: ServerAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// The server is reachable but TLS failed for a reason that is not its certificate.
    #[error("no TLS with server {server}; check that this port is a K3s server and not behind a proxy that ends TLS")]
    Tls {
        /// The server that was tried.
        server: ServerAddr,
        /// What TLS said.
        #[source]
        source: io::Error,
    },

    /// The hash in the token is not that of the CA the server shows.
    #[error(
        "server {server} shows a CA with hash {seen}, the token expects {expected}; this is another cluster, its CA was rotated, or someone answers in its place: copy a new token from the server"
    )]
    CaHashMismatch {
        /// The server that was tried.
        server: ServerAddr,
        /// From the token, lower-case hex.
        expected: String,
        /// Of the answer to `/cacerts`, lower-case hex.
        seen: String,
    },

    /// The hash kept from the first join with a token without hash is not that of the CA now shown.
    #[error("server {server} shows a CA with hash {seen}, the first join saw {expected}; if its CA was rotated on purpose, join with a full K10 token or delete {}", file.display())]
    CaPinMismatch {
        /// The server that was tried.
        server: ServerAddr,
        /// From the file, lower-case hex.
        expected: String,
        /// Of the answer to `/cacerts`, lower-case hex.
        seen: String,
        /// Where the first hash is kept.
        file: PathBuf,
    },

    /// The server's certificate is not signed by the cluster's CA.
    #[error(
        "certificate of server {server} is not signed by the cluster CA this node trusts; if the CA was rotated, join again with a new token"
    )]
    CaUnknown {
        /// The server that was tried.
        server: ServerAddr,
        /// What TLS said.
        #[source]
        source: io::Error,
    },

    /// The server's certificate is signed by the CA but carries none of the accepted names.
    #[error("certificate of server {server} is for none of {server}, 127.0.0.1 and kubernetes; add the name with --tls-san on the server")]
    ServerName {
        /// The server that was tried.
        server: ServerAddr,
        /// What TLS said.
        #[source]
        source: io::Error,
    },

    /// A certificate of the server is expired by this machine's clock.
    #[error(
        "a certificate of server {server} ended {at}, the clock here says {now}; set the clock if it is ahead, else restart the server so that it renews"
    )]
    CertificateExpired {
        /// The server that was tried.
        server: ServerAddr,
        /// Its `notAfter`, RFC 3339, or `at an unknown time`.
        at: String,
        /// Local time, RFC 3339.
        now: String,
    },

    /// A certificate of the server is not valid yet by this machine's clock.
    #[error("a certificate of server {server} starts {at}, the clock here says {now}; set the clock (timedatectl set-ntp true)")]
    CertificateNotYetValid {
        /// The server that was tried.
        server: ServerAddr,
        /// Its `notBefore`, RFC 3339, or `at an unknown time`.
        at: String,
        /// Local time, RFC 3339.
        now: String,
    },

    /// 401: the credentials were rejected.
    #[error(
        "server {server} refuses the token (401 {message}); copy it again from the server, a bootstrap token may have expired, a separate agent token is in server/agent-token"
    )]
    TokenRejected {
        /// The server that answered.
        server: ServerAddr,
        /// Its text.
        message: String,
    },

    /// 401 to a node that has only its certificate.
    #[error(
        "server {server} refuses this node's certificate (401 {message}); its Node was deleted or the certificate ended: give a token to join anew"
    )]
    CertificateRejected {
        /// The server that answered.
        server: ServerAddr,
        /// Its text.
        message: String,
    },

    /// 403 with "hash does not match": the name belongs to another machine, or this one lost its password file.
    #[error("node name {node} is already taken on server {server} ({message}); choose another with --node-name, restore {}, or run: kubectl delete node {node}", file.display())]
    NameTaken {
        /// The server that answered.
        server: ServerAddr,
        /// The node name.
        node: String,
        /// Its text.
        message: String,
        /// The node password file.
        file: PathBuf,
    },

    /// Any other status than 2xx.
    #[error("server {server} answers {code} to {path}: {message}")]
    Refused {
        /// The server that answered.
        server: ServerAddr,
        /// The request path.
        path: String,
        /// HTTP status.
        code: u16,
        /// `message` of the Status, or the start of the body.
        message: String,
        /// From `Retry-After`, seconds.
        retry_after: Option<Duration>,
    },

    /// A 2xx answer that cannot be understood.
    #[error(
        "server {server} gives an answer to {path} that cannot be read: {reason}; check that this is a K3s server of a supported version"
    )]
    Answer {
        /// The server that answered.
        server: ServerAddr,
        /// The request path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The server's configuration cannot be followed by this node (k3s-agent.md 3.4).
    #[error("configuration of the server does not fit this node: {reason}")]
    Config {
        /// Thing, value and remedy.
        reason: String,
    },

    /// PEM or DER of ours or of the server that cannot be used.
    #[error("certificate material {what} cannot be used: {reason}; delete it and join again")]
    Certificate {
        /// File name or role.
        what: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file of ours cannot be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// `read`, `write`, `create`.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// The peer broke the remotedialer protocol; the session ends.
    #[error("tunnel peer broke the protocol: {reason}")]
    Protocol {
        /// What it did.
        reason: String,
    },

    /// No sign of life in time: the peer or the way to it is dead.
    #[error("no answer for {} s, the link counts as dead", after.as_secs())]
    Silent {
        /// How long nothing came.
        after: Duration,
    },

    /// The peer closed the tunnel.
    #[error("tunnel closed by the peer")]
    Closed,

    /// The tunnel's socket failed.
    #[error("tunnel socket failed")]
    Socket {
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the same call may succeed later without anybody changing token, name, CA or files: servers that
    /// start, networks that come back, clocks that get set.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. }
            | Error::Tls { .. }
            | Error::CertificateExpired { .. }
            | Error::CertificateNotYetValid { .. }
            | Error::Protocol { .. }
            | Error::Silent { .. }
            | Error::Closed
            | Error::Socket { .. } => true,
            Error::Refused { code, .. } => *code >= 500 || matches!(code, 408 | 429),
            Error::Token { .. }
            | Error::Address { .. }
            | Error::NodeName { .. }
            | Error::NoCredentials { .. }
            | Error::CaHashMismatch { .. }
            | Error::CaPinMismatch { .. }
            | Error::CaUnknown { .. }
            | Error::ServerName { .. }
            | Error::TokenRejected { .. }
            | Error::CertificateRejected { .. }
            | Error::NameTaken { .. }
            | Error::Answer { .. }
            | Error::Config { .. }
            | Error::Certificate { .. }
            | Error::File { .. } => false,
        }
    }

    /// Whether one of the two clocks is wrong, by all that can be seen: it helps to wait until this machine's is set.
    pub fn is_clock(&self) -> bool {
        matches!(self, Error::CertificateExpired { .. } | Error::CertificateNotYetValid { .. })
    }

    /// Whether another server of the same cluster may do better: nothing answered here.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Tls { .. } => true,
            Error::Refused { code, .. } => *code >= 500,
            _ => false,
        }
    }

    /// How long the server asked to be left alone (429 or 503 with `Retry-After`).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
