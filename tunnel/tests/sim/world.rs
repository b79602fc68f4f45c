//! A node's link and a strict server on a simulated network, with users of connections through it.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tunnel::allow::Allow;
use tunnel::link::{BoxFuture, BoxStream, Connect, Dial, LinkOptions, LinkState, run};
use tunnel::serve::{ServerSession, TunnelStream, accept_key, serve};
use tunnel::session::Timing;
use tunnel::{Error, Result, ServerAddr};

use super::wire::{End, Pace, Wire, wire};

/// What new connections meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    Open,
    Refused,
    Silent,
}

/// Numbers from a seed.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(low, high))
    }
}

thread_local! {
    static JITTER: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The waits of this thread's link follow from this.
pub(crate) fn seed_jitter(seed: u64) {
    JITTER.set(seed);
}

fn jitter() -> f64 {
    let mut rng = Rng(JITTER.get());
    let number = rng.next();
    JITTER.set(rng.0);
    (number >> 11) as f64 / (1u64 << 53) as f64
}

/// The network and the server behind it.
pub(crate) struct Net {
    pub(crate) road: watch::Sender<Road>,
    pub(crate) wires: Mutex<Vec<Wire>>,
    pub(crate) sessions: Arc<Mutex<Vec<ServerSession>>>,
    pub(crate) attempts: AtomicUsize,
}

impl Net {
    /// The connection made last.
    pub(crate) fn newest_wire(&self) -> Wire {
        self.wires.lock().unwrap().last().expect("a connection was made").clone()
    }

    pub(crate) fn newest_session(&self) -> Option<ServerSession> {
        self.sessions.lock().unwrap().last().cloned()
    }

    /// Forgets what has ended; gives how much is left: connections and sessions.
    pub(crate) fn left(&self) -> (usize, usize) {
        let mut wires = self.wires.lock().unwrap();
        let mut sessions = self.sessions.lock().unwrap();
        wires.retain(|w| !w.is_gone());
        sessions.retain(|s| !s.is_ended());
        (wires.len(), sessions.len())
    }
}

/// The node's way to the server.
struct Way(Arc<Net>);

impl Connect for Way {
    fn connect(&self, server: &ServerAddr) -> BoxFuture<Result<BoxStream>> {
        let (net, server) = (self.0.clone(), server.clone());
        Box::pin(async move {
            net.attempts.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_millis(20)).await;
            let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
            let road = *net.road.borrow();
            if road == Road::Silent {
                // Begun in silence, it stays unanswered.
                std::future::pending::<()>().await;
            }
            if road == Road::Refused {
                return Err(Error::Unreachable { server, source: refused });
            }
            let (wire, node, far) = wire(Pace::GOOD);
            net.wires.lock().unwrap().push(wire);
            tokio::spawn(answer(far, net.sessions.clone()));
            Ok(Box::new(node) as BoxStream)
        })
    }

    fn renewed(&self) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
}

/// The server: one upgrade, then a session.
async fn answer(mut stream: End, sessions: Arc<Mutex<Vec<ServerSession>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(Duration::from_secs(5), stream.read_u8()).await {
            Ok(Ok(byte)) => head.push(byte),
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("GET /v1-k3s/connect HTTP/1.1\r\n") && !head.to_lowercase().contains("authorization"), "{head}");
    let key =
        head.lines().find_map(|l| l.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))).expect("a key").1;
    let accept = accept_key(key);
    let answer =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        sessions.lock().unwrap().push(serve(stream, Timing::server()));
    }
}

/// Behind the node: one task per connection, counted while it lives.
struct Kubelet(Arc<AtomicUsize>);

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Dial for Kubelet {
    fn dial(&self, _: &str) -> BoxFuture<io::Result<BoxStream>> {
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        self.0.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(self.0.clone());
        tokio::spawn(async move {
            let _counted = counted;
            let _ = local(theirs).await;
        });
        Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
    }
}

/// Byte `at` of what is sent through connection `tag`.
fn pattern(tag: u8, at: usize) -> u8 {
    (at as u8).wrapping_mul(31) ^ ((at >> 8) as u8) ^ tag
}

fn piece(tag: u8, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| pattern(tag, at)).collect()
}

/// What a connection is used for, in its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Echo = 0,
    Download = 1,
    Upload = 2,
}

async fn local(mut stream: tokio::io::DuplexStream) -> io::Result<()> {
    let (kind, tag, len) = (stream.read_u8().await?, stream.read_u8().await?, stream.read_u32().await? as usize);
    match kind {
        0 => {
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::io::copy(&mut reader, &mut writer).await?;
        }
        1 => send(&mut stream, tag, len).await?,
        _ => {
            if receive(&mut stream, tag, len).await? == len {
                stream.write_u8(b'K').await?;
            }
        }
    }
    Ok(())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), tag: u8, len: usize) -> io::Result<()> {
    for from in (0..len).step_by(4096) {
        stream.write_all(&piece(tag, from, 4096.min(len - from))).await?;
    }
    stream.flush().await
}

/// Reads up to `len` bytes, each of which must be the right one; gives how many came before the end.
async fn receive(stream: &mut (impl AsyncRead + Unpin), tag: u8, len: usize) -> io::Result<usize> {
    let mut buffer = vec![0; 4096];
    let mut got = 0;
    while got < len {
        let n = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        assert!(got + n <= len, "more than was sent");
        assert_eq!(buffer[..n], piece(tag, got, n), "at {got} of {len}");
        got += n;
    }
    Ok(got)
}

/// How a use of a connection came out. That it comes out at all is what the caller puts a limit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// Ended early; every byte before was right.
    Ended,
}

pub(crate) async fn used(session: ServerSession, how: Use, tag: u8, len: usize) -> Outcome {
    let Ok(mut stream) = session.open("tcp/127.0.0.1:10250").await else { return Outcome::Ended };
    let done = use_stream(&mut stream, how, tag, len).await.unwrap_or(false);
    if done { Outcome::Complete } else { Outcome::Ended }
}

async fn use_stream(stream: &mut TunnelStream, how: Use, tag: u8, len: usize) -> io::Result<bool> {
    stream.write_u8(how as u8).await?;
    stream.write_u8(tag).await?;
    stream.write_u32(len as u32).await?;
    match how {
        Use::Echo => {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let (sent, got) = tokio::join!(send(&mut writer, tag, len), receive(&mut reader, tag, len));
            let got = got?;
            Ok(sent.is_ok() && got == len)
        }
        Use::Download => Ok(receive(stream, tag, len).await? == len),
        Use::Upload => {
            send(stream, tag, len).await?;
            Ok(stream.read_u8().await? == b'K')
        }
    }
}

/// Everything of one simulated node.
pub(crate) struct World {
    pub(crate) net: Arc<Net>,
    pub(crate) state: watch::Receiver<LinkState>,
    pub(crate) locals: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    link: tokio::task::JoinHandle<()>,
}

impl World {
    pub(crate) async fn start() -> World {
        let net = Arc::new(Net {
            road: watch::Sender::new(Road::Open),
            wires: Mutex::default(),
            sessions: Arc::default(),
            attempts: AtomicUsize::new(0),
        });
        let locals = Arc::new(AtomicUsize::new(0));
        let (state, states) = watch::channel(LinkState::Connecting);
        let (stop, stopped) = watch::channel(false);
        let link = tokio::spawn(run(LinkOptions {
            server: ServerAddr::new("192.0.2.1", 6443),
            connect: Arc::new(Way(net.clone())),
            dial: Arc::new(Kubelet(locals.clone())),
            allow: Allow::kubelet(10250),
            state,
            proof: Arc::default(),
            stop: stopped,
            local: tokio::runtime::Handle::current(),
            timing: Timing::default(),
            jitter,
        }));
        World { net, state: states, locals, stop, link }
    }

    /// Waits until a connection through the newest session works, at most `limit`; gives how long that took.
    pub(crate) async fn works(&self, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        let tried = async {
            loop {
                let alive = self.net.newest_session().filter(|s| !s.is_ended());
                if let Some(session) = alive {
                    let echo = timeout(Duration::from_secs(2), used(session, Use::Echo, 1, 100)).await;
                    if echo == Ok(Outcome::Complete) {
                        return;
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(limit, tried).await.ok().map(|()| began.elapsed())
    }

    pub(crate) async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(Duration::from_secs(15), self.link).await.expect("stops").unwrap();
    }
}

/// Waits until `check` gives nothing to complain about.
pub(crate) async fn settled(limit: Duration, what: &str, mut check: impl FnMut() -> Option<String>) {
    let until = Instant::now() + limit;
    while let Some(complaint) = check() {
        assert!(Instant::now() < until, "{what}: {complaint}");
        sleep(Duration::from_secs(2)).await;
    }
}

/// Runs on a paused clock.
pub(crate) fn on_paused_clock<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
}
