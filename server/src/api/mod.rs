//! The Kubernetes API: kinds, objects, the registry that changes them, and the REST face of it.
//!
//! `kind` is the table, `registry` the only writer; `prepare` turns what came into what is stored with
//! `defaults`, `admission` and `validate`. `request` reads paths and queries, `rest` answers them, with
//! `table` for kubectl's columns and `discovery` for what there is.

mod admission;
mod apply;
mod columns;
mod defaults;
mod deletion;
mod discovery;
pub mod kind;
mod listing;
pub mod meta;
mod options;
mod patch;
mod prepare;
pub mod quantity;
pub mod registry;
mod removal;
mod render;
pub mod request;
pub mod rest;
mod reviews;
mod scale;
mod seeds;
pub mod selector;
mod service;
pub mod status;
mod strategic;
mod stream;
mod table;
mod table_pod;
mod validate;
mod views;
pub mod watch;

#[cfg(test)]
mod golden;

pub use discovery::GIT_VERSION;
pub use kind::Kind;
pub use registry::{DeleteOptions, PatchType, Propagation, Registry, Subresource};
pub use selector::Selectors;
pub use status::{ApiStatus, Cause};
pub use watch::{Event, EventType, Watch};
