//! The server is away and the node starts anew: what was assigned runs, with its configuration and secrets.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::system::cluster::{Cluster, Node, Options};
use crate::system::{run, wait_for};

const LIMIT: Duration = Duration::from_secs(90);

const PODS: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: fast}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: kept}
spec:
  replicas: 2
  selector: {matchLabels: {app: kept}}
  template:
    metadata: {labels: {app: kept}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: c
          image: busybox:1.36
          command: [sh, -c, 'trap exit TERM; echo $PASSWORD $(cat /etc/settings/mode); while :; do sleep 0.1; done']
          env:
            - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
          volumeMounts:
            - {name: settings, mountPath: /etc/settings}
      volumes:
        - {name: settings, configMap: {name: settings}}
";

fn running(node: &Node) -> Result<BTreeSet<String>, String> {
    Ok(node.containers()?.into_values().filter(|seen| seen.running && seen.pod.starts_with("kept-")).map(|seen| seen.pod).collect())
}

fn remembered(ledger: &Path, names: &BTreeSet<String>) -> Result<(), String> {
    let text = std::fs::read(ledger).map_err(|error| format!("{}: {error}", ledger.display()))?;
    let file: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let held = |kind: &str| -> BTreeSet<String> {
        file[kind].as_array().into_iter().flatten().filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)).collect()
    };
    let (pods, maps, secrets) = (held("pods"), held("configMaps"), held("secrets"));
    if pods.is_superset(names) && maps.contains("settings") && secrets.contains("keys") {
        Ok(())
    } else {
        Err(format!("pods {pods:?}, config maps {maps:?}, secrets {secrets:?}"))
    }
}

fn kill_all(pids: &[i32]) {
    for pid in pids {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

#[test]
fn assigned_pods_run_without_the_server() {
    run("assigned_pods_run_without_the_server", |machine| {
        let mut cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let k = cluster.kubectl.clone();
        k.apply(PODS);
        k.ok(&["rollout", "status", "deployment/kept", "--timeout=55s"]);
        let names = running(&cluster.nodes[0]).expect("containerd answers");
        assert_eq!(names.len(), 2);
        let before = cluster.nodes[0].containers().expect("containerd answers");
        // What a power cut may lose is what was assigned within the last moment, never more.
        let ledger = cluster.nodes[0].dir.join("agent/assignments.json");
        wait_for(Duration::from_secs(10), "the assignments are on disk with what they need", || remembered(&ledger, &names));
        cluster.kill_server();

        // Agent and containerd end and start again; the pods' own processes are untouched.
        cluster.nodes[0].kill_agent();
        let containerd = cluster.nodes[0].containerd();
        assert_eq!(containerd.len(), 1, "{containerd:?}");
        kill_all(&containerd);
        cluster.nodes[0].start();
        wait_for(LIMIT, "the pods are adopted", || {
            let now = cluster.nodes[0].containers()?;
            if now == before { Ok(()) } else { Err(format!("{now:?}")) }
        });

        // As after a power cut: nothing of the pods is left but what is on disk.
        cluster.nodes[0].kill_agent();
        kill_all(&cluster.nodes[0].containerd());
        let node = &cluster.nodes[0];
        wait_for(LIMIT, "every process of the pods ends", || {
            let mut left = Vec::new();
            for group in node.cgroups() {
                members(&group.join("kubepods"), &mut left);
            }
            kill_all(&left);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        cluster.nodes[0].start();
        wait_for(LIMIT, "the pods run again", || {
            let now = running(&cluster.nodes[0])?;
            if now == names { Ok(()) } else { Err(format!("{now:?}")) }
        });
        let agent = &cluster.nodes[0];
        let status = agent.edge_agent(&["status", "--json"]);
        assert_eq!(status.code, Some(0), "status works offline: {status:?}");
        let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("json");
        assert_eq!(status["pods"].as_array().map(Vec::len), Some(2), "{status}");

        cluster.start_server();
        cluster.wait_ready(1);
        let k = &cluster.kubectl;
        for name in &names {
            // What stands there at first is the status from before the outage.
            cluster.wait_pod("default", name, LIMIT, |pod| {
                let container = &pod["status"]["containerStatuses"][0];
                container["ready"] == true && container["restartCount"].as_i64().is_some_and(|count| count >= 1)
            });
            // The tunnel may come back a moment after the status: its link backs off on its own clock.
            wait_for(LIMIT, "logs through the tunnel", || {
                let log = k.get(&["logs", name])?;
                if log == "hunter2 fast\n" { Ok(()) } else { Err(log) }
            });
        }
        let pods = k.get(&["get", "pods", "-o", "name"]).expect("pods");
        assert_eq!(pods.lines().count(), 2, "nothing was replaced: {pods}");
    });
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
