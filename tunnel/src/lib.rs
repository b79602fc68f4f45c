//! The K3s wire, seen from both ends: join tokens, CA pinning, the supervisor's HTTP API, node certificates, the
//! remotedialer tunnel and the choice of server.
//!
//! Nothing here knows of pods, cgroups or containers. Deciding is pure ([`session`], [`message`], [`balancer`],
//! [`allow`], [`backoff`]) and table-tested; [`supervisor`], [`identity`], [`link`] and [`serve`] do the IO.
//!
//! ```text
//! token ─► supervisor ─► identity (files below data-dir/agent)
//!                           │ TLS with the pinned CA
//!                           ▼
//! link (one per server) ◄─► session ◄─► connection ─► kubelet server
//! ```

pub mod addr;
pub mod allow;
pub mod backoff;
pub mod balancer;
pub mod cahash;
pub mod config;
mod connection;
pub mod dial;
mod driver;
pub mod error;
#[cfg(test)]
mod fake;
mod files;
mod http;
pub mod identity;
pub mod keys;
pub mod link;
mod liveness;
pub mod message;
mod moved;
pub mod password;
pub mod pem;
pub mod renewal;
pub mod serve;
pub mod session;
pub mod status;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token;
pub mod traffic;

pub use addr::ServerAddr;
pub use cahash::ca_hash;
pub use config::ServerConfig;
pub use error::{Error, Result};
pub use identity::{Identity, JoinOptions};
pub use tls::KeyPair;
pub use token::Token;
