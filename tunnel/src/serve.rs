//! The server's end of the tunnel: one session per connected node, through which connections are opened. Which
//! session of a node is used when there are several (K3s: the oldest) is the caller's decision.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role as WebSocketRole;

use crate::driver::{Driver, OpenRequest, session, web_socket_config};
use crate::session::{Role, Timing};

/// Bytes in flight between a user of a connection and the tunnel, each way.
const PIPE: usize = 64 * 1024;

/// The value of `Sec-WebSocket-Accept` for a request's `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// A running session; a cheap handle. Dropping the last one ends the session.
#[derive(Debug, Clone)]
pub struct ServerSession {
    requests: mpsc::Sender<OpenRequest>,
    ended: watch::Receiver<bool>,
    stop: Arc<watch::Sender<bool>>,
}

/// One connection to an address behind the node.
#[derive(Debug)]
pub struct TunnelStream(DuplexStream);

/// Serves the server's end over `stream`, which is what remains of the HTTP connection after the answer 101.
///
/// The session runs in tasks of the current tokio runtime and ends when the node closes it, is silent for
/// `timing.dead_after`, breaks the protocol, or when every handle is dropped.
pub fn serve<S>(stream: S, timing: Timing) -> ServerSession
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (requests, receiver) = mpsc::channel(16);
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let driver = Driver {
        session: session(Role::Server, timing),
        timing,
        dial: None,
        local: runtime::Handle::current(),
        requests: receiver,
        stop: stopped,
        retire: Box::pin(std::future::pending()),
        proof: Arc::default(),
        moved: Arc::default(),
    };
    tokio::spawn(async move {
        let socket = WebSocketStream::from_raw_socket(stream, WebSocketRole::Server, Some(web_socket_config())).await;
        if let Err(error) = driver.run(socket).await {
            tracing::debug!(%error, "tunnel session ended");
        }
        let _ = end.send(true);
    });
    ServerSession { requests, ended, stop: Arc::new(stop) }
}

impl ServerSession {
    /// Opens a connection to `target`, e.g. `tcp/127.0.0.1:10250`, as seen from the node.
    ///
    /// The protocol has no acknowledgement: an address the node refuses or cannot reach shows as end of stream.
    /// Errors when the session has ended or has too many connections.
    pub async fn open(&self, target: &str) -> io::Result<TunnelStream> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "tunnel target is not network/address");
        let (network, address) = target.split_once('/').ok_or_else(invalid)?;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let (done, opened) = oneshot::channel();
        let request = OpenRequest { network: network.to_owned(), address: address.to_owned(), pipe: theirs, done };
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "tunnel session has ended");
        self.requests.send(request).await.map_err(|_| gone())?;
        match opened.await {
            Ok(true) => Ok(TunnelStream(ours)),
            Ok(false) => Err(io::Error::other("tunnel session has too many connections")),
            Err(_) => Err(gone()),
        }
    }

    /// Whether the session has ended.
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow() || self.requests.is_closed()
    }

    /// Waits until the session has ended.
    pub async fn ended(&self) {
        // An error means the task is gone, which is an end too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Closes the session.
    pub fn close(&self) {
        let _ = self.stop.send(true);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
