//! The two drivers: they do what the machines ask for, some time later.

use std::rc::Rc;

use novaferry_session::{Applied, Intake, OldExtent, Outcome, ReceiverAction, SenderAction};
use volume::{CHUNKS_PER_EXTENT, ExtentIndex, Sequence};
use wire::{ChunkEntry, Control, Encoding, ExtentHead, Held, NeedReason, PageSums, RangeKind, Sealed};

use super::link::{Event, Frame};
use super::model::{Content, ZERO, chunk_len, chunks, id, ids, number, place, root};
use super::world::{Sent, World};

/// Frames that may wait for a lane.
const QUEUE: usize = 3;

impl World {
    // === sender ===

    pub(crate) fn drive_sender(&mut self) {
        loop {
            while let Some(action) = self.sender.poll_action() {
                self.trace(format_args!("sender {action:?}"));
                self.sender_action(action);
            }
            while let Some(frame) = self.sender.poll_transmit(self.now) {
                if let Control::Range(mark) = &frame {
                    let sent = Sent { first: mark.first.0, count: mark.count, bytes: None, lane: None };
                    self.sent.insert(mark.sequence.0, sent);
                    self.names.insert(mark.sequence.0, (mark.first.0, mark.count));
                }
                self.later(40, Event::ToReceiver(frame));
            }
            let mut sent = false;
            while self.queue.len() < QUEUE
                && let Some(dispatch) = self.sender.poll_send(self.now)
            {
                sent = true;
                let (wire_len, mut frame) =
                    self.prepared.remove(&dispatch.extent.0).expect("it was prepared");
                frame.head.sequence = dispatch.sequence;
                frame.head.floor = dispatch.floor;
                self.note_sending(dispatch.extent.0);
                let entry = Sent { first: dispatch.extent.0, count: 1, bytes: Some(wire_len), lane: None };
                self.sent.insert(dispatch.sequence.0, entry);
                self.names.insert(dispatch.sequence.0, (dispatch.extent.0, 1));
                self.queue.push_back(Rc::new(frame));
            }
            // A driver may poll again at once, or at the next input.
            if !sent || self.chance(2) {
                break;
            }
        }
        let mut waiting = self.queue.len();
        let mut asking = Vec::new();
        for lane in &mut self.lanes {
            if waiting > 0 && !lane.asking {
                lane.asking = true;
                waiting -= 1;
                asking.push(lane.incarnation);
            }
        }
        asking.into_iter().for_each(|lane| self.later(20, Event::Take(lane)));
    }

    fn sender_action(&mut self, action: SenderAction) {
        let slow = self.slowness;
        match action {
            SenderAction::FindData(extent) => self.later(slow, Event::FoundData(extent.0)),
            SenderAction::Scan { extent, old, full } => {
                self.later(slow, Event::Scanned(extent.0, old, full));
            }
            SenderAction::Encode(sums) => self.later(slow, Event::Encoded(sums)),
            SenderAction::Learn(_) => panic!("no tags were granted"),
            SenderAction::Settled(change) => {
                if let novaferry_session::Change::Extent { extent, ids } = &change {
                    assert_eq!(*ids, self.source.ids(extent.0));
                }
                self.sender_journal.push(change);
            }
            SenderAction::Finish => self.later(slow, Event::Rooted),
            SenderAction::Done(sealed) => {
                assert_eq!(sealed.receipt, self.session.0);
                self.done = true;
            }
        }
    }

    pub(crate) fn sender_event(&mut self, event: Event) {
        match event {
            Event::FoundData(extent) => self.sender.handle_data(self.source.next_data(extent)),
            Event::Scanned(extent, old, full) => self.scanned(extent, old, full),
            Event::Encoded(sums) => {
                let old = self.bases.remove(&sums.extent.0).expect("the query was for a compared extent");
                self.prepare(sums.extent.0, &old, false, Some(&sums));
            }
            Event::Rooted => {
                assert!(self.sender.settled().is_full());
                let known = self.sender_journal.remembered().len() as u64;
                assert_eq!(known, self.source.extents(), "the root needs the ids of every extent");
                self.sender.handle_root(self.now, root(self.source.content.iter()));
            }
            other => unreachable!("{other:?} is no event of the sender"),
        }
    }

    fn scanned(&mut self, extent: u64, old: OldExtent, full: bool) {
        assert!(!full || old == OldExtent::Unknown, "in full means without the old content");
        let content = self.source.content[place(extent)];
        let many = chunks(self.source.size, extent);
        let known: Option<Vec<[u8; 16]>> = match &old {
            OldExtent::Unknown => None,
            OldExtent::Zero => Some(vec![[0; 16]; many]),
            OldExtent::Prefixes(prefixes) => Some(prefixes.clone()),
        };
        let all = self.source.ids(extent);
        if let Some(known) = &known {
            assert_eq!(known.len(), many, "one prefix a chunk");
            let differs = (0..many).filter(|nth| all[*nth].prefix() != known[*nth]);
            let mask = differs.fold(0_u16, |mask, nth| mask | 1 << nth);
            if mask == 0 {
                self.sender.handle_scanned(ExtentIndex(extent), all, Outcome::Same);
                return;
            }
            if content != ZERO && self.chance(2) {
                self.bases.insert(extent, old);
                self.sender.handle_scanned(ExtentIndex(extent), all, Outcome::Query(mask));
                return;
            }
        }
        if content == ZERO {
            self.sender.handle_scanned(ExtentIndex(extent), all, Outcome::Zero);
            return;
        }
        self.prepare(extent, &old, full, None);
    }

    /// Encodes an extent, chunk by chunk.
    fn prepare(&mut self, extent: u64, old: &OldExtent, full: bool, sums: Option<&PageSums>) {
        let size = self.source.size;
        let content = self.source.content[place(extent)];
        let mut entries = Vec::new();
        let mut bases = Vec::new();
        let mut sums_at = 0;
        let mut plain = 0;
        for nth in 0..chunks(size, extent) {
            let chunk = id(content[nth]);
            let known = match old {
                OldExtent::Unknown => None,
                OldExtent::Zero => Some([0; 16]),
                OldExtent::Prefixes(prefixes) => Some(prefixes[nth]),
            };
            let base = sums.filter(|sums| sums.mask & 1 << nth != 0).map(|sums| {
                sums_at += 16;
                u16::try_from(sums.sums[sums_at - 16]).unwrap()
            });
            let entry = if content[nth] == 0 {
                ChunkEntry::Zero
            } else if known == Some(chunk.prefix()) {
                ChunkEntry::Same(chunk)
            } else if let Some(base) = base {
                self.outcome.pages += 1;
                bases.push(base);
                ChunkEntry::Pages(chunk, 1)
            } else if !full && self.refusing > 0 && self.chance(5) {
                ChunkEntry::Reference(chunk)
            } else {
                ChunkEntry::Data(chunk)
            };
            plain += entry.payload_len(chunk_len(size, extent, nth));
            entries.push(entry);
        }
        let plain_len = u32::try_from(plain).unwrap();
        let squeezed = u64::from(plain_len) > 1 && self.chance(2);
        let wire_len =
            if squeezed { u32::try_from(1 + self.dice.below(plain - 1)).unwrap() } else { plain_len };
        let head = ExtentHead {
            sequence: Sequence(0),
            floor: Sequence(0),
            extent: ExtentIndex(extent),
            encoding: if squeezed { Encoding::Zstd } else { Encoding::Raw },
            wire_len,
            plain_len,
            chunks: entries,
        };
        let ids = self.source.ids(extent);
        self.prepared.insert(extent, (wire_len.into(), Frame { head, bases, ids: ids.clone() }));
        self.sender.handle_scanned(ExtentIndex(extent), ids, Outcome::Frame { wire_len });
    }

    // === receiver ===

    pub(crate) fn receive_frame(&mut self, frame: Rc<Frame>) {
        match self.receiver.handle_extent(&frame.head) {
            Ok(Intake::Kept) => {
                let before = self.kept.insert(frame.head.sequence.0, frame);
                assert!(before.is_none(), "a frame is kept twice");
            }
            Ok(Intake::Dropped) => {}
            Err(error) => panic!("the receiver refuses a sound frame: {error:?}"),
        }
    }

    pub(crate) fn drive_receiver(&mut self) {
        while let Some(action) = self.receiver.poll_action(self.now) {
            self.trace(format_args!("receiver {action:?}"));
            self.receiver_action(action);
        }
        while let Some(frame) = self.receiver.poll_transmit() {
            if let Control::Ack(ack) = &frame {
                for run in &ack.runs {
                    for sequence in run.first..run.first + run.count {
                        let (first, count) = self.names[&sequence];
                        (first..first + count).for_each(|extent| self.assert_durable(extent));
                    }
                }
            }
            self.later(40, Event::ToSender(frame));
        }
    }

    fn receiver_action(&mut self, action: ReceiverAction) {
        let slow = self.slowness;
        match action {
            ReceiverAction::Apply(sequence) => {
                let frame = self.kept.remove(&sequence.0).expect("only a kept frame is applied");
                let refused = frame.head.chunks.iter().any(|chunk| matches!(chunk, ChunkEntry::Reference(_)))
                    && self.dice.below(4) < self.refusing;
                if !refused {
                    self.start_apply(&frame);
                }
                self.applying.insert(sequence.0, frame);
                self.later(slow, Event::Applied(sequence.0, refused));
            }
            ReceiverAction::Discard(sequence) => {
                self.kept.remove(&sequence.0).expect("only a kept frame is discarded");
            }
            ReceiverAction::ApplyRange { sequence, kind, runs } => {
                for run in &runs {
                    for extent in run.first..run.first + run.count {
                        let content = match kind {
                            RangeKind::Zero => ZERO,
                            RangeKind::Same => self.target.current[place(extent)],
                        };
                        if kind == RangeKind::Same {
                            assert_eq!(Some(content), self.leaves[place(extent)], "it is not as declared");
                        }
                        self.target.start_write(extent, content);
                    }
                }
                self.applying_ranges.insert(sequence.0, (kind, runs));
                self.later(slow, Event::RangeApplied(sequence.0));
            }
            ReceiverAction::Declare { first, count } => self.later(slow, Event::Declared(first.0, count)),
            ReceiverAction::Sums(query) => self.later(slow, Event::Summed(query)),
            ReceiverAction::Commit(changes) => {
                assert!(self.committing.is_none(), "two commits at once");
                self.committing = Some((false, changes));
                self.later(slow, Event::Flushed);
            }
            ReceiverAction::Finish(seal) => self.later(slow, Event::Finished(seal)),
        }
    }

    fn start_apply(&mut self, frame: &Frame) {
        let extent = frame.head.extent.0;
        let held = self.target.current[place(extent)];
        let mut bases = frame.bases.iter();
        let mut content = ZERO;
        for (nth, entry) in frame.head.chunks.iter().enumerate() {
            content[nth] = number(entry.id());
            match entry {
                ChunkEntry::Same(of) => assert_eq!(id(held[nth]), *of, "the target held something else"),
                ChunkEntry::Pages(..) => {
                    assert_eq!(bases.next(), Some(&held[nth]), "pages over something else")
                }
                ChunkEntry::Zero | ChunkEntry::Reference(_) | ChunkEntry::Data(_) => {}
            }
        }
        self.target.start_write(extent, content);
    }

    pub(crate) fn receiver_event(&mut self, event: Event) {
        match event {
            Event::Applied(sequence, refused) => {
                let frame = self.applying.remove(&sequence).expect("it was being applied");
                let (applied, bytes) = if refused {
                    self.outcome.refusals += 1;
                    (Applied::Needs { mask: 1, reason: NeedReason::Unknown }, 0)
                } else {
                    self.target.finish_write(frame.head.extent.0);
                    // Now and then as much as starts a commit by itself.
                    (Applied::Written(frame.ids.clone()), self.dice.below(3 << 20))
                };
                self.receiver.handle_applied(self.now, Sequence(sequence), applied, bytes);
            }
            Event::RangeApplied(sequence) => {
                let (_, runs) = self.applying_ranges.remove(&sequence).expect("it was being applied");
                for extent in runs.iter().flat_map(|run| run.first..run.first + run.count) {
                    self.target.finish_write(extent);
                }
                self.receiver.handle_range_applied(self.now, Sequence(sequence));
            }
            Event::Declared(first, count) => {
                let held = self.declare(first, count);
                self.receiver.handle_declared(held);
            }
            Event::Summed(query) => {
                let held = self.target.current[place(query.extent.0)];
                let asked = (0..CHUNKS_PER_EXTENT).filter(|nth| query.mask & 1 << nth != 0);
                let sums = asked.flat_map(|nth| [u64::from(held[nth]); 16]).collect();
                self.receiver.handle_sums(PageSums { extent: query.extent, mask: query.mask, sums });
            }
            Event::Flushed => {
                self.target.flush(&mut self.dice);
                self.committing.as_mut().expect("a commit is under way").0 = true;
                let slow = self.slowness;
                self.later(slow, Event::Committed);
            }
            Event::Committed => {
                let (_, changes) = self.committing.take().expect("a commit is under way");
                self.target.journal(&changes, &self.leaves);
                self.receiver.handle_committed(self.now);
            }
            Event::Finished(seal) => {
                assert_eq!(seal.size, self.source.size);
                assert_eq!(self.target.journal.len() as u64, self.source.extents());
                assert_eq!(root(self.target.journal.values()), seal.root, "the roots differ");
                let receipt = self.session.0.to_vec();
                self.receiver.handle_sealed(Sealed { cpu_micros: 1, receipt });
            }
            other => unreachable!("{other:?} is no event of the receiver"),
        }
    }

    /// Leaves for some of what was asked for, in runs.
    fn declare(&mut self, first: u64, count: u64) -> Vec<Held> {
        let size = self.source.size;
        let upto = first + 1 + self.dice.below(count);
        let mut held: Vec<Held> = Vec::new();
        let kind = |content: &Option<Content>| match content {
            None => 0,
            Some(content) if *content == ZERO => 1,
            Some(_) => 2,
        };
        let mut joinable = false;
        for extent in first..upto {
            let content = self.leaves[place(extent)];
            let many = chunks(size, extent) as u64;
            match (kind(&content), held.last_mut(), joinable) {
                (0, Some(Held::Unknown(run)), true) | (1, Some(Held::Zero(run)), true) => *run += many,
                (0, ..) => held.push(Held::Unknown(many)),
                (1, ..) => held.push(Held::Zero(many)),
                _ => {
                    let content = content.expect("it is known");
                    let ids = ids(size, extent, &content);
                    let prefixes = ids.iter().map(volume::ChunkId::prefix);
                    match held.last_mut() {
                        Some(Held::Prefixes(run)) if joinable => run.extend(prefixes),
                        _ => held.push(Held::Prefixes(prefixes.collect())),
                    }
                }
            }
            joinable = self.dice.below(3) > 0;
        }
        held
    }
}
