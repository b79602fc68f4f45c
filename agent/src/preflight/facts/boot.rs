//! How this machine booted and what the next boot will be told.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::Root;
use crate::config::Config;
use crate::preflight::boot_line::{Firmware, Unwanted, is_unwanted, words};
use crate::reboot::{self, Outcome};

/// The boot as far as checks need it.
#[derive(Debug, Clone, Default)]
pub struct Boot {
    /// The device tree calls the machine a Raspberry Pi.
    pub raspberry_pi: bool,
    pub firmware: Option<Firmware>,
    /// What this boot was told, only to explain why an effect is missing.
    pub told: Told,
    /// `6.12.34+rpt-rpi-v8`.
    pub release: String,
    /// Year and month in which the kernel was built.
    pub built: Option<(u32, u32)>,
    /// The kernel said that it does not know `cgroup_enable`.
    pub unknown_flag: bool,
    /// Pressure is compiled in, where a configuration of the kernel can be read.
    pub psi_compiled: Option<bool>,
    /// The root file system is an overlay: changes are gone after a boot.
    pub overlay_root: bool,
    /// What an earlier repair waits for.
    pub reboot: Option<Outcome>,
    /// `aarch64`.
    pub machine: String,
    pub page_size: u64,
}

/// Words on the kernel command line of this boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// The last word about it switches the memory controller on.
    pub memory: bool,
    pub psi: bool,
    pub legacy_hierarchy: bool,
    /// `cgroup_memory=1`.
    pub stale: bool,
}

pub(super) fn gather(root: &Root, config: &Config) -> Boot {
    let line = root.read("/proc/cmdline").unwrap_or_default();
    let name = nix::sys::utsname::uname().ok();
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    let release = name.as_ref().map(|name| text(name.release())).unwrap_or_default();
    let told = told(&line);
    Boot {
        raspberry_pi: root.read("/proc/device-tree/model").is_some_and(|model| model.contains("Raspberry Pi")),
        // A clock that was set after the line was written makes it look older than the boot.
        firmware: Firmware::find(&root.0)
            .map(|firmware| Firmware { before_boot: firmware.before_boot && !reboot::is_of_this_boot(&config.data_dir), ..firmware }),
        built: root.read("/proc/version").as_deref().and_then(built),
        unknown_flag: told.memory && unknown_flag(root),
        psi_compiled: root.read(&format!("/boot/config-{release}")).map(|text| text.lines().any(|line| line == "CONFIG_PSI=y")),
        overlay_root: root.mount("/").is_some_and(|(kind, _)| kind == "overlay"),
        reboot: reboot::look(&config.data_dir),
        machine: name.as_ref().map(|name| text(name.machine())).unwrap_or_default(),
        page_size: nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| n.try_into().ok()).unwrap_or(0),
        told,
        release,
    }
}

fn told(line: &str) -> Told {
    let mut told = Told::default();
    // Later words win.
    for word in words(line) {
        match word {
            "cgroup_enable=memory" => told.memory = true,
            word if word.starts_with("psi=") => told.psi = word == "psi=1",
            "cgroup_memory=1" => told.stale = true,
            word if is_unwanted(word, Unwanted::MemoryOff) => told.memory = false,
            word if is_unwanted(word, Unwanted::LegacyHierarchy) => told.legacy_hierarchy = true,
            _ => {}
        }
    }
    told
}

/// The month in `/proc/version`: `... (2024-11-05)` in Debian's, `... Tue Nov  5 10:00:00 UTC 2024` in others.
fn built(version: &str) -> Option<(u32, u32)> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let tail = version.rsplit_once('#').map_or(version, |(_, tail)| tail).trim();
    let date = tail.rsplit_once('(').and_then(|(_, date)| date.strip_suffix(')'));
    if let Some((year, rest)) = date.and_then(|date| date.split_once('-')) {
        return Some((year.parse().ok()?, rest.split('-').next()?.parse().ok()?));
    }
    let month = tail.split_whitespace().find_map(|word| MONTHS.iter().position(|month| *month == word))?;
    Some((tail.rsplit(' ').next()?.parse().ok()?, u32::try_from(month).ok()? + 1))
}

/// Looks through the messages of the kernel, at most 4096 of them, for the one about unknown words.
fn unknown_flag(root: &Root) -> bool {
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(root.at("/dev/kmsg"));
    let Ok(mut messages) = open else { return false };
    let mut buffer = [0; 8192];
    for _ in 0..4096 {
        match messages.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) if is_about_the_flag(&String::from_utf8_lossy(&buffer[..length])) => return true,
            // A message that was overwritten meanwhile.
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return false,
        }
    }
    false
}

fn is_about_the_flag(message: &str) -> bool {
    message.contains("Unknown kernel command line parameters") && message.contains("cgroup_enable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_about_memory_counts() {
        let cases = [
            ("root=/dev/a quiet", Told::default()),
            ("cgroup_disable=memory root=/dev/a cgroup_enable=memory psi=1", Told { memory: true, psi: true, ..Told::default() }),
            ("cgroup_enable=memory cgroup_disable=memory psi=1 psi=0", Told::default()),
            ("systemd.unified_cgroup_hierarchy=0 cgroup_memory=1", Told { legacy_hierarchy: true, stale: true, ..Told::default() }),
        ];
        for (line, expected) in cases {
            assert_eq!(told(line), expected, "{line}");
        }
    }

    #[test]
    fn the_month_of_the_build_is_read_in_both_forms() {
        let debian =
            "Linux version 6.12.1+rpt-rpi-v8 (serge@raspberrypi.com) (gcc-12) #1 SMP PREEMPT Debian 1:6.12.1-1+rpt1 (2024-12-05)\n";
        let plain = "Linux version 6.6.51 (dom@buildbot) (gcc 12) #1796 SMP PREEMPT Mon Oct  7 12:00:00 BST 2024\n";
        assert_eq!(built(debian), Some((2024, 12)));
        assert_eq!(built(plain), Some((2024, 10)));
        assert_eq!(built("Linux version 6.18.44\n"), None);
    }

    #[test]
    fn the_kernels_own_words_are_recognised() {
        assert!(is_about_the_flag(
            "5,120,0,-;Unknown kernel command line parameters \"cgroup_enable=memory\", will be passed to user space.\n"
        ));
        assert!(!is_about_the_flag("5,1,0,-;Kernel command line: cgroup_enable=memory\n"));
    }
}
