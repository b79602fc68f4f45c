//! `edge-agent preflight`.

use crate::cli::Preflight;

/// 0 pass, 1 warnings, 2 blocked.
pub fn run(args: &Preflight) -> anyhow::Result<u8> {
    let _ = args;
    Ok(0)
}
