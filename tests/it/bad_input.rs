//! Bad input gets one clear line that names the thing, the value and the remedy, the right exit code, and nothing is lost.
//!
//! | Case of the design | Test of the real programs | Tests of the parts |
//! |---|---|---|
//! | wrong token | `joining_says_what_is_wrong` | tunnel: `what_the_server_refuses_becomes_one_line_with_a_remedy` |
//! | CA mismatch | `joining_says_what_is_wrong` | tunnel: `a_wrong_ca_is_noticed_before_credentials_are_sent` |
//! | expired or future certificate | `a_server_certificate_of_other_years_is_a_matter_of_the_clock` | tunnel: `a_clock_that_is_wrong_is_named_with_both_times` |
//! | unreachable server | `joining_says_what_is_wrong` | tunnel: `a_server_that_is_not_there_is_named` |
//! | name already taken | `joining_says_what_is_wrong` | tunnel: `what_the_server_refuses_becomes_one_line_with_a_remedy` |
//! | unknown configuration key | `configuration_errors_name_the_key` | agent: `every_bad_line_is_named_with_its_value_and_a_remedy` |
//! | bad quantity | `configuration_errors_name_the_key` | agent: `every_bad_line_is_named_with_its_value_and_a_remedy` |
//! | unsupported pod field | `pods_that_cannot_run_say_why` | agent: `what_is_not_implemented_is_named` |
//! | image that does not exist | `pods_that_cannot_run_say_why` | - |
//! | full disk | `joining_says_what_is_wrong` | agent: `the_board_and_what_an_instance_needs` |
//! | missing kernel feature | `a_missing_kernel_feature_is_named_before_anything_is_written` | agent: `boot_flags_and_control_groups`, cgroup: `a_missing_controller_is_reported_and_the_rest_is_enforced` |
//!
//! `every_named_test_exists` keeps the table true.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::system::cluster::{Cluster, Node, Options};
use crate::system::process::{Output, output};
use crate::system::{run, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// Exit code for a configuration or a token that has to be corrected first (sysexits' EX_CONFIG).
const CONFIG: i32 = 78;

/// A configuration of its own for one attempt.
fn instance(node: &Node, name: &str) -> PathBuf {
    let dir = node.dir.join(name);
    std::fs::create_dir_all(&dir).expect("directory is made");
    let file = dir.join("config.yaml");
    let d = dir.display();
    let text = format!(
        "node-ip: {}\ndata-dir: {d}/data\nrun-dir: {d}/run\nnode-password-file: {d}/password\ncontainerd: managed\n\
         kubelet-arg: [eviction-hard=nodefs.available<1Ki]\n",
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
            let config = instance(node, name);
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
        let config = instance(node, "full");
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

/// A K3s server that shows a certificate of these years: TLS, `/cacerts` for everybody, and a note of what was asked.
struct OtherYears {
    url: String,
    token: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl OtherYears {
    fn start(ip: &str, years: (i32, i32)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "k3s-server-ca@1");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2090, 1, 1);
        let ca_key = KeyPair::generate().expect("key");
        let ca = params.self_signed(&ca_key).expect("CA");
        let ca_pem = ca.pem();
        let issuer = Issuer::new(params, ca_key);
        let mut params = CertificateParams::new(vec![ip.to_owned()]).expect("an address");
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &issuer).expect("certificate");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone(), ca.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("certificate and key");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let hash = tunnel::ca_hash(ca_pem.as_bytes(), std::time::SystemTime::now()).expect("hash");
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = asked.clone();
        // Ends with the test program.
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let tls = ServerConnection::new(config.clone()).expect("checked above");
                // A client that refuses the certificate ends here.
                if let Ok(request) = answer(StreamOwned::new(tls, tcp), &ca_pem) {
                    notes.lock().expect("no panic").push(request);
                }
            }
        });
        Self { url: format!("https://{ip}:{port}"), token: format!("K10{hash}::server:secret"), asked }
    }
}

/// Answers one request with the CA and returns its head.
fn answer(mut stream: impl Read + Write, ca: &str) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{ca}", ca.len())?;
    stream.flush()?;
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

#[test]
fn a_server_certificate_of_other_years_is_a_matter_of_the_clock() {
    run("a_server_certificate_of_other_years_is_a_matter_of_the_clock", |machine| {
        let mut cluster = Cluster::start(machine, &Options { nodes: 0, ..Options::default() });
        cluster.add_node(machine, "");
        let node = &cluster.nodes[0];
        let (ip, _) = cluster.server_url["https://".len()..].rsplit_once(':').expect("a port");
        let this_year = time::OffsetDateTime::now_utc().year();
        let (past, future) = (this_year - 1, this_year + 2);
        let cases = [
            ("expired", (2020, past), format!("ended {past}-01-01T00:00:00Z"), "set the clock if it is ahead, else restart the server"),
            ("future", (future, 2090), format!("starts {future}-01-01T00:00:00Z"), "set the clock (timedatectl"),
        ];
        for (name, years, when, remedy) in cases {
            let server = OtherYears::start(ip, years);
            let config = instance(node, name);
            let ended = edge_agent(&machine.bin, node, &["join", &server.url, "--token", &server.token], &config);
            // Not the exit code of a wrong configuration: once the clock is right, the same command works.
            assert_eq!(ended.code, Some(1), "{name}: {ended:?}");
            let said: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("edge-agent: ")).collect();
            assert_eq!(said.len(), 1, "{name}: one line: {ended:?}");
            let now = format!("the clock here says {this_year}-");
            for word in [&server.url["https://".len()..], &when, &now, remedy] {
                assert!(said[0].contains(word), "{name}: {word:?} not in {}", said[0]);
            }
            let asked = server.asked.lock().expect("no panic");
            assert!(
                !asked.is_empty() && asked.iter().all(|head| head.starts_with("get /cacerts ") && !head.contains("authorization")),
                "{name}: {asked:?}"
            );
        }
    });
}

#[test]
fn a_missing_kernel_feature_is_named_before_anything_is_written() {
    run("a_missing_kernel_feature_is_named_before_anything_is_written", |machine| {
        let mut cluster = Cluster::start(machine, &Options { nodes: 0, ..Options::default() });
        cluster.add_node(machine, "");
        let (node, token) = (&cluster.nodes[0], cluster.token());
        // In a mount namespace of its own the kernel seems to have no memory controller (v1) or no control groups (v2).
        let memory = Path::new("/sys/fs/cgroup/memory");
        let (hidden, check, found, remedy) = if memory.is_dir() {
            (memory, "memory-controller", "controller \"memory\" is mounted nowhere", "cgroup_disable=memory")
        } else {
            (Path::new("/sys/fs/cgroup"), "cgroup-v2", "no control group hierarchy is mounted", "Mount cgroup2")
        };
        let without = |args: &[&str], config: &Path| {
            let mut command = node.command("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", "umount -l \"$1\" && shift && exec \"$@\"", "sh"]);
            command.arg(hidden).arg(machine.bin.join("edge-agent")).args(args).arg("--config").arg(config);
            output(command, SOON)
        };
        let config = instance(node, "no-memory");
        let joined = without(&["join", &cluster.server_url, "--token", &token], &config);
        assert_eq!(joined.code, Some(1), "{joined:?}");
        let checked = without(&["preflight"], &config);
        assert_eq!(checked.code, Some(2), "{checked:?}");
        for ended in [&joined, &checked] {
            let blocked: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("BLOCKED")).collect();
            assert_eq!(blocked.len(), 1, "{ended:?}");
            for word in [check, found, remedy] {
                assert!(blocked[0].contains(word), "{word:?} not in {}", blocked[0]);
            }
        }
        assert!(joined.stderr.contains("keep pods from running") && joined.stderr.lines().count() == 1, "{joined:?}");
        let written = node.dir.join("no-memory");
        assert!(!written.join("data").exists() && !written.join("password").exists(), "nothing was written");
        let nodes = cluster.kubectl.ok(&["get", "nodes", "-o", "name"]);
        assert_eq!(nodes.trim(), "", "nobody joined");
    });
}

#[test]
fn every_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    for dir in ["tests/it", "tunnel/src", "agent/src", "cgroup/src", "cgroup/tests"] {
        append_sources(&root.join(dir), &mut sources);
    }
    let rows: Vec<&str> = include_str!("bad_input.rs").lines().filter(|line| line.starts_with("//! | ")).skip(1).collect();
    assert_eq!(rows.len(), 11, "one row for each case of the design");
    for row in rows {
        let named: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            assert!(sources.contains(&format!("fn {name}()")), "{name} is nowhere");
        }
    }
}

fn append_sources(dir: &Path, to: &mut String) {
    for entry in std::fs::read_dir(dir).expect("directory is listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            append_sources(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            to.push_str(&std::fs::read_to_string(&path).expect("source is read"));
        }
    }
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

        k.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: no-image}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    - {name: c, image: 'no.such.registry.invalid/absent:1'}\n");
        cluster.wait_pod("default", "no-image", Duration::from_secs(120), |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            matches!(waiting["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
                && waiting["message"].as_str().is_some_and(|m| m.contains("no.such.registry.invalid/absent:1"))
        });
        wait_for(SOON, "the event names the image", || {
            let events = k.get(&["get", "events", "--field-selector", "involvedObject.name=no-image"])?;
            if events.contains("Failed") && events.contains("no.such.registry.invalid/absent:1") { Ok(()) } else { Err(events) }
        });

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
