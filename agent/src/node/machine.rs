//! Facts about the machine that do not change while the agent runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// What `nodeInfo`, capacity and the reservation are made of. Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub memory: u64,
    pub swap: u64,
    /// Some of it is on a disk, not in compressed memory.
    pub disk_swap: bool,
    pub cpus: u64,
    pub threads_max: u64,
    /// Page size name (`2Mi`) to reserved bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Go's name: `amd64`, `arm64`, `arm`.
    pub architecture: &'static str,
    pub kernel_version: String,
    pub os_image: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
}

/// Go's name of the architecture this binary is for.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "arm") {
    "arm"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else {
    "unknown"
};

impl Machine {
    /// Looks at this machine.
    pub fn look() -> anyhow::Result<Machine> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        let memory = meminfo_bytes(&meminfo, "MemTotal").context("/proc/meminfo has no MemTotal")?;
        let machine_id = first_line(&["/etc/machine-id", "/var/lib/dbus/machine-id"]);
        let system_uuid = first_line(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/system-id", "/proc/device-tree/vm,uuid"]);
        Ok(Machine {
            memory,
            swap: meminfo_bytes(&meminfo, "SwapTotal").unwrap_or(0),
            disk_swap: disk_swap(&fs::read_to_string("/proc/swaps").unwrap_or_default()),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64).max(online_cpus()),
            threads_max: first_line(&["/proc/sys/kernel/threads-max"]).parse().unwrap_or(32768),
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            architecture: ARCHITECTURE,
            kernel_version: first_line(&["/proc/sys/kernel/osrelease"]),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
            machine_id,
            boot_id: first_line(&["/proc/sys/kernel/random/boot_id"]),
        })
    }
}

/// Size and free bytes of the file system that holds `path` or its nearest existing ancestor.
pub fn filesystem(path: &Path) -> Option<(u64, u64)> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    // Field widths differ between 32 and 64 bit targets.
    #[allow(clippy::useless_conversion)]
    let (unit, all, free) = (u64::from(stat.fragment_size()), u64::from(stat.blocks()), u64::from(stat.blocks_available()));
    Some((all * unit, free * unit))
}

/// The machine's name, lower case as kubelets use it.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default().trim().to_owned()
}

/// `MemAvailable` in bytes.
pub fn available_memory() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// Whether the list of swaps, a headline and a line each, has one that is not compressed memory.
fn disk_swap(swaps: &str) -> bool {
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(|name| !name.starts_with("/dev/zram"))
}

fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn first_line(paths: &[&str]) -> String {
    paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim_matches(['\n', '\0', ' ']).to_owned())
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

fn online_cpus() -> u64 {
    let text = first_line(&["/sys/devices/system/cpu/online"]);
    text.split(',')
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(to.trim().parse::<u64>().ok()? - from.trim().parse::<u64>().ok()? + 1)
        })
        .sum()
}

fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn hugepages(root: &Path) -> BTreeMap<String, u64> {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(kib) = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()) else { continue };
        let count: u64 = fs::read_to_string(entry.path().join("nr_hugepages")).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        let size = if kib % (1 << 20) == 0 {
            format!("{}Gi", kib >> 20)
        } else if kib % (1 << 10) == 0 {
            format!("{}Mi", kib >> 10)
        } else {
            format!("{kib}Ki")
        };
        pages.insert(size, count * kib * 1024);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(meminfo_bytes("MemTotal:        24681352 kB\nMemFree: 1 kB\n", "MemTotal"), Some(24_681_352 * 1024));
        assert_eq!(meminfo_bytes("MemTotalX: 1 kB\n", "MemTotal"), None);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"), "Debian GNU/Linux 12 (bookworm)");
        let headline = "Filename\tType\tSize\tUsed\tPriority\n";
        for (swaps, wanted) in
            [("", false), ("/dev/zram0 partition 1 0 100\n", false), ("/dev/zram0 partition 1 0 100\n/var/swap file 1 0 -2\n", true)]
        {
            assert_eq!(disk_swap(&format!("{headline}{swaps}")), wanted, "{swaps:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n"), ("hugepages-64kB", "0\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        let pages = hugepages(dir.path());
        assert_eq!(pages["2Mi"], 3 << 21);
        assert_eq!(pages.keys().cloned().collect::<Vec<_>>(), ["1Gi", "2Mi", "64Ki"]);
        let machine = Machine::look().unwrap();
        assert!(machine.memory > 0 && machine.cpus > 0);
    }
}
