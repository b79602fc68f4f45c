//! The Kubernetes API: kinds, objects, the registry that changes them, and the REST face of it.

pub mod kind;
pub mod registry;
pub mod selector;
pub mod status;
pub mod watch;

pub use kind::Kind;
pub use registry::{DeleteOptions, PatchType, Propagation, Registry, Subresource};
pub use selector::Selectors;
pub use status::{ApiStatus, Cause};
pub use watch::{Event, EventType, Watch};
