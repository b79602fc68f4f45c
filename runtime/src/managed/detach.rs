//! The crate's only unsafe code: a child in a session of its own.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command's process the leader of a new session and process group, so that neither a terminal's signals nor
/// the end of the agent's own group reach it.
#[allow(unsafe_code)]
pub(super) fn own_session(command: &mut Command) {
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe functions are
    // allowed; setsid(2) is one, and the closure neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
}
