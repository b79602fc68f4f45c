//! `kill -9` of the agent or the server at any moment: pods run on, nothing happens twice, nothing accepted is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::system::cluster::{Cluster, Node, Options, Seen};
use crate::system::kubectl::Kubectl;
use crate::system::process::output;
use crate::system::{rounds, run, wait_for};

const SOON: Duration = Duration::from_secs(90);

/// `replicas` pods of busybox that wait and end at once when told to.
fn deployment(name: &str, replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
         template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n        - name: c\n          \
         image: busybox:1.36\n          command: [sh, -c, 'trap exit TERM; while :; do sleep 0.1; done']\n"
    )
}

fn wait_replicas(k: &Kubectl, name: &str, count: usize) {
    wait_for(SOON, &format!("{count} ready pods of {name}"), || {
        let pods = k.json(&["pods", "-l", &format!("app={name}")])?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        let ready = items.iter().filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true).count();
        if items.len() == count && ready == count {
            return Ok(());
        }
        let waiting = items.iter().filter(|pod| pod["status"]["containerStatuses"][0]["ready"] != true).map(|pod| &pod["status"]);
        let waiting: String = waiting.map(|status| format!("\n{status}")).collect();
        Err(format!("{} pods, {ready} ready; the others:{waiting}", items.len()))
    });
}

fn of_app(containers: &BTreeMap<String, Seen>, app: &str) -> BTreeMap<String, Seen> {
    let prefix = format!("{app}-");
    containers.iter().filter(|(_, seen)| seen.pod.starts_with(&prefix)).map(|(id, seen)| (id.clone(), seen.clone())).collect()
}

/// What the node runs is exactly what the server assigned to it: each container started once, no sandbox more.
fn settled(node: &Node, k: &Kubectl) -> Result<(), String> {
    let pods = k.json(&["pods", "--field-selector", &format!("spec.nodeName={}", node.name)])?;
    let wanted: BTreeSet<String> =
        pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let status = &pod["status"]["containerStatuses"][0];
        if status["ready"] != true {
            return Err(format!("{}: {status}", pod["metadata"]["name"]));
        }
        if status["restartCount"] != 0 {
            let of_pod = format!("involvedObject.name={}", pod["metadata"]["name"].as_str().unwrap_or_default());
            let events = k.get(&["get", "events", "--field-selector", &of_pod])?;
            return Err(format!("{} tells of a restart that never was: {status}\n{events}", pod["metadata"]["name"]));
        }
    }
    let containers = node.containers()?;
    let (mut running, mut started) = (BTreeSet::new(), BTreeSet::new());
    for (id, seen) in &containers {
        // A start that the kill cut short never ran: the runtime gives it no start time, and there is a next attempt.
        if seen.started_at > 0 && !started.insert(seen.pod.clone()) {
            return Err(format!("{} was started twice, again as {id}: {seen:?}", seen.pod));
        }
        if seen.running {
            running.insert(seen.pod.clone());
        }
    }
    let sandboxes = node.sandboxes()?;
    let mut ready = BTreeSet::new();
    for (id, (pod, is_ready)) in &sandboxes {
        if !wanted.contains(pod) {
            return Err(format!("sandbox {id} of {pod} leaks"));
        }
        if *is_ready && !ready.insert(pod.clone()) {
            return Err(format!("{pod} has two sandboxes"));
        }
    }
    if running == wanted && ready == wanted && sandboxes.len() == wanted.len() {
        Ok(())
    } else {
        Err(format!("assigned {wanted:?}, running {running:?}, {} sandboxes", sandboxes.len()))
    }
}

#[test]
fn agent_killed_at_any_moment() {
    run("agent_killed_at_any_moment", |machine| {
        let mut cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let k = cluster.kubectl.clone();
        k.apply(&deployment("steady", 3));
        k.apply(&deployment("churn", 2));
        wait_replicas(&k, "steady", 3);
        wait_replicas(&k, "churn", 2);
        let steady = of_app(&cluster.nodes[0].containers().expect("containerd answers"), "steady");
        assert_eq!(steady.len(), 3);
        let mut count = 2;
        for round in 0..rounds("KILL_ROUNDS", 3) {
            // Pods are being started or ended while the kill falls; the moment moves on by a prime each round.
            count = if count == 2 { 5 } else { 2 };
            k.ok(&["scale", "deployment/churn", &format!("--replicas={count}")]);
            std::thread::sleep(Duration::from_millis(u64::from(round) * 97 % 900));
            let node = &mut cluster.nodes[0];
            node.kill_agent();
            let orphaned = of_app(&node.containers().expect("containerd outlives the agent"), "steady");
            assert_eq!(orphaned, steady, "round {round}: pods run on without the agent");
            node.start();
            if round % 3 == 2 {
                // Once more, while it is still starting.
                std::thread::sleep(Duration::from_millis(u64::from(round) * 53 % 400));
                node.kill_agent();
                node.start();
            }
            wait_replicas(&k, "churn", count);
            wait_for(SOON, &format!("round {round}: the node settles"), || settled(&cluster.nodes[0], &k));
            let after = of_app(&cluster.nodes[0].containers().expect("containerd answers"), "steady");
            assert_eq!(after, steady, "round {round}: same containers, same start times");
        }
        let statuses = k.json(&["pods", "-l", "app=steady"]).expect("pods");
        for pod in statuses["items"].as_array().into_iter().flatten() {
            let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
            assert!(steady.contains_key(id.trim_start_matches("containerd://")), "status names the adopted container: {id}");
        }
    });
}

#[test]
fn server_killed_at_any_moment() {
    run("server_killed_at_any_moment", |machine| {
        let mut cluster = Cluster::start(machine, &Options::default());
        let k = cluster.kubectl.clone();
        k.apply(&deployment("steady", 4));
        wait_replicas(&k, "steady", 4);
        let before: Vec<_> = cluster.nodes.iter().map(|node| node.containers().expect("containerd answers")).collect();
        let (cert, key) = cluster.admin_files();
        let url = format!("{}/api/v1/namespaces/default/configmaps", cluster.server_url);
        let mut accepted = BTreeMap::new();
        for round in 0..rounds("KILL_ROUNDS", 3) {
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let writers: Vec<_> = (0..3)
                    .map(|writer| {
                        let done = &done;
                        let (cert, key, url) = (&cert, &key, &url);
                        scope.spawn(move || {
                            let mut written = Vec::new();
                            for number in 0.. {
                                if done.load(Ordering::SeqCst) {
                                    break;
                                }
                                let name = format!("w{writer}-{round}-{number}");
                                let map = format!(
                                    r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"v":"{name}"}}}}"#
                                );
                                let mut post = Command::new("curl");
                                post.args(["-ksS", "--fail", "--max-time", "5", "--cert", cert, "--key", key]);
                                post.args(["-H", "Content-Type: application/json", "-o", "/dev/null", "-d", &map, url]);
                                if output(post, SOON).code == Some(0) {
                                    written.push(name);
                                }
                            }
                            written
                        })
                    })
                    .collect();
                // The kill falls into the writes, each round at another moment.
                std::thread::sleep(Duration::from_millis(600 + u64::from(round) * 97 % 900));
                cluster.kill_server();
                done.store(true, Ordering::SeqCst);
                for writer in writers {
                    accepted.extend(writer.join().expect("writer ends").into_iter().map(|name| (name, round)));
                }
            });
            cluster.start_server();
            let maps = k.json(&["configmaps"]).expect("list");
            let found: BTreeSet<&str> = maps["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|m| m["data"]["v"] == m["metadata"]["name"])
                .filter_map(|m| m["metadata"]["name"].as_str())
                .collect();
            let lost: Vec<&String> = accepted.keys().filter(|name| !found.contains(name.as_str())).collect();
            assert!(lost.is_empty(), "round {round}: accepted and lost: {lost:?}");
            // Both ways of the wire work again: the nodes report, and the server reaches their kubelets.
            cluster.wait_ready(2);
            let pods = k.get(&["get", "pods", "-l", "app=steady", "-o", "name"]).expect("pods");
            for pod in pods.lines() {
                wait_for(SOON, &format!("round {round}: exec through the tunnel"), || k.get(&["exec", pod, "--", "true"]));
            }
        }
        println!("{} writes were accepted, none lost", accepted.len());
        let after: Vec<_> = cluster.nodes.iter().map(|node| node.containers().expect("containerd answers")).collect();
        assert_eq!(after, before, "the pods did not notice");
    });
}
