//! A node is lost: NotReady 40 s after its last lease renewal, not after one missed; then its pods run elsewhere.

use std::time::{Duration, Instant};

use crate::system::cluster::{Cluster, Options};
use crate::system::{holds_for, rounds, run, wait_for};

const PODS: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: moved}
spec:
  replicas: 3
  selector: {matchLabels: {app: moved}}
  template:
    metadata: {labels: {app: moved}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
        - {name: c, image: 'busybox:1.36', command: [sh, -c, 'trap exit TERM; while :; do sleep 0.1; done']}
";

/// Without a lease this long a node is not ready.
const GRACE: Duration = Duration::from_secs(40);

#[test]
fn pods_of_a_lost_node_are_replaced() {
    run("pods_of_a_lost_node_are_replaced", |machine| {
        let mut cluster = Cluster::start(machine, &Options::default());
        let k = cluster.kubectl.clone();
        k.apply(PODS);
        k.ok(&["rollout", "status", "deployment/moved", "--timeout=55s"]);
        for round in 0..rounds("LOSS_ROUNDS", 1) {
            let lost = usize::try_from(round).unwrap_or_default() % 2;
            let (name, other) = (cluster.nodes[lost].name.clone(), cluster.nodes[1 - lost].name.clone());
            let status = |name: &str| {
                let node = k.json(&["node", name])?;
                let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let ready = conditions.iter().find(|condition| condition["type"] == "Ready").map(|condition| condition["status"].clone());
                ready.and_then(|ready| ready.as_str().map(str::to_owned)).ok_or_else(|| node.to_string())
            };
            let renewed = || {
                let lease = k.json(&["lease", &name, "-n", "kube-node-lease"])?;
                lease["spec"]["renewTime"].as_str().map(str::to_owned).ok_or_else(|| lease.to_string())
            };
            cluster.nodes[lost].kill_agent();
            let last = renewed().expect("lease");
            let killed = Instant::now();
            // The last renewal was at most 10 s before the kill, so that for 28 s it is younger than the grace.
            holds_for(Duration::from_secs(28), "one missed renewal does not make a node unready", || match status(&name)?.as_str() {
                "True" => Ok(()),
                other => Err(other.to_owned()),
            });
            wait_for(GRACE, "the node is reported lost", || match status(&name)?.as_str() {
                "Unknown" => Ok(()),
                other => Err(other.to_owned()),
            });
            println!("round {round}: NotReady {:?} after the kill", killed.elapsed());
            assert_eq!(renewed().expect("lease"), last, "nobody renewed it meanwhile");
            let taints = k.ok(&["get", "node", &name, "-o", "jsonpath={.spec.taints[*].key}"]);
            assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
            wait_for(Duration::from_secs(30), "three pods run on the other node", || {
                let pods = k.json(&["pods", "-l", "app=moved", "--field-selector", &format!("spec.nodeName={other}")])?;
                let items = pods["items"].as_array().cloned().unwrap_or_default();
                let ready = items.iter().filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true).count();
                if ready == 3 { Ok(()) } else { Err(format!("{ready} of {}", items.len())) }
            });
            println!("round {round}: replaced {:?} after the kill", killed.elapsed());
            cluster.nodes[lost].start();
            cluster.wait_ready(2);
            wait_for(Duration::from_secs(60), "the returned node ends what was replaced", || {
                let left: Vec<String> = cluster.nodes[lost].containers()?.into_values().filter(|c| c.running).map(|c| c.pod).collect();
                if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
            });
        }
    });
}
