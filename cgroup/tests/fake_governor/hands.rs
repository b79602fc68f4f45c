//! The actuator, its ledger and what a start after a crash makes of both.

use std::time::{Duration, Instant};

use cgroup::QosClass;
use cgroup::governor::{Action, Actuator, ActuatorOptions, Done, Features, IoLimits, Knob, Reasserted, Setting, Target, recover};
use proptest::prelude::*;

use crate::cgroupfs::Kind;
use crate::machine::{DISK, Machine, pod, targets};

const MIB: u64 = 1 << 20;

fn set(target: &Target, setting: Setting) -> Action {
    Action::Set { target: target.clone(), setting }
}

fn restore(target: &Target, knob: Knob) -> Action {
    Action::Restore { target: target.clone(), knob }
}

/// The kernel's attribute is dropped from every group, as if it had refused it.
fn drop_attributes(machine: &Machine) {
    for target in targets() {
        let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
        for knob in Knob::ALL {
            let _ = rustix::fs::removexattr(dir.path(), format!("trusted.edge_agent.orig.{}", knob.file()));
        }
    }
}

fn attributes_work(machine: &Machine) -> bool {
    let dir = machine.tree.hierarchy().unified_dir("/edge").unwrap();
    let works = rustix::fs::setxattr(dir.path(), "trusted.edge_agent.test", b"1", rustix::fs::XattrFlags::empty()).is_ok();
    if !works {
        eprintln!("\nSKIP cgroup::attributes: this user or file system has no trusted extended attributes; the ledger stands in");
    }
    works
}

#[test]
fn every_setting_is_written_kept_and_restored() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let limits = IoLimits { rbps: 1000, wbps: 2000, riops: 30, wiops: 40 };
    let target = pod(QosClass::Burstable);
    machine.set(&target, "cpu.weight", "39");
    let before = machine.knobs();
    for (setting, found) in [
        (Setting::MemoryHigh(256 * MIB), "268435456"),
        (Setting::MemoryHigh(64 * MIB), "67108864"),
        (Setting::SwapMax(0), "0"),
        (Setting::CpuMax(20_000), "20000 100000"),
        (Setting::CpuIdle, "1"),
        (Setting::IoMax(limits), "179:0 rbps=1000 wbps=2000 riops=30 wiops=40"),
        (Setting::Freeze, "1"),
    ] {
        let done = hands.apply(&set(&target, setting)).unwrap();
        assert!(matches!(&done, Done::Set { .. }), "{setting:?}: {done:?}");
        // A limit below what is in use is written by another thread.
        until("the setting holds", || machine.get(&target, setting.knob().file()) == found);
    }
    assert_eq!(hands.held().len(), 6);
    let listed = std::fs::read_to_string(machine.ledger()).unwrap();
    assert!(listed.contains("cgroup.freeze") || listed.contains("\"Freeze\""), "{listed}");
    // As idling does in the kernel.
    machine.set(&target, "cpu.weight", "100");
    assert_eq!(hands.reassert(), Reasserted::default());
    for knob in Knob::ALL {
        assert!(matches!(hands.apply(&restore(&target, knob)).unwrap(), Done::Restored { .. }));
        assert_eq!(hands.apply(&restore(&target, knob)).unwrap(), Done::Nothing);
    }
    assert_eq!(machine.knobs(), before);
    assert_eq!(machine.get(&target, "cpu.weight"), "39", "the weight that idling loses");
    assert_eq!(hands.held(), []);
    assert!(!machine.ledger().exists());
}

#[test]
fn what_somebody_else_writes_meanwhile_comes_back_later_and_ours_holds_until_then() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let target = Target::BestEffort;
    hands.apply(&set(&target, Setting::MemoryHigh(100 * MIB))).unwrap();
    hands.apply(&set(&target, Setting::CpuMax(25_000))).unwrap();
    hands.apply(&set(&pod(QosClass::BestEffort), Setting::Freeze)).unwrap();
    machine.set(&target, "memory.high", "734003200");
    machine.set(&pod(QosClass::BestEffort), "cgroup.freeze", "0");
    assert_eq!(hands.reassert(), Reasserted { overwritten: 2, ..Reasserted::default() });
    assert_eq!(hands.reassert(), Reasserted::default());
    assert_eq!(machine.get(&target, "memory.high"), "104857600");
    assert_eq!(machine.get(&pod(QosClass::BestEffort), "cgroup.freeze"), "1");
    // Between two looks too, by the next step of the ladder and by its end.
    machine.set(&target, "memory.high", "367001600");
    hands.apply(&set(&target, Setting::MemoryHigh(110 * MIB))).unwrap();
    machine.set(&target, "cpu.max", "50000 100000");
    hands.apply(&restore(&target, Knob::CpuMax)).unwrap();
    for done in hands.release_all() {
        done.unwrap();
    }
    assert_eq!(machine.get(&target, "memory.high"), "367001600");
    assert_eq!(machine.get(&target, "cpu.max"), "50000 100000");
    assert_eq!(machine.get(&pod(QosClass::BestEffort), "cgroup.freeze"), "0");
}

#[test]
fn a_release_from_outside_is_noticed() {
    let machine = Machine::new(Kind::V2);
    for with_attributes in [attributes_work(&machine), false] {
        let mut hands = machine.actuator();
        let target = pod(QosClass::BestEffort);
        hands.apply(&set(&target, Setting::Freeze)).unwrap();
        hands.apply(&set(&target, Setting::SwapMax(MIB))).unwrap();
        let undone = recover(&machine.tree, machine.run.path());
        assert_eq!((undone.undone.len(), undone.failed.len()), (2, 0), "{undone:?}");
        assert_eq!(undone.undone[0].knob, Knob::Freeze, "what holds tasks still comes first");
        assert_eq!(machine.get(&target, "cgroup.freeze"), "0");
        if with_attributes {
            // A new entry brings the file back; the old ones stay released.
            hands.apply(&set(&target, Setting::CpuIdle)).unwrap();
            assert_eq!(hands.reassert(), Reasserted { released: 2, ..Reasserted::default() });
            assert_eq!(hands.held().len(), 1);
            hands.apply(&restore(&target, Knob::CpuIdle)).unwrap();
        } else {
            assert_eq!(hands.reassert().released, 2);
        }
        assert_eq!(machine.get(&target, "memory.swap.max"), "max");
        assert_eq!(recover(&machine.tree, machine.run.path()).undone, []);
    }
}

#[test]
fn the_ledger_alone_is_enough_where_it_is_still_true() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let (first, second) = (pod(QosClass::Burstable), pod(QosClass::BestEffort));
    hands.apply(&set(&first, Setting::CpuMax(10_000))).unwrap();
    hands.apply(&set(&second, Setting::CpuMax(10_000))).unwrap();
    drop(hands);
    drop_attributes(&machine);
    machine.set(&second, "cpu.max", "90000 100000");
    let found = recover(&machine.tree, machine.run.path());
    assert_eq!(found.undone.len(), 1, "{found:?}");
    assert_eq!(machine.get(&first, "cpu.max"), "max 100000");
    assert_eq!(machine.get(&second, "cpu.max"), "90000 100000", "somebody else's since");
    assert!(!machine.ledger().exists());
}

#[test]
fn a_group_that_ends_takes_its_entries_along() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let target = pod(QosClass::BestEffort);
    hands.apply(&set(&target, Setting::Freeze)).unwrap();
    hands.apply(&set(&target, Setting::SwapMax(0))).unwrap();
    hands.apply(&set(&Target::BestEffort, Setting::CpuIdle)).unwrap();
    let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    for action in [
        restore(&target, Knob::Freeze),
        set(&target, Setting::CpuMax(1)),
        Action::Kill { target: target.clone() },
        Action::Reclaim { target: target.clone(), bytes: MIB, files_only: true },
    ] {
        assert_eq!(hands.apply(&action).unwrap(), Done::Gone, "{action:?}");
    }
    assert_eq!(hands.held().len(), 1);
    assert_eq!(recover(&machine.tree, machine.run.path()).undone.len(), 1);
}

#[test]
fn a_killed_pod_is_thawed_and_one_that_is_evicted_is_not_ours() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let target = pod(QosClass::BestEffort);
    hands.apply(&set(&target, Setting::Freeze)).unwrap();
    assert_eq!(hands.apply(&Action::Kill { target: target.clone() }).unwrap(), Done::Killed);
    assert_eq!(machine.get(&target, "cgroup.kill"), "1");
    assert_eq!(machine.get(&target, "cgroup.freeze"), "0");
    let evict = Action::Evict { target: target.clone(), grace: Duration::ZERO };
    assert_eq!(hands.apply(&evict).unwrap(), Done::LeftToCaller);
    // Without cgroup.kill the (empty) group is held still, signalled and let go.
    let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
    std::fs::remove_file(dir.path().join("cgroup.kill")).unwrap();
    assert_eq!(hands.apply(&Action::Kill { target: target.clone() }).unwrap(), Done::Killed);
    assert_eq!(machine.get(&target, "cgroup.freeze"), "0");
}

#[test]
fn reclaim_asks_in_pieces_and_for_files_only_where_the_kernel_can() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let target = pod(QosClass::BestEffort);
    assert_eq!(hands.apply(&Action::Reclaim { target: target.clone(), bytes: 5 * MIB, files_only: true }).unwrap(), Done::Begun);
    until("the last piece asked for", || machine.get(&target, "memory.reclaim") == "1048576 swappiness=0");
    assert_eq!(hands.apply(&Action::Reclaim { target: target.clone(), bytes: 3 * MIB, files_only: false }).unwrap(), Done::Begun);
    until("asked for anything", || machine.get(&target, "memory.reclaim").starts_with("3145728"));
    let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
    std::fs::remove_file(dir.path().join("memory.reclaim")).unwrap();
    let error = hands.apply(&Action::Reclaim { target, bytes: MIB, files_only: true }).unwrap_err();
    assert!(error.to_string().contains("memory.reclaim"), "{error}");
}

#[test]
fn what_stands_is_lent_for_as_long_as_it_is_held() {
    let machine = Machine::new(Kind::V2);
    let allocatable =
        cgroup::NodeAllocatable { memory_limit: Some(700 * MIB), brake: 56 * MIB, swap_limit: Some(0), cpu_millis: 2000, pids_limit: None };
    machine.tree.ensure_root(&allocatable).unwrap();
    let mut hands = machine.actuator();
    let target = Target::BestEffort;
    let standing = [machine.get(&target, "memory.high"), machine.get(&target, "cpu.weight")];
    hands.apply(&set(&target, Setting::MemoryHigh(100 * MIB))).unwrap();
    hands.apply(&set(&target, Setting::CpuIdle)).unwrap();
    machine.set(&target, "cpu.weight", "0");
    // Nobody sees drift in it, and pods that come and go do not take it away.
    assert_eq!(machine.tree.standing().verify(), []);
    machine.tree.refresh_qos(&allocatable, &cgroup::QosDemand { burstable_memory: 200 * MIB, ..Default::default() }).unwrap();
    assert_eq!(machine.get(&target, "memory.high"), (100 * MIB).to_string());
    assert_eq!(machine.get(&target, "cpu.weight"), "0");
    for done in hands.release_all() {
        done.unwrap();
    }
    assert_eq!([machine.get(&target, "memory.high"), machine.get(&target, "cpu.weight")], standing);
    // What changed meanwhile stands after the next look.
    machine.tree.standing().verify();
    assert_eq!(machine.get(&target, "memory.high"), (444 * MIB).to_string());
}

#[test]
fn a_refused_setting_is_not_held() {
    let machine = Machine::new(Kind::V2);
    let mut hands = machine.actuator();
    let target = pod(QosClass::BestEffort);
    hands.apply(&set(&target, Setting::SwapMax(8 * MIB))).unwrap();
    let dir = machine.tree.hierarchy().unified_dir(&machine.group(&target)).unwrap();
    // Takes every value and holds none of them.
    let broken = |file: &str| {
        std::fs::remove_file(dir.path().join(file)).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join(file)).unwrap();
    };
    broken("cpu.max");
    assert!(matches!(hands.apply(&set(&target, Setting::CpuMax(20_000))), Err(cgroup::Error::NotApplied { .. })));
    broken("memory.swap.max");
    assert!(matches!(hands.apply(&set(&target, Setting::SwapMax(4 * MIB))), Err(cgroup::Error::NotApplied { .. })));
    let held: Vec<_> = hands.held().iter().filter(|held| held.knob == Knob::SwapMax).map(|held| held.set.clone()).collect();
    assert_eq!(held, ["8388608"]);
}

#[test]
fn a_disk_that_is_not_known_and_v1_are_refused_with_words_and_nothing_is_held() {
    let machine = Machine::new(Kind::V2);
    let mut hands = Actuator::new(machine.tree.clone(), ActuatorOptions { disk: None, run_dir: machine.run.path().into() });
    let limits = Setting::IoMax(IoLimits::FLOOR);
    assert!(hands.apply(&set(&Target::Kubepods, limits)).unwrap_err().to_string().contains("disk of the pods is not known"));
    assert_eq!(hands.held(), []);
    for kind in [Kind::Hybrid, Kind::V1] {
        let machine = Machine::new(kind);
        let mut hands = machine.actuator();
        for setting in [Setting::MemoryHigh(MIB), Setting::SwapMax(0), Setting::CpuMax(1), Setting::CpuIdle, limits] {
            let error = hands.apply(&set(&Target::Kubepods, setting)).unwrap_err().to_string();
            assert!(error.contains("cgroup v2 only"), "{kind:?} {setting:?}: {error}");
        }
        assert!(hands.apply(&set(&Target::Kubepods, Setting::Freeze)).is_err());
        assert_eq!(hands.held(), []);
        assert_eq!(hands.reassert(), Reasserted::default());
        assert_eq!(recover(&machine.tree, machine.run.path()).undone, []);
        assert!(Features::probe(machine.tree.hierarchy(), "/edge", Some(DISK)).missing().contains(&"memory.high"));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Do(Action),
    SomebodyWrites(Target, Knob, &'static str),
}

fn any_target() -> impl Strategy<Value = Target> {
    proptest::sample::select(targets())
}

fn any_op() -> impl Strategy<Value = Op> {
    let io = (1u64..9).prop_map(|n| Setting::IoMax(IoLimits { rbps: n * MIB, wbps: n * MIB, riops: 50 * n, wiops: 50 * n }));
    let setting = prop_oneof![
        (1u64..400).prop_map(|n| Setting::MemoryHigh(n * MIB)),
        (0u64..9).prop_map(|n| Setting::SwapMax(n * MIB)),
        (1u64..9).prop_map(|n| Setting::CpuMax(n * 10_000)),
        Just(Setting::CpuIdle),
        io,
        Just(Setting::Freeze),
    ];
    let knob = proptest::sample::select(Knob::ALL.to_vec());
    let others = proptest::sample::select(vec![
        (Knob::MemoryHigh, "700000000256"),
        (Knob::MemoryHigh, "max"),
        (Knob::SwapMax, "300000000256"),
        (Knob::CpuMax, "12345 100000"),
        (Knob::IoMax, "179:0 rbps=7 wbps=max riops=max wiops=max"),
    ]);
    prop_oneof![
        6 => (any_target(), setting).prop_map(|(target, setting)| Op::Do(set(&target, setting))),
        3 => (any_target(), knob).prop_map(|(target, knob)| Op::Do(restore(&target, knob))),
        1 => any_target().prop_map(|target| Op::Do(Action::Kill { target })),
        2 => (any_target(), others).prop_map(|(target, (knob, text))| Op::SomebodyWrites(target, knob, text)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whether the governor lives and releases, is killed and another one recovers, or only its ledger is left.
    #[test]
    fn whatever_was_done_is_undone(ops in proptest::collection::vec(any_op(), 1..14), end in 0..3) {
        let machine = Machine::new(Kind::V2);
        for class in [Target::Kubepods, Target::Burstable, Target::BestEffort] {
            machine.set(&class, "cgroup.events", "populated 1\nfrozen 1");
        }
        let mut wanted = machine.knobs();
        let mut hands = machine.actuator();
        for op in ops {
            match op {
                Op::Do(action) => {
                    hands.apply(&action).unwrap();
                }
                Op::SomebodyWrites(target, knob, text) => {
                    machine.set(&target, knob.file(), text);
                    wanted.insert((target, knob), text.to_owned());
                    hands.reassert();
                }
            }
        }
        match end {
            0 => hands.release_all().into_iter().for_each(|done| drop(done.unwrap())),
            other => {
                drop(hands);
                if other == 2 {
                    drop_attributes(&machine);
                }
                let found = recover(&machine.tree, machine.run.path());
                prop_assert!(found.failed.is_empty(), "{:?}", found);
            }
        }
        prop_assert_eq!(machine.knobs(), wanted);
        prop_assert!(!machine.ledger().exists());
        let again = recover(&machine.tree, machine.run.path());
        prop_assert_eq!(again.undone, vec![]);
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not: {what}");
        std::thread::yield_now();
    }
}
