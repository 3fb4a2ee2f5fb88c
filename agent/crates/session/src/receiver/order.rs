//! Order of overlapping writes: whatever connection and in whatever order they come, of two writes to one place the
//! one with the higher sequence is what remains (design rule 3).
//!
//! A place is an extent. An extent frame locks its extent while it is applied; a range locks its runs. What arrives
//! for a locked place waits; of several that wait only the newest is kept. Sequences below the floor are settled or
//! given up by the sender and are dropped, so that nothing needs to be remembered about them.

use std::collections::{BTreeMap, HashMap};

use volume::Sequence;
use wire::{RangeKind, RangeMark, Run};

use crate::SPAN_PER_FRAME;
use crate::error::SessionError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// Apply it now.
    Start,
    /// Its place is locked. The one that waited before, if any, is to be discarded.
    Wait { replaced: Option<u64> },
    /// Older than what is there, or a duplicate: discard it.
    Stale,
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

#[derive(Debug)]
struct Range {
    kind: RangeKind,
    first: u64,
    count: u64,
    state: RangeState,
}

#[derive(Debug, PartialEq, Eq)]
enum RangeState {
    Waiting,
    Applying(Vec<Run>),
    Applied,
}

#[derive(Debug)]
pub(super) struct Order {
    floor: u64,
    span: u64,
    /// Newest extent frame seen per extent, as far as it is not below the floor.
    newest: BTreeMap<u64, u64>,
    by_sequence: BTreeMap<u64, u64>,
    /// Extents being applied.
    locked: HashMap<u64, u64>,
    /// Extents whose newest frame waits.
    waiting: BTreeMap<u64, u64>,
    superseded: HashMap<u64, Vec<u64>>,
    ranges: BTreeMap<u64, Range>,
}

impl Order {
    pub(super) fn new(first: Sequence, window_frames: u32) -> Self {
        Self {
            floor: first.0,
            span: u64::from(window_frames) * SPAN_PER_FRAME,
            newest: BTreeMap::new(),
            by_sequence: BTreeMap::new(),
            locked: HashMap::new(),
            waiting: BTreeMap::new(),
            superseded: HashMap::new(),
            ranges: BTreeMap::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.locked.is_empty()
            && self.waiting.is_empty()
            && self.ranges.values().all(|range| range.state == RangeState::Applied)
    }

    /// The sender's floor and the sequence that brought it.
    pub(super) fn raise_floor(&mut self, floor: Sequence, sequence: Sequence) -> Result<(), SessionError> {
        if sequence.0 - floor.0 >= self.span {
            return Err(SessionError::Sequence(sequence));
        }
        if floor.0 <= self.floor {
            return if sequence.0.saturating_sub(self.floor) >= self.span {
                Err(SessionError::Sequence(sequence))
            } else {
                Ok(())
            };
        }
        self.floor = floor.0;
        // What is being applied keeps its lock whatever the floor: only the memory of finished frames goes.
        while let Some((&sequence, &extent)) = self.by_sequence.first_key_value() {
            if sequence >= self.floor {
                break;
            }
            self.by_sequence.remove(&sequence);
            if self.newest.get(&extent) == Some(&sequence) {
                self.newest.remove(&extent);
            }
        }
        let floor = self.floor;
        self.ranges.retain(|sequence, range| *sequence >= floor || range.state != RangeState::Applied);
        Ok(())
    }

    pub(super) fn extent_arrived(&mut self, sequence: u64, extent: u64) -> Arrival {
        if sequence < self.floor {
            return Arrival::Stale;
        }
        if let Some(&newest) = self.newest.get(&extent)
            && newest >= sequence
        {
            if newest > sequence {
                self.superseded.entry(newest).or_default().push(sequence);
            }
            return Arrival::Stale;
        }
        if self.ranges.iter().any(|(of, range)| *of > sequence && range.covers(extent)) {
            return Arrival::Stale;
        }
        self.newest.insert(extent, sequence);
        self.by_sequence.insert(sequence, extent);
        if self.is_locked(extent) {
            let replaced = self.waiting.insert(extent, sequence);
            if let Some(replaced) = replaced {
                let mut older = self.superseded.remove(&replaced).unwrap_or_default();
                older.push(replaced);
                self.superseded.entry(sequence).or_default().extend(older);
            }
            return Arrival::Wait { replaced };
        }
        self.locked.insert(extent, sequence);
        Arrival::Start
    }

    pub(super) fn extent_done(&mut self, sequence: u64) -> Done {
        let extent = *self
            .locked
            .iter()
            .find(|(_, of)| **of == sequence)
            .map(|(extent, _)| extent)
            .expect("the driver answers only what it was told to apply");
        self.locked.remove(&extent);
        let superseded = self.superseded.remove(&sequence).unwrap_or_default();
        let next = self.wake(extent);
        Done { extent, superseded, next }
    }

    /// Starts what waits for an extent, if nothing holds it any more.
    fn wake(&mut self, extent: u64) -> Option<u64> {
        if self.is_locked(extent) {
            return None;
        }
        let next = self.waiting.remove(&extent)?;
        self.locked.insert(extent, next);
        Some(next)
    }

    fn is_locked(&self, extent: u64) -> bool {
        self.locked.contains_key(&extent)
            || self.ranges.values().any(|range| match &range.state {
                RangeState::Applying(runs) => runs.iter().any(|run| run_has(run, extent)),
                // One that waits goes first: it is older than whatever arrives now, or that is stale.
                RangeState::Waiting => range.covers(extent),
                RangeState::Applied => false,
            })
    }

    pub(super) fn range_arrived(&mut self, mark: RangeMark) {
        if mark.sequence.0 < self.floor {
            return;
        }
        self.ranges.entry(mark.sequence.0).or_insert(Range {
            kind: mark.kind,
            first: mark.first.0,
            count: mark.count,
            state: RangeState::Waiting,
        });
    }

    /// A range that can start: none of its places is being applied.
    pub(super) fn next_range(&mut self) -> Option<(u64, RangeKind, Vec<Run>)> {
        let (&sequence, _) = self.ranges.iter().find(|(sequence, range)| {
            range.state == RangeState::Waiting
                && !self.locked.keys().any(|extent| range.covers(*extent))
                && !self.ranges.iter().any(|(of, other)| {
                    of != *sequence
                        && match &other.state {
                            RangeState::Applying(_) => range.overlaps(other),
                            RangeState::Waiting => of < sequence && range.overlaps(other),
                            RangeState::Applied => false,
                        }
                })
        })?;
        let (kind, first, count) = {
            let range = &self.ranges[&sequence];
            (range.kind, range.first, range.count)
        };
        // Places with something newer, applied or waiting, are left out.
        let mut runs = vec![Run { first, count }];
        let newer_extents: Vec<u64> = self
            .newest
            .range(first..first + count)
            .filter(|(_, newest)| **newest > sequence)
            .map(|(extent, _)| *extent)
            .collect();
        for extent in newer_extents {
            cut(&mut runs, extent, 1);
        }
        for (_, newer) in self.ranges.range(sequence + 1..) {
            if newer.state == RangeState::Applied {
                cut(&mut runs, newer.first, newer.count);
            }
        }
        if let Some(range) = self.ranges.get_mut(&sequence) {
            range.state = RangeState::Applying(runs.clone());
        }
        Some((sequence, kind, runs))
    }

    pub(super) fn range_done(&mut self, sequence: u64) -> (RangeKind, Vec<Run>) {
        let floor = self.floor;
        let range =
            self.ranges.get_mut(&sequence).expect("the driver answers only what it was told to apply");
        let kind = range.kind;
        let state = std::mem::replace(&mut range.state, RangeState::Applied);
        if sequence < floor {
            self.ranges.remove(&sequence);
        }
        match state {
            RangeState::Applying(runs) => (kind, runs),
            RangeState::Waiting | RangeState::Applied => {
                unreachable!("only a range that is applied gets done")
            }
        }
    }

    /// Extent frames that can start now that a range is done.
    pub(super) fn released(&mut self) -> Vec<u64> {
        let candidates: Vec<u64> = self.waiting.keys().copied().collect();
        candidates.into_iter().filter_map(|extent| self.wake(extent)).collect()
    }
}

impl Range {
    fn covers(&self, extent: u64) -> bool {
        extent >= self.first && extent - self.first < self.count
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first < other.first + other.count && other.first < self.first + self.count
    }
}

fn run_has(run: &Run, extent: u64) -> bool {
    extent >= run.first && extent - run.first < run.count
}

/// Takes `first..first + count` out of ascending, disjoint runs.
fn cut(runs: &mut Vec<Run>, first: u64, count: u64) {
    let end = first + count;
    *runs = runs
        .iter()
        .flat_map(|run| {
            let run_end = run.first + run.count;
            let left = Run { first: run.first, count: run_end.min(first).saturating_sub(run.first) };
            let right_first = run.first.max(end);
            let right = Run { first: right_first, count: run_end.saturating_sub(right_first) };
            [left, right]
        })
        .filter(|run| run.count > 0)
        .collect();
}
