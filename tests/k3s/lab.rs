//! Real K3s servers in network namespaces, on the bridge of a [`Cluster`] whose nodes run our agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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

/// One K3s server.
pub(crate) struct Server {
    pub(crate) ip: String,
    pub(crate) dir: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
    args: Vec<String>,
    binary: PathBuf,
    log: PathBuf,
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
        let mut command = self.command("nice");
        command.args(["-n", "5"]).arg(&self.binary).arg("server").args(&self.args);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("K3S_")) {
            command.env_remove(key);
        }
        // Even a server without an agent looks for the CNI plugins.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/lib/cni:/opt/cni/bin")).env("HOME", &self.dir).env_remove("KUBECONFIG");
        self.process = Some(Process::start(command, &self.log));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
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
        let mut lab = Self { servers: Vec::new(), site: Cluster::bare(machine), binary: k3s.to_owned() };
        for number in 1..=servers {
            lab.add_server(number, servers > 1);
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

    fn add_server(&mut self, number: u8, etcd: bool) {
        let (namespace, ip) = self.site.add_namespace(number);
        let dir = self.site.dir.join(format!("server-{number}"));
        std::fs::create_dir_all(&dir).expect("server directory is made");
        let config = dir.join("config.yaml");
        std::fs::write(&config, "").expect("configuration is written");
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
            None if etcd => args.push("--cluster-init".into()),
            None => {}
        }
        let server = Server {
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
        self.site.add_node(machine, "");
        let (url, token) = (self.servers[through].url(), self.token_file());
        let node = self.site.nodes.last_mut().expect("just added");
        node.join(&url, &token);
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
