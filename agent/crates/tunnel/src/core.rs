//! What the lanes of one tunnel share: its queues, its memory, its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use volume::{Buffer, BufferPool, Generation, SessionId};
use wire::{Control, MAX_PAYLOAD};

use crate::ending::{Closing, Ending};
use crate::error::{CloseCode, TunnelError, TunnelErrorKind};
use crate::identity::PeerName;
use crate::limit::TokenBucket;
use crate::options::Transport;
use crate::stats::{LaneStats, Meter, TunnelStats};
use crate::tunnel::{Event, OutgoingExtent, ReceivedExtent};

/// Control frames that wait to be sent. 64 of 64 KiB are 4 MiB at worst; most are below 100 bytes.
pub(crate) const CONTROL_QUEUE: usize = 64;
/// Events that wait for the owner of the session.
pub(crate) const EVENT_QUEUE: usize = 256;
/// Extents that wait for a lane. They live in the caller's buffers, so that those are the real bound.
pub(crate) const OUTGOING_QUEUE: usize = 64;
/// Received extents that wait for the caller. Those with payload hold permits; the others are a few hundred bytes.
pub(crate) const RECEIVED_QUEUE: usize = 64;
/// Pieces into which a long wait for the limiter is cut, so that a closed tunnel ends soon.
pub(crate) const LIMIT_STEP: Duration = Duration::from_secs(1);

/// Where the payload of received extents goes.
#[derive(Clone)]
pub struct ReceiveBuffers {
    /// Hands out the buffers.
    pub pool: Arc<dyn BufferPool>,
    /// How many of its buffers this tunnel may hold at once. The pool must be able to give so many without waiting
    /// for this tunnel to return one: then a frame that got its permits always gets its buffers.
    pub permits: usize,
}

impl std::fmt::Debug for ReceiveBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceiveBuffers({} of {} bytes)", self.permits, self.pool.buffer_size())
    }
}

impl ReceiveBuffers {
    /// At least one whole frame must fit.
    pub(crate) fn check(&self) -> Result<(), TunnelError> {
        let size = self.pool.buffer_size();
        if size == 0 || self.permits < MAX_PAYLOAD.div_ceil(size) {
            let what = format!(
                "{} receive buffers of {size} bytes: one frame of {MAX_PAYLOAD} bytes would never fit",
                self.permits
            );
            return Err(TunnelError::config(what));
        }
        Ok(())
    }
}

/// The right to hold a frame's buffers; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    #[expect(dead_code, reason = "held for its Drop")]
    inner: Option<OwnedSemaphorePermit>,
}

pub(crate) struct Core {
    pub(crate) peer: PeerName,
    pub(crate) transport: Transport,
    pub(crate) events: async_channel::Sender<Event>,
    pub(crate) control: async_channel::Receiver<Control>,
    pub(crate) outgoing: async_channel::Receiver<OutgoingExtent>,
    pub(crate) received: async_channel::Sender<ReceivedExtent>,
    pub(crate) payload_sent: AtomicU64,
    pub(crate) payload_received: AtomicU64,
    /// Tokens are held by whatever works for this tunnel: threads and lane tasks.
    pub(crate) workers: TaskTracker,
    pool: Arc<dyn BufferPool>,
    permits: Arc<Semaphore>,
    limit: Option<Mutex<TokenBucket>>,
    ending: Ending,
    connections: u8,
    lanes: Mutex<Vec<Lane>>,
}

struct Lane {
    number: u8,
    meter: Meter,
}

/// The ends of the queues that the caller gets.
pub(crate) struct Ends {
    pub(crate) events: async_channel::Receiver<Event>,
    pub(crate) control: async_channel::Sender<Control>,
    pub(crate) outgoing: async_channel::Sender<OutgoingExtent>,
    pub(crate) received: async_channel::Receiver<ReceivedExtent>,
}

impl Core {
    pub(crate) fn new(
        peer: PeerName,
        transport: Transport,
        receive: ReceiveBuffers,
        limit: Option<u64>,
    ) -> (Arc<Self>, Ends) {
        Self::with_connections(peer, transport, receive, limit, 1)
    }

    /// `connections`: what the session shares its windows among.
    pub(crate) fn with_connections(
        peer: PeerName,
        transport: Transport,
        receive: ReceiveBuffers,
        limit: Option<u64>,
        connections: u8,
    ) -> (Arc<Self>, Ends) {
        let (events, events_end) = async_channel::bounded(EVENT_QUEUE);
        let (control_end, control) = async_channel::bounded(CONTROL_QUEUE);
        let (outgoing_end, outgoing) = async_channel::bounded(OUTGOING_QUEUE);
        let (received, received_end) = async_channel::bounded(RECEIVED_QUEUE);
        let core = Self {
            peer,
            transport,
            events,
            control,
            outgoing,
            received,
            payload_sent: AtomicU64::new(0),
            payload_received: AtomicU64::new(0),
            workers: TaskTracker::new(),
            pool: receive.pool,
            permits: Arc::new(Semaphore::new(receive.permits.min(Semaphore::MAX_PERMITS))),
            limit: limit.map(|rate| Mutex::new(TokenBucket::new(rate, Instant::now()))),
            ending: Ending::new(),
            connections,
            lanes: Mutex::new(Vec::new()),
        };
        let ends =
            Ends { events: events_end, control: control_end, outgoing: outgoing_end, received: received_end };
        (Arc::new(core), ends)
    }

    /// Ends the tunnel; the first reason counts.
    pub(crate) fn close(&self, closing: Closing) {
        self.ending.set(closing);
        // No new frames; lane 0 still sends the control frames that are queued.
        self.control.close();
        self.outgoing.close();
        self.workers.close();
    }

    /// Ends the tunnel because of an error, telling the peer the code that belongs to it.
    pub(crate) fn fail(&self, error: TunnelError) {
        self.close(Closing::because(error));
    }

    /// Ends the tunnel because the caller wants it.
    pub(crate) fn close_here(&self, code: CloseCode, reason: &str) {
        self.close(Closing::here(code, reason));
    }

    pub(crate) fn abandoned(&self) {
        self.close(Closing::abandoned("session"));
    }

    pub(crate) fn is_closing(&self) -> Option<Closing> {
        self.ending.get()
    }

    /// Waits for the end.
    pub(crate) async fn closing(&self) -> Closing {
        self.ending.wait().await
    }

    /// Tells the inbox, once and last, why the tunnel is over.
    pub(crate) async fn finish(&self) {
        let error = match self.is_closing() {
            Some(closing) => closing.error,
            None => TunnelError::new(TunnelErrorKind::Lost, "the tunnel's thread ended"),
        };
        // Fails only when the inbox is gone: then nobody wants to know.
        drop(self.events.send(Event::Closed(error)).await);
        self.events.close();
        self.received.close();
    }

    /// Waits as long as the limit demands before `bytes` may move.
    pub(crate) async fn throttle(&self, bytes: u64) {
        let Some(limit) = &self.limit else { return };
        let mut wait = lock(limit).take(bytes, Instant::now());
        while wait > Duration::ZERO && self.is_closing().is_none() {
            let step = wait.min(LIMIT_STEP);
            tokio::time::sleep(step).await;
            wait -= step;
        }
    }

    pub(crate) fn connections(&self) -> u8 {
        self.connections
    }

    pub(crate) fn buffer_size(&self) -> usize {
        self.pool.buffer_size()
    }

    /// Permits for a payload of `len` bytes, all at once, and then its buffers: full ones, and a short last one.
    pub(crate) async fn buffers(&self, len: usize) -> (Permit, Vec<Buffer>) {
        if len == 0 {
            return (Permit { inner: None }, Vec::new());
        }
        let size = self.buffer_size();
        let count = len.div_ceil(size);
        let wanted = u32::try_from(count).expect("a payload is 1 MiB at most");
        let permit = self.permits.clone().acquire_many_owned(wanted).await;
        let inner = Some(permit.expect("the semaphore is never closed"));
        let mut buffers = Vec::with_capacity(count);
        for nth in 0..count {
            let mut buffer = self.pool.acquire().await;
            buffer.set_len((len - nth * size).min(size));
            buffers.push(buffer);
        }
        (Permit { inner }, buffers)
    }

    /// Adds a lane to the statistics, unless its number is taken or the tunnel is over.
    pub(crate) fn add_lane(&self, number: u8, meter: Meter) -> bool {
        let mut lanes = lock(&self.lanes);
        if self.is_closing().is_some() || lanes.iter().any(|lane| lane.number == number && lane.meter.is_up())
        {
            return false;
        }
        lanes.retain(|lane| lane.number != number);
        lanes.push(Lane { number, meter });
        true
    }

    /// Freezes a lane's statistics; its connection is let go.
    pub(crate) fn retire_lane(&self, number: u8) {
        for lane in lock(&self.lanes).iter_mut().filter(|lane| lane.number == number) {
            let last = lane.meter.read(number);
            lane.meter = Meter::Down(LaneStats { up: false, ..last });
        }
    }

    pub(crate) fn stats(&self) -> TunnelStats {
        let lanes = lock(&self.lanes).iter().map(|lane| lane.meter.read(lane.number)).collect();
        let payload = [&self.payload_sent, &self.payload_received].map(|count| count.load(Ordering::Relaxed));
        TunnelStats::of(self.transport, payload, lanes)
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({} over {:?})", self.peer, self.transport)
    }
}

/// Locks a mutex that guards plain values: a panic elsewhere left them whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which session a further connection belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SessionKey {
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
}
