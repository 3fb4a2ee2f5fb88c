//! One QUIC connection of a tunnel at work.
//!
//! Four parts run beside each other on the connection's thread: the control stream's reader and writer, the
//! acceptor of data streams, and the dispatcher that takes extents from the queue. When one of them fails, the
//! connection is closed, which makes the others end. The dispatcher is never cancelled: what it took, it reports.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::{Control, FailCode, Tag};

use crate::core::Core;
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::frames::{self, PROGRESS, QuicFeed};
use crate::stats::Meter;
use crate::translate;
use crate::tunnel::{Event, OutgoingExtent};

/// Small extents are put on one stream up to this many bytes, or this many frames.
const COALESCE_BYTES: u64 = 1 << 20;
const COALESCE_FRAMES: usize = 64;
/// What a lane may have taken without acknowledgement, whatever its congestion window says: below this it would
/// starve before the window has grown.
const MIN_IN_FLIGHT: u64 = 4 << 20;
/// How long a tunnel that is closed on purpose waits for the peer's transport to have the last control frames, and
/// one that the peer is closing for the code.
const LINGER: Duration = Duration::from_secs(3);
/// Control frames that are written with one call.
const CONTROL_BATCH: usize = 32;
/// Answers to pings that may wait; the peer sends one ping in 5 s.
pub(crate) const PONG_QUEUE: usize = 4;

/// A connection whose greeting is over.
pub(crate) struct QuicLink {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: QuicFeed,
    /// What may be unacknowledged in this connection, in bytes.
    pub(crate) send_window: u64,
}

pub(crate) fn close_number(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.number()).unwrap_or(VarInt::MAX)
}

/// Runs a lane to its end. Lane 0 carries the control frames, and its end is the tunnel's.
pub(crate) async fn run(core: Arc<Core>, lane: u8, link: QuicLink) {
    let QuicLink { connection, send, receive, send_window } = link;
    let (pongs, pongs_out) = async_channel::bounded(PONG_QUEUE);
    let mut readers = JoinSet::new();
    readers.spawn(read_control(core.clone(), lane, receive, pongs, connection.clone()));
    readers.spawn(accept_extents(core.clone(), lane, connection.clone()));
    let writer = tokio::spawn(write_control(core.clone(), lane, send, pongs_out));
    let dispatcher = tokio::spawn(dispatch(core.clone(), lane, connection.clone(), send_window));

    let error = tokio::select! {
        error = first_error(&mut readers) => Some(error),
        closing = core.closing() => { drop(closing); None }
    };
    if let Some(error) = &error {
        // A broken connection ends its lane; a broken promise, or the end of lane 0, the tunnel.
        if lane == 0 || matches!(error.kind(), TunnelErrorKind::Protocol(_)) {
            core.fail(error.clone());
        }
    }
    if let Some(closing) = core.is_closing() {
        if lane == 0 && error.is_none() {
            // The writer drains the control queue, which is closed, and waits for the peer to have it all.
            drop(timeout(LINGER, writer).await);
        }
        connection.close(close_number(closing.code), closing.reason.as_bytes());
    } else if let Some(error) = &error {
        connection.close(close_number(error.close_code()), error.chain().as_bytes());
    }
    if let Err(panic) = dispatcher.await {
        tracing::error!(lane, error = %panic, "the sender of a lane failed");
    }
    readers.shutdown().await;
    core.retire_lane(lane);
    if lane == 0 {
        core.finish().await;
    } else if core.is_closing().is_none() {
        let error = error.unwrap_or_else(|| TunnelError::new(TunnelErrorKind::Lost, "the lane ended"));
        drop(core.events.send(Event::LaneDown { lane, error }).await);
    }
}

/// The readers end with an error each. That of the connection itself is everybody's; the control reader, which sees
/// it after the last frame, speaks for all.
pub(crate) async fn first_error(readers: &mut JoinSet<Option<TunnelError>>) -> TunnelError {
    loop {
        match readers.join_next().await {
            Some(Ok(Some(error))) => return error,
            Some(Ok(None)) => {}
            Some(Err(panic)) => {
                return TunnelError::new(TunnelErrorKind::Lost, "a reader of the lane failed")
                    .caused_by(panic);
            }
            None => return TunnelError::new(TunnelErrorKind::Lost, "the lane ended"),
        }
    }
}

async fn read_control(
    core: Arc<Core>,
    lane: u8,
    mut feed: QuicFeed,
    pongs: async_channel::Sender<u64>,
    connection: Connection,
) -> Option<TunnelError> {
    let work = async {
        // Silence is quinn's business: it keeps the connection alive and notices when it is dead.
        while let Some(header) = frames::header(&mut feed, None, PROGRESS).await? {
            match frames::control(&mut feed, header, PROGRESS).await? {
                // The queue is full only when the peer floods us with pings.
                Control::Ping(nonce) => drop(pongs.try_send(nonce)),
                Control::Pong(_) => {}
                frame if lane == 0 && frames::is_of_copies(header.tag) => {
                    if core.events.send(Event::Control(frame)).await.is_err() {
                        return Ok(());
                    }
                }
                _ => return Err(TunnelError::unexpected_frame(header.tag)),
            }
        }
        Ok(())
    };
    match work.await {
        Err(error) => Some(error),
        Ok(()) => {
            // The peer has said all; its code follows.
            let closed = timeout(LINGER, connection.closed()).await;
            Some(closed.map_or_else(
                |late| {
                    TunnelError::new(TunnelErrorKind::TimedOut, "the peer ended its control stream")
                        .caused_by(late)
                },
                translate::connection_error,
            ))
        }
    }
}

async fn write_control(core: Arc<Core>, lane: u8, mut send: SendStream, pongs: async_channel::Receiver<u64>) {
    let mut open = lane == 0;
    let result: Result<(), TunnelError> = async {
        loop {
            let mut batch: Vec<Bytes> = tokio::select! {
                frame = core.control.recv(), if open => match frame {
                    Ok(frame) => vec![frame.encode()],
                    Err(_closed) => { open = false; break }
                },
                pong = pongs.recv() => match pong {
                    Ok(nonce) => vec![Control::Pong(nonce).encode()],
                    Err(_closed) if open => {
                        // The reader is gone, and with it the connection, or we are closing.
                        core.closing().await;
                        continue;
                    }
                    Err(_closed) => break,
                },
            };
            while open && batch.len() < CONTROL_BATCH {
                let Ok(frame) = core.control.try_recv() else { break };
                batch.push(frame.encode());
            }
            send.write_all_chunks(&mut batch).await.map_err(translate::write_error)?;
        }
        if send.finish().is_ok() {
            // An error means that the connection is gone: its reader says so.
            drop(send.stopped().await);
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        tracing::debug!(lane, error = %error.chain(), "the control stream cannot be written");
    }
}

async fn accept_extents(core: Arc<Core>, lane: u8, connection: Connection) -> Option<TunnelError> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                // quinn's limit on open streams bounds the set.
                Ok(stream) => { streams.spawn(read_extents(core.clone(), lane, QuicFeed::new(stream))); }
                // The control reader says why.
                Err(_lost) => return None,
            },
            Some(done) = streams.join_next(), if !streams.is_empty() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) if connection.close_reason().is_none() => return Some(error),
                Ok(Err(_lost)) => return None,
                Err(panic) => {
                    let error = TunnelError::new(TunnelErrorKind::Lost, "the reader of a stream failed");
                    return Some(error.caused_by(panic));
                }
            },
        }
    }
}

async fn read_extents(core: Arc<Core>, lane: u8, mut feed: QuicFeed) -> Result<(), TunnelError> {
    while let Some(header) = frames::header(&mut feed, Some(PROGRESS), PROGRESS).await? {
        if header.tag != Tag::Extent {
            return Err(TunnelError::unexpected_frame(header.tag));
        }
        let extent = frames::extent(&core, lane, &mut feed, header, PROGRESS).await?;
        if core.received.send(extent).await.is_err() {
            break; // nobody wants it any more
        }
    }
    Ok(())
}

async fn dispatch(core: Arc<Core>, lane: u8, connection: Connection, send_window: u64) {
    let mut streams: JoinSet<Result<u64, TunnelError>> = JoinSet::new();
    let mut in_flight = 0;
    loop {
        // Twice the congestion window fills the path; more would only keep extents from the other lanes.
        let window = connection.stats().path.cwnd.saturating_mul(2);
        let room = in_flight < window.clamp(MIN_IN_FLIGHT.min(send_window), send_window);
        let first = tokio::select! {
            biased;
            _ = connection.closed() => return,
            Some(done) = streams.join_next(), if !streams.is_empty() => {
                match done {
                    Ok(Ok(bytes)) => in_flight -= bytes,
                    // Without the connection this is the end already; a stream that the peer alone refuses would
                    // lose its extents in silence, so it ends the connection.
                    Ok(Err(error)) => {
                        let code = close_number(CloseCode::Failed(FailCode::Protocol));
                        connection.close(code, error.chain().as_bytes());
                    }
                    Err(panic) => {
                        let code = close_number(CloseCode::Failed(FailCode::Internal));
                        connection.close(code, panic.to_string().as_bytes());
                    }
                }
                continue;
            }
            extent = core.outgoing.recv(), if room => match extent {
                Ok(extent) => extent,
                Err(_closed) => {
                    connection.closed().await;
                    return;
                }
            },
        };
        let mut bytes = first.payload_len();
        let mut batch = vec![first];
        while bytes < COALESCE_BYTES && batch.len() < COALESCE_FRAMES {
            let Ok(extent) = core.outgoing.try_recv() else { break };
            bytes += extent.payload_len();
            batch.push(extent);
        }
        for extent in &batch {
            let event = Event::LaneTook { lane, sequence: extent.sequence };
            if core.events.send(event).await.is_err() {
                return; // the inbox is gone, and with it the session
            }
        }
        tokio::select! {
            () = core.throttle(bytes) => {}
            _ = connection.closed() => return,
        }
        // Heads count too: an extent without payload must not be free.
        let bytes = bytes + batch.iter().map(|extent| extent.head.len() as u64).sum::<u64>();
        in_flight += bytes;
        streams.spawn(write_extents(core.clone(), connection.clone(), batch, bytes));
    }
}

async fn write_extents(
    core: Arc<Core>,
    connection: Connection,
    batch: Vec<OutgoingExtent>,
    bytes: u64,
) -> Result<u64, TunnelError> {
    let mut stream = connection.open_uni().await.map_err(translate::connection_error)?;
    for extent in batch {
        let len = extent.payload_len();
        let mut chunks = Vec::with_capacity(1 + extent.payload.len());
        chunks.push(extent.head);
        chunks.extend(extent.payload);
        core.payload_sent.fetch_add(len, Ordering::Relaxed);
        stream.write_all_chunks(&mut chunks).await.map_err(translate::write_error)?;
    }
    if stream.finish().is_ok() {
        // Until the peer's transport has it all: then the room is free again.
        drop(stream.stopped().await);
    }
    Ok(bytes)
}

/// Registers the connection in the tunnel's statistics; false when the lane's number is taken.
pub(crate) fn attach(core: &Core, lane: u8, link: &QuicLink) -> bool {
    core.add_lane(lane, Meter::Quic(link.connection.clone()))
}
