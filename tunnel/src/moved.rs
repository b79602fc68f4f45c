//! When a socket that was full last took bytes again, and until when what the kernel holds is on its way at that pace: the
//! peer's kernel acknowledges, however slow the way is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::driver::now;
use crate::liveness::PING_WAIT;

/// What the kernel holds at most of what it took, unsent and unacknowledged (`dial`).
const QUEUE: u32 = 128 * 1024;
/// A pace is known from so many bytes on.
const ENOUGH: usize = 8 * 1024;
/// Writes this close together belong to one stretch of a full socket.
const TOGETHER: Duration = Duration::from_millis(100);
/// The pace is that of about this long.
const MEMORY: Duration = Duration::from_secs(5);

/// Written by [`Moving`], read by the session's loop.
#[derive(Debug)]
pub(crate) struct Moved {
    base: Instant,
    millis: AtomicU64,
}

impl Default for Moved {
    fn default() -> Moved {
        Moved { base: now(), millis: AtomicU64::new(0) }
    }
}

impl Moved {
    /// Until when bytes move that the socket took late, as far as can be told; `None`: it took none since the last call.
    pub(crate) fn take(&self) -> Option<Instant> {
        let millis = self.millis.swap(0, Ordering::Relaxed);
        (millis > 0).then(|| self.base + Duration::from_millis(millis))
    }

    fn note(&self, until: Instant) {
        let millis = until.saturating_duration_since(self.base).as_millis();
        self.millis.store(u64::try_from(millis).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }
}

/// A stream that notes when it goes on taking bytes. Each piece counts, not only whole frames: on a slow uplink one of
/// those takes longer than a question may.
#[derive(Debug)]
pub(crate) struct Moving<S> {
    stream: S,
    moved: Arc<Moved>,
    /// Since when it takes nothing.
    full: Option<Instant>,
    /// When it last did again, and what it took since.
    open: Option<(Instant, usize)>,
    /// How much it took in how long a time of being full.
    pace: (usize, Duration),
}

impl<S> Moving<S> {
    pub(crate) fn new(stream: S, moved: Arc<Moved>) -> Moving<S> {
        Moving { stream, moved, full: None, open: None, pace: (0, Duration::ZERO) }
    }

    /// A write or flush was tried: `None`, it has to wait; or it took so many bytes.
    fn saw(&mut self, took: Option<usize>) {
        match (took, self.full) {
            (None, Some(_)) => {}
            (None, None) => {
                let at = now();
                self.full = Some(at);
                match self.open.take() {
                    Some((open, bytes)) if at.saturating_duration_since(open) < TOGETHER => self.pace.0 += bytes,
                    // After a stretch of quiet: what came went into an empty queue, and the pace may be another.
                    Some(_) | None => self.pace = (0, Duration::ZERO),
                }
            }
            (Some(bytes), Some(full)) => {
                let at = now();
                self.full = None;
                self.open = Some((at, bytes));
                self.pace.1 += at.saturating_duration_since(full);
                if self.pace.1 > MEMORY {
                    self.pace = (self.pace.0 / 2, self.pace.1 / 2);
                }
                self.moved.note(at + self.drain());
            }
            (Some(bytes), None) => {
                if let Some((_, since)) = &mut self.open {
                    *since += bytes;
                }
            }
        }
    }

    /// How long a full queue takes at the pace seen.
    fn drain(&self) -> Duration {
        let (bytes, time) = (self.pace.0 + self.open.map_or(0, |(_, bytes)| bytes), self.pace.1);
        // A little that was taken after a short wait says nothing about the pace.
        if bytes < ENOUGH && time < Duration::from_secs(1) {
            return Duration::ZERO;
        }
        let bytes = bytes.max(1);
        time.mul_f64(f64::from(QUEUE) / bytes as f64).min(PING_WAIT)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        match &polled {
            Poll::Pending => self.saw(None),
            Poll::Ready(Ok(bytes)) => self.saw(Some(*bytes)),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.saw(polled.is_ready().then_some(0));
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn each_piece_a_full_stream_takes_is_noted_and_writes_into_room_are_not() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let moved = Arc::new(Moved::default());
        let mut ours = Moving::new(ours, moved.clone());
        ours.write_all(b"12345").await.unwrap();
        assert_eq!(moved.take(), None, "there was room");
        let start = now();
        let mut long = Box::pin(ours.write_all(&[0; 100]));
        for seconds in 1..=5 {
            assert!(long.as_mut().now_or_never().is_none());
            tokio::time::advance(Duration::from_secs(1)).await;
            theirs.read_exact(&mut [0; 4]).await.unwrap();
            assert!(long.as_mut().now_or_never().is_none());
            // 4 bytes a second: a kernel's queue would take hours.
            assert_eq!(moved.take().unwrap() - start, Duration::from_secs(seconds) + PING_WAIT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_socket_is_given_no_time_to_drain() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let moved = Arc::new(Moved::default());
        let mut ours = Moving::new(ours, moved.clone());
        let data = vec![0; 4 << 20];
        let mut long = Box::pin(ours.write_all(&data));
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..20 {
            assert!(long.as_mut().now_or_never().is_none());
            tokio::time::advance(Duration::from_millis(10)).await;
            theirs.read_exact(&mut buffer).await.unwrap();
        }
        assert!(long.as_mut().now_or_never().is_none());
        let left = moved.take().unwrap() - now();
        assert!(left < Duration::from_millis(50), "{left:?}");
    }
}
