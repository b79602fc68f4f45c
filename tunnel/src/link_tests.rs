use super::*;
use crate::fake::{Ca, acceptor, failure, listen};
use crate::serve::{ServerSession, TunnelStream, accept_key, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream as ServerTls;

/// Longest wait for something that must happen, far above what it takes.
const LIMIT: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// One cluster: its authorities and the node's certificate.
struct Cluster {
    acceptor: TlsAcceptor,
    tls: watch::Sender<Arc<ClientConfig>>,
}

impl Cluster {
    fn new() -> Cluster {
        let (server_ca, client_ca) = (Ca::new("k3s-server-ca@1"), Ca::new("k3s-client-ca@1"));
        let leaf = server_ca.issue("k3s", &["127.0.0.1"], (2020, 2090));
        let node = client_ca.issue("system:node:wire1", &[], (2020, 2090));
        // With the ALPN list of an API client: the link must ask for HTTP/1.1 all the same.
        let config = crate::tls::client_config(server_ca.pem.as_bytes(), Some(&node), &["h2"]).unwrap();
        Cluster { acceptor: acceptor(&leaf, &client_ca), tls: watch::channel(config).0 }
    }
}

impl Cluster {
    fn connect(&self) -> Arc<dyn Connect> {
        Arc::new(TlsConnect { tls: self.tls.subscribe(), traffic: Arc::default() })
    }
}

/// Accepts one tunnel request; gives its head and the stream after our 101.
async fn upgrade(listener: &TcpListener, acceptor: &TlsAcceptor) -> (String, ServerTls<TcpStream>) {
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = acceptor.accept(tcp).await.unwrap();
    assert!(stream.get_ref().1.peer_certificates().is_some(), "shows the node's certificate");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ").or(l.strip_prefix("sec-websocket-key: ")));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        accept_key(key.expect("a key"))
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    (head, stream)
}

struct Running {
    state: watch::Receiver<LinkState>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn wait_for(&mut self, what: &str, want: impl FnMut(&LinkState) -> bool) -> LinkState {
        soon(what, self.state.wait_for(want)).await.unwrap().clone()
    }
}

fn start(cluster: &Cluster, server: &ServerAddr, allow: Allow, timing: Timing) -> Running {
    let (state, states) = watch::channel(LinkState::Connecting);
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(LinkOptions {
        server: server.clone(),
        connect: cluster.connect(),
        dial: Arc::new(TcpDial),
        allow,
        state,
        proof: Arc::default(),
        stop: stopped,
        local: runtime::Handle::current(),
        timing,
        jitter: crate::backoff::jitter,
    }));
    Running { state: states, stop, task }
}

/// A TCP server that sends back what it gets, and its port.
async fn echo() -> u16 {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        loop {
            let Ok((mut tcp, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let (mut r, mut w) = tcp.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    addr.port
}

async fn open(session: &ServerSession, port: u16) -> TunnelStream {
    soon("open", session.open(&format!("tcp/127.0.0.1:{port}"))).await.unwrap()
}

/// Sends `size` bytes and reads them back.
async fn round_trip(stream: &mut TunnelStream, size: usize) {
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let mut got = vec![0; size];
    let (mut r, mut w) = tokio::io::split(stream);
    let write = async { w.write_all(&sent).await };
    let (written, read) = soon("round trip", async { tokio::join!(write, r.read_exact(&mut got)) }).await;
    written.unwrap();
    read.unwrap();
    assert!(got == sent);
}

async fn ends(stream: &mut TunnelStream) {
    let mut rest = Vec::new();
    let _ = soon("end of stream", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn connections_go_through_the_tunnel_and_fail_alone() {
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let port = echo().await;
    let mut link = start(&cluster, &server, Allow::kubelet(port), Timing::default());
    let (head, stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    assert!(head.starts_with("GET /v1-k3s/connect HTTP/1.1\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    assert!(head.contains(&server.to_string()), "{head}");
    let session = serve(stream, Timing::server());
    link.wait_for("connected", |s| *s == LinkState::Connected).await;

    let mut first = open(&session, port).await;
    round_trip(&mut first, 5).await;
    // Refused by the rules, refused by the port: both are ends of that connection alone.
    let mut forbidden = open(&session, 22).await;
    ends(&mut forbidden).await;
    let (gone, dead) = listen().await;
    drop(gone);
    let mut refused = session.open(&format!("tcp/127.0.0.1:{}", dead.port)).await.unwrap();
    ends(&mut refused).await;
    round_trip(&mut first, 3_000_000).await;
    let mut many = Vec::new();
    for _ in 0..20 {
        let mut stream = open(&session, port).await;
        many.push(tokio::spawn(async move { round_trip(&mut stream, 200_000).await }));
    }
    for task in many {
        soon("many", task).await.unwrap();
    }
    drop(first);

    link.stop.send(true).unwrap();
    soon("stop", link.task).await.unwrap();
    soon("the server sees the end", session.ended()).await;
    assert!(session.is_ended() && session.open("tcp/127.0.0.1:1").await.is_err());
    assert_eq!(*link.state.borrow(), LinkState::Stopped);
}

#[tokio::test]
async fn a_reader_that_stalls_pauses_its_own_connection_only_and_loses_nothing() {
    const SIZE: usize = 20 << 20;
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let (source, local) = listen().await;
    let produced = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = produced.clone();
    let source_task = tokio::spawn(async move {
        let (mut tcp, _) = source.accept().await.unwrap();
        let chunk = vec![7u8; 64 << 10];
        for _ in 0..SIZE / chunk.len() {
            tcp.write_all(&chunk).await.unwrap();
            count.fetch_add(chunk.len(), std::sync::atomic::Ordering::SeqCst);
        }
    });
    let port = echo().await;
    let rules = crate::allow::Rules { kubelet_port: port, ..Default::default() };
    let both = crate::allow::Rules {
        mode: crate::allow::EgressMode::Cluster,
        node_ips: vec![],
        cluster_cidrs: vec!["127.0.0.2/32".parse().unwrap()],
        ..rules
    };
    // The stalled stream is dialled at another loopback address, so that two ports may be permitted.
    struct Redirect(u16);
    impl Dial for Redirect {
        fn dial(&self, address: &str) -> BoxFuture<io::Result<BoxStream>> {
            let address = address.replace("127.0.0.2:1", &format!("127.0.0.1:{}", self.0));
            TcpDial.dial(&address)
        }
    }
    let (state, _states) = watch::channel(LinkState::Connecting);
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(run(LinkOptions {
        server: server.clone(),
        connect: cluster.connect(),
        dial: Arc::new(Redirect(local.port)),
        allow: Allow::fixed(both),
        state,
        proof: Arc::default(),
        stop: stopped,
        local: runtime::Handle::current(),
        timing: Timing::default(),
        jitter: crate::backoff::jitter,
    }));
    let (_, stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    let session = serve(stream, Timing::server());
    let mut stalled = session.open("tcp/127.0.0.2:1").await.unwrap();
    // Nobody reads; another connection works all the while, until the source makes no more progress.
    let mut other = open(&session, port).await;
    let mut last = 0;
    soon("the source is held up", async {
        loop {
            for _ in 0..50 {
                round_trip(&mut other, 10_000).await;
            }
            let now = produced.load(std::sync::atomic::Ordering::SeqCst);
            if now == last && now > 0 {
                return;
            }
            last = now;
        }
    })
    .await;
    assert!(last < SIZE, "all {last} bytes went somewhere");
    let mut got = Vec::new();
    soon("everything arrives", stalled.read_to_end(&mut got)).await.unwrap();
    assert!(got.len() == SIZE && got.iter().all(|b| *b == 7), "{}", got.len());
    source_task.await.unwrap();
}

#[tokio::test]
async fn a_local_side_that_stalls_holds_up_the_server_and_loses_nothing() {
    const SIZE: usize = 40 << 20;
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let (local, addr) = listen().await;
    let mut link = start(&cluster, &server, Allow::kubelet(addr.port), Timing::default());
    let (_, stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    let session = serve(stream, Timing::server());
    let mut upload = open(&session, addr.port).await;
    let (mut tcp, _) = soon("the dial", local.accept()).await.unwrap();
    let chunk = vec![9u8; 64 << 10];
    let mut sent = 0;
    // Nobody reads: one write of many does not come through, long before everything was taken.
    while let Ok(done) = timeout(Duration::from_secs(2), upload.write_all(&chunk)).await {
        done.unwrap();
        sent += chunk.len();
        assert!(sent < SIZE, "everything went somewhere");
    }
    let mut got = vec![0; sent];
    soon("everything arrives", tcp.read_exact(&mut got)).await.unwrap();
    assert!(got.iter().all(|b| *b == 9));
    assert_eq!(link.state.borrow_and_update().clone(), LinkState::Connected);
}

#[tokio::test]
async fn a_link_comes_back_after_its_server_went_away() {
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let port = echo().await;
    let mut link = start(&cluster, &server, Allow::kubelet(port), Timing::default());
    let (_, stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    link.wait_for("connected", |s| *s == LinkState::Connected).await;
    drop(stream);
    let waiting = link.wait_for("waiting", |s| matches!(s, LinkState::Waiting { .. })).await;
    let LinkState::Waiting { retry_in, error } = &waiting else { panic!() };
    assert_eq!(error, "tunnel closed by the peer");
    assert!(*retry_in <= Duration::from_secs(1) && waiting.health() == Some(false));
    let (_, stream) = soon("second upgrade", upgrade(&listener, &cluster.acceptor)).await;
    let session = serve(stream, Timing::server());
    let mut stream = open(&session, port).await;
    round_trip(&mut stream, 100).await;
    // The server's end can close too, and connections end with it.
    session.close();
    ends(&mut stream).await;
    link.wait_for("waiting again", |s| matches!(s, LinkState::Waiting { .. })).await;
}

#[tokio::test]
async fn a_server_that_forgot_the_session_but_not_the_socket_is_found_out() {
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let timing = Timing::client(Duration::from_millis(100), Duration::from_millis(200));
    let mut link = start(&cluster, &server, Allow::kubelet(1), timing);
    let (_, mut stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    // Reads the question and answers nothing.
    let mut question = [0; 12];
    soon("a question", stream.read_exact(&mut question)).await.unwrap();
    assert_eq!(question[..2], [0x82, 0x86], "a masked binary frame of six bytes");
    let unmasked: Vec<u8> = question[6..].iter().enumerate().map(|(at, byte)| byte ^ question[2 + at % 4]).collect();
    assert_eq!(unmasked, [0, 1, 2, 0xb0, 0xea, 1], "data for connection -1");
    let waiting = link.wait_for("dead", |s| matches!(s, LinkState::Waiting { .. })).await;
    assert!(format!("{waiting:?}").contains("no answer"), "{waiting:?}");
}

#[tokio::test]
async fn a_renewed_identity_reopens_the_link_when_its_connections_are_done() {
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let port = echo().await;
    let link = start(&cluster, &server, Allow::kubelet(port), Timing::default());
    let (_, stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    let session = serve(stream, Timing::server());
    let mut used = open(&session, port).await;
    round_trip(&mut used, 1000).await;
    cluster.tls.send_modify(|_| {});
    // What is under way goes on over the old session.
    round_trip(&mut used, 1000).await;
    assert!(!session.is_ended());
    drop(used);
    soon("the old session ends", session.ended()).await;
    let (_, stream) = soon("second upgrade", upgrade(&listener, &cluster.acceptor)).await;
    let session = serve(stream, Timing::server());
    round_trip(&mut open(&session, port).await, 1000).await;
    assert!(link.state.borrow().health() != Some(false), "no failure was told");
    link.stop.send(true).unwrap();
}

#[tokio::test]
async fn protocol_breaches_and_refusals_say_what_happened() {
    let cluster = Cluster::new();
    let (listener, server) = listen().await;
    let mut link = start(&cluster, &server, Allow::kubelet(1), Timing::default());
    let (_, mut stream) = soon("upgrade", upgrade(&listener, &cluster.acceptor)).await;
    // An unmasked text frame "hi".
    stream.write_all(&[0x81, 2, b'h', b'i']).await.unwrap();
    let waiting = link.wait_for("broken", |s| matches!(s, LinkState::Waiting { .. })).await;
    assert!(format!("{waiting:?}").contains("text message"), "{waiting:?}");

    let (tcp, _) = soon("retry", listener.accept()).await.unwrap();
    let mut stream = cluster.acceptor.accept(tcp).await.unwrap();
    let body = failure(403, "forbidden");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let answer = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let refused = |s: &LinkState| matches!(s, LinkState::Waiting { error, .. } if error.contains("403"));
    let waiting = link.wait_for("refused", refused).await;
    assert!(format!("{waiting:?}").contains("forbidden"), "{waiting:?}");
    link.stop.send(true).unwrap();
    soon("stops while waiting", link.task).await.unwrap();
}

#[tokio::test]
async fn a_link_that_cannot_connect_stops_at_once_when_told() {
    let cluster = Cluster::new();
    // Accepts TCP and says nothing: the TLS handshake hangs.
    let (_listener, server) = listen().await;
    let link = start(&cluster, &server, Allow::kubelet(1), Timing::default());
    link.stop.send(true).unwrap();
    timeout(Duration::from_secs(5), link.task).await.expect("within the connect limit").unwrap();
}

#[tokio::test]
async fn links_follow_the_list_of_servers() {
    let cluster = Cluster::new();
    let (a, addr_a) = listen().await;
    let (b, addr_b) = listen().await;
    let (servers, list) = watch::channel(Vec::new());
    let (states, mut seen) = watch::channel(BTreeMap::new());
    let (stop, stopped) = watch::channel(false);
    let opts = LinksOptions {
        connect: cluster.connect(),
        dial: Arc::new(TcpDial),
        allow: Allow::kubelet(1),
        states,
        proofs: watch::Sender::default(),
        stop: stopped,
        local: runtime::Handle::current(),
        timing: Timing::default(),
    };
    let task = tokio::spawn(run_links(list, opts));
    servers.send(vec![addr_a.clone()]).unwrap();
    let (_, stream) = soon("link to a", upgrade(&a, &cluster.acceptor)).await;
    let session_a = serve(stream, Timing::server());
    let up = |addr: ServerAddr| move |all: &BTreeMap<ServerAddr, LinkState>| all.get(&addr) == Some(&LinkState::Connected);
    soon("a is up", seen.wait_for(up(addr_a.clone()))).await.unwrap();
    // An empty list is no list; a short-lived one is never acted upon.
    servers.send(vec![]).unwrap();
    servers.send(vec![addr_b.clone()]).unwrap();
    servers.send(vec![addr_a.clone(), addr_b.clone()]).unwrap();
    let (_, stream) = soon("link to b", upgrade(&b, &cluster.acceptor)).await;
    let session_b = serve(stream, Timing::server());
    soon("b is up", seen.wait_for(up(addr_b.clone()))).await.unwrap();
    assert!(!session_a.is_ended());
    servers.send(vec![addr_b.clone()]).unwrap();
    soon("a is closed", session_a.ended()).await;
    soon("a is forgotten", seen.wait_for(|all| !all.contains_key(&addr_a))).await.unwrap();
    assert!(!session_b.is_ended());
    // Without anybody to change the list the links go on, until stopped.
    drop(servers);
    stop.send(true).unwrap();
    soon("all stop", task).await.unwrap();
    soon("b is closed", session_b.ended()).await;
    assert!(seen.borrow().is_empty());
}
