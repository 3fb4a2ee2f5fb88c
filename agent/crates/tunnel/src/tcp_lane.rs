//! One TLS connection of a tunnel at work: lane 0 carries the control frames, the others extents.
//!
//! TCP tells nothing about a dead peer for many minutes, so both sides ping every 5 s on every connection, and one
//! that has been silent for 30 s is dead. Any byte counts as life, and the time that a reader itself waits for
//! buffers does not count.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_rustls::TlsStream;
use wire::control::MAX_DETAIL;
use wire::{Control, Fail, FailCode, Tag};

use crate::core::Core;
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::frames::{self, TcpFeed};
use crate::quic_lane::PONG_QUEUE;
use crate::stats::{Counters, Meter};
use crate::tunnel::{Event, OutgoingExtent};

const PING_EVERY: Duration = Duration::from_secs(5);
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// How long a side that closed waits for the other to close too, and one that is told to end for its writer.
const LINGER: Duration = Duration::from_secs(3);
/// Plaintext that rustls takes at once: 16 records of 16 KiB, written to the socket with one call.
const TLS_BUFFER: usize = 256 << 10;
/// What is read from the socket with one call. rustls itself asks for 4 KiB at a time, four calls a record.
const READ_BUFFER: usize = 128 << 10;

/// A connection whose greeting is over.
pub(crate) struct TcpLink {
    pub(crate) stream: TlsStream<Counted>,
    pub(crate) counters: Arc<Counters>,
}

impl TcpLink {
    /// Counts with `counters` from now on, and what was counted so far with them.
    pub(crate) fn recount(&mut self, counters: Arc<Counters>) {
        counters.sent.fetch_add(self.counters.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        counters.received.fetch_add(self.counters.received.load(Ordering::Relaxed), Ordering::Relaxed);
        let counted = match &mut self.stream {
            TlsStream::Client(stream) => stream.get_mut().0,
            TlsStream::Server(stream) => stream.get_mut().0,
        };
        counted.counters = counters.clone();
        self.counters = counters;
    }

    /// Lets the connection break when what was sent is not acknowledged for so long (tcp(7), `TCP_USER_TIMEOUT`).
    pub(crate) fn give_up_after(&self, silence: Duration) -> io::Result<()> {
        socket2::SockRef::from(self.stream.get_ref().0.tcp()).set_tcp_user_timeout(Some(silence))
    }
}

/// Lets TLS take more at once than rustls does by itself.
pub(crate) fn enlarge(stream: &mut TlsStream<Counted>) {
    match stream {
        TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
        TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
    }
}

/// A TCP stream that counts what passes.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: BufReader<TcpStream>,
    counters: Arc<Counters>,
}

impl Counted {
    pub(crate) fn new(stream: TcpStream) -> (Self, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (Self { stream: BufReader::with_capacity(READ_BUFFER, stream), counters: counters.clone() }, counters)
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.counters.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &result {
            self.counters.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        if let Poll::Ready(Ok(count)) = &result {
            self.counters.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
        result
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

/// What reader and writer of a connection tell each other.
struct Both {
    core: Arc<Core>,
    lane: u8,
    counters: Arc<Counters>,
    started: Instant,
    /// The connection is dead: the writer must not wait for it.
    dead: Notify,
}

/// Runs a lane to its end. Lane 0's end is the tunnel's.
pub(crate) async fn run(core: Arc<Core>, lane: u8, link: TcpLink) {
    let TcpLink { mut stream, counters } = link;
    enlarge(&mut stream);
    let (read, write) = tokio::io::split(stream);
    let both =
        Arc::new(Both { core: core.clone(), lane, counters, started: Instant::now(), dead: Notify::new() });
    let (pongs, pongs_out) = async_channel::bounded(PONG_QUEUE);
    let mut reader = tokio::spawn(read_frames(both.clone(), read, pongs));
    let mut writer = tokio::spawn(write_frames(both.clone(), write, pongs_out));

    let error = tokio::select! {
        result = &mut reader => Some(flatten(result)),
        closing = core.closing() => { drop(closing); None }
    };
    if let Some(error) = &error
        && (lane == 0 || matches!(error.kind(), TunnelErrorKind::Protocol(_)))
    {
        core.fail(error.clone());
    }
    let broken = error
        .as_ref()
        .is_some_and(|error| matches!(error.kind(), TunnelErrorKind::Lost | TunnelErrorKind::TimedOut));
    if broken || lane != 0 && core.is_closing().is_none() {
        both.dead.notify_one();
    }
    // While the tunnel closes, the writer sends what is queued and says goodbye; it must not take for ever.
    if timeout(LINGER, &mut writer).await.is_err() {
        both.dead.notify_one();
        if let Err(panic) = writer.await {
            tracing::error!(lane, error = %panic, "the sender of a lane failed");
        }
    } else if error.is_none() {
        // Leaving with unread bytes would make the kernel reset the connection and destroy our last frames.
        drop(timeout(LINGER, &mut reader).await);
    }
    reader.abort();
    core.retire_lane(lane);
    if lane == 0 {
        core.finish().await;
    } else if core.is_closing().is_none() {
        let error = error.unwrap_or_else(|| TunnelError::new(TunnelErrorKind::Lost, "the lane ended"));
        drop(core.events.send(Event::LaneDown { lane, error }).await);
    }
}

pub(crate) fn flatten(result: Result<TunnelError, tokio::task::JoinError>) -> TunnelError {
    result.unwrap_or_else(|panic| {
        TunnelError::new(TunnelErrorKind::Lost, "the reader of the lane failed").caused_by(panic)
    })
}

async fn read_frames(
    both: Arc<Both>,
    read: ReadHalf<TlsStream<Counted>>,
    pongs: async_channel::Sender<u64>,
) -> TunnelError {
    let mut feed = TcpFeed(read);
    let Both { core, lane, .. } = &*both;
    // TLS has no code for the end; a Fail frame in front of it says why.
    let mut last_fail: Option<Fail> = None;
    let result: Result<(), TunnelError> = async {
        while let Some(header) = frames::header(&mut feed, Some(DEAD_AFTER), DEAD_AFTER).await? {
            if header.tag == Tag::Extent && *lane != 0 {
                let extent = frames::extent(core, *lane, &mut feed, header, DEAD_AFTER).await?;
                if core.received.send(extent).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            match frames::control(&mut feed, header, DEAD_AFTER).await? {
                Control::Ping(nonce) => drop(pongs.try_send(nonce)),
                Control::Pong(sent) => both.note_pong(sent),
                frame if *lane == 0 && frames::is_of_copies(header.tag) => {
                    if let Control::Fail(fail) = &frame {
                        last_fail = Some(fail.clone());
                    }
                    if core.events.send(Event::Control(frame)).await.is_err() {
                        return Ok(());
                    }
                }
                _ => return Err(TunnelError::unexpected_frame(header.tag)),
            }
        }
        Ok(())
    }
    .await;
    match (result, last_fail) {
        (Err(error), _) => error,
        (Ok(()), Some(fail)) => {
            TunnelError::peer_closed(CloseCode::Failed(fail.code), fail.detail.as_bytes())
        }
        (Ok(()), None) => TunnelError::peer_closed(CloseCode::Done, b""),
    }
}

impl Both {
    fn now_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Our pings carry the time at which they were sent. A nonce from the future is the peer's invention.
    fn note_pong(&self, sent: u64) {
        if let Some(rtt) = self.now_micros().checked_sub(sent) {
            self.counters.rtt_micros.store(rtt.max(1), Ordering::Relaxed);
        }
    }
}

async fn write_frames(
    both: Arc<Both>,
    mut write: WriteHalf<TlsStream<Counted>>,
    pongs: async_channel::Receiver<u64>,
) {
    if let Err(error) = write_until_closed(&both, &mut write, &pongs).await {
        tracing::debug!(lane = both.lane, error = %error, "a TCP connection cannot be written");
    }
}

/// Writes one buffer list, unless the connection is found dead meanwhile.
pub(crate) async fn write(
    dead: &Notify,
    write: &mut WriteHalf<TlsStream<Counted>>,
    mut bytes: impl Buf,
) -> io::Result<()> {
    tokio::select! {
        result = async {
            write.write_all_buf(&mut bytes).await?;
            write.flush().await
        } => result,
        () = dead.notified() => {
            dead.notify_one(); // for the next write
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

async fn write_until_closed(
    both: &Both,
    out: &mut WriteHalf<TlsStream<Counted>>,
    pongs: &async_channel::Receiver<u64>,
) -> io::Result<()> {
    let Both { core, lane, .. } = both;
    let mut ticks = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        tokio::select! {
            () = both.dead.notified() => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ = ticks.tick() => write(&both.dead, out, Control::Ping(both.now_micros()).encode()).await?,
            Ok(nonce) = pongs.recv() => write(&both.dead, out, Control::Pong(nonce).encode()).await?,
            frame = core.control.recv(), if *lane == 0 => match frame {
                Ok(frame) => {
                    failed = matches!(frame, Control::Fail(_));
                    write(&both.dead, out, frame.encode()).await?;
                }
                Err(_closed) => break,
            },
            extent = core.outgoing.recv(), if *lane != 0 => match extent {
                Ok(extent) => {
                    let event = Event::LaneTook { lane: *lane, sequence: extent.sequence };
                    if core.events.send(event).await.is_err() {
                        break;
                    }
                    write_extent(both, out, extent).await?;
                }
                Err(_closed) => break,
            },
        }
    }
    let closing = core.closing().await;
    if *lane == 0
        && !failed
        && let CloseCode::Failed(code) = closing.code
    {
        let fail = Control::Fail(Fail { code, detail: detail(&closing.reason) });
        write(&both.dead, out, fail.encode()).await?;
    }
    tokio::select! {
        result = out.shutdown() => result,
        () = both.dead.notified() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

async fn write_extent(
    both: &Both,
    out: &mut WriteHalf<TlsStream<Counted>>,
    extent: OutgoingExtent,
) -> io::Result<()> {
    let len = extent.payload_len();
    both.core.throttle(len).await;
    let mut pieces = Pieces { pieces: extent.payload, next: 0 };
    both.core.payload_sent.fetch_add(len, Ordering::Relaxed);
    write(&both.dead, out, Buf::chain(extent.head, &mut pieces)).await
}

/// At most what a Fail frame may hold, cut between characters.
pub(crate) fn detail(reason: &str) -> String {
    let mut end = reason.len().min(MAX_DETAIL);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

/// A list of buffers as one.
struct Pieces {
    pieces: Vec<Bytes>,
    next: usize,
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.pieces[self.next.min(self.pieces.len())..].iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.pieces
            .iter()
            .skip(self.next)
            .map(|piece| &piece[..])
            .find(|piece| !piece.is_empty())
            .unwrap_or(&[])
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces.iter().skip(self.next).filter(|piece| !piece.is_empty());
        slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let piece = &mut self.pieces[self.next];
            let take = count.min(piece.len());
            piece.advance(take);
            count -= take;
            if piece.is_empty() {
                *piece = Bytes::new(); // gives the memory back while the rest is still on its way
                self.next += 1;
            }
        }
    }
}

/// Registers the connection in the tunnel's statistics; false when the lane's number is taken.
pub(crate) fn attach(core: &Core, lane: u8, link: &TcpLink) -> bool {
    core.add_lane(lane, Meter::Counted(link.counters.clone()))
}

/// Says why and hangs up, before there is a tunnel.
pub(crate) async fn refuse(mut link: TcpLink, code: FailCode, reason: &str) {
    let fail = Control::Fail(Fail { code, detail: detail(reason) }).encode();
    let goodbye = async {
        link.stream.write_all(&fail).await?;
        link.stream.shutdown().await?;
        // Until the other side hangs up too, so that it can read the reason.
        tokio::io::copy(
            &mut tokio::io::AsyncReadExt::take(&mut link.stream, 64 << 10),
            &mut tokio::io::sink(),
        )
        .await
    };
    match timeout(LINGER, goodbye).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(error = %error, "a refused peer hung up first"),
        Err(_late) => tracing::debug!("a refused peer does not hang up"),
    }
}
