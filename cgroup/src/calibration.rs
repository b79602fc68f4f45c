//! What this machine's system and containerd really take, measured before pods, against the formula of [`crate::reservation`].
//!
//! The rule: the larger of formula and measurement plus 15 %, the measurement rounded up to 16 MiB. The first start of a boot
//! measures and every later start of that boot uses its figures, so that restarting the agent never moves what pods may request;
//! a page more or less in the next boot stays within the same step of 16 MiB. And a machine that was busy with something
//! else at that moment keeps at least half of what the formula leaves for pods.

use std::fs;

use procfs::{FromRead, Meminfo};

use crate::{Controller, Hierarchy, Result};

const MIB: u64 = 1 << 20;

/// Measurements are rounded up to this, bytes.
const STEP: u64 = 16 * MIB;

/// A running shim, whose memory is charged to containerd's group, bytes.
const SHIM: u64 = 4 * MIB;

/// What parts of the machine used, bytes. `None` where it could not be measured: nothing runs yet, or no memory controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Measured {
    /// Not available to programs, less pods, containerd and the agent.
    pub system: Option<u64>,
    /// containerd without its shims: in use less inactive file pages.
    pub containerd: Option<u64>,
}

/// Formula, measurement and what was made of them, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Calibration {
    /// What was measured.
    pub measured: Measured,
    /// What the formula gives the operating system.
    pub system_formula: u64,
    /// What it gets.
    pub system: u64,
    /// What the formula gives containerd.
    pub containerd_formula: u64,
    /// What it gets.
    pub containerd: u64,
    /// The measurement asked for more than half of what the formula leaves for pods, and did not get it.
    pub capped: bool,
}

/// The larger of formula and measurement for both parts; together they grow by `room` bytes at most, containerd first.
pub(crate) fn calibrate(system_formula: u64, containerd_formula: u64, measured: Measured, room: u64) -> Calibration {
    let growth = |formula: u64, measured: Option<u64>| {
        let wanted = measured.map_or(0, |bytes| (bytes / 100).saturating_mul(115));
        if wanted <= formula { 0 } else { wanted.div_ceil(STEP).saturating_mul(STEP).saturating_sub(formula) }
    };
    let room = room / MIB * MIB;
    let (containerd_wants, system_wants) = (growth(containerd_formula, measured.containerd), growth(system_formula, measured.system));
    let containerd = containerd_wants.min(room);
    let system = system_wants.min(room - containerd);
    Calibration {
        measured,
        system_formula,
        system: system_formula + system,
        containerd_formula,
        containerd: containerd_formula + containerd,
        capped: containerd < containerd_wants || system < system_wants,
    }
}

/// Where the parts that are not the system have their memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Groups<'a> {
    /// All pods.
    pub kubepods: &'a str,
    /// containerd with its shims, where it is known.
    pub containerd: Option<&'a str>,
    /// The agent itself.
    pub agent: Option<&'a str>,
    /// Pods whose shims run.
    pub pods: u64,
}

/// Looks at the machine. Groups that do not exist use nothing.
pub fn measure(hierarchy: &Hierarchy, groups: &Groups<'_>) -> Result<Measured> {
    let path = hierarchy.proc_root().join("meminfo");
    let read = |source| crate::Error::Read { path: path.clone(), source };
    let text = fs::read(&path).map_err(read)?;
    let Ok(meminfo) = Meminfo::from_read(text.as_slice()) else { return Ok(Measured::default()) };
    let Some(available) = meminfo.mem_available else { return Ok(Measured::default()) };
    if !hierarchy.has(Controller::Memory) {
        // What pods and containerd use cannot be told apart from the rest.
        return Ok(Measured::default());
    }
    let using = |group: Option<&str>| group.map_or_else(Use::default, |group| Use::of(hierarchy, group).unwrap_or_default());
    let containerd = using(groups.containerd);
    let others = [using(Some(groups.kubepods)), containerd, using(groups.agent)];
    let used = meminfo.mem_total.saturating_sub(available);
    Ok(Measured {
        system: Some(others.iter().fold(used, |left, other| left.saturating_sub(other.firm))),
        containerd: (containerd.working_set > 0).then(|| containerd.working_set.saturating_sub(groups.pods * SHIM)),
    })
}

/// Memory of a group, bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// In use less inactive file pages.
    working_set: u64,
    /// What the kernel cannot take back without swapping, as `MemAvailable` sees it.
    firm: u64,
}

impl Use {
    fn of(hierarchy: &Hierarchy, group: &str) -> Result<Use> {
        let dir = hierarchy.dir(Controller::Memory, group)?;
        let v2 = hierarchy.is_v2(Controller::Memory);
        let (file, inactive, active, slab) = if v2 {
            ("memory.current", "inactive_file", "active_file", "slab_reclaimable")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file", "total_active_file", "total_slab_reclaimable")
        };
        let current = dir.read_u64(file)?;
        let stat = dir.read("memory.stat")?;
        let of = |key: &str| crate::dir::keyed(&stat, key).and_then(|found| found.ok()).unwrap_or(0);
        let working_set = current.saturating_sub(of(inactive));
        Ok(Use { working_set, firm: working_set.saturating_sub(of(active)).saturating_sub(of(slab)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_formula_and_measurement_counts() {
        let mib = |n: u64| n * MIB;
        for (name, measured, room, wanted) in [
            ("nothing measured", (None, None), 500, (92, 64, false)),
            ("less than the formula", (Some(70), Some(30)), 500, (92, 64, false)),
            // 100 * 1.15 = 115 -> 128; 60 * 1.15 = 69 -> 80.
            ("more than the formula", (Some(100), Some(60)), 500, (128, 80, false)),
            ("a little more is the same step", (Some(104), Some(61)), 500, (128, 80, false)),
            ("a busy machine", (Some(900), Some(60)), 200, (92 + 184, 80, true)),
            ("no room at all", (Some(900), Some(900)), 0, (92, 64, true)),
        ] {
            let measured = Measured { system: measured.0.map(mib), containerd: measured.1.map(mib) };
            let got = calibrate(mib(92), mib(64), measured, mib(room));
            assert_eq!((got.system / MIB, got.containerd / MIB, got.capped), wanted, "{name}");
        }
    }

    #[test]
    fn absurd_numbers_do_not_wrap() {
        let got = calibrate(MIB, MIB, Measured { system: Some(u64::MAX), containerd: Some(u64::MAX) }, 10 * MIB);
        assert_eq!((got.system, got.containerd, got.capped), (MIB, 11 * MIB, true));
    }
}
