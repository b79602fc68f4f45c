//! Our agent as a worker of real, unmodified K3s servers. The one command:
//!
//! ```text
//! K3S_BIN=/usr/local/bin/k3s EDGE_IMAGES=target/images cargo test -p edge-agent-tests --test k3s -- --nocapture --test-threads=1
//! ```
//!
//! Needs what the other whole-system tests need (root, containerd, kubectl, `images/build target/images`) and a `k3s` binary.
//! Without one each test says `SKIPPED real K3s …`. `EDGE_BIN_DIR` names another directory of `edge-agent`, `KUBECTL_OLD` and
//! `KUBECTL_NEW` released kubectl binaries, `EDGE_TEST_KEEP=1` leaves everything standing. Servers run in network namespaces
//! on a bridge of the test; all data is below /var/lib/edge-agent-tests (or `EDGE_TEST_DIR`) and removed at the end.

mod frozen;
mod high_availability;
mod lab;
mod metrics_server;
mod recordings;
mod renewal;
#[allow(dead_code, reason = "shared with the other whole-system tests, which use all of it")]
#[path = "../it/system/mod.rs"]
mod system;
mod tokens;
mod worker;
