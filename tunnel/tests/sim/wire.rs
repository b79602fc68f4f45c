//! One TCP connection as this test's network makes it: latency, rate, a bounded buffer each way, and faults.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// What the kernels on the way hold for each direction.
const BUFFER: usize = 32 * 1024;

/// How fast a direction is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) latency: Duration,
    /// Bytes a second.
    pub(crate) rate: u32,
}

impl Pace {
    pub(crate) const GOOD: Pace = Pace { latency: Duration::from_millis(10), rate: 4_000_000 };
}

#[derive(Default)]
struct Direction {
    queue: VecDeque<(Instant, Bytes)>,
    /// Written and not yet acknowledged.
    held: usize,
    busy_until: Option<Instant>,
    ended: bool,
    /// Nothing gets through any more, and the writer is not told.
    dead: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct State {
    ways: [Direction; 2],
    gone: [bool; 2],
    pace: Pace,
    reset: bool,
    frozen: bool,
}

/// The network's hold on one connection. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<State>>);

/// One end: 0 the node's, 1 the server's.
pub(crate) struct End {
    wire: Wire,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

pub(crate) fn wire(pace: Pace) -> (Wire, End, End) {
    let state = State { ways: Default::default(), gone: [false; 2], pace, reset: false, frozen: false };
    let wire = Wire(Arc::new(Mutex::new(state)));
    let end = |side| End { wire: wire.clone(), side, timer: None };
    let (node, server) = (end(0), end(1));
    (wire, node, server)
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        for way in &mut state.ways {
            for waker in [way.reader.take(), way.writer.take()].into_iter().flatten() {
                waker.wake();
            }
        }
    }

    /// Both ends learn at once that the connection is gone.
    pub(crate) fn cut(&self) {
        self.change(|s| s.reset = true);
    }

    /// Nothing moves, nobody is told; and it may move again.
    pub(crate) fn freeze(&self, on: bool) {
        self.change(|s| s.frozen = on);
    }

    /// What `side` writes vanishes from now on.
    pub(crate) fn lose(&self, side: usize) {
        self.change(|s| {
            s.ways[side].dead = true;
            s.ways[side].queue.clear();
        });
    }

    pub(crate) fn pace(&self, pace: Pace) {
        self.change(|s| s.pace = pace);
    }

    /// Whether both ends have let go of it.
    pub(crate) fn is_gone(&self) -> bool {
        self.lock().gone == [true; 2]
    }
}

impl End {
    fn pend_until(&mut self, cx: &mut Context<'_>, at: Instant) {
        let mut timer = Box::pin(sleep_until(at));
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.timer = Some(timer);
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.wire.clone();
        let mut state = wire.lock();
        let (to_us, from_us) = (1 - self.side, self.side);
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        // Without our acknowledgements the other side's buffer stays full.
        let acknowledged = !state.ways[from_us].dead;
        let frozen = state.frozen;
        let way = &mut state.ways[to_us];
        way.reader = Some(cx.waker().clone());
        if frozen || way.dead {
            return Poll::Pending;
        }
        let Some((ready, bytes)) = way.queue.front_mut() else {
            return if way.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        if *ready > Instant::now() {
            let at = *ready;
            drop(state);
            self.pend_until(cx, at);
            return Poll::Pending;
        }
        let len = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..len]);
        bytes.advance(len);
        if bytes.is_empty() {
            way.queue.pop_front();
        }
        if acknowledged {
            way.held -= len;
            if let Some(writer) = way.writer.take() {
                writer.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.wire.lock();
        let (other, pace) = (1 - self.side, state.pace);
        if state.reset || (state.gone[other] && !state.frozen && !state.ways[0].dead && !state.ways[1].dead) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let way = &mut state.ways[self.side];
        let len = buf.len().min(BUFFER - way.held);
        if len == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        way.held += len;
        if !way.dead {
            let now = Instant::now();
            let sent = way.busy_until.unwrap_or(now).max(now) + Duration::from_secs_f64(len as f64 / f64::from(pace.rate));
            way.busy_until = Some(sent);
            way.queue.push_back((sent + pace.latency, Bytes::copy_from_slice(&buf[..len])));
            if let Some(reader) = way.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let side = self.side;
        self.wire.change(|s| s.ways[side].ended = true);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let side = self.side;
        self.wire.change(|s| {
            s.ways[side].ended = true;
            s.gone[side] = true;
        });
    }
}
