//! The node agent: everything `edge-agent` is made of.
//!
//! ```text
//! config -> identity (tunnel: CA, certificates) -> api client (through the load balancer)
//!    -> node (register, lease, status)
//!    -> assignments (watch -> one snapshot) -> pod workers (decide -> one step) -> runtime (CRI)
//!    -> status (derived from what was seen) -> status writer
//! beside: tunnel links (one per server) -> kubelet server;  metrics;  control socket
//! ```
//!
//! [`app`] builds the parts in this order; reading it top to bottom is the tour.

pub mod api;
pub mod app;
pub mod assignments;
pub mod backoff;
pub mod board;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod events;
pub mod governor;
pub mod heartbeat;
pub mod hot;
pub mod images_preload;
pub mod join;
pub mod kubelet;
pub mod leave;
pub mod ledger;
pub mod memory;
pub mod metrics;
pub mod network_sync;
pub mod node;
pub mod objects;
pub mod pod;
pub mod preflight;
pub mod qos;
pub mod reboot;
pub mod registries;
pub mod reserve;
pub mod shutdown;
pub mod status_writer;
pub mod storage_probe;
pub mod task;
pub mod telemetry;
pub mod vxlan_ends;
