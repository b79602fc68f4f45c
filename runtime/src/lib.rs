//! Talks to containerd and to nothing above it: CRI v1 for pods, containers and images, containerd's own API for
//! what CRI lacks (events, import of image archives), and a private containerd where the machine runs none.
//!
//! ```text
//!   pod workers ──► Client (one verb, one deadline) ──► CRI on a unix socket ─┐
//!               ◄── observe: lists + statuses → ObservedPod                   ├─ containerd
//!               ◄── events: "this container exited", "look again"  ◄──────────┘   (ours: managed)
//! ```
//!
//! Nothing is remembered here: what exists is asked, and stopping or removing what is gone succeeds.

pub mod bench;
pub mod client;
pub mod container;
pub mod error;
pub mod events;
mod few;
pub mod health;
pub mod ids;
mod image;
pub mod import;
pub mod labels;
pub mod managed;
pub mod observe;
mod sandbox;
pub mod starts;
mod task;

/// The CRI messages, client and server trait, generated from `proto/cri.proto` (package `runtime.v1`).
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

pub use client::Client;
pub use container::{ExecOutput, Streams};
pub use error::Error;
pub use few::Few;
pub use ids::{ContainerId, PodUid, SandboxId};

/// What every call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
