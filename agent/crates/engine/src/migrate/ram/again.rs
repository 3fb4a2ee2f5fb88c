//! Which pages were sent before, so that a report can tell what sending them again cost.

use std::collections::HashMap;

use reduce::ram::PAGE_BYTES;

/// Pages that one bitmap covers: 256 MiB of RAM in 8 KiB.
const REGION_PAGES: u64 = 1 << 16;
/// Bitmaps that are kept: 4 TiB of RAM in 128 MiB. Pages beyond always count as sent for the first time.
const MAX_REGIONS: usize = 1 << 14;

/// Pages that were sent, by RAM block and offset.
#[derive(Debug, Default)]
pub(super) struct SentPages {
    regions: HashMap<(u32, u64), Box<[u64]>>,
}

impl SentPages {
    /// Notes that a page is sent. True when it was noted before.
    pub(super) fn note(&mut self, block: u32, offset: u64) -> bool {
        let page = offset / PAGE_BYTES as u64;
        let (key, within) = ((block, page / REGION_PAGES), page % REGION_PAGES);
        if self.regions.len() >= MAX_REGIONS && !self.regions.contains_key(&key) {
            return false;
        }
        let bitmap = self.regions.entry(key).or_insert_with(|| vec![0; 1 << 10].into_boxed_slice());
        let (word, bit) = (&mut bitmap[(within / 64) as usize], 1 << (within % 64));
        let before = *word & bit != 0;
        *word |= bit;
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_block_and_offset() {
        let mut sent = SentPages::default();
        let places =
            [(0, 0), (0, 4096), (1, 0), (0, 64 * 4096), (0, 256 << 20), (0, u64::MAX), (u32::MAX, 4096)];
        for again in [false, true, true] {
            for (block, offset) in places {
                assert_eq!(sent.note(block, offset), again, "{block} {offset}");
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut sent = SentPages::default();
        let region = |nth: usize| nth as u64 * REGION_PAGES * PAGE_BYTES as u64;
        for nth in 0..=MAX_REGIONS {
            assert!(!sent.note(0, region(nth)));
        }
        assert!(sent.note(0, region(MAX_REGIONS - 1)));
        assert!(!sent.note(0, region(MAX_REGIONS)), "no room for it");
        assert_eq!(sent.regions.len(), MAX_REGIONS);
    }
}
