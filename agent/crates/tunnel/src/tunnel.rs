//! The ends of a tunnel that the owner of a session holds.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use volume::{Buffer, Generation, Sequence, SessionId};
use wire::{Control, ExtentHead};

use crate::core::{Core, Ends, Permit, SessionKey};
use crate::dial::Dialler;
use crate::error::{CloseCode, Closed, TunnelError};
use crate::identity::PeerName;
use crate::options::Transport;
use crate::registry::Registry;
use crate::stats::TunnelStats;

/// One extent on its way out.
#[derive(Clone, Debug)]
pub struct OutgoingExtent {
    /// As in the head; names the extent in [`Event::LaneTook`].
    pub sequence: Sequence,
    /// What [`ExtentHead::encode`] made.
    pub head: Bytes,
    /// The `wire_len` bytes that the head declares, in pieces. They are not copied before TLS; quinn keeps them
    /// until they are acknowledged, so pieces of at most 256 KiB give memory back sooner.
    pub payload: Vec<Bytes>,
}

impl OutgoingExtent {
    pub(crate) fn payload_len(&self) -> u64 {
        self.payload.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// One extent that arrived. Its head is well-formed; whether it fits the volume is for the session to check.
#[derive(Debug)]
pub struct ReceivedExtent {
    /// The lane that it came by.
    pub lane: u8,
    /// Its head.
    pub head: ExtentHead,
    /// `wire_len` bytes in buffers of the pool, each full but the last.
    pub payload: Vec<Buffer>,
    /// The right to hold the buffers: drop it together with them.
    pub permit: Permit,
}

/// What happens in a tunnel.
#[derive(Debug)]
pub enum Event {
    /// A control frame. Ping and Pong never show up: the tunnel answers and takes them itself.
    Control(Control),
    /// A further connection carries data now.
    LaneUp {
        /// Its number.
        lane: u8,
    },
    /// A lane took this extent from the queue. Always before that lane's [`Event::LaneDown`].
    LaneTook {
        /// The lane.
        lane: u8,
        /// The extent.
        sequence: Sequence,
    },
    /// A lane is gone; what it took and the peer has not acknowledged must be sent again.
    LaneDown {
        /// The lane.
        lane: u8,
        /// Why.
        error: TunnelError,
    },
    /// The tunnel is over: the control stream ended, the peer broke the protocol, or this side closed it. The last
    /// event; there is no `LaneDown` for the lanes that ended with it.
    Closed(TunnelError),
}

/// Where further connections come from.
#[derive(Clone)]
pub(crate) enum Growth {
    /// We dial them.
    Dial(Arc<Dialler>),
    /// They are routed to us.
    Listen(Arc<Registry>),
    /// There are none.
    Fixed,
}

/// Closes the tunnel when the last end is dropped, so that its threads end.
struct Presence(Arc<Core>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.abandoned();
    }
}

/// The connections of one session. [`Tunnel::split`] gives its ends; dropping all of them ends it.
pub struct Tunnel {
    handle: TunnelHandle,
    data: DataSender,
    inbox: Inbox,
    receiver: DataReceiver,
}

impl Tunnel {
    pub(crate) fn new(core: &Arc<Core>, ends: Ends, growth: Growth, remote: Option<SocketAddr>) -> Self {
        let presence = Arc::new(Presence(core.clone()));
        Self {
            data: DataSender { queue: ends.outgoing, _presence: presence.clone() },
            inbox: Inbox { queue: ends.events, _presence: presence.clone() },
            receiver: DataReceiver { queue: ends.received, _presence: presence.clone() },
            handle: TunnelHandle {
                core: core.clone(),
                control: ends.control,
                growth,
                remote,
                _presence: presence,
            },
        }
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &PeerName {
        self.handle.peer()
    }

    /// How it travels.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.handle.transport()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> TunnelStats {
        self.handle.stats()
    }

    /// The ends, to be held by different tasks.
    #[must_use]
    pub fn split(self) -> (TunnelHandle, DataSender, Inbox, DataReceiver) {
        (self.handle, self.data, self.inbox, self.receiver)
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

/// Sends control frames and steers the tunnel.
#[derive(Clone)]
pub struct TunnelHandle {
    core: Arc<Core>,
    control: async_channel::Sender<Control>,
    growth: Growth,
    remote: Option<SocketAddr>,
    _presence: Arc<Presence>,
}

impl TunnelHandle {
    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> &PeerName {
        &self.core.peer
    }

    /// How it travels.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.core.transport
    }

    /// The peer's address; none in memory.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> TunnelStats {
        self.core.stats()
    }

    /// Queues a control frame; waits while the queue is full.
    ///
    /// # Errors
    /// [`Closed`] when the tunnel is over.
    pub async fn send(&self, frame: Control) -> Result<(), Closed> {
        // The error holds the frame that was not sent; there is nothing else to know.
        self.control.send(frame).await.map_err(|_full| Closed)
    }

    /// Accepting side, once the session has its generation: further connections of the same peer that name both are
    /// routed here; those of an older generation of the session no longer.
    pub fn register(&self, session: SessionId, generation: Generation) {
        if let Growth::Listen(registry) = &self.growth {
            registry.sessions.register(SessionKey { session, generation }, &self.core);
        }
    }

    /// Dialling side, after the grant: opens the remaining connections, all at once. Over TCP these are the ones
    /// that carry data, so this must be called there too. Answers how many came up; those that did not are
    /// [`Event::LaneDown`].
    ///
    /// # Errors
    /// When no connection is there that can carry data.
    pub async fn open_lanes(&self, session: SessionId, generation: Generation) -> Result<u8, TunnelError> {
        match &self.growth {
            Growth::Dial(dialler) => dialler.open_lanes(&self.core, SessionKey { session, generation }).await,
            Growth::Listen(_) | Growth::Fixed => Ok(0),
        }
    }

    /// Ends the tunnel. Control frames that were queued before are still sent, and the code and the reason after
    /// them; extents in the queue are not.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.core.close_here(code, reason);
    }

    /// Waits until the tunnel is over and everything that worked for it has ended.
    pub async fn ended(&self) {
        self.core.closing().await;
        self.core.workers.wait().await;
    }
}

impl fmt::Debug for TunnelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel(to {} over {:?})", self.core.peer, self.core.transport)
    }
}

/// Sends extents. All lanes take from one queue, so a slow one takes less and a dead one nothing.
#[derive(Clone)]
pub struct DataSender {
    queue: async_channel::Sender<OutgoingExtent>,
    _presence: Arc<Presence>,
}

impl DataSender {
    /// Queues an extent; waits while the queue is full.
    ///
    /// # Errors
    /// [`Closed`] when the tunnel is over.
    pub async fn send(&self, extent: OutgoingExtent) -> Result<(), Closed> {
        self.queue.send(extent).await.map_err(|_full| Closed)
    }

    /// Extents that no lane has taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Extents that the queue holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity().unwrap_or(usize::MAX)
    }
}

impl fmt::Debug for DataSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataSender({} of {} queued)", self.queued(), self.capacity())
    }
}

/// What happens. It must be read: lanes wait while the queue of events is full.
pub struct Inbox {
    queue: async_channel::Receiver<Event>,
    _presence: Arc<Presence>,
}

impl Inbox {
    /// The next event; `None` after [`Event::Closed`]. Cancel-safe.
    pub async fn recv(&self) -> Option<Event> {
        self.queue.recv().await.ok()
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} events)", self.queue.len())
    }
}

/// Extents that arrive, in no particular order.
#[derive(Clone)]
pub struct DataReceiver {
    queue: async_channel::Receiver<ReceivedExtent>,
    _presence: Arc<Presence>,
}

impl DataReceiver {
    /// The next extent; `None` when the tunnel is over and all were taken. Cancel-safe.
    pub async fn recv(&self) -> Option<ReceivedExtent> {
        self.queue.recv().await.ok()
    }
}

impl fmt::Debug for DataReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataReceiver({} extents)", self.queue.len())
    }
}
