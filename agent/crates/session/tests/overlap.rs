//! Overlapping writes: several live sequences for one place, in any order of arrival, against an oracle.
//!
//! A sender as live migration needs it: it writes the same extents again and again, singly and in runs, and waits for
//! nothing but its window. What a place holds is the sequence that wrote it, so that "older over newer" shows at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use novaferry_session::{Applied, ExtentSet, Intake, Receiver, ReceiverAction, ReceiverTerms};
use proptest::prelude::*;
use support::terms::{grant, head};
use volume::{ByteLen, ChunkId, EXTENT, ExtentIndex, Sequence};
use wire::{Control, NeedReason, RangeKind, RangeMark, Run};

mod support {
    pub(crate) mod terms;
}

const EXTENTS: u64 = 6;
const WINDOW: u32 = 8;
const FIRST: u64 = 100;

/// A write that the sender issued.
#[derive(Clone, Copy, Debug)]
struct Write {
    sequence: u64,
    floor: u64,
    first: u64,
    count: u64,
    /// A range: it goes over the control stream, in order unless `unordered`.
    range: bool,
}

impl Write {
    fn extents(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

#[derive(Clone, Debug)]
enum Pending {
    Extent(u64),
    Range(u64, Vec<Run>),
}

struct Bench {
    receiver: Receiver,
    now: Duration,
    next: u64,
    /// On the way, copies included.
    wire: Vec<Write>,
    /// Sent, not acknowledged, not given up, not refused.
    alive: BTreeMap<u64, Write>,
    issued: BTreeMap<u64, Write>,
    kept: BTreeSet<u64>,
    pending: Vec<Pending>,
    current: Vec<u64>,
    durable: Vec<u64>,
    committing: bool,
    refused: BTreeSet<u64>,
    /// Extents whose last write was refused or given up: they are written again before the end.
    again: BTreeSet<u64>,
    acknowledged: usize,
}

fn index(extent: u64) -> usize {
    usize::try_from(extent).unwrap()
}

impl Bench {
    fn new() -> Self {
        let grant = grant(FIRST, WINDOW);
        let size = ByteLen(EXTENTS * EXTENT);
        Self {
            receiver: Receiver::new(ReceiverTerms { size, grant, durable: ExtentSet::new(EXTENTS) }),
            now: Duration::ZERO,
            next: FIRST,
            wire: Vec::new(),
            alive: BTreeMap::new(),
            issued: BTreeMap::new(),
            kept: BTreeSet::new(),
            pending: Vec::new(),
            current: vec![0; index(EXTENTS)],
            durable: vec![0; index(EXTENTS)],
            committing: false,
            refused: BTreeSet::new(),
            again: BTreeSet::new(),
            acknowledged: 0,
        }
    }

    fn issue(&mut self, first: u64, count: u64, range: bool) {
        let oldest = self.alive.keys().next().copied().unwrap_or(self.next);
        if self.alive.len() >= WINDOW as usize || self.next - oldest >= u64::from(WINDOW) * 4 {
            return;
        }
        let first = first % EXTENTS;
        let count = if range { (count % EXTENTS + 1).min(EXTENTS - first) } else { 1 };
        let write = Write { sequence: self.next, floor: oldest, first, count, range };
        self.next += 1;
        self.wire.push(write);
        self.alive.insert(write.sequence, write);
        self.issued.insert(write.sequence, write);
        write.extents().for_each(|extent| {
            self.again.remove(&extent);
        });
    }

    /// A write that arrives at the position `at` of those on the way, and stays there too when it is repeated.
    fn deliver(&mut self, at: usize, repeat: bool) {
        if self.wire.is_empty() {
            return;
        }
        let at = at % self.wire.len();
        let write = if repeat { self.wire[at] } else { self.wire.remove(at) };
        if write.range {
            let mark = RangeMark {
                kind: RangeKind::Zero,
                sequence: Sequence(write.sequence),
                floor: Sequence(write.floor),
                first: ExtentIndex(write.first),
                count: write.count,
            };
            self.receiver.handle_control(self.now, Control::Range(mark)).unwrap();
        } else {
            match self.receiver.handle_extent(&head(write.sequence, write.floor, write.first)).unwrap() {
                Intake::Kept => assert!(self.kept.insert(write.sequence), "kept twice"),
                Intake::Dropped => {}
            }
        }
        self.poll();
    }

    /// The lane of a frame dies: it comes late or never, and its extent is written again.
    fn give_up(&mut self, nth: usize, lost: bool) {
        let frames: Vec<u64> =
            self.alive.values().filter(|write| !write.range).map(|write| write.sequence).collect();
        if frames.is_empty() {
            return;
        }
        let sequence = frames[nth % frames.len()];
        let write = self.alive.remove(&sequence).unwrap();
        if lost {
            self.wire.retain(|of| of.sequence != sequence);
        }
        self.again.insert(write.first);
    }

    fn finish_one(&mut self, nth: usize, refuse: bool) {
        if self.pending.is_empty() {
            return;
        }
        let nth = nth % self.pending.len();
        match self.pending.remove(nth) {
            Pending::Extent(sequence) => {
                let extent = self.issued[&sequence].first;
                let applied = if refuse {
                    self.refused.insert(sequence);
                    Applied::Needs { mask: 1, reason: NeedReason::Unknown }
                } else {
                    self.wrote(extent, sequence);
                    Applied::Written(vec![ChunkId::ZERO; 16])
                };
                self.receiver.handle_applied(self.now, Sequence(sequence), applied, 1);
            }
            Pending::Range(sequence, runs) => {
                for extent in runs.iter().flat_map(|run| run.first..run.first + run.count) {
                    self.wrote(extent, sequence);
                }
                self.receiver.handle_range_applied(self.now, Sequence(sequence));
            }
        }
        self.poll();
    }

    fn wrote(&mut self, extent: u64, sequence: u64) {
        let place = &mut self.current[index(extent)];
        // What was given up or refused may be written over by its second sending only, which is newer.
        assert!(*place < sequence, "extent {extent}: {sequence} is written over {place}");
        *place = sequence;
    }

    fn commit(&mut self) {
        if self.committing {
            self.committing = false;
            self.durable.clone_from(&self.current);
            self.receiver.handle_committed(self.now);
        }
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(action) = self.receiver.poll_action(self.now) {
            match action {
                ReceiverAction::Apply(sequence) => {
                    assert!(self.kept.remove(&sequence.0), "applied without being kept");
                    self.start(Pending::Extent(sequence.0));
                }
                ReceiverAction::Discard(sequence) => {
                    assert!(self.kept.remove(&sequence.0), "discarded twice")
                }
                ReceiverAction::ApplyRange { sequence, runs, .. } => {
                    self.start(Pending::Range(sequence.0, runs));
                }
                ReceiverAction::Commit(_) => {
                    assert!(!self.committing, "two commits at once");
                    self.committing = true;
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
        while let Some(frame) = self.receiver.poll_transmit() {
            match frame {
                Control::Ack(ack) => {
                    for sequence in ack.runs.iter().flat_map(|run| run.first..run.first + run.count) {
                        self.acknowledge(sequence);
                    }
                }
                Control::Need(need) => {
                    assert!(self.refused.contains(&need.sequence.0));
                    if self.alive.remove(&need.sequence.0).is_some() {
                        self.again.insert(need.extent.0);
                    }
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    fn places(&self, pending: &Pending) -> Vec<u64> {
        match pending {
            Pending::Extent(sequence) => vec![self.issued[sequence].first],
            Pending::Range(_, runs) => runs.iter().flat_map(|run| run.first..run.first + run.count).collect(),
        }
    }

    fn start(&mut self, pending: Pending) {
        let places = self.places(&pending);
        for other in &self.pending {
            let others = self.places(other);
            assert!(places.iter().all(|extent| !others.contains(extent)), "{pending:?} meets {other:?}");
        }
        self.pending.push(pending);
    }

    /// An acknowledged write is durable: each of its places holds it or something newer.
    fn acknowledge(&mut self, sequence: u64) {
        let write = self.issued.get(&sequence).expect("only what was sent is acknowledged");
        for extent in write.extents() {
            let held = self.durable[index(extent)];
            assert!(held >= sequence, "{sequence} is acknowledged while {held} is durable at {extent}");
        }
        self.alive.remove(&sequence);
        self.acknowledged += 1;
    }

    /// Everything arrives, is applied and committed; what was refused or given up is sent once more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            while !self.wire.is_empty() {
                self.deliver(0, false);
            }
            while !self.pending.is_empty() {
                self.finish_one(0, false);
            }
            self.now += Duration::from_secs(1);
            self.poll();
            self.commit();
            if let Some(extent) = self.again.first().copied() {
                self.issue(extent, 0, false);
            } else if self.alive.is_empty() && self.wire.is_empty() && self.receiver.is_idle() {
                break;
            }
        }
        assert!(self.alive.is_empty(), "never acknowledged: {:?}", self.alive);
        assert!(self.kept.is_empty(), "kept for ever: {:?}", self.kept);
        assert!(self.receiver.is_idle(), "not idle");
        assert_eq!(self.durable, self.current);
        for extent in 0..EXTENTS {
            let newest = self
                .issued
                .values()
                .filter(|write| write.extents().contains(&extent) && !self.refused.contains(&write.sequence))
                .map(|write| write.sequence)
                .max()
                .unwrap_or(0);
            assert_eq!(self.current[index(extent)], newest, "extent {extent} holds something old");
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Issue(u64),
    IssueRange(u64, u64),
    Deliver(usize, bool),
    Finish(usize, bool),
    Commit,
    Wait,
    GiveUp(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..EXTENTS).prop_map(Op::Issue),
        3 => (0..EXTENTS, 0..EXTENTS).prop_map(|(first, count)| Op::IssueRange(first, count)),
        9 => (0_usize..16, prop::bool::weighted(0.15)).prop_map(|(at, repeat)| Op::Deliver(at, repeat)),
        7 => (0_usize..16, prop::bool::weighted(0.15)).prop_map(|(nth, refuse)| Op::Finish(nth, refuse)),
        3 => Just(Op::Commit),
        2 => Just(Op::Wait),
        1 => (0_usize..16, any::<bool>()).prop_map(|(nth, lost)| Op::GiveUp(nth, lost)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(4000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_newest_write_remains_and_all_are_acknowledged(ops in prop::collection::vec(op(), 0..160)) {
        let mut bench = Bench::new();
        for op in ops {
            match op {
                Op::Issue(extent) => bench.issue(extent, 1, false),
                Op::IssueRange(first, count) => bench.issue(first, count, true),
                Op::Deliver(at, repeat) => bench.deliver(at, repeat),
                Op::Finish(nth, refuse) => bench.finish_one(nth, refuse),
                Op::Commit => bench.commit(),
                Op::Wait => {
                    bench.now += Duration::from_millis(60);
                    bench.poll();
                }
                Op::GiveUp(nth, lost) => bench.give_up(nth, lost),
            }
        }
        bench.settle();
    }
}
