//! Joining a real server: every form of token, every refusal, and a machine that ran `k3s agent` before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::{Lab, Wanted, make_namespace, with_k3s};
use crate::system::Machine;
use crate::system::cluster::Node;
use crate::system::process::{Output, Process, output};
use crate::system::steps::{SOON, busybox};
use crate::system::wait_for;

/// Exit code for a configuration or a token that has to be corrected first (sysexits' EX_CONFIG).
const CONFIG: i32 = 78;
const AGENT_PASSWORD: &str = "lab-agent-token-1234567890";

#[test]
fn every_token_joins_and_every_refusal_is_one_line() {
    with_k3s("tokens", |machine, k3s| {
        let mut lab = Lab::start_as(machine, k3s, Wanted { args: &["--agent-token", AGENT_PASSWORD], ..Wanted::default() });
        let labels = "node-external-ip: 203.0.113.7\nnode-label:\n  - edge.example/site=north\nnode-taint:\n  - edge.example/dedicated=true:NoSchedule\n";
        lab.site.add_node(machine, labels);
        forms(machine, &lab);
        refusals(machine, &lab);
        registration(&mut lab);
        takeover(machine, &mut lab, k3s);
    });
}

/// A configuration, directories and a node password of its own for one attempt.
fn attempt(machine: &Machine, node: &Node, name: &str, args: &[&str]) -> Output {
    let dir = node.dir.join(name);
    std::fs::create_dir_all(&dir).expect("directory is made");
    let file = dir.join("config.yaml");
    let d = dir.display();
    let text = format!(
        "node-ip: {}\ndata-dir: {d}/data\nrun-dir: {d}/run\nnode-password-file: {d}/password\ncontainerd: managed\n\
         kubelet-arg: [eviction-hard=nodefs.available<1Gi]\n",
        node.ip
    );
    std::fs::write(&file, text).expect("configuration is written");
    let mut command = node.command(machine.bin.join("edge-agent"));
    command.arg("join").args(args).arg("--config").arg(&file);
    output(command, SOON)
}

fn forms(machine: &Machine, lab: &Lab) {
    let (server, node) = (&lab.servers[0], &lab.site.nodes[0]);
    let agent = server.token("agent-token");
    let (hash, _) = agent.split_once("::").expect("a full token");
    assert_eq!(agent, format!("{hash}::node:{AGENT_PASSWORD}"));
    // Bootstrap tokens are known a moment after they were made.
    let dir = server.dir.join("data").display().to_string();
    let made = server.k3s(&["token", "create", "--data-dir", &dir]).ok().expect("k3s token create");
    let bootstrap = made.trim().rsplit("::").next().unwrap_or_default().to_owned();
    assert_eq!((bootstrap.len(), bootstrap.find('.')), (23, Some(6)), "k3s token create said {made:?}");

    let forms: [(&str, String); 7] = [
        ("full", agent.clone()),
        ("user-server", format!("{hash}::server:{AGENT_PASSWORD}")),
        ("no-hash", format!("K10::node:{AGENT_PASSWORD}")),
        ("short", AGENT_PASSWORD.to_owned()),
        ("bootstrap", bootstrap.clone()),
        ("bootstrap-full", format!("{hash}::{bootstrap}")),
        ("bootstrap-no-hash", format!("K10::{bootstrap}")),
    ];
    for (name, token) in &forms {
        let member = format!("{}-{name}", node.name);
        let joined = wait_for(SOON, &format!("join with the form {name}"), || {
            let ended = attempt(machine, node, name, &[&server.url(), "--token", token, "--node-name", &member]);
            if ended.code == Some(0) { Ok(ended) } else { Err(format!("{ended:?}")) }
        });
        assert!(joined.stdout.contains("server and token are right"), "{name}: {joined:?}");
        let identity = tunnel::identity::load(&node.dir.join(name).join("data")).expect("identity is read");
        assert!(identity.is_some(), "{name}: certificates are on disk");
        println!("token form {name}: joined");
    }
}

fn refusals(machine: &Machine, lab: &Lab) {
    let (server, node) = (&lab.servers[0], &lab.site.nodes[0]);
    let (url, agent) = (server.url(), server.token("agent-token"));
    let (hash, _) = agent.split_once("::").expect("a full token");
    let server_token = server.token("token");
    assert!(server_token.starts_with(&format!("{hash}::server:")), "one CA, another password");
    let (other_ca, other_password) = (format!("K10{}::node:{AGENT_PASSWORD}", "0".repeat(64)), format!("{hash}::node:wrong"));
    let taken = format!("{}-full", node.name);
    let other_bootstrap = format!("{hash}::abcdef.0123456789abcdef");
    let refusals: [(&str, &[&str], &[&str]); 7] = [
        ("server-token", &["--token", &server_token], &["refuses the token", "copy it again"]),
        ("wrong-password", &["--token", &other_password], &["refuses the token", "copy it again"]),
        ("wrong-short", &["--token", "wrong"], &["refuses the token", "copy it again"]),
        ("wrong-bootstrap", &["--token", &other_bootstrap], &["refuses the token"]),
        ("wrong-hash", &["--token", &other_ca], &["shows a CA with hash", "the token expects 0000"]),
        ("half-a-hash", &["--token", "K10abc::node:x"], &["token is not valid", "copy it again"]),
        ("taken", &["--token", &agent, "--node-name", &taken], &["already taken", &taken, "--node-name"]),
    ];
    for (name, args, words) in refusals {
        let mut all = vec![url.as_str()];
        all.extend_from_slice(args);
        let ended = attempt(machine, node, &format!("refused-{name}"), &all);
        assert_eq!(ended.code, Some(CONFIG), "{name}: {ended:?}");
        let said: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("edge-agent: ")).collect();
        assert_eq!(said.len(), 1, "{name}: one line: {ended:?}");
        for word in words {
            assert!(said[0].contains(word), "{name}: {word:?} not in {}", said[0]);
        }
        println!("refused {name}: {}", said[0]);
    }
}

/// What the configuration asks for is there from the first moment, and what K3s' cloud controller makes of it.
fn registration(lab: &mut Lab) {
    let (url, token) = (lab.servers[0].url(), lab.servers[0].dir.join("data/server/agent-token").display().to_string());
    let node = &mut lab.site.nodes[0];
    node.join(&url, &token);
    node.start();
    lab.site.wait_ready(1);
    let name = lab.site.nodes[0].name.clone();
    let node = wait_for(SOON, "the cloud controller initialises the node", || {
        let node = lab.site.kubectl.json(&["node", &name])?;
        let taints = node["spec"]["taints"].as_array().map_or(0, Vec::len);
        let addresses = node["status"]["addresses"].to_string();
        if taints == 1 && addresses.contains("ExternalIP") { Ok(node) } else { Err(format!("{} {addresses}", node["spec"])) }
    });
    let address = |kind: &str| {
        let all = node["status"]["addresses"].as_array().expect("addresses");
        all.iter().find(|address| address["type"] == kind).map(|address| address["address"].clone())
    };
    assert_eq!(address("ExternalIP"), Some("203.0.113.7".into()));
    assert_eq!(address("InternalIP"), Some(lab.site.nodes[0].ip.as_str().into()));
    assert_eq!(node["metadata"]["labels"]["edge.example/site"], "north");
    assert_eq!(node["metadata"]["labels"]["node.kubernetes.io/instance-type"], "k3s");
    assert_eq!(node["spec"]["taints"][0], json!({"key": "edge.example/dedicated", "value": "true", "effect": "NoSchedule"}));
    assert_eq!(node["spec"]["providerID"], format!("k3s://{name}").as_str());
    // The serving certificate is good for the external address too.
    let ca = lab.server_ca().display().to_string();
    let resolve = format!("203.0.113.7:10250:{}", lab.site.nodes[0].ip);
    let connect_to = format!("::{}:10250", lab.site.nodes[0].ip);
    let seen = lab.curl(&[
        "--cacert",
        &ca,
        "--resolve",
        &resolve,
        "--connect-to",
        &connect_to,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "https://203.0.113.7:10250/pods",
    ]);
    assert_eq!(seen.ok().expect("the certificate names the external address"), "401");
    println!("registered with label, taint and external address; its certificate names that address");
}

/// A machine that was a K3s node: the same name, the same password file, the same Node.
fn takeover(machine: &Machine, lab: &mut Lab, k3s: &Path) {
    lab.site.add_node(machine, "");
    let node = &lab.site.nodes[1];
    let home = lab.site.dir.join("k3s-home");
    let mut before = K3sAgent::start(node, k3s, &home, &lab.servers[0].url());
    let was = wait_for(Duration::from_secs(120), "k3s agent registers", || {
        before.alive();
        let object = lab.site.kubectl.json(&["node", &node.name])?;
        let version = object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        // Also what the server adds to it.
        let whole = object["spec"]["podCIDR"].is_string() && object["spec"]["providerID"].is_string();
        if version.contains("+k3s") && whole { Ok(object.clone()) } else { Err(format!("{version} {}", object["spec"])) }
    });
    drop(before);

    // Another machine cannot have the name.
    let agent = lab.servers[0].token("agent-token");
    let stranger = attempt(machine, node, "stranger", &[&lab.servers[0].url(), "--token", &agent, "--node-name", &node.name]);
    assert_eq!(stranger.code, Some(CONFIG), "{stranger:?}");

    // The configuration's default is K3s' file; here that is where the namespace put it.
    let password = home.join("etc/rancher/node/password");
    assert_eq!(std::fs::read_to_string(&password).expect("K3s wrote its password").trim().len(), 32);
    let content = std::fs::read(&password).expect("password");
    let text = std::fs::read_to_string(&node.config).expect("configuration");
    let lines = text.lines().map(|line| {
        if line.starts_with("node-password-file:") { format!("node-password-file: {}", password.display()) } else { line.to_owned() }
    });
    std::fs::write(&node.config, lines.collect::<Vec<_>>().join("\n") + "\n").expect("configuration is written");
    let token = lab.servers[0].dir.join("data/server/agent-token").display().to_string();
    let url = lab.servers[0].url();
    let node = &mut lab.site.nodes[1];
    node.join(&url, &token);
    node.start();
    lab.site.wait_ready(2);
    let node = &lab.site.nodes[1];
    let is = wait_for(SOON, "the Node is ours", || {
        let object = lab.site.kubectl.json(&["node", &node.name])?;
        let version = object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
        if version.contains("edge") { Ok(object.clone()) } else { Err(version.to_owned()) }
    });
    let same =
        |object: &Value| (object["metadata"]["uid"].clone(), object["spec"]["podCIDR"].clone(), object["spec"]["providerID"].clone());
    assert_eq!(same(&is), same(&was), "the same Node");
    assert_eq!(std::fs::read(&password).expect("password"), content, "the password file is untouched");
    // With what K3s left behind on the machine: its interfaces, its routes.
    let k = make_namespace(&lab.site.kubectl, "taken");
    let pod = busybox("here", "trap exit TERM; while :; do sleep 0.2; done", "Always");
    k.apply(&pod.replace("spec:", &format!("spec:\n  nodeName: {}", node.name)));
    lab.site.wait_pod("taken", "here", SOON, |pod| pod["status"]["phase"] == "Running");
    wait_for(SOON, "exec on the node", || {
        let seen = k.get(&["exec", "here", "--", "echo", "alive"])?;
        if seen == "alive\n" { Ok(()) } else { Err(seen) }
    });
    println!("took over node {} of {}: uid {} stays", node.name, was["status"]["nodeInfo"]["kubeletVersion"], is["metadata"]["uid"]);
}

/// A real `k3s agent` in a node's network, with private copies of every directory it uses on a machine.
struct K3sAgent {
    process: Process,
    /// Made on this machine as places to mount on.
    made: Vec<PathBuf>,
}

const K3S_DIRS: [&str; 6] = ["/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/etc/rancher", "/etc/cni"];

impl K3sAgent {
    fn start(node: &Node, k3s: &Path, home: &Path, url: &str) -> Self {
        let bin = home.join("bin");
        std::fs::create_dir_all(&bin).expect("directory is made");
        for name in ["k3s", "containerd", "ctr"] {
            std::os::unix::fs::symlink(k3s, bin.join(name)).expect("link is made");
        }
        let mut made = Vec::new();
        let mut script = "set -e; mount -t tmpfs none /run; mkdir -p /run/netns /run/lock; ".to_owned();
        for dir in K3S_DIRS {
            if !Path::new(dir).is_dir() {
                std::fs::create_dir_all(dir).expect("mount point is made");
                made.push(PathBuf::from(dir));
            }
            std::fs::create_dir_all(home.join(&dir[1..])).expect("directory is made");
            script += &format!("mount --bind \"$1{dir}\" {dir}; ");
        }
        make_cgroups(&node.name);
        script += "home=$1; shift; exec \"$home/bin/k3s\" \"$@\"";
        let mut command = node.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(home);
        command.args(["agent", "--server", url, "--token", AGENT_PASSWORD, "--node-name", &node.name, "--node-ip", &node.ip]);
        command.arg("--data-dir").arg(home.join("data"));
        command.args(["--kubelet-arg", &format!("cgroup-root=/{}", node.name)]);
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            command.args(["--kubelet-arg", "fail-cgroupv1=false"]);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:/usr/lib/cni:/opt/cni/bin:{path}", bin.display()));
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("K3S_")) {
            command.env_remove(key);
        }
        Self { process: Process::start(command, &home.with_extension("log")), made }
    }

    fn alive(&mut self) {
        if let Some(status) = self.process.ended() {
            panic!("k3s agent ended with {status}: {}", self.process.tail());
        }
    }
}

impl Drop for K3sAgent {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        // SIGKILL follows when the field is dropped.
        for _ in 0..50 {
            if self.process.ended().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.process.kill();
        for dir in &self.made {
            // Somebody else may use it by now.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// The kubelet's cgroup root has to exist in every hierarchy.
fn make_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_owned()];
    if !root.join("cgroup.controllers").exists() {
        hierarchies = std::fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && !path.is_symlink())
            .collect();
    }
    for hierarchy in hierarchies {
        let group = hierarchy.join(name);
        std::fs::create_dir_all(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = std::fs::read_to_string(hierarchy.join(file)) {
                // Empty in a new group of version 1, and nothing may be moved into it until it is set.
                let _ = std::fs::write(group.join(file), text);
            }
        }
    }
}
