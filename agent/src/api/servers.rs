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
use tunnel::traffic::{Counted, Traffic};

/// The balancer of one client. It sticks to a server, leaves it when it fails, and comes back to the best one. The list
/// and the identity may change at any time.
pub struct Servers {
    list: Mutex<watch::Receiver<Vec<ServerAddr>>>,
    tls: watch::Receiver<Arc<ClientConfig>>,
    balancer: Mutex<Balancer>,
    traffic: Arc<Traffic>,
}

impl Servers {
    /// `tls` must offer `h2` by ALPN. `configured` is the last resort when none of the list answers.
    pub fn new(configured: &ServerAddr, list: watch::Receiver<Vec<ServerAddr>>, tls: watch::Receiver<Arc<ClientConfig>>) -> Servers {
        let balancer = Balancer::new(configured.clone(), &list.borrow(), Instant::now());
        Servers { list: Mutex::new(list), tls, balancer: Mutex::new(balancer), traffic: Arc::default() }
    }

    /// Counts the bytes of all connections into `traffic`.
    pub fn counted(self, traffic: Arc<Traffic>) -> Servers {
        Servers { traffic, ..self }
    }

    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Servers in the order to try, and the identity to use. An empty list means that none may be asked yet, the configured
    /// one neither.
    pub(super) fn choose(&self) -> (Vec<ServerAddr>, Arc<ClientConfig>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut balancer = self.balancer();
        if list.has_changed().unwrap_or(false) {
            balancer.set_servers(&list.borrow_and_update(), Instant::now());
        }
        let candidates = if list.borrow().is_empty() { Vec::new() } else { balancer.choose() };
        (candidates, self.tls.borrow().clone())
    }

    /// Whether this is still the identity to use.
    pub(super) fn is_current(&self, tls: &Arc<ClientConfig>) -> bool {
        Arc::ptr_eq(&self.tls.borrow(), tls)
    }

    pub(super) fn closed(&self, server: &ServerAddr) {
        self.balancer().closed(server);
    }

    /// The tunnel to this server is up or down. Returns servers whose connections have to be closed.
    pub(super) fn health(&self, server: &ServerAddr, ok: bool) -> Vec<ServerAddr> {
        let mut balancer = self.balancer();
        let mut close = balancer.health(server, ok, Instant::now());
        if ok {
            // A state is left for the next one with each look; K3s looks every second, here a change is told once.
            close.extend(balancer.health(server, ok, Instant::now()));
        }
        close
    }

    /// Takes over a list that changed. Returns servers that left, whose connections have to be closed.
    pub(super) fn refresh(&self) -> Vec<ServerAddr> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.has_changed().unwrap_or(false) {
            return self.balancer().set_servers(&list.borrow_and_update(), Instant::now());
        }
        Vec::new()
    }

    /// For one dial: a dial that is given up in between counts as failed.
    pub(super) fn attempt<'a>(&'a self, server: &'a ServerAddr) -> Attempt<'a> {
        Attempt { servers: self, server, worked: false }
    }

    pub(super) fn describe(&self) -> String {
        self.choose().0.first().map_or_else(|| "no server".to_owned(), ServerAddr::to_string)
    }

    /// TCP, then TLS with HTTP/2 agreed. The error is text for [`super::Error::Transport`].
    pub(super) async fn dial(&self, server: &ServerAddr, tls: Arc<ClientConfig>) -> Result<TlsStream<Counted<TcpStream>>, String> {
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = tunnel::tls::server_name(server).map_err(|error| error.to_string())?;
        let stream =
            TlsConnector::from(tls).connect(name, Counted::new(tcp, Arc::clone(&self.traffic))).await.map_err(|error| error.to_string())?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the server does not speak HTTP/2".to_owned());
        }
        Ok(stream)
    }
}

/// One dial. Dropped without [`Attempt::worked`], the server counts as failed: else a caller whose patience ends before
/// the dial's would try the same dead server for ever.
pub(super) struct Attempt<'a> {
    servers: &'a Servers,
    server: &'a ServerAddr,
    worked: bool,
}

impl Attempt<'_> {
    pub(super) fn worked(mut self) {
        self.worked = true;
        self.servers.balancer().dial_ok(self.server, Instant::now());
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.worked {
            self.servers.balancer().dial_failed(self.server, Instant::now());
        }
    }
}
