//! Runs one session over one WebSocket: reads frames, writes what the session decides, keeps its timers. One task,
//! no lock; the writer is polled beside the reader so that neither waits for the other.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as Frame};

use crate::allow::Allow;
use crate::backoff::random_u64;
use crate::connection::{self, Handle, Local, Port, Reports};
use crate::error::{Error, Result};
use crate::link::{BoxFuture, Dial};
use crate::message::{ConnId, Message};
use crate::moved::Moved;
use crate::session::{Action, NOBODY, Role, Session, Timing};
use crate::traffic::Proof;

/// Local messages that wait for the session, all connections together.
const LOCAL_QUEUE: usize = 16;
/// While more frames than this wait for the socket, nothing more is taken from the local sides.
const QUEUE_SOFT: usize = 16;
/// More frames than this wait: the peer makes us answer and does not read the answers.
const QUEUE_HARD: usize = 8192;
/// Frames between the session's loop and the socket. Few: a question about life waits behind them.
const WRITER_QUEUE: usize = 2;

/// How long connections may keep a retired session. A scraper keeps one for ever.
const RETIRE_LIMIT: Duration = Duration::from_secs(300);

/// One counter for all sessions of a process, from a random start; receivers ignore it.
static MESSAGE_ID: LazyLock<AtomicI64> = LazyLock::new(|| AtomicI64::new((random_u64() >> 2) as i64));

/// Buffers sized for a board with little memory, and for a slow uplink: a question about life waits behind what was
/// written. Messages of the peer are at most 32 KiB and a header.
pub(crate) fn web_socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(4 * 1024)
        .max_message_size(Some(1 << 20))
        .max_frame_size(Some(1 << 20))
}

/// Answers a request to open a connection; carries our end of the pipe.
pub(crate) struct OpenRequest {
    pub(crate) network: String,
    pub(crate) address: String,
    pub(crate) pipe: DuplexStream,
    pub(crate) done: oneshot::Sender<bool>,
}

/// What a driver needs beside the socket.
pub(crate) struct Driver {
    pub(crate) session: Session,
    pub(crate) timing: Timing,
    /// Client side: what may be dialled, and how. `None` on the server side.
    pub(crate) dial: Option<(Allow, Arc<dyn Dial>)>,
    /// Where local sides run.
    pub(crate) local: runtime::Handle,
    /// Server side: requests to open connections.
    pub(crate) requests: mpsc::Receiver<OpenRequest>,
    /// `true`, or no sender left: close and return.
    pub(crate) stop: watch::Receiver<bool>,
    /// Resolves when the session shall end as soon as it has no connections.
    pub(crate) retire: BoxFuture<()>,
    /// Told of every message.
    pub(crate) proof: Arc<Proof>,
    /// Told by the socket.
    pub(crate) moved: Arc<Moved>,
}

/// How a session ended that was not broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Told to stop.
    Stopped,
    /// Retired and without connections.
    Retired,
}

/// What the loop woke for.
enum Event {
    /// A frame was handed to the writer, or there is nothing to do.
    None,
    Frame(Frame),
    Local(Local),
    Drained(ConnId, usize),
    Open(OpenRequest),
    Stop,
}

impl Driver {
    /// Runs until the session ends.
    pub(crate) async fn run<S>(self, socket: WebSocketStream<S>) -> Result<Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (sink, stream) = socket.split();
        let (frames, waiting) = mpsc::channel(WRITER_QUEUE);
        let write_limit = self.timing.write_limit;
        // Reader and writer are two futures of one task: dropping either closes the socket for both.
        tokio::select! {
            result = write_frames(sink, waiting, write_limit) => result,
            result = self.read_frames(stream, frames) => result,
        }
    }

    async fn read_frames<T>(mut self, mut stream: T, frames: mpsc::Sender<Frame>) -> Result<Ended>
    where
        T: Stream<Item = std::result::Result<Frame, WsError>> + Unpin,
    {
        let (local, mut locals) = mpsc::channel(LOCAL_QUEUE);
        let (drained, mut drains) = mpsc::unbounded_channel();
        let mut work = Work {
            session: self.session,
            dial: self.dial,
            local: self.local,
            reports: Reports { local, drained },
            handles: HashMap::new(),
            queue: VecDeque::new(),
        };
        let mut requests_open = true;
        // From when a retired session ends whatever it carries.
        let mut retire_by: Option<tokio::time::Instant> = None;
        let mut out = Vec::new();
        loop {
            let deadline = tokio::time::Instant::from_std(work.session.deadline());
            let room = work.queue.len() < QUEUE_SOFT;
            // Every branch is cancel-safe: channels and streams keep what was not taken.
            let event = tokio::select! {
                permit = frames.reserve(), if !work.queue.is_empty() => {
                    let permit = permit.map_err(|_| Error::Closed)?;
                    if let Some(frame) = work.queue.pop_front() {
                        permit.send(frame);
                    }
                    Event::None
                }
                frame = stream.next() => Event::Frame(frame.ok_or(Error::Closed)?.map_err(socket_error)?),
                local = locals.recv(), if room => local.map_or(Event::None, Event::Local),
                drained = drains.recv() => drained.map_or(Event::None, |(conn, bytes)| Event::Drained(conn, bytes)),
                request = self.requests.recv(), if room && requests_open => match request {
                    Some(request) => Event::Open(request),
                    None => {
                        requests_open = false;
                        Event::None
                    }
                },
                // What the peer said while this process was held up counts before its silence does.
                () = tokio::time::sleep_until(deadline) => match stream.next().now_or_never() {
                    Some(frame) => Event::Frame(frame.ok_or(Error::Closed)?.map_err(socket_error)?),
                    None => Event::None,
                },
                () = &mut self.retire, if retire_by.is_none() => {
                    retire_by = Some(tokio::time::Instant::now() + RETIRE_LIMIT);
                    Event::None
                }
                () = tokio::time::sleep_until(retire_by.unwrap_or(deadline)), if retire_by.is_some() => Event::None,
                () = stopped(&mut self.stop) => Event::Stop,
            };
            let now = now();
            match event {
                Event::None => {}
                Event::Frame(Frame::Binary(bytes)) => {
                    self.proof.given(now);
                    work.session.receive(now, bytes, &mut out)?;
                }
                // Answered by the library; nothing else to do.
                Event::Frame(Frame::Ping(_) | Frame::Pong(_)) => work.session.heard(now),
                Event::Frame(Frame::Close(_)) => return Err(Error::Closed),
                Event::Frame(Frame::Text(_) | Frame::Frame(_)) => {
                    return Err(Error::Protocol { reason: "text message".to_owned() });
                }
                Event::Local(Local::Data(conn, data)) => work.session.local_data(conn, data, &mut out),
                Event::Local(Local::End(conn, reason)) => work.session.local_end(conn, &reason, &mut out),
                Event::Drained(conn, bytes) => work.session.drained(conn, bytes, &mut out),
                Event::Open(request) => work.open(request, &mut out),
                Event::Stop => {
                    close(&frames, &mut stream).await;
                    return Ok(Ended::Stopped);
                }
            }
            if let Some(at) = self.moved.take() {
                work.session.moved(at);
            }
            if now >= work.session.deadline() {
                work.session.tick(now, &mut out)?;
            }
            for action in out.drain(..) {
                work.act(action);
            }
            let over = |by: tokio::time::Instant| work.session.is_idle() && work.queue.is_empty() || by.into_std() <= now;
            if retire_by.is_some_and(over) {
                close(&frames, &mut stream).await;
                return Ok(Ended::Retired);
            }
            if work.queue.len() > QUEUE_HARD {
                return Err(Error::Protocol { reason: "it does not read what it asks for".to_owned() });
            }
        }
    }
}

/// The server forgets the session at once when it sees a Close; the writer then ends the run.
async fn close<T>(frames: &mpsc::Sender<Frame>, stream: &mut T)
where
    T: Stream<Item = std::result::Result<Frame, WsError>> + Unpin,
{
    let close = async {
        let _ = frames.send(Frame::Close(None)).await;
        while let Some(Ok(_)) = stream.next().await {}
    };
    let _ = timeout(Duration::from_secs(1), close).await;
}

struct Work {
    session: Session,
    dial: Option<(Allow, Arc<dyn Dial>)>,
    local: runtime::Handle,
    reports: Reports,
    handles: HashMap<ConnId, Handle>,
    queue: VecDeque<Frame>,
}

impl Work {
    fn act(&mut self, action: Action) {
        match action {
            Action::Send(message) => self.send(&message),
            // Ahead of data, so that a full queue delays no sign of life.
            Action::Ping => self.queue.push_front(Frame::Ping(Bytes::new())),
            // The counter, which nobody reads, is as short as can be: this is most of what an idle link says.
            Action::Probe => self.queue.push_front(Frame::Binary(Message::Data(NOBODY, Bytes::new()).encode(0))),
            Action::Deliver(conn, data) => {
                if let Some(handle) = self.handles.get(&conn) {
                    handle.deliver(data);
                }
            }
            Action::Hold(conn, on) => {
                if let Some(handle) = self.handles.get(&conn) {
                    handle.hold(on);
                }
            }
            Action::Finish(conn, reason) => {
                if self.handles.remove(&conn).is_some() {
                    tracing::trace!(connection = conn.0, reason, "tunnel connection ended");
                }
            }
            Action::Open(conn, network, address) => self.dial(conn, &network, address),
        }
    }

    fn send(&mut self, message: &Message) {
        let id = MESSAGE_ID.fetch_add(1, Ordering::Relaxed) & i64::MAX;
        self.queue.push_back(Frame::Binary(message.encode(id)));
    }

    fn port(&mut self, conn: ConnId) -> Port {
        let (handle, port) = connection::pair(conn, self.reports.clone());
        self.handles.insert(conn, handle);
        port
    }

    /// A refused address costs this connection, not the session (k3s-agent.md 4.4).
    fn dial(&mut self, conn: ConnId, network: &str, address: String) {
        let dial = match &self.dial {
            Some((allow, dial)) if allow.permits(network, &address) => dial.clone(),
            _ => {
                tracing::warn!(network, address, "server asked for an address it may not reach");
                let mut out = Vec::new();
                self.session.local_end(conn, "connect not allowed", &mut out);
                for action in out {
                    self.act(action);
                }
                return;
            }
        };
        tracing::debug!(connection = conn.0, address, "tunnel connection opened");
        let port = self.port(conn);
        self.local.spawn(port.dial_and_pump(async move { dial.dial(&address).await }));
    }

    fn open(&mut self, request: OpenRequest, out: &mut Vec<Action>) {
        let Some(conn) = self.session.open(now(), &request.network, &request.address, out) else {
            let _ = request.done.send(false);
            return;
        };
        let port = self.port(conn);
        self.local.spawn(port.pump_patiently(request.pipe));
        let _ = request.done.send(true);
    }
}

async fn write_frames<K>(mut sink: K, mut frames: mpsc::Receiver<Frame>, limit: Duration) -> Result<Ended>
where
    K: Sink<Frame, Error = WsError> + Unpin,
{
    let too_slow = |_| Error::Socket { source: io::Error::from(io::ErrorKind::TimedOut) };
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            timeout(limit, sink.feed(frame)).await.map_err(too_slow)?.map_err(socket_error)?;
            next = frames.try_recv().ok();
        }
        timeout(limit, sink.flush()).await.map_err(too_slow)?.map_err(socket_error)?;
    }
    // The reader is gone; it decides how the run ends.
    std::future::pending().await
}

fn socket_error(error: WsError) -> Error {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => Error::Closed,
        // A server that dies, or is stopped, says no goodbye in TLS.
        WsError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => Error::Closed,
        WsError::Io(source) => Error::Socket { source },
        WsError::Protocol(e) => Error::Protocol { reason: e.to_string() },
        other => Error::Socket { source: io::Error::other(other) },
    }
}

/// Tokio's clock, so that tests can pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Waits for `true`, or for the sender to be gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A session for one end, from now on.
///
/// A node may hold little for a connection; a server holds what a node had under way when it was told to pause: its
/// queues and the socket buffers of both, which the kernel lets grow to several MiB. K3s' server has no limit at all.
pub(crate) fn session(role: Role, timing: Timing) -> Session {
    let mut limits = crate::session::Limits::default();
    if role == Role::Server {
        limits.capacity = 64 << 20;
    }
    Session::new(role, timing, limits, now())
}
