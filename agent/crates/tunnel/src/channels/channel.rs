//! One channel: raw bytes both ways, each way with its own end and its own flow control.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use super::core::{ChannelCore, Slot};
use super::ends::{Input, Output};
use crate::core::LIMIT_STEP;
use crate::error::{TunnelError, TunnelErrorKind};

/// What a limited channel moves before it looks at the limit again.
const TURN: usize = 256 << 10;
/// How long a TCP channel whose reader was dropped early is read on: unread bytes would make the kernel reset the
/// connection, which destroys what the peer has not read yet.
const DRAIN: Duration = Duration::from_secs(3);
/// What is read at once while draining.
const DRAIN_CHUNK: usize = 64 << 10;

/// A channel of a migration. Its two directions are independent, and may be used by different tasks on any runtime
/// with a timer.
#[derive(Debug)]
pub struct Channel {
    /// What the peer sends.
    pub read: ChannelReader,
    /// What the peer gets.
    pub write: ChannelWriter,
}

/// What both directions hold.
struct Held {
    core: Arc<ChannelCore>,
    /// The channel's number is free when both directions are gone.
    _slot: Slot,
}

impl Channel {
    pub(super) fn new(core: &Arc<ChannelCore>, slot: Slot, input: Input, output: Output) -> Self {
        let held = Arc::new(Held { core: core.clone(), _slot: slot });
        let read =
            ChannelReader { input: Some(input), ended: false, pace: Pace::default(), held: held.clone() };
        let write = ChannelWriter { output, pace: Pace::default(), held };
        Self { read, write }
    }
}

/// Makes a channel wait as long as the tunnel's limit demands.
#[derive(Default)]
struct Pace {
    wait: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn pay(&mut self, core: &ChannelCore, bytes: usize) {
        self.wait = core.pay(bytes as u64);
    }

    /// Until the bytes that moved before are paid for, or the tunnel is over. Cancel-safe.
    fn poll(&mut self, core: &ChannelCore, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            if self.wait.is_zero() || core.ending.is_set() {
                self.wait = Duration::ZERO;
                return Poll::Ready(());
            }
            let step = self.wait.min(LIMIT_STEP);
            self.wait -= step;
            self.sleep = Some(Box::pin(sleep(step)));
        }
    }
}

/// The receiving direction of a channel. Dropped before its end it tells the peer so: at once over QUIC, over TCP when
/// the writer is gone too.
///
/// The errors of both directions have these kinds: [`TunnelErrorKind::ChannelLost`] when this channel is broken (over
/// TCP it can come a moment before the tunnel itself is known to be lost); any other, when the tunnel is over.
pub struct ChannelReader {
    /// None once it was given to the task that drains it.
    input: Option<Input>,
    ended: bool,
    pace: Pace,
    held: Arc<Held>,
}

impl ChannelReader {
    /// The next bytes, at most `max` of them, without a copy of what QUIC received; `None` when the peer has finished
    /// its direction. Cancel-safe.
    ///
    /// # Errors
    /// When the channel is broken or the tunnel is over; see [`ChannelReader`].
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, TunnelError> {
        let Self { input, ended, pace, held } = self;
        poll_fn(|cx| pace.poll(&held.core, cx)).await;
        let Some(input) = input.as_mut().filter(|_| !*ended) else { return Ok(None) };
        match input.chunk(max).await {
            Ok(Some(bytes)) => {
                self.moved(bytes.len());
                Ok(Some(bytes))
            }
            Ok(None) => {
                *ended = true;
                Ok(None)
            }
            Err(error) => Err(blame(&held.core, error)),
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.held.core.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pace.pay(&self.held.core, bytes);
    }
}

/// What an error of a channel means for its tunnel, which is over when the link is.
fn blame(core: &ChannelCore, error: TunnelError) -> TunnelError {
    let error = core.explain(error);
    if error.kind() == TunnelErrorKind::TimedOut {
        core.fail(error.clone());
    }
    error
}

fn to_io(error: TunnelError) -> io::Error {
    let kind = match error.kind() {
        TunnelErrorKind::TimedOut => io::ErrorKind::TimedOut,
        TunnelErrorKind::ChannelLost => io::ErrorKind::ConnectionReset,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for ChannelReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.pace.poll(&this.held.core, cx));
        let Some(input) = &mut this.input else { return Poll::Ready(Ok(())) };
        if this.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = ready!(input.poll_read(cx, buffer));
        let moved = buffer.filled().len() - before;
        match result {
            Ok(()) if moved == 0 => this.ended = true,
            Ok(()) => this.moved(moved),
            Err(error) => return Poll::Ready(Err(to_io(blame(&this.held.core, error)))),
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ChannelReader {
    fn drop(&mut self) {
        let core = &self.held.core;
        if self.ended || core.ending.is_set() {
            return;
        }
        // A QUIC stream that is dropped tells the peer by itself.
        if let Some(mut input @ Input::Tcp(..)) = self.input.take() {
            let held = self.held.clone();
            core.home.spawn(async move {
                let rest = async { while let Ok(Some(_unwanted)) = input.chunk(DRAIN_CHUNK).await {} };
                if timeout(DRAIN, rest).await.is_err() {
                    tracing::debug!("the peer goes on sending on a channel that is not read any more");
                }
                drop(held);
            });
        }
    }
}

impl fmt::Debug for ChannelReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelReader(from {}, ended: {})", self.held.core.peer, self.ended)
    }
}

/// The sending direction of a channel. Dropped without [`Self::finish`] it breaks the channel off: the peer's reader
/// gets an error, not an end.
pub struct ChannelWriter {
    output: Output,
    pace: Pace,
    held: Arc<Held>,
}

impl ChannelWriter {
    /// Gives all of `pieces` to the transport, flushed; waits for the peer's window and for the limit. QUIC takes the
    /// pieces without a copy and keeps them until they are acknowledged. What was written is taken off `pieces`, so
    /// that a call that was cancelled can be made again.
    ///
    /// # Errors
    /// As [`ChannelReader`] says; and when the direction is finished.
    pub async fn write_all_chunks(&mut self, pieces: &mut [Bytes]) -> Result<(), TunnelError> {
        let mut rest = pieces;
        loop {
            let empty = rest.iter().take_while(|piece| piece.is_empty()).count();
            rest = rest.split_at_mut(empty).1;
            if rest.is_empty() {
                break;
            }
            poll_fn(|cx| self.pace.poll(&self.held.core, cx)).await;
            self.check()?;
            let turn = if self.held.core.is_limited() { turn(rest) } else { rest.len() };
            let written = self.output.write_some(&mut rest[..turn]).await;
            let written = written.map_err(|error| blame(&self.held.core, error))?;
            self.moved(written);
        }
        self.flush().await
    }

    /// Until all that was written by [`AsyncWrite`] is with the transport; without effect over QUIC, which holds
    /// nothing back.
    ///
    /// # Errors
    /// As [`ChannelReader`] says.
    pub async fn flush(&mut self) -> Result<(), TunnelError> {
        let flushed = poll_fn(|cx| self.output.poll_flush(cx)).await;
        flushed.map_err(|error| blame(&self.held.core, error))
    }

    /// Tells the peer, behind all that was written, that nothing more comes. The other direction goes on. It does not
    /// wait until the peer has read: closing the tunnel right after can destroy the last bytes.
    ///
    /// # Errors
    /// As [`ChannelReader`] says.
    pub async fn finish(&mut self) -> Result<(), TunnelError> {
        let finished = poll_fn(|cx| self.output.poll_finish(cx)).await;
        finished.map_err(|error| blame(&self.held.core, error))
    }

    /// Channels of a higher priority are sent first; all begin with 0, and more is no use: messages come before every
    /// channel. Without effect over TCP.
    pub fn set_priority(&self, priority: i32) {
        self.output.set_priority(priority.min(0));
    }

    fn check(&self) -> Result<(), TunnelError> {
        if let Some(closing) = self.held.core.ending.get() {
            return Err(closing.error);
        }
        if self.output.is_finished() {
            return Err(TunnelError::config("write to a channel after its end"));
        }
        Ok(())
    }

    fn moved(&mut self, bytes: usize) {
        self.held.core.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pace.pay(&self.held.core, bytes);
    }
}

/// How many of the pieces make up one turn of a limited channel: at least one.
fn turn(pieces: &[Bytes]) -> usize {
    let mut sum = 0_usize;
    let more = pieces.iter().take_while(|piece| {
        sum = sum.saturating_add(piece.len());
        sum <= TURN
    });
    more.count().max(1)
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.pace.poll(&this.held.core, cx));
        this.check().map_err(to_io)?;
        let part = if this.held.core.is_limited() { &bytes[..bytes.len().min(TURN)] } else { bytes };
        let written = ready!(this.output.poll_write(cx, part));
        let written = written.map_err(|error| to_io(blame(&this.held.core, error)))?;
        this.moved(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(this.output.poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| to_io(blame(&this.held.core, error))))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let finished = ready!(this.output.poll_finish(cx));
        Poll::Ready(finished.map_err(|error| to_io(blame(&this.held.core, error))))
    }
}

impl fmt::Debug for ChannelWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelWriter(to {}, finished: {})", self.held.core.peer, self.output.is_finished())
    }
}
