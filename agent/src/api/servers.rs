//! Which server a connection goes to, and how it is dialled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tunnel::ServerAddr;
use tunnel::balancer::Balancer;

/// The balancer of one client. It sticks to a server, leaves it when it fails, and comes back to the best one. The list
/// and the identity may change at any time.
pub struct Servers {
    list: Mutex<watch::Receiver<Vec<ServerAddr>>>,
    tls: watch::Receiver<Arc<ClientConfig>>,
    balancer: Mutex<Balancer>,
}

impl Servers {
    /// `tls` must offer `h2` by ALPN. `configured` is the last resort when none of the list answers.
    pub fn new(configured: &ServerAddr, list: watch::Receiver<Vec<ServerAddr>>, tls: watch::Receiver<Arc<ClientConfig>>) -> Servers {
        let balancer = Balancer::new(configured.clone(), &list.borrow(), Instant::now());
        Servers { list: Mutex::new(list), tls, balancer: Mutex::new(balancer) }
    }

    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Servers in the order to try, and the identity to use.
    pub(super) fn choose(&self) -> (Vec<ServerAddr>, Arc<ClientConfig>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut balancer = self.balancer();
        if list.has_changed().unwrap_or(false) {
            balancer.set_servers(&list.borrow_and_update(), Instant::now());
        }
        (balancer.choose(), self.tls.borrow().clone())
    }

    pub(super) fn failed(&self, server: &ServerAddr) {
        self.balancer().dial_failed(server, Instant::now());
    }

    pub(super) fn worked(&self, server: &ServerAddr) {
        self.balancer().dial_ok(server, Instant::now());
    }

    pub(super) fn closed(&self, server: &ServerAddr) {
        self.balancer().closed(server);
    }

    /// The tunnel to this server is up or down. Returns servers whose connections have to be closed.
    pub(super) fn health(&self, server: &ServerAddr, ok: bool) -> Vec<ServerAddr> {
        self.balancer().health(server, ok, Instant::now())
    }

    pub(super) fn describe(&self) -> String {
        self.choose().0.first().map_or_else(|| "no server".to_owned(), ServerAddr::to_string)
    }

    /// TCP, then TLS with HTTP/2 agreed. The error is text for [`super::Error::Transport`].
    pub(super) async fn dial(&self, server: &ServerAddr, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = tunnel::tls::server_name(server).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| error.to_string())?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the server does not speak HTTP/2".to_owned());
        }
        Ok(stream)
    }
}
