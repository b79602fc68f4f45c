//! Against a real K3s server, when there is one. Set
//!
//! - `EDGE_TEST_K3S`: its URL, e.g. `https://10.0.0.1:6443`
//! - `EDGE_TEST_K3S_TOKEN`: the agent token, in full form (with the CA hash)
//! - `EDGE_TEST_K3S_KUBECTL`: a kubectl; `KUBECONFIG` leads it to the server
//!
//! and the tests join as nodes of their own, serve a stand-in for a kubelet and let the apiserver call it through
//! the tunnel. Without these they say that they were skipped.

#![allow(clippy::unwrap_used, reason = "test code; the exemption covers test functions only, not their helpers")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tunnel::allow::Allow;
use tunnel::identity::{JoinOptions, join, load};
use tunnel::link::{self, LinkOptions, LinkState, TcpDial, TlsConnect};
use tunnel::session::Timing;
use tunnel::{Error, Identity, ServerAddr, Token, tls};

struct Lab {
    server: ServerAddr,
    token: Token,
    kubectl: String,
}

fn lab(test: &str) -> Option<Lab> {
    let get = |name: &str| std::env::var(name).ok();
    let found = (get("EDGE_TEST_K3S"), get("EDGE_TEST_K3S_TOKEN"), get("EDGE_TEST_K3S_KUBECTL"));
    let (Some(url), Some(token), Some(kubectl)) = found else {
        // Not by macro, so that the test harness does not swallow it.
        let why = "EDGE_TEST_K3S, EDGE_TEST_K3S_TOKEN and EDGE_TEST_K3S_KUBECTL name no server";
        let _ = writeln!(std::io::stderr(), "SKIPPED real K3s server, {test}: {why}");
        return None;
    };
    Some(Lab { server: ServerAddr::from_url(&url).unwrap(), token: Token::parse(&token).unwrap(), kubectl })
}

impl Lab {
    fn options(&self, root: &std::path::Path, node: &str) -> JoinOptions {
        JoinOptions {
            server: self.server.clone(),
            token: Some(self.token.clone()),
            data_dir: root.join("data"),
            node_name: node.to_owned(),
            node_ips: vec!["10.99.77.1".parse().unwrap()],
            node_password_file: root.join("password"),
        }
    }

    /// Runs kubectl off the runtime; gives success, output and errors.
    async fn kubectl(&self, args: &[&str], input: Option<String>) -> (bool, Vec<u8>, String) {
        let mut command = Command::new(&self.kubectl);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).unwrap();
            let out = child.wait_with_output().unwrap();
            (out.status.success(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

/// A node name no earlier run has used.
fn fresh_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let seconds = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    format!("wire-{seconds}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test]
async fn a_real_server_lets_us_join_and_says_no_in_the_ways_we_name() {
    let Some(lab) = lab("join") else { return };
    let root = tempfile::tempdir().unwrap();
    let name = fresh_name();
    let options = lab.options(root.path(), &name);
    let identity = join(&options).await.unwrap();
    assert_eq!(load(&options.data_dir).unwrap().as_ref(), Some(&identity));
    identity.config.check(&options.node_ips).unwrap();
    let (from, until) = identity.kubelet_client.validity().unwrap();
    assert!(until.duration_since(from).unwrap() > Duration::from_secs(300 * 86400));
    // Ours, not the server's shared one.
    assert!(identity.kubelet_client.key_pem.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    // Again, as a restart does: the same keys, and the certificate beside the token.
    let again = join(&options).await.unwrap();
    assert_eq!(again.kubelet_client.key_pem, identity.kubelet_client.key_pem);
    let servers = identity.supervisor(&lab.server).unwrap().apiservers().await.unwrap();
    assert!(!servers.is_empty());
    identity.supervisor(&lab.server).unwrap().readyz().await.unwrap();

    let hash = lab.token.ca_hash().expect("a full token");
    let wrong = JoinOptions { token: Some(Token::parse(&format!("K10{hash}::node:wrong")).unwrap()), ..options.clone() };
    // With the certificate of the first join a wrong token still works (k3s-agent.md 1.2) until it is dropped.
    let stranger = tempfile::tempdir().unwrap();
    let wrong = JoinOptions { data_dir: stranger.path().into(), ..wrong };
    let error = join(&wrong).await.unwrap_err();
    assert!(matches!(error, Error::TokenRejected { .. }), "{error}");
    let pinned = Token::parse(&format!("K10{}::node:wrong", "a".repeat(64))).unwrap();
    let error = join(&JoinOptions { token: Some(pinned), ..wrong.clone() }).await.unwrap_err();
    assert!(matches!(error, Error::CaHashMismatch { .. }), "{error}");
    let other_password = stranger.path().join("password");
    let token = Some(lab.token.clone());
    let taken = JoinOptions { token, node_password_file: other_password, ..wrong };
    let error = join(&taken).await.unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }) && error.to_string().contains(&name), "{error}");
}

/// Longer than two rounds of SyncConnections and than the server's 60 s read limit.
const SLOW: Duration = Duration::from_secs(130);

/// Answers `GET /big` with 32 MiB, `GET /slow` in two parts with a long silence between, anything else with the path, over TLS with the node's serving certificate.
async fn stand_in_kubelet(identity: &Identity) -> u16 {
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.kubelet_serving.chain(), identity.kubelet_serving.key().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(acceptor.accept(tcp).await?);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await? == 0 {
                            return std::io::Result::Ok(());
                        }
                    }
                    let path = head.split_whitespace().nth(1).unwrap_or_default();
                    if path == "/slow" {
                        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nfirst";
                        stream.get_mut().write_all(head.as_bytes()).await?;
                        stream.get_mut().flush().await?;
                        tokio::time::sleep(SLOW).await;
                        stream.get_mut().write_all(b" last").await?;
                        stream.get_mut().flush().await?;
                        continue;
                    }
                    let body = if path == "/big" { vec![b'x'; 32 << 20] } else { path.as_bytes().to_vec() };
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.get_mut().write_all(answer.as_bytes()).await?;
                    stream.get_mut().write_all(&body).await?;
                    stream.get_mut().flush().await?;
                }
            });
        }
    });
    port
}

fn node_object(name: &str, port: u16) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","annotations":{{"alpha.kubernetes.io/provided-node-ip":"10.99.77.1","k3s.io/internal-ip":"10.99.77.1","k3s.io/hostname":"{name}"}}}},
        "status":{{"addresses":[{{"type":"InternalIP","address":"10.99.77.1"}},{{"type":"Hostname","address":"{name}"}}],
        "daemonEndpoints":{{"kubeletEndpoint":{{"Port":{port}}}}}}}}}"#
    )
}

/// A node that joined, with a Node object and a link to the server.
struct Linked {
    _root: tempfile::TempDir,
    name: String,
    port: u16,
    states: watch::Receiver<LinkState>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    _config: watch::Sender<Arc<tokio_rustls::rustls::ClientConfig>>,
}

const LIMIT: Duration = Duration::from_secs(30);

async fn linked(lab: &Lab) -> Linked {
    let root = tempfile::tempdir().unwrap();
    let name = fresh_name();
    let identity = join(&lab.options(root.path(), &name)).await.unwrap();
    let port = stand_in_kubelet(&identity).await;
    let node: PathBuf = root.path().join("node.json");
    std::fs::write(&node, node_object(&name, port)).unwrap();
    let (ok, _, error) = lab.kubectl(&["create", "-f", node.to_str().unwrap()], None).await;
    assert!(ok, "{error}");

    let config = tls::client_config(&identity.server_ca, Some(&identity.kubelet_client), &["http/1.1"]).unwrap();
    let (_config, configs) = watch::channel(config);
    let (state, mut states) = watch::channel(LinkState::Connecting);
    let (stop, stopped) = watch::channel(false);
    let server = identity.supervisor(&lab.server).unwrap().apiservers().await.unwrap().remove(0);
    let task = tokio::spawn(link::run(LinkOptions {
        server,
        connect: Arc::new(TlsConnect { tls: configs, traffic: Arc::default() }),
        dial: Arc::new(TcpDial),
        allow: Allow::kubelet(port),
        state,
        proof: Arc::default(),
        stop: stopped,
        local: tokio::runtime::Handle::current(),
        timing: Timing::default(),
        jitter: tunnel::backoff::jitter,
    }));
    tokio::time::timeout(LIMIT, states.wait_for(|s| *s == LinkState::Connected)).await.expect("a link").unwrap();
    Linked { _root: root, name, port, states, stop, task, _config }
}

#[tokio::test]
async fn the_apiserver_reaches_the_kubelet_through_our_tunnel() {
    let Some(lab) = lab("tunnel") else { return };
    let Linked { _root, name, port, states, stop, task, _config } = linked(&lab).await;
    let proxy = format!("/api/v1/nodes/{name}:{port}/proxy");
    // The server's table of node addresses follows the Node object within moments.
    let mut last = String::new();
    for _ in 0..30 {
        let (ok, body, error) = lab.kubectl(&["get", "--raw", &format!("{proxy}/through/the/tunnel")], None).await;
        if ok {
            last = String::from_utf8(body).unwrap();
            break;
        }
        last = error;
    }
    assert_eq!(last, "/through/the/tunnel");
    for _ in 0..3 {
        let (ok, body, error) = lab.kubectl(&["get", "--raw", &format!("{proxy}/big")], None).await;
        assert!(ok, "{error}");
        assert!(body.len() == 32 << 20 && body.iter().all(|b| *b == b'x'), "{} bytes", body.len());
    }
    assert_eq!(*states.borrow(), LinkState::Connected, "the same session all the time");

    stop.send(true).unwrap();
    tokio::time::timeout(LIMIT, task).await.expect("stops").unwrap();
    let (ok, _, error) = lab.kubectl(&["get", "--raw", &format!("{proxy}/again")], None).await;
    assert!(!ok && error.contains("502"), "the server forgot the session at once: {error}");
    let (ok, _, error) = lab.kubectl(&["delete", "node", &name], None).await;
    assert!(ok, "{error}");
}

#[tokio::test]
#[ignore = "takes more than two minutes: cargo test -p tunnel --test real_k3s -- --ignored"]
async fn a_silent_connection_outlives_pings_and_lists_of_connections() {
    let Some(lab) = lab("a silent connection") else {
        return;
    };
    let Linked { _root, name, port, states, stop, task, _config } = linked(&lab).await;
    let slow = format!("/api/v1/nodes/{name}:{port}/proxy/slow");
    let (ok, body, error) = lab.kubectl(&["get", "--raw", &slow], None).await;
    assert!(ok && body == b"first last", "{error} {}", String::from_utf8_lossy(&body));
    assert!(!states.has_changed().unwrap(), "one session all the time: {:?}", *states.borrow());
    stop.send(true).unwrap();
    tokio::time::timeout(LIMIT, task).await.expect("stops").unwrap();
    lab.kubectl(&["delete", "node", &name], None).await;
}
