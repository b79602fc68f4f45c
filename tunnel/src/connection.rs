//! One tunnelled connection's local side: a task that dials, copies both ways and ends. It talks to the session's
//! loop through queues only, so a slow pod never holds up a ping.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::message::ConnId;
use crate::session::EOF;

/// K3s' limit for a local dial.
const DIAL_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection the server has ended may go on draining into a local side that does not read.
const LINGER: Duration = Duration::from_secs(10);

/// Bytes read from the local side at once. A few of these wait ahead of a question about life, on whatever uplink.
const CHUNK: usize = 8 * 1024;

/// What the local side tells the session.
#[derive(Debug)]
pub(crate) enum Local {
    /// Bytes for the peer.
    Data(ConnId, Bytes),
    /// The end, with the text for the peer.
    End(ConnId, String),
}

/// The session's end of one connection. Dropping it lets the local side drain and close.
#[derive(Debug)]
pub(crate) struct Handle {
    inbound: mpsc::UnboundedSender<Bytes>,
    hold: watch::Sender<bool>,
}

impl Handle {
    /// Bytes for the local side. The session bounds how many wait.
    pub(crate) fn deliver(&self, data: Bytes) {
        // A local side that is gone has reported its end, which is on its way to the session.
        let _ = self.inbound.send(data);
    }

    /// Stop or go on reading the local side.
    pub(crate) fn hold(&self, on: bool) {
        let _ = self.hold.send(on);
    }
}

/// Where local sides report to; shared by all connections of a session.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    /// Bounded: this is the back pressure towards the local sides.
    pub(crate) local: mpsc::Sender<Local>,
    /// At most one entry per delivered message, so the session's limits bound it.
    pub(crate) drained: mpsc::UnboundedSender<(ConnId, usize)>,
}

/// The task's end of one connection.
#[derive(Debug)]
pub(crate) struct Port {
    conn: ConnId,
    inbound: mpsc::UnboundedReceiver<Bytes>,
    hold: watch::Receiver<bool>,
    reports: Reports,
}

/// Both ends of a new connection.
pub(crate) fn pair(conn: ConnId, reports: Reports) -> (Handle, Port) {
    let (inbound, receiver) = mpsc::unbounded_channel();
    let (hold, held) = watch::channel(false);
    (Handle { inbound, hold }, Port { conn, inbound: receiver, hold: held, reports })
}

impl Port {
    /// Dials, then copies until either side ends. Data that comes meanwhile waits in the queue.
    pub(crate) async fn dial_and_pump<S, F>(self, dial: F)
    where
        S: AsyncRead + AsyncWrite,
        F: Future<Output = io::Result<S>>,
    {
        let mut hold = self.hold.clone();
        let dialled = tokio::select! {
            dialled = timeout(DIAL_LIMIT, dial) => dialled,
            // The peer gave up: nobody waits for the dial any more.
            () = closed(&mut hold) => return,
        };
        match dialled {
            Ok(Ok(stream)) => self.copy(stream, Some(LINGER)).await,
            Ok(Err(error)) => self.end(error.to_string()).await,
            Err(_) => self.end("dial timed out".to_owned()).await,
        }
    }

    /// Copies until either side ends, for a local side that may take its time to read what came before the end: the
    /// user of a connection, who drops it when done.
    pub(crate) async fn pump_patiently<S: AsyncRead + AsyncWrite>(self, stream: S) {
        self.copy(stream, None).await;
    }

    async fn copy<S: AsyncRead + AsyncWrite>(mut self, stream: S, linger: Option<Duration>) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (conn, reports) = (self.conn, self.reports.clone());
        let mut held = self.hold.clone();
        let upwards = async {
            let mut buffer = BytesMut::new();
            loop {
                if held.wait_for(|held| !*held).await.is_err() {
                    // Closed by the session: what the local side still says goes nowhere.
                    std::future::pending::<()>().await;
                }
                buffer.reserve(CHUNK);
                match reader.read_buf(&mut buffer).await {
                    Ok(0) => return EOF.to_owned(),
                    Ok(_) => {
                        if reports.local.send(Local::Data(conn, buffer.split().freeze())).await.is_err() {
                            return EOF.to_owned();
                        }
                    }
                    Err(error) => return error.to_string(),
                }
            }
        };
        let downwards = async {
            let mut listening = true;
            while let Some(data) = self.inbound.recv().await {
                if listening {
                    // A local side that takes no more may have said things that are still on their way: `upwards` passes
                    // them on and then sees its end. Until then what comes for it is dropped.
                    listening = writer.write_all(&data).await.is_ok() && writer.flush().await.is_ok();
                }
                // Fails only when the session is gone, and then the queue ends too.
                let _ = reports.drained.send((conn, data.len()));
            }
            let _ = writer.shutdown().await;
            None
        };
        let mut hold = self.hold.clone();
        let lingered = async {
            closed(&mut hold).await;
            match linger {
                Some(linger) => tokio::time::sleep(linger).await,
                None => std::future::pending().await,
            }
        };
        // Whichever ends first ends the connection: there is no half-close in this protocol.
        let reason = tokio::select! {
            reason = upwards => Some(reason),
            reason = downwards => reason,
            () = lingered => None,
        };
        if let Some(reason) = reason {
            let _ = self.reports.local.send(Local::End(conn, reason)).await;
        }
    }

    async fn end(self, reason: String) {
        // Fails only when the session is gone.
        let _ = self.reports.local.send(Local::End(self.conn, reason)).await;
    }
}

/// Waits until the session has dropped its end.
async fn closed(hold: &mut watch::Receiver<bool>) {
    while hold.changed().await.is_ok() {}
}
