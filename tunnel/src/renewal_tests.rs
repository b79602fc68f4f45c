use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::addr::ServerAddr;
use crate::allow::Allow;
use crate::fake::{Ca, Fake, acceptor_at, failure, listen};
use crate::identity::{Identity, JoinOptions, join, load};
use crate::link::{self, LinkOptions, LinkState, TcpDial, TlsConnect};
use crate::serve::{ServerSession, accept_key, serve};
use crate::session::Timing;
use crate::tls::client_config;
use crate::{Token, pem};

const LIMIT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86400);
const YEAR: Duration = Duration::from_secs(365 * 86400);

fn validity(days: u64) -> Validity {
    let from = SystemTime::UNIX_EPOCH + YEAR;
    Validity { from, until: from + DAY * u32::try_from(days).unwrap() }
}

#[test]
fn certificates_are_due_after_their_fraction_and_spread_over_a_fleet() {
    let days = |fraction, jitter, life| {
        validity(life).due_at(fraction, jitter).duration_since(validity(life).from).unwrap().as_secs_f64() / 86400.0
    };
    for (fraction, jitter, life, want) in [
        (FRACTION, 0.0, 365, 255.5),
        (FRACTION, 1.0, 365, 328.5),
        (FRACTION, 0.5, 10, 8.0),
        (0.0, 1.0, 365, 0.0),
        (1.0, 1.0, 365, 365.0),
        (0.5, 1.0, 6, 5.0),
        (-3.0, 9.0, 6, 0.0),
        (7.0, 0.0, 6, 6.0),
    ] {
        let got = days(fraction, jitter, life);
        assert!((got - want).abs() < 1e-6, "{fraction} {jitter} {life}: {got}");
    }
}

#[test]
fn the_first_of_all_certificates_decides_and_none_is_renewed_twice_in_a_minute() {
    let start = validity(10).from;
    let both = [validity(10), validity(100)];
    let at = |days: f64, rested| decide(start + DAY.mul_f64(days), &both, FRACTION, 0.0, rested);
    assert_eq!(at(6.5, None), Decision::Wait(LOOK), "at most this long, for the clock may be set");
    assert_eq!(at(7.0 - 0.5 / 24.0, None), Decision::Wait(LOOK / 2));
    assert_eq!(at(7.0, None), Decision::Renew);
    assert_eq!(at(300.0, None), Decision::Renew, "long after the end, too");
    assert_eq!(at(7.0, Some(Duration::from_secs(20))), Decision::Wait(Duration::from_secs(40)));
    assert_eq!(at(7.0, Some(SPACING)), Decision::Renew);
    assert_eq!(decide(start - YEAR / 2, &both, FRACTION, 0.0, None), Decision::Wait(LOOK), "a clock that is behind");
    assert_eq!(decide(start, &both, 0.0, 1.0, None), Decision::Renew, "a fraction of 0 is at once");
}

/// A wall clock that tests set, also for TLS.
#[derive(Debug, Clone)]
struct Wall(Arc<Mutex<SystemTime>>);

impl Wall {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap()))
    }
}

fn serial(pem_text: &[u8]) -> String {
    let der = pem::certificates(pem_text).remove(0);
    X509Certificate::from_der(&der).unwrap().1.raw_serial_as_string()
}

/// Serial numbers of client, serving, controller and proxy certificate.
fn serials(identity: &Identity) -> [String; 4] {
    [&identity.kubelet_client, &identity.kubelet_serving, &identity.controller, &identity.kube_proxy].map(|pair| serial(&pair.cert_pem))
}

/// A server of one cluster: certificates signed by its clock, checked by its clock, and a tunnel that tells who comes.
struct Cluster {
    wall: Wall,
    fake: Fake,
    tunnel: ServerAddr,
    /// Serial number of the client certificate of each tunnel session.
    links: mpsc::UnboundedReceiver<(String, ServerSession)>,
    /// While set, nothing is certified.
    down: Arc<AtomicBool>,
}

impl Cluster {
    async fn start() -> Cluster {
        let wall = Wall(Arc::new(Mutex::new(SystemTime::now())));
        let (server_ca, client_ca) = (Arc::new(Ca::new("k3s-server-ca@1")), Arc::new(Ca::new("k3s-client-ca@1")));
        let leaf = server_ca.issue("k3s", &["kubernetes", "127.0.0.1"], (2020, 2090));
        let acceptor = acceptor_at(&leaf, &client_ca, Arc::new(wall.clone()));
        let down = Arc::new(AtomicBool::new(false));
        let script = {
            let (wall, down) = (wall.clone(), Arc::clone(&down));
            let cas = (Arc::clone(&server_ca), Arc::clone(&client_ca));
            move |seen: &crate::fake::Seen| {
                if down.load(Ordering::SeqCst) {
                    return Some((503, failure(503, "starting")));
                }
                let ca = if seen.path.contains("serving") { &cas.0 } else { &cas.1 };
                let signed = seen.method == "POST" && seen.path.ends_with(".crt");
                signed.then(|| (200, ca.sign_at(&seen.body, "node", OffsetDateTime::from(wall.now()))))
            }
        };
        let fake = Fake::start_behind(acceptor.clone(), (server_ca, client_ca), script).await;
        let (listener, tunnel) = listen().await;
        let (seen, links) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                if let Some(session) = accept_link(&listener, &acceptor).await {
                    let _ = seen.send(session);
                }
            }
        });
        Cluster { wall, fake, tunnel, links, down }
    }

    async fn next_link(&mut self) -> (String, ServerSession) {
        tokio::time::timeout(LIMIT, self.links.recv()).await.expect("a tunnel link").unwrap()
    }
}

async fn accept_link(listener: &TcpListener, acceptor: &TlsAcceptor) -> Option<(String, ServerSession)> {
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = acceptor.accept(tcp).await.ok()?;
    let der = stream.get_ref().1.peer_certificates()?.first()?.clone();
    let serial = X509Certificate::from_der(&der).unwrap().1.raw_serial_as_string();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.lines().find_map(|l| l.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")))?.1;
    let accept = accept_key(key);
    let answer =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    Some((serial, serve(stream, Timing::default())))
}

/// A node that joined and whose link and certificates are kept.
struct Node {
    root: tempfile::TempDir,
    identity: watch::Receiver<Identity>,
    link: watch::Receiver<LinkState>,
    wake: Arc<Notify>,
    _tasks: [tokio::task::JoinHandle<()>; 2],
    _stop: watch::Sender<bool>,
}

fn options(cluster: &Cluster, root: &Path) -> JoinOptions {
    JoinOptions {
        server: cluster.fake.addr.clone(),
        token: Some(Token::parse("secret").unwrap()),
        data_dir: root.join("data"),
        node_name: "wire1".into(),
        node_ips: vec!["10.99.0.41".parse().unwrap()],
        node_password_file: root.join("password"),
    }
}

fn tls_of(identity: &Identity) -> Arc<ClientConfig> {
    client_config(&identity.server_ca, Some(&identity.kubelet_client), &["http/1.1"]).unwrap()
}

async fn start_node(cluster: &Cluster) -> Node {
    let root = tempfile::tempdir().unwrap();
    let first = join(&options(cluster, root.path())).await.unwrap();
    let (identities, identity) = watch::channel(first.clone());
    let (tls, configs) = watch::channel(tls_of(&first));
    let (state, link) = watch::channel(LinkState::Connecting);
    let (stop, stopped) = watch::channel(false);
    let link_task = tokio::spawn(link::run(LinkOptions {
        server: cluster.tunnel.clone(),
        connect: Arc::new(TlsConnect { tls: configs, traffic: Arc::default() }),
        dial: Arc::new(TcpDial),
        allow: Allow::kubelet(1),
        state,
        proof: Arc::default(),
        stop: stopped,
        local: tokio::runtime::Handle::current(),
        timing: Timing::default(),
        jitter: crate::backoff::jitter,
    }));
    let wake = Arc::new(Notify::new());
    let wall = cluster.wall.clone();
    let keep_options = Options {
        fraction: FRACTION,
        clock: Clock::from_fn(move || wall.now()),
        at_once: false,
        // As after a start from disk: the spacing is not what is tried here.
        fresh: false,
        wake: Arc::clone(&wake),
        retry: (Duration::from_millis(1), Duration::from_millis(5)),
    };
    let again = options(cluster, root.path());
    let renew = move || {
        let (again, identities, tls) = (again.clone(), identities.clone(), tls.clone());
        async move {
            let renewed = join(&again).await.map_err(|error| error.to_string())?;
            tls.send_replace(tls_of(&renewed));
            let validities = renewed.validities().unwrap();
            identities.send_replace(renewed);
            Ok(validities)
        }
    };
    let keep_task = tokio::spawn(async move { match keep(keep_options, first.validities().unwrap(), renew).await {} });
    Node { root, identity, link, wake, _tasks: [link_task, keep_task], _stop: stop }
}

#[tokio::test]
async fn expiry_passes_and_every_certificate_was_renewed_before_it_without_a_restart() {
    let mut cluster = Cluster::start().await;
    let mut node = start_node(&cluster).await;
    let (first_link, first_session) = cluster.next_link().await;
    let first = node.identity.borrow_and_update().clone();
    tokio::time::timeout(LIMIT, node.link.wait_for(|state| *state == LinkState::Connected)).await.expect("connected").unwrap();
    assert_eq!(first_link, serials(&first)[0], "the link shows the node's certificate");
    assert_eq!(first.kubelet_client.key_pem, load(&node.root.path().join("data")).unwrap().unwrap().kubelet_client.key_pem);

    // Half of the life: nothing is due, whoever wakes us.
    cluster.wall.pass(YEAR / 2);
    let asked = cluster.fake.seen().len();
    for _ in 0..50 {
        node.wake.notify_one();
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.fake.seen().len(), asked, "nobody asked the server anything");

    // 90 %: due for every jitter, while the old certificates still count; the server is away for a while.
    cluster.down.store(true, Ordering::SeqCst);
    cluster.wall.pass(DAY * 147);
    node.wake.notify_one();
    let refused = async {
        while cluster.fake.seen().len() < asked + 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("three attempts");
    assert!(!node.link.has_changed().unwrap() && !first_session.is_ended(), "a renewal that fails disturbs nothing");
    cluster.down.store(false, Ordering::SeqCst);
    tokio::time::timeout(LIMIT, node.identity.changed()).await.expect("renewed").unwrap();
    let second = node.identity.borrow_and_update().clone();
    assert!(first.expires().unwrap() > cluster.wall.now(), "renewed before the end");

    // The link was closed in order and opened anew with the new certificate, with nobody's help.
    let (second_link, second_session) = cluster.next_link().await;
    assert_eq!(second_link, serials(&second)[0]);
    tokio::time::timeout(LIMIT, first_session.ended()).await.expect("the old session is closed");

    // What was, ends: nothing that is in use or on disk is of it.
    cluster.wall.pass(DAY * 60);
    let now = cluster.wall.now();
    assert!(first.expires().unwrap() < now && second.expires().unwrap() > now);
    for (old, new) in serials(&first).iter().zip(serials(&second)) {
        assert_ne!(*old, new);
    }
    let stored = load(&node.root.path().join("data")).unwrap().unwrap();
    assert_eq!(stored, second);
    assert_eq!(stored.kubelet_client.key_pem, first.kubelet_client.key_pem, "the key of a certificate is kept");
    drop(second_session);
    let (third_link, _third) = cluster.next_link().await;
    assert_eq!(third_link, second_link, "after a lost session, too, the server accepts who comes");
}

#[tokio::test]
async fn certificates_that_ran_out_long_ago_are_replaced_with_the_token() {
    let mut cluster = Cluster::start().await;
    let root = tempfile::tempdir().unwrap();
    let old = join(&options(&cluster, root.path())).await.unwrap();
    cluster.wall.pass(YEAR * 3);
    assert!(old.expires().unwrap() < cluster.wall.now());
    let renewed = join(&options(&cluster, root.path())).await.unwrap();
    assert!(renewed.expires().unwrap() > cluster.wall.now());
    assert_eq!(renewed.kubelet_client.key_pem, old.kubelet_client.key_pem);
    assert!(cluster.links.try_recv().is_err());
}
