//! The table of connections of one tunnel session: message, local event or time in, actions out. No IO, no clock,
//! so that every rule of k3s-agent.md 4.4 and 4.5 is a line in a table test. Driven by the private `driver`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::liveness::Liveness;
pub use crate::liveness::{PING_WAIT, Timing};
use crate::message::{ConnId, MAX_DATA, Message};

/// Which end of the tunnel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The node: pings, is asked to connect, tells its connections every minute.
    Client,
    /// The server: opens connections.
    Server,
}

/// The text of an orderly end.
pub const EOF: &str = "EOF";

/// The connection that is asked about to see whether the peer's session lives. Servers count from 2 upwards.
pub const NOBODY: ConnId = ConnId(-1);

/// How much may wait per connection, in bytes, and how many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// More than this unread: ask the peer to pause. K3s: 2 MiB.
    pub pause_above: usize,
    /// Less than this unread: let it go on. K3s: 256 KiB.
    pub resume_below: usize,
    /// More than this unread ends the connection. A real server was seen to send 2.6 MB more after a Pause; its send
    /// buffer and our receive buffer may hold several MB.
    pub capacity: usize,
    /// Connections in one session.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { pause_above: 2 << 20, resume_below: 256 << 10, capacity: 16 << 20, connections: 1024 }
    }
}

/// A connection the server has just opened may be missing from a list its client sent before it heard of it.
const SYNC_GRACE: Duration = Duration::from_secs(10);

/// What the driver has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this message to the peer.
    Send(Message),
    /// Write a WebSocket ping with empty payload.
    Ping,
    /// Ask for a sign of life: Data without content for [`NOBODY`].
    Probe,
    /// Dial `network`/`address` for this connection; data for it may follow before that is done.
    Open(ConnId, String, String),
    /// Hand bytes to the local side, which reports them with [`Session::drained`] once written.
    Deliver(ConnId, Bytes),
    /// Stop (`true`) or go on (`false`) reading the local side.
    Hold(ConnId, bool),
    /// The connection is over: let the local side drain what was delivered, then close it.
    Finish(ConnId, String),
}

#[derive(Debug)]
struct Conn {
    opened: Instant,
    /// Delivered and not yet drained, bytes.
    unread: usize,
    /// We asked the peer to pause. Apart from the next flag, unlike the reference, whose single flag can stall.
    pausing_peer: bool,
    /// The peer asked us to pause.
    paused_by_peer: bool,
}

/// One session. All calls append what has to be done to `out`.
#[derive(Debug)]
pub struct Session {
    role: Role,
    timing: Timing,
    limits: Limits,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: i64,
    /// The last frame of any kind.
    heard: Instant,
    liveness: Liveness,
    sync_due: Instant,
    /// The last SyncConnections was empty and there was no connection since.
    told_empty: bool,
}

impl Session {
    /// A session that starts now; there is no greeting.
    pub fn new(role: Role, timing: Timing, limits: Limits, now: Instant) -> Session {
        Session {
            role,
            timing,
            limits,
            conns: BTreeMap::new(),
            next_conn: 2,
            heard: now,
            liveness: Liveness::new(timing, now),
            sync_due: now + timing.sync_every,
            told_empty: false,
        }
    }

    /// A binary WebSocket message arrived. An error ends the session.
    pub fn receive(&mut self, now: Instant, bytes: Bytes, out: &mut Vec<Action>) -> Result<()> {
        let (_, message) = Message::decode(bytes).map_err(|e| Error::Protocol { reason: e.to_string() })?;
        self.heard = now;
        self.liveness.proven(now);
        match message {
            Message::Connect(conn, network, address) => self.connect(now, conn, network, address, out)?,
            Message::Data(conn, data) => self.data(conn, data, out),
            Message::Error(conn, reason) => {
                if self.conns.remove(&conn).is_some() {
                    // The reference echoes; the peer ignores an Error for a connection it no longer knows.
                    out.push(Action::Finish(conn, reason.clone()));
                    out.push(Action::Send(Message::Error(conn, reason)));
                }
            }
            Message::Pause(conn) => self.hold(conn, true, out),
            Message::Resume(conn) => self.hold(conn, false, out),
            Message::SyncConnections(known) => {
                if self.role == Role::Server {
                    self.sync(now, &known, out);
                }
            }
            Message::Other(_) => {}
        }
        Ok(())
    }

    /// A frame that is no message arrived: a ping tells the server that its node lives, a pong tells the node nothing.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// The socket took bytes it had refused before.
    pub fn moved(&mut self, at: Instant) {
        self.liveness.moved(at);
    }

    fn connect(&mut self, now: Instant, conn: ConnId, network: String, address: String, out: &mut Vec<Action>) -> Result<()> {
        if self.role == Role::Server {
            return Err(Error::Protocol { reason: "connect from the client".to_owned() });
        }
        if self.conns.contains_key(&conn) {
            return Err(Error::Protocol { reason: format!("connection {} opened twice", conn.0) });
        }
        if self.conns.len() >= self.limits.connections {
            out.push(Action::Send(Message::Error(conn, "too many connections".to_owned())));
            return Ok(());
        }
        self.register(now, conn);
        out.push(Action::Open(conn, network, address));
        Ok(())
    }

    fn register(&mut self, now: Instant, conn: ConnId) {
        self.told_empty = false;
        self.conns.insert(conn, Conn { opened: now, unread: 0, pausing_peer: false, paused_by_peer: false });
    }

    fn data(&mut self, conn: ConnId, data: Bytes, out: &mut Vec<Action>) {
        let Some(state) = self.conns.get_mut(&conn) else {
            out.push(Action::Send(Message::Error(conn, format!("connection not found {}", conn.0))));
            return;
        };
        state.unread += data.len();
        if state.unread > self.limits.capacity {
            self.conns.remove(&conn);
            let reason = "receive buffer full".to_owned();
            out.push(Action::Finish(conn, reason.clone()));
            out.push(Action::Send(Message::Error(conn, reason)));
            return;
        }
        if !data.is_empty() {
            out.push(Action::Deliver(conn, data));
        }
        if state.unread > self.limits.pause_above && !state.pausing_peer {
            state.pausing_peer = true;
            out.push(Action::Send(Message::Pause(conn)));
        }
    }

    fn hold(&mut self, conn: ConnId, on: bool, out: &mut Vec<Action>) {
        if let Some(state) = self.conns.get_mut(&conn) {
            if state.paused_by_peer != on {
                state.paused_by_peer = on;
                out.push(Action::Hold(conn, on));
            }
        }
    }

    /// Closes, without sending Error, every connection the client does not list.
    fn sync(&mut self, now: Instant, known: &[ConnId], out: &mut Vec<Action>) {
        let settled = |c: &Conn| now.saturating_duration_since(c.opened) >= SYNC_GRACE;
        let gone: Vec<ConnId> = self.conns.iter().filter(|(id, c)| !known.contains(id) && settled(c)).map(|(id, _)| *id).collect();
        for conn in gone {
            self.conns.remove(&conn);
            out.push(Action::Finish(conn, EOF.to_owned()));
        }
    }

    /// Opens a connection to `network`/`address` behind the peer; only a server does. There is no answer: data may
    /// follow at once.
    pub fn open(&mut self, now: Instant, network: &str, address: &str, out: &mut Vec<Action>) -> Option<ConnId> {
        if self.role == Role::Client || self.conns.len() >= self.limits.connections {
            return None;
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.register(now, conn);
        out.push(Action::Send(Message::Connect(conn, network.to_owned(), address.to_owned())));
        Some(conn)
    }

    /// The local side produced bytes. Dropped when the connection is over: no Data follows an Error.
    pub fn local_data(&mut self, conn: ConnId, mut data: Bytes, out: &mut Vec<Action>) {
        if !self.conns.contains_key(&conn) {
            return;
        }
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_DATA));
            out.push(Action::Send(Message::Data(conn, part)));
        }
    }

    /// The local side ended or could not be dialled. There is no half-close: the connection is over.
    pub fn local_end(&mut self, conn: ConnId, reason: &str, out: &mut Vec<Action>) {
        if self.conns.remove(&conn).is_some() {
            out.push(Action::Finish(conn, reason.to_owned()));
            out.push(Action::Send(Message::Error(conn, reason.to_owned())));
        }
    }

    /// The local side took `bytes` of what was delivered.
    pub fn drained(&mut self, conn: ConnId, bytes: usize, out: &mut Vec<Action>) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.unread = state.unread.saturating_sub(bytes);
            if state.pausing_peer && state.unread < self.limits.resume_below {
                state.pausing_peer = false;
                out.push(Action::Send(Message::Resume(conn)));
            }
        }
    }

    /// When [`Session::tick`] has something to do at the latest.
    pub fn deadline(&self) -> Instant {
        match self.role {
            Role::Client => self.liveness.deadline().min(self.sync_due),
            Role::Server => self.heard + self.timing.dead_after,
        }
    }

    /// Time passed. An error ends the session: the peer was silent for too long.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Action>) -> Result<()> {
        if self.role == Role::Server {
            let after = now.saturating_duration_since(self.heard);
            return if after >= self.timing.dead_after { Err(Error::Silent { after }) } else { Ok(()) };
        }
        let due = self.liveness.tick(now)?;
        if due.ping {
            out.push(Action::Ping);
        }
        if due.probe {
            out.push(Action::Probe);
        }
        if now >= self.sync_due {
            // Once the server knows that there are none, saying so again tells it nothing.
            let connections = self.connections();
            if !(connections.is_empty() && self.told_empty) {
                self.told_empty = connections.is_empty();
                out.push(Action::Send(Message::SyncConnections(connections)));
            }
            self.sync_due = now + self.timing.sync_every;
        }
        Ok(())
    }

    /// Whether there is no connection.
    pub fn is_idle(&self) -> bool {
        self.conns.is_empty()
    }

    /// All connections, ascending, those being dialled included.
    pub fn connections(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
