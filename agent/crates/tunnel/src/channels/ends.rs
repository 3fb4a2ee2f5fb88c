//! The two directions of a channel's stream, alike for both transports.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use wire::FailCode;

use super::core::ChannelCore;
use crate::core::lock;
use crate::error::{TunnelError, TunnelErrorKind};
use crate::frames::{Feed, patient};
use crate::tcp_lane::{self, Counted, TcpLink};
use crate::translate;

/// What is read from TLS into one allocation: four records.
const TCP_CHUNK: usize = 64 << 10;
/// Pieces that are given to TLS with one call.
const TCP_PIECES: usize = 16;

/// A channel's TLS connection, shared by its reader and its writer. Locked while one of them is polled, which never
/// waits.
pub(crate) struct TcpChannel(Mutex<TlsStream<Counted>>);

impl TcpChannel {
    /// Makes a channel of a connection whose greeting is over.
    pub(super) fn new(mut link: TcpLink, core: &ChannelCore) -> io::Result<Arc<Self>> {
        tcp_lane::enlarge(&mut link.stream);
        link.recount(core.counters.clone());
        link.give_up_after(core.idle)?;
        let channel = Arc::new(Self(Mutex::new(link.stream)));
        core.watch(&channel);
        Ok(channel)
    }

    fn shutdown(&self, how: Shutdown) {
        let stream = lock(&self.0);
        // Fails when the connection is gone already.
        drop(socket2::SockRef::from(stream.get_ref().0.tcp()).shutdown(how));
    }

    /// Ends both directions at once, and wakes who waits for them.
    pub(super) fn cut(&self) {
        self.shutdown(Shutdown::Both);
    }
}

/// A borrowed connection to read from.
struct Reading<'a>(&'a TcpChannel);

impl AsyncRead for Reading<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0.0)).poll_read(cx, buffer)
    }
}

fn channel_lost(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> TunnelError {
    TunnelError::new(TunnelErrorKind::ChannelLost, what).caused_by(source)
}

fn quic_read_error(error: ReadError) -> TunnelError {
    match error {
        ReadError::ConnectionLost(error) => translate::connection_error(error),
        other => channel_lost("the peer broke the channel off", other),
    }
}

fn quic_write_error(error: WriteError) -> TunnelError {
    match error {
        WriteError::ConnectionLost(error) => translate::connection_error(error),
        other => channel_lost("the peer does not take the channel's bytes", other),
    }
}

fn tcp_error(error: io::Error) -> TunnelError {
    if error.kind() == io::ErrorKind::TimedOut {
        return TunnelError::new(TunnelErrorKind::TimedOut, "nothing was heard from the peer")
            .caused_by(error);
    }
    channel_lost("the channel's connection broke", error)
}

/// The receiving direction.
pub(super) enum Input {
    Quic(RecvStream),
    Tcp(Arc<TcpChannel>, BytesMut),
}

impl Input {
    pub(super) fn tcp(channel: Arc<TcpChannel>) -> Self {
        Self::Tcp(channel, BytesMut::new())
    }

    /// The next bytes, at most `max`; `None` at the end. Cancel-safe.
    pub(super) async fn chunk(&mut self, max: usize) -> Result<Option<Bytes>, TunnelError> {
        match self {
            Self::Quic(stream) => {
                let chunk = stream.read_chunk(max, true).await.map_err(quic_read_error)?;
                Ok(chunk.map(|chunk| chunk.bytes))
            }
            Self::Tcp(channel, buffer) => {
                let len = max.min(TCP_CHUNK);
                if buffer.capacity() < len.min(TCP_CHUNK / 4) {
                    buffer.reserve(TCP_CHUNK);
                }
                let mut limited = (&mut *buffer).limit(len);
                match Reading(channel).read_buf(&mut limited).await.map_err(tcp_error)? {
                    0 => Ok(None),
                    _ => Ok(Some(buffer.split().freeze())),
                }
            }
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match self {
            Self::Quic(stream) => stream.poll_read_buf(cx, buffer).map_err(quic_read_error),
            Self::Tcp(channel, _) => Pin::new(&mut Reading(channel)).poll_read(cx, buffer).map_err(tcp_error),
        }
    }

    /// Tells the peer, where the transport can, that nothing more is read.
    pub(super) fn stop(&mut self, code: FailCode) {
        if let Self::Quic(stream) = self {
            // Fails when it is over already.
            drop(stream.stop(VarInt::from_u32(u32::from(code.number()))));
        }
    }
}

impl Feed for Input {
    async fn fill(&mut self, out: &mut [u8], patience: Option<Duration>) -> Result<usize, TunnelError> {
        let mut buffer = ReadBuf::new(out);
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            patient(patience, poll_fn(|cx| self.poll_read(cx, &mut buffer))).await??;
            if buffer.filled().len() == before {
                break;
            }
        }
        Ok(buffer.filled().len())
    }
}

enum Way {
    Quic(SendStream),
    Tcp(Arc<TcpChannel>),
}

/// The sending direction. Dropped before it is finished it ends in a way that the peer cannot take for its regular
/// end.
pub(super) struct Output {
    way: Way,
    finished: bool,
}

impl Output {
    pub(super) fn quic(stream: SendStream) -> Self {
        Self { way: Way::Quic(stream), finished: false }
    }

    pub(super) fn tcp(channel: Arc<TcpChannel>) -> Self {
        Self { way: Way::Tcp(channel), finished: false }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Writes as much as there is room for, at least one byte, and takes it off `pieces`. Cancel-safe.
    pub(super) async fn write_some(&mut self, pieces: &mut [Bytes]) -> Result<usize, TunnelError> {
        match &mut self.way {
            Way::Quic(stream) => Ok(stream.write_chunks(pieces).await.map_err(quic_write_error)?.bytes),
            Way::Tcp(channel) => {
                let written = poll_fn(|cx| {
                    let mut slices = [IoSlice::new(&[]); TCP_PIECES];
                    let full = pieces.iter().filter(|piece| !piece.is_empty());
                    let count = slices
                        .iter_mut()
                        .zip(full)
                        .map(|(slice, piece)| *slice = IoSlice::new(piece))
                        .count();
                    Pin::new(&mut *lock(&channel.0)).poll_write_vectored(cx, &slices[..count])
                })
                .await;
                let written = nonzero(written)?;
                let mut rest = written;
                for piece in pieces.iter_mut() {
                    let take = rest.min(piece.len());
                    piece.advance(take);
                    rest -= take;
                }
                Ok(written)
            }
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, TunnelError>> {
        match &mut self.way {
            Way::Quic(stream) => Pin::new(stream).poll_write(cx, bytes).map_err(quic_write_error),
            Way::Tcp(channel) => {
                let written = ready!(Pin::new(&mut *lock(&channel.0)).poll_write(cx, bytes));
                Poll::Ready(if bytes.is_empty() { Ok(0) } else { nonzero(written) })
            }
        }
    }

    /// Until all that was written has left for the transport. QUIC never holds anything back.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        match &self.way {
            Way::Quic(_) => Poll::Ready(Ok(())),
            Way::Tcp(channel) => Pin::new(&mut *lock(&channel.0)).poll_flush(cx).map_err(tcp_error),
        }
    }

    /// Says that nothing more will come.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        match &mut self.way {
            Way::Quic(stream) => {
                stream.finish().map_err(|error| channel_lost("the channel is closed already", error))?;
            }
            Way::Tcp(channel) => {
                ready!(Pin::new(&mut *lock(&channel.0)).poll_shutdown(cx)).map_err(tcp_error)?;
            }
        }
        self.finished = true;
        Poll::Ready(Ok(()))
    }

    /// Over TCP channels have connections of their own, among which there is no order.
    pub(super) fn set_priority(&self, priority: i32) {
        if let Way::Quic(stream) = &self.way {
            // Fails when it is over already.
            drop(stream.set_priority(priority));
        }
    }

    /// Writes and flushes all of `bytes`.
    pub(super) async fn write_all(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        let mut pieces = [bytes];
        while !pieces[0].is_empty() {
            self.write_some(&mut pieces).await?;
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match &mut self.way {
            // Fails when it is over already.
            Way::Quic(stream) => {
                drop(stream.reset(VarInt::from_u32(u32::from(FailCode::Internal.number()))));
            }
            // No close_notify before the end.
            Way::Tcp(channel) => channel.shutdown(Shutdown::Write),
        }
    }
}

fn nonzero(written: io::Result<usize>) -> Result<usize, TunnelError> {
    match written.map_err(tcp_error)? {
        0 => Err(tcp_error(io::ErrorKind::WriteZero.into())),
        count => Ok(count),
    }
}
