//! Who comes in: the tunnel by a way of its own, everybody else by the kubelet port.
//!
//! What servers ask through the tunnel takes no socket and none of the port's slots, so neither a full table of tracked connections
//! nor a pod that holds as many connections as it gets keeps `kubectl logs` and `exec` out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tunnel::link::{BoxFuture, BoxStream, Dial, TcpDial};

use super::serve::stopped;
use super::{Inner, serve_tls};

/// Connections at a time by the port, and as many through the tunnel: each exec, log follow or forward holds one.
const CONNECTIONS: usize = 256;
/// Of these from one address other than the node's own.
const FROM_ONE: usize = 64;
/// Connections of the tunnel that wait to be taken in.
const WAITING: usize = 16;
/// Bytes on their way, each direction; room is taken only for what is there.
const BUFFER: usize = 32 * 1024;
/// After `accept` failed (descriptors exhausted), so that it does not spin.
const PAUSE: Duration = Duration::from_millis(200);

/// The tunnel's way in. Every other address is dialled as asked.
#[derive(Debug, Clone)]
pub struct Door {
    /// Port of the kubelet server.
    port: u16,
    guests: mpsc::Sender<DuplexStream>,
}

impl Door {
    /// For the server at `port`, with where the guests come out.
    pub(super) fn new(port: u16) -> (Door, mpsc::Receiver<DuplexStream>) {
        let (guests, waiting) = mpsc::channel(WAITING);
        (Door { port, guests }, waiting)
    }
}

impl Dial for Door {
    fn dial(&self, address: &str) -> BoxFuture<io::Result<BoxStream>> {
        match address.parse::<SocketAddr>() {
            Ok(asked) if asked.ip().is_loopback() && asked.port() == self.port => {
                let guests = self.guests.clone();
                Box::pin(async move {
                    let (ours, theirs) = tokio::io::duplex(BUFFER);
                    guests.send(theirs).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                    Ok(Box::new(ours) as BoxStream)
                })
            }
            Ok(_) | Err(_) => TcpDial.dial(address),
        }
    }
}

/// Takes in both kinds until `stop`.
pub(super) async fn accept(
    listener: TcpListener,
    mut guests: mpsc::Receiver<DuplexStream>,
    inner: Arc<Inner>,
    mut stop: watch::Receiver<bool>,
) {
    let (slots, guest_slots) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(CONNECTIONS)));
    let peers = Peers::default();
    loop {
        tokio::select! {
            // Both are cancel safe. The tunnel first: a port that fails or is pressed upon does not keep it waiting.
            biased;
            () = stopped(&mut stop) => return,
            Some(guest) = guests.recv() => match Arc::clone(&guest_slots).try_acquire_owned() {
                Ok(slot) => take_in(Box::new(guest), "tunnel".to_owned(), (slot, None), &inner, &stop),
                Err(_) => tracing::warn!(limit = CONNECTIONS, "connection through the tunnel refused, too many at once"),
            },
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let Some((slot, place)) = Arc::clone(&slots).try_acquire_owned().ok().zip(peers.enter(peer.ip())) else {
                        tracing::debug!(%peer, limit = CONNECTIONS, from_one = FROM_ONE, "kubelet connection refused, too many at once");
                        continue;
                    };
                    if socket.set_nodelay(true).is_ok() {
                        take_in(Box::new(socket), peer.to_string(), (slot, Some(place)), &inner, &stop);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Serves it; its places are given back when it ends. One kind of stream for both, so that TLS and HTTP are in the program once.
fn take_in(
    stream: BoxStream,
    peer: String,
    places: (OwnedSemaphorePermit, Option<Place>),
    inner: &Arc<Inner>,
    stop: &watch::Receiver<bool>,
) {
    let (inner, stop) = (Arc::clone(inner), stop.clone());
    crate::task::spawn(async move {
        if let Err(error) = serve_tls(stream, inner, stop).await {
            tracing::debug!(peer, %error, "kubelet connection not established");
        }
        drop(places);
    });
}

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, counted until this is dropped.
#[derive(Debug)]
struct Place {
    peers: Peers,
    ip: IpAddr,
}

impl Peers {
    /// A place for one more; None where the address has as many as it may.
    fn enter(&self, ip: IpAddr) -> Option<Place> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = count.entry(ip).or_default();
        if *has >= FROM_ONE && !ip.is_loopback() {
            return None;
        }
        *has += 1;
        Some(Place { peers: self.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(has) = count.get_mut(&self.ip) {
            *has -= 1;
            if *has == 0 {
                count.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kubelet_s_port_on_loopback_is_the_door_and_the_rest_is_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let elsewhere = listener.local_addr().unwrap();
        let (door, mut guests) = Door::new(10250);
        for address in ["127.0.0.1:10250", "[::1]:10250"] {
            let mut ours = door.dial(address).await.unwrap();
            let mut theirs = guests.recv().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut ours, b"hello").await.unwrap();
            let mut heard = [0; 5];
            tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut heard).await.unwrap();
            assert_eq!(&heard, b"hello");
        }
        let (dialled, accepted) = tokio::join!(door.dial(&elsewhere.to_string()), listener.accept());
        assert!(dialled.is_ok() && accepted.is_ok() && guests.try_recv().is_err());
        assert!(door.dial("nonsense").await.is_err());
        drop(guests);
        let refused = door.dial("127.0.0.1:10250").await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "the server is gone");
    }

    #[test]
    fn one_address_does_not_take_all_places_and_gets_them_back() {
        let peers = Peers::default();
        let pod = IpAddr::from([10, 42, 0, 9]);
        let mut held: Vec<_> = (0..FROM_ONE).map(|_| peers.enter(pod).unwrap()).collect();
        assert!(peers.enter(pod).is_none());
        assert!(peers.enter(IpAddr::from([10, 42, 0, 10])).is_some());
        held.pop();
        assert!(peers.enter(pod).is_some());
        let own: Vec<_> = (0..=FROM_ONE).map(|_| peers.enter(IpAddr::from([127, 0, 0, 1]))).collect();
        assert!(own.iter().all(Option::is_some), "the node itself");
        drop((held, own));
        assert!(peers.0.lock().unwrap().is_empty());
    }
}
