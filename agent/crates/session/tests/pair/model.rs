//! The things around the machines: a source, a target whose writes are volatile until they are flushed, journals.
//!
//! A chunk's content is a small number, 0 for zeros; ids and page sums are derived from it.

use std::collections::{BTreeMap, BTreeSet};

use novaferry_session::Change;
use volume::conformance::Dice;
use volume::{ByteLen, ByteRange, CHUNK, CHUNKS_PER_EXTENT, ChunkId, EXTENT, ExtentIndex};

/// Content of one extent, chunk by chunk. Chunks past the end of the volume are 0.
pub(crate) type Content = [u16; CHUNKS_PER_EXTENT];

pub(crate) const ZERO: Content = [0; CHUNKS_PER_EXTENT];

pub(crate) fn place(extent: u64) -> usize {
    usize::try_from(extent).unwrap()
}

pub(crate) fn id(number: u16) -> ChunkId {
    let mut id = [0; 32];
    id.chunks_exact_mut(2).for_each(|part| part.copy_from_slice(&number.to_le_bytes()));
    ChunkId(id)
}

pub(crate) fn number(id: ChunkId) -> u16 {
    u16::from_le_bytes([id.0[0], id.0[1]])
}

/// Chunks of an extent.
pub(crate) fn chunks(size: ByteLen, extent: u64) -> usize {
    place(ExtentIndex(extent).range(size).unwrap().len().div_ceil(CHUNK))
}

/// Bytes of a chunk.
pub(crate) fn chunk_len(size: ByteLen, extent: u64, chunk: usize) -> u64 {
    (ExtentIndex(extent).range(size).unwrap().len() - chunk as u64 * CHUNK).min(CHUNK)
}

pub(crate) fn ids(size: ByteLen, extent: u64, content: &Content) -> Vec<ChunkId> {
    content[..chunks(size, extent)].iter().map(|number| id(*number)).collect()
}

/// Stands for the Merkle root: it changes with every id.
pub(crate) fn root<'a>(content: impl Iterator<Item = &'a Content>) -> [u8; 32] {
    let mut root = [0; 32];
    let hash = content.flatten().fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
        (hash ^ u64::from(*number)).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    });
    root[..8].copy_from_slice(&hash.to_le_bytes());
    root
}

/// What is copied.
pub(crate) struct Source {
    pub(crate) size: ByteLen,
    pub(crate) content: Vec<Content>,
    data: Vec<ByteRange>,
}

impl Source {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let extents = match dice.below(20) {
            0 => 0,
            1 => 1,
            _ => 2 + dice.below(38),
        };
        let cut = if dice.below(2) == 0 { dice.below(EXTENT / 512) * 512 } else { 0 };
        let size = ByteLen((extents * EXTENT).saturating_sub(cut));
        let zeros = dice.below(6);
        let content: Vec<Content> = (0..extents)
            .map(|extent| {
                let mut content = ZERO;
                if dice.below(6) >= zeros {
                    content[..chunks(size, extent)]
                        .iter_mut()
                        .for_each(|chunk| *chunk = u16::try_from(dice.below(30)).unwrap());
                }
                content
            })
            .collect();
        // A hole is never larger than the zeros, but zeros need not be holes.
        let mut data: Vec<ByteRange> = Vec::new();
        for (extent, content) in (0..).zip(&content) {
            if *content == ZERO && dice.below(4) > 0 {
                continue;
            }
            let range = ExtentIndex(extent).range(size).unwrap();
            let whole = |chunk: &u16| *chunk != 0;
            let skip = content.iter().position(whole).unwrap_or(0) as u64 * CHUNK;
            match data.last_mut() {
                Some(last) if last.end == range.start && (skip == 0 || dice.below(2) == 0) => {
                    last.end = range.end;
                }
                _ => data.push(ByteRange { start: range.start + skip, end: range.end }),
            }
        }
        Self { size, content, data }
    }

    pub(crate) fn extents(&self) -> u64 {
        self.size.extents()
    }

    pub(crate) fn next_data(&self, from: u64) -> Option<ByteRange> {
        let from = from * EXTENT;
        let range = self.data.iter().find(|range| range.end > from)?;
        Some(ByteRange { start: range.start.max(from), end: range.end })
    }

    pub(crate) fn ids(&self, extent: u64) -> Vec<ChunkId> {
        ids(self.size, extent, &self.content[place(extent)])
    }

    /// An old copy: much of it the same.
    pub(crate) fn old_copy(&self, dice: &mut Dice) -> Vec<Content> {
        let mut copy = self.content.clone();
        for (extent, content) in (0..).zip(&mut copy) {
            match dice.below(10) {
                0 => *content = ZERO,
                1..4 => {
                    for _ in 0..=dice.below(3) {
                        let chunk = place(dice.below(chunks(self.size, extent) as u64));
                        content[chunk] = u16::try_from(dice.below(60)).unwrap();
                    }
                }
                _ => {}
            }
        }
        copy
    }
}

/// What is copied to, and the receiver's journal.
pub(crate) struct Target {
    size: ByteLen,
    /// As a reader sees it now.
    pub(crate) current: Vec<Content>,
    /// As the medium holds it.
    pub(crate) durable: Vec<Content>,
    /// Writes under way, with what they write.
    pub(crate) writing: BTreeMap<u64, Content>,
    pub(crate) journal: BTreeMap<u64, Content>,
    garbage: u16,
}

impl Target {
    pub(crate) fn new(size: ByteLen, content: Vec<Content>) -> Self {
        let (current, durable) = (content.clone(), content);
        Self { size, current, durable, writing: BTreeMap::new(), journal: BTreeMap::new(), garbage: 40_000 }
    }

    pub(crate) fn start_write(&mut self, extent: u64, content: Content) {
        let before = self.writing.insert(extent, content);
        assert!(before.is_none(), "two writes to extent {extent} at once");
        if let Some(known) = self.journal.get(&extent) {
            assert_eq!(*known, content, "a durable extent {extent} is overwritten with something else");
        }
    }

    pub(crate) fn finish_write(&mut self, extent: u64) {
        self.current[place(extent)] = self.writing.remove(&extent).expect("the write was started");
    }

    /// fdatasync: what was written before is durable now; of a write under way, anything may be.
    pub(crate) fn flush(&mut self, dice: &mut Dice) {
        for (extent, content) in (0..).zip(self.current.clone()) {
            let after = match self.writing.get(&extent) {
                Some(writing) => self.tear(dice, extent, &content, &writing.clone()),
                None => content,
            };
            self.durable[place(extent)] = after;
        }
    }

    /// What is between two contents after a write that did not finish.
    fn tear(&mut self, dice: &mut Dice, extent: u64, old: &Content, new: &Content) -> Content {
        let mut torn = *old;
        for chunk in 0..chunks(self.size, extent) {
            torn[chunk] = match dice.below(5) {
                // Half a chunk of each, where they differ.
                0 if old[chunk] != new[chunk] => {
                    self.garbage += 1;
                    self.garbage
                }
                0..3 => new[chunk],
                _ => old[chunk],
            };
        }
        torn
    }

    /// The process is gone. With `power`, so is what was not flushed.
    pub(crate) fn crash(&mut self, dice: &mut Dice, power: bool) {
        for (extent, new) in std::mem::take(&mut self.writing) {
            let old = self.current[place(extent)];
            self.current[place(extent)] = self.tear(dice, extent, &old, &new);
        }
        if power {
            for extent in 0..self.size.extents() {
                let (old, new) = (self.durable[place(extent)], self.current[place(extent)]);
                let torn = self.tear(dice, extent, &old, &new);
                self.durable[place(extent)] = torn;
                self.current[place(extent)] = torn;
            }
        }
    }

    /// Appends changes to the journal. `declared` is what the receiver had said it holds.
    pub(crate) fn journal(&mut self, changes: &[Change], declared: &[Option<Content>]) {
        for change in changes {
            match change {
                Change::Extent { extent, ids } => {
                    let mut content = ZERO;
                    content.iter_mut().zip(ids).for_each(|(chunk, id)| *chunk = number(*id));
                    self.journal.insert(extent.0, content);
                }
                Change::Zero { first, count } => {
                    self.journal.extend((first.0..first.0 + count).map(|extent| (extent, ZERO)));
                }
                Change::Same { first, count } => {
                    for extent in first.0..first.0 + count {
                        let content =
                            declared[place(extent)].expect("only what was declared can be the same");
                        self.journal.insert(extent, content);
                    }
                }
            }
        }
    }
}

/// The sender's journal. It is flushed now and then; a crash loses the rest.
#[derive(Default)]
pub(crate) struct SenderJournal {
    changes: Vec<Change>,
    flushed: usize,
}

impl SenderJournal {
    pub(crate) fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(crate) fn flush(&mut self) {
        self.flushed = self.changes.len();
    }

    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        let kept = self.flushed as u64 + dice.below((self.changes.len() - self.flushed) as u64 + 1);
        self.changes.truncate(place(kept));
        self.flush();
    }

    pub(crate) fn remembered(&self) -> BTreeSet<u64> {
        self.changes
            .iter()
            .flat_map(|change| match change {
                Change::Extent { extent, .. } => extent.0..extent.0 + 1,
                Change::Zero { first, count } | Change::Same { first, count } => first.0..first.0 + count,
            })
            .collect()
    }
}
