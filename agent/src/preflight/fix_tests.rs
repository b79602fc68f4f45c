use super::*;
use crate::preflight::{Consent, Level};

const MOUNTS: &str = "22 1 179:2 / / rw - ext4 /dev/root rw\n40 22 179:1 / /boot/firmware rw - vfat /dev/mmcblk0p1 rw\n";
const LINE: &str = "console=tty1 root=PARTUUID=1-02 rootwait cgroup_disable=memory\n";
const NOW: &str = "2026-11-23T12:00:00Z";
const STAMP: &str = "edge-agent.20261123T120000Z";

fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn finding(check: &'static str, reboot: bool, fixes: Vec<Fix>) -> Finding {
    let (found, remedy) = (String::new(), String::new());
    Finding { number: None, check, level: Level::Warning, found, remedy, fix: Consent::Yes, reboot, pending: false, fixes }
}

/// Outcome, what was told, programs.
fn apply(dir: &tempfile::TempDir, findings: &[Finding]) -> (Applied, String, Vec<String>) {
    let mut told = Vec::new();
    let mut doer = Doer::new(dir.path(), NOW, &mut told);
    let applied = doer.apply(&findings.iter().collect::<Vec<_>>());
    let commands = std::mem::take(&mut doer.commands);
    (applied, String::from_utf8(told).unwrap(), commands)
}

fn read(dir: &tempfile::TempDir, file: &str) -> String {
    std::fs::read_to_string(dir.path().join(file)).unwrap()
}

fn boot_findings() -> Vec<Finding> {
    vec![
        finding("memory-controller", true, vec![Fix::BootLineWith("cgroup_enable=memory")]),
        finding("psi", true, vec![Fix::BootLineWith("psi=1")]),
        finding("late-cgroup-disable", true, vec![Fix::BootLineWithout(Unwanted::MemoryOff)]),
    ]
}

#[test]
fn the_boot_line_changes_once_with_one_backup_and_the_difference_is_shown() {
    let dir = machine(&[("proc/self/mountinfo", MOUNTS), ("boot/firmware/cmdline.txt", LINE)]);
    let (applied, told, commands) = apply(&dir, &boot_findings());
    assert_eq!(applied.reboot, ["memory-controller", "psi", "late-cgroup-disable"]);
    assert_eq!((applied.failed, commands), (vec![], vec![]), "nothing reboots");
    let new = "console=tty1 root=PARTUUID=1-02 rootwait cgroup_enable=memory psi=1\n";
    assert_eq!(read(&dir, "boot/firmware/cmdline.txt"), new);
    assert_eq!(read(&dir, &format!("boot/firmware/cmdline.txt.{STAMP}")), LINE);
    assert_eq!(std::fs::read_dir(dir.path().join("boot/firmware")).unwrap().count(), 2);
    let diff = format!("--- /boot/firmware/cmdline.txt\n+++ /boot/firmware/cmdline.txt\n-{LINE}+{new}");
    assert_eq!(told, format!("{diff}the old text is in /boot/firmware/cmdline.txt.{STAMP}\n"));

    let (_, told, _) = apply(&dir, &boot_findings());
    assert_eq!(told, "", "a second time there is nothing to do");
}

#[test]
fn a_boot_line_that_cannot_be_trusted_stays_and_the_rest_is_done() {
    let long = format!("root=/dev/a {}\n", "x".repeat(985));
    let ro = MOUNTS.replace("/boot/firmware rw", "/boot/firmware ro");
    let line = ("boot/firmware/cmdline.txt", LINE);
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("proc/self/mountinfo", MOUNTS), line, ("boot/firmware/autoboot.txt", "[all]\n")], "autoboot.txt"),
        (&[("proc/self/mountinfo", &ro), line], "read-only"),
        (&[("proc/self/mountinfo", MOUNTS), ("boot/firmware/cmdline.txt", "root=/dev/a\nquiet\n")], "2 lines"),
        (&[("proc/self/mountinfo", MOUNTS), ("boot/firmware/cmdline.txt", &long)], "1000"),
        (&[("boot/firmware/cmdline.txt", LINE)], "no cmdline.txt is mounted"),
    ];
    for (files, word) in cases {
        let mut all = files.to_vec();
        all.push(("proc/sys/vm/dirty_bytes", "0\n"));
        let dir = machine(&all);
        let mut findings = boot_findings();
        findings.push(finding("dirty-limits", false, vec![Fix::Setting("vm/dirty_bytes", 8 << 20)]));
        let (applied, _, _) = apply(&dir, &findings);
        assert_eq!(applied.done, ["dirty-limits"], "{word}");
        assert_eq!(applied.failed.len(), 3);
        assert!(applied.failed.iter().all(|(_, why)| why.contains(word)), "{:?}", applied.failed);
        let before = files.iter().find(|(name, _)| name.ends_with("cmdline.txt")).unwrap().1;
        assert_eq!(read(&dir, "boot/firmware/cmdline.txt"), before);
    }
}

#[test]
fn settings_are_set_now_and_kept_for_later_boots_beside_those_of_others() {
    let dir = machine(&[
        ("proc/sys/vm/dirty_bytes", "0"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "1"),
        ("proc/sys/vm/overcommit_memory", "2"),
    ]);
    let first = [
        finding("dirty-limits", false, vec![Fix::Setting("vm/dirty_bytes", 8 << 20)]),
        finding("conntrack", false, vec![Fix::Setting("net/netfilter/nf_conntrack_max", 13312)]),
    ];
    let (applied, told, _) = apply(&dir, &first);
    assert_eq!(applied.done, ["dirty-limits", "conntrack"]);
    assert_eq!(read(&dir, "proc/sys/vm/dirty_bytes"), "8388608");
    let text = "# Written by `edge-agent preflight --fix`.\nvm.dirty_bytes = 8388608\n-net.netfilter.nf_conntrack_max = 13312\n";
    assert_eq!(read(&dir, &SETTINGS[1..]), text);
    assert!(told.contains("/proc/sys/vm/dirty_bytes <- 8388608\n") && told.contains("+vm.dirty_bytes = 8388608\n"), "{told}");

    let backup = format!("{}.{STAMP}", &SETTINGS[1..]);
    assert!(!dir.path().join(&backup).exists(), "there was nothing to keep");

    let second = [
        finding("dirty-limits", false, vec![Fix::Setting("vm/dirty_bytes", 16 << 20)]),
        finding("conntrack", false, vec![Fix::Setting("net/netfilter/nf_conntrack_max", 65536)]),
    ];
    apply(&dir, &second);
    assert_eq!(read(&dir, &backup), text, "as it was before the run, not halfway");
    let text = "# Written by `edge-agent preflight --fix`.\nvm.dirty_bytes = 16777216\n-net.netfilter.nf_conntrack_max = 65536\n";
    assert_eq!(read(&dir, &SETTINGS[1..]), text);
    let missing = [finding("inotify", false, vec![Fix::Setting("fs/inotify/max_user_instances", 1024)])];
    let (applied, _, _) = apply(&dir, &missing);
    assert!(applied.failed[0].1.contains("/proc/sys/fs/inotify/max_user_instances"), "{applied:?}");
    assert_eq!(read(&dir, &SETTINGS[1..]), text, "what cannot be set is not promised");
}

#[test]
fn drop_ins_are_new_files_and_systemd_reads_them_once() {
    let dir = machine(&[("proc/7/oom_score_adj", "0\n")]);
    let unit = |name: &str| Fix::file(format!("/etc/systemd/system/{name}.d/60-edge-agent.conf"), "[Service]\nOOMScoreAdjust=-998\n");
    let findings = [
        finding(
            "daemons-oom",
            false,
            vec![unit("ssh.service"), Fix::OomScore { pid: 7, score: -998 }, unit("dbus.service"), Fix::OomScore { pid: 0, score: -998 }],
        ),
        finding(
            "journald",
            false,
            vec![
                Fix::file("/etc/systemd/journald.conf.d/60-edge-agent.conf", "[Journal]\n"),
                Fix::Run(&["systemctl", "restart", "systemd-journald.service"]),
            ],
        ),
    ];
    let (applied, _, commands) = apply(&dir, &findings);
    assert_eq!(applied.failed, []);
    assert_eq!(read(&dir, "proc/7/oom_score_adj"), "-998");
    assert_eq!(read(&dir, "etc/systemd/system/dbus.service.d/60-edge-agent.conf"), "[Service]\nOOMScoreAdjust=-998\n");
    assert_eq!(commands, ["systemctl daemon-reload", "systemctl restart systemd-journald.service"]);
    let (_, _, commands) = apply(&dir, &findings[..1]);
    assert_eq!(commands, Vec::<String>::new(), "the same text is not written again");
}

#[test]
fn a_file_of_somebody_else_is_kept_beside() {
    let config = "version = 2\ndisabled_plugins = [\"cri\"]\n";
    let dir = machine(&[("etc/containerd/config.toml", config)]);
    let restart = Fix::Run(&["systemctl", "restart", "containerd.service"]);
    let (applied, told, commands) = apply(&dir, &[finding("containerd", false, vec![Fix::EnableCri, restart.clone()])]);
    assert_eq!(applied.failed, []);
    assert_eq!(read(&dir, "etc/containerd/config.toml"), "version = 2\ndisabled_plugins = []\n");
    assert_eq!(read(&dir, &format!("etc/containerd/config.toml.{STAMP}")), config);
    assert!(told.contains("-disabled_plugins = [\"cri\"]\n+disabled_plugins = []\n"), "{told}");
    assert_eq!(commands, ["systemctl restart containerd.service"]);

    let (applied, _, commands) = apply(&dir, &[finding("containerd", false, vec![Fix::EnableCri, restart])]);
    assert_eq!((applied.failed.len(), commands.len()), (1, 0), "nothing is restarted for an edit that was not made");
    let (applied, _, _) = apply(&dir, &[finding("cgroup-driver", false, vec![Fix::SystemdCgroup])]);
    assert_eq!(applied.done, ["cgroup-driver"]);
    assert!(read(&dir, "etc/containerd/config.toml").contains("SystemdCgroup = true"));
}

#[test]
fn the_firmware_and_the_root_group_are_told_and_a_fix_reads_as_what_to_do() {
    let files = [
        ("proc/self/mountinfo", MOUNTS),
        ("boot/firmware/cmdline.txt", LINE),
        ("boot/firmware/config.txt", "arm_64bit=1\n"),
        ("sys/fs/cgroup/cgroup.subtree_control", ""),
    ];
    let dir = machine(&files);
    let findings = [
        finding("gpu-memory", true, vec![Fix::FirmwareSetting("gpu_mem", "16")]),
        finding("controllers-handed-down", false, vec![Fix::HandDown(vec!["io"])]),
        finding("overlayfs", false, vec![Fix::Module("overlay")]),
    ];
    let (applied, _, commands) = apply(&dir, &findings);
    assert_eq!((applied.reboot.as_slice(), commands.as_slice()), (["gpu-memory"].as_slice(), ["modprobe overlay".to_owned()].as_slice()));
    assert_eq!(read(&dir, "boot/firmware/config.txt"), "arm_64bit=1\n[all]\ngpu_mem=16\n");
    assert_eq!(read(&dir, "sys/fs/cgroup/cgroup.subtree_control"), "+io");
    apply(&dir, &findings[..1]);
    assert_eq!(read(&dir, "boot/firmware/config.txt"), "arm_64bit=1\n[all]\ngpu_mem=16\n");

    let cases = [
        (Fix::BootLineWith("psi=1"), "append \" psi=1\" to the line in cmdline.txt"),
        (Fix::Setting("vm/dirty_bytes", 1), "set vm.dirty_bytes = 1 in /etc/sysctl.d/91-edge-agent-preflight.conf"),
        (Fix::file("/etc/x", "[a]\nb=c\n"), "write /etc/x: [a] / b=c"),
        (Fix::Run(&["systemctl", "restart", "x"]), "systemctl restart x"),
    ];
    for (fix, words) in cases {
        assert_eq!(fix.to_string(), words);
    }
}
