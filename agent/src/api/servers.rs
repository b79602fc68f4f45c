//! Which server a connection goes to, and how it is dialled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tunnel::ServerAddr;

use super::error::Error;

/// Sticks to one server and moves on when it fails. The list and the identity may change at any time.
pub struct Servers {
    list: watch::Receiver<Vec<ServerAddr>>,
    tls: watch::Receiver<Arc<ClientConfig>>,
    at: AtomicUsize,
}

impl Servers {
    /// `tls` must offer `h2` by ALPN.
    pub fn new(list: watch::Receiver<Vec<ServerAddr>>, tls: watch::Receiver<Arc<ClientConfig>>) -> Servers {
        Servers { list, tls, at: AtomicUsize::new(0) }
    }

    pub(super) fn choose(&self) -> Result<(ServerAddr, Arc<ClientConfig>), Error> {
        let list = self.list.borrow();
        if list.is_empty() {
            return Err(Error::Transport { server: "none".to_owned(), cause: "no server is known".to_owned() });
        }
        let at = self.at.load(Ordering::Relaxed) % list.len();
        Ok((list[at].clone(), self.tls.borrow().clone()))
    }

    pub(super) fn failed(&self, _server: &ServerAddr) {
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn worked(&self, _server: &ServerAddr) {}

    pub(super) fn describe(&self) -> String {
        self.choose().map_or_else(|_| "none".to_owned(), |(server, _)| server.to_string())
    }

    /// TCP, then TLS with HTTP/2 agreed. The error is text for [`Error::Transport`].
    pub(super) async fn dial(&self, server: &ServerAddr, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = ServerName::try_from(server.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| error.to_string())?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the server does not speak HTTP/2".to_owned());
        }
        Ok(stream)
    }
}
