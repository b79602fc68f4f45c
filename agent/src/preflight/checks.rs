//! Pure: facts in, findings out.

use cgroup::Layout;

use super::{Facts, Finding, Fix, Level};

fn pass(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, level: Level::Pass, found: found.into(), remedy: String::new(), fix: None }
}

fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check, level: Level::Warning, found: found.into(), remedy: remedy.into(), fix: None }
}

fn blocked(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { level: Level::Blocked, ..warn(check, found, remedy) }
}

fn fixable(finding: Finding, fix: Fix) -> Finding {
    Finding { fix: Some(fix), ..finding }
}

/// Every check, in the order of the list in the governor reference.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![root(facts), layout(facts)];
    all.extend(controllers(facts));
    all.extend([pressure(facts), containerd(facts), plugins(facts), overlay(facts), bridge(facts), nft(facts), oom(facts)]);
    all.extend([ports(facts), others(facts), address(facts), clock(facts), disk(facts)]);
    all.extend([swap(facts), min_free(facts), dirty(facts), overcommit(facts), inotify(facts)]);
    all
}

fn root(facts: &Facts) -> Finding {
    if facts.root { pass("root", "runs as root") } else { blocked("root", "runs as an ordinary user", "run it with sudo") }
}

fn layout(facts: &Facts) -> Finding {
    match facts.layout {
        Some(Layout::V2) => pass("cgroups", "version 2"),
        Some(Layout::Hybrid | Layout::V1) => warn(
            "cgroups",
            "version 1: no memory protection, no write throttling",
            "remove systemd.unified_cgroup_hierarchy=0 from the kernel command line and reboot",
        ),
        None => blocked("cgroups", "no control group hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup, or boot with systemd"),
    }
}

fn controllers(facts: &Facts) -> Vec<Finding> {
    if facts.layout.is_none() {
        return Vec::new();
    }
    [("memory", facts.memory_controller), ("cpu", facts.cpu_controller), ("pids", facts.pids_controller)]
        .into_iter()
        .map(|(name, there)| match (name, there) {
            ("memory", true) => pass("memory controller", "available"),
            ("memory", false) => blocked(
                "memory controller",
                "the kernel offers none, so pods could not be limited",
                "append cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt and reboot",
            ),
            ("cpu", true) => pass("cpu controller", "available"),
            ("cpu", false) => {
                warn("cpu controller", "the kernel offers none: processor limits do not hold", "use the distribution's kernel")
            }
            (_, true) => pass("pids controller", "available"),
            (_, false) => warn("pids controller", "the kernel offers none: a fork bomb takes the node", "use the distribution's kernel"),
        })
        .collect()
}

fn pressure(facts: &Facts) -> Finding {
    if facts.psi {
        pass("pressure", "the kernel measures it (PSI)")
    } else {
        warn("pressure", "the kernel does not measure it", "append psi=1 to the kernel command line and reboot")
    }
}

fn containerd(facts: &Facts) -> Finding {
    if facts.containerd_socket {
        return pass("containerd", "the system's answers");
    }
    match (facts.containerd_program, facts.runc_program) {
        (true, true) if facts.managed => pass("containerd", "installed; the agent runs its own"),
        (true, true) => pass("containerd", "installed, not running; the agent runs its own"),
        (false, _) => blocked("containerd", "not installed", "apt-get install containerd runc"),
        (true, false) => blocked("containerd", "runc is not installed", "apt-get install runc"),
    }
}

fn plugins(facts: &Facts) -> Finding {
    if facts.missing_plugins.is_empty() {
        return pass("network plugins", format!("all in {}", facts.cni_bin_dir.display()));
    }
    blocked(
        "network plugins",
        format!("{} missing in {}", facts.missing_plugins.join(", "), facts.cni_bin_dir.display()),
        "apt-get install containernetworking-plugins, or set cni-bin-dir",
    )
}

fn overlay(facts: &Facts) -> Finding {
    if facts.overlay {
        return pass("overlayfs", "available");
    }
    fixable(blocked("overlayfs", "the kernel has not loaded it", "modprobe overlay (preflight --fix does)"), Fix::Module("overlay"))
}

fn bridge(facts: &Facts) -> Finding {
    if facts.bridge_netfilter {
        return pass("bridge filtering", "available");
    }
    let finding = warn(
        "bridge filtering",
        "br_netfilter is not loaded: services may not reach pods of this node",
        "modprobe br_netfilter (preflight --fix does)",
    );
    fixable(finding, Fix::Module("br_netfilter"))
}

fn nft(facts: &Facts) -> Finding {
    if facts.nft_program {
        pass("nftables", "installed")
    } else {
        warn("nftables", "the nft program is missing: pods do not reach the outside", "apt-get install nftables")
    }
}

fn oom(facts: &Facts) -> Finding {
    if facts.may_lower_oom {
        pass("oom scores", "can be lowered")
    } else {
        warn(
            "oom scores",
            "CAP_SYS_RESOURCE is missing: the kernel may end the agent before a pod",
            "run outside of a container, or grant SYS_RESOURCE",
        )
    }
}

fn ports(facts: &Facts) -> Finding {
    if facts.running {
        return pass("ports", "held by the running agent of this instance");
    }
    match facts.taken.as_slice() {
        [] => pass("ports", "free"),
        taken => {
            let list: Vec<String> = taken.iter().map(|(address, _)| address.to_string()).collect();
            let keys: Vec<&str> = taken.iter().map(|(_, key)| *key).collect();
            blocked(
                "ports",
                format!("{} in use", list.join(", ")),
                format!("stop what listens there, or choose others with {}", keys.join(", ")),
            )
        }
    }
}

fn others(facts: &Facts) -> Finding {
    match facts.other_agents.as_slice() {
        [] => pass("other node agents", "none"),
        found => warn(
            "other node agents",
            format!("{} running", found.join(", ")),
            "stop it, or give this instance its own root-dir, cgroup-root, ports and containerd",
        ),
    }
}

fn address(facts: &Facts) -> Finding {
    if facts.addresses > 0 {
        pass("address", "other nodes can reach this one")
    } else {
        warn("address", "no address and no default route yet", "connect the machine, or set node-ip")
    }
}

fn clock(facts: &Facts) -> Finding {
    if facts.year >= 2025 {
        pass("clock", "plausible")
    } else {
        warn(
            "clock",
            format!("it is the year {} here: certificates will not be valid yet", facts.year),
            "let it be set (systemd-timesyncd), or set it: date -s",
        )
    }
}

fn disk(facts: &Facts) -> Finding {
    let place = facts.data_dir.display();
    if !facts.data_writable {
        return blocked("disk", format!("{place} cannot be written"), "mount it read-write, or set data-dir");
    }
    match facts.data {
        Some((size, free)) if size > 0 => {
            let percent = free * 100 / size;
            let found = format!("{percent} % of {} MiB free below {place}", size >> 20);
            if percent < 5 {
                blocked("disk", found, "free some space: below 5 % pods are evicted")
            } else if percent < 15 {
                warn("disk", found, "free some space: images need it")
            } else {
                pass("disk", found)
            }
        }
        Some(_) | None => warn("disk", format!("size of {place} is not known"), "look at: df"),
    }
}

fn swap(facts: &Facts) -> Finding {
    match facts.swap_files.as_slice() {
        [] => pass("swap", "none on a disk"),
        files => warn("swap", format!("on {}", files.join(", ")), "use zram instead: swapping to an SD card stalls the node"),
    }
}

fn min_free(facts: &Facts) -> Finding {
    let wanted = (facts.memory_mib * 1024 / 50).clamp(8192, 65536);
    match facts.min_free_kib {
        Some(now) if facts.memory_mib < 1024 && now < 8192 => fixable(
            warn("free memory", format!("vm.min_free_kbytes is {now}"), format!("set it to {wanted} (preflight --fix does)")),
            Fix::Sysctl("vm/min_free_kbytes", wanted),
        ),
        Some(now) => pass("free memory", format!("vm.min_free_kbytes is {now}")),
        None => pass("free memory", "not known"),
    }
}

fn dirty(facts: &Facts) -> Finding {
    match facts.dirty_bytes {
        Some(0) => {
            let finding = warn(
                "write-back",
                "vm.dirty_bytes is 0: a burst of writes stalls everything else",
                "set it to 16777216 (preflight --fix does)",
            );
            fixable(finding, Fix::Sysctl("vm/dirty_bytes", 16 << 20))
        }
        Some(now) => pass("write-back", format!("vm.dirty_bytes is {now}")),
        None => pass("write-back", "not known"),
    }
}

fn overcommit(facts: &Facts) -> Finding {
    match facts.overcommit {
        Some(2) => warn(
            "overcommit",
            "vm.overcommit_memory is 2: containers fail to start though memory is free",
            "set it to 0: sysctl -w vm.overcommit_memory=0",
        ),
        Some(now) => pass("overcommit", format!("vm.overcommit_memory is {now}")),
        None => pass("overcommit", "not known"),
    }
}

fn inotify(facts: &Facts) -> Finding {
    match facts.inotify_instances {
        Some(now) if now < 512 => {
            let finding = warn("inotify", format!("fs.inotify.max_user_instances is {now}"), "set it to 1024 (preflight --fix does)");
            fixable(finding, Fix::Sysctl("fs/inotify/max_user_instances", 1024))
        }
        Some(now) => pass("inotify", format!("fs.inotify.max_user_instances is {now}")),
        None => pass("inotify", "not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            layout: Some(Layout::V2),
            memory_controller: true,
            cpu_controller: true,
            pids_controller: true,
            psi: true,
            may_lower_oom: true,
            containerd_socket: true,
            nft_program: true,
            overlay: true,
            bridge_netfilter: true,
            memory_mib: 4096,
            min_free_kib: Some(8192),
            dirty_bytes: Some(1 << 24),
            overcommit: Some(0),
            inotify_instances: Some(1024),
            data: Some((100, 50)),
            data_writable: true,
            year: 2026,
            addresses: 1,
            ..Facts::default()
        }
    }

    #[test]
    fn a_good_machine_passes_every_check() {
        let bad: Vec<Finding> = judge(&good()).into_iter().filter(|finding| finding.level != Level::Pass).collect();
        assert_eq!(bad, []);
    }

    #[test]
    fn each_defect_is_named_with_a_remedy() {
        type Break = fn(&mut Facts);
        let cases: &[(Break, &str, Level, &str)] = &[
            (|f| f.root = false, "root", Level::Blocked, "sudo"),
            (|f| f.layout = None, "cgroups", Level::Blocked, "cgroup2"),
            (|f| f.layout = Some(Layout::V1), "cgroups", Level::Warning, "systemd.unified_cgroup_hierarchy"),
            (|f| f.memory_controller = false, "memory controller", Level::Blocked, "cgroup_enable=memory"),
            (|f| f.psi = false, "pressure", Level::Warning, "psi=1"),
            (|f| f.containerd_socket = false, "containerd", Level::Blocked, "apt-get install containerd"),
            (|f| f.missing_plugins = vec!["bridge"], "network plugins", Level::Blocked, "containernetworking-plugins"),
            (|f| f.overlay = false, "overlayfs", Level::Blocked, "modprobe overlay"),
            (|f| f.nft_program = false, "nftables", Level::Warning, "nftables"),
            (|f| f.taken = vec![(([0, 0, 0, 0], 10250).into(), "kubelet-arg: port=")], "ports", Level::Blocked, "kubelet-arg: port="),
            (|f| f.other_agents = vec!["kubelet".to_owned()], "other node agents", Level::Warning, "root-dir"),
            (|f| f.addresses = 0, "address", Level::Warning, "node-ip"),
            (|f| f.year = 1970, "clock", Level::Warning, "date -s"),
            (|f| f.data = Some((100, 4)), "disk", Level::Blocked, "5 %"),
            (|f| f.data = Some((100, 14)), "disk", Level::Warning, "images"),
            (|f| f.data_writable = false, "disk", Level::Blocked, "read-write"),
            (|f| f.swap_files = vec!["/var/swap".to_owned()], "swap", Level::Warning, "zram"),
            (|f| f.dirty_bytes = Some(0), "write-back", Level::Warning, "16777216"),
            (|f| f.overcommit = Some(2), "overcommit", Level::Warning, "overcommit_memory=0"),
            (|f| f.inotify_instances = Some(128), "inotify", Level::Warning, "1024"),
        ];
        for (break_it, check, level, remedy) in cases {
            let mut facts = good();
            break_it(&mut facts);
            let bad: Vec<Finding> = judge(&facts).into_iter().filter(|finding| finding.level != Level::Pass).collect();
            assert_eq!(bad.len(), 1, "{check}: {bad:?}");
            assert_eq!((bad[0].check, bad[0].level), (*check, *level));
            assert!(bad[0].remedy.contains(remedy), "{}", bad[0].remedy);
        }
    }
}
