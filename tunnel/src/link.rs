//! The node's end of the tunnel: connect to one server, run the session, back off, again; and one such link per
//! server of a list (k3s-agent.md 4.2, 4.5, 4.7).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tracing::Instrument;

use crate::addr::ServerAddr;
use crate::allow::Allow;
use crate::backoff::{Backoff, jitter};
use crate::driver::{Driver, Ended, now, session, stopped, web_socket_config};
use crate::error::{Error, Result};
use crate::moved::{Moved, Moving};
use crate::session::{Role, Timing};
use crate::traffic::{Counted, Proof, Traffic};
use crate::{dial, status, tls};

/// Where the tunnel lives on a server.
const CONNECT_PATH: &str = "/v1-k3s/connect";
/// TCP, TLS and the upgrade together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// What TLS holds for a socket that is full. Its default, 64 KiB, takes a slow uplink longer than a question may.
const TLS_BUFFER: usize = 8 * 1024;
/// Servers are changed only after the list has been still for this long (k3s-agent.md 4.7).
const SETTLE: Duration = Duration::from_secs(3);

/// A boxed future, for traits.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Reaches the local address a server asked for.
pub trait Dial: Send + Sync {
    /// Opens a connection to `address`, e.g. `127.0.0.1:10250`, which [`Allow`] has permitted.
    fn dial(&self, address: &str) -> BoxFuture<io::Result<BoxStream>>;
}

/// Bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A boxed stream, for traits.
pub type BoxStream = Box<dyn ByteStream>;

/// Reaches a server.
pub trait Connect: Send + Sync {
    /// A stream to the server, on which the upgrade can be asked for.
    fn connect(&self, server: &ServerAddr) -> BoxFuture<Result<BoxStream>>;

    /// Resolves when a link made before shall be replaced because the node shows itself differently now.
    fn renewed(&self) -> BoxFuture<()>;
}

/// TCP and TLS, as in use.
#[derive(Debug, Clone)]
pub struct TlsConnect {
    /// TLS with the client-kubelet identity; the current one is used at each attempt.
    pub tls: watch::Receiver<Arc<ClientConfig>>,
    /// Counts the bytes of all links.
    pub traffic: Arc<Traffic>,
}

impl Connect for TlsConnect {
    fn connect(&self, server: &ServerAddr) -> BoxFuture<Result<BoxStream>> {
        let (server, config, traffic) = (server.clone(), self.tls.borrow().clone(), self.traffic.clone());
        Box::pin(async move {
            let stream = tls_over(&server, config, |tcp| Counted::new(tcp, traffic)).await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }

    fn renewed(&self) -> BoxFuture<()> {
        let mut tls = self.tls.clone();
        tls.mark_unchanged();
        Box::pin(async move {
            if tls.changed().await.is_err() {
                std::future::pending().await
            }
        })
    }
}

/// Dials as asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial(&self, address: &str) -> BoxFuture<io::Result<BoxStream>> {
        let asked = address.parse::<SocketAddr>();
        Box::pin(async move {
            let stream = TcpStream::connect(asked.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// What a link is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    /// Dialling, or about to.
    #[default]
    Connecting,
    /// The session is up.
    Connected,
    /// The last attempt or session ended with `error`; the next attempt comes in `retry_in`.
    Waiting {
        /// One line.
        error: String,
        /// From when this was published.
        retry_in: Duration,
    },
    /// Told to stop.
    Stopped,
}

impl LinkState {
    /// Health for the balancer: `None` while it is not known yet.
    pub fn health(&self) -> Option<bool> {
        match self {
            LinkState::Connecting => None,
            LinkState::Connected => Some(true),
            LinkState::Waiting { .. } | LinkState::Stopped => Some(false),
        }
    }
}

/// Everything one link needs.
#[derive(Clone)]
pub struct LinkOptions {
    /// The server's own address, not a load balancer's.
    pub server: ServerAddr,
    /// Reaches the server. A renewed identity closes the session once it has no connections, and opens the next with it.
    pub connect: Arc<dyn Connect>,
    /// Reaches local addresses.
    pub dial: Arc<dyn Dial>,
    /// What the server may reach.
    pub allow: Allow,
    /// Told of each change.
    pub state: watch::Sender<LinkState>,
    /// Told of each sign of life.
    pub proof: Arc<Proof>,
    /// `true`, or no sender left: close and return.
    pub stop: watch::Receiver<bool>,
    /// Where local dials and copies run; the socket's loop runs where [`run`] is polled.
    pub local: runtime::Handle,
    /// Pings and limits.
    pub timing: Timing,
    /// A random number from 0 to 1 for each wait: [`crate::backoff::jitter`].
    pub jitter: fn() -> f64,
}

/// Keeps one link up until told to stop.
pub async fn run(opts: LinkOptions) {
    let mut stop = opts.stop.clone();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30));
    let mut last = String::new();
    loop {
        opts.state.send_replace(LinkState::Connecting);
        let started = Instant::now();
        let attempt = attempt(&opts).instrument(tracing::info_span!("link", server = %opts.server));
        let ended = tokio::select! {
            // Has its own watch on `stop` once the session is up, to close it in order.
            result = attempt => result,
            () = stopped_before_connect(&opts) => Ok(Ended::Stopped),
        };
        if is_stopped(&stop) {
            break;
        }
        let error = match ended {
            Ok(Ended::Stopped) => break,
            Ok(Ended::Retired) => {
                tracing::info!(server = %opts.server, "tunnel link reopens with the renewed identity");
                continue;
            }
            Err(error) => error,
        };
        let retry_in = backoff.next(started.elapsed(), (opts.jitter)());
        let error = chain(&error);
        // A server that stays away is worth one line, not one every 10 s.
        if error == last {
            tracing::debug!(server = %opts.server, error, retry_in = ?retry_in, "tunnel link still down");
        } else {
            tracing::warn!(server = %opts.server, error, retry_in = ?retry_in, "tunnel link down");
        }
        last.clone_from(&error);
        opts.state.send_replace(LinkState::Waiting { error, retry_in });
        tokio::select! {
            () = sleep(retry_in) => {}
            () = stopped(&mut stop) => break,
        }
    }
    opts.state.send_replace(LinkState::Stopped);
}

fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Resolves when told to stop while no session is up; a session closes by itself.
async fn stopped_before_connect(opts: &LinkOptions) {
    let mut stop = opts.stop.clone();
    stopped(&mut stop).await;
    if *opts.state.borrow() == LinkState::Connected {
        std::future::pending::<()>().await;
    }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

async fn attempt(opts: &LinkOptions) -> Result<Ended> {
    let late = || Error::Unreachable { server: opts.server.clone(), source: io::Error::from(io::ErrorKind::TimedOut) };
    let retire = opts.connect.renewed();
    let moved = Arc::new(Moved::default());
    let socket = timeout(CONNECT_LIMIT, connect(&opts.server, &*opts.connect, &moved)).await.map_err(|_| late())??;
    tracing::info!("tunnel link up");
    opts.proof.given(now());
    // Requests only come to the server's end.
    let (_, requests) = mpsc::channel(1);
    let driver = Driver {
        session: session(Role::Client, opts.timing),
        timing: opts.timing,
        dial: Some((opts.allow.clone(), opts.dial.clone())),
        local: opts.local.clone(),
        requests,
        stop: opts.stop.clone(),
        retire,
        proof: opts.proof.clone(),
        moved,
    };
    opts.state.send_replace(LinkState::Connected);
    driver.run(socket).await
}

/// One WebSocket to `server`, with the node's identity and no `Authorization`: a token would win over the certificate
/// and give 403 (k3s-agent.md 4.2).
async fn connect(server: &ServerAddr, connect: &dyn Connect, moved: &Arc<Moved>) -> Result<WebSocketStream<Moving<BoxStream>>> {
    let stream = Moving::new(connect.connect(server).await?, moved.clone());
    let uri = format!("wss://{server}{CONNECT_PATH}");
    match client_async_with_config(uri, stream, Some(web_socket_config())).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let code = response.status().as_u16();
            let message = response.body().as_deref().map_or_else(|| "tunnel refused".to_owned(), status::message);
            Err(Error::Refused { server: server.clone(), path: CONNECT_PATH.to_owned(), code, message, retry_after: None })
        }
        Err(WsError::Io(error)) => Err(tls::connect_error(server, error)),
        Err(other) => Err(Error::Answer { server: server.clone(), path: CONNECT_PATH.to_owned(), reason: other.to_string() }),
    }
}

/// TCP and TLS for HTTP/1.1 whatever ALPN list `config` has for other uses.
pub(crate) async fn tls_connect(server: &ServerAddr, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    tls_over(server, config, |tcp| tcp).await
}

async fn tls_over<S: ByteStream>(
    server: &ServerAddr,
    mut config: Arc<ClientConfig>,
    wrap: impl FnOnce(TcpStream) -> S,
) -> Result<TlsStream<S>> {
    if config.alpn_protocols != [b"http/1.1".to_vec()] {
        Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    let name = tls::server_name(server)?;
    let unreachable = |source| Error::Unreachable { server: server.clone(), source };
    let tcp = dial::connect(server).await.map_err(unreachable)?;
    let stream = TlsConnector::from(config).connect_with(name, wrap(tcp), |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    stream.await.map_err(|e| tls::connect_error(server, e))
}

/// Everything the links to all servers share.
#[derive(Clone)]
pub struct LinksOptions {
    /// Reaches the servers.
    pub connect: Arc<dyn Connect>,
    /// Reaches local addresses.
    pub dial: Arc<dyn Dial>,
    /// What a server may reach.
    pub allow: Allow,
    /// State of every link, by server.
    pub states: watch::Sender<BTreeMap<ServerAddr, LinkState>>,
    /// The last sign of life of every server.
    pub proofs: watch::Sender<BTreeMap<ServerAddr, Arc<Proof>>>,
    /// `true`, or no sender left: close all and return.
    pub stop: watch::Receiver<bool>,
    /// Where local dials and copies run.
    pub local: runtime::Handle,
    /// Pings and limits.
    pub timing: Timing,
}

/// Keeps one link per server of a list that changes: the first list at once, later ones after they have settled,
/// an empty one never.
pub async fn run_links(mut servers: watch::Receiver<Vec<ServerAddr>>, opts: LinksOptions) {
    let mut stop = opts.stop.clone();
    let mut running: BTreeMap<ServerAddr, watch::Sender<bool>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut settle = Duration::ZERO;
    loop {
        // Waits for the list to be still; each change starts the wait anew.
        tokio::select! {
            () = sleep(settle) => {}
            changed = servers.changed(), if !settle.is_zero() => if changed.is_ok() {
                // An error means the list is final: nothing more to wait for.
                continue;
            },
            () = stopped(&mut stop) => break,
        }
        let wanted: BTreeSet<ServerAddr> = servers.borrow_and_update().iter().cloned().collect();
        if !wanted.is_empty() {
            settle = SETTLE;
            apply(&wanted, &mut running, &mut tasks, &opts);
        }
        loop {
            tokio::select! {
                changed = servers.changed() => match changed {
                    Ok(()) => break,
                    // The list is final; the links go on.
                    Err(_) => {
                        stopped(&mut stop).await;
                        break;
                    }
                },
                Some(_) = tasks.join_next() => {}
                () = stopped(&mut stop) => break,
            }
        }
        if is_stopped(&stop) {
            break;
        }
    }
    drop(running);
    while tasks.join_next().await.is_some() {}
}

fn apply(
    wanted: &BTreeSet<ServerAddr>,
    running: &mut BTreeMap<ServerAddr, watch::Sender<bool>>,
    tasks: &mut JoinSet<()>,
    opts: &LinksOptions,
) {
    // Dropping the sender stops the link.
    running.retain(|server, _| wanted.contains(server));
    for server in wanted {
        if running.contains_key(server) {
            continue;
        }
        let (stop, stopped) = watch::channel(false);
        running.insert(server.clone(), stop);
        tasks.spawn(one_of_many(server.clone(), stopped, opts.clone()));
    }
}

/// Runs one link and copies its state into the shared map, from which it vanishes at the end.
async fn one_of_many(server: ServerAddr, stop: watch::Receiver<bool>, opts: LinksOptions) {
    let (state, mut changes) = watch::channel(LinkState::Connecting);
    let proof = Arc::new(Proof::default());
    opts.proofs.send_modify(|all| {
        all.insert(server.clone(), proof.clone());
    });
    let link = run(LinkOptions {
        server: server.clone(),
        connect: opts.connect,
        proof,
        dial: opts.dial,
        allow: opts.allow,
        state,
        stop,
        local: opts.local,
        timing: opts.timing,
        jitter,
    });
    let publish = async {
        loop {
            let state = changes.borrow_and_update().clone();
            opts.states.send_modify(|all| {
                all.insert(server.clone(), state);
            });
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = link => {}
        () = publish => {}
    }
    opts.states.send_modify(|all| {
        all.remove(&server);
    });
    opts.proofs.send_modify(|all| {
        all.remove(&server);
    });
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
