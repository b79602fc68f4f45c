use std::collections::BTreeMap;
use std::path::PathBuf;

use cgroup::{Disk, Layout};

use super::*;
use crate::preflight::boot_line::{Firmware, Unwanted};
use crate::preflight::facts::board::Hardware;
use crate::preflight::facts::boot::{Boot, Told};
use crate::preflight::facts::cgroups::{Cgroups, Scratch};
use crate::preflight::facts::kernel::Kernel;
use crate::preflight::facts::node::Node;
use crate::preflight::facts::runtime::{Answer, Runtime};
use crate::preflight::facts::services::{CONTAINERD, Journal, Services, Unit};
use crate::preflight::facts::storage::{Storage, Swap};
use crate::preflight::line;
use crate::storage_probe::StorageProbe;

const FLAGS: &str = "console=tty1 root=PARTUUID=1-02 cgroup_enable=memory psi=1\n";

fn firmware(line: &str) -> Option<Firmware> {
    let (place, line) = ("/boot/firmware".to_owned(), line.to_owned());
    Some(Firmware { place, read_only: false, line, config: String::new(), tryboot: None, before_boot: false })
}

/// A Raspberry Pi 4 with 1 GB on which nothing is wrong.
fn good() -> Facts {
    let unit = |oom_score| Unit { oom_score, delegate: true, pid: 7, after_time_sync: true, ..Unit::default() };
    let names = ["systemd-journald.service", "dbus.service", "NetworkManager.service"];
    let mut units: BTreeMap<&'static str, Unit> = names.into_iter().map(|name| (name, unit(-998))).collect();
    units.insert(CONTAINERD, unit(-999));
    units.insert("edge-agent.service", unit(-999));
    Facts {
        root: true,
        memory_mib: 906,
        boot: Boot {
            raspberry_pi: true,
            firmware: firmware(FLAGS),
            told: Told { memory: true, psi: true, ..Told::default() },
            release: "6.12.34+rpt-rpi-v8".to_owned(),
            built: Some((2025, 6)),
            machine: "aarch64".to_owned(),
            page_size: 4096,
            ..Boot::default()
        },
        cgroups: Cgroups {
            layout: Some(Layout::V2),
            memory: true,
            cpu: true,
            pids: true,
            not_handed_down: Some(vec![]),
            missing_options: Some(vec![]),
            psi: true,
            scratch: Some(Scratch { memory_min: Ok(()), io_max: Some(Ok(())) }),
            ..Cgroups::default()
        },
        storage: Storage {
            store: PathBuf::from("/var/lib/containerd"),
            disk: Some(Disk { major: 179, minor: 0, name: "mmcblk0".to_owned() }),
            scheduler: Some("mq-deadline".to_owned()),
            probe: Some(probe(20_000_000, 500)),
            swaps: vec![Swap { name: "/dev/zram0".to_owned(), zram: true, on_store: None }],
            data_dir: PathBuf::from("/var/lib/edge-agent"),
            data_writable: true,
            bytes: Some((32 << 30, 16 << 30)),
            nodefs_available: Some("5%".to_owned()),
            inodes: Some((100, 90)),
            ..Storage::default()
        },
        kernel: Kernel {
            min_free_kib: Some(16384),
            dirty_bytes: Some(16 << 20),
            overcommit: Some(0),
            threads_max: Some(7000),
            pid_max: Some(32768),
            inotify_instances: Some(1024),
            inotify_watches: Some(65536),
            conntrack_max: Some(65536),
        },
        services: Services {
            systemd: true,
            units: Some(units),
            processes: vec!["sshd".to_owned()],
            journal: Journal { storage: Some("volatile".to_owned()), runtime_max: Some("16M".to_owned()) },
            tmp_mib: Some(90),
            watchdog_seconds: Some(10),
            watchdog_device: true,
            clock_synchronised: Some(true),
            year: 2026,
        },
        runtime: Runtime {
            answer: Some(Answer { cri: Ok("containerd v1.7.24".to_owned()), unmet: vec![], systemd: Some(false) }),
            asked: true,
            containerd_program: true,
            runc_program: true,
            socket: PathBuf::from("/run/containerd/containerd.sock"),
            ..Runtime::default()
        },
        board: Hardware {
            gpu_mib: Some(16),
            cma_mib: Some(64),
            headless: true,
            undervoltage: Some(false),
            throttled: Some(0),
            celsius: Some(48),
        },
        node: Some(Node {
            may_lower_oom: true,
            nft_program: true,
            overlay: true,
            bridge_netfilter: true,
            addresses: 1,
            shares_root_dir: true,
            shares_cgroup_root: true,
            ..Node::default()
        }),
    }
}

fn probe(write_bps: u64, write_iops: u64) -> StorageProbe {
    StorageProbe {
        read_bps: None,
        write_bps: Some(write_bps),
        write_iops: Some(write_iops),
        read_iops: None,
        device: None,
        at: "2026-11-23T12:00:00Z".to_owned(),
    }
}

fn find(facts: &Facts, check: &str) -> Finding {
    judge(facts).into_iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no check {check}"))
}

/// What to break, the check that notices, how bad it is, words of its line, what --fix may do, whether a reboot is needed.
type Case = (fn(&mut Facts), &'static str, Level, &'static str, Consent, bool);

fn units(facts: &mut Facts) -> &mut BTreeMap<&'static str, Unit> {
    facts.services.units.as_mut().unwrap()
}

fn unmanaged(facts: &mut Facts) {
    facts.boot.firmware = None;
    facts.boot.raspberry_pi = false;
}

/// The line was there when this boot began.
fn booted_since(facts: &mut Facts) {
    facts.boot.firmware.as_mut().unwrap().before_boot = true;
}

#[test]
fn the_list_has_35_stable_numbers_and_a_good_board_passes_all() {
    let findings = judge(&good());
    let numbered: Vec<(u8, &str)> = findings.iter().filter_map(|finding| Some((finding.number?, finding.check))).collect();
    assert_eq!(numbered.len(), 35);
    assert!(numbered.iter().zip(1..).all(|((number, _), expected)| *number == expected));
    for (number, id) in [(1, "cgroup-v2"), (2, "memory-controller"), (3, "psi"), (9, "io-max"), (20, "containerd"), (35, "overlay-root")] {
        assert_eq!(numbered[number - 1].1, id);
    }
    let mut names: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), findings.len(), "ids are unique");
    let bad: Vec<String> = findings.iter().filter(|finding| finding.level != Level::Pass).map(line).collect();
    assert_eq!(bad, Vec::<String>::new());
}

#[test]
fn boot_flags_and_control_groups() {
    use Consent::{No, Yes};
    use Level::{Blocked, Pass, Skipped, Warning};
    let cases: &[Case] = &[
        (|f| f.cgroups.layout = None, "cgroup-v2", Blocked, "no control group hierarchy is mounted", No, false),
        (
            |f| f.cgroups.layout = Some(Layout::Hybrid),
            "cgroup-v2",
            Warning,
            "cgroup v1 in use: memory protection and write throttling are not available. Remove systemd.unified_cgroup_hierarchy=0 from the kernel command line.",
            No,
            false,
        ),
        (
            |f| (f.cgroups.layout, f.boot.firmware) = (Some(Layout::V1), firmware("root=/dev/a systemd.unified_cgroup_hierarchy=0\n")),
            "cgroup-v2",
            Warning,
            "cgroup v1",
            Yes,
            true,
        ),
        (
            |f| (f.cgroups.memory, f.boot.firmware) = (false, firmware("root=/dev/a\n")),
            "memory-controller",
            Blocked,
            "memory cgroup is disabled on this board (kernel has it, the device tree turns it off). Fix: append \" cgroup_enable=memory\" to the single line in /boot/firmware/cmdline.txt and reboot; or run: edge-agent preflight --fix",
            Yes,
            true,
        ),
        (
            |f| {
                unmanaged(f);
                f.boot.raspberry_pi = true;
                f.cgroups.memory = false
            },
            "memory-controller",
            Blocked,
            "Mount the firmware's partition on /boot/firmware and run: edge-agent preflight --fix; or append \" cgroup_enable=memory\"",
            No,
            false,
        ),
        (
            |f| {
                unmanaged(f);
                f.cgroups.memory = false
            },
            "memory-controller",
            Blocked,
            "controller \"memory\" not in /sys/fs/cgroup/cgroup.controllers; kernel needs CONFIG_MEMCG=y and no cgroup_disable=memory",
            No,
            false,
        ),
        (
            |f| {
                unmanaged(f);
                (f.cgroups.memory, f.cgroups.layout) = (false, Some(Layout::V1))
            },
            "memory-controller",
            Blocked,
            "controller \"memory\" is mounted nowhere; kernel needs CONFIG_MEMCG=y",
            No,
            false,
        ),
        (|f| f.cgroups.memory = false, "memory-controller", Blocked, "although this boot was told", No, false),
        (
            |f| (f.cgroups.memory, f.boot.told.memory) = (false, false),
            "memory-controller",
            Blocked,
            "is right since this boot. Reboot",
            No,
            true,
        ),
        (
            |f| {
                (f.cgroups.memory, f.boot.told.memory) = (false, false);
                booted_since(f)
            },
            "memory-controller",
            Blocked,
            "was right before this boot and had no effect. Edit the line",
            No,
            false,
        ),
        (|f| f.cgroups.layout = None, "memory-controller", Skipped, "see cgroup-v2", No, false),
        (
            |f| (f.cgroups.psi, f.boot.firmware) = (false, firmware("root=/dev/a\n")),
            "psi",
            Warning,
            "PSI is compiled in but off. Append \" psi=1\" to /boot/firmware/cmdline.txt and reboot. Until then the governor polls MemAvailable (slower, no IO signal).",
            Yes,
            true,
        ),
        (
            |f| {
                unmanaged(f);
                f.cgroups.psi = false
            },
            "psi",
            Warning,
            "Append \" psi=1\" to the kernel command line and reboot.",
            No,
            false,
        ),
        (|f| (f.cgroups.psi, f.boot.psi_compiled) = (false, Some(false)), "psi", Warning, "not compiled into this kernel", No, false),
        (|f| (f.cgroups.psi, f.boot.told.psi) = (false, false), "psi", Warning, "Reboot", No, true),
        (
            |f| {
                (f.cgroups.psi, f.boot.told.psi) = (false, false);
                booted_since(f);
                f.boot.firmware.as_mut().unwrap().tryboot = Some("autoboot.txt chooses")
            },
            "psi",
            Warning,
            "had no effect. Edit the line that this system boots with: autoboot.txt chooses",
            No,
            false,
        ),
        (
            |f| {
                (f.cgroups.psi, f.boot.told.psi) = (false, false);
                f.boot.firmware = firmware("root=/dev/a psi=1 psi=0\n")
            },
            "psi",
            Warning,
            "Append \" psi=1\"",
            Yes,
            true,
        ),
        (
            |f| {
                (f.cgroups.layout, f.boot.told.legacy_hierarchy) = (Some(Layout::V1), true);
                booted_since(f)
            },
            "cgroup-v2",
            Warning,
            "cgroup v1",
            No,
            false,
        ),
        (|f| f.cgroups.psi = false, "psi", Warning, "although this boot was told psi=1", No, false),
        (
            |f| f.boot.firmware = firmware("root=/dev/a cgroup_memory=1 psi=1"),
            "stale-boot-words",
            Pass,
            "cgroup_memory=1 is there",
            No,
            false,
        ),
        (
            |f| f.boot.firmware = firmware("root=/dev/a cgroup_enable=memory cgroup_disable=memory"),
            "late-cgroup-disable",
            Warning,
            "switches the memory controller off",
            Yes,
            true,
        ),
        (unmanaged, "late-cgroup-disable", Skipped, "no cmdline.txt", No, false),
        (|f| (f.cgroups.memory, f.boot.unknown_flag) = (false, true), "kernel-flag-window", Warning, "apt full-upgrade", No, true),
        (
            |f| {
                f.cgroups.memory = false;
                f.boot.told.memory = false;
                f.boot.built = Some((2024, 11))
            },
            "kernel-flag-window",
            Warning,
            "October to December 2024",
            No,
            true,
        ),
        (|f| (f.cgroups.memory, f.boot.told.memory) = (false, false), "kernel-flag-window", Pass, "no sign", No, false),
        (|f| f.cgroups.not_handed_down = Some(vec!["io", "memory"]), "controllers-handed-down", Warning, "\"+io +memory\"", Yes, false),
        (
            |f| f.cgroups.refused = Some("EACCES".to_owned()),
            "controllers-handed-down",
            Blocked,
            "cannot write /sys/fs/cgroup/cgroup.subtree_control (EACCES): run as root on the host, or pass --cgroup-root of a delegated subtree",
            No,
            false,
        ),
        (|f| f.cgroups.not_handed_down = None, "controllers-handed-down", Skipped, "cgroup v1", No, false),
        (|f| f.cgroups.missing_options = Some(vec!["memory_recursiveprot"]), "cgroup-mount-options", Warning, "remount", No, false),
        (|f| f.cgroups.missing_options = None, "cgroup-mount-options", Skipped, "v1", No, false),
        (
            |f| f.cgroups.scratch = Some(Scratch { memory_min: Ok(()), io_max: Some(Err("io.max: No such device".to_owned())) }),
            "io-max",
            Warning,
            "No such device",
            No,
            false,
        ),
        (
            |f| f.cgroups.scratch = Some(Scratch { memory_min: Err("memory.min: x".to_owned()), io_max: Some(Ok(())) }),
            "io-max",
            Warning,
            "memory.min",
            No,
            false,
        ),
        (|f| f.cgroups.scratch = None, "io-max", Skipped, "not tried", No, false),
        (|f| f.cgroups.not_handed_down = Some(vec!["io"]), "io-max", Skipped, "controllers-handed-down", No, false),
        (|f| f.cgroups.layout = Some(Layout::Hybrid), "io-max", Skipped, "v1", No, false),
        (|f| f.storage.disk = None, "io-max", Skipped, "no disk", No, false),
    ];
    check(cases);
}

#[test]
fn disks_and_settings() {
    use Consent::{Ask, No, Yes};
    use Level::{Blocked, Pass, Skipped, Warning};
    fn swap_file(facts: &mut Facts) {
        facts.storage.swaps = vec![Swap { name: "/var/swap".to_owned(), zram: false, on_store: Some(true) }];
    }
    let cases: &[Case] = &[
        (|f| f.storage.scheduler = None, "io-scheduler", Pass, "none to choose", No, false),
        (|f| f.storage.disk = None, "io-scheduler", Skipped, "no disk", No, false),
        (|f| f.storage.probe = Some(probe(9_000_000, 500)), "storage-speed", Warning, "writes 9 MB/s", No, false),
        (|f| f.storage.probe = Some(probe(20_000_000, 199)), "storage-speed", Warning, "199 synchronous", No, false),
        (|f| f.storage.probe = None, "storage-speed", Skipped, "not measured", No, false),
        (swap_file, "swap", Warning, "fstab", No, false),
        (
            |f| {
                swap_file(f);
                f.storage.rpi_swap = true
            },
            "swap",
            Warning,
            "Mechanism=zram",
            Ask,
            true,
        ),
        (
            |f| {
                swap_file(f);
                f.storage.dphys_swapfile = true
            },
            "swap",
            Warning,
            "dphys-swapfile",
            Ask,
            false,
        ),
        (
            |f| {
                swap_file(f);
                f.storage.swaps[0].on_store = Some(false)
            },
            "swap",
            Pass,
            "/var/swap",
            No,
            false,
        ),
        (
            |f| {
                swap_file(f);
                f.storage.swaps[0].on_store = None
            },
            "swap",
            Warning,
            "/var/swap",
            No,
            false,
        ),
        (|f| f.storage.swaps.clear(), "swap", Pass, "none", No, false),
        (
            |f| f.storage.zram_writeback = vec![("zram0".to_owned(), "/dev/loop0".to_owned())],
            "zram-writeback",
            Warning,
            "/dev/loop0",
            No,
            false,
        ),
        (
            |f| {
                f.storage.zram_writeback = vec![("zram0".to_owned(), "/dev/loop0".to_owned())];
                f.storage.rpi_swap = true
            },
            "zram-writeback",
            Warning,
            "WritebackTrigger=manual",
            Ask,
            true,
        ),
        (|f| f.kernel.min_free_kib = Some(2727), "min-free", Warning, "vm.min_free_kbytes=18554", Yes, false),
        (|f| (f.kernel.min_free_kib, f.memory_mib) = (Some(2727), 4000), "min-free", Pass, "2727", No, false),
        (|f| f.kernel.min_free_kib = None, "min-free", Skipped, "cannot be read", No, false),
        (
            |f| f.kernel.dirty_bytes = Some(0),
            "dirty-limits",
            Warning,
            "vm.dirty_bytes=19996672 vm.dirty_background_bytes=4999168",
            Yes,
            false,
        ),
        (|f| (f.kernel.dirty_bytes, f.storage.probe) = (Some(0), None), "dirty-limits", Warning, "vm.dirty_bytes=8388608", Yes, false),
        (|f| f.kernel.dirty_bytes = None, "dirty-limits", Skipped, "cannot be read", No, false),
        (|f| f.kernel.overcommit = Some(2), "overcommit", Warning, "vm.overcommit_memory=0", Ask, false),
        (|f| f.kernel.overcommit = Some(1), "overcommit", Pass, "1", No, false),
        (|f| f.kernel.overcommit = None, "overcommit", Skipped, "cannot be read", No, false),
        (|f| f.kernel.threads_max = Some(800), "task-limits", Warning, "Too few", No, false),
        (|f| f.kernel.threads_max = Some(3300), "task-limits", Pass, "at most 1980", No, false),
        (|f| f.kernel.pid_max = None, "task-limits", Skipped, "cannot be read", No, false),
        (|f| f.kernel.inotify_instances = Some(128), "inotify", Warning, "sysctl -w fs.inotify.max_user_instances=1024, or", Yes, false),
        (
            |f| (f.kernel.inotify_instances, f.kernel.inotify_watches) = (Some(128), Some(8192)),
            "inotify",
            Warning,
            "max_user_watches=65536",
            Yes,
            false,
        ),
        (|f| f.kernel.inotify_instances = None, "inotify", Skipped, "cannot be read", No, false),
        (|f| f.kernel.conntrack_max = Some(7248), "conntrack", Warning, "nf_conntrack_max=28992", Yes, false),
        (|f| (f.kernel.conntrack_max, f.memory_mib) = (Some(60000), 8000), "conntrack", Warning, "nf_conntrack_max=65536", Yes, false),
        (|f| f.kernel.conntrack_max = None, "conntrack", Skipped, "not loaded", No, false),
        (|f| f.storage.bytes = Some((100 << 20, 4 << 20)), "disk", Blocked, "4 % of 100 MiB", No, false),
        (
            |f| (f.storage.bytes, f.storage.nodefs_available) = (Some((100 << 30, 12 << 30)), Some("13Gi".to_owned())),
            "disk",
            Blocked,
            "below 13Gi",
            No,
            false,
        ),
        (
            |f| (f.storage.bytes, f.storage.nodefs_available) = (Some((100 << 30, 4 << 30)), Some("1Gi".to_owned())),
            "disk",
            Warning,
            "4 % of",
            No,
            false,
        ),
        (|f| (f.storage.bytes, f.storage.nodefs_available) = (Some((100 << 30, 1)), None), "disk", Warning, "0 % of", No, false),
        (|f| f.storage.bytes = Some((100 << 20, 14 << 20)), "disk", Warning, "images", No, false),
        (|f| f.storage.inodes = Some((100, 9)), "disk", Warning, "9 % of the inodes", No, false),
        (|f| f.storage.inodes = None, "disk", Pass, "50 % of 32768 MiB free", No, false),
        (|f| f.storage.data_writable = false, "disk", Blocked, "cannot be written", No, false),
        (|f| f.storage.root_read_only = true, "disk", Blocked, "read-only", No, false),
        (|f| f.storage.bytes = None, "disk", Warning, "not known", No, false),
        (|f| f.boot.overlay_root = true, "overlay-root", Warning, "--fix writes nothing", No, false),
    ];
    check(cases);
}

#[test]
fn services_around_the_agent() {
    use Consent::{Ask, No, Yes};
    use Level::{Blocked, Pass, Skipped, Warning};
    fn answer(facts: &mut Facts) -> &mut Answer {
        facts.runtime.answer.as_mut().unwrap()
    }
    fn no_systemd(facts: &mut Facts) {
        (facts.services.systemd, facts.services.units) = (false, None);
        (facts.services.watchdog_seconds, facts.services.clock_synchronised) = (None, None);
    }
    fn apart(facts: &mut Facts) {
        let node = facts.node.as_mut().unwrap();
        (node.shares_root_dir, node.shares_cgroup_root) = (false, false);
    }
    let cases: &[Case] = &[
        (|f| f.runtime.answer = None, "containerd", Pass, "runs its own", No, false),
        (
            |f| (f.runtime.answer, f.runtime.containerd_program) = (None, false),
            "containerd",
            Blocked,
            "apt-get install containerd runc",
            No,
            false,
        ),
        (|f| (f.runtime.answer, f.runtime.runc_program) = (None, false), "containerd", Blocked, "install runc", No, false),
        (
            |f| (f.runtime.answer, f.runtime.required) = (None, true),
            "containerd",
            Blocked,
            "nothing answers on /run/containerd/containerd.sock",
            No,
            false,
        ),
        (
            |f| answer(f).cri = Err("Version : unknown service".to_owned()),
            "containerd",
            Warning,
            "Remove \"cri\" from disabled_plugins",
            Ask,
            false,
        ),
        (
            |f| {
                f.runtime.required = true;
                answer(f).cri = Err("x".to_owned())
            },
            "containerd",
            Blocked,
            "does not speak CRI",
            Ask,
            false,
        ),
        (|f| (f.runtime.answer, f.runtime.required, f.runtime.asked) = (None, true, false), "containerd", Skipped, "not asked", No, false),
        (|f| (f.runtime.answer, f.runtime.asked) = (None, false), "containerd", Skipped, "not asked", No, false),
        (|f| (f.runtime.answer, f.runtime.asked) = (None, false), "cgroup-driver", Skipped, "not asked", No, false),
        (|f| answer(f).unmet = vec!["RuntimeReady: broken".to_owned()], "containerd", Warning, "broken", No, false),
        (
            |f| f.runtime.agent_systemd = true,
            "cgroup-driver",
            Blocked,
            "containerd uses the cgroupfs driver (SystemdCgroup=false) but PID 1 is systemd. Set SystemdCgroup = true for runtime runc in /etc/containerd/config.toml and restart containerd (running pods must be recreated).",
            Ask,
            false,
        ),
        (|f| answer(f).systemd = Some(true), "cgroup-driver", Blocked, "Set kubelet-arg: cgroup-driver=systemd", No, false),
        (
            |f| {
                no_systemd(f);
                f.runtime.agent_systemd = true
            },
            "cgroup-driver",
            Blocked,
            "Set kubelet-arg: cgroup-driver=cgroupfs",
            No,
            false,
        ),
        (|f| answer(f).systemd = None, "cgroup-driver", Skipped, "does not say", No, false),
        (|f| f.runtime.answer = None, "cgroup-driver", Skipped, "own containerd", No, false),
        (|f| units(f).get_mut(CONTAINERD).unwrap().oom_score = 0, "containerd-unit", Warning, "lacks OOMScoreAdjust=-999", Yes, false),
        (
            |f| {
                units(f).insert(CONTAINERD, Unit { oom_score: -999, tasks_max: Some(100), ..Unit::default() });
            },
            "containerd-unit",
            Warning,
            "lacks Delegate=yes, TasksMax=infinity",
            Yes,
            false,
        ),
        (
            |f| {
                units(f).remove(CONTAINERD);
            },
            "containerd-unit",
            Skipped,
            "no containerd.service",
            No,
            false,
        ),
        (|f| f.runtime.managed = true, "containerd-unit", Skipped, "of its own", No, false),
        (no_systemd, "containerd-unit", Skipped, "systemd does not run", No, false),
        (|f| units(f).get_mut("dbus.service").unwrap().oom_score = 0, "daemons-oom", Warning, "dbus (0)", Yes, false),
        (|f| *units(f).get_mut("dbus.service").unwrap() = Unit::default(), "daemons-oom", Pass, "outlive", No, false),
        (
            |f| {
                units(f).insert("ssh.service", Unit { pid: 9, ..Unit::default() });
            },
            "daemons-oom",
            Pass,
            "outlive",
            No,
            false,
        ),
        (|f| f.services.units = None, "daemons-oom", Skipped, "does not answer", No, false),
        (no_systemd, "daemons-oom", Skipped, "systemd does not run", No, false),
        (|f| f.services.processes.push("earlyoom".to_owned()), "oom-daemons", Warning, "earlyoom runs", No, false),
        (
            |f| f.services.processes.push("kubelet".to_owned()),
            "node-agents",
            Blocked,
            "kubelet-arg: root-dir=, kubelet-arg: cgroup-root=",
            No,
            false,
        ),
        (
            |f| {
                f.services.processes.push("k3s-agent".to_owned());
                apart(f)
            },
            "node-agents",
            Pass,
            "shares no directory",
            No,
            false,
        ),
        (
            |f| {
                f.services.processes.push("kubelet".to_owned());
                f.node = None
            },
            "node-agents",
            Skipped,
            "not looked at",
            No,
            false,
        ),
        (|f| f.node = None, "node-agents", Pass, "none", No, false),
        (|f| f.services.processes.push("k3s-server".to_owned()), "node-agents", Warning, "--disable-agent", No, false),
        (|f| f.services.journal.runtime_max = None, "journald", Warning, "RuntimeMaxUse=16M", Yes, false),
        (|f| (f.services.journal.runtime_max, f.memory_mib) = (None, 4000), "journald", Pass, "a tenth", No, false),
        (no_systemd, "journald", Skipped, "systemd does not run", No, false),
        (|f| f.services.tmp_mib = Some(453), "tmp-size", Warning, "453 of 906", Ask, false),
        (
            |f| {
                no_systemd(f);
                f.services.tmp_mib = Some(453)
            },
            "tmp-size",
            Warning,
            "size=10%",
            No,
            false,
        ),
        (|f| f.services.tmp_mib = None, "tmp-size", Pass, "not in memory", No, false),
        (|f| f.services.watchdog_seconds = Some(0), "watchdog", Warning, "RuntimeWatchdogSec=10s", Ask, false),
        (|f| f.services.watchdog_device = false, "watchdog", Skipped, "no watchdog", No, false),
        (no_systemd, "watchdog", Skipped, "systemd does not run", No, false),
        (|f| f.services.year = 1970, "clock", Warning, "1970", No, false),
        (|f| units(f).get_mut("edge-agent.service").unwrap().after_time_sync = false, "clock", Warning, "time-sync.target", Yes, false),
        (|f| f.services.clock_synchronised = Some(false), "clock", Warning, "set-ntp", No, false),
        (no_systemd, "clock", Skipped, "not known", No, false),
    ];
    check(cases);
}

#[test]
fn the_board_and_what_an_instance_needs() {
    use Consent::{Ask, No, Yes};
    use Level::{Blocked, Pass, Skipped, Warning};
    fn node(facts: &mut Facts) -> &mut Node {
        facts.node.as_mut().unwrap()
    }
    let cases: &[Case] = &[
        (|f| f.board.gpu_mib = Some(64), "gpu-memory", Warning, "gpu_mem=16", Ask, true),
        (|f| (f.board.gpu_mib, f.board.headless) = (Some(64), false), "gpu-memory", Pass, "64 MiB", No, false),
        (|f| (f.board.gpu_mib, f.board.cma_mib) = (None, None), "gpu-memory", Skipped, "nothing", No, false),
        (|f| f.boot.machine = "armv7l".to_owned(), "kernel", Warning, "arm_64bit=1", No, true),
        (|f| f.boot.page_size = 16384, "kernel", Pass, "kernel8.img", No, false),
        (|f| f.board.undervoltage = Some(true), "power", Warning, "too low now", No, false),
        (|f| f.board.throttled = Some(0x50000), "power", Warning, "since boot", No, false),
        (|f| (f.board.undervoltage, f.board.throttled) = (None, None), "power", Skipped, "does not say", No, false),
        (|f| f.board.celsius = Some(76), "temperature", Warning, "76", No, false),
        (|f| f.board.celsius = None, "temperature", Skipped, "no sensor", No, false),
        (|f| f.root = false, "root", Blocked, "sudo", No, false),
        (|f| f.cgroups.cpu = false, "cpu-controller", Warning, "processor", No, false),
        (|f| f.cgroups.pids = false, "pids-controller", Warning, "fork bomb", No, false),
        (|f| node(f).missing_plugins = vec!["bridge"], "network-plugins", Blocked, "containernetworking-plugins", No, false),
        (|f| node(f).overlay = false, "overlayfs", Blocked, "modprobe overlay", Yes, false),
        (|f| node(f).bridge_netfilter = false, "bridge-netfilter", Warning, "modprobe br_netfilter", Yes, false),
        (|f| node(f).nft_program = false, "nftables", Warning, "nftables", No, false),
        (|f| node(f).may_lower_oom = false, "oom-scores", Warning, "SYS_RESOURCE", No, false),
        (|f| node(f).taken = vec![(([0, 0, 0, 0], 10250).into(), "kubelet-arg: port=")], "ports", Blocked, "kubelet-arg: port=", No, false),
        (|f| node(f).addresses = 0, "address", Warning, "node-ip", No, false),
        (|f| f.boot.reboot = Some(Outcome::Required(vec!["x".to_owned()])), "reboot", Warning, "Reboot", No, true),
        (|f| f.boot.reboot = Some(Outcome::Done(vec!["psi".to_owned()])), "reboot", Pass, "in effect since this boot: psi", No, false),
        (|f| f.boot.reboot = Some(Outcome::Ineffective(vec!["psi".to_owned()])), "reboot", Warning, "without effect: psi", No, false),
    ];
    check(cases);
}

/// Each case is noticed as said, remedied unless harmless, and repaired exactly when it says so.
fn check(cases: &[Case]) {
    for (number, (break_it, check, level, words, consent, reboot)) in cases.iter().enumerate() {
        let mut facts = good();
        break_it(&mut facts);
        let finding = find(&facts, check);
        let text = line(&finding);
        assert_eq!(finding.level, *level, "case {number}: {text}");
        assert!(text.contains(words), "case {number}: {words:?} not in {text}");
        assert_eq!((finding.fix, finding.reboot), (*consent, *reboot), "case {number}: {text}");
        assert_eq!(finding.fixes.is_empty(), *consent == Consent::No, "case {number}: {text}");
        assert_eq!(finding.remedy.is_empty(), *level <= Level::Pass, "case {number}: {text}");
    }
}

#[test]
fn a_line_that_must_not_be_edited_is_told_and_not_repaired() {
    let mut facts = good();
    facts.cgroups.memory = false;
    facts.boot.firmware =
        firmware("root=/dev/a\n").map(|firmware| Firmware { tryboot: Some("this boot is a trial (tryboot)"), ..firmware });
    let finding = find(&facts, "memory-controller");
    assert!(finding.fixes.is_empty() && finding.remedy.contains("not done by --fix: this boot is a trial"), "{finding:?}");
    assert!(!finding.remedy.contains("run: edge-agent"), "{finding:?}");
    facts.boot.firmware = firmware("root=/dev/a\n").map(|firmware| Firmware { read_only: true, ..firmware });
    let finding = find(&facts, "memory-controller");
    assert!(finding.fixes.is_empty() && finding.remedy.contains("remount,rw /boot/firmware"), "{finding:?}");
    assert!(!finding.remedy.contains("run: edge-agent"), "{finding:?}");
}

#[test]
fn what_waits_for_a_reboot_is_not_repaired_again() {
    let mut facts = good();
    (facts.board.gpu_mib, facts.boot.reboot) = (Some(64), Some(Outcome::Required(vec!["gpu-memory".to_owned()])));
    let finding = find(&facts, "gpu-memory");
    assert!(finding.pending && finding.fixes.is_empty());
    assert_eq!(finding.remedy, "Repaired: reboot");
    assert!(!find(&facts, "psi").pending, "what is in order does not wait");
}

#[test]
fn the_repairs_of_the_boot_line_are_those_of_the_table() {
    let mut facts = good();
    (facts.cgroups.memory, facts.cgroups.psi) = (false, false);
    facts.boot.firmware = firmware("root=/dev/a cgroup_disable=memory\n");
    assert_eq!(find(&facts, "memory-controller").fixes, [Fix::BootLineWith("cgroup_enable=memory")]);
    assert_eq!(find(&facts, "psi").fixes, [Fix::BootLineWith("psi=1")]);
    assert_eq!(find(&facts, "late-cgroup-disable").fixes, [Fix::BootLineWithout(Unwanted::MemoryOff)]);
}
