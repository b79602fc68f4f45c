//! A container runtime without containers: CRI v1 and containerd's event stream on a real unix socket, with the rules
//! of a real containerd (names are reserved, what is gone is not found, removing twice is fine) and a test's hand on
//! everything else: which calls fail or wait, which images exist, when a container ends.
//!
//! ```ignore
//! let runtime = FakeCri::start(dir.path()).await?;
//! runtime.add_image("docker.io/library/nginx:alpine");
//! runtime.fail_next("RunPodSandbox", Status::unknown("no network"));
//! let client = runtime::Client::connect(runtime.socket());
//! ```

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use containerd_client::events as payload;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use futures_util::stream::BoxStream;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use runtime::cri::image_service_server::{ImageService, ImageServiceServer};
use runtime::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use runtime::cri::{self, ContainerState, PodSandboxState};
use runtime::import::normalise;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Code, Request, Response, Status};

/// One call as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// As CRI names it.
    pub verb: &'static str,
    /// The id, name or image it was about.
    pub subject: String,
}

/// What a command run by ExecSync answers.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Error output.
    pub stderr: Vec<u8>,
    /// Exit status.
    pub exit_code: i32,
}

/// The runtime. Clones share it; it ends with [`FakeCri::stop`] or the last clone.
#[derive(Clone)]
pub struct FakeCri {
    inner: Arc<Inner>,
    server: Arc<Server>,
}

struct Server {
    socket: PathBuf,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(Some(task)) = self.task.get_mut().map(Option::take) {
            task.abort();
        }
    }
}

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<Envelope>,
    /// Verbs whose calls wait, and a way to learn that this changed.
    held: watch::Sender<HashSet<&'static str>>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: BTreeMap<String, cri::Image>,
    pullable: HashSet<String>,
    calls: Vec<Call>,
    errors: HashMap<&'static str, VecDeque<Status>>,
    ends_at_once: HashMap<String, VecDeque<i32>>,
    answers: HashMap<String, Answer>,
    network_down: bool,
    number: u64,
    last_time: i64,
}

struct Sandbox {
    config: cri::PodSandboxConfig,
    handler: String,
    ready: bool,
    created_at: i64,
    ip: String,
}

struct Container {
    sandbox: String,
    config: cri::ContainerConfig,
    log: String,
    status: cri::ContainerStatus,
}

impl FakeCri {
    /// Serves on `directory/cri.sock`.
    pub async fn start(directory: &Path) -> std::io::Result<Self> {
        let fake = Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State::default()),
                events: broadcast::channel(1024).0,
                held: watch::channel(HashSet::new()).0,
            }),
            server: Arc::new(Server { socket: directory.join("cri.sock"), task: Mutex::new(None) }),
        };
        fake.serve()?;
        Ok(fake)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.server.socket
    }

    /// Ends all connections and stops listening, as a killed containerd does. Pods stay.
    pub async fn stop(&self) {
        let task = lock(&self.server.task).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
        let _ = std::fs::remove_file(&self.server.socket);
    }

    /// Listens again after [`FakeCri::stop`], with everything as it was.
    pub fn serve(&self) -> std::io::Result<()> {
        let listener = UnixListener::bind(&self.server.socket)?;
        let inner = self.inner.clone();
        let task = tokio::spawn(async move {
            // Dropping the set ends the connections with the listener.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        connections.spawn(connection(stream, inner.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        *lock(&self.server.task) = Some(task);
        Ok(())
    }

    /// Puts an image on the node.
    pub fn add_image(&self, name: &str) {
        let mut state = self.state();
        add_image(&mut state, name);
    }

    /// Takes an image off the node.
    pub fn drop_image(&self, name: &str) {
        self.state().images.remove(&normalise(name));
    }

    /// Lets PullImage succeed for a name; without this it answers as a registry without that image.
    pub fn allow_pull(&self, name: &str) {
        self.state().pullable.insert(normalise(name));
    }

    /// The next call of `verb` answers this. More of them queue up.
    pub fn fail_next(&self, verb: &'static str, status: Status) {
        self.state().errors.entry(verb).or_default().push_back(status);
    }

    /// Calls of `verb` arrive but are not answered until [`FakeCri::release`].
    pub fn hold(&self, verb: &'static str) {
        self.inner.held.send_modify(|held| {
            held.insert(verb);
        });
    }

    /// Lets held calls of `verb` go on.
    pub fn release(&self, verb: &'static str) {
        self.inner.held.send_modify(|held| {
            held.remove(verb);
        });
    }

    /// Containers of this name end by themselves right after their start: the first with the first code, and so on;
    /// when the codes are used up they run.
    pub fn ends_at_once(&self, container_name: &str, codes: &[i32]) {
        let mut state = self.state();
        let queue = state.ends_at_once.entry(container_name.to_owned()).or_default();
        queue.extend(codes);
    }

    /// What ExecSync answers for a command; without this it answers exit code 0 and no output.
    pub fn answer_exec(&self, command: &[&str], answer: Answer) {
        self.state().answers.insert(command.join(" "), answer);
    }

    /// Whether Status reports the network as ready.
    pub fn set_network_ready(&self, ready: bool) {
        self.state().network_down = !ready;
    }

    /// Ends a running container, as its own process would.
    pub fn exit(&self, id: &str, code: i32) {
        self.ended(id, code, if code == 0 { "Completed" } else { "Error" });
    }

    /// Ends a running container as the kernel does for lack of memory.
    pub fn kill_for_memory(&self, id: &str) {
        self.publish("/tasks/oom", &payload::TaskOom { container_id: id.to_owned() });
        self.ended(id, 137, "OOMKilled");
    }

    /// Ends a sandbox's pause process: the sandbox is no longer ready, its containers die.
    pub fn kill_sandbox(&self, id: &str) {
        let mut state = self.state();
        let ended = stop_sandbox(&mut state, id);
        drop(state);
        self.exits(ended.unwrap_or_default());
        self.exits(vec![(id.to_owned(), 137)]);
    }

    /// All calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// How many calls of `verb` there were.
    pub fn count(&self, verb: &str) -> usize {
        self.state().calls.iter().filter(|c| c.verb == verb).count()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.state().calls.clear();
    }

    /// Verbs that changed something, in order, without the looking about between them.
    pub fn changes(&self) -> Vec<Call> {
        let looks = ["Version", "Status", "RuntimeConfig"];
        self.calls()
            .into_iter()
            .filter(|call| !call.verb.starts_with("List") && !call.verb.ends_with("Status"))
            .filter(|call| !looks.contains(&call.verb))
            .collect()
    }

    /// Ids of all sandboxes, and whether they are ready.
    pub fn sandboxes(&self) -> BTreeMap<String, bool> {
        let state = self.state();
        state.sandboxes.iter().map(|(id, sandbox)| (id.clone(), sandbox.ready)).collect()
    }

    /// The configuration a sandbox was made with.
    pub fn sandbox_config(&self, id: &str) -> Option<cri::PodSandboxConfig> {
        self.state().sandboxes.get(id).map(|s| s.config.clone())
    }

    /// Ids of all containers with their states and names.
    pub fn containers(&self) -> BTreeMap<String, (String, ContainerState)> {
        let state = self.state();
        state.containers.iter().map(|(id, c)| (id.clone(), (name_of(&c.config), c.status.state()))).collect()
    }

    /// The configuration a container was made with.
    pub fn container_config(&self, id: &str) -> Option<cri::ContainerConfig> {
        self.state().containers.get(id).map(|c| c.config.clone())
    }

    /// The running container of a name, if there is exactly one.
    pub fn running(&self, name: &str) -> Option<String> {
        let mut found = self.containers().into_iter().filter(|(_, (n, state))| n == name && *state == ContainerState::ContainerRunning);
        match (found.next(), found.next()) {
            (Some((id, _)), None) => Some(id),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    fn publish<M: prost::Message + prost::Name>(&self, topic: &str, event: &M) {
        self.inner.publish(topic, event);
    }

    fn ended(&self, id: &str, code: i32, reason: &str) {
        let mut state = self.state();
        if end(&mut state, id, code, reason) {
            drop(state);
            self.exits(vec![(id.to_owned(), code)]);
        }
    }

    fn exits(&self, ended: Vec<(String, i32)>) {
        self.inner.exits(ended);
    }
}

impl Inner {
    /// Notes the call, lets it wait if the test says so, and fails it if the test says so.
    async fn enter(&self, verb: &'static str, subject: impl Into<String>) -> Result<MutexGuard<'_, State>, Status> {
        lock(&self.state).calls.push(Call { verb, subject: subject.into() });
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| !held.contains(verb)).await;
        let mut state = lock(&self.state);
        match state.errors.get_mut(verb).and_then(VecDeque::pop_front) {
            Some(status) => Err(status),
            None => Ok(state),
        }
    }

    fn publish<M: prost::Message + prost::Name>(&self, topic: &str, event: &M) {
        let _ = self.events.send(Envelope {
            timestamp: None,
            namespace: "k8s.io".to_owned(),
            topic: topic.to_owned(),
            event: Some(containerd_client::to_any(event)),
        });
    }

    fn exits(&self, ended: Vec<(String, i32)>) {
        for (id, code) in ended {
            self.publish(
                "/tasks/exit",
                &payload::TaskExit { container_id: id.clone(), id, exit_status: code.unsigned_abs(), ..Default::default() },
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn name_of(config: &cri::ContainerConfig) -> String {
    config.metadata.clone().unwrap_or_default().name
}

/// Nanoseconds since the epoch, never the same twice.
fn now(state: &mut State) -> i64 {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = i64::try_from(clock.as_nanos()).unwrap_or(i64::MAX - 1);
    state.last_time = time.max(state.last_time + 1);
    state.last_time
}

/// 64 hexadecimal digits, as containerd's.
fn new_id(state: &mut State) -> String {
    state.number += 1;
    format!("{:064x}", state.number)
}

fn add_image(state: &mut State, name: &str) -> String {
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

fn find_image(state: &State, name: &str) -> Option<cri::Image> {
    let full = normalise(name);
    state.images.values().find(|i| i.id == name || i.repo_tags.contains(&full) || i.repo_digests.contains(&full)).cloned()
}

fn end(state: &mut State, id: &str, code: i32, reason: &str) -> bool {
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
fn stop_sandbox(state: &mut State, id: &str) -> Option<Vec<(String, i32)>> {
    state.sandboxes.get_mut(id)?.ready = false;
    let members: Vec<String> = state.containers.iter().filter(|(_, container)| container.sandbox == id).map(|(id, _)| id.clone()).collect();
    Some(members.into_iter().filter(|id| end(state, id, 137, "Error")).map(|id| (id, 137)).collect())
}

fn no_sandbox(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find sandbox \"{id}\": not found"))
}

fn no_container(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container \"{id}\": not found"))
}

fn selected(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

type Reply<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> Reply<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl RuntimeService for Inner {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        let _state = self.enter("Version", "").await?;
        ok(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "containerd".into(),
            runtime_version: "1.6.20".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Reply<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let mut state = self.enter("RunPodSandbox", metadata.name.clone()).await?;
        let taken = state.sandboxes.iter().find(|(_, other)| {
            let other = other.config.metadata.clone().unwrap_or_default();
            (other.uid, other.attempt) == (metadata.uid.clone(), metadata.attempt)
        });
        if let Some((id, _)) = taken {
            return Err(Status::unknown(format!("failed to reserve sandbox name \"{name}\": name \"{name}\" is reserved for \"{id}\"")));
        }
        let id = new_id(&mut state);
        let created_at = now(&mut state);
        let host_network = config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref())
            .and_then(|s| s.namespace_options.as_ref())
            .is_some_and(|n| n.network() == cri::NamespaceMode::Node);
        let ip = if host_network {
            String::new()
        } else {
            let host = u32::try_from(state.number % 0xffff).unwrap_or(1);
            Ipv4Addr::from(0x0a2a_0000 + host).to_string()
        };
        state.sandboxes.insert(id.clone(), Sandbox { config, handler: request.runtime_handler, ready: true, created_at, ip });
        ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(&self, request: Request<cri::StopPodSandboxRequest>) -> Reply<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.enter("StopPodSandbox", id.clone()).await?;
        let was_ready = state.sandboxes.get(&id).is_some_and(|s| s.ready);
        let mut ended = stop_sandbox(&mut state, &id).ok_or_else(|| no_sandbox(&id))?;
        drop(state);
        if was_ready {
            ended.push((id, 137));
        }
        self.exits(ended);
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: Request<cri::RemovePodSandboxRequest>) -> Reply<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.enter("RemovePodSandbox", id.clone()).await?;
        let ended = stop_sandbox(&mut state, &id).unwrap_or_default();
        let mut gone: Vec<String> = Vec::new();
        state.containers.retain(|container_id, container| {
            let stays = container.sandbox != id;
            if !stays {
                gone.push(container_id.clone());
            }
            stays
        });
        if state.sandboxes.remove(&id).is_some() {
            gone.push(id);
        }
        drop(state);
        self.exits(ended);
        for id in gone {
            self.publish("/containers/delete", &payload::ContainerDelete { id });
        }
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: Request<cri::PodSandboxStatusRequest>) -> Reply<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.enter("PodSandboxStatus", id.clone()).await?;
        let sandbox = state.sandboxes.get(&id).ok_or_else(|| no_sandbox(&id))?;
        let options = sandbox.config.linux.as_ref().and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.clone());
        let status = cri::PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: sandbox_state(sandbox).into(),
            created_at: sandbox.created_at,
            // A stopped sandbox has given its address back.
            network: Some(cri::PodSandboxNetworkStatus {
                ip: if sandbox.ready { sandbox.ip.clone() } else { String::new() },
                additional_ips: Vec::new(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options }) }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            runtime_handler: sandbox.handler.clone(),
        };
        ok(cri::PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandbox(&self, request: Request<cri::ListPodSandboxRequest>) -> Reply<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.enter("ListPodSandbox", "").await?;
        let items = state
            .sandboxes
            .iter()
            .filter(|(id, sandbox)| (filter.id.is_empty() || filter.id == **id) && selected(&filter.label_selector, &sandbox.config.labels))
            .map(|(id, sandbox)| cri::PodSandbox {
                id: id.clone(),
                metadata: sandbox.config.metadata.clone(),
                state: sandbox_state(sandbox).into(),
                created_at: sandbox.created_at,
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
                runtime_handler: sandbox.handler.clone(),
            })
            .collect();
        ok(cri::ListPodSandboxResponse { items })
    }

    async fn create_container(&self, request: Request<cri::CreateContainerRequest>) -> Reply<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut state = self.enter("CreateContainer", metadata.name.clone()).await?;
        let sandbox_id = request.pod_sandbox_id;
        let ready = state.sandboxes.get(&sandbox_id).ok_or_else(|| no_sandbox(&sandbox_id))?.ready;
        if !ready {
            return Err(Status::unknown(format!(
                "failed to get sandbox container task: no running task found: task {sandbox_id} not found: not found"
            )));
        }
        let taken = state.containers.iter().find(|(_, other)| {
            let other_metadata = other.config.metadata.clone().unwrap_or_default();
            other.sandbox == sandbox_id && other_metadata == metadata
        });
        if let Some((id, _)) = taken {
            let name = &metadata.name;
            return Err(Status::unknown(format!("failed to reserve container name \"{name}\": name \"{name}\" is reserved for \"{id}\"")));
        }
        let wanted = config.image.clone().unwrap_or_default().image;
        let image =
            find_image(&state, &wanted).ok_or_else(|| Status::not_found(format!("failed to resolve image \"{wanted}\": not found")))?;
        let id = new_id(&mut state);
        let created_at = now(&mut state);
        let directory = request.sandbox_config.unwrap_or_default().log_directory;
        let log = Path::new(&directory).join(&config.log_path).display().to_string();
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated.into(),
            created_at,
            image: image.repo_tags.first().map(|tag| cri::ImageSpec { image: tag.clone(), ..Default::default() }),
            image_ref: image.repo_digests.first().cloned().unwrap_or(image.id),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: log.clone(),
            ..Default::default()
        };
        state.containers.insert(id.clone(), Container { sandbox: sandbox_id, config, log, status });
        ok(cri::CreateContainerResponse { container_id: id })
    }

    async fn start_container(&self, request: Request<cri::StartContainerRequest>) -> Reply<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.enter("StartContainer", id.clone()).await?;
        let time = now(&mut state);
        let container = state.containers.get_mut(&id).ok_or_else(|| no_container(&id))?;
        if container.status.state() != ContainerState::ContainerCreated {
            return Err(Status::unknown(format!(
                "failed to set starting state for container \"{id}\": container is in {} state",
                container.status.state().as_str_name()
            )));
        }
        container.status.set_state(ContainerState::ContainerRunning);
        container.status.started_at = time;
        let name = name_of(&container.config);
        let log = container.log.clone();
        let ends = state.ends_at_once.get_mut(&name).and_then(VecDeque::pop_front);
        if let Some(code) = ends {
            end(&mut state, &id, code, if code == 0 { "Completed" } else { "Error" });
        }
        drop(state);
        touch(&log);
        self.publish("/tasks/start", &payload::TaskStart { container_id: id.clone(), pid: 1 });
        if let Some(code) = ends {
            self.exits(vec![(id, code)]);
        }
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Reply<cri::StopContainerResponse> {
        let request = request.into_inner();
        let id = request.container_id;
        let mut state = self.enter("StopContainer", id.clone()).await?;
        if !state.containers.contains_key(&id) {
            return Err(no_container(&id));
        }
        let code = if request.timeout > 0 { 143 } else { 137 };
        let ended = end(&mut state, &id, code, "Error");
        drop(state);
        if ended {
            self.exits(vec![(id, code)]);
        }
        ok(cri::StopContainerResponse {})
    }

    async fn remove_container(&self, request: Request<cri::RemoveContainerRequest>) -> Reply<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.enter("RemoveContainer", id.clone()).await?;
        let ended = end(&mut state, &id, 137, "Error");
        let existed = state.containers.remove(&id).is_some();
        drop(state);
        if ended {
            self.exits(vec![(id.clone(), 137)]);
        }
        if existed {
            self.publish("/containers/delete", &payload::ContainerDelete { id });
        }
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: Request<cri::ListContainersRequest>) -> Reply<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.enter("ListContainers", "").await?;
        let containers = state
            .containers
            .iter()
            .filter(|(id, container)| {
                (filter.id.is_empty() || filter.id == **id)
                    && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox)
                    && selected(&filter.label_selector, &container.config.labels)
            })
            .map(|(id, container)| cri::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                image: container.config.image.clone(),
                image_ref: container.status.image_ref.clone(),
                state: container.status.state,
                created_at: container.status.created_at,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
                image_id: String::new(),
            })
            .collect();
        ok(cri::ListContainersResponse { containers })
    }

    async fn container_status(&self, request: Request<cri::ContainerStatusRequest>) -> Reply<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ContainerStatus", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ContainerStatusResponse { status: Some(container.status.clone()), info: BTreeMap::new() })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Reply<cri::UpdateContainerResourcesResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("UpdateContainerResources", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(&self, request: Request<cri::ReopenContainerLogRequest>) -> Reply<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ReopenContainerLog", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        touch(&container.log);
        ok(cri::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Reply<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let command = request.cmd.join(" ");
        let state = self.enter("ExecSync", command.clone()).await?;
        let running = state.containers.get(&request.container_id).ok_or_else(|| no_container(&request.container_id))?.status.state()
            == ContainerState::ContainerRunning;
        if !running {
            return Err(Status::unknown("container is in CONTAINER_EXITED state"));
        }
        let answer = state.answers.get(&command).cloned().unwrap_or_default();
        ok(cri::ExecSyncResponse { stdout: answer.stdout.into(), stderr: answer.stderr.into(), exit_code: answer.exit_code })
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("Exec", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ExecResponse { url: "http://127.0.0.1:1/exec/token".into() })
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Reply<cri::AttachResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("Attach", id.clone()).await?;
        state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::AttachResponse { url: "http://127.0.0.1:1/attach/token".into() })
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Reply<cri::PortForwardResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.enter("PortForward", id.clone()).await?;
        state.sandboxes.get(&id).ok_or_else(|| no_sandbox(&id))?;
        ok(cri::PortForwardResponse { url: "http://127.0.0.1:1/portforward/token".into() })
    }

    async fn container_stats(&self, request: Request<cri::ContainerStatsRequest>) -> Reply<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let state = self.enter("ContainerStats", id.clone()).await?;
        let container = state.containers.get(&id).ok_or_else(|| no_container(&id))?;
        ok(cri::ContainerStatsResponse { stats: Some(stats(&id, container)) })
    }

    async fn list_container_stats(&self, _: Request<cri::ListContainerStatsRequest>) -> Reply<cri::ListContainerStatsResponse> {
        let state = self.enter("ListContainerStats", "").await?;
        let stats = state
            .containers
            .iter()
            .filter(|(_, c)| c.status.state() == ContainerState::ContainerRunning)
            .map(|(id, c)| stats(id, c))
            .collect();
        ok(cri::ListContainerStatsResponse { stats })
    }

    async fn update_runtime_config(&self, _: Request<cri::UpdateRuntimeConfigRequest>) -> Reply<cri::UpdateRuntimeConfigResponse> {
        let _state = self.enter("UpdateRuntimeConfig", "").await?;
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Reply<cri::StatusResponse> {
        let state = self.enter("Status", "").await?;
        let condition = |name: &str, up: bool, reason: &str, message: &str| cri::RuntimeCondition {
            r#type: name.into(),
            status: up,
            reason: if up { String::new() } else { reason.into() },
            message: if up { String::new() } else { message.into() },
        };
        ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, "", ""),
                    condition(
                        "NetworkReady",
                        !state.network_down,
                        "NetworkPluginNotReady",
                        "Network plugin returns error: cni plugin not initialized",
                    ),
                ],
            }),
            ..Default::default()
        })
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Reply<cri::RuntimeConfigResponse> {
        // As containerd 1.6 and 1.7 answer.
        Err(Status::unimplemented("unknown method RuntimeConfig"))
    }
}

fn sandbox_state(sandbox: &Sandbox) -> PodSandboxState {
    if sandbox.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

fn stats(id: &str, container: &Container) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        ..Default::default()
    }
}

/// The log file is there from the start on.
fn touch(log: &str) {
    let path = Path::new(log);
    if let Some(directory) = path.parent() {
        let _ = std::fs::create_dir_all(directory);
    }
    let _ = std::fs::OpenOptions::new().create(true).append(true).open(path);
}

#[tonic::async_trait]
impl ImageService for Inner {
    async fn list_images(&self, _: Request<cri::ListImagesRequest>) -> Reply<cri::ListImagesResponse> {
        let state = self.enter("ListImages", "").await?;
        ok(cri::ListImagesResponse { images: state.images.values().cloned().collect() })
    }

    async fn image_status(&self, request: Request<cri::ImageStatusRequest>) -> Reply<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let state = self.enter("ImageStatus", name.clone()).await?;
        ok(cri::ImageStatusResponse { image: find_image(&state, &name), info: BTreeMap::new() })
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Reply<cri::PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let full = normalise(&name);
        let mut state = self.enter("PullImage", name).await?;
        if !state.pullable.contains(&full) {
            return Err(Status::not_found(format!(
                "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": {full}: not found"
            )));
        }
        let image_ref = add_image(&mut state, &full);
        ok(cri::PullImageResponse { image_ref })
    }

    async fn remove_image(&self, request: Request<cri::RemoveImageRequest>) -> Reply<cri::RemoveImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let mut state = self.enter("RemoveImage", name.clone()).await?;
        if let Some(image) = find_image(&state, &name) {
            state.images.retain(|_, other| other.id != image.id);
        }
        ok(cri::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Reply<cri::ImageFsInfoResponse> {
        let _state = self.enter("ImageFsInfo", "").await?;
        ok(cri::ImageFsInfoResponse::default())
    }
}

/// One HTTP/2 connection, with the three services told apart by path.
async fn connection(stream: tokio::net::UnixStream, inner: Arc<Inner>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(route(inner, request).await) }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn route(inner: Arc<Inner>, request: http::Request<Incoming>) -> http::Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let answer = if path.starts_with("/runtime.v1.RuntimeService/") {
        RuntimeServiceServer::from_arc(inner).call(request).await
    } else if path.starts_with("/runtime.v1.ImageService/") {
        ImageServiceServer::from_arc(inner).call(request).await
    } else if path == "/containerd.services.events.v1.Events/Subscribe" {
        let codec = tonic_prost::ProstCodec::default();
        Ok(tonic::server::Grpc::new(codec).server_streaming(Subscribe(inner), request).await)
    } else if path == "/containerd.services.events.v1.Events/Publish" {
        let codec = tonic_prost::ProstCodec::default();
        Ok(tonic::server::Grpc::new(codec).unary(Publish(inner), request).await)
    } else {
        Ok(Status::new(Code::Unimplemented, format!("unknown method {path}")).into_http())
    };
    answer.unwrap_or_else(|never| match never {})
}

struct Subscribe(Arc<Inner>);

impl tonic::server::ServerStreamingService<SubscribeRequest> for Subscribe {
    type Response = Envelope;
    type ResponseStream = BoxStream<'static, Result<Envelope, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<SubscribeRequest>) -> Self::Future {
        // Filters are exact topics in this project; a topic no filter names is not sent.
        let filters = request.into_inner().filters;
        let events = self.0.events.subscribe();
        let stream = futures_util::stream::unfold((events, filters), |(mut events, filters)| async {
            loop {
                let envelope = events.recv().await.ok()?;
                let wanted = format!("topic==\"{}\"", envelope.topic);
                if filters.iter().any(|filter| filter.contains(&wanted)) {
                    return Some((Ok(envelope), (events, filters)));
                }
            }
        });
        Box::pin(async { Ok(Response::new(Box::pin(stream) as BoxStream<'static, _>)) })
    }
}

struct Publish(Arc<Inner>);

impl tonic::server::UnaryService<PublishRequest> for Publish {
    type Response = ();
    type Future = BoxFuture<Response<()>, Status>;

    fn call(&mut self, request: Request<PublishRequest>) -> Self::Future {
        let request = request.into_inner();
        let _ =
            self.0.events.send(Envelope { timestamp: None, namespace: "k8s.io".to_owned(), topic: request.topic, event: request.event });
        Box::pin(async { Ok(Response::new(())) })
    }
}
