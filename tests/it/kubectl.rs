//! Every kubectl command a user of stateless applications knows, with released kubectl binaries.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::system::cluster::{Cluster, Options};
use crate::system::kubectl::Kubectl;
use crate::system::process::output;
use crate::system::steps::{DEPLOYMENT, STEPS, Step, Tried, contains};
use crate::system::{run, skip};

const LIMIT: Duration = Duration::from_secs(60);

/// After those that `edge-server` and real K3s share: changes of every kind, and refusals in the API's words.
const CHANGES: &[Step] = &[
    ("apply --dry-run, diff, --server-side", apply_forms),
    ("rollout undo and pause", rollout_changes),
    ("patch, set and edit", patches),
    ("create, expose and cp", makers),
    ("auth can-i --as", seen_as),
    ("taint and drain", taint_and_drain),
    ("what is refused", refusals),
    ("delete --cascade, replace --force", ends),
];

#[test]
fn commands_do_what_a_user_expects() {
    run("kubectl", |machine| {
        for variable in ["KUBECTL_OLD", "KUBECTL_NEW"] {
            if std::env::var_os(variable).is_none() {
                skip("kubectl", &format!("{variable} is not set, that release is not tried"));
            }
        }
        let cluster = Cluster::start(machine, &Options::default());
        let mut failed = Vec::new();
        for (version, binary) in &machine.kubectls {
            let home = cluster.dir.join(format!("home-{version}"));
            std::fs::create_dir_all(&home).expect("home is made");
            let all = Kubectl::new(binary, &cluster.dir.join("server/kubeconfig.yaml"), &home);
            for (about, steps) in [("user", STEPS), ("changes", CHANGES)] {
                let namespace = format!("{about}-{}", version.replace('.', "-"));
                all.ok(&["create", "namespace", &namespace]);
                let tried = Tried { cluster: &cluster, k: all.within(&namespace), namespace };
                for (name, step) in steps {
                    match catch_unwind(AssertUnwindSafe(|| step(&tried))) {
                        Ok(()) => println!("kubectl {version}: {name} ok"),
                        Err(_) => failed.push(format!("kubectl {version}: {name}")),
                    }
                }
            }
        }
        assert!(failed.is_empty(), "failed: {failed:#?}");
    });
}

/// Must fail with this exit code, and its words contain the parts.
#[track_caller]
fn refused(t: &Tried<'_>, args: &[&str], code: i32, parts: &[&str]) {
    let got = t.k.run(args);
    assert_eq!(got.code, Some(code), "{args:?}: {got:?}");
    contains(&format!("{}{}", got.stdout, got.stderr), parts);
}

fn file(t: &Tried<'_>, name: &str, text: &str) -> String {
    let path = t.cluster.dir.join(format!("{}-{name}", t.namespace));
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn settled(t: &Tried<'_>) {
    t.k.ok(&["rollout", "status", "deployment/api-service", "--timeout=50s"]);
}

fn apply_forms(t: &Tried<'_>) {
    let three = file(t, "three.yaml", DEPLOYMENT);
    let two = file(t, "two.yaml", &DEPLOYMENT.replace("replicas: 3", "replicas: 2"));
    for (how, words) in [("--dry-run=client", "created (dry run)"), ("--dry-run=server", "created (server dry run)")] {
        contains(&t.k.ok(&["apply", how, "-f", &three]), &[words]);
        refused(t, &["get", "deployment", "api-service"], 1, &["NotFound"]);
    }
    contains(&t.k.ok(&["apply", "-f", &three]), &["deployment.apps/api-service created"]);
    contains(&t.k.ok(&["apply", "-f", &three]), &["deployment.apps/api-service unchanged"]);
    assert_eq!(t.k.ok(&["diff", "-f", &three]), "");
    refused(t, &["diff", "-f", &two], 1, &["-  replicas: 3", "+  replicas: 2"]);
    contains(&t.k.ok(&["apply", "-f", &two]), &["deployment.apps/api-service configured"]);
    contains(&t.k.ok(&["apply", "--server-side", "--force-conflicts", "-f", &three]), &["api-service serverside-applied"]);
    refused(t, &["apply", "--server-side", "--field-manager=other", "-f", &two], 1, &["1 conflict", ".spec.replicas"]);
    settled(t);
}

fn rollout_changes(t: &Tried<'_>) {
    let deployment = "deployment/api-service";
    contains(&t.k.ok(&["set", "env", deployment, "A=1"]), &["env updated"]);
    settled(t);
    contains(&t.k.ok(&["rollout", "history", deployment]), &["REVISION", "\n1 ", "\n2 "]);
    contains(&t.k.ok(&["rollout", "undo", deployment]), &["rolled back"]);
    settled(t);
    let env = "jsonpath={.spec.template.spec.containers[0].env}";
    assert_eq!(t.k.ok(&["get", deployment, "-o", env]), "");
    refused(t, &["rollout", "undo", deployment, "--to-revision=77"], 1, &["unable to find specified revision 77"]);
    contains(&t.k.ok(&["rollout", "pause", deployment]), &["paused"]);
    refused(t, &["rollout", "pause", deployment], 1, &["already paused"]);
    refused(t, &["rollout", "restart", deployment], 1, &["can't restart paused deployment"]);
    contains(&t.k.ok(&["rollout", "resume", deployment]), &["resumed"]);
    settled(t);
}

fn patches(t: &Tried<'_>) {
    let patch = |kind: &str, patch: &str| t.k.run(&["patch", "deployment", "api-service", "--type", kind, "-p", patch]);
    let replicas = || t.k.ok(&["get", "deployment", "api-service", "-o", "jsonpath={.spec.replicas}"]);
    patch("strategic", "{\"spec\":{\"replicas\":1}}").ok().expect("patched");
    assert_eq!(replicas(), "1");
    patch(
        "json",
        "[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":1},{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":2}]",
    )
    .ok()
    .expect("patched");
    assert_eq!(replicas(), "2");
    for wrong in ["[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":9}]", "[{\"op\":\"remove\",\"path\":\"/spec/nope\"}]"] {
        let got = patch("json", wrong);
        assert_eq!((got.code, got.stderr.contains("The request is invalid")), (Some(1), true), "{got:?}");
    }
    // A field that nobody knows is told of and dropped.
    let version = || t.k.ok(&["get", "deployment", "api-service", "-o", "jsonpath={.metadata.generation}{.spec.nope}"]);
    let before = version();
    let got = patch("merge", "{\"spec\":{\"nope\":1}}");
    assert_eq!((got.code, version()), (Some(0), before), "{got:?}");
    contains(&got.stderr, &["unknown field \"spec.nope\""]);
    let mut edit = t.k.command(&["edit", "deployment", "api-service"]);
    edit.env("KUBE_EDITOR", "sed -i s/replicas:.2/replicas:\\ 3/");
    contains(&output(edit, LIMIT).ok().expect("edited"), &["deployment.apps/api-service edited"]);
    assert_eq!(replicas(), "3");
    contains(&t.k.ok(&["set", "image", "deployment/api-service", "api-container=nginx:alpine"]), &[]);
    refused(t, &["set", "image", "deployment/api-service", "nope=nginx:alpine"], 1, &["unable to find container named"]);
    settled(t);
}

fn makers(t: &Tried<'_>) {
    t.k.ok(&["run", "one", "--image=busybox:1.36", "--restart=Never", "--", "sleep", "3600"]);
    t.k.ok(&["wait", "--for=condition=Ready", "pod/one", "--timeout=50s"]);
    let from = file(t, "copied", "hello\n");
    t.k.ok(&["cp", &from, "one:/tmp/copied"]);
    assert_eq!(t.k.ok(&["exec", "one", "--", "cat", "/tmp/copied"]), "hello\n");
    let back = format!("{from}.back");
    t.k.ok(&["cp", "one:/tmp/copied", &back]);
    assert_eq!(std::fs::read_to_string(&back).expect("came back"), "hello\n");
    t.k.ok(&["expose", "deployment/api-service", "--port=80", "--name=web"]);
    refused(t, &["expose", "deployment/api-service", "--port=80", "--name=web"], 1, &["AlreadyExists"]);
    t.k.ok(&["create", "serviceaccount", "robot"]);
    let table = t.k.ok(&["get", "serviceaccounts"]);
    assert_eq!(table.lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>()), Some(vec!["NAME", "AGE"]));
    contains(&t.k.run(&["get", "endpoints", "web"]).stderr, &["v1 Endpoints is deprecated"]);
}

fn seen_as(t: &Tried<'_>) {
    assert_eq!(t.k.ok(&["auth", "can-i", "create", "pods"]), "yes\n");
    let robot = format!("--as=system:serviceaccount:{}:robot", t.namespace);
    refused(t, &["auth", "can-i", "create", "pods", &robot], 1, &["no"]);
    refused(t, &["get", "pods", &robot], 1, &["Forbidden", "robot"]);
    t.k.ok(&["get", "pods", "--as=joe", "--as-group=system:masters"]);
}

fn taint_and_drain(t: &Tried<'_>) {
    let node = &t.cluster.nodes[1].name;
    contains(&t.k.ok(&["taint", "node", node, "k=v:NoSchedule"]), &["tainted"]);
    refused(t, &["taint", "node", node, "k=v:NoSchedule"], 1, &["already has k taint(s)"]);
    contains(&t.k.ok(&["taint", "node", node, "k-"]), &["untainted"]);
    t.k.ok(&["drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--grace-period=1", "--timeout=50s"]);
    contains(&t.k.ok(&["get", "node", node]), &["Ready,SchedulingDisabled"]);
    let left = t.k.ok(&["get", "pods", "-o", "name", "--field-selector", &format!("spec.nodeName={node}")]);
    assert_eq!(left, "", "drained");
    contains(&t.k.ok(&["uncordon", node]), &["uncordoned"]);
    settled(t);
}

fn refusals(t: &Tried<'_>) {
    for (args, parts) in [
        (["get", "pods", "--field-selector", "foo=bar"].as_slice(), ["field label not supported: foo"].as_slice()),
        (&["get", "pods", "-l", ","], &["BadRequest"]),
        (&["get", "pods", "-l", "a=b=c"], &["BadRequest"]),
        (&["get", "statefulsets"], &["the server doesn't have a resource type"]),
        (&["create", "secret", "generic", "k", "--type=kubernetes.io/tls", "--from-literal=a=b"], &["data[tls.crt]: Required value"]),
        (&["autoscale", "deployment", "api-service", "--min=1", "--max=3"], &["could not find the requested resource"]),
        (&["top", "pods"], &["etrics"]),
        (&["delete", "namespace", "default"], &["Forbidden", "may not be deleted"]),
        (&["scale", "deployment", "api-service", "--replicas=2", "--current-replicas=9"], &["replicas to be 9"]),
    ] {
        refused(t, args, 1, parts);
    }
}

fn ends(t: &Tried<'_>) {
    let three = file(t, "three.yaml", DEPLOYMENT);
    contains(&t.k.ok(&["replace", "--force", "-f", &three]), &["replaced"]);
    settled(t);
    t.k.ok(&["delete", "deployment", "api-service", "--cascade=orphan"]);
    let left = t.k.ok(&["get", "replicasets,pods", "-l", "app=api", "-o", "name"]);
    assert_eq!((left.matches("replicaset").count(), left.matches("pod/").count()), (1, 3), "{left}");
    t.k.ok(&["delete", "replicasets", "-l", "app=api", "--cascade=foreground"]);
    assert_eq!(t.k.ok(&["get", "pods", "-l", "app=api", "-o", "name"]), "");
    t.k.ok(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
    t.k.ok(&["delete", "all", "--all"]);
}
