//! The pod tree on a fake cgroup file system, in each layout.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../tests/fakes/cgroupfs.rs"]
#[allow(dead_code, unreachable_pub)]
mod cgroupfs;

use cgroup::{Board, Controller, Driver, Error, Hierarchy, Layout, NodeAllocatable, PodCgroup, PodTree, QosClass, QosDemand, stat};
use cgroupfs::{FakeCgroupfs, Kind};

const MIB: u64 = 1 << 20;

fn detect(fake: &FakeCgroupfs) -> Hierarchy {
    Hierarchy::detect_in(&fake.proc_root()).unwrap()
}

fn allocatable() -> NodeAllocatable {
    NodeAllocatable { memory_limit: Some(700 * MIB), brake: 56 * MIB, swap_limit: Some(0), cpu_millis: 2000, pids_limit: Some(5000) }
}

fn with_classes(kind: Kind) -> FakeCgroupfs {
    let fake = FakeCgroupfs::new(kind);
    for group in ["/edge", "/edge/kubepods", "/edge/kubepods/burstable", "/edge/kubepods/besteffort"] {
        fake.group(group);
    }
    fake
}

#[test]
fn each_layout_is_recognised() {
    for (kind, layout, memory_on_v2) in [(Kind::V2, Layout::V2, true), (Kind::Hybrid, Layout::Hybrid, false), (Kind::V1, Layout::V1, false)]
    {
        let hierarchy = detect(&FakeCgroupfs::new(kind));
        assert_eq!(hierarchy.layout(), layout);
        assert_eq!(hierarchy.is_v2(Controller::Memory), memory_on_v2, "{kind:?}");
        assert!(hierarchy.has(Controller::Freezer), "{kind:?}");
    }
}

#[test]
fn advice_names_the_file_to_edit() {
    let pi = Board { raspberry_pi: true, psi: true };
    let fake = FakeCgroupfs::new(Kind::V2);
    assert_eq!(detect(&fake).advice(pi), Vec::<String>::new());
    fake.set("unified", "/", "cgroup.controllers", "cpuset cpu io pids");
    let advice = detect(&fake).advice(pi);
    assert_eq!(advice.len(), 1);
    assert!(advice[0].contains("cgroup_enable=memory") && advice[0].contains("/boot/firmware/cmdline.txt"));
    let elsewhere = detect(&fake).advice(Board { raspberry_pi: false, psi: false });
    assert!(elsewhere[0].contains("CONFIG_MEMCG=y"), "{elsewhere:?}");
    assert!(elsewhere[1].contains("psi=1"), "{elsewhere:?}");
    let hybrid = detect(&FakeCgroupfs::new(Kind::Hybrid)).advice(pi);
    assert!(hybrid[0].starts_with("cgroup v1 in use"), "{hybrid:?}");
}

#[test]
fn the_reservation_is_in_the_files_on_v2() {
    let fake = with_classes(Kind::V2);
    let tree = PodTree::new(detect(&fake), "/edge", Driver::Cgroupfs).unwrap();
    let enforced = tree.ensure_root(&allocatable()).unwrap();
    assert_eq!(enforced.memory_limit, Some(700 * MIB));
    assert_eq!(enforced.pids_limit, Some(5000));
    assert_eq!(enforced.unavailable, Vec::<&str>::new());
    for (group, file, wanted) in [
        ("/edge/kubepods", "memory.max", "734003200"),
        ("/edge/kubepods", "memory.swap.max", "0"),
        ("/edge/kubepods", "cpu.weight", "100"),
        ("/edge/kubepods", "pids.max", "5000"),
        ("/edge/kubepods/burstable", "memory.high", "675282944"),
        ("/edge/kubepods/besteffort", "memory.high", "675282944"),
        ("/edge/kubepods/besteffort", "cpu.weight", "1"),
    ] {
        assert_eq!(fake.get("unified", group, file), wanted, "{group} {file}");
    }
    // An ordinary file keeps only the last of the controllers handed down.
    for group in ["/", "/edge", "/edge/kubepods"] {
        let found = fake.get("unified", group, "cgroup.subtree_control");
        assert!(found.starts_with('+'), "{group}: {found:?}");
    }
    let demand = QosDemand { guaranteed_memory: 100 * MIB, burstable_memory: 200 * MIB, burstable_cpu_millis: 1000 };
    tree.refresh_qos(&allocatable(), &demand).unwrap();
    assert_eq!(fake.get("unified", "/edge/kubepods/burstable", "cpu.weight"), "39");
    assert_eq!(fake.get("unified", "/edge/kubepods/besteffort", "memory.high"), (344 * MIB).to_string());
    // A restarted agent does not know yet which pods run, and takes nothing from them.
    tree.ensure_root(&allocatable()).unwrap();
    let shares = fake.get("unified", "/edge/kubepods/burstable", "cpu.weight");
    assert_eq!(shares, "39");
}

#[test]
fn the_reservation_is_in_the_files_on_v1_and_hybrid() {
    for kind in [Kind::V1, Kind::Hybrid] {
        let fake = with_classes(kind);
        let tree = PodTree::new(detect(&fake), "/edge", Driver::Cgroupfs).unwrap();
        let enforced = tree.ensure_root(&allocatable()).unwrap();
        assert_eq!(enforced.memory_limit, Some(700 * MIB));
        assert_eq!(enforced.cpu, Some(2048));
        for (hierarchy, group, file, wanted) in [
            ("memory", "/edge/kubepods", "memory.limit_in_bytes", "734003200"),
            ("cpu", "/edge/kubepods", "cpu.shares", "2048"),
            ("pids", "/edge/kubepods", "pids.max", "5000"),
            ("cpu", "/edge/kubepods/besteffort", "cpu.shares", "2"),
            ("cpuset", "/edge/kubepods/burstable", "cpuset.cpus", "0-3"),
            ("cpuset", "/edge/kubepods/burstable", "cpuset.mems", "0"),
        ] {
            assert_eq!(fake.get(hierarchy, group, file), wanted, "{kind:?} {group} {file}");
        }
    }
}

#[test]
fn a_missing_controller_is_reported_and_the_rest_is_enforced() {
    let fake = with_classes(Kind::V2);
    fake.set("unified", "/", "cgroup.controllers", "cpuset cpu io pids");
    let tree = PodTree::new(detect(&fake), "/edge", Driver::Cgroupfs).unwrap();
    let enforced = tree.ensure_root(&allocatable()).unwrap();
    assert_eq!(enforced.unavailable, ["memory"]);
    assert_eq!((enforced.memory_limit, enforced.pids_limit), (None, Some(5000)));
    assert_eq!(fake.get("unified", "/edge/kubepods", "memory.max"), "max");
}

#[test]
fn a_pod_gets_its_limits_and_its_name_for_cri() {
    let fake = with_classes(Kind::V2);
    fake.group("/edge/kubepods/burstable/podabc-1");
    let tree = PodTree::new(detect(&fake), "/edge", Driver::Cgroupfs).unwrap();
    let pod = PodCgroup {
        uid: "abc-1",
        qos: QosClass::Burstable,
        cpu_shares: 102,
        cpu_quota: Some(20_000),
        memory_limit: Some(64 * MIB),
        pids: Some(500),
    };
    let parent = tree.ensure_pod(&pod).unwrap();
    assert_eq!(parent, "/edge/kubepods/burstable/podabc-1");
    for (file, wanted) in [("memory.max", "67108864"), ("cpu.weight", "4"), ("cpu.max", "20000 100000"), ("pids.max", "500")] {
        assert_eq!(fake.get("unified", &parent, file), wanted, "{file}");
    }
    let unlimited = PodCgroup { cpu_quota: None, memory_limit: None, pids: None, ..pod };
    tree.ensure_pod(&unlimited).unwrap();
    assert_eq!(fake.get("unified", &parent, "cpu.max"), "max 100000");
    assert_eq!(fake.get("unified", &parent, "memory.max"), "max");

    fake.group("/edge/kubepods/burstable/podabc-1/c0ffee");
    let pods: Vec<_> = tree.list_pods().unwrap().into_iter().map(|pod| (pod.uid, pod.qos)).collect();
    assert_eq!(pods, [("abc-1".to_owned(), QosClass::Burstable)]);
    assert_eq!(tree.list_containers("abc-1", QosClass::Burstable).unwrap(), ["c0ffee"]);
}

#[test]
fn statistics_are_what_the_kubelet_would_report() {
    let fake = with_classes(Kind::V2);
    let group = "/edge/kubepods";
    fake.set("unified", group, "memory.current", "1000000")
        .set("unified", group, "memory.stat", "anon 300000\npgfault 12\npgmajfault 3\ninactive_file 400000")
        .set("unified", group, "memory.events", "low 0\noom 2\noom_kill 2")
        .set("unified", group, "cpu.stat", "usage_usec 1500\nthrottled_usec 7")
        .set("unified", group, "pids.current", "9");
    let stats = stat::group(&detect(&fake), group).unwrap();
    let memory = stats.memory.unwrap();
    assert_eq!((memory.usage, memory.working_set, memory.rss), (1_000_000, 600_000, 300_000));
    assert_eq!(stats.cpu.unwrap().usage_ns, 1_500_000);
    assert_eq!((stats.tasks, stats.oom_kills), (Some(9), Some(2)));
    assert_eq!(stats.pressure.memory.unwrap().some.total_us, 0);
    assert_eq!(stats.pressure.io, None);

    let fake = with_classes(Kind::Hybrid);
    fake.set("memory", group, "memory.usage_in_bytes", "1000000")
        .set("memory", group, "memory.stat", "cache 1\ntotal_rss 300000\ntotal_pgfault 12\ntotal_pgmajfault 3\ntotal_inactive_file 2000000")
        .set("memory", group, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4")
        .set("cpuacct", group, "cpuacct.usage", "123456789");
    let stats = stat::group(&detect(&fake), group).unwrap();
    assert_eq!(stats.memory.unwrap().working_set, 0, "never below zero");
    assert_eq!(stats.cpu.unwrap().usage_ns, 123_456_789);
    assert_eq!(stats.oom_kills, Some(4));
}

#[test]
fn the_node_itself_is_read_where_the_layout_has_it() {
    let fake = FakeCgroupfs::new(Kind::V2);
    let memory = stat::node(&detect(&fake)).unwrap().memory.unwrap();
    assert_eq!((memory.usage, memory.working_set), (512 * MIB, 512 * MIB));
    let fake = FakeCgroupfs::new(Kind::V1);
    fake.set("memory", "/", "memory.usage_in_bytes", "5000");
    assert_eq!(stat::node(&detect(&fake)).unwrap().memory.unwrap().usage, 5000);
}

#[test]
fn broken_files_are_errors_with_path_and_text() {
    let fake = with_classes(Kind::V2);
    fake.set("unified", "/edge/kubepods", "memory.current", "lots");
    let error = stat::group(&detect(&fake), "/edge/kubepods").unwrap_err();
    assert!(matches!(error, Error::Parse { .. }), "{error:?}");
    assert!(error.to_string().contains("memory.current") && error.to_string().contains("lots"), "{error}");
    let gone = stat::group(&detect(&fake), "/edge/kubepods/podx").unwrap_err();
    assert!(gone.is_gone(), "{gone:?}");
}

#[test]
fn a_machine_without_cgroups_is_an_error_with_a_remedy() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("self")).unwrap();
    std::fs::write(root.path().join("self/mountinfo"), "22 1 0:20 / / rw - ext4 /dev/sda rw\n").unwrap();
    let error = Hierarchy::detect_in(root.path()).unwrap_err();
    assert!(matches!(error, Error::NotMounted { .. }), "{error:?}");
}
