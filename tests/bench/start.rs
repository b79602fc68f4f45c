//! A pod seen by the agent until its Running status is sent, against the same CRI calls made raw on the same containerd.
//!
//! Both sides take turns in one run, with the same sandbox and container configurations. The agent's own clock is used
//! for "seen" and "sent" (its log says both once per pod); a watcher's clock is reported beside it.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::api::Client;
use agent::api::pod::Pod;
use agent::pod::NodeFacts;
use agent::pod::translate::{self, ContainerInputs, ImageUser, SandboxInputs};
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::bench::{RawPod, raw_remove, raw_start};
use runtime::cri;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Choice;
use crate::api::{Admin, PODS, Pods, agent_pid, asynchronous, create, delete_now, sleeper};
use crate::report::{line, millis, note, p50, p99};
use crate::system::Machine;
use crate::system::cluster::{Cluster, Node, Options};

const LIMIT_ONE: f64 = 1.10;
const LIMIT_MANY: f64 = 1.15;
const MANY: usize = 30;
/// Pairs thrown away before those that count.
const WARM: usize = 3;
/// After a removal: the runtime collects its garbage a moment later.
const REST: Duration = Duration::from_millis(150);

pub(crate) fn run(machine: &Machine, choice: &Choice) {
    let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
    let node = &cluster.nodes[0];
    let admin = Admin::of(&cluster);
    asynchronous().block_on(async {
        let mut bench = Bench::open(&cluster, node, &admin).await;
        let (mut agents, mut watched, mut raws) = (Vec::new(), Vec::new(), Vec::new());
        let mut calls = [Vec::new(), Vec::new(), Vec::new()];
        for index in 0..choice.pairs + WARM {
            let (name, raw_name) = (format!("one-{index}"), [format!("raw-one-{index}")]);
            // Who comes first changes, so that neither side always follows the other's clean-up.
            let (started, seen_after, raw) = if index % 2 == 0 {
                let (started, seen_after) = bench.agent_one(&name).await;
                (started, seen_after, bench.raw(&raw_name).await.1[0])
            } else {
                let raw = bench.raw(&raw_name).await.1[0];
                let (started, seen_after) = bench.agent_one(&name).await;
                (started, seen_after, raw)
            };
            if index >= WARM {
                agents.push(millis(started.sent));
                watched.push(millis(seen_after));
                raws.push(millis(raw.total()));
                for (sample, call) in calls.iter_mut().zip([raw.sandbox, raw.create, raw.start]) {
                    sample.push(millis(call));
                }
            }
        }
        line("pod start alone, agent, p50", p50(&agents), "ms", None);
        line("pod start alone, agent, p99", p99(&agents), "ms", None);
        line("pod start alone, raw calls, p50", p50(&raws), "ms", None);
        line("pod start alone, raw calls, p99", p99(&raws), "ms", None);
        line(&format!("pod start alone, ratio of p50, {} pairs", agents.len()), p50(&agents) / p50(&raws), "x", Some(LIMIT_ONE));
        line("pod start alone, creation to Running seen by a watcher, p50", p50(&watched), "ms", None);
        note(&format!("raw calls, p50: sandbox {:.1} ms, create {:.1} ms, start {:.1} ms", p50(&calls[0]), p50(&calls[1]), p50(&calls[2])));

        let (mut agents, mut raws) = (Vec::new(), Vec::new());
        for round in 0..choice.rounds + 1 {
            let names: Vec<String> = (0..MANY).map(|index| format!("many-{round}-{index}")).collect();
            let raw_names: Vec<String> = names.iter().map(|name| format!("raw-{name}")).collect();
            let (agent, raw) = if round % 2 == 0 {
                let agent = bench.agent_many(&names).await;
                (agent, bench.raw(&raw_names).await.0)
            } else {
                let raw = bench.raw(&raw_names).await.0;
                (bench.agent_many(&names).await, raw)
            };
            if round > 0 {
                agents.push(millis(agent));
                raws.push(millis(raw));
            }
        }
        line(&format!("{MANY} pods at once, agent, p50 of {}", agents.len()), p50(&agents), "ms", None);
        line(&format!("{MANY} pods at once, raw calls, p50 of {}", raws.len()), p50(&raws), "ms", None);
        line(&format!("{MANY} pods at once, ratio of p50"), p50(&agents) / p50(&raws), "x", Some(LIMIT_MANY));
    });
}

/// What the agent's log says of one pod's start.
#[derive(Debug, Clone, Copy)]
struct Started {
    seen_at: OffsetDateTime,
    sent: Duration,
}

struct Bench<'a> {
    node: &'a Node,
    client: Client,
    pods: Pods,
    cri: runtime::Client,
    image: cri::Image,
    agent: Pid,
    log: fs::File,
    unread: String,
    files: PathBuf,
}

impl<'a> Bench<'a> {
    async fn open(cluster: &'a Cluster, node: &'a Node, admin: &Admin) -> Self {
        let client = admin.client();
        let mut pods = Pods::open(&client).await;
        let cri = runtime::Client::connect(&node.containerd_socket().expect("containerd runs"));
        // Ready comes before the last image is imported; pods wait, so one pod says that all are there.
        create(&client, PODS, &sleeper("first", &node.name)).await;
        pods.until("pod runs", |seen| Pods::running(seen) == 1).await;
        let image = cri.image_status("docker.io/library/busybox:1.36").await.expect("containerd answers").expect("the image is preloaded");
        let files = cluster.dir.join("raw");
        fs::create_dir_all(files.join("account")).expect("directory is made");
        fs::write(files.join("hosts"), "127.0.0.1 localhost\n").expect("file is written");
        fs::write(files.join("last-words"), "").expect("file is written");
        let log = fs::File::open(cluster.dir.join(format!("{}.log", node.name))).expect("the agent's log");
        let mut bench = Self { node, client, pods, cri, image, agent: Pid::from_raw(agent_pid(node)), log, unread: String::new(), files };
        bench.started(1).await;
        bench.remove(&["first".to_owned()]).await;
        bench
    }

    /// One pod through the agent: its own account of it, and the time until a watcher saw it Running.
    async fn agent_one(&mut self, name: &str) -> (Started, Duration) {
        let began = Instant::now();
        create(&self.client, PODS, &sleeper(name, &self.node.name)).await;
        self.pods.until("pod runs", |seen| seen.get(name).is_some_and(|pod| pod.status.phase == "Running")).await;
        let seen_after = began.elapsed();
        let started = self.started(1).await[0];
        self.remove(&[name.to_owned()]).await;
        (started, seen_after)
    }

    /// Many pods that the agent sees at the same moment: it sleeps while they are created.
    async fn agent_many(&mut self, names: &[String]) -> Duration {
        kill(self.agent, Signal::SIGSTOP).expect("the agent stops");
        for name in names {
            create(&self.client, PODS, &sleeper(name, &self.node.name)).await;
        }
        kill(self.agent, Signal::SIGCONT).expect("the agent goes on");
        self.pods.until("pods run", |seen| Pods::running(seen) == names.len()).await;
        let started = self.started(names.len()).await;
        self.remove(names).await;
        let first = started.iter().map(|one| one.seen_at).min().expect("pods started");
        let last = started.iter().map(|one| one.seen_at + one.sent).max().expect("pods started");
        (last - first).try_into().expect("time goes forward")
    }

    async fn remove(&mut self, names: &[String]) {
        for name in names {
            delete_now(&self.client, &format!("{PODS}/{name}")).await;
        }
        self.pods.until("pods go", |seen| seen.is_empty()).await;
        // The server may forget before the runtime does.
        let cri = self.cri.clone();
        let gone = async {
            while !cri.list_sandboxes([("app".to_owned(), "bench".to_owned())].into()).await.expect("containerd answers").is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), gone).await.expect("sandboxes go");
        tokio::time::sleep(REST).await;
    }

    /// The next `count` lines of the agent that tell of a start.
    async fn started(&mut self, count: usize) -> Vec<Started> {
        let mut found = Vec::new();
        let end = Instant::now() + Duration::from_secs(10);
        while found.len() < count {
            self.log.read_to_string(&mut self.unread).expect("the log is text");
            while let Some((line, rest)) = self.unread.split_once('\n') {
                found.extend(parse(line));
                self.unread = rest.to_owned();
            }
            assert!(Instant::now() < end, "the agent's log tells of {} starts, not {count}", found.len());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        found
    }

    /// The same pods without an agent, all at once, and away again: time until the last runs, and each one's calls.
    async fn raw(&self, names: &[String]) -> (Duration, Vec<runtime::bench::RawStart>) {
        let configs: Vec<_> = names.iter().map(|name| self.configs(name)).collect();
        let began = Instant::now();
        let pods = join_all(configs.into_iter().map(|(sandbox, container)| raw_start(&self.cri, sandbox, container))).await;
        let took = began.elapsed();
        let pods: Vec<RawPod> = pods.into_iter().map(|pod| pod.expect("raw pod starts")).collect();
        for removed in join_all(pods.iter().map(|pod| raw_remove(&self.cri, pod))).await {
            removed.expect("raw pod goes");
        }
        for root in self.node.cgroups() {
            for name in names {
                // Left empty by the runtime.
                let _ = fs::remove_dir(root.join("kubepods/besteffort").join(format!("pod{name}")));
            }
        }
        tokio::time::sleep(REST).await;
        (took, pods.iter().map(|pod| pod.took).collect())
    }

    /// What the agent would ask for.
    fn configs(&self, name: &str) -> (cri::PodSandboxConfig, cri::ContainerConfig) {
        let mut pod: Pod = serde_json::from_value(sleeper(name, &self.node.name)).expect("a pod");
        pod.metadata.uid = name.to_owned();
        pod.metadata.labels.clear();
        let facts = NodeFacts::default();
        let logs = self.node.dir.join("pod-logs").join(format!("default_{name}_{name}"));
        fs::create_dir_all(logs.join("c")).expect("log directory is made");
        let cgroup_v2 = cgroup::Hierarchy::detect().is_ok_and(|found| found.layout() == cgroup::Layout::V2);
        let sandbox = SandboxInputs {
            attempt: 0,
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            dns: cri::DnsConfig::default(),
            cgroup_parent: format!("/{}/kubepods/besteffort/pod{name}", self.node.name),
            node: &facts,
            cgroup_v2,
        };
        let mount = |file: &str, to: &str| cri::Mount {
            container_path: to.to_owned(),
            host_path: self.files.join(file).display().to_string(),
            ..Default::default()
        };
        let mounts = vec![
            mount("hosts", "/etc/hosts"),
            mount("last-words", "/dev/termination-log"),
            mount("account", "/var/run/secrets/kubernetes.io/serviceaccount"),
        ];
        let container = ContainerInputs {
            attempt: 0,
            image: self.image.id.clone(),
            image_user: ImageUser::of(&self.image),
            env: &Default::default(),
            mounts,
            node: &facts,
            cgroup_v2,
            seccomp_dir: "",
        };
        (translate::sandbox_config(&pod, sandbox), translate::container_config(&pod, &pod.spec.containers[0], container))
    }
}

/// `TIME  INFO …: pod is running pod=… pod_uid=… sent_after_seconds=0.17 accepted_after_seconds=0.18`
fn parse(line: &str) -> Option<Started> {
    let (head, fields) = line.split_once("pod is running ")?;
    let logged = OffsetDateTime::parse(head.split_whitespace().next()?, &Rfc3339).ok()?;
    let field =
        |name: &str| fields.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<f64>().ok()).map(Duration::from_secs_f64);
    Some(Started { seen_at: logged - field("accepted_after_seconds=")?, sent: field("sent_after_seconds=")? })
}
