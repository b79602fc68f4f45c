//! The governor: keeps pods from starving the node they run on (governor reference, section 3).
//!
//! Deciding is apart from doing. The [`Law`] turns one [`Sample`] after the other, and the [`Pod`]s where it asks for them, into [`Order`]s;
//! time comes with the sample, so that a recorded trace gives the same orders again. Sensor and actuator know the kernel and decide nothing.

pub mod action;
mod actuator;
mod book;
mod cpu;
mod features;
mod io;
mod knob;
pub mod law;
mod ledger;
mod memory;
mod pods;
mod pressing;
mod rate;
mod reclaim;
pub mod sample;
mod sensor;
pub mod signal;
mod source;
mod tasks;
mod track;
mod trigger;
mod victim;
mod window;

pub use action::{Action, IoLimits, Knob, Order, Resource, Setting, Target};
pub use actuator::{Actuator, ActuatorOptions, Done, Reasserted};
pub use book::Held;
pub use features::Features;
pub use law::{Law, Settings, Stance, State, Suppressed};
pub use ledger::{Hold, Recovered, Undone, recover};
pub use pods::PodReader;
pub use sample::{Pod, PodFacts, PodUse, Preference, Sample, Scope, Stall, Stalls};
pub use sensor::{Inputs, Scopes, Sensor, SensorOptions, boottime};
pub use signal::{Level, Reading, Signal, Signals};
pub use trigger::{Event, MOST_POD_TRIGGERS, Place, Triggers, Wake, Waker};

#[cfg(test)]
mod law_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod sim;
