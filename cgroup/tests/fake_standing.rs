//! Values that are to stand, on a fake cgroup file system: found changed, set again, lent and given back.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../tests/fakes/cgroupfs.rs"]
#[allow(dead_code, unreachable_pub)]
mod cgroupfs;

use cgroup::{Applied, Disk, Driver, Held, Hierarchy, IoMax, Limits, NodeAllocatable, PodTree, QosDemand, Rates, calibration};
use cgroupfs::{FakeCgroupfs, Kind};

const MIB: u64 = 1 << 20;

fn tree(kind: Kind, groups: &[&str]) -> (FakeCgroupfs, PodTree) {
    let fake = FakeCgroupfs::new(kind);
    for group in ["/edge", "/edge/kubepods", "/edge/kubepods/burstable", "/edge/kubepods/besteffort"].iter().chain(groups) {
        fake.group(group);
    }
    let tree = PodTree::new(Hierarchy::detect_in(&fake.proc_root()).unwrap(), "/edge", Driver::Cgroupfs).unwrap();
    let allocatable =
        NodeAllocatable { memory_limit: Some(700 * MIB), brake: 56 * MIB, swap_limit: Some(0), cpu_millis: 2000, pids_limit: Some(5000) };
    tree.ensure_root(&allocatable).unwrap();
    tree.refresh_qos(&allocatable, &QosDemand::default()).unwrap();
    (fake, tree)
}

fn card() -> Disk {
    Disk { major: 179, minor: 0, name: "mmcblk0".to_owned() }
}

fn own(group: &str, min: u64) -> Held {
    let limits = Limits { memory_min: Some(min), memory_low: Some(min), memory_max: Some(Some(4 * min).into()), ..Limits::default() };
    Held { scope: "agent", part: "limits", group: group.to_owned(), limits, unit: false, gentle: false }
}

fn value(applied: &[Applied], scope: &str, kind: &str) -> Option<u64> {
    applied.iter().find(|value| value.scope == scope && value.kind == kind).map(|value| value.value)
}

#[test]
fn what_others_change_is_set_again_and_named() {
    for (kind, hierarchy, file) in [
        (Kind::V2, "unified", "memory.max"),
        (Kind::Hybrid, "memory", "memory.limit_in_bytes"),
        (Kind::V1, "memory", "memory.limit_in_bytes"),
    ] {
        let (fake, tree) = tree(kind, &[]);
        let standing = tree.standing();
        assert_eq!(standing.verify(), [], "{kind:?}");
        assert_eq!(value(&standing.applied(), "kubepods", "max"), Some(700 * MIB));
        fake.set(hierarchy, "/edge/kubepods", file, "9223372036854771712");
        let drift = standing.verify();
        assert_eq!(drift.len(), 1, "{drift:?}");
        assert_eq!((drift[0].scope, drift[0].file, drift[0].failed.as_deref()), ("kubepods", file, None));
        assert_eq!(drift[0].found, "9223372036854771712");
        assert_eq!(fake.get(hierarchy, "/edge/kubepods", file), (700 * MIB).to_string());
        assert_eq!(standing.verify(), []);
        assert_eq!(standing.unheld(), Vec::<String>::new());
    }
}

#[test]
fn a_file_that_is_lent_is_left_alone_until_it_comes_back() {
    let (fake, tree) = tree(Kind::V2, &[]);
    let standing = tree.standing();
    let high = (644 * MIB).to_string();
    assert_eq!(standing.lend("/edge/kubepods/besteffort", "memory.high"), std::slice::from_ref(&high));
    fake.set("unified", "/edge/kubepods/besteffort", "memory.high", "1000000");
    assert_eq!(standing.verify(), []);
    let lent: Vec<_> =
        standing.applied().into_iter().filter(|value| value.lent).map(|value| (value.kind.into_owned(), value.value)).collect();
    assert_eq!(lent, [("high".to_owned(), 1_000_000)]);
    standing.give_back("/edge/kubepods/besteffort", "memory.high").unwrap();
    assert_eq!(fake.get("unified", "/edge/kubepods/besteffort", "memory.high"), high);
    assert_eq!(standing.original("/edge/kubepods/besteffort", "memory.high"), [high]);
    assert_eq!(standing.lend("/edge", "memory.high"), Vec::<String>::new(), "nothing stands there");
}

#[test]
fn a_promise_is_covered_by_the_sum_on_every_ancestor() {
    let (fake, tree) = tree(Kind::V2, &["/edge/edge-agent", "/edge/containerd"]);
    let standing = tree.standing();
    standing.hold(own("/edge/edge-agent", 24 * MIB)).unwrap();
    standing.hold(own("/edge/containerd", 64 * MIB)).unwrap();
    assert_eq!(fake.get("unified", "/edge", "memory.min"), (88 * MIB).to_string());
    assert_eq!(standing.verify(), []);
    fake.set("unified", "/edge", "memory.min", "0");
    assert!(standing.unheld().iter().any(|line| line.contains("memory.min of /edge is 0")), "{:?}", standing.unheld());
    let drift = standing.verify();
    assert_eq!((drift.len(), drift[0].scope, drift[0].group.as_str()), (1, "ancestor", "/edge"));
    assert_eq!(fake.get("unified", "/edge", "memory.min"), (88 * MIB).to_string());
    assert_eq!(standing.unheld(), Vec::<String>::new());
    // An operator's larger promise is not taken back.
    fake.set("unified", "/edge", "memory.min", &(500 * MIB).to_string());
    assert_eq!(standing.verify(), []);
}

#[test]
fn a_group_made_later_gets_its_values_and_that_is_no_drift() {
    let (fake, tree) = tree(Kind::V2, &[]);
    let standing = tree.standing();
    standing.hold(own("/edge/containerd", 64 * MIB)).unwrap();
    assert_eq!(standing.verify(), []);
    fake.group("/edge/containerd");
    assert_eq!(standing.verify(), []);
    assert_eq!(fake.get("unified", "/edge/containerd", "memory.max"), (256 * MIB).to_string());
    assert_eq!(fake.get("unified", "/edge/containerd", "memory.low"), (64 * MIB).to_string());
    std::fs::remove_dir_all(fake.mount("unified").join("edge/containerd")).unwrap();
    assert_eq!(standing.verify(), []);
    assert_eq!(standing.unheld(), Vec::<String>::new());
}

#[test]
fn a_limit_waits_until_it_kills_nobody() {
    let (fake, tree) = tree(Kind::V2, &["/user.slice"]);
    fake.set("unified", "/user.slice", "memory.current", &(400 * MIB).to_string());
    let limits = Limits { memory_max: Some(Some(100 * MIB).into()), cpu_weight: Some(50), ..Limits::default() };
    let held = Held { scope: "user", part: "limits", group: "/user.slice".to_owned(), limits, unit: false, gentle: true };
    tree.standing().hold(held).unwrap();
    assert_eq!(fake.get("unified", "/user.slice", "memory.max"), "max");
    assert_eq!(fake.get("unified", "/user.slice", "cpu.weight"), "50");
    assert_eq!(tree.standing().verify(), []);
    assert!(tree.standing().unheld()[0].contains("memory.max of /user.slice is max"), "{:?}", tree.standing().unheld());
    fake.set("unified", "/user.slice", "memory.current", &(50 * MIB).to_string());
    let drift = tree.standing().verify();
    assert_eq!((drift.len(), fake.get("unified", "/user.slice", "memory.max")), (1, (100 * MIB).to_string()));
}

#[test]
fn pods_are_limited_on_their_disk_and_pulls_while_they_run() {
    let (fake, tree) = tree(Kind::V2, &["/edge/containerd"]);
    let disks = vec![IoMax::of_pods(card(), &Rates::default())];
    assert!(tree.limit_io(disks.clone()).unwrap());
    assert_eq!(fake.get("unified", "/edge/kubepods", "io.max"), "179:0 rbps=20971520 wbps=5242880 riops=1000 wiops=200");
    assert_eq!(value(&tree.standing().applied(), "kubepods", "io_write_bps"), Some(5 * MIB));

    let standing = tree.standing();
    // An agent killed in the middle of a pull left its limit.
    fake.set("unified", "/edge/containerd", "io.max", "179:0 rbps=max wbps=5242880 riops=max wiops=max");
    standing.limit_pulls("/edge/containerd", false, disks).unwrap();
    let pulls = || fake.get("unified", "/edge/containerd", "io.max");
    assert_eq!(pulls(), "179:0 rbps=max wbps=max riops=max wiops=max");
    assert!(standing.set_pulling(true));
    standing.sync_pulls().unwrap();
    assert_eq!(pulls(), "179:0 rbps=max wbps=5242880 riops=max wiops=max");
    assert!(!standing.set_pulling(true) && !standing.set_pulling(false), "a second pull changes nothing");
    assert!(standing.set_pulling(false));
    standing.sync_pulls().unwrap();
    assert_eq!(pulls(), "179:0 rbps=max wbps=max riops=max wiops=max");
}

#[test]
fn without_the_controller_disks_are_not_limited_and_that_is_said() {
    let (_fake, tree) = tree(Kind::Hybrid, &[]);
    assert!(!tree.limit_io(vec![IoMax::of_pods(card(), &Rates::default())]).unwrap());
    assert_eq!(tree.standing().verify(), []);
}

#[test]
fn a_running_machine_is_measured_without_its_pods() {
    let (fake, tree) = tree(Kind::V2, &["/edge/containerd"]);
    let proc_root = fake.proc_root();
    let meminfo = std::fs::read_to_string(proc_root.join("meminfo")).unwrap();
    std::fs::write(proc_root.join("meminfo"), meminfo.replace("Buffers:", "MemAvailable: 524288 kB\nBuffers:")).unwrap();
    let stat =
        |inactive: u64, active: u64| format!("anon 0\ninactive_file {}\nactive_file {}\nslab_reclaimable 0", inactive * MIB, active * MIB);
    fake.set("unified", "/edge/kubepods", "memory.current", &(300 * MIB).to_string());
    fake.set("unified", "/edge/kubepods", "memory.stat", &stat(40, 10));
    fake.set("unified", "/edge/containerd", "memory.current", &(90 * MIB).to_string());
    fake.set("unified", "/edge/containerd", "memory.stat", &stat(20, 6));
    let groups = calibration::Groups { kubepods: "/edge/kubepods", containerd: Some("/edge/containerd"), agent: None, pods: 3 };
    let measured = calibration::measure(tree.hierarchy(), &groups).unwrap();
    // 512 used, of which 250 by pods and 64 by containerd; that one's working set is 70, 12 of it three shims.
    assert_eq!((measured.system, measured.containerd), (Some(198 * MIB), Some(58 * MIB)));
    let before = calibration::Groups { kubepods: "/edge/none", containerd: Some("/edge/none"), agent: None, pods: 0 };
    let measured = calibration::measure(tree.hierarchy(), &before).unwrap();
    assert_eq!((measured.system, measured.containerd), (Some(512 * MIB), None));
}
