//! Wanted limits of one group → the control files to write, and writing them.
//!
//! The list is pure; applying writes each file and reads it back, because some files accept a value and keep another.

use crate::io::{self, IoMax};
use crate::value::{Limit, shares_to_weight};
use crate::{Controller, Error, Hierarchy, Result};

/// A CPU bandwidth limit: so many microseconds of CPU time per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// CPU time per period in microseconds, `None` for no limit.
    pub quota_us: Option<u64>,
    /// Length of the period in microseconds.
    pub period_us: u64,
}

/// What a group may use. `None` leaves a knob as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Hard limit in bytes (`memory.max`, `memory.limit_in_bytes`).
    pub memory_max: Option<Limit>,
    /// Brake in bytes (`memory.high`); v1 has none.
    pub memory_high: Option<Limit>,
    /// Protection in bytes (`memory.min`); v1 has none.
    pub memory_min: Option<u64>,
    /// Weaker protection in bytes (`memory.low`); v1 has none.
    pub memory_low: Option<u64>,
    /// Swap in bytes (`memory.swap.max`), skipped where the kernel has no swap accounting; not on v1.
    pub swap_max: Option<Limit>,
    /// CPU shares as v1 counts them; converted to a weight on v2 unless `cpu_weight` is given.
    pub cpu_shares: Option<u64>,
    /// CPU weight on v2, 1 to 10000.
    pub cpu_weight: Option<u64>,
    /// CPU bandwidth.
    pub cpu_quota: Option<CpuQuota>,
    /// Number of tasks.
    pub pids_max: Option<Limit>,
    /// Throughput by disk (`io.max`); not on v1.
    pub io_max: Vec<IoMax>,
}

impl Limits {
    /// Leaves alone what is written to this v2 file.
    pub(crate) fn leave(&mut self, file: &str) {
        match file {
            "memory.high" => self.memory_high = None,
            "memory.swap.max" => self.swap_max = None,
            "cpu.max" => self.cpu_quota = None,
            "cpu.weight" => (self.cpu_weight, self.cpu_shares) = (None, None),
            "io.max" => self.io_max.clear(),
            _ => {}
        }
    }
}

/// One control file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) controller: Controller,
    pub(crate) file: &'static str,
    pub(crate) value: String,
    /// The file exists only with some kernel options; without it the write is skipped.
    pub(crate) optional: bool,
}

impl Write {
    /// Whether the text of the file says what was written to it.
    pub(crate) fn holds(&self, found: &str) -> bool {
        if self.file == "io.max" { io::same(&self.value, found) } else { same(&self.value, found) }
    }
}

/// The files to write for `limits`, in order. `is_v2` says for a controller whether its files have their v2 names.
pub(crate) fn writes(limits: &Limits, is_v2: impl Fn(Controller) -> bool) -> Vec<Write> {
    let mut list = Vec::new();
    let mut push = |controller, file, value: String, optional| {
        list.push(Write { controller, file, value, optional });
    };

    let v2 = is_v2(Controller::Memory);
    if let (Some(min), true) = (limits.memory_min, v2) {
        push(Controller::Memory, "memory.min", min.to_string(), false);
    }
    if let (Some(low), true) = (limits.memory_low, v2) {
        push(Controller::Memory, "memory.low", low.to_string(), false);
    }
    if let (Some(high), true) = (limits.memory_high, v2) {
        push(Controller::Memory, "memory.high", high.to_string(), false);
    }
    if let Some(max) = limits.memory_max {
        if v2 {
            push(Controller::Memory, "memory.max", max.to_string(), false);
        } else {
            push(Controller::Memory, "memory.limit_in_bytes", v1_limit(max), false);
        }
    }
    if let (Some(swap), true) = (limits.swap_max, v2) {
        push(Controller::Memory, "memory.swap.max", swap.to_string(), true);
    }

    let v2 = is_v2(Controller::Cpu);
    match (v2, limits.cpu_shares, limits.cpu_weight) {
        (true, _, Some(weight)) => push(Controller::Cpu, "cpu.weight", weight.to_string(), false),
        (true, Some(shares), None) => {
            push(Controller::Cpu, "cpu.weight", shares_to_weight(shares).to_string(), false);
        }
        (false, Some(shares), _) => {
            push(Controller::Cpu, "cpu.shares", shares.to_string(), false);
        }
        (true, None, None) | (false, None, _) => {}
    }
    if let Some(CpuQuota { quota_us, period_us }) = limits.cpu_quota {
        if v2 {
            let value = format!("{} {period_us}", Limit::from(quota_us));
            push(Controller::Cpu, "cpu.max", value, false);
        } else {
            push(Controller::Cpu, "cpu.cfs_period_us", period_us.to_string(), false);
            push(Controller::Cpu, "cpu.cfs_quota_us", v1_limit(quota_us.into()), false);
        }
    }

    if let Some(max) = limits.pids_max {
        push(Controller::Pids, "pids.max", max.to_string(), false);
    }
    if is_v2(Controller::Io) {
        for device in &limits.io_max {
            // A kernel may have the controller and no throttling.
            push(Controller::Io, "io.max", device.line(), true);
        }
    }
    list
}

fn v1_limit(limit: Limit) -> String {
    match limit {
        Limit::None => "-1".to_owned(),
        Limit::At(value) => value.to_string(),
    }
}

/// Writes `limits` to `group` and reads every file back. Returns the controllers that are not available, whose limits
/// therefore do not hold; the caller decides whether that is an error.
pub(crate) fn apply(hierarchy: &Hierarchy, group: &str, limits: &Limits) -> Result<Vec<Controller>> {
    let mut unavailable = Vec::new();
    for write in writes(limits, |controller| hierarchy.is_v2(controller)) {
        if !hierarchy.has(write.controller) {
            if !unavailable.contains(&write.controller) {
                unavailable.push(write.controller);
            }
            continue;
        }
        let dir = hierarchy.dir(write.controller, group)?;
        if write.optional && !dir.has(write.file) {
            continue;
        }
        dir.write(write.file, &write.value)?;
        let found = dir.read(write.file)?;
        if !write.holds(&found) {
            return Err(Error::NotApplied { path: dir.path().join(write.file), wanted: write.value, found });
        }
    }
    Ok(unavailable)
}

/// Whether the value read back is the one written. The kernel rounds memory down to whole pages, at most 64 KiB.
fn same(wanted: &str, found: &str) -> bool {
    const LARGEST_PAGE: u64 = 64 * 1024;
    if wanted == found {
        return true;
    }
    match (Limit::parse(wanted), Limit::parse(found)) {
        (Some(Limit::None), Some(Limit::None)) => true,
        (Some(Limit::At(wanted)), Some(Limit::At(found))) => found <= wanted && wanted - found < LARGEST_PAGE && found % 4096 == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::io::Rates;

    fn all() -> Limits {
        Limits {
            memory_max: Some(Limit::At(1 << 30)),
            memory_high: Some(Limit::At(1 << 29)),
            memory_min: Some(4096),
            swap_max: Some(Limit::At(0)),
            cpu_shares: Some(1024),
            cpu_weight: None,
            cpu_quota: Some(CpuQuota { quota_us: Some(50_000), period_us: 100_000 }),
            pids_max: Some(Limit::At(100)),
            memory_low: Some(8192),
            io_max: vec![IoMax::of_pods(Disk { major: 8, minor: 0, name: "sda".to_owned() }, &Rates::default())],
        }
    }

    fn names(limits: &Limits, v2: bool) -> Vec<String> {
        writes(limits, |_| v2).into_iter().map(|write| format!("{}={}", write.file, write.value)).collect()
    }

    #[test]
    fn v2_files() {
        assert_eq!(
            names(&all(), true),
            [
                "memory.min=4096",
                "memory.low=8192",
                "memory.high=536870912",
                "memory.max=1073741824",
                "memory.swap.max=0",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "pids.max=100",
                "io.max=8:0 rbps=20971520 wbps=5242880 riops=1000 wiops=200",
            ]
        );
    }

    #[test]
    fn v1_files_leave_out_what_v1_lacks() {
        assert_eq!(
            names(&all(), false),
            ["memory.limit_in_bytes=1073741824", "cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000", "pids.max=100",]
        );
    }

    #[test]
    fn unlimited_is_spelled_as_each_version_wants_it() {
        let none = Limits {
            memory_max: Some(Limit::None),
            cpu_quota: Some(CpuQuota { quota_us: None, period_us: 100_000 }),
            cpu_shares: Some(2048),
            cpu_weight: Some(100),
            pids_max: Some(Limit::None),
            ..Limits::default()
        };
        assert_eq!(names(&none, true), ["memory.max=max", "cpu.weight=100", "cpu.max=max 100000", "pids.max=max"]);
        assert_eq!(
            names(&none, false),
            ["memory.limit_in_bytes=-1", "cpu.shares=2048", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=-1", "pids.max=max",]
        );
        assert_eq!(names(&Limits::default(), true), Vec::<String>::new());
    }

    #[test]
    fn reading_back_allows_page_rounding_and_nothing_else() {
        for (wanted, found, ok) in [
            ("100", "100", true),
            ("1073741900", "1073741824", true),
            ("-1", "9223372036854771712", true),
            ("max 100000", "max 100000", true),
            ("1073741824", "1073745920", false),
            ("1073741824", "1073700000", false),
            ("100", "max", false),
            ("100", "99", false),
        ] {
            assert_eq!(same(wanted, found), ok, "{wanted} -> {found}");
        }
    }
}
