//! The receiving side of one attempt.

mod cover;
mod order;

use std::collections::VecDeque;
use std::time::Duration;

use volume::{ByteLen, CHUNKS_PER_EXTENT, ChunkId, ExtentIndex, Sequence};
use wire::control::MAX_RUNS;
use wire::{
    Ack, Control, Durable, ExtentHead, Grant, Held, Leaves, Need, NeedReason, PageQuery, PageSums, RangeKind,
    RangeMark, Run, Seal, Sealed,
};

use crate::error::SessionError;
use crate::extents::ExtentSet;
use order::{Arrival, Order};

/// Applied bytes after which a commit starts: a quarter of the window, so that the sender never waits for one.
pub const COMMIT_BYTES: u64 = 16 << 20;
/// Applied frames after which a commit starts.
pub const COMMIT_FRAMES: usize = 1024;
/// Longest time that something applied waits for its commit. Guessed: well below a WAN round trip, well above the
/// few milliseconds that two fdatasync calls take.
pub const COMMIT_DELAY: Duration = Duration::from_millis(50);
/// Extents that leaves may run ahead of what is settled: 1 MiB of prefixes at most, 4 GiB of volume.
pub const DECLARE_AHEAD: u64 = 4096;
/// Extents that one [`ReceiverAction::Declare`] asks for: what fits one frame.
pub const DECLARE_AT_ONCE: u64 = (wire::control::MAX_LEAVES / CHUNKS_PER_EXTENT) as u64;
/// Control frames that may wait for the tunnel: acknowledgements and refusals of a whole window, and some. A sender that
/// reads what it is told never gets near.
const MAX_TRANSMITS: usize = 4 * crate::WINDOW_FRAMES as usize;
/// Page queries that may wait for an answer: more than a sender has work slots.
const MAX_QUERIES: usize = 1024;

/// What the receiver starts an attempt with.
#[derive(Debug)]
pub struct ReceiverTerms {
    /// Length of the volume.
    pub size: ByteLen,
    /// What was granted.
    pub grant: Grant,
    /// Extents that the journal knows as durable. Announced when `grant.resumed`; otherwise the sender compares them
    /// by their leaves, and they count as settled only once it has said so.
    pub durable: ExtentSet,
}

/// One change of the target's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// An extent now has these chunks.
    Extent {
        /// Which.
        extent: ExtentIndex,
        /// Its chunk ids.
        ids: Vec<ChunkId>,
    },
    /// A run of extents is zero.
    Zero {
        /// First extent.
        first: ExtentIndex,
        /// How many.
        count: u64,
    },
    /// A run of extents is what was declared.
    Same {
        /// First extent.
        first: ExtentIndex,
        /// How many.
        count: u64,
    },
}

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiverAction {
    /// Decode, verify and write the frame of this sequence; answer with [`Receiver::handle_applied`].
    Apply(Sequence),
    /// Throw the frame of this sequence, which was kept, away: a newer one took its place.
    Discard(Sequence),
    /// Make these runs of extents zero, or keep them as declared; answer with [`Receiver::handle_range_applied`].
    ApplyRange {
        /// Names it.
        sequence: Sequence,
        /// What they are.
        kind: RangeKind,
        /// Ascending, disjoint runs; none when everything in it is newer already.
        runs: Vec<Run>,
    },
    /// Describe what the target holds from this extent on; answer with [`Receiver::handle_declared`].
    Declare {
        /// First extent.
        first: ExtentIndex,
        /// At least one and normally this many; a longer run of zeros or unknowns is welcome.
        count: u64,
    },
    /// Compute page sums; answer with [`Receiver::handle_sums`].
    Sums(PageQuery),
    /// Flush the data, then append these changes to the journal and flush it; answer with
    /// [`Receiver::handle_committed`].
    Commit(Vec<Change>),
    /// Compute the root, compare, finalise, sign; answer with [`Receiver::handle_sealed`].
    Finish(Seal),
}

/// What the driver does with a frame that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Intake {
    /// Keep it under its sequence until [`ReceiverAction::Apply`] or [`ReceiverAction::Discard`] names it.
    Kept,
    /// Drop it: a duplicate, out of date, or the session is being drained. An older copy that is kept stays.
    Dropped,
}

/// What applying a frame came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It is written (not yet durable); these are the extent's ids.
    Written(Vec<ChunkId>),
    /// Nothing was written: these chunks are needed in full.
    Needs {
        /// Which chunks.
        mask: u16,
        /// Why.
        reason: NeedReason,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Streaming,
    Sealing,
    Sealed,
}

/// What was applied and waits for, or is in, a commit.
#[derive(Debug, Default)]
struct Batch {
    changes: Vec<Change>,
    sequences: Vec<u64>,
    bytes: u64,
    since: Option<Duration>,
}

/// The receiving state machine.
///
/// - inputs: [`handle_extent`](Self::handle_extent), [`handle_control`](Self::handle_control),
///   [`handle_applied`](Self::handle_applied), [`handle_range_applied`](Self::handle_range_applied),
///   [`handle_declared`](Self::handle_declared), [`handle_sums`](Self::handle_sums),
///   [`handle_committed`](Self::handle_committed), [`handle_sealed`](Self::handle_sealed),
///   [`drain`](Self::drain)
/// - outputs, to be polled until empty after every input and at every timeout: [`poll_action`](Self::poll_action),
///   [`poll_transmit`](Self::poll_transmit), [`poll_timeout`](Self::poll_timeout)
#[derive(Debug)]
pub struct Receiver {
    size: ByteLen,
    grant: Grant,
    state: State,
    settled: ExtentSet,
    /// Every extent below this one is settled.
    settled_below: u64,
    order: Order,
    batch: Batch,
    committing: Option<Batch>,
    /// Durable extents are announced up to here; `None` when they all are.
    announced: Option<u64>,
    declare_next: u64,
    declaring: bool,
    queries: usize,
    actions: VecDeque<ReceiverAction>,
    transmits: VecDeque<Control>,
    draining: bool,
}

impl Receiver {
    /// Starts an attempt.
    #[must_use]
    pub fn new(terms: ReceiverTerms) -> Self {
        let ReceiverTerms { size, grant, durable } = terms;
        let settled = if grant.resumed { durable } else { ExtentSet::new(size.extents()) };
        let settled_below = settled.first_missing(0);
        Self {
            size,
            grant,
            state: State::Streaming,
            settled,
            settled_below,
            order: Order::new(grant.first_sequence, grant.window_frames),
            batch: Batch::default(),
            committing: None,
            declare_next: 0,
            declaring: false,
            queries: 0,
            actions: VecDeque::new(),
            announced: grant.resumed.then_some(0),
            transmits: VecDeque::new(),
            draining: false,
        }
    }

    // === getters ===

    /// What is durable here.
    #[must_use]
    pub fn settled(&self) -> &ExtentSet {
        &self.settled
    }

    /// Nothing is being applied or committed, and nothing waits for it: a drained session may go.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.batch.sequences.is_empty() && self.committing.is_none() && self.order.is_idle()
    }

    /// The volume is sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.state == State::Sealed
    }

    // === inputs ===

    /// An extent frame arrived.
    pub fn handle_extent(&mut self, head: &ExtentHead) -> Result<Intake, SessionError> {
        head.check(self.size)?;
        if self.draining {
            return Ok(Intake::Dropped);
        }
        self.order.raise_floor(head.floor, head.sequence)?;
        if self.transmits.len() > MAX_TRANSMITS {
            return Err(SessionError::Window("unread answers"));
        }
        let arrival = self.order.extent_arrived(head.sequence.0, head.extent.0)?;
        // What a dead lane held back may come after the seal; then it is out of date, or it was not all settled.
        let streaming = self.state == State::Streaming;
        match arrival {
            Arrival::Start | Arrival::Wait { .. } if !streaming => {
                return Err(SessionError::Unexpected(wire::Tag::Extent));
            }
            Arrival::Start => self.actions.push_back(ReceiverAction::Apply(head.sequence)),
            Arrival::Wait { replaced } => {
                if let Some(replaced) = replaced {
                    self.actions.push_back(ReceiverAction::Discard(Sequence(replaced)));
                }
            }
            Arrival::Late => {
                if streaming {
                    self.settle_late(head.sequence);
                }
                return Ok(Intake::Dropped);
            }
            Arrival::Stale => return Ok(Intake::Dropped),
        }
        Ok(Intake::Kept)
    }

    /// Acknowledges a frame that came after a newer one was written: with it, or at once if that is durable.
    fn settle_late(&mut self, sequence: Sequence) {
        if self.batch.since.is_some() {
            self.batch.sequences.push(sequence.0);
        } else if let Some(committing) = &mut self.committing {
            committing.sequences.push(sequence.0);
        } else {
            self.transmits.push_back(Control::Ack(Ack { runs: vec![Run { first: sequence.0, count: 1 }] }));
        }
    }

    /// A control frame came in.
    pub fn handle_control(&mut self, now: Duration, frame: Control) -> Result<(), SessionError> {
        let tag = frame.tag();
        match frame {
            Control::Range(mark) if self.state == State::Streaming => self.range(mark)?,
            Control::PageQuery(query) if self.state == State::Streaming && self.grant.leaves => {
                let chunks =
                    query.extent.range(self.size).ok_or(SessionError::PastEnd)?.len().div_ceil(volume::CHUNK);
                if u64::from(u16::BITS - query.mask.leading_zeros()) > chunks {
                    return Err(SessionError::PastEnd);
                }
                self.queries += 1;
                if self.queries > MAX_QUERIES {
                    return Err(SessionError::Window("page queries"));
                }
                self.actions.push_back(ReceiverAction::Sums(query));
            }
            Control::Seal(seal) if self.state == State::Streaming => {
                let missing = self.settled.extents() - self.settled.count();
                if missing > 0 || !self.is_idle() || seal.size != self.size {
                    return Err(SessionError::EarlySeal { missing });
                }
                self.state = State::Sealing;
                self.actions.push_back(ReceiverAction::Finish(seal));
            }
            Control::Fail(fail) => return Err(SessionError::Peer { code: fail.code, detail: fail.detail }),
            Control::Drain => return Err(SessionError::Drained),
            _ => return Err(SessionError::Unexpected(tag)),
        }
        self.maybe_commit(now);
        Ok(())
    }

    fn range(&mut self, mark: RangeMark) -> Result<(), SessionError> {
        if mark.first.0.saturating_add(mark.count) > self.settled.extents() {
            return Err(SessionError::PastEnd);
        }
        if mark.kind == RangeKind::Same && !self.grant.leaves {
            return Err(SessionError::Unexpected(wire::Tag::Range));
        }
        if self.draining {
            return Ok(());
        }
        self.order.raise_floor(mark.floor, mark.sequence)?;
        for replaced in self.order.range_arrived(mark)? {
            self.actions.push_back(ReceiverAction::Discard(Sequence(replaced)));
        }
        self.start_ranges();
        Ok(())
    }

    fn start_ranges(&mut self) {
        while let Some((sequence, kind, runs)) = self.order.next_range() {
            self.actions.push_back(ReceiverAction::ApplyRange { sequence: Sequence(sequence), kind, runs });
        }
    }

    /// Answers [`ReceiverAction::Apply`]. `bytes` is what was written.
    ///
    /// # Panics
    /// When the sequence was not being applied: a fault of the driver.
    pub fn handle_applied(&mut self, now: Duration, sequence: Sequence, applied: Applied, bytes: u64) {
        let done = self.order.extent_done(sequence.0, matches!(applied, Applied::Written(_)));
        match applied {
            Applied::Written(ids) => {
                self.uncommitted(now, bytes);
                self.batch.changes.push(Change::Extent { extent: ExtentIndex(done.extent), ids });
                self.batch.sequences.push(sequence.0);
                self.batch.sequences.extend(done.superseded);
            }
            Applied::Needs { mask, reason } => {
                let extent = ExtentIndex(done.extent);
                self.transmits.push_back(Control::Need(Need { sequence, extent, mask, reason }));
            }
        }
        if let Some(next) = done.next {
            self.actions.push_back(ReceiverAction::Apply(Sequence(next)));
        }
        self.start_ranges();
        self.maybe_commit(now);
    }

    /// Answers [`ReceiverAction::ApplyRange`].
    ///
    /// # Panics
    /// When the sequence was not being applied: a fault of the driver.
    pub fn handle_range_applied(&mut self, now: Duration, sequence: Sequence) {
        let done = self.order.range_done(sequence.0);
        self.uncommitted(now, 0);
        for run in done.runs {
            let (first, count) = (ExtentIndex(run.first), run.count);
            self.batch.changes.push(match done.kind {
                RangeKind::Zero => Change::Zero { first, count },
                RangeKind::Same => Change::Same { first, count },
            });
        }
        self.batch.sequences.push(sequence.0);
        self.batch.sequences.extend(done.superseded);
        for next in done.next {
            self.actions.push_back(ReceiverAction::Apply(Sequence(next)));
        }
        self.start_ranges();
        self.maybe_commit(now);
    }

    /// Answers [`ReceiverAction::Declare`] with consecutive runs that start where it asked.
    pub fn handle_declared(&mut self, held: Vec<Held>) {
        self.declaring = false;
        // Once the seal has come nobody compares any more.
        if self.state != State::Streaming {
            return;
        }
        for held in held {
            let first = ExtentIndex(self.declare_next).first_chunk();
            let chunks = match &held {
                Held::Zero(count) | Held::Unknown(count) => *count,
                Held::Prefixes(prefixes) => prefixes.len() as u64,
            };
            self.declare_next += chunks.div_ceil(CHUNKS_PER_EXTENT as u64);
            self.transmits.push_back(Control::Leaves(Leaves { first, held }));
        }
    }

    /// Answers [`ReceiverAction::Sums`].
    pub fn handle_sums(&mut self, sums: PageSums) {
        self.transmits.push_back(Control::PageSums(sums));
    }

    /// Answers [`ReceiverAction::Commit`]: it is durable, and is acknowledged.
    pub fn handle_committed(&mut self, now: Duration) {
        let Some(mut batch) = self.committing.take() else { return };
        for change in &batch.changes {
            match change {
                Change::Extent { extent, .. } => {
                    self.settled.insert(extent.0);
                }
                Change::Zero { first, count } | Change::Same { first, count } => {
                    self.settled.insert_run(first.0, *count);
                }
            }
        }
        self.settled_below = self.settled.first_missing(self.settled_below);
        batch.sequences.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        for sequence in batch.sequences {
            match runs.last_mut() {
                Some(run) if run.first + run.count == sequence => run.count += 1,
                Some(run) if run.first + run.count > sequence => {}
                _ => runs.push(Run { first: sequence, count: 1 }),
            }
        }
        for part in runs.chunks(MAX_RUNS) {
            self.transmits.push_back(Control::Ack(Ack { runs: part.to_vec() }));
        }
        self.maybe_commit(now);
    }

    /// Answers [`ReceiverAction::Finish`] when the roots are equal and everything is durable.
    pub fn handle_sealed(&mut self, sealed: Sealed) {
        self.state = State::Sealed;
        self.transmits.push_back(Control::Sealed(sealed));
    }

    /// Take in nothing new; what was taken in is still applied and committed.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    // === outputs ===

    /// The next thing to do. `now` decides whether a commit is due.
    pub fn poll_action(&mut self, now: Duration) -> Option<ReceiverAction> {
        self.maybe_commit(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        let extents = self.settled.extents();
        let may = self.grant.leaves && !self.declaring && !self.draining && self.state == State::Streaming;
        if may && self.declare_next < extents {
            let ahead = self.settled_below.saturating_add(DECLARE_AHEAD).min(extents);
            if self.declare_next < ahead {
                self.declaring = true;
                let count = (ahead - self.declare_next).min(DECLARE_AT_ONCE);
                return Some(ReceiverAction::Declare { first: ExtentIndex(self.declare_next), count });
            }
        }
        None
    }

    /// The next control frame to send.
    pub fn poll_transmit(&mut self) -> Option<Control> {
        if let Some(from) = self.announced {
            return Some(Control::Durable(self.announce(from)));
        }
        let frame = self.transmits.pop_front();
        // Counted until the answer leaves: a peer that asks and does not read collects no answers here.
        if let Some(Control::PageSums(_)) = frame {
            self.queries = self.queries.saturating_sub(1);
        }
        frame
    }

    /// When a commit is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.committing.is_some() {
            return None;
        }
        self.batch.since.map(|since| since + COMMIT_DELAY)
    }

    // === inside ===

    /// The next part of what is durable: of a large volume it would be too much to hold it all as runs.
    fn announce(&mut self, from: u64) -> Durable {
        let runs: Vec<Run> = self.settled.runs_from(from).take(MAX_RUNS).collect();
        let end = runs.last().map_or_else(|| self.settled.extents(), |run| run.first + run.count);
        let last = self.settled.first_present(end) >= self.settled.extents();
        self.announced = (!last).then_some(end);
        Durable { runs, last }
    }

    fn uncommitted(&mut self, now: Duration, bytes: u64) {
        self.batch.bytes += bytes;
        self.batch.since.get_or_insert(now);
    }

    fn maybe_commit(&mut self, now: Duration) {
        let Some(since) = self.batch.since else { return };
        let due = self.batch.bytes >= COMMIT_BYTES
            || self.batch.sequences.len() >= COMMIT_FRAMES
            || now >= since + COMMIT_DELAY
            || self.draining;
        if self.committing.is_none() && due {
            let batch = std::mem::take(&mut self.batch);
            self.actions.push_back(ReceiverAction::Commit(batch.changes.clone()));
            self.committing = Some(batch);
        }
    }
}
