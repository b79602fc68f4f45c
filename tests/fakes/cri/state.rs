//! What the runtime holds and the rules by which it changes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use containerd_client::events as payload;
use containerd_client::types::Envelope;
use runtime::cri::{self, ContainerState};
use runtime::import::normalise;
use tokio::sync::{broadcast, watch};
use tonic::{Response, Status};

use super::{Answer, Call};

pub(super) struct Inner {
    pub(super) state: Mutex<State>,
    pub(super) events: broadcast::Sender<Envelope>,
    /// Verbs whose calls wait, and a way to learn that this changed.
    pub(super) held: watch::Sender<HashSet<&'static str>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) images: BTreeMap<String, cri::Image>,
    pub(super) pullable: HashSet<String>,
    pub(super) calls: Vec<Call>,
    pub(super) errors: HashMap<&'static str, VecDeque<Status>>,
    pub(super) ends_at_once: HashMap<String, VecDeque<i32>>,
    pub(super) answers: HashMap<String, Answer>,
    pub(super) network_down: bool,
    /// Containers whose process has ended and that are still called running.
    pub(super) unnoted: HashSet<String>,
    pub(super) number: u64,
    pub(super) last_time: i64,
}

pub(super) struct Sandbox {
    pub(super) config: cri::PodSandboxConfig,
    pub(super) handler: String,
    pub(super) ready: bool,
    pub(super) created_at: i64,
    pub(super) ip: String,
}

pub(super) struct Container {
    pub(super) sandbox: String,
    pub(super) config: cri::ContainerConfig,
    pub(super) log: String,
    pub(super) status: cri::ContainerStatus,
}

impl Inner {
    /// Notes the call, lets it wait if the test says so, and fails it if the test says so.
    pub(super) async fn enter(&self, verb: &'static str, subject: impl Into<String>) -> Result<MutexGuard<'_, State>, Status> {
        lock(&self.state).calls.push(Call { verb, subject: subject.into() });
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| !held.contains(verb)).await;
        let mut state = lock(&self.state);
        match state.errors.get_mut(verb).and_then(VecDeque::pop_front) {
            Some(status) => Err(status),
            None => Ok(state),
        }
    }

    pub(super) fn publish<M: prost::Message + prost::Name>(&self, topic: &str, event: &M) {
        let _ = self.events.send(Envelope {
            timestamp: None,
            namespace: "k8s.io".to_owned(),
            topic: topic.to_owned(),
            event: Some(containerd_client::to_any(event)),
        });
    }

    pub(super) fn exits(&self, ended: Vec<(String, i32)>) {
        for (id, code) in ended {
            self.publish(
                "/tasks/exit",
                &payload::TaskExit { container_id: id.clone(), id, exit_status: code.unsigned_abs(), ..Default::default() },
            );
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(super) fn name_of(config: &cri::ContainerConfig) -> String {
    config.metadata.clone().unwrap_or_default().name
}

/// Nanoseconds since the epoch, never the same twice.
pub(super) fn now(state: &mut State) -> i64 {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = i64::try_from(clock.as_nanos()).unwrap_or(i64::MAX - 1);
    state.last_time = time.max(state.last_time + 1);
    state.last_time
}

/// 64 hexadecimal digits, as containerd's.
pub(super) fn new_id(state: &mut State) -> String {
    state.number += 1;
    format!("{:064x}", state.number)
}

pub(super) fn add_image(state: &mut State, name: &str) -> String {
    let name = normalise(name);
    // The same name is always the same image, two names are two.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let id = format!("sha256:{hash:064x}");
    let repository = name.rsplit_once(':').map_or(name.as_str(), |(r, _)| r);
    let image = cri::Image {
        id: id.clone(),
        repo_tags: vec![name.clone()],
        repo_digests: vec![format!("{repository}@{id}")],
        size: 1 << 20,
        ..Default::default()
    };
    state.images.insert(name, image);
    id
}

pub(super) fn find_image(state: &State, name: &str) -> Option<cri::Image> {
    let full = normalise(name);
    state.images.values().find(|i| i.id == name || i.repo_tags.contains(&full) || i.repo_digests.contains(&full)).cloned()
}

pub(super) fn end(state: &mut State, id: &str, code: i32, reason: &str) -> bool {
    let time = now(state);
    let Some(container) = state.containers.get_mut(id) else {
        return false;
    };
    if container.status.state() != ContainerState::ContainerRunning {
        return false;
    }
    container.status.set_state(ContainerState::ContainerExited);
    container.status.finished_at = time;
    container.status.exit_code = code;
    container.status.reason = reason.to_owned();
    true
}

/// The containers that ended with it; `None` if there is no such sandbox.
pub(super) fn stop_sandbox(state: &mut State, id: &str) -> Option<Vec<(String, i32)>> {
    state.sandboxes.get_mut(id)?.ready = false;
    let members: Vec<String> = state.containers.iter().filter(|(_, container)| container.sandbox == id).map(|(id, _)| id.clone()).collect();
    Some(members.into_iter().filter(|id| end(state, id, 137, "Error")).map(|id| (id, 137)).collect())
}

pub(super) fn no_sandbox(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find sandbox \"{id}\": not found"))
}

pub(super) fn no_container(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container \"{id}\": not found"))
}

pub(super) fn selected(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(super) type Reply<T> = Result<Response<T>, Status>;

pub(super) fn ok<T>(message: T) -> Reply<T> {
    Ok(Response::new(message))
}
