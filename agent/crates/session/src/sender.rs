//! The sending side of one attempt.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use volume::{ByteLen, ByteRange, ChunkId, EXTENT, ExtentIndex, Sequence};
use wire::{Control, Grant, PageQuery, PageSums, RangeKind, RangeMark, Run, Seal, Sealed};

use crate::error::SessionError;
use crate::extents::ExtentSet;
use crate::old::{OldContent, OldExtent};
use crate::receiver::{Change, DECLARE_AHEAD};
use crate::{SPAN_PER_FRAME, WINDOW_FRAMES};

/// Longest time without any acknowledgement while something is in flight. Longer than the tunnel's idle timeout, so
/// that a dead link is reported as such; this catches a receiver that lives but whose storage hangs.
pub const STALL: Duration = Duration::from_secs(60);

/// Highest first sequence that a grant may name: half of all, so that none is left to run out.
const LAST_FIRST_SEQUENCE: u64 = u64::MAX / 2;

/// Runs without payload that may wait for room in the window; then the reading waits too.
const MAX_MARKS: usize = WINDOW_FRAMES as usize;

/// What the sender starts an attempt with.
#[derive(Debug)]
pub struct SenderTerms {
    /// Length of the volume.
    pub size: ByteLen,
    /// What the receiver granted.
    pub grant: Grant,
    /// Extents whose ids are remembered from an earlier attempt, made with the granted key from an unchanged source.
    pub remembered: ExtentSet,
    /// Extents that may be read, compared, encoded or waiting to be sent at once: bounds memory.
    pub max_work: usize,
}

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SenderAction {
    /// Find the next range of data at or after this extent; answer with [`Sender::handle_data`].
    FindData(ExtentIndex),
    /// Read and hash this extent, compare it with `old`, encode it if it is clear what to send; answer with
    /// [`Sender::handle_scanned`].
    Scan {
        /// Which extent.
        extent: ExtentIndex,
        /// What the target holds there.
        old: OldExtent,
        /// Send every chunk in full: no reference, no pages.
        full: bool,
    },
    /// The page sums that [`Outcome::Query`] asked for; answer with [`Sender::handle_scanned`].
    Encode(PageSums),
    /// Chunks that the receiver can serve to itself.
    Learn(Vec<u64>),
    /// This is durable at the receiver: journal it.
    Settled(Change),
    /// Everything is settled: check that the source did not change, compute the root; answer with
    /// [`Sender::handle_root`].
    Finish,
    /// The volume is sealed.
    Done(Sealed),
}

/// What a scan or an encoding came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The extent is all zero.
    Zero,
    /// The target holds every byte already.
    Same,
    /// These chunks differ from what the target holds; its page sums are needed.
    Query(u16),
    /// Ready to be sent, with this much payload. The driver keeps it until [`Sender::poll_send`] names it.
    Frame {
        /// Payload bytes on the wire.
        wire_len: u32,
    },
}

/// Send this extent now, under this sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dispatch {
    /// Which extent.
    pub extent: ExtentIndex,
    /// Its sequence.
    pub sequence: Sequence,
    /// The floor to put into its head.
    pub floor: Sequence,
}

#[derive(Debug)]
enum Work {
    Scanning,
    Querying(u16),
    Ready { wire_len: u32, ids: Vec<ChunkId> },
}

#[derive(Debug)]
enum Flight {
    Extent { extent: u64, ids: Vec<ChunkId>, bytes: u64, lane: Option<u8> },
    Range { kind: RangeKind, first: u64, count: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Durable frames are still to come.
    Resuming,
    Streaming,
    Finishing,
    Sealing,
    Done,
}

/// Where the reading stands relative to the source's holes.
#[derive(Clone, Copy, Debug)]
enum Data {
    Ask,
    Asked,
    /// Extents `start..end` may hold data; everything before is zero.
    Known {
        start: u64,
        end: u64,
    },
}

/// The sending state machine.
///
/// - inputs: [`handle_control`](Self::handle_control), [`handle_data`](Self::handle_data),
///   [`handle_scanned`](Self::handle_scanned), [`handle_root`](Self::handle_root),
///   [`handle_lane_took`](Self::handle_lane_took), [`handle_lane_down`](Self::handle_lane_down),
///   [`handle_timeout`](Self::handle_timeout), [`drain`](Self::drain)
/// - outputs, to be polled until empty after every input, in this order: [`poll_action`](Self::poll_action),
///   [`poll_transmit`](Self::poll_transmit), [`poll_send`](Self::poll_send) (while the data queue has room),
///   [`poll_timeout`](Self::poll_timeout)
#[derive(Debug)]
pub struct Sender {
    size: ByteLen,
    state: State,
    grant: Grant,
    max_work: usize,
    /// While resuming: what we remember, and what the receiver announced so far.
    resuming: Option<(ExtentSet, ExtentSet)>,
    settled: ExtentSet,
    cursor: u64,
    data: Data,
    old: OldContent,
    /// Extents to send again, and whether in full.
    again: BTreeMap<u64, bool>,
    work: HashMap<u64, Work>,
    ready: VecDeque<u64>,
    marks: VecDeque<(RangeKind, u64, u64)>,
    flight: BTreeMap<u64, Flight>,
    in_flight_bytes: u64,
    next_sequence: u64,
    actions: VecDeque<SenderAction>,
    transmits: VecDeque<Control>,
    progress_at: Duration,
    draining: bool,
}

impl Sender {
    /// Starts an attempt.
    ///
    /// # Errors
    /// When nothing can be sent under the grant.
    pub fn new(now: Duration, terms: SenderTerms) -> Result<Self, SessionError> {
        let SenderTerms { size, mut grant, remembered, max_work } = terms;
        let extents = size.extents();
        if grant.window_frames == 0 {
            return Err(SessionError::Grant("no frame in the window"));
        }
        if grant.first_sequence.0 > LAST_FIRST_SEQUENCE {
            return Err(SessionError::Grant("no sequences left"));
        }
        // Each frame in flight costs memory here, whatever the receiver can take.
        grant.window_frames = grant.window_frames.min(WINDOW_FRAMES);
        Ok(Self {
            size,
            state: if grant.resumed { State::Resuming } else { State::Streaming },
            grant,
            max_work: max_work.max(1),
            resuming: grant.resumed.then(|| (remembered, ExtentSet::new(extents))),
            settled: ExtentSet::new(extents),
            cursor: 0,
            data: Data::Ask,
            old: OldContent::new(size),
            again: BTreeMap::new(),
            work: HashMap::new(),
            ready: VecDeque::new(),
            marks: VecDeque::new(),
            flight: BTreeMap::new(),
            in_flight_bytes: 0,
            next_sequence: grant.first_sequence.0,
            actions: VecDeque::new(),
            transmits: VecDeque::new(),
            progress_at: now,
            draining: false,
        })
    }

    // === getters ===

    /// What is settled: durable at the receiver.
    #[must_use]
    pub fn settled(&self) -> &ExtentSet {
        &self.settled
    }

    /// Payload bytes sent and not acknowledged.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Nothing is in flight: a drained session may go.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flight.is_empty()
    }

    /// The volume is sealed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    // === inputs ===

    /// A control frame came in.
    pub fn handle_control(&mut self, now: Duration, frame: Control) -> Result<(), SessionError> {
        let tag = frame.tag();
        match (frame, self.state) {
            (Control::Durable(durable), State::Resuming) => {
                self.progress_at = now;
                if let Some(past) = durable.runs.last()
                    && past.first.saturating_add(past.count) > self.settled.extents()
                {
                    return Err(SessionError::PastEnd);
                }
                if let Some((_, announced)) = &mut self.resuming {
                    durable.runs.iter().for_each(|run| announced.insert_run(run.first, run.count));
                }
                if durable.last {
                    if let Some((remembered, mut announced)) = self.resuming.take() {
                        announced.intersect(&remembered);
                        self.settled = announced;
                    }
                    self.state = State::Streaming;
                }
            }
            (Control::Known(known), State::Resuming | State::Streaming) if self.grant.known => {
                self.actions.push_back(SenderAction::Learn(known.tags));
            }
            // Zeros are sent without waiting for leaves, so that some may come when all is settled.
            (Control::Known(_), _) if self.grant.known => {}
            (Control::Leaves(leaves), _) if self.grant.leaves => {
                self.progress_at = now;
                self.old.declare(leaves)?;
                self.old.forget_below(self.cursor);
                if self.old.len() as u64 > 2 * DECLARE_AHEAD {
                    return Err(SessionError::Window("leaves ahead"));
                }
            }
            (Control::PageSums(sums), State::Streaming) => {
                match self.work.get_mut(&sums.extent.0) {
                    Some(Work::Querying(mask)) if *mask == sums.mask => {}
                    _ => return Err(SessionError::Unexpected(tag)),
                }
                self.progress_at = now;
                self.work.insert(sums.extent.0, Work::Scanning);
                self.actions.push_back(SenderAction::Encode(sums));
            }
            // What a dead lane delivered late is acknowledged late.
            (Control::Ack(ack), State::Streaming | State::Finishing | State::Sealing | State::Done) => {
                self.progress_at = now;
                for run in &ack.runs {
                    self.acknowledge(*run)?;
                }
            }
            (Control::Need(need), State::Streaming) => {
                self.progress_at = now;
                if need.sequence.0 >= self.next_sequence {
                    return Err(SessionError::Sequence(need.sequence));
                }
                match self.flight.remove(&need.sequence.0) {
                    Some(Flight::Extent { extent, bytes, .. }) if extent == need.extent.0 => {
                        self.in_flight_bytes -= bytes;
                        self.again.insert(extent, true);
                    }
                    Some(_) => return Err(SessionError::Sequence(need.sequence)),
                    // Given up when its lane died: it is on its way again already.
                    None => {}
                }
            }
            (Control::Sealed(sealed), State::Sealing) => {
                self.state = State::Done;
                self.actions.push_back(SenderAction::Done(sealed));
            }
            (Control::Fail(fail), _) => {
                return Err(SessionError::Peer { code: fail.code, detail: fail.detail });
            }
            (Control::Drain, _) => return Err(SessionError::Drained),
            _ => return Err(SessionError::Unexpected(tag)),
        }
        self.finish_if_settled();
        Ok(())
    }

    fn acknowledge(&mut self, run: Run) -> Result<(), SessionError> {
        let end = run.first.saturating_add(run.count);
        if end > self.next_sequence {
            return Err(SessionError::Sequence(Sequence(end - 1)));
        }
        // Sequences that are not in flight were given up when their lane died: their second sending settles them.
        let sequences: Vec<u64> = self.flight.range(run.first..end).map(|(sequence, _)| *sequence).collect();
        for sequence in sequences {
            let change = match self.flight.remove(&sequence) {
                Some(Flight::Extent { extent, ids, bytes, .. }) => {
                    self.in_flight_bytes -= bytes;
                    self.settled.insert(extent);
                    Change::Extent { extent: ExtentIndex(extent), ids }
                }
                Some(Flight::Range { kind, first, count }) => {
                    self.settled.insert_run(first, count);
                    match kind {
                        RangeKind::Zero => Change::Zero { first: ExtentIndex(first), count },
                        RangeKind::Same => Change::Same { first: ExtentIndex(first), count },
                    }
                }
                None => continue,
            };
            self.actions.push_back(SenderAction::Settled(change));
        }
        Ok(())
    }

    /// Answers [`SenderAction::FindData`]: the next range that may hold data, or `None` when only zeros follow.
    pub fn handle_data(&mut self, data: Option<ByteRange>) {
        let extents = self.settled.extents();
        self.data = match data {
            Some(range) => {
                Data::Known { start: range.start / EXTENT, end: range.end.div_ceil(EXTENT).min(extents) }
            }
            None => Data::Known { start: extents, end: extents },
        };
        self.skip_holes();
    }

    /// Answers [`SenderAction::Scan`] and [`SenderAction::Encode`] with the extent's ids and what is to be done.
    pub fn handle_scanned(&mut self, extent: ExtentIndex, ids: Vec<ChunkId>, outcome: Outcome) {
        match outcome {
            Outcome::Zero | Outcome::Same => {
                self.work.remove(&extent.0);
                let kind = if outcome == Outcome::Zero { RangeKind::Zero } else { RangeKind::Same };
                self.mark(kind, extent.0, 1);
            }
            Outcome::Query(mask) => {
                self.work.insert(extent.0, Work::Querying(mask));
                self.transmits.push_back(Control::PageQuery(PageQuery { extent, mask }));
            }
            Outcome::Frame { wire_len } => {
                self.work.insert(extent.0, Work::Ready { wire_len, ids });
                self.ready.push_back(extent.0);
            }
        }
    }

    /// Answers [`SenderAction::Finish`].
    pub fn handle_root(&mut self, now: Duration, root: [u8; 32]) {
        self.progress_at = now;
        self.state = State::Sealing;
        self.transmits.push_back(Control::Seal(Seal { root, size: self.size }));
    }

    /// A lane took the frame of this sequence from the data queue.
    pub fn handle_lane_took(&mut self, lane: u8, sequence: Sequence) {
        if let Some(Flight::Extent { lane: of, .. }) = self.flight.get_mut(&sequence.0) {
            *of = Some(lane);
        }
    }

    /// A lane died: what it took and was not acknowledged is read and sent again, under new sequences.
    pub fn handle_lane_down(&mut self, lane: u8) {
        let lost: Vec<u64> = self
            .flight
            .iter()
            .filter(|(_, flight)| matches!(flight, Flight::Extent { lane: Some(of), .. } if *of == lane))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in lost {
            if let Some(Flight::Extent { extent, bytes, .. }) = self.flight.remove(&sequence) {
                self.in_flight_bytes -= bytes;
                self.again.entry(extent).or_insert(false);
            }
        }
    }

    /// Time went by.
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), SessionError> {
        match self.poll_timeout() {
            Some(at) if now >= at => Err(SessionError::Peer {
                code: wire::FailCode::TimedOut,
                detail: format!("nothing was acknowledged for {} s", STALL.as_secs()),
            }),
            _ => Ok(()),
        }
    }

    /// Start nothing new; what is in flight may still be acknowledged.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    // === outputs ===

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<SenderAction> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.state != State::Streaming || self.draining || self.work.len() >= self.max_work {
            return None;
        }
        if let Some((extent, full)) = self.again.pop_first() {
            // Its first sending may have arrived, so what was declared may be gone: it is sent on its own.
            return Some(self.scan(extent, OldExtent::Unknown, full));
        }
        self.skip_holes();
        if self.marks.len() >= MAX_MARKS {
            return None;
        }
        self.cursor = self.settled.first_missing(self.cursor);
        if self.cursor >= self.settled.extents() {
            return None;
        }
        match self.data {
            Data::Known { end, .. } if self.cursor < end => {}
            Data::Asked => return None,
            Data::Ask | Data::Known { .. } => {
                self.data = Data::Asked;
                return Some(SenderAction::FindData(ExtentIndex(self.cursor)));
            }
        }
        let extent = self.cursor;
        let old = if self.grant.leaves { self.old.at(extent)?.clone() } else { OldExtent::Unknown };
        self.cursor += 1;
        self.old.forget_below(self.cursor);
        Some(self.scan(extent, old, false))
    }

    /// The next control frame to send.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Control> {
        if let Some(frame) = self.transmits.pop_front() {
            if self.flight.is_empty() {
                self.progress_at = now;
            }
            return Some(frame);
        }
        if self.draining || !self.has_frame_room() {
            return None;
        }
        let (kind, first, count) = self.marks.pop_front()?;
        if self.flight.is_empty() {
            self.progress_at = now;
        }
        let sequence = self.take_sequence();
        let floor = self.floor(sequence);
        self.flight.insert(sequence.0, Flight::Range { kind, first, count });
        Some(Control::Range(RangeMark { kind, sequence, floor, first: ExtentIndex(first), count }))
    }

    /// The next extent to send. Call only while the data queue has room: the sequence is used up.
    pub fn poll_send(&mut self, now: Duration) -> Option<Dispatch> {
        if self.draining {
            return None;
        }
        let extent = *self.ready.front()?;
        let Some(Work::Ready { wire_len, .. }) = self.work.get(&extent) else {
            self.ready.pop_front();
            return self.poll_send(now);
        };
        let bytes = u64::from(*wire_len);
        let room = self.in_flight_bytes + bytes <= self.grant.window_bytes || self.flight.is_empty();
        if !room || !self.has_frame_room() {
            return None;
        }
        self.ready.pop_front();
        let Some(Work::Ready { ids, .. }) = self.work.remove(&extent) else { return None };
        if self.flight.is_empty() {
            self.progress_at = now;
        }
        let sequence = self.take_sequence();
        let floor = self.floor(sequence);
        self.in_flight_bytes += bytes;
        self.flight.insert(sequence.0, Flight::Extent { extent, ids, bytes, lane: None });
        Some(Dispatch { extent: ExtentIndex(extent), sequence, floor })
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.flight.is_empty() || self.is_waiting()).then(|| self.progress_at + STALL)
    }

    // === inside ===

    /// The receiver owes an answer without which nothing goes on.
    fn is_waiting(&self) -> bool {
        match self.state {
            State::Resuming => true,
            State::Streaming => {
                self.work.values().any(|work| matches!(work, Work::Querying(_)))
                    || (self.grant.leaves
                        && self.work.is_empty()
                        && self.cursor < self.settled.extents()
                        && self.old.at(self.cursor).is_none())
            }
            State::Finishing | State::Sealing | State::Done => false,
        }
    }

    fn scan(&mut self, extent: u64, old: OldExtent, full: bool) -> SenderAction {
        self.work.insert(extent, Work::Scanning);
        SenderAction::Scan { extent: ExtentIndex(extent), old, full }
    }

    /// Marks the holes in front of the known data as zero, as far as they are not settled.
    fn skip_holes(&mut self) {
        let Data::Known { start, .. } = self.data else { return };
        while self.cursor < start && self.marks.len() < MAX_MARKS {
            let first = self.settled.first_missing(self.cursor).min(start);
            let end = self.settled.first_present(first).min(start);
            if first < end {
                self.mark(RangeKind::Zero, first, end - first);
            }
            self.cursor = end.max(first);
        }
        self.old.forget_below(self.cursor);
    }

    /// Queues a run that needs no payload, joined to the one before it where they touch.
    fn mark(&mut self, kind: RangeKind, first: u64, count: u64) {
        if let Some(last) = self.marks.back_mut()
            && last.0 == kind
        {
            if last.1 + last.2 == first {
                last.2 += count;
                return;
            }
            if first + count == last.1 {
                last.1 = first;
                last.2 += count;
                return;
            }
        }
        self.marks.push_back((kind, first, count));
    }

    /// Room for one more frame: the count that was granted, and the span of sequences that the receiver remembers.
    fn has_frame_room(&self) -> bool {
        let oldest = self.flight.first_key_value().map_or(self.next_sequence, |(oldest, _)| *oldest);
        self.flight.len() < self.grant.window_frames as usize
            && self.next_sequence - oldest < u64::from(self.grant.window_frames) * SPAN_PER_FRAME
    }

    fn take_sequence(&mut self) -> Sequence {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        sequence
    }

    /// The oldest sequence still alive, `sequence` itself if none is.
    fn floor(&self, sequence: Sequence) -> Sequence {
        self.flight.first_key_value().map_or(sequence, |(oldest, _)| Sequence(*oldest))
    }

    fn finish_if_settled(&mut self) {
        if self.state == State::Streaming
            && self.settled.is_full()
            && self.flight.is_empty()
            && !self.draining
        {
            self.state = State::Finishing;
            self.actions.push_back(SenderAction::Finish);
        }
    }

    /// Call once after [`Self::new`]: a volume without extents, or one that is settled already, has nothing to wait
    /// for.
    pub fn start(&mut self) {
        self.finish_if_settled();
    }
}
