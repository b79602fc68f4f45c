use std::collections::BTreeMap;

use cgroup::governor::{Actuator, ActuatorOptions, Knob, Target};
use cgroup::{Driver, Hierarchy, PodTree, QosClass};

use crate::cgroupfs::{FakeCgroupfs, Kind};

pub(crate) const DISK: &str = "179:0";

/// A machine with all classes and a pod in each, its tree and a directory for the ledger.
pub(crate) struct Machine {
    pub(crate) fake: FakeCgroupfs,
    pub(crate) tree: PodTree,
    pub(crate) run: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new(kind: Kind) -> Machine {
        let fake = FakeCgroupfs::new(kind);
        fake.group("/edge").group("/edge/agent").group("/edge/containerd");
        let tree = PodTree::new(Hierarchy::detect_in(&fake.proc_root()).unwrap(), "/edge", Driver::Cgroupfs).unwrap();
        fake.group(&tree.kubepods());
        for qos in QosClass::ALL {
            fake.group(&tree.class(qos));
            let pod = tree.cgroup_parent(uid(qos), qos).unwrap();
            fake.group(&pod);
            if kind == Kind::V2 {
                fake.set("unified", &pod, "cgroup.events", "populated 1\nfrozen 1");
                fake.set("unified", &pod, "memory.current", "104857600");
            }
        }
        Machine { fake, tree, run: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn actuator(&self) -> Actuator {
        Actuator::new(self.tree.clone(), ActuatorOptions { disk: Some(DISK.into()), run_dir: self.run.path().into() })
    }

    pub(crate) fn group(&self, target: &Target) -> String {
        match target {
            Target::Pod { uid, qos } => self.tree.cgroup_parent(uid, *qos).unwrap(),
            Target::BestEffort => self.tree.class(QosClass::BestEffort),
            Target::Burstable => self.tree.class(QosClass::Burstable),
            Target::Kubepods => self.tree.kubepods(),
        }
    }

    pub(crate) fn get(&self, target: &Target, file: &str) -> String {
        self.fake.get("unified", &self.group(target), file)
    }

    pub(crate) fn set(&self, target: &Target, file: &str, value: &str) {
        self.fake.set("unified", &self.group(target), file, value);
    }

    pub(crate) fn ledger(&self) -> std::path::PathBuf {
        self.run.path().join("governor.json")
    }

    /// What every knob of every group holds. An ordinary file keeps a line of `io.max` that the kernel would drop.
    pub(crate) fn knobs(&self) -> BTreeMap<(Target, Knob), String> {
        let mut all = BTreeMap::new();
        for target in targets() {
            for knob in Knob::ALL {
                let text = self.get(&target, knob.file());
                let none = format!("{DISK} rbps=max wbps=max riops=max wiops=max");
                all.insert((target.clone(), knob), if text == none { String::new() } else { text });
            }
        }
        all
    }
}

pub(crate) fn uid(qos: QosClass) -> &'static str {
    match qos {
        QosClass::Guaranteed => "aaaa-1",
        QosClass::Burstable => "bbbb-2",
        QosClass::BestEffort => "cccc-3",
    }
}

pub(crate) fn pod(qos: QosClass) -> Target {
    Target::Pod { uid: uid(qos).into(), qos }
}

pub(crate) fn targets() -> Vec<Target> {
    let mut all = vec![Target::Kubepods, Target::Burstable, Target::BestEffort];
    all.extend(QosClass::ALL.map(pod));
    all
}
