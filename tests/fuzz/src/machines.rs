//! Targets of the session's state machines: bytes become a schedule of inputs, right and wrong ones.
//!
//! The driver's own contract is kept (only what was asked for is answered); everything that a peer can do is not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use session::{
    Applied, ExtentSet, Intake, OldExtent, Outcome, Receiver, ReceiverAction, ReceiverTerms, Sender,
    SenderAction, SenderTerms, SessionError,
};
use volume::{ByteLen, ByteRange, CHUNK, ChunkId, EXTENT, ExtentIndex, Generation, KeyId, Sequence};
use wire::{
    Ack, ChunkEntry, Control, Durable, Encoding, ExtentHead, Fail, FailCode, Grant, HashKeyBytes, Held,
    Known, Leaves, Need, NeedReason, PageQuery, PageSums, RangeKind, RangeMark, Run, Seal, Sealed,
};

/// Outputs that one input may cause: a window of acknowledgements, needs and actions, with room.
const MAX_OUTPUTS: usize = 10_000;
/// Frames on the way that the schedule may let pile up; more are lost.
const MAX_QUEUE: usize = 64;

/// Bytes of a schedule; zeros when they have run out.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u64) -> u64 {
        u64::from(self.byte()) % bound.max(1)
    }

    /// Mostly small; now and then at the edges.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::MAX / 2,
            253 => 1 << 32,
            small => u64::from(small % 32),
        }
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

fn terms(script: &mut Script<'_>) -> (ByteLen, Grant) {
    let size = ByteLen(script.below(5) * EXTENT + script.below(17) * CHUNK + script.below(2));
    let flags = script.byte();
    let grant = Grant {
        generation: Generation(1),
        key_id: KeyId([1; 16]),
        key: HashKeyBytes([2; 32]),
        page_seed: 3,
        first_sequence: Sequence(script.number()),
        window_bytes: script.number().saturating_mul(64 << 10),
        window_frames: u32::from(script.byte() % 40),
        resumed: flags & 1 != 0,
        leaves: flags & 2 != 0,
        known: flags & 4 != 0,
        zeroed: flags & 8 != 0,
    };
    (size, grant)
}

fn set(script: &mut Script<'_>, extents: u64) -> ExtentSet {
    let mask = script.byte();
    let mut set = ExtentSet::new(extents);
    (0..extents).filter(|extent| mask >> (extent % 8) & 1 == 1).for_each(|extent| {
        set.insert(extent);
    });
    set
}

fn chunks(size: ByteLen, extent: u64) -> u64 {
    ExtentIndex(extent).range(size).map_or(1, |range| range.len().div_ceil(CHUNK))
}

fn ids(script: &mut Script<'_>, size: ByteLen, extent: u64) -> Vec<ChunkId> {
    let content = script.byte() % 4;
    vec![ChunkId([content; 32]); usize::try_from(chunks(size, extent)).unwrap_or(1)]
}

fn run(script: &mut Script<'_>) -> Run {
    Run { first: script.number(), count: script.number() }
}

/// A head whose lengths are right, so that most pass their check.
fn head(
    script: &mut Script<'_>,
    size: ByteLen,
    sequence: Sequence,
    floor: Sequence,
    extent: u64,
) -> ExtentHead {
    let kinds = script.byte();
    let mut rest = ExtentIndex(extent).range(size).map_or(0, ByteRange::len);
    let mut plain = 0;
    let mut entries = Vec::new();
    for id in ids(script, size, extent) {
        let entry = match kinds % 5 {
            0 => ChunkEntry::Zero,
            1 => ChunkEntry::Same(id),
            2 => ChunkEntry::Reference(id),
            3 => ChunkEntry::Pages(id, 1),
            _ => ChunkEntry::Data(id),
        };
        plain += entry.payload_len(rest.min(CHUNK));
        rest -= rest.min(CHUNK);
        entries.push(entry);
    }
    let len = u32::try_from(plain).unwrap_or(0);
    ExtentHead {
        sequence,
        floor,
        extent: ExtentIndex(extent),
        encoding: Encoding::Raw,
        wire_len: len,
        plain_len: len,
        chunks: entries,
    }
}

/// A control frame as a peer might make it up.
fn forged(script: &mut Script<'_>) -> Control {
    let extent = ExtentIndex(script.number());
    match script.byte() % 14 {
        0 => Control::Durable(Durable { runs: vec![run(script), run(script)], last: script.flag() }),
        1 => {
            let held = match script.byte() % 3 {
                0 => Held::Zero(script.number()),
                1 => Held::Unknown(script.number()),
                _ => Held::Prefixes(vec![[script.byte(); 16]; usize::from(script.byte() % 40)]),
            };
            Control::Leaves(Leaves { first: volume::ChunkIndex(script.number()), held })
        }
        2 => Control::Known(Known { tags: vec![script.number()], last: script.flag() }),
        3 => Control::PageQuery(PageQuery { extent, mask: u16::from(script.byte()) << 4 }),
        4 => {
            let mask = u16::from(script.byte());
            let sums = vec![script.number(); 16 * usize::try_from(mask.count_ones()).unwrap_or(0)];
            Control::PageSums(PageSums { extent, mask, sums })
        }
        5 | 6 => Control::Range(RangeMark {
            kind: if script.flag() { RangeKind::Zero } else { RangeKind::Same },
            sequence: Sequence(script.number()),
            floor: Sequence(script.number()),
            first: extent,
            count: script.number(),
        }),
        7 | 8 => Control::Ack(Ack { runs: vec![run(script)] }),
        9 => Control::Need(Need {
            sequence: Sequence(script.number()),
            extent,
            mask: u16::from(script.byte()),
            reason: if script.flag() { NeedReason::Unknown } else { NeedReason::Mismatch },
        }),
        10 => Control::Seal(Seal { root: [1; 32], size: ByteLen(script.number().saturating_mul(EXTENT)) }),
        11 => Control::Sealed(Sealed { cpu_micros: 1, receipt: vec![1] }),
        12 => Control::Fail(Fail { code: FailCode::Protocol, detail: String::new() }),
        _ => Control::Drain,
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() < MAX_QUEUE {
        queue.push_back(item);
    }
}

fn take<T>(queue: &mut VecDeque<T>, script: &mut Script<'_>) -> Option<T> {
    let at = script.below(queue.len() as u64);
    queue.remove(usize::try_from(at).ok()?)
}

/// The sender and what its driver owes it.
struct Sending {
    machine: Sender,
    size: ByteLen,
    floor_seen: u64,
    finding: bool,
    scanning: Vec<u64>,
    finishing: bool,
    kinds: BTreeMap<u64, Vec<ChunkId>>,
}

impl Sending {
    fn poll(
        &mut self,
        script: &mut Script<'_>,
        now: Duration,
        control: &mut VecDeque<Control>,
        frames: &mut VecDeque<ExtentHead>,
    ) {
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "the sender never has enough");
            let Some(action) = self.machine.poll_action() else { break };
            match action {
                SenderAction::FindData(_) => {
                    assert!(!std::mem::replace(&mut self.finding, true), "one search at a time");
                }
                SenderAction::Scan { extent, old, full } => {
                    assert!(extent.0 < self.size.extents(), "only extents of the volume are read");
                    assert!(!full || old == OldExtent::Unknown, "in full means without the old content");
                    assert!(!self.scanning.contains(&extent.0), "an extent is read once at a time");
                    self.scanning.push(extent.0);
                }
                SenderAction::Encode(sums) => self.scanning.push(sums.extent.0),
                SenderAction::Finish => {
                    assert!(self.machine.settled().is_full(), "the end comes when all is settled");
                    self.finishing = true;
                }
                SenderAction::Learn(_) | SenderAction::Settled(_) | SenderAction::Done(_) => {}
            }
        }
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "the sender sends without end");
            let Some(frame) = self.machine.poll_transmit(now) else { break };
            push(control, frame);
        }
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "the sender sends without end");
            let Some(dispatch) = self.machine.poll_send(now) else { break };
            assert!(dispatch.floor <= dispatch.sequence, "a floor above its frame");
            assert!(dispatch.floor.0 >= self.floor_seen, "the floor falls");
            self.floor_seen = dispatch.floor.0;
            let frame = head(script, self.size, dispatch.sequence, dispatch.floor, dispatch.extent.0);
            push(frames, frame);
        }
    }

    /// Answers one thing that the machine waits for.
    fn answer(&mut self, script: &mut Script<'_>, now: Duration) {
        match script.byte() % 4 {
            0 if std::mem::take(&mut self.finding) => {
                let start = script.below(6) * EXTENT;
                let end = (start + script.below(6) * EXTENT).min(self.size.0);
                let data = (start < end && !script.flag()).then_some(ByteRange { start, end });
                self.machine.handle_data(data);
            }
            1 if std::mem::take(&mut self.finishing) => self.machine.handle_root(now, [1; 32]),
            _ if !self.scanning.is_empty() => {
                let at = script.below(self.scanning.len() as u64);
                let extent = self.scanning.swap_remove(usize::try_from(at).unwrap_or(0));
                let ids = ids(script, self.size, extent);
                self.kinds.insert(extent, ids.clone());
                let outcome = match script.byte() % 4 {
                    0 => Outcome::Zero,
                    1 => Outcome::Same,
                    2 => Outcome::Query(1),
                    _ => Outcome::Frame { wire_len: u32::from(script.byte()) * 4096 },
                };
                self.machine.handle_scanned(ExtentIndex(extent), ids, outcome);
            }
            _ => {}
        }
    }
}

/// The receiver and what its driver owes it.
struct Receiving {
    machine: Receiver,
    size: ByteLen,
    kept: BTreeMap<u64, u64>,
    applying: BTreeMap<u64, u64>,
    ranges: BTreeMap<u64, Vec<Run>>,
    /// The newest sequence that was applied, per extent (design rule 3).
    newest: BTreeMap<u64, u64>,
    declaring: Option<(u64, u64)>,
    queries: VecDeque<PageQuery>,
    committing: bool,
    finishing: bool,
    acknowledged: BTreeSet<u64>,
    applied: BTreeSet<u64>,
    /// The sender keeps its side of the protocol: ranges come in order, and nothing is given up.
    honest: bool,
}

impl Receiving {
    fn extent(&mut self, head: &ExtentHead) -> Result<(), SessionError> {
        if self.machine.handle_extent(head)? == Intake::Kept {
            assert!(self.kept.insert(head.sequence.0, head.extent.0).is_none(), "a frame is kept twice");
        }
        assert!(self.kept.len() <= MAX_OUTPUTS, "kept frames pile up");
        Ok(())
    }

    fn note(&mut self, extent: u64, sequence: u64) {
        // A sender that gives up ranges or sends them out of order spoils its own volume, nothing else.
        if !self.honest {
            return;
        }
        let busy = self.applying.values().filter(|of| **of == extent).count()
            + self
                .ranges
                .values()
                .flatten()
                .filter(|run| (run.first..run.first + run.count).contains(&extent))
                .count();
        assert_eq!(busy, 0, "two writes on extent {extent} at once");
        let before = self.newest.insert(extent, sequence);
        assert!(before.is_none_or(|before| before < sequence), "an older write goes over a newer one");
    }

    fn poll(&mut self, now: Duration, control: &mut VecDeque<Control>) {
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "the receiver never has enough");
            let Some(action) = self.machine.poll_action(now) else { break };
            match action {
                ReceiverAction::Apply(sequence) => {
                    let extent = self.kept.remove(&sequence.0).expect("only a kept frame is applied");
                    self.note(extent, sequence.0);
                    self.applying.insert(sequence.0, extent);
                }
                ReceiverAction::Discard(sequence) => {
                    self.kept.remove(&sequence.0).expect("only a kept frame is discarded");
                }
                ReceiverAction::ApplyRange { sequence, kind: _, runs } => {
                    for extent in runs.iter().flat_map(|run| run.first..run.first + run.count) {
                        assert!(extent < self.size.extents(), "only extents of the volume");
                        self.note(extent, sequence.0);
                    }
                    self.ranges.insert(sequence.0, runs);
                }
                ReceiverAction::Declare { first, count } => {
                    assert!(count > 0 && first.0 + count <= self.size.extents());
                    assert!(self.declaring.replace((first.0, count)).is_none(), "one description at a time");
                }
                ReceiverAction::Sums(query) => self.queries.push_back(query),
                ReceiverAction::Commit(_) => {
                    assert!(!std::mem::replace(&mut self.committing, true), "two commits at once");
                }
                ReceiverAction::Finish(_) => {
                    assert!(self.machine.settled().is_full(), "sealed while extents are missing");
                    self.finishing = true;
                }
            }
        }
        for outputs in 0.. {
            assert!(outputs < MAX_OUTPUTS, "the receiver sends without end");
            let Some(frame) = self.machine.poll_transmit() else { break };
            if let Control::Ack(ack) = &frame {
                for sequence in ack.runs.iter().flat_map(|run| run.first..run.first + run.count) {
                    self.acknowledged.insert(sequence);
                }
            }
            push(control, frame);
        }
    }

    /// Answers one thing that the machine waits for.
    fn answer(&mut self, script: &mut Script<'_>, now: Duration) {
        match script.byte() % 6 {
            0 if std::mem::take(&mut self.committing) => self.machine.handle_committed(now),
            1 if let Some((first, count)) = self.declaring.take() => {
                let upto = first + 1 + script.below(count);
                let many: u64 = (first..upto).map(|extent| chunks(self.size, extent)).sum();
                let held = match script.byte() % 3 {
                    0 => Held::Zero(many),
                    1 => Held::Unknown(many),
                    _ => Held::Prefixes(vec![[script.byte() % 4; 16]; usize::try_from(many).unwrap_or(0)]),
                };
                self.machine.handle_declared(vec![held]);
            }
            2 if let Some(query) = self.queries.pop_front() => {
                let sums = vec![1; 16 * usize::try_from(query.mask.count_ones()).unwrap_or(0)];
                self.machine.handle_sums(PageSums { extent: query.extent, mask: query.mask, sums });
            }
            3 if std::mem::take(&mut self.finishing) => {
                self.machine.handle_sealed(Sealed { cpu_micros: 1, receipt: vec![1] });
            }
            4 if let Some((sequence, _)) = self.ranges.pop_first() => {
                self.applied.insert(sequence);
                self.machine.handle_range_applied(now, Sequence(sequence));
            }
            _ if let Some((sequence, extent)) = self.applying.pop_first() => {
                let applied = if script.byte().is_multiple_of(4) {
                    // Nothing of it was written: an older frame may still come.
                    self.newest.remove(&extent);
                    Applied::Needs { mask: 1, reason: NeedReason::Unknown }
                } else {
                    self.applied.insert(sequence);
                    Applied::Written(ids(script, self.size, extent))
                };
                self.machine.handle_applied(now, Sequence(sequence), applied, u64::from(script.byte()) << 16);
            }
            _ => {}
        }
    }
}

/// A sender and a receiver over a link that loses, repeats, reorders and makes up frames.
pub fn session(data: &[u8]) {
    let mut script = Script(data);
    let (size, grant) = terms(&mut script);
    let extents = size.extents();
    let remembered = set(&mut script, extents);
    let durable = set(&mut script, extents);
    let max_work = usize::from(script.byte() % 9);
    let Ok(machine) = Sender::new(Duration::ZERO, SenderTerms { size, grant, remembered, max_work }) else {
        return;
    };
    let mut sender = Sending {
        machine,
        size,
        floor_seen: 0,
        finding: false,
        scanning: Vec::new(),
        finishing: false,
        kinds: BTreeMap::new(),
    };
    sender.machine.start();
    let mut receiver = receiving(size, grant, durable);
    let (mut to_receiver, mut to_sender, mut frames) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
    let mut now = Duration::ZERO;
    while !script.0.is_empty() {
        sender.poll(&mut script, now, &mut to_receiver, &mut frames);
        receiver.poll(now, &mut to_sender);
        let step = script.byte();
        let result = match step % 16 {
            0..=3 => {
                sender.answer(&mut script, now);
                Ok(())
            }
            4..=7 => {
                receiver.answer(&mut script, now);
                Ok(())
            }
            8 | 9 => match to_receiver.pop_front() {
                Some(frame) => receiver.machine.handle_control(now, frame),
                None => Ok(()),
            },
            10 | 11 => match to_sender.pop_front() {
                Some(frame) => sender.machine.handle_control(now, frame),
                None => Ok(()),
            },
            12 => match take(&mut frames, &mut script) {
                Some(frame) => {
                    if step & 64 != 0 {
                        push(&mut frames, frame.clone());
                    }
                    sender.machine.handle_lane_took(step >> 6, frame.sequence);
                    receiver.extent(&frame)
                }
                None => Ok(()),
            },
            13 => {
                now += Duration::from_millis(u64::from(script.byte()));
                sender.machine.handle_timeout(now)
            }
            14 => match step >> 4 {
                0 => {
                    sender.machine.drain();
                    Ok(())
                }
                1 => {
                    receiver.machine.drain();
                    Ok(())
                }
                lane => {
                    sender.machine.handle_lane_down(lane % 3);
                    Ok(())
                }
            },
            _ if step & 16 != 0 => {
                let frame = forged(&mut script);
                sender.machine.handle_control(now, frame)
            }
            _ => {
                let frame = forged(&mut script);
                receiver.machine.handle_control(now, frame)
            }
        };
        // The driver ends the attempt at the first error.
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
            return;
        }
    }
}

fn receiving(size: ByteLen, grant: Grant, durable: ExtentSet) -> Receiving {
    Receiving {
        machine: Receiver::new(ReceiverTerms { size, grant, durable }),
        size,
        kept: BTreeMap::new(),
        applying: BTreeMap::new(),
        ranges: BTreeMap::new(),
        newest: BTreeMap::new(),
        declaring: None,
        queries: VecDeque::new(),
        committing: false,
        finishing: false,
        acknowledged: BTreeSet::new(),
        applied: BTreeSet::new(),
        honest: false,
    }
}

/// Only extents and ranges, to a receiver: no order of arrival makes it write out of order or twice at once.
pub fn ordering(data: &[u8]) {
    let mut script = Script(data);
    let size = ByteLen((1 + script.below(4)) * EXTENT);
    let grant = Grant {
        generation: Generation(1),
        key_id: KeyId([1; 16]),
        key: HashKeyBytes([2; 32]),
        page_seed: 3,
        first_sequence: Sequence(0),
        window_bytes: u64::MAX,
        window_frames: 16 + u32::from(script.byte() % 16),
        resumed: false,
        leaves: true,
        known: false,
        zeroed: false,
    };
    let mut receiver = receiving(size, grant, ExtentSet::new(size.extents()));
    receiver.honest = true;
    let mut answers = VecDeque::new();
    let mut last_range = None;
    let now = Duration::from_secs(1);
    while !script.0.is_empty() {
        receiver.poll(now, &mut answers);
        answers.clear();
        let step = script.byte();
        let sequence = Sequence(script.below(64));
        let floor = Sequence(0);
        let extent = script.below(size.extents());
        let result = match step % 4 {
            0 => {
                let frame = head(&mut script, size, sequence, floor, extent);
                receiver.extent(&frame)
            }
            1 if last_range.is_none_or(|last| last < sequence) => {
                last_range = Some(sequence);
                let count = 1 + script.below(size.extents() - extent);
                let kind = if step & 4 != 0 { RangeKind::Zero } else { RangeKind::Same };
                let mark = RangeMark { kind, sequence, floor, first: ExtentIndex(extent), count };
                receiver.machine.handle_control(now, Control::Range(mark))
            }
            _ => {
                receiver.answer(&mut script, now);
                Ok(())
            }
        };
        if result.is_err() {
            return;
        }
    }
}
