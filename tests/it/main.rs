//! The scenarios. Those on whole clusters need root, containerd, images and kubectl, and say `SKIP` where these are missing;
//! see [`system`]. One binary, one link step.

mod bad_input;
mod dashboard;
mod dependencies;
mod kill;
mod kubectl;
mod kubelet;
mod node_loss;
mod offline;
mod packages;
mod prometheus;
mod registry;
mod reservation;
mod short_lived;
mod system;
mod units;
