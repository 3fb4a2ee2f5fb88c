//! The sending driver: it reads, compares and encodes at once.

use std::collections::BTreeMap;

use session::{OldExtent, Outcome, Sender, SenderAction};
use volume::{ChunkId, ExtentIndex};
use wire::{ChunkEntry, Control, Encoding, ExtentHead, PageSums};

use crate::content::{Volume, bytes, next_data};

/// A frame on its way.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) head: ExtentHead,
    pub(crate) payload: Vec<u8>,
}

/// What the driver keeps beside the machine.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    ready: BTreeMap<u64, Frame>,
    asked: BTreeMap<u64, OldExtent>,
    pub(crate) done: bool,
}

impl Encoder {
    pub(crate) fn act(
        &mut self,
        machine: &mut Sender,
        source: &Volume,
        page_seed: u64,
        now: std::time::Duration,
        action: SenderAction,
    ) {
        match action {
            SenderAction::FindData(from) => machine.handle_data(next_data(source, from.0)),
            SenderAction::Scan { extent, old, .. } => self.scan(machine, source, extent.0, old),
            SenderAction::Encode(sums) => {
                let old = self.asked.remove(&sums.extent.0).expect("the query was ours");
                self.encode(machine, source, sums.extent.0, &old, Some((&sums, page_seed)));
            }
            SenderAction::Learn(_) | SenderAction::Settled(_) => {}
            SenderAction::Finish => machine.handle_root(now, source.root().0),
            SenderAction::Done(_) => self.done = true,
        }
    }

    fn scan(&mut self, machine: &mut Sender, source: &Volume, extent: u64, old: OldExtent) {
        let ids = source.ids(extent);
        if let Some(known) = prefixes(&old, ids.len()) {
            let differs = ids.iter().zip(known).enumerate().filter(|(_, (id, known))| id.prefix() != *known);
            // Only what holds data at both ends is worth comparing page by page.
            let (mut any, mut mask) = (false, 0);
            for (nth, (id, known)) in differs {
                any = true;
                if *id != ChunkId::ZERO && known != [0; 16] {
                    mask |= 1 << nth;
                }
            }
            if !any {
                machine.handle_scanned(ExtentIndex(extent), ids, Outcome::Same);
                return;
            }
            if mask != 0 {
                self.asked.insert(extent, old);
                machine.handle_scanned(ExtentIndex(extent), ids, Outcome::Query(mask));
                return;
            }
        }
        if source.is_zero(extent) {
            machine.handle_scanned(ExtentIndex(extent), ids, Outcome::Zero);
            return;
        }
        self.encode(machine, source, extent, &old, None);
    }

    fn encode(
        &mut self,
        machine: &mut Sender,
        source: &Volume,
        extent: u64,
        old: &OldExtent,
        sums: Option<(&PageSums, u64)>,
    ) {
        let ids = source.ids(extent);
        let known = prefixes(old, ids.len());
        let mut payload = Vec::new();
        let mut entries = Vec::new();
        let mut sums_at = 0;
        for (nth, chunk) in source.chunks_of(extent).enumerate() {
            let id = ids[nth];
            let plain = bytes(source.pattern(chunk), source.chunk_len(chunk));
            let asked = sums.filter(|(sums, _)| sums.mask & 1 << nth != 0).map(|(sums, seed)| {
                sums_at += 16;
                let pages = plain.len().div_ceil(4096);
                let old =
                    reduce::PageSums::from_slice(&sums.sums[sums_at - 16..][..pages]).expect("16 at most");
                reduce::delta::diff(reduce::SumSeed(seed), plain, &old).expect("as many pages")
            });
            entries.push(if id == ChunkId::ZERO {
                ChunkEntry::Zero
            } else if known.as_ref().is_some_and(|known| known[nth] == id.prefix()) {
                ChunkEntry::Same(id)
            } else if let Some(mask) = asked.filter(|mask| !mask.is_empty()) {
                mask.pages(plain).for_each(|page| payload.extend_from_slice(page));
                ChunkEntry::Pages(id, mask.0)
            } else {
                payload.extend_from_slice(plain);
                ChunkEntry::Data(id)
            });
        }
        let len = u32::try_from(payload.len()).expect("an extent at most");
        let head = ExtentHead {
            sequence: volume::Sequence(0),
            floor: volume::Sequence(0),
            extent: ExtentIndex(extent),
            encoding: Encoding::Raw,
            wire_len: len,
            plain_len: len,
            chunks: entries,
        };
        self.ready.insert(extent, Frame { head, payload });
        machine.handle_scanned(ExtentIndex(extent), ids, Outcome::Frame { wire_len: len });
    }

    /// What the machine sends now.
    pub(crate) fn transmit(
        &mut self,
        machine: &mut Sender,
        now: std::time::Duration,
    ) -> (Vec<Control>, Vec<Frame>) {
        let controls = std::iter::from_fn(|| machine.poll_transmit(now)).collect();
        let mut frames = Vec::new();
        while let Some(dispatch) = machine.poll_send(now) {
            let mut frame = self.ready.remove(&dispatch.extent.0).expect("it was encoded");
            frame.head.sequence = dispatch.sequence;
            frame.head.floor = dispatch.floor;
            machine.handle_lane_took(1, dispatch.sequence);
            frames.push(frame);
        }
        (controls, frames)
    }
}

fn prefixes(old: &OldExtent, chunks: usize) -> Option<Vec<[u8; 16]>> {
    match old {
        OldExtent::Unknown => None,
        OldExtent::Zero => Some(vec![[0; 16]; chunks]),
        OldExtent::Prefixes(prefixes) => Some(prefixes.clone()),
    }
}
