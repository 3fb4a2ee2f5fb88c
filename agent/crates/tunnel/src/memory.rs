//! A tunnel within one process, for local copies and tests: the same ends, the same back-pressure, no TLS.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wire::{Control, DecodeError, ExtentHead, FRAME_HEADER, FrameHeader, Tag};

use crate::core::{Core, ReceiveBuffers};
use crate::error::{TunnelError, TunnelErrorKind};
use crate::identity::PeerName;
use crate::options::Transport;
use crate::tunnel::{Event, Growth, OutgoingExtent, ReceivedExtent, Tunnel};

/// The name of both sides.
const NAME: &str = "local";

/// Two tunnels that are each other's peer. Must be called inside a tokio runtime, which drives them.
///
/// # Errors
/// [`crate::TunnelErrorKind::Config`] when the buffers of a side cannot hold a frame.
pub fn memory_pair(left: ReceiveBuffers, right: ReceiveBuffers) -> Result<(Tunnel, Tunnel), TunnelError> {
    left.check()?;
    right.check()?;
    let name: PeerName = NAME.parse().map_err(|error| TunnelError::config(NAME).caused_by(error))?;
    let (left, left_ends) = Core::new(name.clone(), Transport::Memory, left, None);
    let (right, right_ends) = Core::new(name, Transport::Memory, right, None);
    for (from, to) in [(&left, &right), (&right, &left)] {
        from.workers.spawn(run(from.clone(), to.clone()));
    }
    Ok((
        Tunnel::new(&left, left_ends, Growth::Fixed, None),
        Tunnel::new(&right, right_ends, Growth::Fixed, None),
    ))
}

/// Carries what `from` sends until either side is closed, and ends `to`; the other direction's run ends `from`.
async fn run(from: Arc<Core>, to: Arc<Core>) {
    let broken = tokio::select! {
        error = carry_extents(&from, &to) => Some(error),
        () = carry_control(&from, &to) => None,
        _ = to.closing() => None,
    };
    let error = match (broken, from.is_closing()) {
        (Some(error), _) => error,
        (None, Some(closing)) => TunnelError::peer_closed(closing.code, closing.reason.as_bytes()),
        (None, None) => TunnelError::new(TunnelErrorKind::Lost, "the inbox was dropped"),
    };
    to.fail(error); // without effect when `to` was closed by its owner
    to.finish().await;
}

async fn carry_control(from: &Core, to: &Core) {
    while let Ok(frame) = from.control.recv().await {
        match frame {
            // As on the network, these are the tunnel's own.
            Control::Ping(_) | Control::Pong(_) => {}
            frame => {
                if to.events.send(Event::Control(frame)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn carry_extents(from: &Core, to: &Core) -> TunnelError {
    loop {
        let Ok(extent) = from.outgoing.recv().await else {
            // Closed: the control frames that are still queued end this.
            return std::future::pending().await;
        };
        let event = Event::LaneTook { lane: 0, sequence: extent.sequence };
        if from.events.send(event).await.is_err() {
            return std::future::pending().await;
        }
        match carry(from, to, &extent).await {
            Ok(extent) => {
                if to.received.send(extent).await.is_err() {
                    return std::future::pending().await;
                }
            }
            Err(error) => return error,
        }
    }
}

async fn carry(from: &Core, to: &Core, extent: &OutgoingExtent) -> Result<ReceivedExtent, TunnelError> {
    let head = decode(&extent.head).map_err(TunnelError::protocol)?;
    let len = extent.payload_len();
    if len != u64::from(head.wire_len) {
        return Err(TunnelError::protocol(DecodeError::Invalid { field: "payload length", value: len }));
    }
    let (permit, mut payload) = to.buffers(head.wire_len as usize).await;
    let mut pieces = extent.payload.iter();
    let mut piece: &[u8] = &[];
    for buffer in &mut payload {
        let mut at = 0;
        while at < buffer.len() {
            if piece.is_empty() {
                // The lengths were compared above.
                piece = pieces.next().map_or(&[], |next| next);
                continue;
            }
            let take = piece.len().min(buffer.len() - at);
            buffer[at..at + take].copy_from_slice(&piece[..take]);
            piece = &piece[take..];
            at += take;
        }
    }
    from.payload_sent.fetch_add(len, Ordering::Relaxed);
    to.payload_received.fetch_add(len, Ordering::Relaxed);
    Ok(ReceivedExtent { lane: 0, head, payload, permit })
}

fn decode(bytes: &[u8]) -> Result<ExtentHead, DecodeError> {
    let (header, body) =
        bytes.split_first_chunk::<FRAME_HEADER>().ok_or(DecodeError::Truncated("frame header"))?;
    let header = FrameHeader::decode(header)?;
    if header.tag != Tag::Extent {
        return Err(DecodeError::Invalid { field: "frame tag at this place", value: header.tag as u64 });
    }
    if header.len != body.len() {
        return Err(DecodeError::Truncated("extent head"));
    }
    ExtentHead::decode(body)
}
