//! `edge-server`: a small embedded control plane with K3s' wire protocol.
//!
//! `store` keeps objects, `api` is the Kubernetes API over it, `auth` says who may, `http` listens.
//! `pki`, `supervisor`, `tunnel_server`, `proxy` are K3s' side of the wire; `controllers` and `scheduler`
//! change objects through `api::Registry` only.

pub mod api;
pub mod app;
pub mod auth;
pub mod controllers;
pub mod extra;
pub mod files;
pub mod http;
pub mod machine;
pub mod openapi;
pub mod pki;
pub mod proxy;
pub mod scheduler;
pub mod store;
pub mod supervisor;
pub mod token_request;
pub mod tokens;
pub mod tunnel_server;
