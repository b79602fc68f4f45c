//! What pods may have together is enforced by the kernel, and so is what each of them asked for.

use std::path::PathBuf;
use std::time::Duration;

use crate::system::cluster::{Cluster, Node, Options};
use crate::system::{run, wait_for};

const SOON: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// The first of these files that exists below the node's cgroup in any hierarchy.
fn control_file(node: &Node, group: &str, names: &[&str]) -> Result<PathBuf, String> {
    let mut tried = Vec::new();
    for root in node.cgroups() {
        for name in names {
            let file = root.join(group).join(name);
            if file.is_file() {
                return Ok(file);
            }
            tried.push(file);
        }
    }
    Err(format!("none of {tried:?}"))
}

fn number(file: &PathBuf) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    text.trim().parse().map_err(|_| format!("{}: {text}", file.display()))
}

const LIMIT: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];

fn quantity(text: &str) -> u64 {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => MIB,
        "Gi" => GIB,
        other => panic!("unit {other} of {text}"),
    };
    digits.parse::<u64>().expect("digits") * factor
}

#[test]
fn pods_get_what_is_left_and_no_more() {
    run("pods_get_what_is_left_and_no_more", |machine| {
        let config = "  - system-reserved=memory=1Gi\n  - kube-reserved=memory=512Mi\n";
        let cluster = Cluster::start(machine, &Options { nodes: 1, config });
        let (node, k) = (&cluster.nodes[0], &cluster.kubectl);

        let object = k.json(&["node", &node.name]).expect("node");
        let amount = |which: &str| quantity(object["status"][which]["memory"].as_str().unwrap_or_default());
        let (capacity, allocatable) = (amount("capacity"), amount("allocatable"));
        let limit = number(&control_file(node, "kubepods", &LIMIT).expect("limit of all pods")).expect("number");
        // Page granularity is all that may lie between.
        assert!(limit.abs_diff(capacity - 1536 * MIB) < 4096, "limit {limit}, capacity {capacity}");
        assert!(allocatable <= limit && allocatable > limit - GIB, "allocatable {allocatable}, limit {limit}");
        let metrics = node.fetch("http://127.0.0.1:9470/metrics").expect("metrics");
        let line = format!("edge_agent_reservation_bytes{{scope=\"kubepods\",kind=\"max\"}} {limit}");
        assert!(metrics.lines().any(|found| found == line), "{line} not in {metrics}");

        k.apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: bounded}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - name: c\n      image: busybox:1.36\n      \
             command: [sleep, '600']\n      resources: {requests: {cpu: 250m, memory: 64Mi}, limits: {cpu: 500m, memory: 64Mi}}\n",
        );
        let pod = cluster.wait_pod("default", "bounded", SOON, |pod| pod["status"]["phase"] == "Running");
        assert_eq!(pod["status"]["qosClass"], "Burstable");
        let group = format!("kubepods/burstable/pod{}", pod["metadata"]["uid"].as_str().unwrap_or_default());
        assert_eq!(number(&control_file(node, &group, &LIMIT).expect("pod limit")), Ok(64 * MIB));
        let id = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("containerd://")
            .to_owned();
        assert_eq!(number(&control_file(node, &format!("{group}/{id}"), &LIMIT).expect("container limit")), Ok(64 * MIB));

        k.apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: greedy}\nspec:\n  restartPolicy: Never\n  containers:\n    - name: c\n      image: busybox:1.36\n      \
             command: [awk, 'BEGIN { s = \"xxxxxxxxxxxxxxxx\"; while (1) s = s s }']\n      resources: {limits: {memory: 32Mi}}\n",
        );
        let pod = cluster.wait_pod("default", "greedy", SOON, |pod| pod["status"]["phase"] == "Failed");
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["reason"], &ended["exitCode"]), (&"OOMKilled".into(), &137.into()), "{ended}");
        let shown = k.ok(&["get", "pod", "greedy"]);
        assert!(shown.contains("OOMKilled"), "{shown}");
        // The neighbour did not notice.
        let pod = k.json(&["pod", "bounded"]).expect("pod");
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);

        k.ok(&["delete", "pod", "bounded", "greedy", "--now"]);
        wait_for(SOON, "the pods' groups go with them", || match control_file(node, &group, &LIMIT) {
            Ok(file) => Err(format!("{} is there", file.display())),
            Err(_) => Ok(()),
        });
    });
}
