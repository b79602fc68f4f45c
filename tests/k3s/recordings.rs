//! What these runs saw on the wire beyond what was recorded before: kept in `tests/recordings/k3s`, so that tests without K3s
//! guard it, and compared here with what a real server says now. `K3S_RECORD=1` writes the files anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::Message as Frame;
use tunnel::message::Message;
use tunnel::session::NOBODY;

use crate::high_availability::Scene;
use crate::lab::{Lab, with_k3s};
use crate::system::process::{Process, output};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
/// Who asks: file names of an identity, and the subject it stands for.
const NODE: (&str, &str) = ("client-kubelet", "CN=system:node:NAME,O=system:nodes");
const CONTROLLER: (&str, &str) = ("client-k3s-controller", "CN=system:k3s-controller");
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn renewal_and_liveness_are_answered_as_recorded() {
    with_k3s("recordings", |machine, k3s| {
        let mut lab = Lab::start(machine, k3s, 1);
        lab.add_node(machine, 0);
        renewal(&lab);
        let seen = liveness(&lab);
        settle("tunnel-liveness", &seen, |seen| {
            let frames = seen[0]["frames"].as_array().expect("frames");
            Value::Array(frames.iter().map(|frame| json!([frame["dir"], frame["op"], said(frame)])).collect())
        });
    });
}

/// A node that renews proves itself by its certificate alone: its token may be long gone.
fn renewal(lab: &Lab) {
    let node = &lab.site.nodes[0];
    let password = std::fs::read_to_string(node.dir.join("password")).expect("node password");
    let of_node = [("k3s-Node-Name", node.name.as_str()), ("k3s-Node-Password", password.trim()), ("k3s-Node-IP", &node.ip)];
    let ask = |what: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        exchange(lab, 0, &format!("renewal by the client-kubelet certificate alone: {what}"), (method, path), NODE, headers, body)
    };
    let mut config = ask("configuration", "GET", "/v1-k3s/config", &[], &[]);
    // A secret, and directories of this run.
    let secret = body(&config)["IPSECPSK"].as_str().unwrap_or_default().to_owned();
    let text = config["response"]["body_text"].as_str().expect("text").replace(&secret, &"0".repeat(secret.len()));
    config["response"]["body_text"] = text.replace(&lab.servers[0].dir.display().to_string(), "/var/lib/rancher/k3s").into();
    settle("renewal-config", &config, |seen| json!([seen["response"]["status"], paths(&body(seen))]));
    for (name, headers) in
        [("serving-kubelet", &of_node[..]), ("client-kubelet", &of_node[..]), ("client-kube-proxy", &[]), ("client-k3s-controller", &[])]
    {
        let key = rcgen::KeyPair::generate().expect("key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("request");
        let seen = ask(name, "POST", &format!("/v1-k3s/{name}.crt"), headers, request.der());
        settle(&format!("renewal-{name}"), &seen, |seen| {
            let pem = seen["response"]["body_text"].as_str().unwrap_or_default();
            json!([seen["response"]["status"], pem.matches("BEGIN CERTIFICATE").count(), pem.contains("PRIVATE KEY")])
        });
    }
}

/// What the agent asks a silent server, byte for byte, and what its session answers.
fn liveness(lab: &Lab) -> Value {
    let (server, node) = (&lab.servers[0], &lab.site.nodes[0]);
    let identity = tunnel::identity::load(&node.dir).expect("identity is read").expect("joined");
    let config = tunnel::tls::client_config(&identity.server_ca, Some(&identity.kubelet_client), &["http/1.1"]).expect("TLS");
    let question = Message::Data(NOBODY, Bytes::new()).encode(7);
    let asking = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let answer = asking.block_on(async {
        let stream = tokio::net::TcpStream::connect((server.ip.as_str(), 6443)).await.expect("the server listens");
        let name = ServerName::try_from(server.ip.clone()).expect("an address");
        let stream = TlsConnector::from(config).connect(name, stream).await.expect("handshake");
        let url = format!("wss://{}:6443/v1-k3s/connect", server.ip);
        let (mut link, _) = tokio_tungstenite::client_async(url, stream).await.expect("101");
        link.send(Frame::Binary(question.clone())).await.expect("sent");
        let answered = tokio::time::timeout(LIMIT, async {
            loop {
                match link.next().await.expect("the session goes on").expect("a frame") {
                    Frame::Binary(bytes) => break bytes,
                    Frame::Ping(_) | Frame::Pong(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        answered.await.expect("an answer in time")
    });
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!([{
        "case": "Data without content for connection -1: is the session alive?",
        "frames": [
            {"dir": "agent->server", "op": 2, "fin": 1, "hex": hex(&question)},
            {"dir": "server->agent", "op": 2, "fin": 1, "hex": hex(&answer)},
        ],
    }])
}

/// A recorded message without its counter; the text only as far as it is the same on every machine.
fn said(frame: &Value) -> String {
    let hex = frame["hex"].as_str().unwrap_or_default();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).filter_map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect();
    match Message::decode(bytes.into()).expect("a message").1 {
        // After these words the server names its own numbers.
        Message::Error(conn, text) => format!("Error({conn:?}, {:?})", text.get(.."connection not found".len())),
        other => format!("{other:?}"),
    }
}

/// The list of servers as the agent reads and watches it, while servers go and come.
pub(crate) struct Slices {
    watch: Process,
    request: Value,
    file: PathBuf,
}

impl Slices {
    /// Three servers: the list, and a watch from there on through one of them.
    pub(crate) fn start(scene: &Scene, through: usize) -> Self {
        let lab = &scene.lab;
        let path = format!("{SLICES}&limit=500");
        let list = exchange(lab, through, "list of three servers", ("GET", &path), CONTROLLER, &[("Accept", "application/json")], &[]);
        settle("endpointslices-three-servers", &list, |seen| json!([seen["response"]["status"], paths(&body(seen))]));
        let version = body(&list)["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
        let path = format!("{SLICES}&watch=true&resourceVersion={version}&timeoutSeconds=1800");
        let (mut command, _) = curl(lab, through, CONTROLLER);
        command.args([
            "--no-buffer",
            "--max-time",
            "600",
            "-H",
            "Accept: application/json",
            &format!("{}{path}", lab.servers[through].url()),
        ]);
        let file = lab.site.dir.join("slices.jsonl");
        let mut request = list["request"].clone();
        request["path"] = path.into();
        Self { watch: Process::start(command, &file), request, file }
    }

    /// Ends the watch. Each line is an event; among them are lists without one server and again with all.
    pub(crate) fn finish(mut self) {
        self.watch.kill();
        let text = std::fs::read_to_string(&self.file).expect("what the watch said");
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let sizes: Vec<usize> = lines.iter().map(|line| line["object"]["endpoints"].as_array().map_or(0, Vec::len)).collect();
        assert!(sizes.contains(&2) && sizes.contains(&3), "lists of two and of three servers: {sizes:?}");
        let whole: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let seen = json!({
            "description": "watch of the list while servers are killed and started again",
            "request": self.request,
            "response": {"status": 200, "headers": [["Content-Type", "application/json"]], "body_text": whole},
        });
        settle("endpointslices-watch", &seen, |seen| {
            let text = seen["response"]["body_text"].as_str().unwrap_or_default();
            let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.map(|event| paths(&event)).collect::<BTreeSet<_>>().into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect()
        });
    }
}

/// Writes the recording, or compares what stands for it in what was seen now.
#[track_caller]
fn settle(name: &str, seen: &Value, essence: impl Fn(&Value) -> Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings/k3s").join(format!("{name}.json"));
    if std::env::var_os("K3S_RECORD").is_some() {
        let text = serde_json::to_string_pretty(seen).expect("json") + "\n";
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("recorded {name}");
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; K3S_RECORD=1 makes it", path.display()));
    let recorded: Value = serde_json::from_str(&text).expect("json");
    assert_eq!(essence(seen), essence(&recorded), "{name}: the server says something else than the recording");
    println!("as recorded: {name}");
}

/// The names of all fields, dots between them: what a reader of the answer depends on.
fn paths(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value {
            // Keys that are data, and bookkeeping of writers.
            Value::Object(_) if ["managedFields", "labels", "annotations"].iter().any(|end| at.ends_with(end)) => {}
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{at}.{key}"), found)),
            Value::Array(_) if at.ends_with("managedFields") => {}
            Value::Array(items) => items.iter().for_each(|item| walk(item, &format!("{at}[]"), found)),
            _ => {
                found.insert(at.to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(value, "", &mut found);
    found
}

fn body(seen: &Value) -> Value {
    serde_json::from_str(seen["response"]["body_text"].as_str().unwrap_or_default()).expect("json")
}

/// curl on the node with one of its identities; and the subject of that.
fn curl(lab: &Lab, through: usize, who: (&str, &str)) -> (std::process::Command, String) {
    let node = &lab.site.nodes[0];
    let file = |name: &str| node.dir.join("agent").join(name).display().to_string();
    let mut command = node.command("curl");
    command.args(["-sS", "--http1.1", "--cacert", &file("server-ca.crt"), "-A", "test"]);
    command.args(["--cert", &file(&format!("{}.crt", who.0)), "--key", &file(&format!("{}.key", who.0))]);
    command.args(["--connect-to", &format!("::{}:6443", lab.servers[through].ip)]);
    (command, who.1.replace("NAME", &node.name))
}

/// One request and its answer, in the form of the other recordings.
fn exchange(
    lab: &Lab,
    through: usize,
    description: &str,
    (method, path): (&str, &str),
    who: (&str, &str),
    headers: &[(&str, &str)],
    content: &[u8],
) -> Value {
    let (mut command, subject) = curl(lab, through, who);
    command.args(["-i", "--max-time", "20", "-X", method]);
    let mut sent = vec![("Host".to_owned(), format!("{}:6443", lab.servers[through].ip)), ("User-Agent".to_owned(), "test".to_owned())];
    // None that curl adds by itself.
    command.args(["-H", "Accept:", "-H", "Content-Type:", "-H", "Connection: close"]);
    for (name, value) in headers {
        command.args(["-H", &format!("{name}: {value}")]);
        sent.push(((*name).to_owned(), (*value).to_owned()));
    }
    let mut request = json!({"method": method, "path": path, "client_certificate_subject": subject});
    if !content.is_empty() {
        let file = lab.site.dir.join("request-body");
        std::fs::write(&file, content).expect("body is written");
        command.args(["--data-binary", &format!("@{}", file.display())]);
        sent.push(("Content-Length".to_owned(), content.len().to_string()));
        request["body_base64"] = STANDARD.encode(content).into();
    }
    sent.push(("Connection".to_owned(), "close".to_owned()));
    request["headers"] = json!(sent);
    command.arg(format!("{}{path}", lab.servers[through].url()));
    let answer = output(command, LIMIT).ok().unwrap_or_else(|seen| panic!("{method} {path}: {seen}"));
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
    let mut lines = head.lines();
    let status: u16 = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(status, 200, "{description}: {text}");
    json!({"description": description, "request": request, "response": {"status": status, "headers": headers, "body_text": text}})
}
