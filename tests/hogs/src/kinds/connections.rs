//! Connections by the thousand, each an entry in the node's connection tracking, and the other end of them.
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::Failed;
use crate::machine;
use crate::report::Run;

/// Opens until there are `--count`, then the oldest makes place for the next. Nothing waits for an answer, so a peer that is silent
/// costs entries as well.
pub(crate) fn open(run: &Run) -> Result<(), Failed> {
    let peer = target(run)?;
    let limit = usize::try_from(run.arguments.count.unwrap_or(20_000)).unwrap_or(usize::MAX);
    machine::open_files_to_the_limit();
    run.count_in("connections");
    let mut held = VecDeque::new();
    while !run.is_over() {
        if held.len() >= limit {
            held.pop_front();
            run.pause(Duration::from_millis(1));
        }
        match begin(peer) {
            Ok(connection) => {
                held.push_back(connection);
                run.did(1);
            }
            Err(errno) => {
                run.was_refused(errno);
                run.pause(Duration::from_millis(10));
            }
        }
        run.holds(held.len() as u64);
    }
    Ok(())
}

fn begin(peer: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let connection = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match connect(connection.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(connection),
        Err(errno) => Err(errno),
    }
}

/// The other end: keeps as many as it may.
pub(crate) fn accept(run: &Run) -> Result<(), Failed> {
    let address = target(run)?;
    let listener = TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| format!("{address}: {error}"))?;
    let limit = usize::try_from(run.arguments.count.unwrap_or(20_000)).unwrap_or(usize::MAX);
    machine::open_files_to_the_limit();
    run.count_in("connections");
    let mut held = VecDeque::new();
    while !run.is_over() {
        match listener.accept() {
            Ok((connection, _)) => {
                if held.len() >= limit {
                    held.pop_front();
                }
                held.push_back(connection);
                run.did(1);
                run.holds(held.len() as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => run.pause(Duration::from_millis(5)),
            Err(error) => {
                run.was_refused_io(&error);
                run.pause(Duration::from_millis(10));
            }
        }
    }
    Ok(())
}

fn target(run: &Run) -> Result<SocketAddr, Failed> {
    let Some(target) = &run.arguments.target else { return Err("which address? --target ADDRESS:PORT".to_owned()) };
    target
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("--target {target} is no ADDRESS:PORT that resolves"))
}
