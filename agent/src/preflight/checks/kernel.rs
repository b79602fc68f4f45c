//! 1 to 9: boot flags and control groups. The texts are those of section 6.3 of the governor reference.

use cgroup::Layout;

use super::super::boot_line::{Firmware, Unwanted};
use super::super::fix::Fix;
use super::{Verdict, blocked, pass, skipped, warn};
use crate::preflight::Facts;

const MEMORY: &str = "cgroup_enable=memory";
const PSI: &str = "psi=1";
const OR_FIX: &str = "; or run: edge-agent preflight --fix";

pub(super) fn cgroup_v2(facts: &Facts) -> Verdict {
    match facts.cgroups.layout {
        Some(Layout::V2) => pass("version 2"),
        None => blocked("no control group hierarchy is mounted", "Mount cgroup2 on /sys/fs/cgroup, or boot with systemd"),
        Some(Layout::Hybrid | Layout::V1) => {
            // The reference ends with a refusal; here the static limits hold, so that an old image still runs pods.
            let verdict = warn(
                "cgroup v1 in use: memory protection and write throttling are not available",
                "Remove systemd.unified_cgroup_hierarchy=0 from the kernel command line. Until then only the static limits hold.",
            );
            match &facts.boot.firmware {
                Some(firmware) if firmware.has_unwanted(Unwanted::LegacyHierarchy) => {
                    in_the_line(verdict, firmware, Fix::BootLineWithout(Unwanted::LegacyHierarchy))
                }
                Some(firmware) if facts.boot.told.legacy_hierarchy && !firmware.before_boot => verdict.pending(),
                Some(_) | None => verdict,
            }
        }
    }
}

pub(super) fn memory_controller(facts: &Facts) -> Verdict {
    let boot = &facts.boot;
    let layout = match (facts.cgroups.layout, facts.cgroups.memory) {
        (None, _) => return skipped("no hierarchy, see cgroup-v2"),
        (Some(_), true) => return pass("available"),
        (Some(layout), false) => layout,
    };
    if let Some(firmware) = &boot.firmware {
        if firmware.has(MEMORY) && !firmware.has_unwanted(Unwanted::MemoryOff) {
            return if boot.told.memory {
                blocked("memory cgroup is disabled although this boot was told cgroup_enable=memory", "See kernel-flag-window")
            } else {
                not_told(blocked("memory cgroup is disabled", ""), firmware)
            };
        }
        let text = format!("Fix: append \" {MEMORY}\" to the single line in {}/cmdline.txt and reboot{OR_FIX}", firmware.place);
        return in_the_line(blocked(DISABLED, text), firmware, Fix::BootLineWith(MEMORY));
    }
    if boot.raspberry_pi {
        return blocked(DISABLED, format!("{MOUNT} append \" {MEMORY}\" to the single line in its cmdline.txt and reboot"));
    }
    match layout {
        Layout::V2 => blocked(
            "controller \"memory\" not in /sys/fs/cgroup/cgroup.controllers",
            "kernel needs CONFIG_MEMCG=y and no cgroup_disable=memory",
        ),
        Layout::Hybrid | Layout::V1 => {
            blocked("controller \"memory\" is mounted nowhere", "kernel needs CONFIG_MEMCG=y and no cgroup_disable=memory")
        }
    }
}

/// --fix edits only what the firmware reads, which a directory that nobody mounted is not.
const MOUNT: &str = "Mount the firmware's partition on /boot/firmware and run: edge-agent preflight --fix; or";
const DISABLED: &str = "memory cgroup is disabled on this board (kernel has it, the device tree turns it off)";

pub(super) fn psi(facts: &Facts) -> Verdict {
    const POLLS: &str = "Until then the governor polls MemAvailable (slower, no IO signal).";
    let boot = &facts.boot;
    if facts.cgroups.psi {
        return pass("the kernel measures pressure");
    }
    if boot.psi_compiled == Some(false) {
        return warn(
            "PSI is not compiled into this kernel",
            format!("Use one with CONFIG_PSI=y (on a Raspberry Pi: apt full-upgrade). {POLLS}"),
        );
    }
    const OFF: &str = "PSI is compiled in but off";
    match &boot.firmware {
        Some(firmware) if firmware.has(PSI) && boot.told.psi => {
            warn("PSI is off although this boot was told psi=1", format!("The kernel may lack CONFIG_PSI: apt full-upgrade. {POLLS}"))
        }
        Some(firmware) if firmware.has(PSI) => not_told(warn("PSI is off", ""), firmware),
        Some(firmware) => {
            let text = format!("Append \" {PSI}\" to {}/cmdline.txt and reboot. {POLLS}", firmware.place);
            in_the_line(warn(OFF, text), firmware, Fix::BootLineWith(PSI))
        }
        None if boot.raspberry_pi => warn(OFF, format!("{MOUNT} append \" {PSI}\" to its cmdline.txt and reboot. {POLLS}")),
        None => warn(OFF, format!("Append \" {PSI}\" to the kernel command line and reboot. {POLLS}")),
    }
}

pub(super) fn stale_words(facts: &Facts) -> Verdict {
    let there = facts.boot.firmware.as_ref().map_or(facts.boot.told.stale, |firmware| firmware.has("cgroup_memory=1"));
    pass(if there { "cgroup_memory=1 is there: obsolete, harmless, left alone" } else { "none" })
}

pub(super) fn late_disable(facts: &Facts) -> Verdict {
    let Some(firmware) = &facts.boot.firmware else { return skipped("no cmdline.txt of a firmware is mounted here") };
    if !firmware.has_unwanted(Unwanted::MemoryOff) {
        return pass("none");
    }
    let verdict = warn(
        format!("{}/cmdline.txt switches the memory controller off (cgroup_disable=memory)", firmware.place),
        format!("Remove that word and reboot{OR_FIX}"),
    );
    in_the_line(verdict, firmware, Fix::BootLineWithout(Unwanted::MemoryOff))
}

pub(super) fn flag_window(facts: &Facts) -> Verdict {
    let boot = &facts.boot;
    if facts.cgroups.memory {
        return pass("this kernel offers the memory controller");
    }
    let in_window = boot.release.starts_with("6.12.") && matches!(boot.built, Some((2024, 10..=12)));
    if boot.unknown_flag || in_window || boot.told.memory {
        return warn(
            format!("kernel {} ignores cgroup_enable=memory, as builds of October to December 2024 do", boot.release),
            "Run: sudo apt full-upgrade, then reboot",
        )
        .after_reboot();
    }
    pass("no sign of it")
}

pub(super) fn handed_down(facts: &Facts) -> Verdict {
    let Some(missing) = &facts.cgroups.not_handed_down else { return skipped("cgroup v1: controllers are mounted one by one") };
    if !facts.root {
        return skipped("needs root");
    }
    if let Some(error) = &facts.cgroups.refused {
        return blocked(
            format!(
                "cannot write /sys/fs/cgroup/cgroup.subtree_control ({error}): run as root on the host, or pass --cgroup-root of a delegated subtree"
            ),
            "In the configuration it is kubelet-arg: cgroup-root=PATH",
        );
    }
    match missing.as_slice() {
        [] => pass("cpu, io, memory and pids as far as the kernel has them"),
        missing => {
            let words: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
            let verdict = warn(
                format!("{} not enabled in /sys/fs/cgroup/cgroup.subtree_control", missing.join(", ")),
                format!("Write \"{}\" there (the agent does, too), or run: edge-agent preflight --fix", words.join(" ")),
            );
            verdict.fixed_by([Fix::HandDown(missing.to_vec())])
        }
    }
}

pub(super) fn mount_options(facts: &Facts) -> Verdict {
    match facts.cgroups.missing_options.as_deref() {
        None => skipped("cgroup v1"),
        Some([]) => pass("nsdelegate, memory_recursiveprot"),
        Some(missing) => warn(
            format!("{} missing on /sys/fs/cgroup: promises of memory may not reach groups below", missing.join(", ")),
            "systemd 250 and later mount it so; until the next boot: mount -o remount,nsdelegate,memory_recursiveprot /sys/fs/cgroup",
        ),
    }
}

pub(super) fn io_max(facts: &Facts) -> Verdict {
    if facts.cgroups.layout != Some(Layout::V2) {
        return skipped("cgroup v1 cannot throttle buffered writes");
    }
    if facts.cgroups.not_handed_down.as_ref().is_some_and(|missing| missing.contains(&"io")) {
        return skipped("io is not enabled for groups below the root, see controllers-handed-down");
    }
    let Some(scratch) = &facts.cgroups.scratch else {
        return skipped(if facts.root { "not tried" } else { "needs root" });
    };
    match (&scratch.io_max, &scratch.memory_min, &facts.storage.disk) {
        (None, _, _) | (_, _, None) => skipped(format!("no disk is visible behind {}", facts.storage.store.display())),
        (Some(Ok(())), Ok(()), Some(disk)) => {
            pass(format!("{} ({}) takes limits, memory.min works", disk.name, crate::storage_probe::number(disk)))
        }
        (Some(Err(error)), _, Some(disk)) => warn(
            format!("{} takes no limit: {error}", disk.name),
            "Degraded: pods' writes are not limited. Use the distribution's kernel (CONFIG_BLK_DEV_THROTTLING)",
        ),
        (Some(Ok(())), Err(error), Some(_)) => {
            warn(error.clone(), "Degraded: the agent's memory cannot be protected. See memory-controller")
        }
    }
}

/// The line is right and this boot was not told so: a reboot helps only if there was none since the line was written.
fn not_told(verdict: Verdict, firmware: &Firmware) -> Verdict {
    let (off, place) = (&verdict.found, &firmware.place);
    if !firmware.before_boot {
        let found = format!("{off}; {place}/cmdline.txt is right since this boot");
        return Verdict { found, remedy: "Reboot".to_owned(), ..verdict }.pending();
    }
    let found = format!("{off}; {place}/cmdline.txt was right before this boot and had no effect");
    let where_else = firmware.tryboot.unwrap_or("look for cmdline= and os_prefix= in config.txt, and for another boot medium");
    Verdict { found, remedy: format!("Edit the line that this system boots with: {where_else}"), ..verdict }
}

/// A change of the one line, unless it must not be made here.
fn in_the_line(verdict: Verdict, firmware: &Firmware, fix: Fix) -> Verdict {
    let place = &firmware.place;
    let why = match firmware.tryboot {
        Some(why) => format!("not done by --fix: {why}; edit the line of the system that boots"),
        None if firmware.read_only => format!("{place} is mounted read-only; --fix does it after: mount -o remount,rw {place}"),
        None => return verdict.fixed_by([fix]).after_reboot(),
    };
    let remedy = format!("{} ({why})", verdict.remedy.replace(OR_FIX, ""));
    Verdict { remedy, ..verdict }.after_reboot()
}
