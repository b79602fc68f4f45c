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

mod runtime_service;
mod state;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use containerd_client::events as payload;
use runtime::cri::{self, ContainerState};
use runtime::import::normalise;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;

use self::state::{Inner, State, add_image, end, lock, name_of, stop_sandbox};
use self::wire::connection;

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

    /// Ends a running container's process and tells of it, while its status calls it running until [`FakeCri::note_exit`], as
    /// containerd's does while it cleans up.
    pub fn exit_unnoted(&self, id: &str, code: i32) {
        self.state().unnoted.insert(id.to_owned());
        self.exits(vec![(id.to_owned(), code)]);
    }

    /// Notes the end of such a container in its status; no event tells of that.
    pub fn note_exit(&self, id: &str, code: i32) {
        let mut state = self.state();
        state.unnoted.remove(id);
        end(&mut state, id, code, "Error");
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
