//! Decisions: a table of situations.

use std::sync::Arc;

use runtime::observe::ObservedSandbox;
use runtime::{Few, PodUid};
use serde_json::json;

use super::*;
use crate::pod::history::Failure;
use crate::pod::probes::Kind;

#[path = "decide_world_tests.rs"]
mod world;

const NOW: Nanos = 1_000 * SECOND;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> ObservedSandbox {
    ObservedSandbox {
        id: id.into(),
        attempt,
        ready,
        created_at: i64::from(attempt),
        ips: vec!["10.42.0.2".to_owned()],
        host_network: Some(false),
        annotations: Few::default(),
    }
}

fn container(name: &str, attempt: u32, state: ContainerState, exit_code: i32) -> ObservedContainer {
    ObservedContainer {
        id: format!("{name}{attempt}").into(),
        sandbox: "s0".into(),
        name: name.to_owned(),
        attempt,
        state,
        created_at: 0,
        started_at: 0,
        finished_at: NOW - SECOND,
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_ref: String::new(),
        image_id: String::new(),
        annotations: Few::default(),
        log_path: String::new(),
        user: None,
    }
}

fn running(name: &str) -> ObservedContainer {
    container(name, 0, ContainerState::ContainerRunning, 0)
}

fn exited(name: &str, attempt: u32, code: i32) -> ObservedContainer {
    container(name, attempt, ContainerState::ContainerExited, code)
}

/// One situation, ordinary unless a row says otherwise.
struct Case {
    pod: Pod,
    seen: ObservedPod,
    history: History,
    health: Health,
    removed: bool,
    rejected: bool,
    evicted: bool,
    held: bool,
}

fn case(spec: serde_json::Value, sandboxes: Vec<ObservedSandbox>, containers: Vec<ObservedContainer>) -> Case {
    let mut seen = ObservedPod::empty(PodUid::from("u"));
    seen.sandboxes = sandboxes;
    seen.containers = containers;
    Case {
        pod: pod(spec),
        seen,
        history: History::default(),
        health: Health::default(),
        removed: false,
        rejected: false,
        evicted: false,
        held: false,
    }
}

impl Case {
    fn facts(&self) -> Facts<'_> {
        Facts {
            pod: &self.pod,
            removed: self.removed,
            rejected: self.rejected,
            evicted: self.evicted,
            held: self.held,
            seen: &self.seen,
            history: &self.history,
            health: &self.health,
            start_time: Some(NOW - 100 * SECOND),
            now: NOW,
        }
    }

    fn step(&self) -> Step {
        decide(&self.facts())
    }

    fn deleted(mut self) -> Case {
        self.pod.metadata.deletion_timestamp = Some("2026-11-23T02:51:47Z".to_owned());
        self
    }
}

fn start(name: &str, attempt: u32) -> Step {
    Step::Start { container: name.to_owned(), attempt }
}

const WAIT: Step = Step::Wait { until: None };

fn one() -> serde_json::Value {
    json!({"containers": [{"name": "c", "image": "i"}]})
}

fn up() -> Vec<ObservedSandbox> {
    vec![sandbox("s0", 0, true)]
}

#[test]
fn a_debug_container_is_started_once_whatever_the_pod_does() {
    let debugged = |containers| {
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "initContainers": [{"name": "a", "image": "i"}],
            "ephemeralContainers": [{"name": "d", "image": "i", "targetContainerName": "c"}]});
        case(spec, up(), containers)
    };
    assert_eq!(debugged(vec![running("a")]).step(), start("d", 0), "also before the pod is initialised");
    assert_eq!(debugged(vec![exited("a", 0, 0), running("c"), running("d")]).step(), WAIT);
    assert_eq!(debugged(vec![exited("a", 0, 0), running("c"), exited("d", 0, 1)]).step(), WAIT, "never again");
    let mut gone = debugged(vec![exited("a", 0, 0), running("c")]);
    gone.pod.status =
        serde_json::from_value(json!({"ephemeralContainerStatuses": [{"name": "d", "containerID": "containerd://x"}]})).unwrap();
    assert_eq!(gone.step(), WAIT, "it was there once");
    let deleted = debugged(vec![exited("a", 0, 0), exited("c", 0, 0), running("d")]).deleted();
    assert_eq!(deleted.step(), Step::StopAll { why: StopAll::Over });
}

#[test]
fn a_pod_has_no_sandbox_before_its_volumes_can_be_made() {
    let with = |volumes: serde_json::Value| case(json!({"containers": [{"name": "c", "image": "i"}], "volumes": volumes}), vec![], vec![]);
    let token = json!({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca.crt"}}]}});
    assert_eq!(with(json!([token, {"name": "e", "emptyDir": {}}])).step(), Step::RunSandbox { attempt: 0 });
    let sources = [
        json!({"configMap": {"name": "m"}}),
        json!({"secret": {"secretName": "s"}}),
        json!({"hostPath": {"path": "/dev/ttyUSB0", "type": "CharDevice"}}),
        json!({"projected": {"sources": [{"secret": {"name": "s"}}]}}),
    ];
    for mut volume in sources {
        volume["name"] = "v".into();
        let mut case = with(json!([token, volume]));
        assert_eq!(case.step(), Step::FindVolumes, "{volume}");
        case.history.retry_at = Some(NOW + SECOND);
        assert_eq!(case.step(), Step::Wait { until: Some(NOW + SECOND) });
        (case.history.retry_at, case.history.volumes_found) = (None, true);
        assert_eq!(case.step(), Step::RunSandbox { attempt: 0 });
    }
}

#[test]
fn a_container_killed_for_its_probe_is_started_at_once() {
    let mut case = case(one(), up(), vec![exited("c", 1, 137), exited("c", 0, 1)]);
    let spec = case.pod.spec.containers[0].clone();
    case.seen.containers[1].finished_at = NOW - 40 * SECOND;
    case.history.restarting(&spec, NOW - 40 * SECOND, NOW - 40 * SECOND);
    assert_eq!(case.step(), Step::Wait { until: Some(NOW + 9 * SECOND) }, "one that ended by itself waits");
    case.history.killed(&spec, &"c1".into(), Some(NOW - 40 * SECOND), NOW);
    assert_eq!(case.step(), start("c", 2));
}

#[test]
fn a_new_pod_gets_a_sandbox_then_its_containers_in_order() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(case(two.clone(), vec![], vec![]).step(), Step::RunSandbox { attempt: 0 });
    assert_eq!(case(two.clone(), up(), vec![]).step(), start("a", 0));
    assert_eq!(case(two.clone(), up(), vec![running("a")]).step(), start("b", 0));
    assert_eq!(case(two, up(), vec![running("a"), running("b")]).step(), WAIT);
}

#[test]
fn what_a_dead_agent_left_half_done_is_carried_on() {
    let made = container("c", 0, ContainerState::ContainerCreated, 0);
    assert_eq!(case(one(), up(), vec![made]).step(), Step::Resume { container: "c".to_owned(), id: "c0".into() });
    assert_eq!(case(one(), vec![sandbox("s0", 0, false)], vec![]).step(), Step::RunSandbox { attempt: 1 });
    let gone = case(one(), vec![sandbox("s0", 0, false)], vec![]).deleted();
    assert_eq!(gone.step(), Step::Release, "a half torn-down pod goes on down");
}

#[test]
fn a_start_that_died_with_the_agent_is_no_restart_and_no_failure() {
    let cut = |message: &str| ObservedContainer { reason: "StartError".to_owned(), message: message.to_owned(), ..exited("c", 0, 128) };
    let canceled = "failed to create containerd task: failed to start shim: context canceled: unknown";
    let again = Step::Discard { containers: vec!["c0".into()], sandboxes: vec![] };
    for policy in ["Always", "OnFailure", "Never"] {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]});
        let mut case = case(spec, up(), vec![cut(canceled)]);
        assert_eq!(case.step(), again, "{policy}");
        case.history.failed("c", Failure { reason: reasons::CONTAINER_CREATING, message: String::new(), retry_at: 0 });
        assert_eq!(case.step(), again, "{policy}: waited for, then given up");
        case.history.failed("c", Failure { reason: reasons::RUN_CONTAINER_ERROR, message: String::new(), retry_at: 0 });
        assert_ne!(case.step(), again, "{policy}: this agent's own failure counts");
        case.seen.containers.clear();
        case.history = History::default();
        assert_eq!(case.step(), start("c", 0), "{policy}: the same attempt");
    }
    let init = json!({"restartPolicy": "Never", "initContainers": [{"name": "c"}], "containers": [{"name": "d"}]});
    assert_eq!(case(init, up(), vec![cut(canceled)]).step(), again);
    assert_eq!(case(one(), up(), vec![cut("failed to create containerd task: ttrpc: closed: unknown")]).step(), again);
    let no_sandbox = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to \
         create new parent process: namespace path: lstat /proc/0/ns/ipc: no such file or directory: unknown";
    assert_eq!(case(one(), up(), vec![cut(no_sandbox)]).step(), again, "made when nobody waited for it any more");
    let wrong = cut(
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
         container process: exec: \"nonsense\": executable file not found in $PATH: unknown",
    );
    assert_eq!(case(one(), up(), vec![wrong]).step(), start("c", 1), "a start that failed by itself is an attempt");
    let mut told = case(one(), up(), vec![]);
    told.pod.status = serde_json::from_value(json!({"containerStatuses": [
        {"name": "c", "containerID": "containerd://x", "restartCount": 2, "state": {"waiting": {"reason": "ContainerCreating"}}}
    ]}))
    .unwrap();
    assert_eq!(told.step(), start("c", 2), "told, but it never ran");
    for (began, attempt) in [("1970-01-01T00:00:00Z", 2), ("2026-11-23T02:51:47Z", 3)] {
        let end = json!({"exitCode": 128, "reason": "StartError", "startedAt": began});
        told.pod.status = serde_json::from_value(json!({"containerStatuses": [
            {"name": "c", "containerID": "containerd://x", "restartCount": 2, "state": {"terminated": end}}
        ]}))
        .unwrap();
        assert_eq!(told.step(), start("c", attempt), "{began}");
    }
}

#[test]
fn a_sandbox_that_is_gone_or_doubled_is_replaced() {
    let lost = case(one(), vec![sandbox("s0", 0, false)], vec![running("c")]);
    assert_eq!(lost.step(), Step::StopAll { why: StopAll::SandboxChanged });
    let twice = case(one(), vec![sandbox("s1", 1, true), sandbox("s0", 0, true)], vec![]);
    assert_eq!(twice.step(), Step::StopSandboxes { sandboxes: vec!["s1".into(), "s0".into()] });
    let again = case(one(), vec![sandbox("s1", 1, true), sandbox("s0", 0, false)], vec![exited("c", 0, 137)]);
    assert_eq!(again.step(), start("c", 1), "a container of a former sandbox comes back");
}

#[test]
fn restarts_follow_policy_and_back_off() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "c"}, {"name": "d"}]});
    let with = |policy: &str, code| case(spec(policy), up(), vec![exited("c", 0, code), running("d")]);
    assert_eq!(with("Always", 0).step(), start("c", 1));
    assert_eq!(with("OnFailure", 0).step(), WAIT);
    assert_eq!(with("OnFailure", 1).step(), start("c", 1));
    assert_eq!(with("Never", 1).step(), WAIT);

    let mut waiting = with("Always", 1);
    let container = waiting.pod.spec.containers[0].clone();
    waiting.history.restarting(&container, NOW - 20 * SECOND, NOW - 20 * SECOND);
    assert_eq!(waiting.step(), Step::Wait { until: Some(NOW + 9 * SECOND) }, "ten seconds from its end");
}

#[test]
fn a_failed_start_waits_for_its_retry_and_holds_up_nobody() {
    let mut failing = case(json!({"containers": [{"name": "a"}, {"name": "b"}]}), up(), vec![]);
    failing.history.failed("a", Failure { reason: "ErrImagePull", message: String::new(), retry_at: NOW + SECOND });
    assert_eq!(failing.step(), start("b", 0));
    failing.seen.containers.push(running("b"));
    assert_eq!(failing.step(), Step::Wait { until: Some(NOW + SECOND) });
}

#[test]
fn init_containers_run_one_after_the_other() {
    let spec = json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "c"}]});
    let with = |containers| case(spec.clone(), up(), containers).step();
    assert_eq!(with(vec![]), start("i1", 0));
    assert_eq!(with(vec![running("i1")]), WAIT);
    assert_eq!(with(vec![exited("i1", 0, 0)]), start("i2", 0));
    assert_eq!(with(vec![exited("i1", 0, 1)]), start("i1", 1));
    assert_eq!(with(vec![exited("i1", 0, 0), exited("i2", 0, 0)]), start("c", 0));
    assert_eq!(with(vec![exited("c", 0, 1), exited("i1", 0, 0), exited("i2", 0, 0)]), start("c", 1), "not again");

    let never = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    assert_eq!(case(never, up(), vec![exited("i", 0, 7)]).step(), Step::StopSandboxes { sandboxes: vec!["s0".into()] });
}

#[test]
fn init_containers_run_again_in_a_new_sandbox() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let again = case(spec, vec![sandbox("s1", 1, true), sandbox("s0", 0, false)], vec![exited("c", 0, 137), exited("i", 0, 0)]);
    assert_eq!(again.step(), start("i", 1));
}

#[test]
fn a_sidecar_starts_first_restarts_always_and_goes_last() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}], "containers": [{"name": "c"}]});
    let mut sidecar = case(spec, up(), vec![running("s")]);
    assert_eq!(sidecar.step(), WAIT, "not started yet");
    sidecar.health.set(&"s0".into(), Kind::Startup, true);
    assert_eq!(sidecar.step(), start("c", 0));
    sidecar.seen.containers = vec![running("c"), exited("s", 0, 0)];
    assert_eq!(sidecar.step(), start("s", 1));
    sidecar.seen.containers = vec![exited("c", 0, 0), running("s")];
    assert_eq!(sidecar.step(), Step::StopAll { why: StopAll::Over });
}

#[test]
fn sick_and_changed_containers_are_stopped() {
    let kill = |why| Step::Kill { container: "c".to_owned(), id: "c0".into(), why };
    let mut sick = case(one(), up(), vec![running("c")]);
    sick.health.set(&"c0".into(), Kind::Liveness, false);
    assert_eq!(sick.step(), kill(Kill::FailedLiveness));
    let mut slow = case(one(), up(), vec![running("c")]);
    slow.health.set(&"c0".into(), Kind::Startup, false);
    assert_eq!(slow.step(), kill(Kill::FailedStartup));
    let mut changed = case(one(), up(), vec![running("c")]);
    changed.seen.containers[0].annotations.insert(runtime::labels::CONTAINER_HASH.to_owned(), "1".to_owned());
    assert_eq!(changed.step(), kill(Kill::Changed));
}

#[test]
fn the_way_down_has_an_order() {
    let mut down = case(one(), up(), vec![running("c")]).deleted();
    assert_eq!(down.step(), Step::StopAll { why: StopAll::Over });
    down.seen.containers = vec![exited("c", 0, 0)];
    assert_eq!(down.step(), Step::StopSandboxes { sandboxes: vec!["s0".into()] });
    down.seen.sandboxes = vec![sandbox("s0", 0, false)];
    assert_eq!(down.step(), Step::Release);
    down.history.released = true;
    assert_eq!(down.step(), Step::Finish);
    down.history.finished = true;
    assert_eq!(down.step(), WAIT, "until the server has let it go");
    down.removed = true;
    assert_eq!(down.step(), Step::Forget);
}

#[test]
fn refused_terminal_and_late_pods_start_nothing() {
    let refused = Case { rejected: true, ..case(one(), vec![], vec![]) };
    assert_eq!(refused.step(), Step::Release);
    let mut ended = case(one(), vec![], vec![]);
    Arc::make_mut(&mut ended.pod.status).phase = "Succeeded".to_owned();
    ended.history.released = true;
    assert_eq!(ended.step(), WAIT);
    let late = case(json!({"activeDeadlineSeconds": 99, "containers": [{"name": "c"}]}), up(), vec![running("c")]);
    assert_eq!(late.step(), Step::StopAll { why: StopAll::Over });
    let early = case(json!({"activeDeadlineSeconds": 101, "containers": [{"name": "c"}]}), up(), vec![running("c")]);
    assert_eq!(early.step(), Step::Wait { until: Some(NOW + SECOND) });
}

#[test]
fn the_newest_and_the_one_before_are_kept() {
    let crowd = case(
        one(),
        up(),
        vec![container("c", 3, ContainerState::ContainerRunning, 0), exited("c", 2, 1), exited("c", 1, 1), exited("c", 0, 1)],
    );
    assert_eq!(crowd.step(), Step::Discard { containers: vec!["c1".into(), "c0".into()], sandboxes: vec![] });
    let old = case(
        one(),
        vec![sandbox("s1", 1, true), sandbox("s0", 0, false)],
        vec![{
            let mut c = container("c", 3, ContainerState::ContainerRunning, 0);
            c.sandbox = "s1".into();
            c
        }],
    );
    assert_eq!(old.step(), Step::Discard { containers: vec![], sandboxes: vec!["s0".into()] });
}

#[test]
fn the_governors_word() {
    let spec = json!({"containers": [{"name": "a"}]});
    let mut waits = case(spec.clone(), vec![], vec![]);
    waits.held = true;
    assert_eq!(waits.step(), Step::Wait { until: None }, "nothing of it begins");
    let mut runs = case(spec, vec![sandbox("s0", 0, true)], vec![running("a")]);
    runs.held = true;
    assert_eq!(runs.step(), Step::Wait { until: None }, "what runs goes on");
    runs.evicted = true;
    assert_eq!(runs.step(), Step::StopAll { why: StopAll::Over });
}
