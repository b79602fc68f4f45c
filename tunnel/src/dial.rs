//! TCP to a server: all its addresses, the next one started when one fails or stays silent for a moment, so that
//! a dead IPv6 route costs 300 ms and not the whole limit.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::sleep;

use crate::addr::ServerAddr;

/// Head start of one address over the next; what Go and browsers use.
const STAGGER: Duration = Duration::from_millis(300);

/// Unsent and unacknowledged bytes the kernel may hold (it doubles this).
const SEND_BUFFER: u32 = 128 * 1024;

/// Unsent bytes of these: what we say next waits behind them, also a question about life. On a slow uplink a living link
/// would look dead behind more.
const UNSENT: u32 = 8 * 1024;

/// Unread bytes the kernel may hold (it doubles this): what a server still has under way for a connection when it is
/// told to pause has to fit into that connection's limit.
const RECEIVE_BUFFER: u32 = 256 * 1024;

/// Connects to a server; the name is looked up at each call. No limit on time of its own.
pub async fn connect(server: &ServerAddr) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host((server.host.as_str(), server.port)).await?.collect();
    connect_any(&alternate(found)).await
}

/// The families in turn, beginning with the one the resolver put first.
fn alternate(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addrs.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let mut mixed = Vec::new();
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        match (first.next(), second.next()) {
            (None, None) => return mixed,
            (a, b) => mixed.extend(a.into_iter().chain(b)),
        }
    }
}

async fn connect_any(addrs: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addrs.iter().copied();
    let mut running: FuturesUnordered<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>> = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(addr) = waiting.next() {
            running.push(Box::pin(one(addr)));
        } else if running.is_empty() {
            return Err(failure);
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

async fn one(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let stream = socket.connect(addr).await?;
    stream.set_nodelay(true)?;
    socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::listen;

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken() {
        let (living, addr) = listen().await;
        let (gone, dead) = listen().await;
        drop(gone);
        let at = |a: &ServerAddr| SocketAddr::new(a.ip().unwrap(), a.port);
        // The last is of a network for documentation: refused or silent, it must not be waited for.
        let silent: SocketAddr = "192.0.2.1:9".parse().unwrap();
        for order in [[at(&dead), at(&addr), silent], [silent, at(&dead), at(&addr)]] {
            let stream = connect_any(&order).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), at(&addr));
            living.accept().await.unwrap();
        }
        assert_eq!(connect_any(&[at(&dead)]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect_any(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        connect(&ServerAddr::new("localhost", addr.port)).await.unwrap();
    }

    #[test]
    fn families_take_turns() {
        let all = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = alternate(all(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]));
        assert_eq!(mixed, all(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
    }
}
