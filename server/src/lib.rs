//! `edge-server`: a small embedded control plane with K3s' wire protocol.
//!
//! `store` keeps objects, `api` is the Kubernetes API over it, `auth` says who may, `http` listens.
//! `pki`, `supervisor`, `tunnel_server`, `proxy` are K3s' side of the wire; `controllers` and `scheduler`
//! change objects through `api::Registry` only.

pub mod api;
pub mod auth;
pub mod http;
