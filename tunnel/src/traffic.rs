//! What a link moved and when its server last proved that it lives: written where the sockets are, read by whoever
//! shows it. Atomics only, so that reading never holds up the links.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use std::io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes moved by a class of connections as their sockets see them: TLS included, TCP and IP headers not.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Bytes received and sent so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }
}

/// A socket whose bytes are counted.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    traffic: std::sync::Arc<Traffic>,
}

impl<S> Counted<S> {
    /// Counts what goes through `stream` into `traffic`.
    pub fn new(stream: S, traffic: std::sync::Arc<Traffic>) -> Counted<S> {
        Counted { stream, traffic }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.traffic.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.traffic.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The last proof that a server's session lives. One per link.
#[derive(Debug)]
pub struct Proof {
    base: Instant,
    /// Milliseconds after `base`, plus one; 0 for never.
    at: AtomicU64,
}

impl Default for Proof {
    fn default() -> Proof {
        Proof { base: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Proof {
    pub(crate) fn given(&self, now: Instant) {
        let millis = u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX - 1);
        self.at.store(millis + 1, Ordering::Relaxed);
    }

    /// How long ago the server last proved that it lives, also over links that have ended since; `None` before the first time.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.base + Duration::from_millis(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_are_counted_by_direction() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let traffic = Arc::new(Traffic::default());
        let mut ours = Counted::new(ours, traffic.clone());
        ours.write_all(b"12345").await.unwrap();
        theirs.write_all(b"123").await.unwrap();
        let mut got = [0; 3];
        ours.read_exact(&mut got).await.unwrap();
        assert_eq!(traffic.bytes(), (3, 5));
    }

    #[test]
    fn a_proof_ages_and_is_absent_at_first() {
        let proof = Proof::default();
        let start = proof.base;
        assert_eq!(proof.age(start), None);
        proof.given(start);
        assert_eq!(proof.age(start + Duration::from_secs(3)), Some(Duration::from_secs(3)));
        proof.given(start + Duration::from_secs(5));
        assert_eq!(proof.age(start + Duration::from_secs(6)), Some(Duration::from_secs(1)));
    }
}
