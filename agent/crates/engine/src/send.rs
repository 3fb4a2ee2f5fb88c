//! The sending driver: one owner task that polls the [`Sender`], reads, hands extents to CPU threads, and sends.
//!
//! ```text
//! machine ─► FindData ─► source.next_data
//!         ─► Scan ─► read 4 x 256 KiB ─► CPU: hash, compare, encode ─► (page sums?) ─► ready ─► data queue ─► lanes
//!         ◄─ events: control frames, lanes, finished jobs, timer, stop
//! ```
//! Buffers bound everything: an extent is read only when four are free, and raw payload keeps them until the transport
//! has been acknowledged.

mod scan;
mod state;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::FuturesUnordered;
use reduce::delta::SumSeed;
use reduce::{Controller, Fill, HashKey, KnownChunks, Mode as LevelMode, PayHint, Root, Sample};
use session::{Change, OldExtent, Outcome, Sender, SenderAction, SenderTerms};
use tokio_util::sync::CancellationToken;
use tunnel::{DataSender, Event, Inbox, OutgoingExtent, TunnelHandle};
use volume::{
    Buffer, BufferPool, ByteLen, ByteOffset, ByteRange, CHUNK, ChunkId, ExtentIndex, Fingerprint, Kind, Op,
    Source, VolumeError,
};
use wire::{ChunkEntry, Control, ExtentHead, Fail, Grant, PageSums, Sealed};

pub use state::SenderState;
pub(crate) use state::random_session;

use crate::clock::Clock;
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::progress::Progress;
use scan::{Cost, Encoded, Plain, Verdict};

/// Extents in work at once: read, hashed, waiting for page sums or for room to be sent. With those in the transport
/// they live in the pool's buffers.
const MAX_WORK: usize = 24;
/// Extents in the data queue at most: more would only be pinned memory, less lets a lane run dry between polls.
const DATA_QUEUE: usize = 8;
/// Control frames that wait for the tunnel before the machine is asked for more.
const CONTROL_QUEUE: usize = 32;
/// How often the compression controller gets a sample and the statistics are read.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How long a drained sender waits for what is in flight.
const DRAIN: Duration = Duration::from_secs(10);

/// What a sender needs for one attempt, after the handshake.
pub(crate) struct SendAttempt<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) size: ByteLen,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) grant: Grant,
    pub(crate) state: &'a mut SenderState,
    pub(crate) pool: &'a Arc<dyn BufferPool>,
    pub(crate) cpu: &'a Cpu,
    pub(crate) level: LevelMode,
    pub(crate) dedup_memory: usize,
    pub(crate) progress: &'a Progress,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) cancel: &'a CancellationToken,
    /// Buffers in `pool`.
    pub(crate) buffers: usize,
}

/// The tunnel's ends on the sending side.
pub(crate) struct SendEnds {
    pub(crate) handle: TunnelHandle,
    pub(crate) data: DataSender,
    pub(crate) inbox: Inbox,
}

enum Finished {
    Data(Option<ByteRange>),
    Scanned { extent: ExtentIndex, ids: Vec<ChunkId>, verdict: Verdict },
    Encoded { extent: ExtentIndex, ids: Vec<ChunkId>, frame: Encoded },
    Checked(Root),
}

struct Driver<'a> {
    machine: Sender,
    shared: Arc<scan::Shared>,
    jobs: FuturesUnordered<BoxFuture<'a, Result<Finished, EngineError>>>,
    ready: HashMap<u64, Encoded>,
    asked: HashMap<u64, Plain>,
    control: VecDeque<Control>,
    controller: Controller,
    sample: Sampled,
    sealed: Option<Sealed>,
    attempt: SendAttempt<'a>,
}

#[derive(Default)]
struct Sampled {
    at: Duration,
    sent: u64,
    plain: u64,
    cost: Cost,
}

/// Sends one volume under a grant. Returns what the receiver sealed.
pub(crate) async fn send(ends: &SendEnds, attempt: SendAttempt<'_>) -> Result<Sealed, EngineError> {
    let clock = Clock::start();
    if HashKey::from_bytes(attempt.grant.key.0).id() != attempt.grant.key_id {
        let what = "the receiver's hash key has another id than it says; upgrade or repair it";
        return Err(EngineError::refused(wire::FailCode::Protocol, what));
    }
    let remembered = attempt.state.remembered(attempt.grant.key_id, attempt.size);
    let terms = SenderTerms {
        size: attempt.size,
        grant: attempt.grant,
        remembered, // Each takes its four buffers one by one: no more at once than can all get theirs.
        max_work: MAX_WORK.min(attempt.buffers / 4),
    };
    attempt.state.begin(&attempt.grant)?;
    let shared = Arc::new(scan::Shared {
        key: HashKey::from_bytes(attempt.grant.key.0),
        seed: SumSeed(attempt.grant.page_seed),
        known: Mutex::new(KnownChunks::new(attempt.dedup_memory)),
        hint: Mutex::new(PayHint::default()),
    });
    let cores = u32::try_from(attempt.cpu.threads()).unwrap_or(1);
    let mut driver = Driver {
        machine: Sender::new(clock.now(), terms)?,
        shared,
        jobs: FuturesUnordered::new(),
        ready: HashMap::new(),
        asked: HashMap::new(),
        control: VecDeque::new(),
        controller: Controller::new(attempt.level, cores),
        sample: Sampled::default(),
        sealed: None,
        attempt,
    };
    driver.machine.start();
    let result = driver.run(ends, clock).await;
    driver.attempt.progress.note(&ends.handle.stats());
    match &result {
        Ok(_) => {}
        Err(
            EngineError::Tunnel(_)
            | EngineError::Session(session::SessionError::Peer { .. } | session::SessionError::Drained),
        ) => {}
        Err(EngineError::Interrupted) => {
            let _over = ends.handle.send(Control::Drain).await;
        }
        Err(error) => {
            // If the tunnel has failed meanwhile, nobody is there to be told.
            let fail = Fail { code: error.fail_code(), detail: error.told() };
            let _over = ends.handle.send(Control::Fail(fail)).await;
        }
    }
    result
}

impl<'a> Driver<'a> {
    async fn run(&mut self, ends: &SendEnds, clock: Clock) -> Result<Sealed, EngineError> {
        let mut stopping: Option<Duration> = None;
        loop {
            self.poll_machine(ends, clock).await?;
            if let Some(sealed) = self.sealed.take() {
                return Ok(sealed);
            }
            if stopping.is_some() && self.machine.is_idle() {
                return Err(EngineError::Interrupted);
            }
            let sample_at = self.sample.at + SAMPLE_EVERY;
            let wake = [self.machine.poll_timeout(), stopping, Some(sample_at)].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = self.attempt.cancel.cancelled() => return Err(EngineError::Cancelled),
                () = self.attempt.stop.cancelled(), if stopping.is_none() => {
                    self.machine.drain();
                    stopping = Some(clock.now() + DRAIN);
                }
                event = ends.inbox.recv() => self.event(event, clock)?,
                sent = send_front(&ends.handle, self.control.front()), if !self.control.is_empty() => {
                    self.control.pop_front();
                    sent?;
                }
                Some(finished) = self.jobs.next() => self.finished(finished?, clock)?,
                () = clock.reach(wake) => {
                    let now = clock.now();
                    if stopping.is_some_and(|until| now >= until) {
                        return Err(EngineError::Interrupted);
                    }
                    self.machine.handle_timeout(now)?;
                    if now >= sample_at {
                        self.take_sample(ends, now);
                    }
                }
            }
        }
    }

    fn event(&mut self, event: Option<Event>, clock: Clock) -> Result<(), EngineError> {
        match event {
            Some(Event::Control(frame)) => self.machine.handle_control(clock.now(), frame)?,
            Some(Event::LaneUp { lane }) => tracing::debug!(lane, "a connection joined"),
            Some(Event::LaneTook { lane, sequence }) => self.machine.handle_lane_took(lane, sequence),
            Some(Event::LaneDown { lane, error }) => {
                tracing::warn!(lane, %error, "a connection died; what it carried is sent again by the others");
                self.machine.handle_lane_down(lane);
            }
            Some(Event::Closed(error)) => return Err(error.into()),
            None => return Err(EngineError::Interrupted),
        }
        Ok(())
    }

    async fn poll_machine(&mut self, ends: &SendEnds, clock: Clock) -> Result<(), EngineError> {
        loop {
            while let Some(action) = self.machine.poll_action() {
                self.act(action)?;
            }
            while self.control.len() < CONTROL_QUEUE {
                match self.machine.poll_transmit(clock.now()) {
                    Some(frame) => self.control.push_back(frame),
                    None => break,
                }
            }
            if ends.data.queued() >= DATA_QUEUE {
                return Ok(());
            }
            let Some(dispatch) = self.machine.poll_send(clock.now()) else { return Ok(()) };
            let Some(frame) = self.ready.remove(&dispatch.extent.0) else {
                return Err(EngineError::Corrupt("an extent was sent that was not encoded".to_owned()));
            };
            let wire_len = frame.wire_len();
            self.attempt.state.count_sent(dispatch.extent, u64::from(wire_len), self.attempt.progress)?;
            let head = ExtentHead {
                sequence: dispatch.sequence,
                floor: dispatch.floor,
                extent: dispatch.extent,
                encoding: frame.encoding,
                wire_len,
                plain_len: frame.plain_len,
                chunks: frame.chunks,
            };
            let outgoing =
                OutgoingExtent { sequence: dispatch.sequence, head: head.encode(), payload: frame.payload };
            // There was room, and nobody else fills the queue: this does not wait.
            if ends.data.send(outgoing).await.is_err() {
                // Why is in the inbox.
                return Ok(());
            }
        }
    }

    fn act(&mut self, action: SenderAction) -> Result<(), EngineError> {
        match action {
            SenderAction::FindData(extent) => {
                let source = self.attempt.source;
                self.jobs.push(Box::pin(async move {
                    Ok(Finished::Data(source.next_data(extent.offset()).await?))
                }));
            }
            SenderAction::Scan { extent, old, full } => self.start_scan(extent, old, full),
            SenderAction::Encode(sums) => self.start_encode(sums),
            SenderAction::Learn(tags) => {
                let mut known = self.shared.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for tag in tags {
                    known.insert_tag(tag);
                }
            }
            SenderAction::Settled(change) => self.settled(&change)?,
            SenderAction::Finish => {
                // Checked before the root is sent: no receipt for a source that moved (design rule 9).
                let (source, before) = (self.attempt.source, self.attempt.fingerprint);
                let root = self.attempt.state.root(&self.shared.key)?;
                self.jobs.push(Box::pin(async move {
                    if source.fingerprint().await? == before {
                        return Ok(Finished::Checked(root));
                    }
                    let error = VolumeError::new(Kind::Changed, Op::Check, source.describe());
                    Err(error
                        .advise("stop what writes to it, or copy a snapshot, and run the same command again")
                        .into())
                }));
            }
            SenderAction::Done(sealed) => self.sealed = Some(sealed),
        }
        Ok(())
    }

    fn start_scan(&mut self, extent: ExtentIndex, old: OldExtent, full: bool) {
        let (source, size) = (self.attempt.source, self.attempt.size);
        let (pool, cpu) = (Arc::clone(self.attempt.pool), self.attempt.cpu.clone());
        let (shared, choice) = (Arc::clone(&self.shared), self.controller.choice());
        self.jobs.push(Box::pin(async move {
            let buffers = read_extent(source, &*pool, extent, size).await?;
            let (ids, verdict) =
                cpu.run(move |scratch| scan::scan(scratch, &shared, buffers, old, full, choice)).await?;
            Ok(Finished::Scanned { extent, ids, verdict })
        }));
    }

    fn start_encode(&mut self, sums: PageSums) {
        let extent = sums.extent;
        let Some(plain) = self.asked.remove(&extent.0) else { return };
        let cpu = self.attempt.cpu.clone();
        let (shared, choice) = (Arc::clone(&self.shared), self.controller.choice());
        self.jobs.push(Box::pin(async move {
            let ids = plain.ids.clone();
            let frame = cpu
                .run(move |scratch| scan::encode(scratch, &shared, plain, Some(&sums), false, choice))
                .await?;
            Ok(Finished::Encoded { extent, ids, frame })
        }));
    }

    fn finished(&mut self, finished: Finished, clock: Clock) -> Result<(), EngineError> {
        match finished {
            Finished::Data(range) => self.machine.handle_data(range),
            Finished::Scanned { extent, ids, verdict } => {
                self.attempt.state.note_ids(extent, &ids)?;
                let outcome = match verdict {
                    Verdict::Zero => Outcome::Zero,
                    Verdict::Same => Outcome::Same,
                    Verdict::Query(mask, plain) => {
                        self.asked.insert(extent.0, plain);
                        Outcome::Query(mask)
                    }
                    Verdict::Frame(frame) => self.keep(extent, frame),
                };
                self.machine.handle_scanned(extent, ids, outcome);
            }
            Finished::Encoded { extent, ids, frame } => {
                let outcome = self.keep(extent, frame);
                self.machine.handle_scanned(extent, ids, outcome);
            }
            Finished::Checked(root) => self.machine.handle_root(clock.now(), root.0),
        }
        Ok(())
    }

    fn keep(&mut self, extent: ExtentIndex, frame: Encoded) -> Outcome {
        let cost = frame.cost;
        let total = &mut self.sample.cost;
        total.compress_in += cost.compress_in;
        total.compress_out += cost.compress_out;
        total.compress_time += cost.compress_time;
        total.cpu_time += cost.cpu_time;
        self.sample.plain += u64::from(frame.plain_len);
        let len = extent.range(self.attempt.size).map_or(0, ByteRange::len);
        let referenced =
            frame.chunks.iter().zip(0_u64..).filter(|(chunk, _)| matches!(chunk, ChunkEntry::Reference(_)));
        let dedup = referenced.map(|(_, nth)| len.saturating_sub(nth * CHUNK).min(CHUNK)).sum();
        Progress::add(&self.attempt.progress.dedup, dedup);
        let wire_len = frame.wire_len();
        self.ready.insert(extent.0, frame);
        Outcome::Frame { wire_len }
    }

    fn settled(&mut self, change: &Change) -> Result<(), EngineError> {
        let progress = self.attempt.progress;
        let bytes = |first: ExtentIndex, count: u64| {
            let past = ExtentIndex(first.0 + count).offset().0.min(self.attempt.size.0);
            past.saturating_sub(first.offset().0)
        };
        match change {
            Change::Extent { extent, ids } => {
                let mut known = self.shared.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for id in ids.iter().filter(|id| **id != ChunkId::ZERO) {
                    known.insert(id);
                }
                Progress::add(&progress.settled, bytes(*extent, 1));
            }
            Change::Zero { first, count } => {
                Progress::add(&progress.settled, bytes(*first, *count));
                Progress::add(&progress.zero, bytes(*first, *count));
            }
            Change::Same { first, count } => {
                Progress::add(&progress.settled, bytes(*first, *count));
                Progress::add(&progress.same, bytes(*first, *count));
            }
        }
        self.attempt.state.settle(change)
    }

    fn take_sample(&mut self, ends: &SendEnds, now: Duration) {
        let stats = ends.handle.stats();
        self.attempt.progress.note(&stats);
        let (cpu_used, cpu_capacity) = self.attempt.cpu.queue();
        let cost = std::mem::take(&mut self.sample.cost);
        let sample = Sample {
            elapsed: now.saturating_sub(self.sample.at),
            send_queue: Fill {
                used: (ends.data.queued() + self.ready.len()) as u64,
                capacity: MAX_WORK as u64,
            },
            cpu_queue: Fill { used: cpu_used as u64, capacity: cpu_capacity as u64 },
            sent_bytes: stats.payload_sent.saturating_sub(self.sample.sent),
            plain_bytes: std::mem::take(&mut self.sample.plain),
            compress_in: cost.compress_in,
            compress_out: cost.compress_out,
            compress_time: cost.compress_time,
            cpu_time: cost.cpu_time,
        };
        let before = self.controller.choice();
        let after = self.controller.observe(&sample);
        if before != after {
            tracing::debug!(?before, ?after, "compression changes");
        }
        self.sample.at = now;
        self.sample.sent = stats.payload_sent;
    }
}

/// Sends the frame in front, unless there is none.
pub(crate) async fn send_front(handle: &TunnelHandle, front: Option<&Control>) -> Result<(), EngineError> {
    match front {
        // When the tunnel is over, the inbox says why: wait for that instead of guessing here.
        Some(frame) => match handle.send(frame.clone()).await {
            Ok(()) => Ok(()),
            Err(_closed) => std::future::pending().await,
        },
        None => Ok(()),
    }
}

async fn read_extent(
    source: &dyn Source,
    pool: &dyn BufferPool,
    extent: ExtentIndex,
    size: ByteLen,
) -> Result<Vec<Buffer>, EngineError> {
    let Some(range) = extent.range(size) else { return Ok(Vec::new()) };
    let mut at = range.start;
    let mut reads = Vec::with_capacity(4);
    while at < range.end {
        let mut buffer = pool.acquire().await;
        let len = (range.end - at).min(buffer.capacity() as u64);
        buffer.set_len(usize::try_from(len).unwrap_or(usize::MAX));
        let place = ByteOffset(at);
        reads.push(async move {
            let (result, buffer) = source.read_at(place, buffer).await;
            result.map(|()| buffer)
        });
        at += len;
    }
    Ok(try_join_all(reads).await?)
}
