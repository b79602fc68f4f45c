//! Telling systemd what we write, with the systemd driver.
//!
//! systemd writes the properties of a slice into its control files whenever it starts something inside or reloads, and
//! so undoes values it was not told (governor reference, section 2.2). `systemctl set-property --runtime` is one process, needs no
//! D-Bus library in the agent, works on a slice that is not loaded yet, and leaves a drop-in below `/run` that survives the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::limits::Limits;
use crate::value::{Limit, shares_to_weight};
use crate::{Error, Result};

/// Where `set-property --runtime` keeps its drop-ins.
const CONTROL: &str = "/run/systemd/system.control";

/// How to reach the systemd of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) systemctl: PathBuf,
    pub(crate) control: PathBuf,
}

impl Manager {
    /// `None` where systemd is not running, as in a container.
    pub(crate) fn detect() -> Option<Manager> {
        Path::new("/run/systemd/system").is_dir().then(|| Manager { systemctl: "systemctl".into(), control: CONTROL.into() })
    }

    /// Sets the properties for `limits` on the slice or service whose group is `group`.
    pub(crate) fn set(&self, group: &str, limits: &Limits, v2: bool) -> Result<()> {
        let properties = properties(limits, v2);
        if properties.is_empty() {
            return Ok(());
        }
        let slice = slice_of(group);
        let run = |message: String| Error::Systemctl { slice: slice.to_owned(), message };
        let output = Command::new(&self.systemctl)
            .args(["--no-ask-password", "set-property", "--runtime", "--", slice])
            .args(&properties)
            .output()
            .map_err(|error| run(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(run(said.lines().next().unwrap_or("it failed without a word").to_owned()))
    }

    /// Forgets a slice whose group is gone. A drop-in that stays costs a few bytes of memory, so failing only logs.
    pub(crate) fn forget(&self, group: &str) {
        let slice = slice_of(group);
        let stopped = Command::new(&self.systemctl).args(["--no-ask-password", "--no-block", "stop", "--", slice]).output();
        if let Err(error) = stopped {
            tracing::debug!(slice, %error, "slice not stopped");
        }
        match fs::remove_dir_all(self.control.join(format!("{slice}.d"))) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(slice, %error, "drop-in of a slice not removed"),
        }
    }
}

fn slice_of(group: &str) -> &str {
    group.rsplit('/').next().unwrap_or(group)
}

/// The properties for `limits`, as `systemctl` takes them.
fn properties(limits: &Limits, v2: bool) -> Vec<String> {
    let limit = |limit: Limit| match limit {
        Limit::None => "infinity".to_owned(),
        Limit::At(value) => value.to_string(),
    };
    let mut list = Vec::new();
    if let Some(max) = limits.memory_max {
        list.push(format!("MemoryMax={}", limit(max)));
    }
    if v2 {
        if let Some(high) = limits.memory_high {
            list.push(format!("MemoryHigh={}", limit(high)));
        }
        if let Some(min) = limits.memory_min {
            list.push(format!("MemoryMin={min}"));
        }
        if let Some(low) = limits.memory_low {
            list.push(format!("MemoryLow={low}"));
        }
        if let Some(swap) = limits.swap_max {
            list.push(format!("MemorySwapMax={}", limit(swap)));
        }
    }
    match (v2, limits.cpu_shares, limits.cpu_weight) {
        (true, _, Some(weight)) => list.push(format!("CPUWeight={weight}")),
        (true, Some(shares), None) => list.push(format!("CPUWeight={}", shares_to_weight(shares))),
        (false, Some(shares), _) => list.push(format!("CPUShares={shares}")),
        (true, None, None) | (false, None, _) => {}
    }
    if let Some(quota) = limits.cpu_quota {
        // Hundredths of a percent, rounded up: systemd knows no finer quota, and never less than was asked for.
        list.push(match quota.quota_us {
            None => "CPUQuota=".to_owned(),
            Some(us) => {
                let hundredths = (us * 10_000).div_ceil(quota.period_us.max(1));
                format!("CPUQuota={}.{:02}%", hundredths / 100, hundredths % 100)
            }
        });
    }
    if let Some(max) = limits.pids_max {
        list.push(format!("TasksMax={}", limit(max)));
    }
    if v2 {
        for device in &limits.io_max {
            for (name, value) in [
                ("IOReadBandwidthMax", device.read_bps),
                ("IOWriteBandwidthMax", device.write_bps),
                ("IOReadIOPSMax", device.read_iops),
                ("IOWriteIOPSMax", device.write_iops),
            ] {
                let value = value.map_or_else(|| "infinity".to_owned(), |value| value.to_string());
                list.push(format!("{name}=/dev/{} {value}", device.disk.name));
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::io::{IoMax, Rates};
    use crate::limits::CpuQuota;

    fn pod() -> Limits {
        Limits {
            memory_max: Some(Limit::At(64 << 20)),
            memory_high: Some(Limit::None),
            swap_max: Some(Limit::At(0)),
            cpu_shares: Some(1024),
            cpu_quota: Some(CpuQuota { quota_us: Some(12_345), period_us: 100_000 }),
            pids_max: Some(Limit::None),
            ..Limits::default()
        }
    }

    #[test]
    fn properties_of_both_versions() {
        assert_eq!(
            properties(&pod(), true),
            ["MemoryMax=67108864", "MemoryHigh=infinity", "MemorySwapMax=0", "CPUWeight=39", "CPUQuota=12.35%", "TasksMax=infinity"]
        );
        assert_eq!(properties(&pod(), false), ["MemoryMax=67108864", "CPUShares=1024", "CPUQuota=12.35%", "TasksMax=infinity"]);
        let disk = Disk { major: 179, minor: 0, name: "mmcblk0".to_owned() };
        let io = Limits { memory_low: Some(1), io_max: vec![IoMax::of_pods(disk, &Rates::default()).of_pulls(true)], ..Limits::default() };
        assert_eq!(
            properties(&io, true),
            [
                "MemoryLow=1",
                "IOReadBandwidthMax=/dev/mmcblk0 infinity",
                "IOWriteBandwidthMax=/dev/mmcblk0 5242880",
                "IOReadIOPSMax=/dev/mmcblk0 infinity",
                "IOWriteIOPSMax=/dev/mmcblk0 infinity",
            ]
        );
        assert_eq!(properties(&io, false), Vec::<String>::new());
        let unlimited = Limits { cpu_quota: Some(CpuQuota { quota_us: None, period_us: 100_000 }), ..Limits::default() };
        assert_eq!(properties(&unlimited, true), ["CPUQuota="]);
    }

    #[test]
    fn systemctl_is_called_once_with_the_slice_and_refusals_are_told() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let systemctl = dir.path().join("systemctl");
        let script = |text: &str| {
            fs::write(&systemctl, text).unwrap();
            fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let manager = Manager { systemctl: systemctl.clone(), control: dir.path().join("control") };
        let group = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_1.slice";

        script(&format!("#!/bin/sh\necho \"$@\" >> {}/calls\n", dir.path().display()));
        let limits = Limits { pids_max: Some(Limit::At(64)), ..Limits::default() };
        manager.set(group, &limits, true).unwrap();
        manager.set(group, &Limits::default(), true).unwrap();
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        assert_eq!(calls, "--no-ask-password set-property --runtime -- kubepods-burstable-poda_1.slice TasksMax=64\n");

        fs::create_dir_all(manager.control.join("kubepods-burstable-poda_1.slice.d")).unwrap();
        manager.forget(group);
        assert_eq!(fs::read_dir(&manager.control).unwrap().count(), 0);

        script("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n");
        let error = manager.set(group, &limits, true).unwrap_err().to_string();
        assert!(error.contains("poda_1.slice") && error.contains("connect to bus"), "{error}");
    }
}
