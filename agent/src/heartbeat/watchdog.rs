//! systemd's watchdog without waiting for systemd: when it does not read, a socket that blocks would stop the thread that says
//! that all is well.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket that the service manager named, connected once.
#[derive(Debug)]
pub(super) struct Watchdog(Option<UnixDatagram>);

impl Watchdog {
    /// None to feed where the unit has no watchdog.
    pub(super) fn of_unit() -> Self {
        let address = sd_notify::watchdog_enabled().and_then(|_| std::env::var_os("NOTIFY_SOCKET"));
        Self(address.and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "the service manager's watchdog cannot be fed");
                None
            }
        }))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// A message that finds no room is left out: those in the queue say the same.
    pub(super) fn feed(&self) {
        if let Some(socket) = &self.0 {
            let _ = socket.send(b"WATCHDOG=1");
        }
    }
}

/// A path, or `@` and an abstract name.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeding_never_waits_for_the_one_who_reads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let watchdog = Watchdog(Some(connect(path.as_os_str()).expect("connected")));
        // More than any queue holds: a blocking socket would stop here for ever.
        for _ in 0..10_000 {
            watchdog.feed();
        }
        let mut said = [0; 32];
        let length = manager.recv(&mut said).expect("the first is there");
        assert_eq!(said.get(..length), Some(b"WATCHDOG=1".as_slice()));
    }

    #[test]
    fn abstract_names_are_known_by_their_sign() {
        let name = format!("edge-agent-watchdog-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("name")).expect("bound");
        Watchdog(Some(connect(OsStr::new(&format!("@{name}"))).expect("connected"))).feed();
        let mut said = [0; 32];
        assert_eq!(manager.recv(&mut said).expect("arrives"), 10);
    }
}
