//! Early give-up: do not spend CPU on what will not get smaller.

use crate::{CHUNK_LEN, PAGE_LEN};

/// Bytes that are sampled from each chunk.
const SAMPLE: usize = 4096;
/// Bytes that are sampled from a page of RAM that is judged by itself.
const PAGE_SAMPLE: usize = 1024;
/// They come in pieces of a cache line.
const PIECE: usize = 64;
/// Failed attempts after which a region counts as incompressible.
const MISSES: u32 = 8;
/// One batch in so many is tried all the same, so that a region that changed is noticed.
const REPROBE: u32 = 16;

/// Whether to try to compress the next batch of one region of a volume (or of one stream).
///
/// Two signs speak against trying: the bytes are spread as evenly as random ones (a histogram of 4 KiB a chunk, which
/// costs less than 1 % of a compression), or the last 8 attempts here did not pay. One batch in 16 is tried anyway:
/// evenly spread bytes may repeat themselves, and regions end.
#[derive(Clone, Debug, Default)]
pub struct PayHint {
    misses: u32,
    skipped: u32,
}

impl PayHint {
    /// True when the batch should be compressed. Report the result with [`Self::record`].
    #[must_use]
    pub fn worth_trying(&mut self, segments: &[&[u8]]) -> bool {
        if self.misses < MISSES && !looks_random(segments) {
            return true;
        }
        self.skipped += 1;
        if self.skipped < REPROBE {
            return false;
        }
        self.skipped = 0;
        true
    }

    /// Whether one page of RAM is spread as evenly as random bytes, by 1 KiB from all over it. Costs a tenth of
    /// compressing the page, and misses one random page in a thousand.
    #[must_use]
    pub(crate) fn page_looks_random(page: &[u8; PAGE_LEN]) -> bool {
        let mut sample = [0; PAGE_SAMPLE];
        let pieces = page.as_chunks::<PIECE>().0.iter().step_by(PAGE_LEN / PAGE_SAMPLE);
        for (place, piece) in sample.as_chunks_mut().0.iter_mut().zip(pieces) {
            *place = *piece;
        }
        let mut spread = Spread::default();
        spread.add(&sample);
        spread.is_even()
    }

    /// Whether a batch that was compressed got smaller.
    pub fn record(&mut self, paid: bool) {
        self.misses = if paid { 0 } else { self.misses.saturating_add(1) };
    }
}

/// True when the sampled bytes are spread as evenly as random ones.
fn looks_random(segments: &[&[u8]]) -> bool {
    let mut spread = Spread::default();
    for chunk in segments.iter().flat_map(|segment| segment.chunks(CHUNK_LEN)) {
        // From the middle: headers of files would make a random body look structured.
        let start = chunk.len().saturating_sub(SAMPLE) / 2;
        spread.add(&chunk[start..chunk.len().min(start + SAMPLE)]);
    }
    spread.is_even()
}

/// How evenly the bytes of samples are spread.
///
/// The sum of squared counts of n random bytes is n + n(n-1)/256 on average, with a deviation of about n/11; anything
/// with structure is far above. The limit is 6 % above the average: 11 deviations for one sample of 4 KiB, so that
/// random data is recognised always and data with 0.05 bits of redundancy a byte still counts as compressible.
#[derive(Default)]
struct Spread {
    total: u64,
    squares: u64,
    expected: u64,
}

impl Spread {
    /// Takes one sample of at most 64 KiB.
    fn add(&mut self, sample: &[u8]) {
        // Four tables, so that equal neighbours do not wait for each other's store.
        let mut counts = [[0_u16; 256]; 4];
        let (quads, rest) = sample.as_chunks::<4>();
        for quad in quads {
            for (table, byte) in counts.iter_mut().zip(quad) {
                table[usize::from(*byte)] += 1;
            }
        }
        for byte in rest {
            counts[0][usize::from(*byte)] += 1;
        }
        for byte in 0..256 {
            let count: u64 = counts.iter().map(|table| u64::from(table[byte])).sum();
            self.squares += count * count;
        }
        let n = sample.len() as u64;
        self.total += n;
        self.expected += n + n * n.saturating_sub(1) / 256;
    }

    fn is_even(&self) -> bool {
        // Too little to judge by.
        self.total >= 1024 && self.squares * 100 < self.expected * 106
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume::conformance::Dice;

    #[test]
    fn random_bytes_are_recognised_and_structure_is_not_mistaken_for_them() {
        for seed in 0..50 {
            let mut dice = Dice::new(seed);
            let mut data = vec![0; 1 << 20];
            dice.fill(&mut data);
            assert!(looks_random(&[&data]), "seed {seed}");
            assert!(looks_random(&[&data[..4096]]), "seed {seed}");
            // Base64-like: 6 of 8 bits.
            data.iter_mut().for_each(|byte| *byte = 32 + (*byte & 63));
            assert!(!looks_random(&[&data]), "seed {seed}");
        }
        assert!(!looks_random(&[]));
        assert!(!looks_random(&[&[0; 65_536]]));
        assert!(!looks_random(&[&[1; 10]]));
    }

    #[test]
    fn random_pages_are_recognised_and_pages_with_some_structure_are_not_mistaken_for_them() {
        let mut dice = Dice::new(1);
        let mut recognised = 0;
        for _ in 0..1000 {
            let mut page = [0; PAGE_LEN];
            dice.fill(&mut page);
            recognised += u32::from(PayHint::page_looks_random(&page));
            // A quarter of a page of zeros, wherever it lies.
            let start = usize::try_from(dice.below(3072)).unwrap();
            page[start..start + 1024].fill(0);
            assert!(!PayHint::page_looks_random(&page), "zeros from {start} on");
        }
        assert!(recognised >= 990, "{recognised} of 1000");
        assert!(!PayHint::page_looks_random(&[0; PAGE_LEN]));
    }

    #[test]
    fn a_region_that_does_not_pay_is_tried_once_in_sixteen() {
        let structured = [7; 65_536];
        let mut hint = PayHint::default();
        let mut tries = 0;
        for _ in 0..8 + 160 {
            if hint.worth_trying(&[&structured]) {
                tries += 1;
                hint.record(false);
            }
        }
        assert_eq!(tries, 8 + 10);
        while !hint.worth_trying(&[&structured]) {}
        hint.record(true);
        assert!(hint.worth_trying(&[&structured]), "one success ends the pause");
    }
}
