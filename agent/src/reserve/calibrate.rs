//! The measurement of this boot: made by the first start, kept beside the control socket, used by every later start, so that what
//! pods may request does not move when the agent restarts.

use std::path::Path;

use cgroup::Measured;
use serde::{Deserialize, Serialize};

use crate::ledger::write_whole;

const FILE: &str = "calibration.json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    boot_id: String,
    measured: Measured,
}

/// The figures kept for the boot with this identity, else new ones, which are kept.
pub(crate) fn of_this_boot(run_dir: &Path, boot_id: &str, measure: impl FnOnce() -> Measured) -> Measured {
    let path = run_dir.join(FILE);
    let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    if let Some(kept) = kept.filter(|kept| !boot_id.is_empty() && kept.boot_id == boot_id) {
        return kept.measured;
    }
    let kept = Kept { boot_id: boot_id.to_owned(), measured: measure() };
    let bytes = serde_json::to_vec(&kept).unwrap_or_default();
    if let Err(error) = write_whole(&path, &bytes) {
        tracing::warn!(path = %path.display(), error = %format!("{error:#}"), "measurement not kept; the next start measures again");
    }
    kept.measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_of_a_boot_measures_for_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let of = |mib: u64| Measured { system: Some(mib << 20), containerd: None };
        assert_eq!(of_this_boot(&run, "boot-1", || of(100)), of(100));
        assert_eq!(of_this_boot(&run, "boot-1", || of(300)), of(100), "a restart");
        assert_eq!(of_this_boot(&run, "boot-2", || of(200)), of(200), "a reboot with a run directory that survives it");
        std::fs::write(run.join(FILE), "{").unwrap();
        assert_eq!(of_this_boot(&run, "boot-2", || of(300)), of(300), "a broken file");
        assert_eq!(of_this_boot(&run, "", || of(400)), of(400), "a machine without an identity of its boot");
    }
}
