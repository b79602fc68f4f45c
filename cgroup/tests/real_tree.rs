//! The pod tree on this machine's own cgroup file system, below a private root that is removed afterwards.
//!
//! Needs root and a cgroup mount that can be written; without them each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cgroup::reservation::{Capacity, Overrides, Reservation};
use cgroup::{Controller, Driver, Hierarchy, NodeAllocatable, OwnLimits, Placement, PodCgroup, PodTree, QosClass, part_group, stat};

const MIB: u64 = 1 << 20;

struct Scratch {
    tree: PodTree,
    root: String,
}

impl Scratch {
    fn new(name: &str) -> Option<Scratch> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("\nSKIP cgroup::{name}: not root");
            return None;
        }
        let hierarchy = match Hierarchy::detect() {
            Ok(hierarchy) => hierarchy,
            Err(error) => {
                eprintln!("\nSKIP cgroup::{name}: {error}");
                return None;
            }
        };
        let root = format!("/edge-agent-test-{}-{name}", std::process::id());
        if let Err(error) = hierarchy.create(&root, true) {
            eprintln!("\nSKIP cgroup::{name}: {error}");
            return None;
        }
        let tree = PodTree::new(hierarchy, &root, Driver::Cgroupfs).unwrap();
        Some(Scratch { tree, root })
    }

    fn pod(&self, memory_limit: Option<u64>) -> String {
        let pod = PodCgroup {
            uid: "11111111-2222-3333-4444-555555555555",
            qos: QosClass::Burstable,
            cpu_shares: 512,
            cpu_quota: Some(50_000),
            memory_limit,
            pids: Some(64),
        };
        self.tree.ensure_pod(&pod).unwrap()
    }

    /// Starts a program inside a container's group, as the runtime would: in every hierarchy, before it runs.
    fn container(&self, pod: &str, id: &str, script: &str) -> Child {
        let group = format!("{pod}/{id}");
        self.tree.hierarchy().create(&group, false).unwrap();
        let dirs = self.tree.hierarchy().every_dir(&group);
        let enter: String =
            dirs.iter().filter(|dir| dir.exists()).map(|dir| format!("echo $$ > {}/cgroup.procs; ", dir.path().display())).collect();
        Command::new("sh").args(["-c", &format!("{enter} {script}")]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn holds(&self, group: &str, pid: u32) -> bool {
        let dir = self.tree.hierarchy().dir(Controller::Memory, group).unwrap();
        dir.processes().unwrap().contains(&(pid as i32))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = self.tree.remove_all();
        if !std::thread::panicking() {
            removed.unwrap();
            let left: Vec<PathBuf> = self
                .tree
                .hierarchy()
                .every_dir(&self.root)
                .into_iter()
                .filter(|dir| dir.exists())
                .map(|dir| dir.path().to_owned())
                .collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "nothing is left behind");
        }
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 20, "still not: {what}");
        std::thread::yield_now();
    }
}

fn capacity() -> Capacity {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    Capacity {
        disk_swap: false,
        memory: kib * 1024,
        cpu_millis: 2000,
        threads_max: std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap().trim().parse().unwrap(),
    }
}

fn plan(capacity: &Capacity, overrides: &Overrides) -> cgroup::Result<Reservation> {
    cgroup::reservation::plan(capacity, overrides, &cgroup::Measured::default())
}

#[test]
fn the_limit_of_all_pods_is_capacity_minus_reservation() {
    let Some(scratch) = Scratch::new("limit") else {
        return;
    };
    let capacity = capacity();
    let plan = plan(&capacity, &Overrides::default()).unwrap();
    let enforced = scratch.tree.ensure_root(&NodeAllocatable::from(&plan)).unwrap();
    let reserved = plan.system_memory + plan.kube_memory;
    let wanted = capacity.memory - reserved;
    let file = if scratch.tree.hierarchy().is_v2(Controller::Memory) { "memory.max" } else { "memory.limit_in_bytes" };
    let dir = scratch.tree.hierarchy().dir(Controller::Memory, &enforced.group).unwrap();
    let found = dir.read_u64(file).unwrap();
    assert!(found <= wanted && wanted - found < 65_536, "{} holds {found}, wanted {wanted}", dir.path().display());
    assert_eq!(enforced.memory_limit, Some(found));
    // Twice is the same as once, and another amount replaces the first.
    scratch.tree.ensure_root(&NodeAllocatable::from(&plan)).unwrap();
    let less = NodeAllocatable { memory_limit: Some(512 * MIB), ..NodeAllocatable::from(&plan) };
    assert_eq!(scratch.tree.ensure_root(&less).unwrap().memory_limit, Some(512 * MIB));
}

#[test]
fn removing_a_pod_kills_what_is_left_of_it_and_nothing_else() {
    let Some(scratch) = Scratch::new("remove") else {
        return;
    };
    let plan = plan(&capacity(), &Overrides::default()).unwrap();
    scratch.tree.ensure_root(&NodeAllocatable::from(&plan)).unwrap();
    let others_before = memory_groups(&scratch);
    let pod = scratch.pod(None);
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut child = scratch.container(&pod, "c1", "trap '' TERM; sleep 1000 & wait");
    until("process in its group", || scratch.holds(&format!("{pod}/c1"), child.id()));

    let uid = "11111111-2222-3333-4444-555555555555";
    let listed: Vec<_> = scratch.tree.list_pods().unwrap().into_iter().map(|entry| entry.uid).collect();
    assert_eq!(listed, [uid]);
    assert_eq!(scratch.tree.list_containers(uid, QosClass::Burstable).unwrap(), ["c1"]);
    let stats = scratch.tree.pod_stats(uid, QosClass::Burstable).unwrap();
    assert!(stats.tasks.unwrap() >= 1, "{stats:?}");
    assert!(stats.memory.unwrap().usage > 0, "{stats:?}");
    assert!(stats.cpu.unwrap().usage_ns > 0, "{stats:?}");
    scratch.tree.container_stats(uid, QosClass::Burstable, "c1").unwrap();

    scratch.tree.remove_pod(uid, QosClass::Burstable).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(scratch.tree.list_pods().unwrap(), []);
    assert!(scratch.tree.pod_stats(uid, QosClass::Burstable).unwrap_err().is_gone());
    scratch.tree.remove_pod(uid, QosClass::Burstable).unwrap();
    assert!(bystander.try_wait().unwrap().is_none(), "a process outside was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert_eq!(memory_groups(&scratch), others_before);
}

/// The groups beside ours, which must not change.
fn memory_groups(scratch: &Scratch) -> Vec<String> {
    let root = scratch.tree.hierarchy().dir(Controller::Memory, "/").unwrap();
    let mut names = root.children().unwrap();
    names.retain(|name| !name.starts_with("edge-agent-test-") && !name.starts_with("edge-"));
    names
}

#[test]
fn frozen_processes_die_too() {
    let Some(scratch) = Scratch::new("frozen") else {
        return;
    };
    let pod = scratch.pod(None);
    let mut child = scratch.container(&pod, "c1", "exec sleep 1000");
    let group = format!("{pod}/c1");
    until("process in its group", || scratch.holds(&group, child.id()));
    let hierarchy = scratch.tree.hierarchy();
    let dir = hierarchy.dir(Controller::Freezer, &group).unwrap();
    if hierarchy.is_v2(Controller::Freezer) {
        dir.write("cgroup.freeze", "1").unwrap();
    } else {
        dir.write("freezer.state", "FROZEN").unwrap();
        until("frozen", || dir.read("freezer.state").unwrap() == "FROZEN");
    }
    scratch.tree.remove_pod("11111111-2222-3333-4444-555555555555", QosClass::Burstable).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn memory_beyond_the_limit_is_a_counted_kill() {
    let Some(scratch) = Scratch::new("oom") else {
        return;
    };
    let pod = scratch.pod(Some(16 * MIB));
    let group = format!("{pod}/c1");
    // tail keeps what it reads until it sees a line end, of which there is none.
    let mut child = scratch.container(&pod, "c1", "exec tail /dev/zero");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let hierarchy = scratch.tree.hierarchy();
    let kills: u64 = [&pod, &group].iter().filter_map(|group| stat::oom_kills(hierarchy, group).unwrap()).sum();
    assert!(kills >= 1, "{kills} kills counted");
}

#[test]
fn a_part_of_the_agent_gets_a_group_beside_the_pods() {
    let Some(scratch) = Scratch::new("own") else {
        return;
    };
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let limits = OwnLimits {
        memory_min: Some(8 * MIB),
        memory_max: Some(64 * MIB),
        cpu_shares: Some(5120),
        cpu_weight: Some(500),
        pids_max: Some(256),
    };
    let placed = Placement::enter(scratch.tree.hierarchy(), &scratch.root, "edge-agent", child.id(), &limits).unwrap();
    let Placement::Own { group, left_out } = placed else { panic!("{placed:?}") };
    assert_eq!(group, format!("{}/edge-agent", scratch.root));
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, at) = (fields.next().unwrap(), fields.next().unwrap());
        if controllers.split(',').any(|name| ["cpu", "pids"].contains(&name) && !left_out.contains(&name)) {
            assert_eq!(at, group, "{line}");
        }
    }
    // A child to be started gets the same treatment, by the directories it is to be written to.
    let dirs = part_group(scratch.tree.hierarchy(), &scratch.root, "containerd", &OwnLimits::default()).unwrap();
    assert!(dirs.iter().all(|dir| dir.join("cgroup.procs").exists() && dir.ends_with("containerd")), "{dirs:?}");
    assert_eq!(dirs.is_empty(), left_out.len() == 4, "{dirs:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    for group in [group, format!("{}/containerd", scratch.root)] {
        for dir in scratch.tree.hierarchy().every_dir(&group) {
            let _ = std::fs::remove_dir(dir.path());
        }
    }
}

#[test]
fn on_v2_the_agent_is_protected_and_pods_are_braked() {
    let Some(scratch) = Scratch::new("v2") else {
        return;
    };
    let hierarchy = scratch.tree.hierarchy();
    if !hierarchy.is_v2(Controller::Memory) {
        eprintln!("\nSKIP cgroup::v2: this machine has the memory controller in v1; cgroup/tests/on-v2 runs this in a virtual machine");
        return;
    }
    let plan = plan(&capacity(), &Overrides::default()).unwrap();
    scratch.tree.ensure_root(&NodeAllocatable::from(&plan)).unwrap();
    let read = |group: &str, file: &str| hierarchy.dir(Controller::Memory, group).unwrap().read(file).unwrap();
    let kubepods = scratch.tree.kubepods();
    let brake = plan.pods_memory_limit - plan.brake;
    let found: u64 = read(&format!("{kubepods}/besteffort"), "memory.high").parse().unwrap();
    assert!(found <= brake && brake - found < 65_536, "{found} is not {brake}");
    assert_eq!(read(&format!("{kubepods}/besteffort"), "cpu.weight"), "1");
    assert!(hierarchy.advice(cgroup::Board::detect(hierarchy.proc_root())).is_empty());

    // Promises hold only if every ancestor below the root makes them.
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let limits = OwnLimits { memory_min: Some(8 * MIB), ..OwnLimits::default() };
    Placement::enter(hierarchy, &scratch.root, "edge-agent", child.id(), &limits).unwrap();
    let group = format!("{}/edge-agent", scratch.root);
    assert!(scratch.holds(&group, child.id()));
    assert_eq!(read(&group, "memory.min"), (8 * MIB).to_string());
    assert_eq!(read(&scratch.root, "memory.min"), (8 * MIB).to_string());
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir(hierarchy.dir(Controller::Memory, &group).unwrap().path()).unwrap();

    let pod = scratch.pod(Some(64 * MIB));
    let stats = stat::group(hierarchy, &pod).unwrap();
    assert_eq!(stats.memory.unwrap().limit.value(), Some(64 * MIB));
    if cgroup::psi::read(cgroup::psi::Resource::Memory).unwrap().is_some() {
        assert!(stats.pressure.memory.is_some() && stats.pressure.cpu.is_some() && stats.pressure.io.is_some(), "{stats:?}");
    }
    let node = scratch.tree.node_stats().unwrap();
    let memory = node.memory.unwrap();
    assert!(memory.working_set > 0 && memory.working_set < plan.memory_capacity, "{node:?}");
    assert!(node.cpu.unwrap().usage_ns > 0, "{node:?}");
    assert!(node.oom_kills.is_some(), "{node:?}");
}

/// The disk of the virtual machine, if this is it.
fn test_disk() -> Option<cgroup::Disk> {
    let device = std::env::var("EDGE_TEST_DISK").ok()?;
    let name = device.strip_prefix("/dev/")?.to_owned();
    let numbers = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
    let (major, minor) = numbers.trim().split_once(':')?;
    Some(cgroup::Disk { major: major.parse().ok()?, minor: minor.parse().ok()?, name })
}

#[test]
fn values_stand_against_others_in_the_kernels_files() {
    let Some(scratch) = Scratch::new("standing") else {
        return;
    };
    let hierarchy = scratch.tree.hierarchy();
    let plan = plan(&capacity(), &Overrides::default()).unwrap();
    scratch.tree.ensure_root(&NodeAllocatable::from(&plan)).unwrap();
    let standing = scratch.tree.standing();
    assert_eq!(standing.verify(), []);
    assert_eq!(standing.unheld(), Vec::<String>::new());
    let v2 = hierarchy.is_v2(Controller::Memory);
    let (file, none) = if v2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
    let kubepods = scratch.tree.kubepods();
    let dir = hierarchy.dir(Controller::Memory, &kubepods).unwrap();
    let before = dir.read(file).unwrap();
    dir.write(file, none).unwrap();
    hierarchy.dir(Controller::Pids, &kubepods).unwrap().write("pids.max", "max").unwrap();
    let drift = standing.verify();
    assert_eq!(drift.iter().map(|found| (found.file, found.failed.clone())).collect::<Vec<_>>(), [(file, None), ("pids.max", None)]);
    assert_eq!(dir.read(file).unwrap(), before);
    assert_eq!(standing.verify(), []);
    if !v2 {
        eprintln!("\nSKIP cgroup::standing: promises and throughput of disks are v2's; cgroup/tests/on-v2 runs this in a virtual machine");
        return;
    }

    // A promise goes up the tree, and what takes it away there is noticed.
    let group = format!("{}/deep/edge-agent", scratch.root);
    hierarchy.create(&group, false).unwrap();
    let limits = cgroup::Limits { memory_min: Some(8 * MIB), memory_low: Some(16 * MIB), ..cgroup::Limits::default() };
    let held = cgroup::Held { scope: "agent", part: "limits", group: group.clone(), limits, unit: false, gentle: false };
    standing.hold(held).unwrap();
    let min = |group: &str| hierarchy.dir(Controller::Memory, group).unwrap().read("memory.min").unwrap();
    for above in [scratch.root.as_str(), &format!("{}/deep", scratch.root), &group] {
        assert_eq!(min(above), (8 * MIB).to_string(), "{above}");
    }
    hierarchy.dir(Controller::Memory, &scratch.root).unwrap().write("memory.min", "0").unwrap();
    assert_eq!(standing.unheld().len(), 1, "{:?}", standing.unheld());
    assert_eq!(standing.verify().len(), 1);
    assert_eq!(min(&scratch.root), (8 * MIB).to_string());

    match test_disk() {
        None => eprintln!("\nSKIP cgroup::standing: EDGE_TEST_DISK names no disk to be limited on"),
        Some(disk) => {
            let limits = cgroup::IoMax::of_pods(disk.clone(), &cgroup::Rates::default());
            assert!(scratch.tree.limit_io(vec![limits]).unwrap());
            let dir = hierarchy.dir(Controller::Io, &kubepods).unwrap();
            let wanted = format!("{}:{} rbps=20971520 wbps=5242880 riops=1000 wiops=200", disk.major, disk.minor);
            assert_eq!(dir.read("io.max").unwrap(), wanted);
            dir.write("io.max", &format!("{}:{} wbps=max", disk.major, disk.minor)).unwrap();
            assert_eq!(standing.verify().len(), 1);
            assert_eq!(dir.read("io.max").unwrap(), wanted);
            assert_eq!(standing.verify(), []);
        }
    }

    let start = std::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(standing.verify(), []);
    }
    eprintln!("\none reading of all values takes {:?}", start.elapsed() / 100);
    for group in [group, format!("{}/deep", scratch.root)] {
        std::fs::remove_dir(hierarchy.dir(Controller::Memory, &group).unwrap().path()).unwrap();
    }
}
