//! Throughput of block devices: what pods may have of a disk, and the lines of `io.max`.
//!
//! `io.max` is the only knob that works on a Raspberry Pi's kernel (governor reference, sections 1.3 and 1.4). It is a line per device, wants the
//! whole disk rather than a partition, and leaves out the devices without a limit.

use crate::disk::Disk;

const MIB: u64 = 1 << 20;

/// What a probe of the storage found, bytes and operations per second. `None` for what it could not measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes read.
    pub read_bps: Option<u64>,
    /// Bytes written.
    pub write_bps: Option<u64>,
    /// Reads.
    pub read_iops: Option<u64>,
    /// Writes.
    pub write_iops: Option<u64>,
}

/// `percent` of what was measured, but not less than `least`: databases that wait ten seconds for a sync are as good as dead. What
/// nobody measured gets `unprobed`, half of what the slowest class of SD card that is sold for programs (A1) promises.
fn share(measured: Option<u64>, percent: u64, least: u64, unprobed: u64) -> Option<u64> {
    Some(measured.map_or(unprobed, |rate| (rate.saturating_mul(percent) / 100).max(least)))
}

/// A disk's limits in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoMax {
    /// The whole disk.
    pub disk: Disk,
    /// The limits; `None` for none of that direction.
    pub read_bps: Option<u64>,
    /// As above.
    pub write_bps: Option<u64>,
    /// As above.
    pub read_iops: Option<u64>,
    /// As above.
    pub write_iops: Option<u64>,
}

impl IoMax {
    /// What all pods together may have of `disk`: 70 % and 60 % of the reads, 50 % and 40 % of the writes (governor reference, 2.3).
    pub fn of_pods(disk: Disk, probed: &Rates) -> IoMax {
        IoMax {
            disk,
            read_bps: share(probed.read_bps, 70, 2 * MIB, 20 * MIB),
            write_bps: share(probed.write_bps, 50, MIB, 5 * MIB),
            read_iops: share(probed.read_iops, 60, 100, 1000),
            write_iops: share(probed.write_iops, 40, 50, 200),
        }
    }

    /// Only its bytes written, or nothing at all: containerd while it pulls an image, and when it does not.
    pub fn of_pulls(&self, limited: bool) -> IoMax {
        let write_bps = self.write_bps.filter(|_| limited);
        IoMax { disk: self.disk.clone(), read_bps: None, write_bps, read_iops: None, write_iops: None }
    }

    /// The line to write, all four values named so that none is left from before.
    pub(crate) fn line(&self) -> String {
        let number = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
        format!(
            "{}:{} rbps={} wbps={} riops={} wiops={}",
            self.disk.major,
            self.disk.minor,
            number(self.read_bps),
            number(self.write_bps),
            number(self.read_iops),
            number(self.write_iops)
        )
    }
}

/// Whether the lines of an `io.max` file say of the device in `wanted` what `wanted` says. A missing line means no limit.
pub(crate) fn same(wanted: &str, file: &str) -> bool {
    let Some((device, values)) = wanted.split_once(' ') else { return false };
    let found = file.lines().find_map(|line| line.split_once(' ').filter(|(at, _)| *at == device)).map_or("", |(_, values)| values);
    let of = |text: &'_ str, key: &str| -> Option<u64> {
        text.split_whitespace().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')).and_then(|value| value.parse().ok())
    };
    ["rbps", "wbps", "riops", "wiops"].into_iter().all(|key| of(values, key) == of(found, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Disk {
        Disk { major: 179, minor: 0, name: "mmcblk0".to_owned() }
    }

    #[test]
    fn pods_get_a_share_of_what_was_probed() {
        let rates = |read, write, reads, writes| Rates {
            read_bps: Some(read),
            write_bps: Some(write),
            read_iops: Some(reads),
            write_iops: Some(writes),
        };
        for (probed, wanted) in [
            (Rates::default(), "179:0 rbps=20971520 wbps=5242880 riops=1000 wiops=200"),
            (rates(40_000_000, 20_000_000, 1876, 866), "179:0 rbps=28000000 wbps=10000000 riops=1125 wiops=346"),
            (Rates { read_bps: None, ..rates(0, 20_000_000, 0, 866) }, "179:0 rbps=20971520 wbps=10000000 riops=100 wiops=346"),
            // A probe of a dying card.
            (rates(0, 1, 2, 3), "179:0 rbps=2097152 wbps=1048576 riops=100 wiops=50"),
        ] {
            assert_eq!(IoMax::of_pods(card(), &probed).line(), wanted);
        }
        let pods = IoMax::of_pods(card(), &Rates::default());
        assert_eq!(pods.of_pulls(true).line(), "179:0 rbps=max wbps=5242880 riops=max wiops=max");
        assert_eq!(pods.of_pulls(false).line(), "179:0 rbps=max wbps=max riops=max wiops=max");
    }

    #[test]
    fn the_file_is_compared_by_device() {
        let file = "8:0 rbps=1 wbps=2 riops=3 wiops=4\n179:0 rbps=max wbps=5242880 riops=max wiops=max";
        for (wanted, holds) in [
            ("179:0 rbps=max wbps=5242880 riops=max wiops=max", true),
            ("179:0 rbps=max wbps=max riops=max wiops=max", false),
            ("8:0 rbps=1 wbps=2 riops=3 wiops=4", true),
            ("8:0 rbps=1 wbps=2 riops=3 wiops=5", false),
            ("8:16 rbps=1 wbps=max riops=max wiops=max", false),
            ("8:16 rbps=max wbps=max riops=max wiops=max", true),
        ] {
            assert_eq!(same(wanted, file), holds, "{wanted}");
        }
    }
}
