//! Decisions, the property: whatever dies wherever, it converges and nothing runs twice.

use proptest::prelude::*;

use super::*;

/// A node with one pod, on which steps really happen.
struct World {
    case: Case,
    now: Nanos,
    made: u32,
}

#[derive(Debug, Clone)]
enum Happening {
    /// The agent performs its step wholly.
    Step,
    /// It dies before, in the middle of or right after its step, and starts again remembering nothing.
    Crash {
        part: u8,
    },
    /// A container ends by itself.
    Exit {
        which: usize,
        code: i32,
    },
    /// The pause process dies.
    SandboxDies,
    Time {
        seconds: u16,
    },
    Delete,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Step),
        3 => (0..3u8).prop_map(|part| Happening::Crash { part }),
        2 => (0..4usize, 0..2i32).prop_map(|(which, code)| Happening::Exit { which, code }),
        1 => Just(Happening::SandboxDies),
        2 => (1..400u16).prop_map(|seconds| Happening::Time { seconds }),
        1 => Just(Happening::Delete),
    ]
}

impl World {
    fn decide(&self) -> Step {
        decide(&Facts {
            pod: &self.case.pod,
            removed: self.case.removed,
            evicted: false,
            held: false,
            rejected: false,
            seen: &self.case.seen,
            history: &self.case.history,
            health: &self.case.health,
            start_time: Some(0),
            now: self.now,
        })
    }

    fn end(&mut self, which: impl Fn(&ObservedContainer) -> bool, code: i32) {
        let now = self.now;
        for c in self.case.seen.containers.iter_mut().filter(|c| c.state == ContainerState::ContainerRunning && which(c)) {
            c.state = ContainerState::ContainerExited;
            c.exit_code = code;
            c.finished_at = now;
        }
    }

    /// Performs a step; `whole` false stops in its middle.
    fn perform(&mut self, step: Step, whole: bool) {
        self.now += SECOND / 10;
        match step {
            Step::Wait { until } => self.now = until.unwrap_or(self.now).max(self.now),
            Step::FindVolumes => self.case.history.volumes_found = whole,
            Step::RunSandbox { attempt } => {
                self.made += 1;
                assert!(self.case.seen.sandboxes.iter().all(|s| !s.ready), "two sandboxes at once");
                assert!(self.case.seen.sandboxes.iter().all(|s| s.attempt < attempt), "the runtime would refuse the name");
                let mut new = sandbox(&format!("sb{}", self.made), attempt, true);
                new.host_network = None;
                self.case.seen.sandboxes.insert(0, new);
            }
            Step::Start { container: name, attempt } => {
                self.made += 1;
                assert!(
                    self.case.seen.containers.iter().all(|c| c.name != name || c.attempt < attempt),
                    "the runtime would refuse the name"
                );
                assert!(!self.case.seen.containers.iter().any(|c| c.name == name && is_alive(c)), "started twice");
                let spec = self.case.pod.all_containers().find(|c| c.name == name).unwrap().clone();
                if let Some(before) = latest(&self.case.seen, &name).map(|c| c.finished_at) {
                    self.case.history.restarting(&spec, before, self.now);
                }
                let mut new = container(&name, attempt, ContainerState::ContainerCreated, 0);
                new.id = format!("c{}", self.made).into();
                new.sandbox = self.case.seen.sandboxes[0].id.clone();
                new.finished_at = 0;
                if whole {
                    new.state = ContainerState::ContainerRunning;
                }
                let at = self.case.seen.containers.iter().position(|c| c.name >= name).unwrap_or(self.case.seen.containers.len());
                self.case.seen.containers.insert(at, new);
            }
            Step::Resume { id, .. } => {
                let c = self.case.seen.containers.iter_mut().find(|c| c.id == id).unwrap();
                assert_eq!(c.state, ContainerState::ContainerCreated);
                c.state = ContainerState::ContainerRunning;
            }
            Step::Kill { id, .. } => self.end(|c| c.id == id, 137),
            Step::StopAll { .. } if whole => self.end(|_| true, 137),
            Step::StopAll { .. } => {
                let first = self.case.seen.containers.iter().find(|c| is_alive(c)).map(|c| c.id.clone());
                self.end(|c| Some(&c.id) == first.as_ref(), 137);
            }
            Step::StopSandboxes { sandboxes } => {
                let part = if whole { sandboxes.len() } else { 1 };
                for id in &sandboxes[..part] {
                    self.case.seen.sandboxes.iter_mut().find(|s| s.id == *id).unwrap().ready = false;
                }
            }
            Step::Discard { containers, sandboxes } => {
                assert!(self.case.seen.containers.iter().all(|c| !containers.contains(&c.id) || !is_alive(c)), "removed alive");
                self.case.seen.containers.retain(|c| !containers.contains(&c.id));
                if whole {
                    self.case.seen.sandboxes.retain(|s| !sandboxes.contains(&s.id));
                }
            }
            Step::Release => self.case.history.released = whole,
            Step::Finish => {
                self.case.history.finished = true;
                self.case.removed = whole;
            }
            Step::Forget => {
                self.case.seen.containers.clear();
                if whole {
                    self.case.seen.sandboxes.clear();
                }
            }
        }
    }

    fn happen(&mut self, what: &Happening) {
        match what {
            Happening::Step => {
                let step = self.decide();
                self.perform(step, true);
            }
            Happening::Crash { part } => {
                let step = self.decide();
                match part {
                    0 => {}
                    1 => self.perform(step, false),
                    _ => self.perform(step, true),
                }
                self.case.history = History::default();
                self.case.health = Health::default();
            }
            Happening::Exit { which, code } => {
                let id = self.case.seen.containers.iter().filter(|c| is_alive(c)).nth(*which).map(|c| c.id.clone());
                self.end(|c| Some(&c.id) == id.as_ref(), *code);
            }
            Happening::SandboxDies => self.case.seen.sandboxes.iter_mut().for_each(|s| s.ready = false),
            Happening::Time { seconds } => self.now += i64::from(*seconds) * SECOND,
            Happening::Delete => self.case.pod.metadata.deletion_timestamp = Some("2026-11-23T02:51:47Z".to_owned()),
        }
    }

    /// From here nothing happens any more but the agent's steps; init containers end well.
    fn settle(&mut self) -> Step {
        for _ in 0..200 {
            let step = self.decide();
            match step {
                Step::Wait { until: None } => {
                    let init: Vec<String> =
                        self.case.pod.spec.init_containers.iter().filter(|c| !c.is_sidecar()).map(|c| c.name.clone()).collect();
                    let busy = self.case.seen.containers.iter().any(|c| is_alive(c) && init.contains(&c.name));
                    if !busy {
                        return step;
                    }
                    self.end(|c| init.contains(&c.name), 0);
                }
                Step::Forget => {
                    self.perform(Step::Forget, true);
                    return Step::Forget;
                }
                step => self.perform(step, true),
            }
        }
        panic!("does not converge: {:?}", self.decide());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn killed_anywhere_it_converges(policy in 0..3usize, happenings in proptest::collection::vec(happening(), 0..60)) {
        let policy = ["Always", "OnFailure", "Never"][policy];
        let spec = json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "i1"}, {"name": "side", "restartPolicy": "Always"}, {"name": "i2"}],
            "containers": [{"name": "a"}, {"name": "b"}],
        });
        let mut world = World { case: case(spec, vec![], vec![]), now: NOW, made: 0 };
        for what in &happenings {
            world.happen(what);
        }
        let end = world.settle();
        let alive = |name: &str| world.case.seen.containers.iter().filter(|c| c.name == name && is_alive(c)).count();
        if world.case.pod.is_deleting() {
            prop_assert_eq!(end, Step::Forget);
            prop_assert!(world.case.seen.is_empty(), "something leaked");
        } else if is_over(&world.case.facts()) {
            prop_assert!(world.case.seen.sandboxes.iter().all(|s| !s.ready));
            prop_assert!(!world.case.seen.containers.iter().any(is_alive));
        } else {
            prop_assert_eq!(world.case.seen.sandboxes.iter().filter(|s| s.ready).count(), 1);
            prop_assert_eq!(alive("side"), 1);
            for name in ["a", "b"] {
                let done = latest(&world.case.seen, name).is_some_and(|c| ended(c) && !phase::may_restart(world.case.pod.spec.restart_policy, c.exit_code));
                prop_assert_eq!(alive(name) + usize::from(done), 1, "{}", name);
            }
        }
    }
}
