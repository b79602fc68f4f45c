//! Sizes of the release binaries, in MB of 10^6 bytes.

use crate::Choice;
use crate::report::line;
use crate::system::Machine;

pub(crate) fn run(machine: &Machine, _: &Choice) {
    for (name, limit) in [("edge-agent", Some(6.0)), ("edge-server", None)] {
        let bytes = std::fs::metadata(machine.bin.join(name)).expect("binary is there").len();
        line(&format!("size of {name}"), bytes as f64 / 1e6, "MB", limit);
    }
}
