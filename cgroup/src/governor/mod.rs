//! The governor: keeps pods from starving the node they run on (governor reference, section 3).
//!
//! Deciding is apart from doing. The law turns one [`Sample`] after the other, and the [`Pod`]s where it asks for them, into [`Order`]s;
//! time comes with the sample, so that a recorded trace gives the same orders again. Sensor and actuator know the kernel and decide nothing.

pub mod action;
pub mod sample;

pub use action::{Action, IoLimits, Knob, Order, Resource, Setting, Target};
pub use sample::{Pod, PodFacts, PodUse, Preference, Sample, Scope, Stall, Stalls};
