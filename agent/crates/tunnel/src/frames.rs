//! Frames out of a byte stream, whichever transport it came by. All lengths are checked before memory is taken.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use wire::{Control, DecodeError, ExtentHead, FRAME_HEADER, FrameHeader, Tag};

use crate::core::Core;
use crate::error::{TunnelError, TunnelErrorKind};
use crate::translate;
use crate::tunnel::ReceivedExtent;

/// A frame that has begun must make progress: no wait for its next bytes may take longer.
pub(crate) const PROGRESS: Duration = Duration::from_secs(60);

/// Bytes in order.
pub(crate) trait Feed: Send {
    /// Fills the whole of `out`, or as much as there is before a clean end. No single wait for bytes is longer than
    /// `patience`, if there is one.
    fn fill(
        &mut self,
        out: &mut [u8],
        patience: Option<Duration>,
    ) -> impl Future<Output = Result<usize, TunnelError>> + Send;
}

pub(crate) async fn patient<T>(
    patience: Option<Duration>,
    future: impl Future<Output = T> + Send,
) -> Result<T, TunnelError> {
    match patience {
        None => Ok(future.await),
        Some(limit) => timeout(limit, future).await.map_err(|error| {
            let what = format!("the peer sent nothing for {} s", limit.as_secs());
            TunnelError::new(TunnelErrorKind::TimedOut, what).caused_by(error)
        }),
    }
}

/// Chunks that are taken from quinn with one lock: at Ethernet MTU that is 46 KiB.
const BATCH: usize = 32;

/// A QUIC stream. Bytes are copied once, from the packets into `out`.
pub(crate) struct QuicFeed {
    stream: quinn::RecvStream,
    chunks: [Bytes; BATCH],
    next: usize,
    filled: usize,
}

impl QuicFeed {
    pub(crate) fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, chunks: [const { Bytes::new() }; BATCH], next: 0, filled: 0 }
    }
}

impl Feed for QuicFeed {
    async fn fill(&mut self, out: &mut [u8], patience: Option<Duration>) -> Result<usize, TunnelError> {
        let mut done = 0;
        while done < out.len() {
            if self.next == self.filled {
                let read = patient(patience, self.stream.read_chunks(&mut self.chunks)).await?;
                match read.map_err(translate::read_error)? {
                    Some(count) => (self.next, self.filled) = (0, count),
                    None => break,
                }
                continue;
            }
            let chunk = &mut self.chunks[self.next];
            let take = chunk.len().min(out.len() - done);
            out[done..done + take].copy_from_slice(&chunk.split_to(take));
            done += take;
            if chunk.is_empty() {
                *chunk = Bytes::new(); // lets go of the packet's memory
                self.next += 1;
            }
        }
        Ok(done)
    }
}

/// A TLS stream.
pub(crate) struct TcpFeed<R>(pub(crate) R);

impl<R: AsyncRead + Unpin + Send> Feed for TcpFeed<R> {
    async fn fill(&mut self, out: &mut [u8], patience: Option<Duration>) -> Result<usize, TunnelError> {
        let mut done = 0;
        while done < out.len() {
            match patient(patience, self.0.read(&mut out[done..])).await? {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(translate::tls_error(error, "read from the peer")),
            }
        }
        Ok(done)
    }
}

/// Fills the whole of `out`; an end before that is an error.
pub(crate) async fn exact<F: Feed>(
    feed: &mut F,
    out: &mut [u8],
    patience: Duration,
    what: &'static str,
) -> Result<(), TunnelError> {
    if feed.fill(out, Some(patience)).await? == out.len() {
        Ok(())
    } else {
        Err(TunnelError::protocol(DecodeError::Truncated(what)))
    }
}

/// The next frame's header, or `None` at a clean end. `idle` bounds the wait for it to begin.
pub(crate) async fn header<F: Feed>(
    feed: &mut F,
    idle: Option<Duration>,
    patience: Duration,
) -> Result<Option<FrameHeader>, TunnelError> {
    let mut bytes = [0; FRAME_HEADER];
    let (first, rest) = bytes.split_at_mut(1);
    if feed.fill(first, idle).await? == 0 {
        return Ok(None);
    }
    exact(feed, rest, patience, "frame header").await?;
    FrameHeader::decode(&bytes).map(Some).map_err(TunnelError::protocol)
}

/// The body of a control frame whose header was read.
pub(crate) async fn control<F: Feed>(
    feed: &mut F,
    header: FrameHeader,
    patience: Duration,
) -> Result<Control, TunnelError> {
    if header.tag == Tag::Extent {
        return Err(TunnelError::unexpected_frame(header.tag));
    }
    let mut body = vec![0; header.len]; // capped at 64 KiB by the header's decoder
    exact(feed, &mut body, patience, "control frame").await?;
    Control::decode(header.tag, &body).map_err(TunnelError::protocol)
}

/// Whether a frame may come to the owner of a copy: not what routes a further connection, and nothing of migrations.
pub(crate) fn is_of_copies(tag: Tag) -> bool {
    !matches!(tag, Tag::LaneHello | Tag::Migrate | Tag::Message | Tag::ChannelHello)
}

/// The head and payload of an extent frame whose header was read. Waits for the limiter and for buffers as long as
/// it takes: that is how back-pressure reaches the peer.
pub(crate) async fn extent<F: Feed>(
    core: &Arc<Core>,
    lane: u8,
    feed: &mut F,
    header: FrameHeader,
    patience: Duration,
) -> Result<ReceivedExtent, TunnelError> {
    let mut body = vec![0; header.len]; // capped at 616 bytes by the header's decoder
    exact(feed, &mut body, patience, "extent head").await?;
    let head = ExtentHead::decode(&body).map_err(TunnelError::protocol)?;
    let len = head.wire_len as usize; // capped at 1 MiB by the head's decoder
    core.throttle(u64::from(head.wire_len)).await;
    let (permit, mut payload) = core.buffers(len).await;
    for buffer in &mut payload {
        exact(feed, buffer, patience, "payload").await?;
    }
    core.payload_received.fetch_add(len as u64, Ordering::Relaxed);
    Ok(ReceivedExtent { lane, head, payload, permit })
}
