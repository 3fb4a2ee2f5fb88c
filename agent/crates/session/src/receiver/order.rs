//! Order of overlapping writes: whatever connection and in whatever order they come, of two writes to one place the
//! one with the higher sequence is what remains (design rule 3).
//!
//! A place is an extent. An extent frame locks its extent while it is applied; a range locks its runs.
//!
//! - What arrives for a locked place waits. Of several frames that wait for one extent only the newest is kept.
//! - A range waits for every range that came before it and touches it, and for the locks in it; frames that arrive
//!   for its places meanwhile wait for it. So everything waits only for what came earlier, and nothing waits in a ring.
//! - What is older than something that is there already, or is coming, is *superseded*: its payload is thrown away,
//!   and it is acknowledged together with what superseded it, never before. A frame that is refused supersedes
//!   nothing: what it had replaced is owed until the next write to that extent.
//! - Sequences below the floor are settled or given up by the sender. They are dropped, so that nothing needs to be
//!   remembered about them. A sender gives up no range: ranges travel on the reliable control stream.
//!
//! Everything that is remembered has a sequence at or above the floor, or is being applied; so the memory is bounded
//! by the span. No step looks at more than what overlaps it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use volume::Sequence;
use wire::{RangeKind, RangeMark, Run};

use super::cover::Cover;
use crate::SPAN_PER_FRAME;
use crate::error::SessionError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// Apply it now.
    Start,
    /// Its place is locked. The one that waited before, if any, is to be discarded.
    Wait { replaced: Option<u64> },
    /// A duplicate, given up, or older than what is coming: drop it.
    Stale,
    /// Older than what is written already: drop it, and acknowledge it with that.
    Late,
}

/// What follows from an extent that is done.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Done {
    pub(super) extent: u64,
    /// Older sequences that never ran because of this one; they are acknowledged with it.
    pub(super) superseded: Vec<u64>,
    /// Apply this one next.
    pub(super) next: Option<u64>,
}

/// What follows from a range that is done.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct RangeDone {
    pub(super) kind: RangeKind,
    pub(super) runs: Vec<Run>,
    /// As in [`Done`].
    pub(super) superseded: Vec<u64>,
    /// Apply these next.
    pub(super) next: Vec<u64>,
}

#[derive(Debug)]
struct Range {
    kind: RangeKind,
    first: u64,
    end: u64,
    state: RangeState,
    /// Ranges that wait for this one.
    dependents: Vec<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum RangeState {
    /// For so many ranges; at 0 for a lock.
    Waiting(usize),
    Applying(Vec<Run>),
    Applied,
}

#[derive(Debug)]
pub(super) struct Order {
    floor: u64,
    span: u64,
    /// Extent of every frame that came, at or above the floor.
    frames: BTreeMap<u64, u64>,
    /// Newest frame written per extent, at or above the floor.
    written: BTreeMap<u64, u64>,
    /// Extents being applied.
    locked: BTreeMap<u64, u64>,
    /// The same by sequence.
    running: HashMap<u64, u64>,
    /// Extents whose newest frame waits.
    waiting: BTreeMap<u64, u64>,
    /// Superseded frames per extent, until what superseded them is written.
    owed: BTreeMap<u64, BTreeSet<u64>>,
    ranges: BTreeMap<u64, Range>,
    /// Ranges that are not applied yet.
    pending: usize,
    /// The newest range that came, per place.
    arrived: Cover,
    /// The newest range that is applied, per place.
    applied: Cover,
    /// Ranges that wait for the lock of an extent.
    behind: BTreeMap<u64, Vec<u64>>,
    started: VecDeque<(u64, RangeKind, Vec<Run>)>,
}

impl Order {
    pub(super) fn new(first: Sequence, window_frames: u32) -> Self {
        Self {
            floor: first.0,
            span: u64::from(window_frames.max(1)) * SPAN_PER_FRAME,
            frames: BTreeMap::new(),
            written: BTreeMap::new(),
            locked: BTreeMap::new(),
            running: HashMap::new(),
            waiting: BTreeMap::new(),
            owed: BTreeMap::new(),
            ranges: BTreeMap::new(),
            pending: 0,
            arrived: Cover::default(),
            applied: Cover::default(),
            behind: BTreeMap::new(),
            started: VecDeque::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.locked.is_empty() && self.waiting.is_empty() && self.pending == 0
    }

    /// The sender's floor and the sequence that brought it.
    pub(super) fn raise_floor(&mut self, floor: Sequence, sequence: Sequence) -> Result<(), SessionError> {
        let reach = sequence.0.saturating_sub(floor.0.max(self.floor));
        // The last number is never used: there would be none after it.
        if floor > sequence || sequence.0 == u64::MAX || reach >= self.span {
            return Err(SessionError::Sequence(sequence));
        }
        if floor.0 <= self.floor {
            return Ok(());
        }
        self.floor = floor.0;
        // What is being applied keeps its lock, and what waits its place: only the memory of finished things goes.
        let kept = self.frames.split_off(&self.floor);
        for (sequence, extent) in std::mem::replace(&mut self.frames, kept) {
            if self.written.get(&extent) == Some(&sequence) {
                self.written.remove(&extent);
            }
            if let Some(owed) = self.owed.get_mut(&extent) {
                owed.remove(&sequence);
                if owed.is_empty() {
                    self.owed.remove(&extent);
                }
            }
        }
        let finished: Vec<u64> = self
            .ranges
            .range(..self.floor)
            .filter(|(_, range)| range.state == RangeState::Applied)
            .map(|(sequence, _)| *sequence)
            .collect();
        finished.into_iter().for_each(|sequence| self.forget_range(sequence));
        Ok(())
    }

    pub(super) fn extent_arrived(&mut self, sequence: u64, extent: u64) -> Result<Arrival, SessionError> {
        if sequence < self.floor {
            return Ok(Arrival::Stale);
        }
        match self.frames.get(&sequence) {
            Some(of) if *of == extent => return Ok(Arrival::Stale),
            Some(_) => return Err(SessionError::Reused(Sequence(sequence))),
            None if self.ranges.contains_key(&sequence) => {
                return Err(SessionError::Reused(Sequence(sequence)));
            }
            None => {}
        }
        self.check_pending()?;
        self.frames.insert(sequence, extent);
        if self.written.get(&extent).copied().max(self.applied.at(extent)) > Some(sequence) {
            return Ok(Arrival::Late);
        }
        let coming = self.locked.get(&extent).max(self.waiting.get(&extent)).copied();
        if coming.max(self.arrived.at(extent)) > Some(sequence) {
            self.owed.entry(extent).or_default().insert(sequence);
            return Ok(Arrival::Stale);
        }
        if self.is_locked(extent) {
            let replaced = self.waiting.insert(extent, sequence);
            if let Some(replaced) = replaced {
                self.owe(replaced, extent);
            }
            return Ok(Arrival::Wait { replaced });
        }
        self.lock(extent, sequence);
        Ok(Arrival::Start)
    }

    /// The sender names the floor, so the span alone does not bound what is kept until it is applied.
    fn check_pending(&self) -> Result<(), SessionError> {
        let pending = self.locked.len() + self.waiting.len() + self.pending;
        if pending as u64 >= self.span { Err(SessionError::Window("frames")) } else { Ok(()) }
    }

    /// `written` is false when the frame was refused.
    ///
    /// # Panics
    /// When the sequence was not being applied.
    pub(super) fn extent_done(&mut self, sequence: u64, written: bool) -> Done {
        let extent =
            self.running.remove(&sequence).expect("the driver answers only what it was told to apply");
        self.locked.remove(&extent);
        let mut superseded = Vec::new();
        if written {
            if sequence >= self.floor {
                self.written.insert(extent, sequence);
            }
            superseded = self.take_owed(extent, extent + 1, sequence);
        } else {
            self.frames.remove(&sequence);
        }
        for range in self.behind.remove(&extent).unwrap_or_default() {
            self.try_start(range);
        }
        Done { extent, superseded, next: self.wake(extent) }
    }

    /// Takes a range in; the frames that it supersedes and that waited are to be discarded.
    pub(super) fn range_arrived(&mut self, mark: RangeMark) -> Result<Vec<u64>, SessionError> {
        let sequence = mark.sequence.0;
        if sequence < self.floor {
            return Ok(Vec::new());
        }
        let (first, end) = (mark.first.0, mark.first.0 + mark.count);
        if let Some(known) = self.ranges.get(&sequence) {
            return if (known.kind, known.first, known.end) == (mark.kind, first, end) {
                Ok(Vec::new())
            } else {
                Err(SessionError::Reused(mark.sequence))
            };
        }
        if self.frames.contains_key(&sequence) {
            return Err(SessionError::Reused(mark.sequence));
        }
        self.check_pending()?;
        let older: Vec<(u64, u64)> = self
            .waiting
            .range(first..end)
            .filter(|(_, waits)| **waits < sequence)
            .map(|(extent, waits)| (*extent, *waits))
            .collect();
        for (extent, waits) in &older {
            self.waiting.remove(extent);
            self.owe(*waits, *extent);
        }
        let mut before: BTreeSet<u64> = self.arrived.within(first, end).map(|(_, _, of)| of).collect();
        before.retain(|of| self.ranges[of].state != RangeState::Applied);
        for of in &before {
            if let Some(range) = self.ranges.get_mut(of) {
                range.dependents.push(sequence);
            }
        }
        self.arrived.lay(first, end, sequence);
        let state = RangeState::Waiting(before.len());
        self.ranges.insert(sequence, Range { kind: mark.kind, first, end, state, dependents: Vec::new() });
        self.pending += 1;
        self.try_start(sequence);
        Ok(older.into_iter().map(|(_, waits)| waits).collect())
    }

    /// The next range to apply.
    pub(super) fn next_range(&mut self) -> Option<(u64, RangeKind, Vec<Run>)> {
        self.started.pop_front()
    }

    /// # Panics
    /// When the sequence was not being applied.
    pub(super) fn range_done(&mut self, sequence: u64) -> RangeDone {
        let range =
            self.ranges.get_mut(&sequence).expect("the driver answers only what it was told to apply");
        let (kind, first, end) = (range.kind, range.first, range.end);
        let dependents = std::mem::take(&mut range.dependents);
        let RangeState::Applying(runs) = std::mem::replace(&mut range.state, RangeState::Applied) else {
            unreachable!("only a range that is applied gets done")
        };
        self.pending -= 1;
        self.applied.lay(first, end, sequence);
        if sequence < self.floor {
            self.forget_range(sequence);
        }
        let superseded = self.take_owed(first, end, sequence);
        for dependent in dependents {
            if let Some(Range { state: RangeState::Waiting(before), .. }) = self.ranges.get_mut(&dependent) {
                *before -= 1;
            }
            self.try_start(dependent);
        }
        let waiting: Vec<u64> = self.waiting.range(first..end).map(|(extent, _)| *extent).collect();
        let next = waiting.into_iter().filter_map(|extent| self.wake(extent)).collect();
        RangeDone { kind, runs, superseded, next }
    }

    // === inside ===

    /// Starts a range that waits for nothing any more.
    fn try_start(&mut self, sequence: u64) {
        let Some(range) = self.ranges.get(&sequence) else { return };
        if range.state != RangeState::Waiting(0) {
            return;
        }
        let (kind, runs) = (range.kind, self.runs_left(sequence, range.first, range.end));
        let lock = runs.iter().find_map(|run| self.locked.range(run.first..run.first + run.count).next());
        if let Some((&extent, _)) = lock {
            self.behind.entry(extent).or_default().push(sequence);
            return;
        }
        if let Some(range) = self.ranges.get_mut(&sequence) {
            range.state = RangeState::Applying(runs.clone());
        }
        self.started.push_back((sequence, kind, runs));
    }

    /// The places of a range at which nothing newer is written yet. Places for which something newer only waits are
    /// among them: it may still be refused, and the range is acknowledged before it.
    fn runs_left(&self, sequence: u64, first: u64, end: u64) -> Vec<Run> {
        let mut newer: Vec<(u64, u64)> = self
            .written
            .range(first..end)
            .filter(|(_, of)| **of > sequence)
            .map(|(extent, _)| (*extent, *extent + 1))
            .collect();
        newer.extend(
            self.applied
                .within(first, end)
                .filter(|(_, _, of)| *of > sequence)
                .map(|(from, to, _)| (from, to)),
        );
        newer.sort_unstable();
        let mut runs = Vec::new();
        let mut at = first;
        for (from, to) in newer.into_iter().chain([(end, end)]) {
            if at < from {
                runs.push(Run { first: at, count: from - at });
            }
            at = at.max(to);
        }
        runs
    }

    fn lock(&mut self, extent: u64, sequence: u64) {
        self.locked.insert(extent, sequence);
        self.running.insert(sequence, extent);
    }

    fn is_locked(&self, extent: u64) -> bool {
        self.locked.contains_key(&extent)
            || self.arrived.at(extent).is_some_and(|of| self.ranges[&of].state != RangeState::Applied)
    }

    /// Starts what waits for an extent, if nothing holds it any more.
    fn wake(&mut self, extent: u64) -> Option<u64> {
        if self.is_locked(extent) {
            return None;
        }
        let next = self.waiting.remove(&extent)?;
        self.lock(extent, next);
        Some(next)
    }

    /// Remembers to acknowledge a frame that was thrown away, unless the sender gave it up.
    fn owe(&mut self, sequence: u64, extent: u64) {
        if sequence >= self.floor {
            self.owed.entry(extent).or_default().insert(sequence);
        }
    }

    /// What is owed within `first..end` and older than `sequence`.
    fn take_owed(&mut self, first: u64, end: u64, sequence: u64) -> Vec<u64> {
        let extents: Vec<u64> = self.owed.range(first..end).map(|(extent, _)| *extent).collect();
        let mut taken = Vec::new();
        for extent in extents {
            let Some(owed) = self.owed.get_mut(&extent) else { continue };
            let newer = owed.split_off(&sequence);
            taken.extend(std::mem::replace(owed, newer));
            if owed.is_empty() {
                self.owed.remove(&extent);
            }
        }
        taken
    }

    fn forget_range(&mut self, sequence: u64) {
        if let Some(range) = self.ranges.remove(&sequence) {
            self.arrived.clear(range.first, range.end, sequence);
            self.applied.clear(range.first, range.end, sequence);
        }
    }
}
