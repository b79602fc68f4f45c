//! Real K3s servers in network namespaces, on the bridge of a [`Cluster`] whose nodes run our agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::system::cluster::Cluster;
use crate::system::kubectl::Kubectl;
use crate::system::process::{Output, Process, output};
use crate::system::{Machine, run, wait_for};

/// Until a server answers on a slow machine; the first start makes certificates and a database.
const SERVER_READY: Duration = Duration::from_secs(240);

/// Runs a test that needs a real K3s, or says aloud why it cannot.
pub(crate) fn with_k3s(name: &str, test: impl FnOnce(&Machine, &Path)) {
    let binary = std::env::var_os("K3S_BIN").map(PathBuf::from);
    match binary {
        None => println!("SKIPPED real K3s {name}: K3S_BIN does not name a k3s binary"),
        Some(path) if !path.is_file() => println!("SKIPPED real K3s {name}: K3S_BIN={} is not a file", path.display()),
        Some(path) => run(&format!("real K3s {name}"), |machine| test(machine, &path)),
    }
}

/// What a test wants of its servers.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// More than one: on embedded etcd.
    pub(crate) servers: u8,
    /// Flags of each, `{dir}` replaced by the server's directory.
    pub(crate) args: &'a [&'a str],
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// Files in the server's directory before it starts.
    pub(crate) files: &'a [(&'a str, &'a str)],
    /// How much the machine's other work comes first, 0 to 19.
    pub(crate) nice: u8,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self { servers: 1, args: &[], env: &[], files: &[], nice: 0 }
    }
}

/// One K3s server.
pub(crate) struct Server {
    pub(crate) ip: String,
    pub(crate) dir: PathBuf,
    pub(crate) log: PathBuf,
    /// Its end of the bridge.
    pub(crate) link: String,
    kubeconfig: PathBuf,
    namespace: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    nice: u8,
    binary: PathBuf,
    process: Option<Process>,
}

impl Server {
    pub(crate) fn url(&self) -> String {
        format!("https://{}:6443", self.ip)
    }

    /// `program` in the network of this server.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command
    }

    /// Starts it, again on its data. [`Lab::wait_server`] waits for it.
    pub(crate) fn start(&mut self) {
        // Not even `nice -n 0` by default: a slowed server elects its leader late, and that is what some tests measure.
        let mut command = if self.nice == 0 { self.command(&self.binary.display().to_string()) } else { self.command("nice") };
        if self.nice > 0 {
            command.args(["-n", &self.nice.to_string()]).arg(&self.binary);
        }
        command.arg("server").args(&self.args);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("K3S_")) {
            command.env_remove(key);
        }
        // Even a server without an agent looks for the CNI plugins.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/lib/cni:/opt/cni/bin")).env("HOME", &self.dir).env_remove("KUBECONFIG");
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        self.process = Some(Process::start(command, &self.log));
    }

    /// Whether it is no longer there.
    pub(crate) fn ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.ended().is_some())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP, SIGCONT: the process with its apiserver and its etcd.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("was started").signal(signal);
    }

    /// `k3s ARGS` on this server, to its end.
    pub(crate) fn k3s(&self, args: &[&str]) -> Output {
        let mut command = self.command(&self.binary.display().to_string());
        command.args(args).env("HOME", &self.dir).env("KUBECONFIG", self.dir.join("k3s.yaml"));
        output(command, Duration::from_secs(30))
    }

    /// A token the server wrote: `server/token`, `server/node-token`, `server/agent-token`.
    pub(crate) fn token(&self, name: &str) -> String {
        let path = self.dir.join("data/server").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// The answer of this server's own etcd, whatever becomes of its apiserver. K3s gives HTTP a port of its own.
    pub(crate) fn etcd(&self, path: &str, body: &str) -> Result<Value, String> {
        let tls = self.dir.join("data/server/tls/etcd");
        let file = |name: &str| tls.join(name).display().to_string();
        let mut command = self.command("curl");
        command.args(["-sS", "--fail", "--max-time", "1", "--cacert", &file("server-ca.crt")]);
        command.args([
            "--cert",
            &file("client.crt"),
            "--key",
            &file("client.key"),
            "-d",
            body,
            &format!("https://127.0.0.1:2382/v3/{path}"),
        ]);
        serde_json::from_str(&output(command, Duration::from_secs(3)).ok()?).map_err(|error| error.to_string())
    }

    /// Its own member of etcd and the one it takes for the leader, if any.
    pub(crate) fn etcd_leader(&self) -> Result<(String, Option<String>), String> {
        let status = self.etcd("maintenance/status", "{}")?;
        let id = |value: &Value| value.as_str().filter(|id| *id != "0").map(str::to_owned);
        let own = id(&status["header"]["member_id"]).ok_or_else(|| status.to_string())?;
        Ok((own, id(&status["leader"])))
    }

    /// A read that etcd answers only with a majority and a leader. No apiserver takes part.
    pub(crate) fn etcd_reads(&self) -> Result<(), String> {
        // The key is "a" in base64; that it does not exist is an answer too.
        self.etcd("kv/range", r#"{"key":"YQ==","limit":"1"}"#).map(drop)
    }

    /// This server's kubectl.
    pub(crate) fn kubectl(&self, binary: &Path, home: &Path) -> Kubectl {
        Kubectl::new(binary, &self.kubeconfig, home)
    }

    /// kubeconfigs that K3s writes name the loopback address; ours names this server's.
    fn write_kubeconfig(&self) -> Result<(), String> {
        let text = std::fs::read_to_string(self.dir.join("k3s.yaml")).map_err(|error| error.to_string())?;
        if !text.contains("client-key-data") {
            return Err("kubeconfig is not complete yet".to_owned());
        }
        std::fs::write(&self.kubeconfig, text.replace("127.0.0.1", &self.ip)).map_err(|error| error.to_string())
    }
}

/// Servers and nodes, removed when dropped: the servers first.
pub(crate) struct Lab {
    pub(crate) servers: Vec<Server>,
    pub(crate) site: Cluster,
    binary: PathBuf,
}

impl Lab {
    /// One server on its default database, or several on embedded etcd; waits until all answer.
    pub(crate) fn start(machine: &Machine, k3s: &Path, servers: u8) -> Self {
        Self::start_as(machine, k3s, Wanted { servers, ..Wanted::default() })
    }

    pub(crate) fn start_as(machine: &Machine, k3s: &Path, wanted: Wanted<'_>) -> Self {
        let mut lab = Self { servers: Vec::new(), site: Cluster::bare(machine), binary: k3s.to_owned() };
        for number in 1..=wanted.servers {
            lab.add_server(number, wanted);
            let newest = machine.kubectls.last().expect("at least one kubectl").1.clone();
            let index = lab.servers.len() - 1;
            lab.servers[index].start();
            lab.wait_server(index, &newest);
            if index == 0 {
                lab.site.kubectl = lab.servers[0].kubectl(&newest, &lab.site.dir.join("home"));
            }
        }
        lab
    }

    fn add_server(&mut self, number: u8, wanted: Wanted<'_>) {
        let (namespace, ip, link) = self.site.add_namespace(number);
        let dir = self.site.dir.join(format!("server-{number}"));
        std::fs::create_dir_all(&dir).expect("server directory is made");
        let config = dir.join("config.yaml");
        std::fs::write(&config, "").expect("configuration is written");
        for (name, content) in wanted.files {
            std::fs::write(dir.join(name), content).expect("file is written");
        }
        let mut args: Vec<String> = vec!["--disable-agent".into(), "--disable-helm-controller".into()];
        let mut flag = |name: &str, value: &str| args.extend([format!("--{name}"), value.to_owned()]);
        flag("config", &config.display().to_string());
        flag("data-dir", &dir.join("data").display().to_string());
        flag("write-kubeconfig", &dir.join("k3s.yaml").display().to_string());
        flag("token", "lab-token-1234567890");
        flag("node-name", &namespace);
        flag("node-ip", &ip);
        flag("advertise-address", &ip);
        flag("tls-san", &ip);
        flag("disable", "traefik,servicelb,metrics-server,local-storage,coredns");
        match self.servers.first() {
            Some(first) => flag("server", &first.url()),
            None if wanted.servers > 1 => args.push("--cluster-init".into()),
            None => {}
        }
        args.extend(wanted.args.iter().map(|arg| arg.replace("{dir}", &dir.display().to_string())));
        let server = Server {
            env: wanted.env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            nice: wanted.nice,
            link,
            kubeconfig: self.site.dir.join(format!("kubeconfig-{number}.yaml")),
            log: self.site.dir.join(format!("server-{number}.log")),
            binary: self.binary.clone(),
            process: None,
            ip,
            dir,
            namespace,
            args,
        };
        self.servers.push(server);
    }

    /// Waits until the server's apiserver is ready by its own word.
    #[track_caller]
    pub(crate) fn wait_server(&mut self, index: usize, kubectl: &Path) {
        let home = self.site.dir.join("home");
        let server = &mut self.servers[index];
        wait_for(SERVER_READY, &format!("K3s server {} answers", index + 1), || {
            let process = server.process.as_mut().expect("was started");
            if let Some(status) = process.ended() {
                panic!("K3s server ended with {status}: {}", process.tail());
            }
            server.write_kubeconfig()?;
            server.kubectl(kubectl, &home).get(&["get", "--raw", "/readyz"])
        });
    }

    /// The token that pins the CA, as an administrator copies it.
    pub(crate) fn token_file(&self) -> String {
        self.servers[0].dir.join("data/server/node-token").display().to_string()
    }

    /// The CA that signed every server's and kubelet's certificate.
    pub(crate) fn server_ca(&self) -> PathBuf {
        self.servers[0].dir.join("data/server/tls/server-ca.crt")
    }

    /// Adds a node that joins through server `through`, and waits until it is Ready.
    pub(crate) fn add_node(&mut self, machine: &Machine, through: usize) {
        self.add_node_with(machine, through, "");
    }

    /// The same with these lines in its configuration.
    pub(crate) fn add_node_with(&mut self, machine: &Machine, through: usize, config: &str) {
        self.site.add_node(machine, config);
        let (url, token) = (self.servers[through].url(), self.token_file());
        let node = self.site.nodes.last_mut().expect("just added");
        wait_for(Duration::from_secs(60), "edge-agent join", || {
            let joined = node.edge_agent(&["join", &url, "--token-file", &token, "--node-name", &node.name]);
            // For a moment after its apiserver is ready, a server answers 503 to whoever wants a certificate.
            assert!(joined.code == Some(0) || joined.stderr.contains("503"), "{joined:?}");
            joined.ok()
        });
        node.start();
        let count = self.site.nodes.len();
        self.site.wait_ready(count);
    }

    /// curl in the network of the first server: another machine than the node, no tunnel.
    pub(crate) fn curl(&self, args: &[&str]) -> Output {
        let mut command = self.servers[0].command("curl");
        command.args(["-sS", "--max-time", "10"]).args(args);
        output(command, Duration::from_secs(20))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("EDGE_TEST_KEEP").is_some() {
            for process in self.servers.iter_mut().filter_map(|server| server.process.take()) {
                std::mem::forget(process);
            }
        }
    }
}

/// Makes a namespace whose default service account is there, so that pods are admitted.
#[track_caller]
pub(crate) fn make_namespace(kubectl: &Kubectl, name: &str) -> Kubectl {
    kubectl.ok(&["create", "namespace", name]);
    let within = kubectl.within(name);
    wait_for(Duration::from_secs(60), "default service account", || within.get(&["get", "serviceaccount", "default"]));
    within
}
