//! Power, heat and memory of the graphics unit.

use super::{Depth, Root, program};
use crate::preflight::command::ask;

/// The board itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Memory of the graphics unit, up to the Raspberry Pi 3.
    pub gpu_mib: Option<u64>,
    /// Memory kept for devices that need it in one piece.
    pub cma_mib: Option<u64>,
    /// No screen is attached.
    pub headless: bool,
    /// The voltage is too low now.
    pub undervoltage: Option<bool>,
    /// Bits of `vcgencmd get_throttled`.
    pub throttled: Option<u32>,
    /// The hottest zone, degrees.
    pub celsius: Option<i64>,
}

pub(super) fn gather(root: &Root, depth: Depth) -> Hardware {
    let may_ask = depth != Depth::Cheap && program("vcgencmd");
    let answer = |what: &[&str]| if may_ask { ask(&[&["vcgencmd"], what].concat()).ok() } else { None };
    let screens = root.names("/sys/class/drm");
    let hwmon = root.names("/sys/class/hwmon");
    let voltage =
        hwmon.iter().find(|name| root.read(&format!("/sys/class/hwmon/{name}/name")).is_some_and(|name| name.trim() == "rpi_volt"));
    let zones = root.names("/sys/class/thermal").into_iter().filter(|name| name.starts_with("thermal_zone"));
    Hardware {
        gpu_mib: answer(&["get_mem", "gpu"]).as_deref().and_then(gpu_mib),
        cma_mib: root.meminfo_kib("CmaTotal").map(|kib| kib / 1024),
        headless: !screens
            .iter()
            .any(|name| root.read(&format!("/sys/class/drm/{name}/status")).is_some_and(|text| text.trim() == "connected")),
        undervoltage: voltage.and_then(|name| root.number(&format!("/sys/class/hwmon/{name}/in0_lcrit_alarm"))).map(|alarm: u8| alarm != 0),
        throttled: answer(&["get_throttled"]).as_deref().and_then(throttled),
        celsius: zones.filter_map(|zone| root.number::<i64>(&format!("/sys/class/thermal/{zone}/temp"))).max().map(|milli| milli / 1000),
    }
}

fn gpu_mib(text: &str) -> Option<u64> {
    text.trim().strip_prefix("gpu=")?.strip_suffix('M')?.parse().ok()
}

fn throttled(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("throttled=0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_firmware_answers_is_read() {
        assert_eq!(gpu_mib("gpu=64M\n"), Some(64));
        assert_eq!(throttled("throttled=0x50005\n"), Some(0x50005));
        assert_eq!(throttled("error=1 error_msg=\"x\"\n"), None);
    }

    #[test]
    fn sensors_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
            ("sys/class/thermal/thermal_zone0/temp", "61234\n"),
            ("sys/class/thermal/cooling_device0/temp", "99999\n"),
            ("sys/class/drm/card1-HDMI-A-1/status", "connected\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nCmaTotal:         262144 kB\n"),
        ];
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let hardware = gather(&Root(dir.path().to_owned()), Depth::Cheap);
        let expected = Hardware { cma_mib: Some(256), undervoltage: Some(true), celsius: Some(61), ..Hardware::default() };
        assert_eq!(hardware, expected);
    }
}
