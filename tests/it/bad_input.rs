//! Bad input gets one clear line that names the thing, the value and the remedy, the right exit code, and nothing is lost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::system::cluster::{Cluster, Node, Options};
use crate::system::process::{Output, output};
use crate::system::{run, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// Exit code for a configuration or a token that has to be corrected first (sysexits' EX_CONFIG).
const CONFIG: i32 = 78;

/// A configuration of its own for one attempt, with this line in it.
fn instance(node: &Node, name: &str, line: &str) -> PathBuf {
    let dir = node.dir.join(name);
    std::fs::create_dir_all(&dir).expect("directory is made");
    let file = dir.join("config.yaml");
    let d = dir.display();
    let text = format!(
        "node-ip: {}\ndata-dir: {d}/data\nrun-dir: {d}/run\nnode-password-file: {d}/password\ncontainerd: managed\n{line}\n",
        node.ip
    );
    std::fs::write(&file, text).expect("configuration is written");
    file
}

fn edge_agent(machine_bin: &Path, node: &Node, args: &[&str], config: &Path) -> Output {
    let mut command = node.command(machine_bin.join("edge-agent"));
    command.args(args).arg("--config").arg(config);
    output(command, SOON)
}

#[test]
fn joining_says_what_is_wrong() {
    run("joining_says_what_is_wrong", |machine| {
        let mut cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let member = cluster.nodes[0].name.clone();
        let (token, url) = (cluster.token(), cluster.server_url.clone());
        let (before_password, _) = token.rsplit_once(':').expect("a full token");
        let wrong_password = format!("{before_password}:wrong");
        let wrong_ca = format!("K10{}{}", "0".repeat(64), &token[67..]);
        let nobody = url.replace(".1:6443", ".250:6443");
        cluster.add_node(machine, "");
        let node = &cluster.nodes[1];
        let cases: &[(&str, &[&str], i32, &[&str])] = &[
            ("wrong-token", &[&url, "--token", &wrong_password], CONFIG, &["refuses the token", "copy it again"]),
            ("other-ca", &[&url, "--token", &wrong_ca], CONFIG, &["shows a CA with hash", "the token expects 0000"]),
            ("no-token", &[&url], CONFIG, &["no token was given", "--token-file"]),
            ("garbage", &[&url, "--token", "K10zz::x"], CONFIG, &["token is not valid", "copy it again"]),
            ("nobody", &[&nobody, "--token", &token], 1, &["cannot reach server", &nobody[8..]]),
            ("plain", &["http://10.0.0.1:6443", "--token", &token], CONFIG, &["http://10.0.0.1:6443", "https://"]),
            ("taken", &[&url, "--token", &token, "--node-name", &member], CONFIG, &["already taken", &member, "--node-name"]),
            ("name", &[&url, "--token", &token, "--node-name", "Bad_Name"], CONFIG, &["Bad_Name", "not a DNS name"]),
        ];
        for (name, args, code, words) in cases {
            let config = instance(node, name, "");
            let mut all = vec!["join"];
            all.extend_from_slice(args);
            let ended = edge_agent(&machine.bin, node, &all, &config);
            assert_eq!(ended.code, Some(*code), "{name}: {ended:?}");
            let said: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("edge-agent: ")).collect();
            assert_eq!(said.len(), 1, "{name}: one line: {ended:?}");
            for word in *words {
                assert!(said[0].contains(word), "{name}: {word:?} not in {}", said[0]);
            }
            assert!(!ended.stderr.contains(&token) && !ended.stdout.contains(&token), "{name}: the token is not shown");
        }
        // A full disk below the data directory.
        let config = instance(node, "full", "");
        let data = node.dir.join("full/data").display().to_string();
        node.sh("mkdir", &["-p", &data]);
        node.sh("mount", &["-t", "tmpfs", "-o", "size=8k", "none", &data]);
        let ended = edge_agent(&machine.bin, node, &["join", &url, "--token", &token], &config);
        assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
        assert!(ended.stderr.contains(&data) && ended.stderr.contains("No space left on device"), "{ended:?}");
        node.sh("umount", &[&data]);

        let nodes = cluster.kubectl.ok(&["get", "nodes", "-o", "name"]);
        assert_eq!(nodes.trim(), format!("node/{member}"), "nobody joined by accident");

        // The attempts left nothing that stands in the way of the right one.
        let joined = cluster.nodes[1].edge_agent(&["join", &url, "--token", &token, "--node-name", &cluster.nodes[1].name]);
        assert_eq!(joined.code, Some(0), "{joined:?}");
        cluster.nodes[1].start();
        cluster.wait_ready(2);
    });
}

#[test]
fn configuration_errors_name_the_key() {
    run("configuration_errors_name_the_key", |machine| {
        let cases: &[(&str, &str, &[&str])] = &[
            ("unknown-key", "node-labell: [a=b]", &["unknown key node-labell", "node-label?"]),
            ("quantity", "kubelet-arg: [system-reserved=memory=lots]", &["system-reserved=memory=lots", "not a quantity"]),
            ("list", "node-ip: [1.2.3.4.5]", &["1.2.3.4.5"]),
            ("yaml", "node-label: [", &["config.yaml"]),
        ];
        let dir = tempfile::tempdir().expect("directory");
        for (name, line, words) in cases {
            let file = dir.path().join(format!("{name}-config.yaml"));
            std::fs::write(&file, format!("server: https://127.0.0.1:1\ntoken: secret\ndata-dir: {}\n{line}\n", dir.path().display()))
                .expect("written");
            let mut command = std::process::Command::new(machine.bin.join("edge-agent"));
            command.args(["run", "--config"]).arg(&file);
            let ended = output(command, SOON);
            assert_eq!(ended.code, Some(CONFIG), "{name}: {ended:?}");
            for word in *words {
                assert!(ended.stderr.contains(word), "{name}: {word:?} not in {}", ended.stderr);
            }
        }
    });
}

#[test]
fn pods_that_cannot_run_say_why() {
    run("pods_that_cannot_run_say_why", |machine| {
        let cluster = Cluster::start(machine, &Options { nodes: 1, ..Options::default() });
        let k = &cluster.kubectl;
        let pod = |name: &str, spec: &str, container: &str| {
            k.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{spec}  containers:\n    - name: c\n      image: busybox:1.36\n      command: [sleep, '600']\n{container}"
            ));
        };
        // A field that would change what runs and is not implemented: refused, not ignored.
        pod(
            "unsupported",
            "  volumes: [{name: v, nfs: {server: 10.0.0.1, path: /}}]\n",
            "      volumeMounts: [{name: v, mountPath: /v}]\n",
        );
        let seen = cluster.wait_pod("default", "unsupported", SOON, |pod| pod["status"]["phase"] == "Failed");
        assert_eq!(seen["status"]["reason"], "UnsupportedPodSpec", "{}", seen["status"]);
        assert!(seen["status"]["message"].as_str().is_some_and(|message| message.contains("nfs")), "{}", seen["status"]);

        pod("no-map", "", "      envFrom: [{configMapRef: {name: absent}}]\n");
        cluster.wait_pod("default", "no-map", SOON, |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"].as_str().is_some_and(|m| m.contains("\"absent\" not found"))
        });
        wait_for(SOON, "the event names the missing map", || {
            let events = k.get(&["get", "events", "--field-selector", "involvedObject.name=no-map"])?;
            if events.contains("absent") { Ok(()) } else { Err(events) }
        });
        // And once it is there, the pod runs.
        k.ok(&["create", "configmap", "absent", "--from-literal=A=b"]);
        cluster.wait_pod("default", "no-map", Duration::from_secs(120), |pod| pod["status"]["phase"] == "Running");

        pod("too-big", "", "      resources: {requests: {memory: 900Gi}}\n");
        cluster.wait_pod("default", "too-big", SOON, |pod| {
            let condition = &pod["status"]["conditions"][0];
            condition["reason"] == "Unschedulable" && condition["message"].as_str().is_some_and(|m| m.contains("Insufficient memory"))
        });

        k.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: no-program}\nspec:\n  restartPolicy: Never\n  containers:\n    - {name: c, image: 'busybox:1.36', command: [/no/such/program]}\n");
        let seen = cluster.wait_pod("default", "no-program", SOON, |pod| pod["status"]["phase"] == "Failed");
        let ended = &seen["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["reason"], &ended["exitCode"]), (&"StartError".into(), &128.into()), "{ended}");
        assert!(ended["message"].as_str().is_some_and(|message| message.contains("/no/such/program")), "{ended}");
    });
}
