//! Three real servers on embedded etcd: any of them may die at any time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lab::{Lab, make_namespace, with_k3s};
use crate::recordings::Slices;
use crate::system::Machine;
use crate::system::cluster::Seen;
use crate::system::kubectl::Kubectl;
use crate::system::process::output;
use crate::system::steps::{DEPLOYMENT, SOON, busybox};
use crate::system::wait_for;
use crate::worker::three_of_three;

/// Within which `kubectl exec` must work again after a server died: what the project promises.
const EXEC_AGAIN: Duration = Duration::from_secs(10);
/// K3s runs etcd with an election timeout of 5 s (pkg/etcd/etcd.go): a follower calls an election 5 to 10 s after it last heard of
/// the leader, and until then etcd confirms no read, the apiserver finds no pod, and no agent is asked anything. A survivor whose
/// etcd was mute for longer than this was electing.
const ELECTION: Duration = Duration::from_secs(5);
/// Then exec has to follow within this of the survivor's first confirmed read.
const AFTER_ELECTION: Duration = Duration::from_secs(4);
/// One attempt of kubectl. Short, for one made while etcd elects a leader hangs.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Until the servers noticed that one of them left or came, and the agent followed.
const FOLLOWED: Duration = Duration::from_secs(120);

/// Three servers, one node of ours that joined through the first, pods on it.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    binary: PathBuf,
    home: PathBuf,
}

/// What works again through one survivor, and when, counted from the kill.
struct Again {
    /// Its etcd confirms a read: there is a leader. No part of ours.
    reads: Duration,
    exec: Duration,
}

impl Again {
    /// The promise, or the promise counted from the end of an election that took place.
    fn soon_enough(&self) -> bool {
        self.exec <= EXEC_AGAIN || (self.reads > ELECTION && self.exec <= self.reads + AFTER_ELECTION)
    }
}

#[test]
fn any_of_three_servers_may_die() {
    with_k3s("three servers", |machine, k3s| {
        let mut scene = Scene::start(machine, k3s);
        let containers = scene.running();
        let ready_since = scene.ready_since(&scene.k(0));

        // Through the one that dies last.
        let slices = Slices::start(&scene, 2);
        for victim in [1, 0, 2] {
            let survivors: Vec<usize> = (0..3).filter(|server| *server != victim).collect();
            let led = scene.leader() == victim;
            let killed = Instant::now();
            let killed_at = OffsetDateTime::now_utc();
            scene.lab.servers[victim].kill();
            let took: Vec<Again> = std::thread::scope(|scope| {
                let scene = &scene;
                let waits: Vec<_> = survivors.iter().map(|server| scope.spawn(move || scene.exec_again(*server, killed))).collect();
                waits.into_iter().map(|wait| wait.join().expect("exec through a survivor")).collect()
            });
            for (server, again) in survivors.iter().zip(&took) {
                let (role, Again { reads, exec }) = (if led { "leader" } else { "follower" }, again);
                println!(
                    "server {} ({role}) killed: etcd of server {} reads after {reads:.1?}, exec through it after {exec:.1?}",
                    victim + 1,
                    server + 1
                );
                assert!(again.soon_enough(), "exec through server {} took {exec:?}, its etcd {reads:?}", server + 1);
            }
            let k = scene.k(survivors[0]);
            scene.lease_renewed(&k, killed_at);
            // The servers drop the dead one from their list after about 25 s, and the agent its link.
            scene.wait_links(&survivors);
            scene.untouched(&containers, &k, &ready_since);
            scene.restart(victim);
            scene.wait_links(&[0, 1, 2]);
            scene.exec_works(victim, SOON);
            scene.untouched(&containers, &k, &ready_since);
            println!("server {} is back: tunnels to all three, no pod touched", victim + 1);
        }
        slices.finish();
        starts_without_the_first(&mut scene, &containers);
    });
}

/// The agent starts from the stored server list while the configured server is gone.
fn starts_without_the_first(scene: &mut Scene, containers: &BTreeMap<String, Seen>) {
    scene.lab.site.nodes[0].kill_agent();
    scene.lab.servers[0].kill();
    let started = OffsetDateTime::now_utc();
    let began = Instant::now();
    scene.lab.site.nodes[0].start();
    let k = scene.k(1);
    scene.lease_renewed(&k, started);
    scene.exec_works(1, SOON);
    println!("agent started without its configured server: lease and exec after {:.1?}", began.elapsed());
    assert_eq!(&scene.running(), containers, "pods were touched by the start");
    // It is a full member: it still takes new pods.
    k.ok(&["scale", "deployment/api-service", "--replicas=4"]);
    k.ok(&["rollout", "status", "deployment/api-service", "--timeout=55s"]);
    scene.restart(0);
    scene.wait_links(&[0, 1, 2]);
}

fn one_based(servers: &[usize]) -> Vec<usize> {
    servers.iter().map(|server| server + 1).collect()
}

impl Scene {
    pub(crate) fn start(machine: &Machine, k3s: &Path) -> Self {
        let mut lab = Lab::start(machine, k3s, 3);
        // Joined through the first; the other two come from the server list.
        lab.add_node(machine, 0);
        let binary = machine.kubectls.last().expect("at least one kubectl").1.clone();
        let home = lab.site.dir.join("home");
        let k = make_namespace(&lab.site.kubectl, "ha");
        k.apply(DEPLOYMENT);
        k.apply(&busybox("entered", "trap exit TERM; while :; do sleep 0.2; done", "Always"));
        three_of_three(&k);
        lab.site.wait_pod("ha", "entered", SOON, |pod| pod["status"]["phase"] == "Running");
        let scene = Self { lab, binary, home };
        scene.wait_links(&[0, 1, 2]);
        for server in 0..3 {
            scene.exec_works(server, SOON);
        }
        scene
    }

    /// The server whose etcd leads.
    #[track_caller]
    pub(crate) fn leader(&self) -> usize {
        wait_for(SOON, "etcd has a leader", || {
            for (index, server) in self.lab.servers.iter().enumerate() {
                let (own, leader) = server.etcd_leader()?;
                if leader.as_ref() == Some(&own) {
                    return Ok(index);
                }
            }
            Err("no server leads".to_owned())
        })
    }

    /// A node that joined asks for certificates again soon after its start, and opens its links anew with them.
    #[track_caller]
    pub(crate) fn wait_renewed(&self) {
        let log = self.lab.site.dir.join(format!("{}.log", self.lab.site.nodes[0].name));
        wait_for(SOON, "the renewal after the start", || {
            let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if text.contains("certificates renewed") { Ok(()) } else { Err("not yet".to_owned()) }
        });
        self.wait_links(&[0, 1, 2]);
    }

    /// kubectl through one server, in the namespace of the test.
    pub(crate) fn k(&self, server: usize) -> Kubectl {
        self.lab.servers[server].kubectl(&self.binary, &self.home).within("ha")
    }

    pub(crate) fn restart(&mut self, server: usize) {
        self.lab.servers[server].start();
        self.lab.wait_server(server, &self.binary);
    }

    /// Asks the survivor's etcd, and attempts exec through it, until both answer. Gives up long after the limit, to show the
    /// true numbers.
    fn exec_again(&self, server: usize, since: Instant) -> Again {
        let limit = Duration::from_secs(60);
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                let etcd = &self.lab.servers[server];
                wait_for(limit, &format!("etcd of server {}", server + 1), || etcd.etcd_reads().map(|()| since.elapsed()))
            });
            let exec = self.exec_after(server, since, limit);
            Again { reads: reads.join().expect("etcd answers"), exec }
        })
    }

    /// When exec works through this server, counted from `since`.
    #[track_caller]
    pub(crate) fn exec_after(&self, server: usize, since: Instant, limit: Duration) -> Duration {
        let k = self.k(server);
        wait_for(limit, &format!("exec through server {}", server + 1), || {
            let seen = output(k.command(&["exec", "entered", "--", "echo", "alive"]), ATTEMPT).ok()?;
            if seen == "alive\n" { Ok(since.elapsed()) } else { Err(seen) }
        })
    }

    #[track_caller]
    pub(crate) fn exec_works(&self, server: usize, limit: Duration) {
        let k = self.k(server);
        wait_for(limit, &format!("exec through server {}", server + 1), || {
            let seen = k.get(&["exec", "entered", "--", "echo", "alive"])?;
            if seen == "alive\n" { Ok(()) } else { Err(seen) }
        });
    }

    /// The links as `edge-agent status` shows them: server → state.
    pub(crate) fn links(&self) -> Result<BTreeMap<String, String>, String> {
        let text = self.lab.site.nodes[0].edge_agent(&["status", "--json"]).ok()?;
        let status: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let text = |link: &Value, key: &str| link[key].as_str().unwrap_or_default().to_owned();
        let links = status["links"].as_array().into_iter().flatten();
        Ok(links.map(|link| (text(link, "server"), text(link, "state"))).collect())
    }

    /// How [`Scene::links`] names a server.
    pub(crate) fn address(&self, server: usize) -> String {
        format!("{}:6443", self.lab.servers[server].ip)
    }

    /// Waits until the agent has tunnels to exactly these servers.
    #[track_caller]
    pub(crate) fn wait_links(&self, servers: &[usize]) {
        let wanted: BTreeMap<String, String> = servers.iter().map(|server| (self.address(*server), "connected".to_owned())).collect();
        wait_for(FOLLOWED, &format!("tunnels to servers {:?}", one_based(servers)), || {
            let links = self.links()?;
            if links == wanted { Ok(()) } else { Err(format!("{links:?}")) }
        });
    }

    pub(crate) fn running(&self) -> BTreeMap<String, Seen> {
        let all = self.lab.site.nodes[0].containers().expect("containerd answers");
        all.into_iter().filter(|(_, container)| container.running).collect()
    }

    /// Since when the Node has been Ready: it moves if it was not Ready in between.
    pub(crate) fn ready_since(&self, k: &Kubectl) -> Value {
        let node = k.json(&["node", &self.lab.site.nodes[0].name]).expect("the Node");
        let conditions = node["status"]["conditions"].as_array().expect("conditions").clone();
        let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").expect("Ready");
        assert_eq!(ready["status"], "True", "{ready}");
        ready["lastTransitionTime"].clone()
    }

    /// The Node's lease was renewed after this moment.
    #[track_caller]
    pub(crate) fn lease_renewed(&self, k: &Kubectl, after: OffsetDateTime) {
        let k = k.within("kube-node-lease");
        wait_for(Duration::from_secs(35), "the lease is renewed", || {
            let lease = k.json(&["lease", &self.lab.site.nodes[0].name])?;
            let renewed = lease["spec"]["renewTime"].as_str().unwrap_or_default().to_owned();
            match OffsetDateTime::parse(&renewed, &Rfc3339) {
                Ok(time) if time > after => Ok(()),
                Ok(_) | Err(_) => Err(renewed),
            }
        });
    }

    /// Same containers, same start times, pods and Node Ready all the time.
    #[track_caller]
    pub(crate) fn untouched(&self, containers: &BTreeMap<String, Seen>, k: &Kubectl, ready_since: &Value) {
        assert_eq!(&self.running(), containers, "containers changed");
        let pods = k.json(&["pods"]).expect("pods");
        for pod in pods["items"].as_array().expect("items") {
            let (name, status) = (&pod["metadata"]["name"], &pod["status"]);
            assert_eq!((&status["phase"], &status["containerStatuses"][0]["restartCount"]), (&"Running".into(), &0.into()), "{name}");
            assert_eq!(status["containerStatuses"][0]["ready"], true, "{name}");
        }
        assert_eq!(&self.ready_since(k), ready_since, "the Node was not Ready in between");
    }
}
