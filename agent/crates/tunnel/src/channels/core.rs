//! What the parts of one migration's tunnel share: its queues, its channels' numbers, its end.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use volume::{Generation, SessionId};
use wire::{ChannelHello, Control, FailCode};

use super::channel::Channel;
use super::ends::TcpChannel;
use crate::core::{CONTROL_QUEUE, SessionKey, lock};
use crate::ending::{Closing, Ending};
use crate::error::TunnelError;
use crate::identity::PeerName;
use crate::limit::TokenBucket;
use crate::options::Transport;
use crate::profile::MAX_CHANNELS;
use crate::stats::{Counters, LaneStats, Meter, TunnelStats};

/// Messages that wait for the owner of the migration. 64 of 64 KiB are 4 MiB at worst; most are below 1 KiB.
const INBOX: usize = 64;

/// What a channel is when it is opened by the peer.
pub(super) type Arrival = (ChannelHello, Channel);

/// Where and how a migration's tunnel runs.
pub(super) struct Setting {
    pub(super) peer: PeerName,
    pub(super) remote: SocketAddr,
    pub(super) transport: Transport,
    pub(super) migration: SessionId,
    /// Payload bytes a second.
    pub(super) limit: Option<u64>,
    /// Silence after which a TCP connection is dead.
    pub(super) idle: Duration,
    /// Drives the tunnel's sockets.
    pub(super) home: Handle,
}

pub(crate) struct ChannelCore {
    pub(crate) peer: PeerName,
    pub(crate) ending: Ending,
    /// Tokens are held by whatever works for this tunnel.
    pub(crate) workers: TaskTracker,
    pub(super) remote: SocketAddr,
    pub(super) transport: Transport,
    pub(super) migration: SessionId,
    pub(super) idle: Duration,
    pub(super) home: Handle,
    /// Messages that wait to be sent.
    pub(super) outgoing: async_channel::Receiver<Control>,
    pub(super) inbox: async_channel::Sender<Vec<u8>>,
    /// Channels that the peer opened and nobody has taken. As many as there are numbers, so that it is never full.
    pub(super) arrivals: async_channel::Sender<Arrival>,
    pub(super) arrived: async_channel::Receiver<Arrival>,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    /// Bytes of all channels' TCP connections.
    pub(super) counters: Arc<Counters>,
    limit: Mutex<Option<TokenBucket>>,
    /// Whether there is a limit: asked for each piece.
    limited: AtomicBool,
    generation: Mutex<Option<Generation>>,
    numbers: Arc<Mutex<HashSet<u16>>>,
    control: Mutex<Meter>,
    sockets: Mutex<Vec<Weak<TcpChannel>>>,
}

/// The ends of the queues that the tunnel's owner gets.
pub(super) struct Ends {
    pub(super) messages: async_channel::Sender<Control>,
    pub(super) inbox: async_channel::Receiver<Vec<u8>>,
}

/// The number of an open channel; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    numbers: Arc<Mutex<HashSet<u16>>>,
    number: u16,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.numbers).remove(&self.number);
    }
}

impl ChannelCore {
    pub(super) fn new(setting: Setting, control: Meter) -> (Arc<Self>, Ends) {
        let Setting { peer, remote, transport, migration, limit, idle, home } = setting;
        let (messages, outgoing) = async_channel::bounded(CONTROL_QUEUE);
        let (inbox, inbox_end) = async_channel::bounded(INBOX);
        let (arrivals, arrived) = async_channel::bounded(usize::from(MAX_CHANNELS));
        let core = Self {
            peer,
            ending: Ending::new(),
            workers: TaskTracker::new(),
            remote,
            transport,
            migration,
            idle,
            home,
            outgoing,
            inbox,
            arrivals,
            arrived,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            counters: Arc::default(),
            limit: Mutex::new(limit.map(|rate| TokenBucket::new(rate, Instant::now()))),
            limited: AtomicBool::new(limit.is_some()),
            generation: Mutex::new(None),
            numbers: Arc::default(),
            control: Mutex::new(control),
            sockets: Mutex::new(Vec::new()),
        };
        (Arc::new(core), Ends { messages, inbox: inbox_end })
    }

    /// Ends the tunnel; the first reason counts.
    pub(super) fn close(&self, closing: Closing) {
        self.ending.set(closing);
        // No new messages; those that are queued are still sent.
        self.outgoing.close();
        self.workers.close();
    }

    pub(super) fn fail(&self, error: TunnelError) {
        self.close(Closing::because(error));
    }

    /// The error that stands for `error`: when the tunnel is over, the reason of that.
    pub(super) fn explain(&self, error: TunnelError) -> TunnelError {
        self.ending.get().map_or(error, |closing| closing.error)
    }

    /// Channels of this generation are let in from now on; an older one does not come back.
    pub(super) fn register(&self, generation: Generation) {
        let mut current = lock(&self.generation);
        *current = (*current).max(Some(generation));
    }

    /// Takes a channel's number, when the hello belongs here.
    pub(crate) fn admit(&self, hello: &ChannelHello) -> Result<Slot, FailCode> {
        let generation = lock(&self.generation).ok_or(FailCode::NotFound)?;
        if hello.migration != self.migration {
            return Err(FailCode::NotFound);
        }
        if hello.generation != generation {
            return Err(FailCode::StaleGeneration);
        }
        self.take(hello.channel)
    }

    /// Takes a number: none is taken twice, and no more than [`MAX_CHANNELS`].
    pub(super) fn take(&self, number: u16) -> Result<Slot, FailCode> {
        let mut numbers = lock(&self.numbers);
        if numbers.contains(&number) {
            return Err(FailCode::Busy);
        }
        if numbers.len() >= usize::from(MAX_CHANNELS) {
            return Err(FailCode::Overloaded);
        }
        numbers.insert(number);
        Ok(Slot { numbers: self.numbers.clone(), number })
    }

    /// What the limit demands before the next bytes may move, now that `bytes` did.
    pub(super) fn pay(&self, bytes: u64) -> Duration {
        if !self.is_limited() {
            return Duration::ZERO;
        }
        lock(&self.limit).as_mut().map_or(Duration::ZERO, |limit| limit.take(bytes, Instant::now()))
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// From now on so many bytes a second. What waits for its turn has been given it by the old limit.
    pub(super) fn set_limit(&self, limit: Option<u64>) {
        let mut bucket = lock(&self.limit);
        match (&mut *bucket, limit) {
            (Some(bucket), Some(rate)) => bucket.set_rate(rate, Instant::now()),
            (bucket, limit) => *bucket = limit.map(|rate| TokenBucket::new(rate, Instant::now())),
        }
        self.limited.store(limit.is_some(), Ordering::Relaxed);
    }

    /// Remembers a socket, to cut it when the tunnel ends.
    pub(super) fn watch(&self, channel: &Arc<TcpChannel>) {
        let mut sockets = lock(&self.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(channel));
        if self.ending.is_set() {
            channel.cut();
        }
    }

    /// Ends what the channels over TCP wait for. Those over QUIC end with their connection.
    pub(super) fn cut(&self) {
        for socket in lock(&self.sockets).iter().filter_map(Weak::upgrade) {
            socket.cut();
        }
    }

    /// The last word: channels that nobody took are let go (they hold this core), waiting callers are told.
    pub(super) fn finish(&self) {
        self.cut();
        self.inbox.close();
        self.arrivals.close();
        while let Ok(arrival) = self.arrived.try_recv() {
            drop(arrival);
        }
        let mut control = lock(&self.control);
        let last = control.read(0);
        *control = Meter::Down(LaneStats { up: false, ..last });
    }

    pub(super) fn stats(&self) -> TunnelStats {
        let payload = [&self.sent, &self.received].map(|count| count.load(Ordering::Relaxed));
        let control = lock(&self.control).read(0);
        let mut lanes = vec![control];
        if self.transport == Transport::Tcp {
            let channels = Meter::Counted(self.counters.clone()).read(1);
            lanes.push(LaneStats { up: control.up, ..channels });
        }
        TunnelStats::of(self.transport, payload, lanes)
    }

    pub(super) fn key(&self, generation: Generation) -> SessionKey {
        SessionKey { session: self.migration, generation }
    }
}

impl std::fmt::Debug for ChannelCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChannelCore({} over {:?})", self.peer, self.transport)
    }
}
