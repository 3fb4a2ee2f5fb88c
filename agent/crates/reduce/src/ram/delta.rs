//! The difference of two versions of a page: which words of 8 bytes changed, and old XOR new of those.
//!
//! Masks instead of runs: they cannot point outside the page, whatever a peer writes, and equal edits of neighbouring
//! pages give equal masks, of which zstd leaves nothing. One edited word costs 17 bytes before zstd.

use super::{PAGE_BYTES, PageBytes};

/// Bytes of a word.
const WORD: usize = 8;
/// Bytes of a block.
const BLOCK: usize = 64;
/// Longest masks of one page: a bit for each block, then a byte for each.
pub(super) const MAX_MASKS: usize = 8 + PAGE_BYTES / BLOCK;
/// Changed bytes from which on a page is sent whole: what it saves is little then, and text compresses better than
/// the XOR of two texts.
const LARGE: usize = PAGE_BYTES / 2;

/// How a page differs from its base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Difference {
    /// Not at all.
    None,
    /// Little: the delta was appended.
    Small,
    /// Too much for a delta.
    Large,
}

/// The deltas of a packet, in the order of its pages.
#[derive(Clone, Default, Debug)]
pub(super) struct Deltas {
    pub(super) masks: Vec<u8>,
    pub(super) words: Vec<u8>,
}

impl Deltas {
    /// Compares, and appends the delta when it is small.
    pub(super) fn push(&mut self, base: &PageBytes, page: &PageBytes) -> Difference {
        let start = (self.masks.len(), self.words.len());
        let mut blocks = 0_u64;
        for (n, (old, new)) in base.as_chunks::<BLOCK>().0.iter().zip(page.as_chunks().0).enumerate() {
            if old == new {
                continue;
            }
            if blocks == 0 {
                self.masks.extend_from_slice(&[0; 8]);
            }
            blocks |= 1 << n;
            let mut mask = 0_u8;
            for (n, (old, new)) in old.as_chunks::<WORD>().0.iter().zip(new.as_chunks().0).enumerate() {
                let change = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
                if change != 0 {
                    mask |= 1 << n;
                    self.words.extend_from_slice(&change.to_le_bytes());
                }
            }
            self.masks.push(mask);
            if self.words.len() - start.1 >= LARGE {
                self.truncate(start);
                return Difference::Large;
            }
        }
        if blocks == 0 {
            return Difference::None;
        }
        self.masks[start.0..start.0 + 8].copy_from_slice(&blocks.to_le_bytes());
        Difference::Small
    }

    /// Where the next delta starts.
    pub(super) fn end(&self) -> (usize, usize) {
        (self.masks.len(), self.words.len())
    }

    /// Takes back what was appended since [`Self::end`] said `start`.
    pub(super) fn truncate(&mut self, start: (usize, usize)) {
        self.masks.truncate(start.0);
        self.words.truncate(start.1);
    }
}

/// Cuts the masks of one delta off `masks`: they and the bytes of the words that belong to them; `None` when cut off.
pub(super) fn split_masks<'a>(masks: &mut &'a [u8]) -> Option<(&'a [u8], usize)> {
    let blocks = u64::from_le_bytes(*masks.first_chunk()?);
    let len = 8 + blocks.count_ones() as usize;
    let (own, rest) = masks.split_at_checked(len)?;
    *masks = rest;
    let words: u32 = own[8..].iter().map(|mask| mask.count_ones()).sum();
    Some((own, words as usize * WORD))
}

/// Applies one delta: `masks` and `words` as [`split_masks`] counted them.
pub(super) fn apply(page: &mut PageBytes, masks: &[u8], words: &[u8]) {
    let Some((blocks, masks)) = masks.split_first_chunk() else { return };
    let mut blocks = u64::from_le_bytes(*blocks);
    let mut words = words.as_chunks::<WORD>().0.iter();
    let page = page.as_chunks_mut::<BLOCK>().0;
    for mask in masks {
        // At most 63, since a mask follows for each bit set only.
        let block = &mut page[blocks.trailing_zeros() as usize % (PAGE_BYTES / BLOCK)];
        blocks &= blocks.wrapping_sub(1);
        for (n, place) in block.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
            if mask >> n & 1 == 1
                && let Some(word) = words.next()
            {
                *place = (u64::from_le_bytes(*place) ^ u64::from_le_bytes(*word)).to_le_bytes();
            }
        }
    }
}
