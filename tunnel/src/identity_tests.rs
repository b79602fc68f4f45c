use super::*;
use crate::fake::{Ca, Fake, Seen, failure, listen, this_year};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        Node { root: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    fn options(&self, server: &ServerAddr, token: Option<Token>) -> JoinOptions {
        JoinOptions {
            server: server.clone(),
            token,
            data_dir: self.data(),
            node_name: "wire1".into(),
            node_ips: vec!["10.99.0.41".parse().unwrap()],
            node_password_file: self.root.path().join("etc/password"),
        }
    }

    async fn join(&self, fake: &Fake) -> Result<Identity> {
        join(&self.options(&fake.addr, Some(fake.token()))).await
    }
}

fn nothing(_: &Seen) -> Option<(u16, String)> {
    None
}

/// No request carried credentials.
fn nothing_leaked(fake: &Fake) {
    for seen in fake.seen() {
        assert!(seen.path == "/cacerts" && seen.header("authorization").is_none() && !seen.certificate, "{seen:?}");
    }
}

#[tokio::test]
async fn a_join_verifies_first_then_fetches_everything_and_keeps_it_for_an_offline_start() {
    let fake = Fake::start(nothing).await;
    let node = Node::new();
    assert_eq!(load(&node.data()).unwrap(), None);
    let identity = node.join(&fake).await.unwrap();
    let seen = fake.seen();
    let cacerts: Vec<&Seen> = seen.iter().filter(|s| s.path == "/cacerts").collect();
    assert_eq!(cacerts.len(), 2);
    assert!(cacerts.iter().all(|s| s.header("authorization").is_none()));
    assert!(seen[0].path == "/cacerts" && seen[1].path == "/cacerts" && seen[2].path == "/v1-k3s/config");
    for request in seen.iter().skip(2) {
        assert_eq!(request.header("authorization"), Some("Basic bm9kZTpzZWNyZXQ="), "user node, whatever the token says");
    }
    for path in ["/v1-k3s/serving-kubelet.crt", "/v1-k3s/client-kubelet.crt"] {
        let request = seen.iter().find(|s| s.path == path).unwrap();
        assert_eq!(request.method, "POST");
        assert_eq!(request.header("k3s-node-name"), Some("wire1"));
        assert_eq!(request.header("k3s-node-ip"), Some("10.99.0.41"));
        assert_eq!(request.header("k3s-node-password").unwrap().len(), 32);
        assert_eq!(request.body[0], 0x30, "DER, not PEM");
    }
    let again = load(&node.data()).unwrap().unwrap();
    assert_eq!(again, identity);
    assert!(identity.expires().unwrap() > SystemTime::now());
    for file in std::fs::read_dir(node.data().join("agent")).unwrap() {
        let meta = file.unwrap().metadata().unwrap();
        let mode = meta.permissions().mode() & 0o777;
        assert!(meta.is_dir() || mode == 0o600, "{mode:o}");
    }
    assert_eq!(std::fs::metadata(node.data().join("agent")).unwrap().permissions().mode() & 0o777, 0o700);

    // Without a token, with what is on disk: the same keys are certified again.
    let renewed = join(&node.options(&fake.addr, None)).await.unwrap();
    assert_eq!(renewed.kubelet_client.key_pem, identity.kubelet_client.key_pem);
    assert_ne!(renewed.kubelet_client.cert_pem, identity.kubelet_client.cert_pem);
    let later: Vec<Seen> = fake.seen().into_iter().skip(seen.len()).collect();
    assert!(later.iter().all(|s| s.certificate && s.header("authorization").is_none()));
    assert!(later.iter().all(|s| s.path != "/cacerts"));
    let servers = renewed.supervisor(&fake.addr).unwrap().apiservers().await.unwrap();
    assert_eq!(servers[0].to_string(), "10.99.0.1:6443");
}

#[tokio::test]
async fn a_wrong_ca_is_noticed_before_credentials_are_sent() {
    let fake = Fake::start(nothing).await;
    let node = Node::new();
    let token = Token::parse(&format!("K10{}::node:secret", "0".repeat(64))).unwrap();
    let error = join(&node.options(&fake.addr, Some(token))).await.unwrap_err();
    assert!(matches!(error, Error::CaHashMismatch { .. }) && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&fake.hash()) && error.to_string().contains(&fake.addr.to_string()));
    nothing_leaked(&fake);
}

#[tokio::test]
async fn a_server_that_shows_another_cluster_s_ca_gets_no_credentials() {
    // Who knows the public CA bundle has not its key: the second, verified fetch fails.
    let other = Ca::new("k3s-server-ca@2").pem;
    let fake = Fake::start(move |seen| (seen.path == "/cacerts").then(|| (200, other.clone()))).await;
    let error = join(&Node::new().options(&fake.addr, Some(Token::parse("short").unwrap()))).await.unwrap_err();
    assert!(matches!(error, Error::CaUnknown { .. }), "{error}");
    nothing_leaked(&fake);
}

#[tokio::test]
async fn what_the_server_refuses_becomes_one_line_with_a_remedy() {
    let rows: &[(&str, u16, &str, &str, bool)] = &[
        ("/v1-k3s/config", 401, "not authorized", "refuses the token", false),
        ("/v1-k3s/config", 403, "forbidden", "answers 403 to /v1-k3s/config: forbidden", false),
        ("/v1-k3s/config", 503, "starting", "answers 503 to /v1-k3s/config: starting", true),
        ("/cacerts", 503, "starting", "answers 503 to /cacerts: starting", true),
        (
            "/v1-k3s/serving-kubelet.crt",
            403,
            "unable to verify password for node wire1: hash does not match",
            "node name wire1 is already taken",
            false,
        ),
        ("/v1-k3s/client-kubelet.crt", 503, "runtime core not ready", "runtime core not ready", true),
        ("/v1-k3s/client-kubelet.crt", 429, "too many", "429", true),
    ];
    for (path, code, message, want, retry) in rows {
        let fake = Fake::start(move |seen| (seen.path == *path).then(|| (*code, failure(*code, message)))).await;
        let error = Node::new().join(&fake).await.unwrap_err();
        assert!(error.to_string().contains(want), "{path} {code}: {error}");
        assert!(error.to_string().contains(&fake.addr.to_string()), "{error}");
        assert!(!error.to_string().contains("secret") && !error.to_string().contains('\n'), "{error}");
        assert_eq!(error.is_retryable(), *retry, "{path} {code}");
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_named() {
    for (path, body) in
        [("/v1-k3s/config", "[]"), ("/v1-k3s/client-ca.crt", "pong"), ("/v1-k3s/serving-kubelet.crt", "pong"), ("/cacerts", "<html>")]
    {
        let fake = Fake::start(move |seen| (seen.path == path).then(|| (200, body.to_owned()))).await;
        let error = Node::new().join(&fake).await.unwrap_err();
        assert!(matches!(error, Error::Answer { .. }) && error.to_string().contains(path), "{error}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named_with_both_times() {
    let year = this_year();
    for (years, want) in [((2020, year - 1), "ended"), ((year + 2, 2090), "starts")] {
        let ca = Arc::new(Ca::new("k3s-server-ca@1"));
        let leaf = ca.issue("k3s", &["127.0.0.1"], years);
        let fake = Fake::start_with(ca, leaf, nothing).await;
        let error = Node::new().join(&fake).await.unwrap_err();
        assert!(error.to_string().contains(want) && error.to_string().contains("the clock here says"), "{error}");
        assert!(error.to_string().contains("-01-01T00:00:00Z"), "{error}");
        assert!(error.is_retryable());
        nothing_leaked(&fake);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let (listener, addr) = listen().await;
    drop(listener);
    let error = join(&Node::new().options(&addr, Some(Token::parse("x").unwrap()))).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&addr.to_string()));
}

#[tokio::test]
async fn a_port_that_speaks_no_tls_is_told_apart() {
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
        tcp
    });
    let error = join(&Node::new().options(&addr, Some(Token::parse("x").unwrap()))).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    drop(task);
}

#[tokio::test]
async fn stored_servers_stand_in_for_the_configured_one() {
    let fake = Fake::start(nothing).await;
    let node = Node::new();
    let (listener, dead) = listen().await;
    drop(listener);
    balancer::save(&node.data(), &dead, std::slice::from_ref(&fake.addr)).unwrap();
    join(&node.options(&dead, Some(fake.token()))).await.unwrap();
    drop(fake);
    let error = join(&node.options(&dead, Some(Token::parse("x").unwrap()))).await.unwrap_err();
    assert!(error.to_string().contains(&dead.to_string()), "names the configured one: {error}");
}

#[tokio::test]
async fn a_401_with_a_certificate_is_tried_again_without_it_body_and_all() {
    let fake = Fake::start(|seen| {
        (seen.certificate && seen.path == "/v1-k3s/client-kubelet.crt" && seen.header("authorization").is_some())
            .then(|| (401, failure(401, "unable to verify node identity")))
    })
    .await;
    let node = Node::new();
    node.join(&fake).await.unwrap();
    let before = fake.seen().len();
    node.join(&fake).await.unwrap();
    let tries: Vec<Seen> = fake.seen().into_iter().skip(before).filter(|s| s.path == "/v1-k3s/client-kubelet.crt").collect();
    assert_eq!(tries.len(), 2);
    assert!(tries[0].certificate && !tries[1].certificate);
    assert!(!tries[1].body.is_empty() && tries[0].body == tries[1].body);
}

#[tokio::test]
async fn a_shared_key_of_an_old_server_is_used_but_not_kept_for_the_next_request() {
    let ca = Arc::new(Ca::new("k3s-client-ca@9"));
    let legacy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (shared, on) = (ca.issue("system:node:wire1", &[], (2020, 2090)), legacy.clone());
    // The test's key is PKCS#8; a server's is SEC1, which differs in the block type alone for what is tested here.
    let answer = String::from_utf8([shared.cert_pem.clone(), shared.key_pem.clone()].concat()).unwrap();
    let fake =
        Fake::start(move |seen| (on.load(Ordering::SeqCst) && seen.path == "/v1-k3s/client-kubelet.crt").then(|| (200, answer.clone())))
            .await;
    let node = Node::new();
    let identity = node.join(&fake).await.unwrap();
    assert_eq!(identity.kubelet_client.key_pem, shared.key_pem);
    assert_eq!(load(&node.data()).unwrap().unwrap(), identity);
    // What a real server hands out is not PKCS#8.
    let key = node.data().join("agent/client-kubelet.key");
    std::fs::write(&key, pem_of_type("EC PRIVATE KEY", &shared.key_pem)).unwrap();
    legacy.store(false, Ordering::SeqCst);
    let renewed = node.join(&fake).await.unwrap();
    assert_ne!(renewed.kubelet_client.key_pem, shared.key_pem);
    assert!(crate::keys::is_ours(&renewed.kubelet_client.key_pem));
}

fn pem_of_type(label: &str, key: &[u8]) -> String {
    crate::pem::encode(label, &crate::pem::blocks(key)[0].der)
}

#[tokio::test]
async fn a_token_without_hash_trusts_the_first_ca_and_no_other_afterwards() {
    let node = Node::new();
    let ca = Arc::new(Ca::new("k3s-server-ca@1"));
    let token = Token::parse("short").unwrap();
    let first = Fake::start_with(ca.clone(), ca.issue("k3s", &["127.0.0.1"], (2020, 2090)), nothing).await;
    join(&node.options(&first.addr, Some(token.clone()))).await.unwrap();
    join(&node.options(&first.addr, Some(token.clone()))).await.unwrap();
    // Another cluster behind the same address.
    let other = Fake::start(nothing).await;
    let pin = node.data().join("agent/etc/server-ca.pin");
    std::fs::write(&pin, format!("{} {}\n", other.addr, first.hash())).unwrap();
    let error = join(&node.options(&other.addr, Some(token.clone()))).await.unwrap_err();
    assert!(matches!(error, Error::CaPinMismatch { .. }) && error.to_string().contains("server-ca.pin"), "{error}");
    nothing_leaked(&other);
    // A full token says which one is meant.
    join(&node.options(&other.addr, Some(other.token()))).await.unwrap();
    join(&node.options(&other.addr, Some(token))).await.unwrap();
}

#[tokio::test]
async fn a_bootstrap_token_is_given_the_seconds_a_starting_server_needs() {
    let count = Arc::new(AtomicUsize::new(0));
    let fake = Fake::start(move |seen| {
        let answers = [(403, "forbidden"), (401, "not authorized")];
        let (code, text) = *answers.get((seen.path == "/v1-k3s/config").then(|| count.fetch_add(1, Ordering::SeqCst))?)?;
        Some((code, failure(code, text)))
    })
    .await;
    let token = Token::parse(&format!("K10{}::abcdef.0123456789abcdef", fake.hash())).unwrap();
    join(&Node::new().options(&fake.addr, Some(token))).await.unwrap();
    assert_eq!(fake.seen().last().unwrap().header("authorization"), Some("Bearer abcdef.0123456789abcdef"));
}

#[tokio::test]
async fn without_token_and_certificate_nothing_is_sent() {
    let fake = Fake::start(nothing).await;
    let error = join(&Node::new().options(&fake.addr, None)).await.unwrap_err();
    assert!(matches!(error, Error::NoCredentials { .. }) && error.to_string().contains("--token-file"), "{error}");
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn a_node_that_was_deleted_meanwhile_is_asked_for_a_token() {
    let fake = Fake::start(|seen| {
        (seen.header("authorization").is_none() && seen.path.ends_with("kubelet.crt"))
            .then(|| (401, failure(401, "unable to verify node identity: nodes \\\"wire1\\\" not found")))
    })
    .await;
    let node = Node::new();
    node.join(&fake).await.unwrap();
    let error = join(&node.options(&fake.addr, None)).await.unwrap_err();
    assert!(matches!(error, Error::CertificateRejected { .. }) && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("give a token"), "{error}");
}

#[tokio::test]
async fn files_that_do_not_belong_together_are_named() {
    let fake = Fake::start(nothing).await;
    let node = Node::new();
    node.join(&fake).await.unwrap();
    let agent = node.data().join("agent");
    std::fs::copy(agent.join("client-kube-proxy.key"), agent.join("client-kubelet.key")).unwrap();
    let error = load(&node.data()).unwrap_err();
    assert!(error.to_string().contains("client-kubelet.crt"), "{error}");
    // The next join mends it.
    node.join(&fake).await.unwrap();
    load(&node.data()).unwrap().unwrap();
    std::fs::remove_file(agent.join("client-ca.crt")).unwrap();
    assert_eq!(load(&node.data()).unwrap(), None);
}

#[test]
fn node_names_are_checked_before_anything_is_sent() {
    for good in ["wire1", "a.b-c.d", "0"] {
        check_name(good).unwrap();
    }
    let long = "a".repeat(254);
    for bad in ["", "Wire1", "bad_name!", "-a", "a-", "a..b", ".a", "ä", long.as_str()] {
        let error = check_name(bad).unwrap_err().to_string();
        assert!(error.contains("--node-name"), "{error}");
    }
}
