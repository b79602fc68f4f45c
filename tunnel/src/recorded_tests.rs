//! What real servers said to a node that renews, and to one that asks for a sign of life. `tests/k3s` recorded it and
//! checks that servers still say it; here this crate has to go on saying and understanding it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::fake::{Fake, Seen};
use crate::identity::{JoinOptions, join};
use crate::message::Message;
use crate::session::{Action, Limits, NOBODY, Role, Session, Timing};
use crate::testing::{self, Recording};

/// Question and answer, as bytes.
fn liveness() -> (Bytes, Bytes) {
    let cases: Value = serde_json::from_str(&testing::read("tunnel-liveness.json")).unwrap();
    let frames = cases[0]["frames"].as_array().unwrap();
    let frame = |index: usize, direction: &str| -> Bytes {
        let frame = &frames[index];
        assert_eq!((frame["dir"].as_str().unwrap(), frame["op"].as_u64()), (direction, Some(2)));
        let hex = frame["hex"].as_str().unwrap();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    assert_eq!(frames.len(), 2);
    (frame(0, "agent->server"), frame(1, "server->agent"))
}

fn is_the_answer(message: &Message) -> bool {
    matches!(message, Message::Error(conn, text) if *conn == NOBODY && text.starts_with("connection not found"))
}

#[test]
fn a_real_session_answers_the_question_and_thereby_lives() {
    let (question, answer) = liveness();
    let (counter, asked) = Message::decode(question.clone()).unwrap();
    assert_eq!(asked, Message::Data(NOBODY, Bytes::new()));
    assert_eq!(asked.encode(counter), question, "byte for byte");
    assert!(is_the_answer(&Message::decode(answer.clone()).unwrap().1));

    let start = Instant::now();
    let timing = Timing::default();
    let silent_until = |answered: bool| {
        let mut session = Session::new(Role::Client, timing, Limits::default(), start);
        let mut out = Vec::new();
        session.tick(session.deadline(), &mut out).unwrap();
        assert_eq!(out, [Action::Probe]);
        out.clear();
        if answered {
            session.receive(start + timing.found_within() - Duration::from_millis(1), answer.clone(), &mut out).unwrap();
            assert_eq!(out, [], "it is not answered in turn, and ends nothing");
        }
        session.tick(start + timing.found_within(), &mut out).is_ok()
    };
    assert!(silent_until(true), "the answer keeps the session");
    assert!(!silent_until(false), "silence ends it");

    // Our own server's end says the same.
    let mut server = Session::new(Role::Server, Timing::server(), Limits::default(), start);
    let mut out = Vec::new();
    server.receive(start, question, &mut out).unwrap();
    assert!(matches!(&out[..], [Action::Send(said)] if is_the_answer(said)), "{out:?}");
}

/// With its certificate alone: the token it joined with may not count any more.
#[tokio::test]
async fn a_renewal_asks_what_was_recorded_and_takes_the_recorded_configuration() {
    const NAMES: [&str; 5] = ["config", "serving-kubelet", "client-kubelet", "client-kube-proxy", "client-k3s-controller"];
    let config = String::from_utf8(Recording::load("renewal-config").response_body()).unwrap();
    let answer = config.clone();
    let fake = Fake::start(move |seen| (seen.path == "/v1-k3s/config").then(|| (200, answer.clone()))).await;
    let root = tempfile::tempdir().unwrap();
    let mut options = JoinOptions {
        server: fake.addr.clone(),
        token: Some(fake.token()),
        data_dir: root.path().join("data"),
        node_name: "node".into(),
        node_ips: vec!["10.99.0.41".parse().unwrap()],
        node_password_file: root.path().join("password"),
    };
    let first = join(&options).await.unwrap();
    let before = fake.seen().len();
    options.token = None;
    let renewed = join(&options).await.unwrap();
    assert_eq!(renewed.config, serde_json::from_str(&config).unwrap());
    for (name, old, new) in [
        ("serving-kubelet", first.kubelet_serving, renewed.kubelet_serving),
        ("client-kubelet", first.kubelet_client, renewed.kubelet_client),
        ("client-kube-proxy", first.kube_proxy, renewed.kube_proxy),
        ("client-k3s-controller", first.controller, renewed.controller),
    ] {
        assert_eq!(new.key_pem, old.key_pem, "{name}: the key stays");
        assert_ne!(new.cert_pem, old.cert_pem, "{name}: the certificate does not");
    }

    let mut asked: Vec<Seen> = fake.seen().split_off(before);
    for name in NAMES {
        let recording = Recording::load(&format!("renewal-{name}"));
        let index = asked.iter().position(|seen| seen.path == recording.path()).unwrap_or_else(|| panic!("{name} was not asked for"));
        let seen = asked.remove(index);
        assert_eq!(Some(seen.method.as_str()), recording.0["request"]["method"].as_str(), "{name}");
        assert!(seen.certificate && seen.header("authorization").is_none(), "{name}: by certificate");
        for header in ["k3s-Node-Name", "k3s-Node-Password", "k3s-Node-IP"] {
            assert_eq!(seen.header(header).is_some(), recording.request_header(header).is_some(), "{name}: {header}");
        }
        // A request as DER, not PEM: with PEM the server would make a key of its own (k3s-agent.md 2.4).
        let (ours, recorded) = (seen.body.first().copied(), recording.request_body().first().copied());
        assert_eq!((ours, recorded), if name == "config" { (None, None) } else { (Some(0x30), Some(0x30)) }, "{name}");
    }
    // Both CAs may have been rotated meanwhile.
    let mut rest: Vec<&str> = asked.iter().map(|seen| seen.path.as_str()).collect();
    rest.sort_unstable();
    assert_eq!(rest, ["/v1-k3s/client-ca.crt", "/v1-k3s/server-ca.crt"], "and nothing else");
}

/// What a certificate alone gets: all four, of the node that asked, and no key.
#[test]
fn recorded_renewals_go_with_the_keys_of_before() {
    for name in ["serving-kubelet", "client-kubelet", "client-kube-proxy", "client-k3s-controller"] {
        let recording = Recording::load(&format!("renewal-{name}"));
        assert_eq!(recording.status(), 200, "{name}");
        let subject = recording.0["request"]["client_certificate_subject"].as_str().unwrap();
        assert!(subject.starts_with("CN=system:node:") && recording.request_header("Authorization").is_none(), "{name}: {subject}");
        let text = String::from_utf8(recording.response_body()).unwrap();
        assert_eq!((text.matches("BEGIN CERTIFICATE").count(), text.contains("PRIVATE KEY")), (2, false), "{name}: leaf and CA");
    }
}
