//! One real server, one of our nodes: everything a user does with kubectl.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, make_namespace, with_k3s};
use crate::metrics_server;
use crate::system::kubectl::Kubectl;
use crate::system::process::Process;
use crate::system::steps::{DEPLOYMENT, SOON, STEPS, Step, Tried, busybox, contains, pod_names};
use crate::system::{skip, wait_for};

/// Steps that need two nodes.
const NOT_ALONE: [&str; 1] = ["cordon"];

/// What only a real control plane adds to the steps everybody runs.
const MORE: &[Step] = &[
    ("node is Ready and schedulable", node_is_ready),
    ("logs -f live", logs_live),
    ("cp both ways", copy),
    ("debug", debug),
    ("drain and uncordon", drain),
];

#[test]
fn a_node_of_a_real_server() {
    with_k3s("worker", |machine, k3s| {
        for variable in ["KUBECTL_OLD", "KUBECTL_NEW"] {
            if std::env::var_os(variable).is_none() {
                skip("real K3s worker", &format!("{variable} is not set, that release is not tried"));
            }
        }
        let mut lab = Lab::start(machine, k3s, 1);
        lab.add_node(machine, 0);
        let mut failed = Vec::new();
        for (version, binary) in &machine.kubectls {
            let home = lab.site.dir.join(format!("home-{version}"));
            std::fs::create_dir_all(&home).expect("home is made");
            let namespace = format!("user-{}", version.replace('.', "-"));
            let k = make_namespace(&lab.servers[0].kubectl(binary, &home), &namespace);
            let tried = Tried { cluster: &lab.site, k, namespace };
            // The last common step deletes everything.
            let common = STEPS.iter().filter(|(name, _)| !NOT_ALONE.contains(name));
            let (last, first) = common.collect::<Vec<_>>().split_last().map(|(last, first)| (*last, first.to_vec())).expect("steps");
            for (name, step) in first.into_iter().chain(MORE).chain([last]) {
                match catch_unwind(AssertUnwindSafe(|| step(&tried))) {
                    Ok(()) => println!("real K3s, kubectl {version}: {name} ok"),
                    Err(_) => failed.push(format!("kubectl {version}: {name}")),
                }
            }
        }
        match catch_unwind(AssertUnwindSafe(|| metrics_server::scrape(&lab))) {
            Ok(()) => println!("real K3s: the scrape of metrics-server ok"),
            Err(_) => failed.push("the scrape of metrics-server".to_owned()),
        }
        assert!(failed.is_empty(), "failed: {failed:#?}");
    });
}

fn node_is_ready(t: &Tried<'_>) {
    let node = &t.cluster.nodes[0];
    let object = wait_for(SOON, "the cloud controller removes its taint", || {
        let object = t.k.json(&["node", &node.name])?;
        if object["spec"]["taints"].is_null() { Ok(object) } else { Err(object["spec"].to_string()) }
    });
    let condition = |kind: &str| {
        let all = object["status"]["conditions"].as_array().expect("conditions");
        all.iter().find(|condition| condition["type"] == kind).map(|condition| condition["status"].clone())
    };
    assert_eq!(condition("Ready"), Some("True".into()), "{}", object["status"]["conditions"]);
    assert_eq!(object["spec"]["unschedulable"], Value::Null);
    assert_eq!(object["spec"]["providerID"], format!("k3s://{}", node.name).as_str());
    let wide = t.k.ok(&["get", "nodes", "-o", "wide"]);
    println!("{}", wide.trim_end());
    let line = wide.lines().find(|line| line.starts_with(&node.name)).expect("our line");
    contains(line, &[" Ready ", &node.ip, "containerd://"]);
    assert!(!line.contains("SchedulingDisabled"), "{line}");
}

/// Lines arrive while the container runs, not at its end.
fn logs_live(t: &Tried<'_>) {
    t.k.apply(&busybox("ticker", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done", "Always"));
    t.cluster.wait_pod(&t.namespace, "ticker", SOON, |pod| pod["status"]["phase"] == "Running");
    let file = t.cluster.dir.join(format!("ticker-{}.txt", t.namespace));
    let mut following = Process::start(t.k.command(&["logs", "-f", "ticker"]), &file);
    let count = || std::fs::read_to_string(&file).unwrap_or_default().lines().filter(|line| line.starts_with("tick ")).count();
    let seen = wait_for(SOON, "first lines", || if count() > 3 { Ok(count()) } else { Err(count().to_string()) });
    wait_for(SOON, "more lines", || if count() > seen + 3 { Ok(()) } else { Err(count().to_string()) });
    assert_eq!(following.ended(), None, "logs -f goes on");
    t.k.ok(&["delete", "pod", "ticker", "--now"]);
}

fn copy(t: &Tried<'_>) {
    t.k.apply(&busybox("box", "trap exit TERM; while :; do sleep 0.2; done", "Always"));
    t.cluster.wait_pod(&t.namespace, "box", SOON, |pod| pod["status"]["phase"] == "Running");
    let (here, back) = (t.cluster.dir.join(format!("cp-{}", t.namespace)), t.cluster.dir.join(format!("cp-back-{}", t.namespace)));
    let content: Vec<u8> = (0..700_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(&here, &content).expect("file is written");
    t.k.ok(&["cp", &here.display().to_string(), "box:/tmp/copied"]);
    assert_eq!(t.k.ok(&["exec", "box", "--", "wc", "-c", "/tmp/copied"]).trim(), "700000 /tmp/copied");
    t.k.ok(&["cp", "box:/tmp/copied", &back.display().to_string()]);
    assert!(std::fs::read(&back).expect("came back") == content, "what came back differs");
    t.k.ok(&["delete", "pod", "box", "--now"]);
}

/// A container is added to a running pod: it sees the processes of its target, and what is typed reaches it.
fn debug(t: &Tried<'_>) {
    t.k.apply(&busybox("patient", "trap exit TERM; while :; do sleep 0.217; done", "Always"));
    t.cluster.wait_pod(&t.namespace, "patient", SOON, |pod| pod["status"]["phase"] == "Running");
    let typed = t.cluster.dir.join(format!("typed-{}", t.namespace));
    std::fs::write(&typed, "say aah\n").expect("file is written");
    let script = "read words; echo \"heard $words\"; until ps | grep -q '[s]leep 0.217'; do :; done; echo seen; exit 3";
    let kubectl = t.k.command(&["debug", "patient", "-i", "-c", "doctor", "--image=busybox:1.36", "--target=c", "--", "sh", "-c", script]);
    let mut command = Command::new("timeout");
    command.arg("60").arg(kubectl.get_program()).args(kubectl.get_args());
    command.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = command.stdin(File::open(&typed).expect("typed")).output().expect("kubectl runs");
    let problem = String::from_utf8_lossy(&said.stderr);
    if t.k.ok(&["get", "pod", "patient", "-o", "jsonpath={.spec.ephemeralContainers[*].name}"]).is_empty() {
        // A kubectl before 1.22 asks in a way that servers have forgotten.
        assert!(t.namespace.ends_with("1-20"), "kubectl debug: {problem}");
        println!("real K3s: this kubectl cannot debug: {}", problem.trim());
    } else {
        let ended = t.cluster.wait_pod(&t.namespace, "patient", SOON, |pod| {
            pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
        });
        assert_eq!(ended["status"]["phase"], "Running");
        assert_eq!(ended["status"]["containerStatuses"][0]["restartCount"], 0);
        // What is typed ends at once, and with it containerd's end of the attachment: its log has it all.
        contains(&t.k.ok(&["logs", "patient", "-c", "doctor"]), &["heard say aah", "seen"]);
    }
    t.k.ok(&["delete", "pod", "patient", "--now"]);
}

fn drain(t: &Tried<'_>) {
    let node = t.cluster.nodes[0].name.as_str();
    t.k.apply(DEPLOYMENT);
    t.k.ok(&["rollout", "status", "deployment/api-service", "--timeout=55s"]);
    let before = pod_names(&t.k, "app=api").expect("pods");
    let seen = t.k.ok(&["drain", node, "--ignore-daemonsets", "--force", "--timeout=50s"]);
    contains(&seen, &["evicting pod", node]);
    let here = format!("spec.nodeName={node}");
    wait_for(SOON, "no pod is left on the node", || {
        let left = t.k.get(&["get", "pods", "-A", "--field-selector", &here, "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert!(pod_names(&t.k, "app=api").expect("pods").iter().all(|name| !before.contains(name)), "evicted pods are gone");
    wait_for(SOON, "nothing of the pods is left in containerd", || {
        let left: Vec<_> = t.cluster.nodes[0].containers()?.into_values().filter(|container| container.running).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    t.k.ok(&["uncordon", node]);
    three_of_three(&t.k);
}

/// `examples/deployment.yaml` is up.
pub(crate) fn three_of_three(k: &Kubectl) {
    wait_for(Duration::from_secs(90), "api-service 3/3", || {
        let line = k.get(&["get", "deployment", "api-service", "--no-headers"])?;
        if line.contains("3/3") { Ok(()) } else { Err(line) }
    });
}
