//! Sessions of the nodes' tunnels, and connections through them.
//!
//! A session lives as long as its WebSocket. K3s sends new connections to the oldest session of a node, and so does
//! this server: after a network cut the agent closes its old socket, which is what lets the new one take over.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::{debug, info};
use tunnel::serve::{ServerSession, TunnelStream, serve};
use tunnel::session::Timing;

/// Why a connection through a tunnel did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has no tunnel to this server now.
    #[error("no tunnel of node {node}")]
    NoSession {
        /// The node's name.
        node: String,
    },
    /// The session ended while connecting.
    #[error("tunnel of node {node}")]
    Broken {
        /// The node's name.
        node: String,
        #[source]
        source: io::Error,
    },
}

/// All sessions, by node, oldest first.
#[derive(Default)]
pub struct Sessions {
    next: AtomicU64,
    by_node: Mutex<BTreeMap<String, Vec<Entry>>>,
}

struct Entry {
    id: u64,
    session: ServerSession,
}

impl Sessions {
    /// Serves the tunnel that `upgrade` becomes, under `node`'s name, until it ends.
    pub fn adopt(self: &Arc<Self>, node: String, upgrade: OnUpgrade) {
        let this = self.clone();
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => {
                    debug!(node, %error, "tunnel upgrade ended early");
                    return;
                }
            };
            let id = this.next.fetch_add(1, Ordering::Relaxed);
            let session = serve(TokioIo::new(upgraded), Timing::server());
            this.lock().entry(node.clone()).or_default().push(Entry { id, session: session.clone() });
            info!(node, session = id, "tunnel connected");
            session.ended().await;
            this.remove(&node, id);
            info!(node, session = id, "tunnel disconnected");
        });
    }

    /// A connection to `address` (`127.0.0.1:10250`) as `node` dials it. There is no acknowledgement: a refused
    /// connection shows as end of file.
    pub async fn open(&self, node: &str, address: &str) -> Result<TunnelStream, Error> {
        let session = self
            .lock()
            .get(node)
            .and_then(|entries| entries.iter().find(|entry| !entry.session.is_ended()))
            .map(|entry| entry.session.clone());
        let Some(session) = session else {
            return Err(Error::NoSession { node: node.to_owned() });
        };
        session.open(&format!("tcp/{address}")).await.map_err(|source| Error::Broken { node: node.to_owned(), source })
    }

    fn remove(&self, node: &str, id: u64) {
        let mut sessions = self.lock();
        if let Some(entries) = sessions.get_mut(node) {
            entries.retain(|entry| entry.id != id);
            if entries.is_empty() {
                sessions.remove(node);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Entry>>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
