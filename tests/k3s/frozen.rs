//! Three real servers, one of which falls silent without a word: its process stands still, or its cable is cut. Nothing
//! tells the agent; its connections stay open for minutes if nobody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use time::OffsetDateTime;

use crate::high_availability::Scene;
use crate::lab::with_k3s;
use crate::system::process::sh;
use crate::system::steps::{SOON, busybox};
use crate::system::wait_for;

/// Within which a half-open link is found: what the project promises.
const FOUND: Duration = Duration::from_secs(10);
/// Looking takes time too: a status is a process.
const LOOKING: Duration = Duration::from_secs(1);
/// Within which new requests go to another server once the silence is found.
const FAILOVER: Duration = Duration::from_secs(5);

/// A way to fall silent, and back.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// The kernel still acknowledges: keepalives and pings of TCP prove nothing.
    Stopped,
    /// Nothing is acknowledged, nothing is refused.
    Unplugged,
}

#[test]
fn a_silent_server_is_found_and_left() {
    with_k3s("frozen server", |machine, k3s| {
        let mut scene = Scene::start(machine, k3s);
        scene.wait_renewed();
        let containers = scene.running();
        let ready_since = scene.ready_since(&scene.k(0));
        for silence in [Silence::Stopped, Silence::Unplugged] {
            round(&mut scene, silence);
            let k = scene.k(0);
            scene.untouched(&containers, &k, &ready_since);
        }
    });
}

fn round(scene: &mut Scene, silence: Silence) {
    // The worst one: the one that the agent's requests and watches go to. Not the leader of etcd, whose election would be
    // measured instead of the agent.
    let victim = in_use(scene);
    let survivors: Vec<usize> = (0..3).filter(|server| *server != victim).collect();
    lead(scene, survivors[0]);
    let (frozen, frozen_at) = (Instant::now(), OffsetDateTime::now_utc());
    set(scene, victim, silence, true);

    // Only an agent that watches elsewhere sees this pod.
    let name = format!("after-{silence:?}").to_lowercase();
    let (found, taken) = std::thread::scope(|scope| {
        let scene = &*scene;
        let found = scope.spawn(|| {
            wait_for(SOON, "the agent finds the link dead", || {
                let links = scene.links()?;
                if links.get(&scene.address(victim)).is_some_and(|state| state == "connected") {
                    Err(format!("{links:?}"))
                } else {
                    Ok(frozen.elapsed())
                }
            })
        });
        let k = scene.k(survivors[0]);
        let pod = busybox(&name, "trap exit TERM; while :; do sleep 0.2; done", "Always");
        k.apply(&pod.replace("spec:", &format!("spec:\n  nodeName: {}", scene.lab.site.nodes[0].name)));
        let taken = wait_for(SOON, "the agent takes a pod", || {
            let pod = k.json(&["pod", &name])?;
            if pod["status"]["startTime"].is_null() { Err(pod["status"].to_string()) } else { Ok(frozen.elapsed()) }
        });
        (found.join().expect("found"), taken)
    });
    let again: Vec<Duration> = survivors.iter().map(|server| scene.exec_after(*server, Instant::now(), SOON)).collect();
    println!(
        "server {} {silence:?}: link found dead after {found:.1?}, a new pod taken from another server after {taken:.1?}, exec through the others at once ({again:.1?})",
        victim + 1
    );
    assert!(found <= FOUND + LOOKING, "found after {found:?}");
    assert!(taken <= found + FAILOVER, "a new request took {taken:?}, the link was found dead after {found:?}");
    let k = scene.k(survivors[0]);
    scene.lease_renewed(&k, frozen_at + FOUND);
    k.ok(&["delete", "pod", &name, "--now"]);

    set(scene, victim, silence, false);
    back(scene, victim);
    scene.exec_works(victim, SOON);
}

/// Waits for tunnels to all three again. A server that held a lease of its controllers when it fell silent ends itself as soon
/// as it sees that the lease is lost, and is started as its unit would.
fn back(scene: &mut Scene, victim: usize) {
    let wanted: Vec<String> = (0..3).map(|server| scene.address(server)).collect();
    let mut restarts = 0;
    wait_for(Duration::from_secs(120), "tunnels to all three", || {
        if scene.lab.servers[victim].ended() {
            restarts += 1;
            assert!(restarts < 3, "server {} ends again and again", victim + 1);
            println!("server {} ended when it came back, and is started", victim + 1);
            scene.restart(victim);
        }
        let links = scene.links()?;
        let up = wanted.iter().filter(|server| links.get(*server).is_some_and(|state| state == "connected"));
        if up.count() == 3 { Ok(()) } else { Err(format!("{links:?}")) }
    });
}

fn set(scene: &Scene, victim: usize, silence: Silence, silent: bool) {
    let server = &scene.lab.servers[victim];
    match silence {
        Silence::Stopped => server.signal(if silent { Signal::SIGSTOP } else { Signal::SIGCONT }),
        Silence::Unplugged => drop(sh("ip", &["link", "set", &server.link, if silent { "down" } else { "up" }])),
    }
}

/// The server that most of the agent's connections go to: each has its tunnel, one has the requests too.
fn in_use(scene: &Scene) -> usize {
    let seen = scene.lab.site.nodes[0].sh("ss", &["-Htn", "state", "established", "dport", "=", ":6443"]);
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for line in seen.lines() {
        if let Some(index) = (0..3).find(|server| line.trim_end().ends_with(&scene.address(*server))) {
            *counts.entry(index).or_default() += 1;
        }
    }
    let most = counts.iter().max_by_key(|(_, count)| **count).map(|(server, _)| *server);
    most.unwrap_or_else(|| panic!("no connection to any server in {seen}"))
}

/// Makes this server's etcd the leader.
fn lead(scene: &Scene, server: usize) {
    let (target, _) = scene.lab.servers[server].etcd_leader().expect("etcd answers");
    wait_for(SOON, "the chosen etcd leads", || {
        let leader = scene.leader();
        if leader == server {
            return Ok(());
        }
        let body = format!("{{\"targetID\":\"{target}\"}}");
        scene.lab.servers[leader].etcd("maintenance/transfer-leadership", &body)?;
        Err(format!("server {} leads", leader + 1))
    });
}
