//! Fewer packets: what is written to a connection is held until the writer has nothing more to say.
//!
//! HTTP/2 hands over the head of a request, flushes, and hears of the body from another task a moment later. Written as it
//! comes, each becomes a TLS record and a packet of its own, and the server acknowledges the first one separately: 154 of
//! 371 bytes of a lease renewal.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Held at most. Larger writes follow each other without waiting.
const MOST: usize = 8 * 1024;
/// How often a flush lets the other tasks run first. Costs no time on an idle runtime.
const TURNS: u8 = 3;
/// Buffers above this are given back.
const KEEP: usize = 1024;

/// A stream that writes at the end of a flush, after other tasks had their turn.
#[derive(Debug)]
pub(super) struct Gather<S> {
    stream: S,
    held: Vec<u8>,
    turns: u8,
}

impl<S> Gather<S> {
    pub(super) fn new(stream: S) -> Gather<S> {
        Gather { stream, held: Vec::new(), turns: 0 }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let result = loop {
            if written == self.held.len() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.held[written..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => written += bytes,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.held.drain(..written);
        if self.held.is_empty() {
            self.turns = 0;
            self.held.shrink_to(KEEP);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() >= MOST {
            ready!(self.poll_write_held(cx))?;
        }
        let bytes = buf.len().min(MOST - self.held.len());
        self.held.extend_from_slice(&buf[..bytes]);
        Poll::Ready(Ok(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() && self.turns < TURNS {
            self.turns += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::AsyncWriteExt;

    /// Takes at most `at_once` bytes with each write and notes the writes.
    struct Sink {
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
        at_once: usize,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let bytes = buf.len().min(self.at_once);
            self.writes.lock().unwrap().push(buf[..bytes].to_vec());
            Poll::Ready(Ok(bytes))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What was written, a piece a call.
    type Written = Arc<Mutex<Vec<Vec<u8>>>>;

    fn sink(at_once: usize) -> (Gather<Sink>, Written) {
        let writes = Arc::new(Mutex::new(Vec::new()));
        (Gather::new(Sink { writes: Arc::clone(&writes), at_once }), writes)
    }

    #[tokio::test]
    async fn what_another_task_adds_during_a_flush_goes_along() {
        let (mut stream, writes) = sink(1 << 20);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        // As HTTP/2 does it: the body's task is woken by the head's.
        let body = tokio::spawn(async move { tell.send(*b"body").unwrap() });
        stream.write_all(b"head").await.unwrap();
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Some(more)) = told.poll_recv(cx) {
                assert!(matches!(Pin::new(&mut stream).poll_write(cx, &more), Poll::Ready(Ok(4))));
            }
            Pin::new(&mut stream).poll_flush(cx)
        })
        .await
        .unwrap();
        body.await.unwrap();
        assert_eq!(*writes.lock().unwrap(), [b"headbody"]);
        stream.write_all(b"next").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(writes.lock().unwrap().last().unwrap(), b"next");
    }

    #[tokio::test]
    async fn every_byte_of_much_gets_through_in_order_and_the_buffer_is_given_back() {
        let (mut stream, writes) = sink(1000);
        let all: Vec<u8> = (0..50_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        stream.write_all(&all).await.unwrap();
        assert!(stream.held.capacity() <= 2 * MOST);
        stream.shutdown().await.unwrap();
        assert_eq!(writes.lock().unwrap().concat(), all);
        assert!(stream.held.is_empty() && stream.held.capacity() <= KEEP);
    }
}
