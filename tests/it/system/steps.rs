//! What a user does with kubectl, one step a command: against `edge-server` and against real K3s.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::cluster::Cluster;
use super::kubectl::Kubectl;
use super::process::{Process, output};
use super::wait_for;

pub(crate) const DEPLOYMENT: &str = include_str!("../../../examples/deployment.yaml");
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What each step works with.
pub(crate) struct Tried<'a> {
    pub(crate) cluster: &'a Cluster,
    /// In the namespace of this kubectl.
    pub(crate) k: Kubectl,
    pub(crate) namespace: String,
}

pub(crate) type Step = (&'static str, fn(&Tried<'_>));

/// In this order: later steps use what earlier ones made.
pub(crate) const STEPS: &[Step] = &[
    ("apply", apply),
    ("rollout status", rollout_status),
    ("get tables", get_tables),
    ("get formats", get_formats),
    ("get nodes", get_nodes),
    ("describe", describe),
    ("label and selectors", label),
    ("scale", scale),
    ("rollout restart", rollout_restart),
    ("watch", watch),
    ("logs", logs),
    ("logs -f", logs_follow),
    ("logs --previous", logs_previous),
    ("exec", exec),
    ("exec -it", exec_terminal),
    ("attach", attach),
    ("port-forward", port_forward),
    ("wait", wait),
    ("cordon", cordon),
    ("configmap and secret", config),
    ("service", service),
    ("explain and api-resources", discovery),
    ("errors", errors),
    ("delete", delete),
];

#[track_caller]
pub(crate) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} not in:\n{text}");
    }
}

/// Columns of the first line.
fn columns(table: &str) -> Vec<&str> {
    // Columns are separated by at least two blanks; "NOMINATED NODE" is one.
    table.lines().next().unwrap_or_default().split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

pub(crate) fn pod_names(k: &Kubectl, selector: &str) -> Result<Vec<String>, String> {
    let names = k.get(&["get", "pods", "-l", selector, "-o", "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// A pod of busybox that runs `script`.
pub(crate) fn busybox(name: &str, script: &str, restart: &str) -> String {
    let script = script.replace('\'', "''");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    - name: c\n      image: busybox:1.36\n      command: [sh, -c, '{script}']\n"
    )
}

fn apply(t: &Tried<'_>) {
    assert_eq!(t.k.apply(DEPLOYMENT).trim(), "deployment.apps/api-service created");
    assert_eq!(t.k.apply(DEPLOYMENT).trim(), "deployment.apps/api-service unchanged");
    let changed = DEPLOYMENT.replacen("labels:\n    app: api", "labels:\n    app: api\n    tier: web", 1);
    assert_eq!(t.k.apply(&changed).trim(), "deployment.apps/api-service configured");
    assert_eq!(t.k.ok(&["get", "deployment", "api-service", "-o", "jsonpath={.metadata.labels.tier}"]), "web");
    assert_eq!(t.k.apply(DEPLOYMENT).trim(), "deployment.apps/api-service configured");
    assert_eq!(t.k.ok(&["get", "deployment", "api-service", "-o", "jsonpath={.metadata.labels.tier}"]), "", "apply removes what it made");
}

fn rollout_status(t: &Tried<'_>) {
    let text = t.k.ok(&["rollout", "status", "deployment/api-service", "--timeout=50s"]);
    contains(&text, &["deployment \"api-service\" successfully rolled out"]);
}

fn get_tables(t: &Tried<'_>) {
    let pods = t.k.ok(&["get", "pods"]);
    assert_eq!(columns(&pods), ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(), 3, "{pods}");
    let wide = t.k.ok(&["get", "pods", "-o", "wide"]);
    assert_eq!(columns(&wide), ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]);
    assert!(t.cluster.nodes.iter().all(|node| wide.contains(&node.name)), "spread over both nodes:\n{wide}");
    let deployments = t.k.ok(&["get", "deployments"]);
    assert_eq!(columns(&deployments), ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    contains(&deployments, &["api-service", "3/3"]);
    let wide = t.k.ok(&["get", "deploy", "-o", "wide"]);
    contains(&wide, &["CONTAINERS", "IMAGES", "SELECTOR", "api-container", "nginx:alpine", "app=api"]);
    assert_eq!(columns(&t.k.ok(&["get", "rs"])), ["NAME", "DESIRED", "CURRENT", "READY", "AGE"]);
    let all = t.k.ok(&["get", "deploy,rs,pods"]);
    contains(&all, &["deployment.apps/api-service", "replicaset.apps/api-service-", "pod/api-service-"]);
    contains(&t.k.ok(&["get", "events"]), &["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE", "Scheduled", "Started"]);
    contains(&t.k.ok(&["get", "pods", "-A"]), &["NAMESPACE", &t.namespace]);
    contains(&t.k.ok(&["get", "pods", "--show-labels"]), &["LABELS", "app=api"]);
    contains(&t.k.ok(&["get", "ns"]), &["NAME", "STATUS", "AGE", "Active", "kube-system"]);
}

fn get_formats(t: &Tried<'_>) {
    contains(
        &t.k.ok(&["get", "deployment", "api-service", "-o", "yaml"]),
        &["apiVersion: apps/v1", "kind: Deployment", "readyReplicas: 3"],
    );
    let list = t.k.json(&["pods", "-l", "app=api"]).expect("json");
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(3));
    for pod in list["items"].as_array().expect("items") {
        let status = &pod["status"];
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["qosClass"], "BestEffort");
        assert!(status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.42.")), "{status}");
        let container = &status["containerStatuses"][0];
        assert_eq!((&container["ready"], &container["restartCount"], &container["started"]), (&true.into(), &0.into(), &true.into()));
        assert!(container["containerID"].as_str().is_some_and(|id| id.starts_with("containerd://")));
        assert!(container["state"]["running"]["startedAt"].is_string());
        let conditions: Vec<&str> =
            status["conditions"].as_array().expect("conditions").iter().filter_map(|c| c["type"].as_str()).collect();
        for wanted in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
            assert!(conditions.contains(&wanted), "{wanted} not in {conditions:?}");
        }
    }
    let image = t.k.ok(&["get", "deployment", "api-service", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    assert_eq!(image, "nginx:alpine");
    assert_eq!(
        t.k.ok(&["get", "pods", "-l", "app=api", "-o", "name"]).lines().filter(|line| line.starts_with("pod/api-service-")).count(),
        3
    );
    let custom = t.k.ok(&["get", "pods", "-o", "custom-columns=N:.metadata.name,P:.status.phase"]);
    contains(&custom, &["N", "P", "Running"]);
    contains(&t.k.ok(&["get", "pods", "--sort-by=.metadata.name"]), &["api-service-"]);
}

fn get_nodes(t: &Tried<'_>) {
    let nodes = t.k.ok(&["get", "nodes"]);
    assert_eq!(columns(&nodes), ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    let wide = t.k.ok(&["get", "nodes", "-o", "wide"]);
    contains(&wide, &["INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME", "containerd://"]);
    for node in &t.cluster.nodes {
        contains(&wide, &[&node.name, &node.ip]);
    }
}

fn describe(t: &Tried<'_>) {
    let deployment = t.k.ok(&["describe", "deployment", "api-service"]);
    contains(
        &deployment,
        &[
            "Name:",
            "Replicas:",
            "3 desired | 3 updated | 3 total | 3 available",
            "StrategyType:",
            "RollingUpdate",
            "NewReplicaSet:",
            "ScalingReplicaSet",
        ],
    );
    let pods = pod_names(&t.k, "app=api").expect("pods");
    let pod = t.k.ok(&["describe", "pod", &pods[0]]);
    contains(&pod, &["Node:", "Status:", "Running", "Controlled By:", "ReplicaSet/api-service-", "Container ID:", "containerd://"]);
    contains(&pod, &["Image:", "nginx:alpine", "Port:", "80/TCP", "Ready:", "True", "QoS Class:", "BestEffort", "Successfully assigned"]);
    contains(&pod, &["Pulled", "Created", "Container started", "kubelet"]);
    let node = t.k.ok(&["describe", "node", &t.cluster.nodes[0].name]);
    contains(
        &node,
        &[
            "Conditions:",
            "MemoryPressure",
            "KubeletReady",
            "Capacity:",
            "Allocatable:",
            "System Info:",
            "PodCIDR:",
            "Non-terminated Pods:",
            "Allocated resources:",
        ],
    );
}

fn label(t: &Tried<'_>) {
    let pods = pod_names(&t.k, "app=api").expect("pods");
    contains(&t.k.ok(&["label", "pod", &pods[0], "color=green"]), &["labeled"]);
    assert_eq!(pod_names(&t.k, "color=green").expect("pods"), [pods[0].clone()]);
    assert_eq!(pod_names(&t.k, "app=api,color!=green").expect("pods").len(), 2);
    assert_eq!(pod_names(&t.k, "color in (green,red)").expect("pods").len(), 1);
    assert_eq!(pod_names(&t.k, "app,!color").expect("pods").len(), 2);
    t.k.ok(&["label", "--overwrite", "pod", &pods[0], "color=red"]);
    t.k.ok(&["label", "pod", &pods[0], "color-"]);
    assert!(pod_names(&t.k, "color").expect("pods").is_empty());
    contains(&t.k.ok(&["annotate", "pod", &pods[0], "note=hello"]), &["annotated"]);
    let selected = t.k.ok(&["get", "pods", "--field-selector", &format!("metadata.name={}", pods[1]), "-o", "name"]);
    assert_eq!(selected.trim(), format!("pod/{}", pods[1]));
    let here = format!("spec.nodeName={}", t.cluster.nodes[0].name);
    assert!(!t.k.ok(&["get", "pods", "--field-selector", &here, "-o", "name"]).is_empty());
}

fn scale(t: &Tried<'_>) {
    for count in ["5", "2", "3"] {
        contains(&t.k.ok(&["scale", "deployment/api-service", &format!("--replicas={count}")]), &["scaled"]);
        wait_for(SOON, "the wanted count of ready pods", || {
            let pods = pod_names(&t.k, "app=api")?.len().to_string();
            let ready = t.k.get(&["get", "deployment", "api-service", "-o", "jsonpath={.status.readyReplicas}"])?;
            if pods == count && ready == count { Ok(()) } else { Err(format!("{pods} pods, {ready} ready")) }
        });
    }
}

fn rollout_restart(t: &Tried<'_>) {
    let before = pod_names(&t.k, "app=api").expect("pods");
    contains(&t.k.ok(&["rollout", "restart", "deployment/api-service"]), &["restarted"]);
    contains(&t.k.ok(&["rollout", "status", "deployment/api-service", "--timeout=55s"]), &["successfully rolled out"]);
    wait_for(SOON, "the old pods are gone", || {
        let now = pod_names(&t.k, "app=api")?;
        if now.len() == 3 && now.iter().all(|name| !before.contains(name)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    contains(&t.k.ok(&["rollout", "history", "deployment/api-service"]), &["REVISION"]);
}

fn watch(t: &Tried<'_>) {
    let log = t.cluster.dir.join(format!("watch-{}.txt", t.namespace));
    let mut watching = Process::start(t.k.command(&["get", "pods", "-w"]), &log);
    t.k.apply(&busybox("watched", "sleep 600", "Never"));
    t.cluster.wait_pod(&t.namespace, "watched", SOON, |pod| pod["status"]["phase"] == "Running");
    t.k.ok(&["delete", "pod", "watched"]);
    wait_for(SOON, "the watch shows the pod's life", || {
        let seen = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let shows = |state: &str| seen.lines().any(|line| line.contains("watched") && line.contains(state));
        if ["ContainerCreating", "Running", "Terminating"].into_iter().all(shows) { Ok(()) } else { Err(seen) }
    });
    assert_eq!(watching.ended(), None, "the watch goes on");
}

fn logs(t: &Tried<'_>) {
    t.k.apply(&busybox("talk", "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.5; echo oops >&2; sleep 600", "Always"));
    let whole = wait_for(SOON, "log of the pod", || {
        let text = t.k.get(&["logs", "talk"])?;
        if text.contains("oops") { Ok(text) } else { Err(text) }
    });
    assert_eq!(whole, "line 1\nline 2\nline 3\nline 4\nline 5\noops\n");
    assert_eq!(t.k.ok(&["logs", "talk", "--tail=2"]), "line 5\noops\n");
    assert_eq!(t.k.ok(&["logs", "talk", "-c", "c", "--limit-bytes=10"]), "line 1\nlin");
    assert_eq!(t.k.ok(&["logs", "talk", "--since=1h"]), whole);
    assert_eq!(t.k.ok(&["logs", "-l", "app=talk", "--tail=1"]), "oops\n");
    let stamped = t.k.ok(&["logs", "talk", "--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.ends_with(" oops\n") && stamped.len() > 30, "{stamped}");
    t.k.ok(&["rollout", "status", "deployment/api-service", "--timeout=50s"]);
    t.k.ok(&["logs", "deployment/api-service"]);
    let missing = t.k.run(&["logs", "talk", "-c", "nothing"]);
    assert_ne!(missing.code, Some(0));
    contains(&missing.stderr, &["container nothing is not valid for pod talk"]);
    t.k.ok(&["delete", "pod", "talk", "--now"]);
}

fn logs_follow(t: &Tried<'_>) {
    t.k.apply(&busybox("count", "sleep 1; for i in 1 2 3 4 5 6; do echo tick $i; sleep 0.5; done", "Never"));
    t.cluster.wait_pod(&t.namespace, "count", SOON, |pod| pod["status"]["phase"] == "Running");
    let text = t.k.ok(&["logs", "-f", "count"]);
    assert_eq!(text, (1..=6).map(|i| format!("tick {i}\n")).collect::<String>());
    t.cluster.wait_pod(&t.namespace, "count", SOON, |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(t.k.ok(&["logs", "count"]), text, "of an ended pod");
    let line = t.k.ok(&["get", "pod", "count"]);
    contains(&line, &["0/1", "Completed"]);
    t.k.ok(&["delete", "pod", "count", "--now"]);
}

fn logs_previous(t: &Tried<'_>) {
    t.k.apply(&busybox("crash", "echo life of $(hostname); sleep 2; exit 3", "Always"));
    t.cluster.wait_pod(&t.namespace, "crash", SOON, |pod| pod["status"]["phase"] == "Running");
    let early = t.k.run(&["logs", "--previous", "crash"]);
    assert_ne!(early.code, Some(0));
    contains(&early.stderr, &["previous terminated container \"c\" in pod \"crash\" not found"]);
    t.cluster.wait_pod(&t.namespace, "crash", SOON, |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    assert_eq!(t.k.ok(&["logs", "--previous", "crash"]), "life of crash\n");
    let pod = t.k.json(&["pod", "crash"]).expect("json");
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&3.into(), &"Error".into()));
    t.cluster.wait_pod(&t.namespace, "crash", SOON, |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    contains(&t.k.ok(&["get", "pod", "crash"]), &["CrashLoopBackOff"]);
    t.k.ok(&["delete", "pod", "crash", "--now"]);
}

/// A pod that only waits, for the steps that enter it.
fn entered(t: &Tried<'_>) {
    t.k.apply(&busybox("entered", "trap exit TERM; echo ready; while :; do sleep 0.2; done", "Always"));
    t.cluster.wait_pod(&t.namespace, "entered", SOON, |pod| pod["status"]["phase"] == "Running");
}

fn exec(t: &Tried<'_>) {
    entered(t);
    assert_eq!(t.k.ok(&["exec", "entered", "--", "echo", "a b", "c&d"]), "a b c&d\n");
    let ended = t.k.run(&["exec", "entered", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), "out\n"), "{ended:?}");
    contains(&ended.stderr, &["err\n"]);
    let file = t.cluster.dir.join("input");
    std::fs::write(&file, "x".repeat(300_000)).expect("input is written");
    let mut piped = Command::new("sh");
    piped.args(["-c", "exec \"$0\" \"$@\" <\"$INPUT\""]).env("INPUT", &file);
    let inner = t.k.command(&["exec", "-i", "entered", "--", "wc", "-c"]);
    carry(&mut piped, &inner);
    assert_eq!(output(piped, SOON).ok().expect("stdin arrives whole").trim(), "300000");
    let big = t.k.ok(&["exec", "entered", "--", "sh", "-c", "dd if=/dev/zero bs=1024 count=2000 2>/dev/null | tr '\\0' y"]);
    assert_eq!(big.len(), 2_048_000);
    let missing = t.k.run(&["exec", "entered", "--", "no-such-program"]);
    assert!(missing.code.is_some_and(|code| code != 0), "{missing:?}");
    let none = t.k.run(&["exec", "no-such-pod", "--", "true"]);
    contains(&none.stderr, &["NotFound"]);
}

/// Program, arguments and environment of one command as arguments of another.
pub(crate) fn carry(outer: &mut Command, inner: &Command) {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        if let Some(value) = value {
            outer.env(key, value);
        }
    }
}

pub(crate) fn exec_terminal(t: &Tried<'_>) {
    entered(t);
    // script(1) gives kubectl a terminal; what is typed comes from its standard input.
    let inner = t.k.command(&["exec", "-it", "entered", "--", "sh", "-c", "tty; read line; echo got $line"]);
    let quoted: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|part| format!("'{}'", part.to_string_lossy().replace('\'', "'\\''")))
        .collect();
    let mut command = Command::new("sh");
    command.args(["-c", "(sleep 3; echo typed) | script -qec \"$0\" /dev/null", &quoted.join(" ")]);
    for (key, value) in inner.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    let seen = output(command, SOON);
    contains(&seen.stdout, &["/dev/pts/", "got typed"]);
}

fn attach(t: &Tried<'_>) {
    let pod = busybox("attached", "i=0; while :; do i=$((i+1)); echo beat $i; sleep 0.2; done", "Always");
    t.k.apply(&pod);
    t.cluster.wait_pod(&t.namespace, "attached", SOON, |pod| pod["status"]["phase"] == "Running");
    let log = t.cluster.dir.join(format!("attach-{}.txt", t.namespace));
    let mut attached = Process::start(t.k.command(&["attach", "attached"]), &log);
    wait_for(SOON, "what the container writes arrives", || {
        let seen = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let beats = seen.lines().filter(|line| line.starts_with("beat ")).count();
        if beats >= 5 { Ok(()) } else { Err(format!("{seen} {:?}", attached.ended())) }
    });
    t.k.ok(&["delete", "pod", "attached", "--now"]);
    wait_for(SOON, "attach ends with the container", || attached.ended().map(|_| ()).ok_or_else(|| "it goes on".to_owned()));
}

fn port_forward(t: &Tried<'_>) {
    for target in ["deployment/api-service", "pod"] {
        let target = match target {
            "pod" => format!("pod/{}", pod_names(&t.k, "app=api").expect("pods")[0]),
            other => other.to_owned(),
        };
        let log = t.cluster.dir.join(format!("forward-{}.txt", t.namespace));
        // What an earlier forward said would be taken for this one's.
        let _ = std::fs::remove_file(&log);
        let mut forwarding = Process::start(t.k.command(&["port-forward", &target, ":80"]), &log);
        let line = wait_for(SOON, "kubectl says where", || {
            let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
            let line = text.lines().find(|line| line.contains(" -> ")).map(str::to_owned);
            line.ok_or_else(|| format!("{text} {:?}", forwarding.ended()))
        });
        let port = line.split(" -> ").next().and_then(|left| left.rsplit(':').next()).unwrap_or_default().to_owned();
        let pages: Vec<_> = (0..3)
            .map(|_| {
                let mut curl = Command::new("curl");
                curl.args(["-sS", "--fail", "--max-time", "20", &format!("http://127.0.0.1:{port}/")]);
                output(curl, SOON)
            })
            .collect();
        drop(forwarding);
        for page in pages {
            contains(&page.ok().unwrap_or_else(|seen| panic!("{line}{seen}")), &["<html"]);
        }
    }
}

fn wait(t: &Tried<'_>) {
    contains(&t.k.ok(&["wait", "--for=condition=Available", "deployment/api-service", "--timeout=50s"]), &["condition met"]);
    contains(&t.k.ok(&["wait", "--for=condition=Ready", "pod", "-l", "app=api", "--timeout=50s"]), &["condition met"]);
    let never = t.k.run(&["wait", "--for=condition=Nonsense", "deployment/api-service", "--timeout=1s"]);
    assert_ne!(never.code, Some(0));
    // kubectl fails where there is nothing to wait for any more: the pod takes all of its grace.
    t.k.apply(&busybox("deaf", "trap '' TERM; while :; do sleep 0.2; done", "Always"));
    t.cluster.wait_pod(&t.namespace, "deaf", SOON, |pod| pod["status"]["phase"] == "Running");
    t.k.ok(&["delete", "pod", "deaf", "--grace-period=5", "--wait=false"]);
    t.k.ok(&["wait", "--for=delete", "pod/deaf", "--timeout=50s"]);
    t.k.ok(&["delete", "pod", "entered", "--ignore-not-found"]);
}

fn cordon(t: &Tried<'_>) {
    let node = t.cluster.nodes[0].name.as_str();
    contains(&t.k.ok(&["cordon", node]), &["cordoned"]);
    contains(&t.k.ok(&["get", "node", node]), &["Ready,SchedulingDisabled"]);
    t.k.apply(&busybox("elsewhere", "sleep 600", "Always"));
    let pod = t.cluster.wait_pod(&t.namespace, "elsewhere", SOON, |pod| pod["status"]["phase"] == "Running");
    assert_eq!(pod["spec"]["nodeName"], t.cluster.nodes[1].name.as_str());
    contains(&t.k.ok(&["uncordon", node]), &["uncordoned"]);
    assert!(!t.k.ok(&["get", "node", node]).contains("SchedulingDisabled"));
    t.k.ok(&["delete", "pod", "elsewhere", "--now"]);
}

fn config(t: &Tried<'_>) {
    contains(&t.k.ok(&["create", "configmap", "settings", "--from-literal=mode=fast"]), &["configmap/settings created"]);
    contains(&t.k.ok(&["create", "secret", "generic", "keys", "--from-literal=password=hunter2"]), &["secret/keys created"]);
    assert_eq!(t.k.ok(&["get", "secret", "keys", "-o", "jsonpath={.data.password}"]), "aHVudGVyMg==");
    contains(&t.k.ok(&["get", "cm,secret"]), &["configmap/settings", "secret/keys", "Opaque"]);
    t.k.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: reader}\nspec:\n  restartPolicy: Never\n  containers:\n    - name: c\n      \
         image: busybox:1.36\n      command: [sh, -c, 'echo $MODE $PASSWORD $NODE; cat /etc/settings/mode /etc/keys/password']\n      env:\n        \
         - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}\n        \
         - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}\n        \
         - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}\n      volumeMounts:\n        \
         - {name: settings, mountPath: /etc/settings}\n        - {name: keys, mountPath: /etc/keys}\n  volumes:\n    \
         - {name: settings, configMap: {name: settings}}\n    - {name: keys, secret: {secretName: keys}}\n",
    );
    let pod = t.cluster.wait_pod(&t.namespace, "reader", SOON, |pod| pod["status"]["phase"] == "Succeeded");
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    assert_eq!(t.k.ok(&["logs", "reader"]), format!("fast hunter2 {node}\nfasthunter2"));
    t.k.ok(&["delete", "pod/reader", "configmap/settings", "secret/keys"]);
}

fn service(t: &Tried<'_>) {
    t.k.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: api}\n  ports: [{port: 8080, targetPort: 80}]\n",
    );
    let table = t.k.ok(&["get", "svc"]);
    assert_eq!(columns(&table), ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    contains(&table, &["ClusterIP", "8080/TCP", "10.43."]);
    wait_for(SOON, "endpoints of the service", || {
        let slices = t.k.json(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        let ready = slices["items"][0]["endpoints"].as_array().map_or(0, Vec::len);
        if ready == 3 { Ok(()) } else { Err(slices.to_string()) }
    });
    contains(&t.k.ok(&["describe", "service", "web"]), &["Selector:", "app=api", "TargetPort:", "80/TCP"]);
    t.k.ok(&["delete", "service", "web"]);
}

fn discovery(t: &Tried<'_>) {
    contains(&t.k.ok(&["api-resources"]), &["deployments", "pods", "po", "configmaps", "leases", "endpointslices", "Deployment"]);
    contains(&t.k.ok(&["api-versions"]), &["apps/v1", "v1", "coordination.k8s.io/v1"]);
    contains(&t.k.ok(&["explain", "deployment.spec.replicas"]), &["replicas", "integer"]);
    contains(&t.k.ok(&["version"]), &["Server Version"]);
    contains(&t.k.ok(&["auth", "can-i", "create", "pods"]), &["yes"]);
}

fn errors(t: &Tried<'_>) {
    let missing = t.k.run(&["get", "pod", "no-such-pod"]);
    assert_eq!(missing.code, Some(1));
    contains(&missing.stderr, &["Error from server (NotFound): pods \"no-such-pod\" not found"]);
    contains(&t.k.run(&["get", "gizmos"]).stderr, &["the server doesn't have a resource type \"gizmos\""]);
    let none = t.k.run(&["get", "pods", "-l", "app=nobody"]);
    assert_eq!(none.code, Some(0));
    contains(&none.stderr, &["No resources found"]);
    let again = t.k.run(&["create", "namespace", &t.namespace]);
    contains(&again.stderr, &["AlreadyExists"]);
    let invalid =
        DEPLOYMENT.replace("        app: api\n    spec:", "        app: other\n    spec:").replace("name: api-service", "name: broken");
    let file = Path::new(&t.cluster.dir).join("invalid.yaml");
    std::fs::write(&file, invalid).expect("manifest is written");
    let refused = t.k.run(&["apply", "-f", &file.display().to_string()]);
    assert_ne!(refused.code, Some(0));
    contains(&refused.stderr, &["is invalid", "selector"]);
    t.k.apply(&busybox("no-image", "true", "Always").replace("busybox:1.36", "nothing.invalid/absent:1"));
    t.cluster.wait_pod(&t.namespace, "no-image", SOON, |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    });
    contains(&t.k.run(&["logs", "no-image"]).stderr, &["is waiting to start"]);
    t.k.ok(&["delete", "pod", "no-image", "--now"]);
}

fn delete(t: &Tried<'_>) {
    let pods = pod_names(&t.k, "app=api").expect("pods");
    contains(&t.k.ok(&["delete", "pod", &pods[0]]), &["deleted"]);
    wait_for(SOON, "the pod is replaced", || {
        let now = pod_names(&t.k, "app=api")?;
        if now.len() == 3 && !now.contains(&pods[0]) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    contains(&t.k.ok(&["delete", "deployment", "api-service"]), &["deployment.apps \"api-service\" deleted"]);
    wait_for(SOON, "pods and replica sets go with their owner", || {
        let left = t.k.get(&["get", "pods,rs", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    t.k.ok(&["delete", "namespace", &t.namespace, "--timeout=50s"]);
    contains(&t.k.run(&["get", "namespace", &t.namespace]).stderr, &["NotFound"]);
}
