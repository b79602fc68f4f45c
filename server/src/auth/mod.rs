//! Who calls, and what they may do.
//!
//! `http` asks `authn` who a request comes from and `authz` whether it may; nothing here does IO
//! beyond verifying a signature.

pub mod authn;
pub mod authz;
pub mod impersonate;
pub mod peer;

use std::sync::Arc;

pub use authn::{Caller, Login, PeerCert};

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
    pub uid: String,
    /// `extra` of a TokenReview, for example the pod a service account token is bound to.
    pub extra: Vec<(String, Vec<String>)>,
}

/// Who makes a change, as the registry sees it.
pub type Actor = Identity;

pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
pub const AUTHENTICATED: &str = "system:authenticated";

impl Identity {
    pub fn new(user: impl Into<String>, groups: &[&str]) -> Self {
        Self { user: user.into(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), uid: String::new(), extra: Vec::new() }
    }

    /// The server's own parts: controllers, scheduler, garbage collector.
    pub fn system(component: &str) -> Self {
        Self::new(format!("system:{component}"), &[MASTERS, AUTHENTICATED])
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name if this is `system:node:NAME` in group `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        if self.in_group(NODES) { self.user.strip_prefix("system:node:") } else { None }
    }
}

/// Knows the secrets this server hands out (implemented beside the PKI).
pub trait Credentials: Send + Sync + 'static {
    /// User and password of the node password file (`node`, `server`); supervisor paths only.
    fn basic(&self, user: &str, password: &str) -> Option<Identity>;
    /// Bootstrap tokens and service account tokens; groups without `system:authenticated`.
    /// `audiences` empty means the API server's own.
    fn bearer(&self, token: &str, audiences: &[String]) -> Option<Token>;
}

/// What a verified bearer token says.
#[derive(Debug, Clone)]
pub struct Token {
    pub identity: Identity,
    /// Audiences of the token that were asked for.
    pub audiences: Vec<String>,
}

/// Shared handle to the credentials.
pub type SharedCredentials = Arc<dyn Credentials>;
