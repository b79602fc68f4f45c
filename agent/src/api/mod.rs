//! The Kubernetes API as far as a node needs it: a thin HTTP/2 client and slim types.
//!
//! Types keep only the fields the agent reads; unknown ones are skipped by serde at no allocation.
//! Only pod specs keep unknown fields by name, so that they can be refused.

pub mod client;
pub mod core;
pub mod error;
mod gather;
pub mod meta;
pub mod node;
pub mod pod;
pub mod quantity;
pub mod servers;
pub mod slice;
pub mod watch;

pub use client::{Client, PatchType};
pub use error::Error;
pub use meta::{ObjectMeta, OwnerReference};
