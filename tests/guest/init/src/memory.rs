//! What is in the guest's memory: functions of a page's number and of the pass that last wrote it.

use crate::random::Stream;

/// Words of a page.
pub const WORDS: usize = 512;

/// Pages of a MiB, which is also what one checksum of a constant region covers.
pub const BLOCK: usize = 256;

/// Different pages of which the first half of the duplicate region is made.
const ORIGINALS: u64 = 16;

/// A page of the guest's memory, on a page of its own.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; WORDS]);

/// Word `at` of hot page `index` after pass `pass`, if passes write the first `edited` words.
///
/// The pass is in each word that a pass writes, so a stale page shows, be it whole or in part; the index and the place
/// are in all of them, so does one that is in the wrong place. The words are alike enough for a compressor to find
/// something, as in real memory, and different enough that no two pages are equal.
#[must_use]
pub fn hot_word(index: u64, at: u64, pass: u64, edited: u64) -> u64 {
    let stamp = if at < edited { pass } else { 0 };
    (index * WORDS as u64 + at) ^ (stamp << 32)
}

/// A hot page as no pass has written it yet.
#[must_use]
pub fn hot_page(index: u64) -> Page {
    let mut page = Page([0; WORDS]);
    for (at, word) in (0..).zip(&mut page.0) {
        *word = hot_word(index, at, 0, 0);
    }
    page
}

/// A word that is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Which word of the page.
    pub at: u64,
    /// What is there.
    pub found: u64,
    /// What should be.
    pub expected: u64,
}

/// Rewrites hot page `index` in pass `pass` (1 is the first), after a look at all of it.
///
/// # Errors
/// The first word that is not what the previous pass left. The page is rewritten all the same, whole.
pub fn rewrite(page: &mut Page, index: u64, pass: u64, edited: u64) -> Result<(), Mismatch> {
    let mut result = Ok(());
    for (at, word) in (0..).zip(&mut page.0) {
        let expected = hot_word(index, at, pass - 1, edited);
        if *word != expected {
            if result.is_ok() {
                result = Err(Mismatch { at, found: *word, expected });
            }
            *word = expected;
        }
        if at < edited {
            *word = hot_word(index, at, pass, edited);
        }
    }
    result
}

/// Page `index` of the constant region: it does not compress.
#[must_use]
pub fn constant_page(index: u64) -> Page {
    random_page(index)
}

/// Page `index` of a duplicate region of `count` pages: copies of a few pages in its first half, in its second half
/// text that compresses well and in which no page equals another.
#[must_use]
pub fn duplicate_page(index: u64, count: u64) -> Page {
    if index < count / 2 {
        return random_page(u64::MAX - index % ORIGINALS);
    }
    let mut page = Page([0; WORDS]);
    for (line, words) in (0_u64..).zip(page.0.chunks_exact_mut(4)) {
        let text = format!("page {index:>9} line {line:>8} ok\n");
        for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
    }
    page
}

fn random_page(seed: u64) -> Page {
    // One stream a page, far from each other's: the seed goes through the finaliser first.
    let mut stream = Stream::new(crate::random::mix(seed ^ 0x6e6f_7661_6665_7272));
    let mut page = Page([0; WORDS]);
    page.0.fill_with(|| stream.next_word());
    page
}

/// Checksum of some pages: FNV-1a over words (64 bits). Against accidents, and quick.
#[must_use]
pub fn checksum(pages: &[Page]) -> u64 {
    let words = pages.iter().flat_map(|page| &page.0);
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::{
        Mismatch, Page, WORDS, checksum, constant_page, duplicate_page, hot_page, hot_word, rewrite,
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn passes_find_what_the_previous_one_left(index in 0..1_000_000_u64, edited in 1..=512_u64) {
            let mut page = hot_page(index);
            for pass in 1..=3 {
                prop_assert_eq!(rewrite(&mut page, index, pass, edited), Ok(()));
            }
        }

        #[test]
        fn one_wrong_bit_is_found_once(index in 0..1_000_000_u64, edited in 1..=512_u64, at in 0..WORDS, bit in 0..64_u32) {
            let mut page = hot_page(index);
            prop_assert_eq!(rewrite(&mut page, index, 1, edited), Ok(()));
            page.0[at] ^= 1_u64 << bit;
            let expected = hot_word(index, at as u64, 1, edited);
            let mismatch = Mismatch { at: at as u64, found: expected ^ (1_u64 << bit), expected };
            prop_assert_eq!(rewrite(&mut page, index, 2, edited), Err(mismatch));
            prop_assert_eq!(rewrite(&mut page, index, 3, edited), Ok(()));
        }
    }

    #[test]
    fn stale_and_misplaced_pages_are_found() {
        for edited in [1, 512] {
            let mut page = hot_page(7);
            rewrite(&mut page, 7, 1, edited).unwrap();
            let stale = page.clone();
            rewrite(&mut page, 7, 2, edited).unwrap();
            assert_eq!(rewrite(&mut stale.clone(), 7, 3, edited).unwrap_err().at, 0);
            assert_eq!(rewrite(&mut page.clone(), 8, 3, edited).unwrap_err().at, 0);
        }
    }

    #[test]
    fn the_duplicate_region_is_half_copies_and_half_text() {
        let pages: Vec<Page> = (0..256).map(|index| duplicate_page(index, 256)).collect();
        let mut sums: Vec<u64> = pages.iter().map(|page| checksum(std::slice::from_ref(page))).collect();
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), 16 + 128);
        let text: Vec<u8> = pages[255].0.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(text.starts_with(b"page       255 line        0 ok\npage       255 line        1 ok\n"));
    }

    #[test]
    fn a_checksum_covers_every_page() {
        let mut pages = vec![constant_page(0), constant_page(1)];
        let before = checksum(&pages);
        pages[1].0[511] ^= 1;
        assert_ne!(checksum(&pages), before);
        pages[1].0[511] ^= 1;
        pages.swap(0, 1);
        assert_ne!(checksum(&pages), before);
    }
}
