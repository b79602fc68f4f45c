//! 10 to 13, 34, 35: the disk below pods and images, and swap.

use super::super::fix::Fix;
use super::{Verdict, blocked, pass, skipped, warn};
use crate::node::reserve::threshold;
use crate::preflight::Facts;
use crate::preflight::facts::storage::Swap;

pub(super) fn scheduler(facts: &Facts) -> Verdict {
    let storage = &facts.storage;
    match (&storage.disk, &storage.scheduler) {
        (None, _) => skipped(format!("no disk is visible behind {}", storage.store.display())),
        (Some(disk), None) => pass(format!("{} has none to choose", disk.name)),
        (Some(disk), Some(name)) => pass(format!("{name} on {}", disk.name)),
    }
}

pub(super) fn speed(facts: &Facts) -> Verdict {
    const BYTES: u64 = 10_000_000;
    const OPERATIONS: u64 = 200;
    let Some(probe) = &facts.storage.probe else {
        return skipped("not measured yet (preflight and join measure as root, while the agent does not run)");
    };
    let (Some(bytes), Some(operations)) = (probe.write_bps, probe.write_iops) else { return skipped("could not be measured") };
    let day = probe.at.split('T').next().unwrap_or_default();
    let found = format!("writes {} MB/s, {operations} synchronous writes a second (measured {day})", bytes / 1_000_000);
    if bytes < BYTES || operations < OPERATIONS {
        return warn(format!("{found}: slower than an A1 card"), "Use a card of class A1 or better, or a USB disk");
    }
    pass(found)
}

/// Raspberry Pi OS trixie: memory only, no file behind it.
fn only_zram() -> [Fix; 1] {
    [Fix::file("/etc/rpi/swap.conf.d/50-edge-agent.conf", "[Main]\nMechanism=zram\n")]
}

pub(super) fn swap(facts: &Facts) -> Verdict {
    let storage = &facts.storage;
    let bad: Vec<&Swap> = storage.swaps.iter().filter(|swap| !swap.zram && swap.on_store != Some(false)).collect();
    let names = |swaps: &[&Swap]| swaps.iter().map(|swap| swap.name.as_str()).collect::<Vec<_>>().join(", ");
    if bad.is_empty() {
        let all: Vec<&Swap> = storage.swaps.iter().collect();
        return pass(if all.is_empty() { "none".to_owned() } else { names(&all) });
    }
    let found = format!("{} on the disk of pods and images: swapping stalls the node", names(&bad));
    if storage.rpi_swap {
        let remedy =
            "Use memory only: /etc/rpi/swap.conf.d/50-edge-agent.conf with [Main] Mechanism=zram, then reboot (preflight --fix asks)";
        return warn(found, remedy).fixed_by(only_zram()).asking().after_reboot();
    }
    if storage.dphys_swapfile {
        let remedy = "Remove dphys-swapfile and install systemd-zram-generator (preflight --fix asks)";
        let commands = [
            // Whoever holds dpkg's lock (unattended-upgrades) is waited for.
            Fix::Run(&["apt-get", "-o", "DPkg::Lock::Timeout=120", "install", "--yes", "systemd-zram-generator"]),
            Fix::Run(&["apt-get", "-o", "DPkg::Lock::Timeout=120", "remove", "--yes", "dphys-swapfile"]),
        ];
        return warn(found, remedy).fixed_by(commands).asking();
    }
    warn(found, "Switch it off (swapoff, and its line in /etc/fstab) and use zram: apt-get install systemd-zram-generator")
}

pub(super) fn zram_writeback(facts: &Facts) -> Verdict {
    let storage = &facts.storage;
    let Some((device, behind)) = storage.zram_writeback.first() else { return pass("none") };
    let verdict = warn(
        format!("{device} writes idle pages to {behind}: the card wears and stalls"),
        "Set [Main] Mechanism=zram, or [Zram] WritebackTrigger=manual, in /etc/rpi/swap.conf.d/50-edge-agent.conf, then reboot",
    );
    if storage.rpi_swap { verdict.fixed_by(only_zram()).asking().after_reboot() } else { verdict }
}

pub(super) fn room(facts: &Facts) -> Verdict {
    let storage = &facts.storage;
    let place = storage.data_dir.display();
    if storage.root_read_only {
        return blocked(
            "the root file system is read-only",
            "Look at the kernel's messages (dmesg) for the reason; then: mount -o remount,rw /",
        );
    }
    if !storage.data_writable {
        return blocked(format!("{place} cannot be written"), "Mount it read-write, set data-dir, or run this as root");
    }
    let Some((size, free)) = storage.bytes else {
        return warn(format!("the size of {place} is not known"), format!("Look at: df {place}"));
    };
    let percent = |(all, free): (u64, u64)| free * 100 / all.max(1);
    let bytes = percent((size, free));
    let inodes = storage.inodes.map(percent);
    let found = match inodes {
        Some(inodes) => format!("{bytes} % of {} MiB and {inodes} % of the inodes free below {place}", size >> 20),
        None => format!("{bytes} % of {} MiB free below {place}", size >> 20),
    };
    let evicting = storage.nodefs_available.as_ref().filter(|text| free < threshold(text, size));
    if let Some(text) = evicting {
        blocked(found, format!("Free some space: below {text} (eviction-hard, nodefs.available) pods are evicted"))
    } else if bytes < 15 || inodes.is_some_and(|inodes| inodes < 10) {
        warn(found, "Free some space: images need it")
    } else {
        pass(found)
    }
}

pub(super) fn overlay_root(facts: &Facts) -> Verdict {
    if facts.boot.overlay_root {
        return warn(
            "the root file system is an overlay: what is written is gone after a boot, so --fix writes nothing and prints what to write",
            "Switch it off while installing (raspi-config, Performance, Overlay File System), or use a data-dir on another file system",
        );
    }
    pass("no")
}
