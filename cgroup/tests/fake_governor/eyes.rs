//! Sensor, triggers and the reader of pods.

use std::path::Path;
use std::time::{Duration, Instant};

use cgroup::QosClass;
use cgroup::governor::{Inputs, PodFacts, PodReader, Scopes, Sensor, SensorOptions, Stall, Triggers};

use crate::cgroupfs::Kind;
use crate::machine::{Machine, pod, uid};

fn sensor(machine: &Machine, sys_root: &Path) -> Sensor {
    let scopes = Scopes::of(&machine.tree, "/edge/agent", "/edge/containerd");
    Sensor::new(
        machine.tree.hierarchy(),
        &scopes,
        &SensorOptions { sys_root: sys_root.to_owned(), state_dir: machine.run.path().to_owned() },
    )
}

fn psi(some: u64, full: u64) -> String {
    format!("some avg10=1.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}")
}

#[test]
fn a_reading_is_what_the_files_say() {
    let machine = Machine::new(Kind::V2);
    let proc_root = machine.fake.proc_root();
    let sys = tempfile::tempdir().unwrap();
    let write = |root: &Path, file: &str, text: &str| {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(&proc_root, "pressure/memory", &psi(5, 3));
    write(&proc_root, "pressure/cpu", "some avg10=1.00 avg60=0.00 avg300=0.00 total=77\n");
    write(&proc_root, "meminfo", "MemTotal: 1000 kB\nMemAvailable:  600 kB\nSwapTotal: 300 kB\nSwapFree: 100 kB\n");
    write(&proc_root, "vmstat", "nr_free_pages 1\npswpin 12\npswpout 9\nworkingset_refault_file 34\n");
    write(&proc_root, "loadavg", "0.20 0.18 0.12 1/812 11206\n");
    write(&proc_root, "sys/kernel/threads-max", "3317\n");
    write(&proc_root, "sys/net/netfilter/nf_conntrack_count", "50\n");
    write(&proc_root, "sys/net/netfilter/nf_conntrack_max", "200\n");
    write(sys.path(), "block/zram0/mm_stat", "  4096   74 12288        0    12288        0        0        0        0\n");
    for (group, file, value) in [
        ("/edge/agent", "memory.current", "1000"),
        ("/edge/agent", "memory.stat", "anon 1\nworkingset_refault_anon 3\nworkingset_refault_file 4\n"),
        ("/edge/agent", "memory.pressure", &psi(11, 0)),
        ("/edge/containerd", "memory.swap.current", "2000"),
        ("/edge/kubepods", "pids.current", "40"),
        ("/edge/kubepods", "pids.max", "50"),
        ("/edge/kubepods", "memory.events", "low 0\nhigh 9\nmax 0\noom 0\noom_kill 2"),
        ("/edge/kubepods/burstable", "memory.events.local", "low 0\nhigh 7\nmax 6\noom 0\noom_kill 0"),
        ("/edge/kubepods/besteffort", "io.pressure", &psi(21, 20)),
    ] {
        machine.fake.set("unified", group, file, value);
    }
    let mut sensor = sensor(&machine, sys.path());
    let inputs = Inputs { heartbeat_lag: Duration::from_millis(3), frequency: Some(0.5), undervoltage: true, ..Inputs::default() };
    let first = sensor.read(inputs);
    assert_eq!(first.node.memory, Some(Stall { some_us: 5, full_us: 3 }));
    assert_eq!(first.node.cpu, Some(Stall { some_us: 77, full_us: 0 }));
    assert_eq!(first.node.io, None);
    assert_eq!((first.agent.memory, first.agent.refaults), (1000, 7));
    assert_eq!(first.agent.stalls.memory, Some(Stall { some_us: 11, full_us: 0 }));
    assert_eq!(first.runtime.swap, 2000);
    assert_eq!((first.kubepods.tasks, first.kubepods.tasks_max, first.kubepods.oom_kills), (40, Some(50), 2));
    assert_eq!((first.burstable.high_events, first.burstable.max_events), (7, 6));
    assert_eq!(first.best_effort.stalls.io, Some(Stall { some_us: 21, full_us: 20 }));
    assert_eq!((first.available, first.swap_total, first.swap_used, first.zram), (600 << 10, 300 << 10, 200 << 10, 12_288));
    assert_eq!((first.swapped_in, first.file_refaults, first.tasks, first.tasks_max), (12, 34, 812, 3317));
    assert_eq!(first.conntrack, 0.25);
    assert!((0.0..=1.0).contains(&first.disk) && first.disk > 0.0, "{}", first.disk);
    assert_eq!((first.heartbeat_lag, first.frequency, first.undervoltage), (Duration::from_millis(3), Some(0.5), true));

    machine.fake.set("unified", "/edge/agent", "memory.current", "5000");
    let second = sensor.read(Inputs::default());
    assert!(second.at > first.at);
    assert_eq!((second.agent.memory, second.conntrack), (5000, 0.25));
}

#[test]
fn a_machine_without_any_of_it_is_read_too() {
    for kind in [Kind::Hybrid, Kind::V1] {
        let machine = Machine::new(kind);
        let sample = sensor(&machine, Path::new("/nonexistent")).read(Inputs::default());
        assert_eq!(sample.agent, Default::default(), "{kind:?}");
        assert_eq!(sample.node.memory, None);
        assert_eq!(PodReader::new(machine.tree.clone()).read(&facts()), []);
        let scopes = Scopes::of(&machine.tree, "/edge/agent", "/edge/containerd");
        let mut triggers = Triggers::new(&machine.tree, &scopes).unwrap();
        triggers.watch_pods([("aaaa-1", QosClass::Guaranteed)]);
        assert_eq!(triggers.armed(), 0);
        let wake = triggers.wait(Duration::from_millis(1));
        assert_eq!((wake.events.len(), wake.woken), (0, false));
    }
}

#[test]
fn another_thread_ends_a_wait() {
    let machine = Machine::new(Kind::V1);
    let scopes = Scopes::of(&machine.tree, "/edge/agent", "/edge/containerd");
    let mut triggers = Triggers::new(&machine.tree, &scopes).unwrap();
    let waker = triggers.waker();
    let other = std::thread::spawn(move || {
        waker.wake();
        waker.wake();
    });
    let start = Instant::now();
    assert!(triggers.wait(Duration::from_secs(20)).woken);
    assert!(start.elapsed() < Duration::from_secs(10));
    other.join().unwrap();
    triggers.wait(Duration::ZERO);
    assert!(!triggers.wait(Duration::from_millis(1)).woken, "several calls are one");
}

fn facts() -> Vec<PodFacts> {
    QosClass::ALL.map(|qos| PodFacts { uid: uid(qos).into(), qos, ..PodFacts::default() }).into()
}

#[test]
fn pods_are_read_and_those_without_a_group_left_out() {
    let machine = Machine::new(Kind::V2);
    let target = pod(QosClass::Burstable);
    for (file, value) in [
        ("memory.current", "9000"),
        ("memory.swap.current", "800"),
        ("memory.high", "10000"),
        (
            "memory.stat",
            "anon 1000\nfile 5000\nkernel 300\nshmem 200\nslab 99\nworkingset_refault_anon 1\nworkingset_refault_file 2\npgscan 4",
        ),
        ("memory.pressure", &psi(55, 5)),
        ("io.stat", "179:0 rbytes=5 wbytes=70 rios=1 wios=1 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=7"),
        ("cpu.stat", "usage_usec 123\nuser_usec 100"),
        ("pids.current", "6"),
        ("pids.events", "max 8"),
        ("cgroup.freeze", "1"),
    ] {
        machine.set(&target, file, value);
    }
    let patient = Duration::from_secs(20);
    let mut reader = PodReader::new(machine.tree.clone()).with_budget(patient);
    let mut facts = facts();
    facts.push(PodFacts { uid: "dddd-4".into(), ..PodFacts::default() });
    let found = reader.read(&facts);
    assert_eq!(found.iter().map(|pod| pod.facts.uid.as_str()).collect::<Vec<_>>(), ["aaaa-1", "bbbb-2", "cccc-3"]);
    let used = found[1].used;
    assert_eq!((used.memory, used.relief, used.swap, used.high), (9000, 1500, 800, Some(10_000)));
    assert_eq!((used.memory_stall_us, used.thrash, used.written), (55, 7, 77));
    assert_eq!((used.cpu_us, used.tasks, used.fork_failures, used.frozen), (123, 6, 8, true));
    assert_eq!((found[0].used.high, found[0].used.frozen), (None, false));

    let mut hurried = PodReader::new(machine.tree.clone()).with_budget(Duration::ZERO);
    let mut newest = Duration::ZERO;
    let mut in_turn = Vec::new();
    for _ in 0..6 {
        let found = hurried.read(&facts);
        in_turn.extend(found.iter().filter(|pod| pod.used.read > newest).map(|pod| pod.facts.uid.clone()));
        newest = found.iter().map(|pod| pod.used.read).max().unwrap();
    }
    assert_eq!(in_turn, ["aaaa-1", "bbbb-2", "cccc-3", "aaaa-1", "bbbb-2"], "one at a time, the one without a group too");
    assert_eq!(hurried.read(&facts).len(), 3, "the others as they were");

    // Removed and made again: another directory of that name.
    machine.set(&target, "memory.stat", "anon 1\nslab 7\nkernel_stack 2\nshmem 0");
    let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(reader.read(&facts).len(), 2);
    machine.fake.group(&machine.group(&target));
    machine.set(&target, "memory.current", "17");
    machine.set(&target, "memory.stat", "anon 1\nslab 7\nkernel_stack 2\nshmem 0");
    let found = reader.read(&facts);
    assert_eq!((found[1].used.memory, found[1].used.relief), (17, 10), "and the kernel's memory as older kernels tell it");
}
