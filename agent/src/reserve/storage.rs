//! The disks that pods write to, and how fast they are.

use std::path::Path;

use cgroup::{IoMax, Rates, disk};
use serde::Deserialize;

/// The part of `data-dir/agent/storage-probe.json` that limits are made of; `preflight` and `join` write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Probe {
    read_bps: Option<u64>,
    write_bps: Option<u64>,
    read_iops: Option<u64>,
    write_iops: Option<u64>,
    /// `MAJ:MIN` of the whole disk.
    device: Option<String>,
}

/// What pods may have of every disk behind these directories, and a line about it for people; an empty list where no disk can be told.
pub(crate) fn of_pods(data_dir: &Path, stores: &[&Path]) -> (Vec<IoMax>, String) {
    let mut disks = Vec::new();
    for store in stores {
        match disk::behind(&disk::Roots::default(), store) {
            Ok(found) => disks.extend(found),
            Err(error) => return (Vec::new(), error.to_string()),
        }
    }
    disks.sort();
    disks.dedup();
    let file = data_dir.join("agent/storage-probe.json");
    let probe = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Probe>(&bytes).ok()).unwrap_or_default();
    limits(disks, &probe)
}

fn limits(disks: Vec<disk::Disk>, probe: &Probe) -> (Vec<IoMax>, String) {
    let mut said = Vec::new();
    let limited = disks.into_iter().map(|disk| {
        let probed = probe.device.as_deref() == Some(&format!("{}:{}", disk.major, disk.minor));
        said.push(format!("{} {}", disk.name, if probed { "as probed" } else { "not probed, defaults of an SD card" }));
        let rates =
            Rates { read_bps: probe.read_bps, write_bps: probe.write_bps, read_iops: probe.read_iops, write_iops: probe.write_iops };
        IoMax::of_pods(disk, &if probed { rates } else { Rates::default() })
    });
    let limited = limited.collect();
    (limited, said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_counts_for_the_disk_it_was_made_on() {
        let disks = || vec![disk::Disk { major: 179, minor: 0, name: "mmcblk0".to_owned() }];
        let text = r#"{"read_bps": 41943040, "write_bps": 20971520, "write_iops": 480, "read_iops": null, "device": "179:0", "at": "2026-11-23T14:00:00Z"}"#;
        let mut probe: Probe = serde_json::from_str(text).unwrap();
        let (limits_of, said) = limits(disks(), &probe);
        assert_eq!(said, "mmcblk0 as probed");
        assert_eq!((limits_of[0].write_bps, limits_of[0].write_iops, limits_of[0].read_iops), (Some(10 << 20), Some(192), Some(1000)));
        probe.device = Some("8:0".to_owned());
        let (limits_of, said) = limits(disks(), &probe);
        assert_eq!(said, "mmcblk0 not probed, defaults of an SD card");
        assert_eq!(limits_of[0].write_bps, Some(5 << 20));
    }
}
