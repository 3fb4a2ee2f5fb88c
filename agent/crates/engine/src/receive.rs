//! The receiving driver: one owner task that polls the [`Receiver`], takes extents from the lanes, applies them, commits
//! in groups, and seals.
//!
//! ```text
//! lanes ─► parked by sequence ─► Apply ─► decode, resolve, verify (CPU) ─► write ─┐
//! control ─► ranges, queries, seal                                               ▼
//! machine ◄────────────────────────────── Commit: fdatasync data, journal, fdatasync ─► Ack
//! ```

mod apply;
mod declare;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::FuturesUnordered;
use reduce::delta::{PageSums as Sums, SumSeed};
use session::{Change, ExtentSet, Intake, Receiver, ReceiverAction, ReceiverTerms};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tunnel::{DataReceiver, Event, Inbox, ReceiveBuffers, ReceivedExtent, TunnelHandle};
use volume::{
    Buffer, BufferPool, ByteLen, ByteOffset, ByteRange, ChunkId, ExtentIndex, Sequence, Sink, ZeroMode,
};
use wire::{Control, Fail, FailCode, Grant, Held, PageQuery, PageSums, RangeKind, Run, Seal, Sealed};

use crate::clock::{Clock, process_cpu};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::keyed::Keyed;
use crate::pool::PoolContent;
use crate::progress::Progress;
use crate::target::{Before, Target};
use apply::{Applier, assembly_buffers};
use declare::{Declared, Describer};
use receipt::{Body, Receipt, ReceiptMode, ReceiptSigner, Verified};

/// Control frames that wait for the tunnel before the machine is asked for more.
const CONTROL_QUEUE: usize = 32;
/// Page-sum answers that are computed at once.
const QUERIES: usize = 16;
/// Zero ranges that are applied at once.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How long a drained receiver waits for what is being applied, and a sealed one for the sender's goodbye.
const DRAIN: Duration = Duration::from_secs(10);
/// Frames that did not decode or had the wrong content. Bad memory makes a few, a broken peer many.
const MAX_MISMATCHES: u64 = 1000;

/// The part of a pool that received payload may hold: the rest is for assembling.
#[must_use]
pub fn receive_buffers(pool: &Arc<dyn BufferPool>, buffers: usize) -> ReceiveBuffers {
    ReceiveBuffers { pool: Arc::clone(pool), permits: buffers - assembly_buffers(buffers) }
}

/// Metric: time of one flush of a target.
pub const FSYNC_SECONDS: &str = "novaferry_fsync_seconds";
/// Metric: time of one group commit, flush and journal together.
pub const COMMIT_SECONDS: &str = "novaferry_commit_seconds";

/// What a receiver needs for one attempt, after the handshake.
pub(crate) struct ReceiveAttempt<'a> {
    pub(crate) target: Target,
    pub(crate) size: ByteLen,
    pub(crate) grant: Grant,
    pub(crate) content: PoolContent,
    pub(crate) session: volume::SessionId,
    pub(crate) owner: String,
    pub(crate) mode: wire::Mode,
    pub(crate) readback: bool,
    pub(crate) signer: Option<&'a ReceiptSigner>,
    pub(crate) receiver_name: String,
    pub(crate) pool: &'a Arc<dyn BufferPool>,
    pub(crate) cpu: &'a Cpu,
    pub(crate) progress: &'a Progress,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) cpu_at_start: Duration,
    /// Buffers in `pool`.
    pub(crate) buffers: usize,
}

/// The tunnel's ends on the receiving side.
pub(crate) struct ReceiveEnds {
    pub(crate) handle: TunnelHandle,
    pub(crate) data: DataReceiver,
    pub(crate) inbox: Inbox,
}

enum Finished {
    Applied(Sequence, apply::Outcome),
    Range(Sequence),
    Declared(Vec<Held>, Vec<(u64, Declared)>),
    Sums(PageSums),
    Committed { changes: Vec<Change>, took: Duration, journal: u64 },
    Checked(reduce::Root),
}

type Job<'a> = BoxFuture<'a, Result<Finished, EngineError>>;

struct Driver<'a> {
    machine: Receiver,
    applier: Option<Arc<Applier>>,
    target: Arc<Mutex<Target>>,
    parked: HashMap<u64, ReceivedExtent>,
    declared: HashMap<u64, Vec<ChunkId>>,
    declared_zero: ExtentSet,
    /// Extents that the journal calls durable, of this attempt or earlier ones.
    journalled: ExtentSet,
    jobs: FuturesUnordered<Job<'a>>,
    control: VecDeque<Control>,
    /// Extents that this attempt has begun to write: they are neither what was declared nor what they were created as.
    touched: ExtentSet,
    assembly: Arc<Semaphore>,
    queries: Arc<Semaphore>,
    mismatches: u64,
    checked: Option<reduce::Root>,
    sink: Option<Arc<dyn Sink>>,
    key: Arc<Keyed>,
    size: ByteLen,
    grant: Grant,
    readback: bool,
    pool: &'a Arc<dyn BufferPool>,
    cpu: &'a Cpu,
    progress: &'a Progress,
    stop: &'a CancellationToken,
    cancel: &'a CancellationToken,
    before: Before,
}

fn locked(target: &Mutex<Target>) -> std::sync::MutexGuard<'_, Target> {
    target.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| EngineError::Corrupt(format!("work on the sidecar panicked: {error}")))?
}

/// Receives one volume under a grant. Returns the receipt.
pub(crate) async fn receive(ends: &ReceiveEnds, attempt: ReceiveAttempt<'_>) -> Result<Receipt, EngineError> {
    let clock = Clock::start();
    let ReceiveAttempt { target, size, grant, content, pool, cpu, progress, stop, cancel, .. } = attempt;
    let key = Arc::new(Keyed::new(reduce::HashKey::from_bytes(*target.key().as_bytes())));
    let sink = target.sink();
    let PoolContent { index, sources } = content;
    let assembly = Arc::new(Semaphore::new(assembly_buffers(attempt.buffers)));
    let applier = sink.clone().map(|sink| {
        Arc::new(Applier {
            sink,
            size,
            zeroed: target.is_zeroed(),
            key: Arc::clone(&key),
            cpu: cpu.clone(),
            pool: Arc::clone(pool),
            assembly: Arc::clone(&assembly),
            index: Mutex::new(index),
            sources,
        })
    });
    let before = target.before();
    let durable = target.durable().clone();
    let mut driver = Driver {
        journalled: durable.clone(),
        machine: Receiver::new(ReceiverTerms { size, grant, durable }),
        applier,
        target: Arc::new(Mutex::new(target)),
        parked: HashMap::new(),
        declared: HashMap::new(),
        declared_zero: ExtentSet::new(size.extents()),
        jobs: FuturesUnordered::new(),
        control: VecDeque::new(),
        touched: ExtentSet::new(size.extents()),
        assembly,
        queries: Arc::new(Semaphore::new(QUERIES)),
        mismatches: 0,
        checked: None,
        sink,
        key,
        size,
        grant,
        readback: attempt.readback,
        pool,
        cpu,
        progress,
        stop,
        cancel,
        before,
    };
    let outcome = driver.run(ends, clock).await;
    if outcome.is_err() {
        // The ring finishes what it was given, whoever waits for it: an old write must not land after the lock is
        // given up and the next attempt has begun. Whatever hangs for longer than this is broken storage.
        let unfinished = async { while driver.jobs.next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, unfinished).await.is_err() {
            tracing::error!("operations on the target's storage do not end; look at that disk");
        }
    }
    progress.note(&ends.handle.stats());
    let result = match outcome {
        Ok(root) => {
            let Driver { target, applier, sink, jobs, .. } = driver;
            drop((jobs, applier, sink));
            finish(
                target,
                root,
                &Finishing {
                    session: attempt.session,
                    owner: attempt.owner,
                    mode: attempt.mode,
                    readback: attempt.readback,
                    signer: attempt.signer,
                    receiver_name: attempt.receiver_name,
                    size,
                    grant,
                    before,
                },
            )
            .await
        }
        Err(error) => Err(error),
    };
    match &result {
        Ok(receipt) => {
            let cpu = process_cpu().saturating_sub(attempt.cpu_at_start);
            let cpu_micros = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
            let sealed = Sealed { cpu_micros, receipt: receipt.to_json() };
            // A sender that is gone by now comes back and is told again.
            let _over = ends.handle.send(Control::Sealed(sealed)).await;
            drop(tokio::time::timeout(DRAIN, goodbye(&ends.inbox)).await);
        }
        Err(EngineError::Session(_) | EngineError::Tunnel(_)) if peer_ended(&result) => {}
        Err(EngineError::Interrupted) => {
            let _over = ends.handle.send(Control::Drain).await;
        }
        Err(error) => {
            let fail = Fail { code: error.fail_code(), detail: error.told() };
            let _over = ends.handle.send(Control::Fail(fail)).await;
        }
    }
    result
}

fn peer_ended(result: &Result<Receipt, EngineError>) -> bool {
    matches!(
        result,
        Err(EngineError::Tunnel(_)
            | EngineError::Session(session::SessionError::Peer { .. } | session::SessionError::Drained))
    )
}

/// Waits until the sender has closed the tunnel.
async fn goodbye(inbox: &Inbox) {
    while let Some(event) = inbox.recv().await {
        if matches!(event, Event::Closed(_)) {
            return;
        }
    }
}

struct Finishing<'a> {
    session: volume::SessionId,
    owner: String,
    mode: wire::Mode,
    readback: bool,
    signer: Option<&'a ReceiptSigner>,
    receiver_name: String,
    size: ByteLen,
    grant: Grant,
    before: Before,
}

/// The roots are equal and everything is durable: sign and seal.
async fn finish(
    target: Arc<Mutex<Target>>,
    root: reduce::Root,
    with: &Finishing<'_>,
) -> Result<Receipt, EngineError> {
    let target = Arc::into_inner(target)
        .ok_or_else(|| EngineError::Corrupt("the target is still in use while it is sealed".to_owned()))?
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if with.before == Before::Done {
        return target
            .existing_receipt()?
            .ok_or_else(|| EngineError::Corrupt("the receipt of a sealed volume is missing".to_owned()));
    }
    // A clock before 1970 is wrong anyway; the receipt then says 0 and nothing else depends on it.
    let time =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let body = Body {
        version: 1,
        volume: target.label().to_owned(),
        size: with.size.0,
        root: root.to_string(),
        key_id: with.grant.key_id.to_string(),
        generation: with.grant.generation.0,
        session: with.session.to_string(),
        mode: match with.mode {
            wire::Mode::Create => ReceiptMode::Create,
            wire::Mode::ResyncTrusted => ReceiptMode::ResyncTrusted,
            wire::Mode::ResyncFull => ReceiptMode::ResyncFull,
        },
        verified: if with.readback { Verified::Readback } else { Verified::Sink },
        owner: with.owner.clone(),
        receiver: with.receiver_name.clone(),
        time,
    };
    let receipt = Receipt::issue(body, with.signer);
    target.seal(root, &receipt).await?;
    Ok(receipt)
}

impl<'a> Driver<'a> {
    async fn run(&mut self, ends: &ReceiveEnds, clock: Clock) -> Result<reduce::Root, EngineError> {
        let mut stopping: Option<Duration> = None;
        let mut sample_at = SAMPLE_EVERY;
        loop {
            while let Some(action) = self.machine.poll_action(clock.now()) {
                self.act(action)?;
            }
            while self.control.len() < CONTROL_QUEUE {
                match self.machine.poll_transmit() {
                    Some(frame) => self.control.push_back(frame),
                    None => break,
                }
            }
            if let Some(root) = self.checked.take() {
                return Ok(root);
            }
            if stopping.is_some() && self.machine.is_idle() && self.control.is_empty() {
                return Err(EngineError::Interrupted);
            }
            let wake = [self.machine.poll_timeout(), stopping, Some(sample_at)].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(EngineError::Cancelled),
                () = self.stop.cancelled(), if stopping.is_none() => {
                    self.machine.drain();
                    stopping = Some(clock.now() + DRAIN);
                }
                event = ends.inbox.recv() => match event {
                    Some(Event::Control(frame)) => self.machine.handle_control(clock.now(), frame)?,
                    Some(Event::Closed(error)) => return Err(error.into()),
                    Some(Event::LaneDown { lane, error }) => tracing::warn!(lane, %error, "a connection died"),
                    Some(Event::LaneUp { .. } | Event::LaneTook { .. }) => {}
                    None => return Err(EngineError::Interrupted),
                },
                sent = send_front(&ends.handle, self.control.front()), if !self.control.is_empty() => {
                    self.control.pop_front();
                    sent?;
                }
                Some(finished) = self.jobs.next() => self.finished(finished?, clock)?,
                Some(received) = ends.data.recv() => self.arrived(received)?,
                () = clock.reach(wake) => {
                    let now = clock.now();
                    if stopping.is_some_and(|until| now >= until) {
                        return Err(EngineError::Interrupted);
                    }
                    if now >= sample_at {
                        self.progress.note(&ends.handle.stats());
                        sample_at = now + SAMPLE_EVERY;
                    }
                }
            }
        }
    }

    fn arrived(&mut self, received: ReceivedExtent) -> Result<(), EngineError> {
        let payload: u64 = received.payload.iter().map(|buffer| buffer.len() as u64).sum();
        Progress::add(&self.progress.payload, payload);
        if self.machine.handle_extent(&received.head)? == Intake::Kept {
            self.parked.insert(received.head.sequence.0, received);
        }
        Ok(())
    }

    fn act(&mut self, action: ReceiverAction) -> Result<(), EngineError> {
        match action {
            ReceiverAction::Apply(sequence) => {
                let Some(received) = self.parked.remove(&sequence.0) else {
                    return Err(EngineError::Corrupt("an extent to be applied is not there".to_owned()));
                };
                let extent = received.head.extent;
                let applier = self.applier.clone().ok_or_else(sealed_otherwise)?;
                let declared = self.declared_ids(extent);
                let zeroed = applier.zeroed && !self.touched.contains(extent.0);
                self.touched.insert(extent.0);
                let dirty = self.dirty(extent.0, 1);
                self.jobs.push(Box::pin(async move {
                    dirty.await?;
                    Ok(Finished::Applied(sequence, applier.apply(received, declared, zeroed).await?))
                }));
            }
            ReceiverAction::Discard(sequence) => drop(self.parked.remove(&sequence.0)),
            ReceiverAction::ApplyRange { sequence, kind, runs } => self.apply_range(sequence, kind, runs)?,
            ReceiverAction::Declare { first, count } => self.declare(first, count),
            ReceiverAction::Sums(query) => self.sums(query)?,
            ReceiverAction::Commit(changes) => self.commit(changes)?,
            ReceiverAction::Finish(seal) => self.check(seal),
        }
        Ok(())
    }

    /// What the sender was told that the target holds at an extent.
    fn declared_ids(&self, extent: ExtentIndex) -> Option<Vec<ChunkId>> {
        if self.touched.contains(extent.0) {
            return None;
        }
        if self.declared_zero.contains(extent.0) {
            let chunks = extent.range(self.size)?.len().div_ceil(volume::CHUNK);
            return Some(vec![ChunkId::ZERO; usize::try_from(chunks).ok()?]);
        }
        self.declared.get(&extent.0).cloned()
    }

    fn is_declared_zero(&self, run: &Run) -> bool {
        (run.first..run.first + run.count).all(|extent| {
            let zero = |ids: &Vec<ChunkId>| ids.iter().all(|id| *id == ChunkId::ZERO);
            self.declared_zero.contains(extent) || self.declared.get(&extent).is_some_and(zero)
        })
    }

    /// Before what the journal calls durable is overwritten, the journal must take that back: a crash in the middle of
    /// the write would leave content that no record describes. Sending something durable again is rare (a source that
    /// changed between attempts, a lane that died between commit and acknowledgement), so each pays its own flush.
    fn dirty(&mut self, first: u64, count: u64) -> BoxFuture<'a, Result<(), EngineError>> {
        let known = self.journalled.first_present(first) < first + count;
        if !known {
            return Box::pin(std::future::ready(Ok(())));
        }
        for extent in first..first + count {
            self.journalled.remove(extent);
        }
        let target = Arc::clone(&self.target);
        Box::pin(blocking(move || locked(&target).mark_dirty(ExtentIndex(first), count)))
    }

    fn apply_range(
        &mut self,
        sequence: Sequence,
        kind: RangeKind,
        runs: Vec<Run>,
    ) -> Result<(), EngineError> {
        if kind == RangeKind::Same {
            let undeclared = runs.iter().flat_map(|run| run.first..run.first + run.count).find(|extent| {
                let declared = self.declared_zero.contains(*extent) || self.declared.contains_key(extent);
                !declared || self.touched.contains(*extent)
            });
            if let Some(extent) = undeclared {
                return Err(EngineError::Session(session::SessionError::Leaves(ExtentIndex(extent))));
            }
        }
        if kind == RangeKind::Zero
            && self.before == Before::Done
            && runs.iter().any(|run| !self.is_declared_zero(run))
        {
            return Err(sealed_otherwise());
        }
        let untouched = runs.iter().all(|run| self.touched.first_present(run.first) >= run.first + run.count);
        let zeroed = untouched && self.applier.as_ref().is_some_and(|applier| applier.zeroed);
        if !zeroed && kind == RangeKind::Zero {
            runs.iter().for_each(|run| self.touched.insert_run(run.first, run.count));
        }
        let sink = if kind == RangeKind::Zero && !zeroed { self.sink.clone() } else { None };
        let size = self.size.0;
        let dirty: Vec<_> = match &sink {
            Some(_) => runs.iter().map(|run| self.dirty(run.first, run.count)).collect(),
            None => Vec::new(),
        };
        self.jobs.push(Box::pin(async move {
            try_join_all(dirty).await?;
            if let Some(sink) = sink {
                for run in runs {
                    let start = ExtentIndex(run.first).offset().0;
                    let end = ExtentIndex(run.first + run.count).offset().0.min(size);
                    sink.zero(ByteRange { start, end }, ZeroMode::Deallocate).await?;
                }
            }
            Ok(Finished::Range(sequence))
        }));
        Ok(())
    }

    fn declare(&mut self, first: ExtentIndex, count: u64) {
        let describer = Describer {
            target: Arc::clone(&self.target),
            read: if self.before == Before::Unread { self.sink.clone() } else { None },
            pool: Arc::clone(self.pool),
            cpu: self.cpu.clone(),
            key: Arc::clone(&self.key),
            size: self.size,
            announced: self.machine.settled().clone(),
            assembly: Arc::clone(&self.assembly),
        };
        self.jobs.push(Box::pin(async move {
            let (held, declared) = describer.describe(first, count).await?;
            Ok(Finished::Declared(held, declared))
        }));
    }

    fn sums(&mut self, query: PageQuery) -> Result<(), EngineError> {
        let sink = self.sink.clone().ok_or_else(sealed_otherwise)?;
        let range = query.extent.range(self.size).ok_or(session::SessionError::PastEnd)?;
        let (cpu, slots, seed) = (self.cpu.clone(), Arc::clone(&self.queries), SumSeed(self.grant.page_seed));
        self.jobs.push(Box::pin(async move {
            let _slot = slots.acquire().await.map_err(|_closed| EngineError::Cancelled)?;
            let mut chunks = Vec::new();
            for nth in (0..16).filter(|nth| query.mask & (1 << nth) != 0) {
                let start = range.start + nth * volume::CHUNK;
                let len = range.end.saturating_sub(start).min(volume::CHUNK);
                let buffer = Buffer::heap(usize::try_from(len).unwrap_or(0));
                let (result, buffer) = sink.read_at(ByteOffset(start), buffer).await;
                result?;
                chunks.push(buffer);
            }
            let sums = cpu
                .run(move |_| {
                    let mut sums = vec![0; 16 * chunks.len()];
                    for (place, chunk) in sums.chunks_exact_mut(16).zip(&chunks) {
                        let of_chunk = Sums::of(seed, chunk)?;
                        place[..of_chunk.as_slice().len()].copy_from_slice(of_chunk.as_slice());
                    }
                    Ok::<_, reduce::ReduceError>(sums)
                })
                .await?;
            Ok(Finished::Sums(PageSums { extent: query.extent, mask: query.mask, sums }))
        }));
        Ok(())
    }

    fn commit(&mut self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut journal = Vec::with_capacity(changes.len());
        for change in changes {
            let Change::Same { first, count } = change else {
                journal.push(change);
                continue;
            };
            for extent in first.0..first.0 + count {
                match self.declared.get(&extent) {
                    Some(ids) => {
                        journal.push(Change::Extent { extent: ExtentIndex(extent), ids: ids.clone() })
                    }
                    None if !self.declared_zero.contains(extent) => {
                        return Err(session::SessionError::Leaves(ExtentIndex(extent)).into());
                    }
                    None => match journal.last_mut() {
                        Some(Change::Zero { first, count }) if first.0 + *count == extent => *count += 1,
                        _ => journal.push(Change::Zero { first: ExtentIndex(extent), count: 1 }),
                    },
                }
            }
        }
        let (sink, target) = (self.sink.clone(), Arc::clone(&self.target));
        self.jobs.push(Box::pin(async move {
            let begun = tokio::time::Instant::now();
            // Data first, journal second, acknowledgement third (design rule 1). A failed flush ends the session: what
            // was written since the last commit is read again and sent again, never flushed again.
            if let Some(sink) = sink {
                sink.flush().await?;
                metrics::histogram!(FSYNC_SECONDS).record(begun.elapsed());
            }
            let (journal_len, changes) = blocking(move || {
                let mut target = locked(&target);
                target.commit(&journal)?;
                Ok((target.journal_len()?, journal))
            })
            .await?;
            metrics::histogram!(COMMIT_SECONDS).record(begun.elapsed());
            Ok(Finished::Committed { changes, took: begun.elapsed(), journal: journal_len })
        }));
        Ok(())
    }

    /// Compares the roots, and what can be read back.
    fn check(&mut self, seal: Seal) {
        let target = Arc::clone(&self.target);
        let sink = if self.readback { self.sink.clone() } else { None };
        let assembly = Arc::clone(&self.assembly);
        let (pool, cpu, key, size) =
            (Arc::clone(self.pool), self.cpu.clone(), Arc::clone(&self.key), self.size);
        self.jobs.push(Box::pin(async move {
            let of_root = Arc::clone(&target);
            let root = blocking(move || locked(&of_root).root()).await?;
            if root.0 != seal.root {
                let doubted = Arc::clone(&target);
                blocking(move || locked(&doubted).distrust()).await?;
                let what = format!(
                    "the volume's content differs from the source (root {root} here): nothing was sealed; run the same command again, which sends everything anew"
                );
                return Err(EngineError::refused(FailCode::RootMismatch, what));
            }
            if let Some(sink) = sink {
                declare::read_back(&target, &*sink, &pool, &cpu, &key, size, &assembly).await?;
            }
            Ok(Finished::Checked(root))
        }));
    }

    fn finished(&mut self, finished: Finished, clock: Clock) -> Result<(), EngineError> {
        let now = clock.now();
        match finished {
            Finished::Applied(sequence, outcome) => {
                if matches!(
                    outcome.applied,
                    session::Applied::Needs { reason: wire::NeedReason::Mismatch, .. }
                ) {
                    self.mismatches += 1;
                    if self.mismatches > MAX_MISMATCHES {
                        let what = "the peer's frames keep having other content than they name; check its memory and version";
                        return Err(EngineError::refused(FailCode::Protocol, what));
                    }
                }
                Progress::add(&self.progress.written, outcome.written);
                Progress::add(&self.progress.dedup, outcome.referenced);
                self.machine.handle_applied(now, sequence, outcome.applied, outcome.written);
            }
            Finished::Range(sequence) => self.machine.handle_range_applied(now, sequence),
            Finished::Declared(held, declared) => {
                for (extent, declared) in declared {
                    match declared {
                        Declared::Ids(ids) => drop(self.declared.insert(extent, ids)),
                        Declared::Zero(count) => self.declared_zero.insert_run(extent, count),
                    }
                }
                self.machine.handle_declared(held);
            }
            Finished::Sums(sums) => self.machine.handle_sums(sums),
            Finished::Committed { changes, took, journal } => {
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                Progress::set(&self.progress.commit_micros, micros);
                Progress::set(&self.progress.journal, journal);
                self.count(&changes);
                self.machine.handle_committed(now);
            }
            Finished::Checked(root) => self.checked = Some(root),
        }
        Ok(())
    }

    /// After a commit: statistics, dedup, and what need not be remembered any more.
    fn count(&mut self, changes: &[Change]) {
        for change in changes {
            let (first, count) = match change {
                Change::Extent { extent, ids } => {
                    self.declared.remove(&extent.0);
                    if let Some(applier) = &self.applier {
                        applier.learn(*extent, ids);
                    }
                    (extent.0, 1)
                }
                Change::Zero { first, count } | Change::Same { first, count } => (first.0, *count),
            };
            self.journalled.insert_run(first, count);
            let past = ExtentIndex(first + count).offset().0.min(self.size.0);
            let bytes = past.saturating_sub(ExtentIndex(first).offset().0);
            Progress::add(&self.progress.settled, bytes);
            if matches!(change, Change::Zero { .. }) {
                self.declared.retain(|extent, _| *extent < first || *extent >= first + count);
                Progress::add(&self.progress.zero, bytes);
            }
        }
    }
}

/// A session that asks for its lost receipt turns out to have another volume by now.
fn sealed_otherwise() -> EngineError {
    let what = "the volume is sealed, and the source is not what was sealed; use --resync trusted";
    EngineError::refused(FailCode::Exists, what)
}

async fn send_front(handle: &TunnelHandle, front: Option<&Control>) -> Result<(), EngineError> {
    crate::send::send_front(handle, front).await
}
