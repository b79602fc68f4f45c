//! Pod networking of one node: the CNI configuration, routes to the pods of other nodes, forwarding and masquerading.
//!
//! The agent calls it when it learns the node's podCIDR and whenever the set of nodes changes. Pods of other nodes are
//! reached as flannel would, by plain routes ([`routes`], host-gw) or through a [`vxlan`] device, K3s' default. Everything that decides
//! is pure ([`cni::conflist`], [`routes::plan`], [`nft::ruleset`], [`flannel::annotations`]); what it does is a file, netlink messages and one `nft`
//! run, each in the caller's network namespace and each undone by its `remove`. Nothing that another program made is changed.
//! All calls block for milliseconds; none is async.

pub mod cni;
mod error;
pub mod flannel;
mod netlink;
pub mod nft;
mod remove;
pub mod routes;
pub mod sysctl;
pub mod vxlan;

pub use cni::{CniConfig, Written, write_conflist};
pub use error::Error;
pub use flannel::Backend;
pub use netlink::{Interface, default_interface, delete_interface, interface, interface_with};
pub use nft::{Firewall, Masquerade};
pub use remove::{Instance, remove};
pub use routes::{Own, Peer, Plan, RouteChange, Routes};
pub use vxlan::{Mac, Vxlan, VxlanPeer};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
