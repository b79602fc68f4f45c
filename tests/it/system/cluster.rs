//! A cluster on this machine: `edge-server` on a bridge, each node in network and mount namespaces of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::kubectl::Kubectl;
use super::process::{Process, naming, output, sh, tail};
use super::{Machine, wait_for};

/// Until a node is Ready on a slow machine, images imported.
const READY: Duration = Duration::from_secs(120);

/// What a test may choose.
pub(crate) struct Options {
    pub(crate) nodes: usize,
    /// Lines added to every node's configuration.
    pub(crate) config: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, config: "" }
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ip: String,
    pub(crate) dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) config: PathBuf,
    /// Keeps the namespaces alive.
    holder: Process,
    agent: Option<Process>,
    bin: PathBuf,
    log: PathBuf,
}

impl Node {
    /// `program` inside the node's namespaces.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.pid().to_string(), "--net", "--mount", "--root", "--"]).arg(program);
        command
    }

    /// Runs a short command in the node that must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, program: &str, args: &[&str]) -> String {
        self.try_sh(program, args).unwrap_or_else(|seen| panic!("{program} {args:?} on {}: {seen}", self.name))
    }

    pub(crate) fn try_sh(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let mut command = self.command(program);
        command.args(args);
        output(command, Duration::from_secs(30)).ok()
    }

    /// Body of a page as seen from the node.
    pub(crate) fn fetch(&self, url: &str) -> Result<String, String> {
        self.try_sh("curl", &["-sS", "--fail", "--max-time", "10", url])
    }

    /// `edge-agent ARGS --config …` to its end.
    pub(crate) fn edge_agent(&self, args: &[&str]) -> super::process::Output {
        let mut command = self.command(self.bin.join("edge-agent"));
        command.args(args).arg("--config").arg(&self.config);
        output(command, Duration::from_secs(60))
    }

    /// `edge-agent join` under its own name, which must succeed.
    pub(crate) fn join(&self, url: &str, token_file: &str) {
        let joined = self.edge_agent(&["join", url, "--token-file", token_file, "--node-name", &self.name]);
        assert_eq!(joined.code, Some(0), "edge-agent join: {joined:?}");
    }

    /// Starts `edge-agent run`.
    pub(crate) fn start(&mut self) {
        let mut command = self.command(self.bin.join("edge-agent"));
        command.arg("run").arg("--config").arg(&self.config);
        self.agent = Some(Process::start(command, &self.log));
    }

    /// Kills the agent without warning; containerd and the pods stay.
    pub(crate) fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Pid of the running agent: `nsenter` becomes it.
    #[allow(dead_code, reason = "only the tests with real servers ask")]
    pub(crate) fn agent_pid(&self) -> i32 {
        let pid = self.agent.as_ref().expect("was started").pid();
        i32::try_from(pid).expect("the kernel's pids fit")
    }

    /// Paths of this node's cgroup in every hierarchy that has it.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        roots.into_iter().map(|root| root.join(&self.name)).filter(|path| path.is_dir()).collect()
    }

    /// Pids of containerd and its shims, found by the directories they were given.
    pub(crate) fn containerd(&self) -> Vec<i32> {
        let of_node = naming(&self.dir).into_iter().chain(naming(&self.run_dir));
        let mut pids: Vec<i32> = of_node.filter(|pid| comm(*pid) == "containerd").collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// containerd's socket, once it is there.
    pub(crate) fn containerd_socket(&self) -> Option<PathBuf> {
        find_file(&self.run_dir, "containerd.sock").or_else(|| find_file(&self.dir, "containerd.sock"))
    }

    /// What containerd runs, asked over CRI: container id → (pod name, container name, attempt, running, started at).
    pub(crate) fn containers(&self) -> Result<BTreeMap<String, Seen>, String> {
        let socket = self.containerd_socket().ok_or("no containerd socket yet")?;
        ask(async move {
            let client = runtime::Client::connect(&socket);
            let pods = runtime::observe::observe(&client).await.map_err(|error| error.to_string())?;
            let mut found = BTreeMap::new();
            for pod in pods.values() {
                for container in &pod.containers {
                    let running = container.state == runtime::cri::ContainerState::ContainerRunning;
                    let seen = Seen {
                        pod: pod.name.clone(),
                        name: container.name.clone(),
                        attempt: container.attempt,
                        running,
                        started_at: container.started_at,
                    };
                    found.insert(container.id.as_str().to_owned(), seen);
                }
            }
            Ok(found)
        })
    }

    /// Sandboxes by id, with the pod they belong to and whether they are ready.
    pub(crate) fn sandboxes(&self) -> Result<BTreeMap<String, (String, bool)>, String> {
        let socket = self.containerd_socket().ok_or("no containerd socket yet")?;
        ask(async move {
            let client = runtime::Client::connect(&socket);
            let pods = runtime::observe::observe(&client).await.map_err(|error| error.to_string())?;
            let all = pods.values().flat_map(|pod| pod.sandboxes.iter().map(|s| (s.id.as_str().to_owned(), (pod.name.clone(), s.ready))));
            Ok(all.collect())
        })
    }
}

/// One container as containerd shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pod: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) running: bool,
    pub(crate) started_at: i64,
}

fn ask<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let asking = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    asking.block_on(question)
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// First file or socket of this name at most three levels below `dir`.
fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut level = vec![dir.to_owned()];
    for _ in 0..4 {
        let mut next = Vec::new();
        for dir in &level {
            let file = dir.join(name);
            if file.exists() {
                return Some(file);
            }
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            next.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()));
        }
        level = next;
    }
    None
}

/// Everything, removed when dropped.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    run_dir: PathBuf,
    pub(crate) server_url: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) kubectl: Kubectl,
    server: Option<Process>,
    bin: PathBuf,
    listen: String,
    subnet: String,
    prefix: String,
    links: Vec<String>,
    /// Named network namespaces that are not a node's.
    namespaces: Vec<String>,
}

impl Cluster {
    /// Starts the server and the nodes and waits until all are Ready.
    pub(crate) fn start(machine: &Machine, options: &Options) -> Self {
        let mut cluster = Self::bare(machine);
        cluster.start_server();
        for _ in 0..options.nodes {
            cluster.add_node(machine, options.config);
        }
        cluster.join_and_start();
        cluster.wait_ready(options.nodes);
        cluster
    }

    /// A bridge and directories, no server and no node yet.
    pub(crate) fn bare(machine: &Machine) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short enough for interface names, different from every other run on this machine.
        let prefix = format!("e{:x}{number}", std::process::id());
        let base = std::env::var_os("EDGE_TEST_DIR").map_or_else(|| PathBuf::from("/var/lib/edge-agent-tests"), PathBuf::from);
        let dir = base.join(&prefix);
        let run_dir = PathBuf::from("/run").join(format!("edge-{prefix}"));
        std::fs::create_dir_all(dir.join("home")).expect("test directory is made");
        std::fs::create_dir_all(&run_dir).expect("run directory is made");

        let subnet = free_subnet();
        let bridge = format!("{prefix}b");
        let kubectl = Kubectl::new(&machine.kubectls[0].1, &dir.join("server/kubeconfig.yaml"), &dir.join("home"));
        let cluster = Self {
            server_url: format!("https://{subnet}.1:6443"),
            listen: format!("{subnet}.1:6443"),
            subnet,
            bin: machine.bin.clone(),
            links: vec![bridge.clone()],
            nodes: Vec::new(),
            namespaces: Vec::new(),
            server: None,
            dir,
            run_dir,
            kubectl,
            prefix,
        };
        sh("ip", &["link", "add", &bridge, "type", "bridge"]);
        sh("ip", &["addr", "add", &format!("{}.1/24", cluster.subnet), "dev", &bridge]);
        sh("ip", &["link", "set", &bridge, "up"]);
        cluster
    }

    /// A network namespace on the bridge for something that is not a node, e.g. a server; `number` (1 to 9) tells them
    /// apart. Gives its name, its address and its link on the bridge.
    #[allow(dead_code, reason = "only the tests with real servers have such")]
    pub(crate) fn add_namespace(&mut self, number: u8) -> (String, String, String) {
        let (name, link) = (format!("{}-s{number}", self.prefix), format!("{}s{number}", self.prefix));
        let ip = format!("{}.{}", self.subnet, 100 + number);
        sh("ip", &["netns", "add", &name]);
        self.namespaces.push(name.clone());
        sh("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        self.links.push(link.clone());
        sh("ip", &["link", "set", &link, "master", &self.links[0], "up"]);
        for args in [
            ["addr", "add", &format!("{ip}/24"), "dev", "eth0"].as_slice(),
            &["link", "set", "lo", "up"],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &format!("{}.1", self.subnet)],
        ] {
            let mut all = vec!["-n", name.as_str()];
            all.extend_from_slice(args);
            sh("ip", &all);
        }
        (name, ip, link)
    }

    /// Starts `edge-server` (again) on its data.
    pub(crate) fn start_server(&mut self) {
        let mut command = Command::new(self.bin.join("edge-server"));
        command.arg("--data-dir").arg(self.dir.join("server")).args(["--listen", &self.listen]);
        self.server = Some(Process::start(command, &self.dir.join("server.log")));
        let (kubectl, server) = (&self.kubectl, self.server.as_mut().expect("just started"));
        wait_for(Duration::from_secs(30), "edge-server answers", || {
            if let Some(status) = server.ended() {
                panic!("edge-server ended with {status}: {}", server.tail());
            }
            kubectl.get(&["get", "--raw", "/readyz"])
        });
    }

    /// Kills the server without warning.
    pub(crate) fn kill_server(&mut self) {
        self.server = None;
    }

    /// Makes a node with its namespaces and configuration that nobody has joined yet.
    pub(crate) fn add_node(&mut self, machine: &Machine, config: &str) -> &Node {
        let index = self.nodes.len() + 1;
        let (name, extra, subnet) = (format!("{}-n{index}", self.prefix), config, self.subnet.clone());
        let (dir, run_dir) = (self.dir.join(&name), self.run_dir.join(index.to_string()));
        std::fs::create_dir_all(dir.join("images")).expect("node directory is made");
        std::fs::create_dir_all("/var/lib/cni").expect("mount point is made");
        for entry in std::fs::read_dir(&machine.images).expect("images are listed").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "tar") {
                std::fs::copy(entry.path(), dir.join("images").join(entry.file_name())).expect("image is copied");
            }
        }
        let ip = format!("{subnet}.{}", 10 + index);
        let link = format!("{}{index}", self.prefix);
        sh("ip", &["netns", "add", &name]);
        sh("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        self.links.push(link.clone());
        sh("ip", &["link", "set", &link, "master", &self.links[0], "up"]);
        // A mount namespace of its own: its pods' network namespaces, CNI state and mounts vanish with its last process.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).args(["unshare", "--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mkdir -p \"$1/cni\" && mount -t tmpfs none /run/netns && mount --bind \"$1/cni\" /var/lib/cni && touch \"$1/up\" && exec sleep infinity");
        command.arg("sh").arg(&dir);
        let holder = Process::start(command, &self.dir.join(format!("{name}-namespaces.log")));
        wait_for(Duration::from_secs(10), "namespaces of the node", || if dir.join("up").exists() { Ok(()) } else { Err(holder.tail()) });
        let config = self.dir.join(format!("{name}.yaml"));
        let (d, r) = (dir.display(), run_dir.display());
        // The share of free bytes on a large disk of the machine that tests says nothing about them.
        let text = format!(
            "node-ip: {ip}\ndata-dir: {d}\nrun-dir: {r}\ncontainerd: managed\npod-logs-dir: {d}/pod-logs\n\
             node-password-file: {d}/password\nkubelet-arg:\n  - root-dir={d}/kubelet\n  - cgroup-root=/{name}\n  - eviction-hard=nodefs.available<1Gi\n{extra}"
        );
        std::fs::write(&config, text).expect("configuration is written");
        let log = self.dir.join(format!("{name}.log"));
        let node = Node { name, ip, dir, run_dir, config, holder, agent: None, bin: self.bin.clone(), log };
        node.sh("ip", &["link", "set", "lo", "up"]);
        node.sh("ip", &["addr", "add", &format!("{}/24", node.ip), "dev", "eth0"]);
        node.sh("ip", &["link", "set", "eth0", "up"]);
        node.sh("ip", &["route", "add", "default", "via", &format!("{subnet}.1")]);
        self.nodes.push(node);
        self.nodes.last().expect("just added")
    }

    /// What a node needs to join.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("server/token")).expect("the server wrote a token").trim().to_owned()
    }

    /// Certificate and key of the administrator as files, for clients that are not kubectl.
    pub(crate) fn admin_files(&self) -> (String, String) {
        let config = self.kubectl.ok(&["config", "view", "--raw", "-o", "json"]);
        let config: Value = serde_json::from_str(&config).expect("json");
        let user = &config["users"][0]["user"];
        let file = |name: &str, key: &str| {
            let path = self.dir.join(name);
            let data = STANDARD.decode(user[key].as_str().unwrap_or_default()).expect("base64");
            std::fs::write(&path, data).expect("written");
            path.display().to_string()
        };
        (file("admin.crt", "client-certificate-data"), file("admin.key", "client-key-data"))
    }

    fn join_and_start(&mut self) {
        let token = self.dir.join("server/token").display().to_string();
        for node in &mut self.nodes {
            node.join(&self.server_url, &token);
            node.start();
        }
    }

    /// Waits until `count` nodes are Ready.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self, count: usize) {
        let kubectl = self.kubectl.clone();
        wait_for(READY, "nodes Ready", || {
            for node in &mut self.nodes {
                let Some(agent) = &mut node.agent else { continue };
                if let Some(status) = agent.ended() {
                    panic!("agent of {} ended with {status}: {}", node.name, agent.tail());
                }
            }
            let seen = kubectl.get(&["get", "nodes", "--no-headers"])?;
            let ready = seen.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
            if ready == count { Ok(()) } else { Err(seen) }
        });
    }

    /// Waits until a pod satisfies `check`; gives the pod.
    #[track_caller]
    pub(crate) fn wait_pod(&self, namespace: &str, pod: &str, limit: Duration, check: impl Fn(&Value) -> bool) -> Value {
        let kubectl = self.kubectl.within(namespace);
        wait_for(limit, &format!("pod {pod}"), || {
            let object = kubectl.json(&["pod", pod])?;
            if check(&object) { Ok(object) } else { Err(object["status"].to_string()) }
        })
    }

    /// Ends of all logs, for a failing test.
    fn logs(&self) -> String {
        let mut text = String::new();
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "log")) {
            text += &format!("--- {}\n{}\n", file.display(), tail(file, 30));
        }
        text
    }

    /// Pids of everything this cluster started: by the directories they name and the cgroups they are in.
    fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = naming(&self.dir).into_iter().chain(naming(&self.run_dir)).collect();
        for node in &self.nodes {
            for group in node.cgroups() {
                members(&group, &mut pids);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

fn members(group: &Path, pids: &mut Vec<i32>) {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members(&entry.path(), pids);
        }
    }
}

fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

/// The first private /24 that nothing here has an address in.
fn free_subnet() -> String {
    let used = sh("ip", &["-4", "-o", "addr"]);
    let own = std::process::id() % 200;
    (0..200)
        .map(|step| format!("10.211.{}", 1 + (own + step) % 200))
        .find(|subnet| !used.contains(&format!(" {subnet}.")))
        .expect("a free subnet")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.logs());
        }
        if std::env::var_os("EDGE_TEST_KEEP").is_some() {
            println!("left as it is: {}", self.dir.display());
            for process in self.nodes.iter_mut().flat_map(|node| node.agent.take()).chain(self.server.take()) {
                std::mem::forget(process);
            }
            for node in self.nodes.drain(..) {
                std::mem::forget(node);
            }
            return;
        }
        // Agents first, so that nobody starts anything again.
        for node in &mut self.nodes {
            node.agent = None;
        }
        self.server = None;
        for _ in 0..50 {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let groups: Vec<PathBuf> = self.nodes.iter().flat_map(Node::cgroups).collect();
        for node in self.nodes.drain(..) {
            self.namespaces.push(node.name.clone());
            drop(node);
        }
        for name in self.namespaces.drain(..) {
            let mut command = Command::new("ip");
            command.args(["netns", "del", &name]);
            output(command, Duration::from_secs(10));
        }
        for link in self.links.iter().rev() {
            let mut command = Command::new("ip");
            command.args(["link", "del", link]);
            output(command, Duration::from_secs(10));
        }
        for group in groups {
            remove_groups(&group);
            if group.exists() {
                println!("cgroup {} stays", group.display());
            }
        }
        for dir in [&self.dir, &self.run_dir] {
            if let Err(error) = std::fs::remove_dir_all(dir) {
                println!("{} stays: {error}", dir.display());
            }
        }
    }
}
