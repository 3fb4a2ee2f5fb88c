//! One attempt: both machines, the link between them and the receiving driver, in an order that a seed decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use disk::sim::SimDisk;
use engine::journal::{encode_change, encode_dirty};
use reduce::delta::{PageMask, PageSums as Sums, SumSeed};
use reduce::{chunk_id, delta};
use session::{
    Applied, Change, ExtentSet, Intake, Receiver, ReceiverAction, ReceiverTerms, Sender, SenderTerms,
};
use volume::conformance::Dice;
use volume::{
    Buffer, ByteOffset, ByteRange, CHUNK, ChunkId, ExtentIndex, Generation, Sequence, Sink, Source, ZeroMode,
};
use wire::{ChunkEntry, Control, Grant, HashKeyBytes, Held, NeedReason, PageSums, RangeKind, Run, Sealed};

use crate::content::{CHUNK_LEN, Volume, key, root_of, small};
use crate::sender::{Encoder, Frame};

/// Steps after which an attempt that should be done hangs.
const STEPS: u32 = 20_000;
/// Seed of the page sums.
const PAGE_SEED: u64 = 5;

/// One part of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is the step of its name")]
pub enum CommitStep {
    FlushData,
    AppendJournal,
    FlushJournal,
    Acknowledge,
}

/// The order that the engine keeps (design rule 1).
pub const RIGHT_ORDER: &[CommitStep] =
    &[CommitStep::FlushData, CommitStep::AppendJournal, CommitStep::FlushJournal, CommitStep::Acknowledge];

/// What the receiver knows of the target that the journal does not say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begin {
    /// All zeros, and known to be.
    Zeroed,
    /// Anything; nobody asks.
    Unknown,
    /// This old copy, whose sealed leaf table is believed.
    Trusted(Volume),
    /// An old copy, or an interrupted re-sync: it is read.
    Unread,
}

/// Where an attempt starts.
#[derive(Debug)]
pub struct Terms<'a> {
    /// What is copied.
    pub source: &'a Volume,
    /// The target.
    pub data: &'a SimDisk,
    /// The journal's disk; its header is there already.
    pub journal: &'a SimDisk,
    /// End of the last whole record, and its checksum.
    pub journal_end: (u64, u64),
    /// Ids of the extents that the journal knows as durable.
    pub known: BTreeMap<u64, Vec<ChunkId>>,
    /// What else is known of the target.
    pub begin: Begin,
    /// Extents that the sender remembers as acknowledged; `None` when it has forgotten all.
    pub remembered: Option<ExtentSet>,
    /// Order of a commit.
    pub order: &'static [CommitStep],
    /// The journal takes back what it says of an extent, durably, before that is overwritten. The engine always does.
    pub takes_back: bool,
}

/// A moment of an attempt: what both disks had taken, and what had been acknowledged by then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Changes and flushes of the data disk.
    pub data: usize,
    /// Changes and flushes of the journal's disk.
    pub journal: usize,
    /// Extents of which the sender was told, and that it did not send again since.
    pub acknowledged: ExtentSet,
    /// Extents of which the journal was made to take back what it had said, because they were sent again.
    pub taken_back: ExtentSet,
}

/// What an attempt came to.
#[derive(Debug)]
pub struct Report {
    /// Every moment, in order.
    pub moments: Vec<Moment>,
    /// The volume was sealed; or what ended the attempt.
    pub outcome: Result<(), String>,
    /// Pages that travelled instead of chunks.
    pub pages: u64,
}

/// One thing that the disks are asked to do.
#[derive(Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(ByteRange),
    Dirty(u64, u64),
    FlushDirty,
    Commit(CommitStep, Vec<Change>),
    Applied(Sequence, Vec<ChunkId>, u64),
    RangeApplied(Sequence),
}

struct Attempt<'a> {
    terms: Terms<'a>,
    dice: &'a mut Dice,
    now: Duration,
    sender: Sender,
    encoder: Encoder,
    receiver: Receiver,
    zeroed: bool,
    to_receiver: VecDeque<Control>,
    to_sender: VecDeque<Control>,
    frames: Vec<Frame>,
    kept: BTreeMap<u64, Frame>,
    jobs: Vec<VecDeque<Step>>,
    /// What the sender was told that the target holds.
    declared: BTreeMap<u64, Vec<ChunkId>>,
    /// First extent and count of each sequence.
    names: BTreeMap<u64, (u64, u64)>,
    /// Sequences of extents that were sent, and those that the sender gave up when a lane died.
    sent: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
    /// Extents that the journal calls durable.
    journalled: BTreeSet<u64>,
    deaths: u64,
    report: Report,
    at: Moment,
}

/// Runs an attempt to its end.
///
/// # Panics
/// When a machine breaks its contract with the driver, or the attempt hangs.
pub fn run(terms: Terms<'_>, dice: &mut Dice) -> Report {
    let size = terms.source.size();
    let extents = size.extents();
    let mut durable = ExtentSet::new(extents);
    terms.known.keys().for_each(|extent| {
        durable.insert(*extent);
    });
    let remembers = terms.remembered.is_some();
    // As engine::transfer::grant.
    let resumed = remembers && durable.count() > 0;
    let leaves = match &terms.begin {
        Begin::Trusted(_) | Begin::Unread => true,
        Begin::Zeroed | Begin::Unknown => !remembers && durable.count() > 0,
    };
    let zeroed = terms.begin == Begin::Zeroed;
    let grant = Grant {
        generation: Generation(1),
        key_id: key().id(),
        key: HashKeyBytes(*key().as_bytes()),
        page_seed: PAGE_SEED,
        first_sequence: Sequence(1),
        window_bytes: [1, 1 << 20, 64 << 20][small(dice.below(3))],
        window_frames: [1, 3, 64][small(dice.below(3))],
        resumed,
        leaves,
        known: false,
        zeroed,
    };
    let remembered = terms.remembered.clone().unwrap_or_else(|| ExtentSet::new(extents));
    let max_work = 1 + small(dice.below(4));
    let sender = SenderTerms { size, grant, remembered, max_work };
    let mut sender = Sender::new(Duration::ZERO, sender).expect("the grant is sound");
    sender.start();
    let at = Moment {
        data: 0,
        journal: 0,
        acknowledged: ExtentSet::new(extents),
        taken_back: ExtentSet::new(extents),
    };
    let deaths = dice.below(3);
    let mut attempt = Attempt {
        dice,
        now: Duration::ZERO,
        sender,
        encoder: Encoder::default(),
        receiver: Receiver::new(ReceiverTerms { size, grant, durable }),
        zeroed,
        to_receiver: VecDeque::new(),
        to_sender: VecDeque::new(),
        frames: Vec::new(),
        kept: BTreeMap::new(),
        jobs: Vec::new(),
        declared: BTreeMap::new(),
        names: BTreeMap::new(),
        sent: BTreeSet::new(),
        given_up: BTreeSet::new(),
        journalled: terms.known.keys().copied().collect(),
        deaths,
        report: Report { moments: vec![at.clone()], outcome: Ok(()), pages: 0 },
        at,
        terms,
    };
    attempt.report.outcome = attempt.drive();
    attempt.report
}

impl Attempt<'_> {
    fn drive(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.poll()?;
            if self.encoder.done {
                return Ok(());
            }
            self.step()?;
        }
        panic!("the attempt hangs: {:?}", self.receiver);
    }

    fn poll(&mut self) -> Result<(), String> {
        while let Some(action) = self.sender.poll_action() {
            self.encoder.act(&mut self.sender, self.terms.source, PAGE_SEED, self.now, action);
        }
        let (controls, frames) = self.encoder.transmit(&mut self.sender, self.now);
        for control in controls {
            if let Control::Range(mark) = &control {
                self.names.insert(mark.sequence.0, (mark.first.0, mark.count));
            }
            self.to_receiver.push_back(control);
        }
        for frame in frames {
            self.names.insert(frame.head.sequence.0, (frame.head.extent.0, 1));
            self.sent.insert(frame.head.sequence.0);
            self.report.pages +=
                frame.head.chunks.iter().filter(|chunk| matches!(chunk, ChunkEntry::Pages(..))).count()
                    as u64;
            self.frames.push(frame);
        }
        while let Some(action) = self.receiver.poll_action(self.now) {
            self.act(action)?;
        }
        while let Some(control) = self.receiver.poll_transmit() {
            if let Control::Ack(ack) = &control {
                for sequence in ack.runs.iter().flat_map(|run| run.first..run.first + run.count) {
                    // What went down with its lane is acknowledged for nothing: only its next sending settles it.
                    if self.given_up.contains(&sequence) {
                        continue;
                    }
                    let (first, count) = self.names[&sequence];
                    self.at.acknowledged.insert_run(first, count);
                }
                self.note();
            }
            self.to_sender.push_back(control);
        }
        Ok(())
    }

    /// One thing that happens next, of all that could.
    fn step(&mut self) -> Result<(), String> {
        let kinds = [
            !self.to_receiver.is_empty(),
            !self.to_sender.is_empty(),
            !self.frames.is_empty(),
            !self.jobs.is_empty(),
        ];
        let waiting: Vec<usize> = (0..4).filter(|kind| kinds[*kind]).collect();
        // A commit may also start while other things are under way.
        if waiting.is_empty() || self.dice.below(12) == 0 {
            match self.receiver.poll_timeout() {
                Some(at) => self.now = self.now.max(at),
                None if waiting.is_empty() => {
                    panic!("both sides wait: {:?} {:?}", self.sender, self.receiver)
                }
                None => {}
            }
            return Ok(());
        }
        if self.deaths > 0 && self.dice.below(10) == 0 {
            self.deaths -= 1;
            // What it carried may arrive all the same, and is written twice.
            self.sender.handle_lane_down(1);
            self.given_up.extend(&self.sent);
            return Ok(());
        }
        let broken = |error: session::SessionError| error.to_string();
        match waiting[small(self.dice.below(waiting.len() as u64))] {
            0 => {
                let Some(control) = self.to_receiver.pop_front() else { return Ok(()) };
                self.receiver.handle_control(self.now, control).map_err(broken)
            }
            1 => {
                let Some(control) = self.to_sender.pop_front() else { return Ok(()) };
                self.sender.handle_control(self.now, control).map_err(broken)
            }
            2 => {
                let frame = self.frames.swap_remove(small(self.dice.below(self.frames.len() as u64)));
                if self.receiver.handle_extent(&frame.head).map_err(broken)? == Intake::Kept {
                    self.kept.insert(frame.head.sequence.0, frame);
                }
                Ok(())
            }
            _ => {
                let at = small(self.dice.below(self.jobs.len() as u64));
                let Some(step) = self.jobs[at].pop_front() else { return Ok(()) };
                if self.jobs[at].is_empty() {
                    self.jobs.remove(at);
                }
                self.perform(step)
            }
        }
    }

    /// Notes a moment, in place of the last one when nothing was written since.
    fn note(&mut self) {
        if let Some(last) = self.report.moments.last_mut()
            && (last.data, last.journal) == (self.at.data, self.at.journal)
        {
            last.acknowledged = self.at.acknowledged.clone();
            return;
        }
        self.report.moments.push(self.at.clone());
    }

    fn perform(&mut self, step: Step) -> Result<(), String> {
        let Terms { data, journal, .. } = self.terms;
        let broken = |error: volume::VolumeError| error.to_string();
        match step {
            Step::Write(at, bytes) => {
                write(data, at, &bytes)?;
                self.at.data += 1;
            }
            Step::Zero(range) => {
                crate::run(data.zero(range, ZeroMode::Deallocate), || release(data)).map_err(broken)?;
                self.at.data += 1;
            }
            Step::Dirty(first, count) => {
                for extent in first..first + count {
                    // An acknowledgement of what was given up with its lane does not settle it at the sender.
                    assert!(!self.sender.settled().contains(extent), "what is settled is sent again");
                    self.at.acknowledged.remove(extent);
                    self.at.taken_back.insert(extent);
                }
                let (at, chain) = self.terms.journal_end;
                let mut bytes = Vec::new();
                let chain = encode_dirty(ExtentIndex(first), count, chain, &mut bytes);
                write(journal, at, &bytes)?;
                self.at.journal += 1;
                self.terms.journal_end = (at + bytes.len() as u64, chain);
            }
            Step::FlushDirty => {
                crate::run(Sink::flush(journal), || release(journal)).map_err(broken)?;
                self.at.journal += 1;
            }
            Step::Commit(CommitStep::FlushData, _) => {
                crate::run(Sink::flush(data), || release(data)).map_err(broken)?;
                self.at.data += 1;
            }
            Step::Commit(CommitStep::AppendJournal, changes) => {
                let (at, mut chain) = self.terms.journal_end;
                let mut bytes = Vec::new();
                for change in &changes {
                    chain = encode_change(change, chain, &mut bytes);
                }
                if !bytes.is_empty() {
                    write(journal, at, &bytes)?;
                    self.at.journal += 1;
                }
                self.terms.journal_end = (at + bytes.len() as u64, chain);
                for change in changes {
                    self.learn(change);
                }
            }
            Step::Commit(CommitStep::FlushJournal, _) => {
                crate::run(Sink::flush(journal), || release(journal)).map_err(broken)?;
                self.at.journal += 1;
            }
            Step::Commit(CommitStep::Acknowledge, changes) => {
                for change in changes {
                    match change {
                        Change::Extent { extent, .. } => drop(self.journalled.insert(extent.0)),
                        Change::Zero { first, count } | Change::Same { first, count } => {
                            self.journalled.extend(first.0..first.0 + count);
                        }
                    }
                }
                self.receiver.handle_committed(self.now);
                return Ok(());
            }
            Step::Applied(sequence, ids, bytes) => {
                self.receiver.handle_applied(self.now, sequence, Applied::Written(ids), bytes);
                return Ok(());
            }
            Step::RangeApplied(sequence) => {
                self.receiver.handle_range_applied(self.now, sequence);
                return Ok(());
            }
        }
        self.note();
        Ok(())
    }

    fn learn(&mut self, change: Change) {
        match change {
            Change::Extent { extent, ids } => drop(self.terms.known.insert(extent.0, ids)),
            Change::Zero { first, count } => {
                for extent in first.0..first.0 + count {
                    let chunks = self.terms.source.chunks_of(extent).len();
                    self.terms.known.insert(extent, vec![ChunkId::ZERO; chunks]);
                }
            }
            Change::Same { .. } => unreachable!("the driver journals ids"),
        }
    }

    fn act(&mut self, action: ReceiverAction) -> Result<(), String> {
        match action {
            ReceiverAction::Apply(sequence) => {
                let frame = self.kept.remove(&sequence.0).expect("only a kept frame is applied");
                self.apply(sequence, &frame)?;
            }
            ReceiverAction::Discard(sequence) => drop(self.kept.remove(&sequence.0)),
            ReceiverAction::ApplyRange { sequence, kind, runs } => self.apply_range(sequence, kind, &runs),
            ReceiverAction::Declare { first, count } => {
                let held = self.declare(first.0, count)?;
                self.receiver.handle_declared(held);
            }
            ReceiverAction::Sums(query) => {
                let sums = self.sums(query.extent.0, query.mask)?;
                self.receiver.handle_sums(PageSums { extent: query.extent, mask: query.mask, sums });
            }
            ReceiverAction::Commit(changes) => {
                let changes = self.named(changes);
                let steps = self.terms.order.iter().map(|step| Step::Commit(*step, changes.clone()));
                self.jobs.push(steps.collect());
            }
            ReceiverAction::Finish(seal) => {
                let known = &self.terms.known;
                let root = root_of(self.terms.source.size(), |extent| known[&extent].clone());
                if root.0 != seal.root {
                    return Err(format!("the roots differ: {root}"));
                }
                self.receiver.handle_sealed(Sealed { cpu_micros: 0, receipt: Vec::new() });
            }
        }
        Ok(())
    }

    /// Replaces [`Change::Same`] by the ids that it stands for.
    fn named(&self, changes: Vec<Change>) -> Vec<Change> {
        let mut named = Vec::new();
        for change in changes {
            let Change::Same { first, count } = change else {
                named.push(change);
                continue;
            };
            for extent in first.0..first.0 + count {
                let ids = self.declared[&extent].clone();
                named.push(Change::Extent { extent: ExtentIndex(extent), ids });
            }
        }
        named
    }

    /// Puts the new content together, verifies it, and only then writes: as engine::receive::apply.
    fn apply(&mut self, sequence: Sequence, frame: &Frame) -> Result<(), String> {
        let extent = frame.head.extent.0;
        let mut payload = frame.payload.as_slice();
        let mut wrong = 0_u16;
        let mut ids = Vec::new();
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut zeros: Vec<ByteRange> = Vec::new();
        for (nth, (chunk, entry)) in self.terms.source.chunks_of(extent).zip(&frame.head.chunks).enumerate() {
            let len = self.terms.source.chunk_len(chunk);
            let at = chunk as u64 * CHUNK;
            let travelled = small(entry.payload_len(len as u64));
            let (part, rest) = payload.split_at(travelled);
            payload = rest;
            ids.push(entry.id());
            let content = match entry {
                ChunkEntry::Zero => {
                    match zeros.last_mut() {
                        Some(run) if run.end == at => run.end += len as u64,
                        _ => zeros.push(ByteRange { start: at, end: at + len as u64 }),
                    }
                    continue;
                }
                ChunkEntry::Same(id) => {
                    let said = self.declared.get(&extent).is_some_and(|declared| declared[nth] == *id);
                    wrong |= u16::from(!said) << nth;
                    continue;
                }
                ChunkEntry::Data(_) => part.to_vec(),
                ChunkEntry::Pages(_, mask) => {
                    let mut held = read(self.terms.data, at, len)?;
                    delta::apply(&mut held, PageMask(*mask), part).map_err(|error| error.to_string())?;
                    held
                }
                ChunkEntry::Reference(_) => unreachable!("no tags were granted"),
            };
            wrong |= u16::from(chunk_id(&key(), &content) != entry.id()) << nth;
            match writes.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(&content),
                _ => writes.push((at, content)),
            }
        }
        if wrong != 0 {
            let applied = Applied::Needs { mask: wrong, reason: NeedReason::Mismatch };
            self.receiver.handle_applied(self.now, sequence, applied, 0);
            return Ok(());
        }
        let written = writes.iter().map(|(_, run)| run.len() as u64).sum();
        let mut job = self.take_back(extent, 1);
        job.extend(writes.into_iter().map(|(at, run)| Step::Write(at, run)));
        if !self.zeroed {
            job.extend(zeros.into_iter().map(Step::Zero));
        }
        job.push_back(Step::Applied(sequence, ids, written));
        self.jobs.push(job);
        Ok(())
    }

    /// The steps before an extent is overwritten of which the journal speaks: as engine::receive::Driver::dirty.
    fn take_back(&mut self, first: u64, count: u64) -> VecDeque<Step> {
        let spoken_of = (first..first + count).filter(|extent| self.journalled.remove(extent)).count() > 0;
        if spoken_of && self.terms.takes_back {
            VecDeque::from([Step::Dirty(first, count), Step::FlushDirty])
        } else {
            VecDeque::new()
        }
    }

    fn apply_range(&mut self, sequence: Sequence, kind: RangeKind, runs: &[Run]) {
        let mut job = VecDeque::new();
        if kind == RangeKind::Zero && !self.zeroed {
            for run in runs {
                job.extend(self.take_back(run.first, run.count));
                let start = ExtentIndex(run.first).offset().0;
                let end = ExtentIndex(run.first + run.count).offset().0.min(self.terms.source.size().0);
                job.push_back(Step::Zero(ByteRange { start, end }));
            }
        }
        job.push_back(Step::RangeApplied(sequence));
        self.jobs.push(job);
    }

    fn declare(&mut self, first: u64, count: u64) -> Result<Vec<Held>, String> {
        let source = self.terms.source;
        let mut held = Vec::new();
        for extent in first..first + count {
            let ids = match (self.terms.known.get(&extent), &self.terms.begin) {
                (Some(ids), _) => Some(ids.clone()),
                (None, Begin::Trusted(old)) => Some(old.ids(extent)),
                (None, Begin::Unread) => {
                    let mut ids = Vec::new();
                    for chunk in source.chunks_of(extent) {
                        let found = read(self.terms.data, chunk as u64 * CHUNK, source.chunk_len(chunk))?;
                        ids.push(chunk_id(&key(), &found));
                    }
                    Some(ids)
                }
                (None, Begin::Zeroed | Begin::Unknown) => None,
            };
            held.push(match ids {
                Some(ids) => {
                    let prefixes = ids.iter().map(ChunkId::prefix).collect();
                    self.declared.insert(extent, ids);
                    Held::Prefixes(prefixes)
                }
                None => Held::Unknown(source.chunks_of(extent).len() as u64),
            });
        }
        Ok(held)
    }

    fn sums(&self, extent: u64, mask: u16) -> Result<Vec<u64>, String> {
        let source = self.terms.source;
        let mut sums = Vec::new();
        for (nth, chunk) in source.chunks_of(extent).enumerate() {
            if mask & 1 << nth != 0 {
                let found = read(self.terms.data, chunk as u64 * CHUNK, source.chunk_len(chunk))?;
                let of_chunk = Sums::of(SumSeed(PAGE_SEED), &found).map_err(|error| error.to_string())?;
                let start = sums.len();
                sums.extend_from_slice(of_chunk.as_slice());
                sums.resize(start + CHUNK_LEN / 4096, 0);
            }
        }
        Ok(sums)
    }
}

fn release(disk: &SimDisk) {
    disk.release();
}

/// Writes bytes and waits for them.
fn write(disk: &SimDisk, at: u64, bytes: &[u8]) -> Result<(), String> {
    let mut buffer = Buffer::heap(bytes.len());
    buffer.copy_from_slice(bytes);
    crate::run(disk.write_at(ByteOffset(at), buffer), || release(disk)).0.map_err(|error| error.to_string())
}

/// Reads bytes.
///
/// # Errors
/// What the disk says.
pub fn read(disk: &SimDisk, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let (result, buffer) = crate::run(disk.read_at(ByteOffset(at), Buffer::heap(len)), || release(disk));
    result.map_err(|error| error.to_string())?;
    Ok(buffer.to_vec())
}
