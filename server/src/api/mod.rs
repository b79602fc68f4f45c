//! The Kubernetes API: kinds, objects, the registry that changes them, and the REST face of it.
//!
//! `kind` is the table, `registry` the only writer; `prepare` turns what came into what is stored with
//! `defaults`, `admission` and `validate`. `request` reads paths and queries, `rest` answers them, with
//! `table` for kubectl's columns and `discovery` for what there is.

mod admission;
mod defaults;
pub mod kind;
pub mod meta;
mod patch;
mod prepare;
pub mod quantity;
pub mod registry;
pub mod selector;
mod service;
pub mod status;
mod strategic;
mod validate;
pub mod watch;

pub use kind::Kind;
pub use registry::{DeleteOptions, PatchType, Propagation, Registry, Subresource};
pub use selector::Selectors;
pub use status::{ApiStatus, Cause};
pub use watch::{Event, EventType, Watch};
