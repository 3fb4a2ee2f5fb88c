//! Page-level change inside a chunk that differs from the receiver's old copy.
//!
//! The holder of the old chunk sends XXH3-64 of each 4 KiB page; the other side sends only the pages whose sums
//! differ. XXH3 is no cryptographic hash, and a page may wrongly look unchanged: the receiver therefore compares the
//! chunk's keyed BLAKE3 id after applying, and asks for the whole chunk when it differs. The sums are seeded by a
//! session nonce, so that such pages cannot be prepared in advance.

use volume::PAGES_PER_CHUNK;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::{Kind, Op, ReduceError};
use crate::{CHUNK_LEN, PAGE_LEN};

/// Seed of a session's page sums: random, chosen when the session starts, known to both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SumSeed(pub u64);

/// Which pages of a chunk: bit n stands for page n.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageMask(pub u16);

impl PageMask {
    /// True when page `page` is in the set.
    #[must_use]
    pub fn has(self, page: usize) -> bool {
        page < PAGES_PER_CHUNK && self.0 >> page & 1 == 1
    }

    /// Pages in the set.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// True when no page is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Bytes of the pages in the set, for a chunk of `chunk_len` bytes, or `None` when the set names a page that the
    /// chunk does not have or the chunk is too long.
    #[must_use]
    pub fn payload_len(self, chunk_len: usize) -> Option<usize> {
        if chunk_len > CHUNK_LEN || (0..PAGES_PER_CHUNK).any(|n| self.has(n) && n * PAGE_LEN >= chunk_len) {
            return None;
        }
        let page_len = |n: usize| PAGE_LEN.min(chunk_len - n * PAGE_LEN);
        Some((0..PAGES_PER_CHUNK).filter(|n| self.has(*n)).map(page_len).sum())
    }

    /// The pages of `chunk` that are in the set, in order: what travels.
    pub fn pages(self, chunk: &[u8]) -> impl Iterator<Item = &[u8]> {
        chunk.chunks(PAGE_LEN).enumerate().filter(move |(n, _)| self.has(*n)).map(|(_, page)| page)
    }
}

/// Sums of the pages of one chunk; the last page may be short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageSums {
    sums: [u64; PAGES_PER_CHUNK],
    count: usize,
}

impl PageSums {
    /// Computes the sums.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when `chunk` is longer than a chunk.
    pub fn of(seed: SumSeed, chunk: &[u8]) -> Result<Self, ReduceError> {
        if chunk.len() > CHUNK_LEN {
            let what = format!("{} bytes are more than a chunk of {CHUNK_LEN}", chunk.len());
            return Err(ReduceError::new(Kind::WrongLength, Op::Compare, what));
        }
        let mut sums = [0; PAGES_PER_CHUNK];
        for (sum, page) in sums.iter_mut().zip(chunk.chunks(PAGE_LEN)) {
            *sum = xxh3_64_with_seed(page, seed.0);
        }
        Ok(Self { sums, count: chunk.len().div_ceil(PAGE_LEN) })
    }

    /// Sums that came from the peer.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when there are more than a chunk has pages.
    pub fn from_slice(sums: &[u64]) -> Result<Self, ReduceError> {
        let mut own = [0; PAGES_PER_CHUNK];
        let Some(place) = own.get_mut(..sums.len()) else {
            let what = format!("{} sums for a chunk of {PAGES_PER_CHUNK} pages", sums.len());
            return Err(ReduceError::new(Kind::WrongLength, Op::Compare, what));
        };
        place.copy_from_slice(sums);
        Ok(Self { sums: own, count: sums.len() })
    }

    /// One sum a page, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        &self.sums[..self.count]
    }
}

/// The pages of `new_chunk` whose sums differ from `old`.
///
/// # Errors
/// [`Kind::WrongLength`] when the chunks do not have the same number of pages.
pub fn diff(seed: SumSeed, new_chunk: &[u8], old: &PageSums) -> Result<PageMask, ReduceError> {
    let new = PageSums::of(seed, new_chunk)?;
    if new.count != old.count {
        let what = format!("the chunk has {} pages, the old copy {}", new.count, old.count);
        return Err(ReduceError::new(Kind::WrongLength, Op::Compare, what));
    }
    let changed = new.as_slice().iter().zip(old.as_slice()).enumerate().filter(|(_, (a, b))| a != b);
    Ok(PageMask(changed.fold(0, |mask, (page, _)| mask | 1 << page)))
}

/// Puts the pages of `payload` into `chunk` (the old copy, at its full length). The caller then compares the chunk's
/// id with the announced one.
///
/// # Errors
/// [`Kind::WrongLength`] when the mask names a page that the chunk does not have, or the payload is not exactly the
/// named pages. The chunk is unchanged then.
pub fn apply(chunk: &mut [u8], mask: PageMask, payload: &[u8]) -> Result<(), ReduceError> {
    let wrong = |what: String| ReduceError::new(Kind::WrongLength, Op::ApplyPages, what);
    let expected = mask.payload_len(chunk.len()).ok_or_else(|| {
        wrong(format!("pages {:#06x} are not all in a chunk of {} bytes", mask.0, chunk.len()))
    })?;
    if payload.len() != expected {
        return Err(wrong(format!("{} bytes came for pages of {expected}", payload.len())));
    }
    let mut rest = payload;
    for (_, page) in chunk.chunks_mut(PAGE_LEN).enumerate().filter(|(n, _)| mask.has(*n)) {
        let (part, tail) = rest.split_at(page.len());
        page.copy_from_slice(part);
        rest = tail;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: SumSeed = SumSeed(0x5eed);

    proptest! {
        #[test]
        fn changed_pages_make_the_new_chunk(len in 0_usize..=CHUNK_LEN, fill in any::<u64>(), touched in any::<u16>()) {
            let mut old = vec![0; len];
            volume::conformance::Dice::new(fill).fill(&mut old);
            let mut new = old.clone();
            let mut expected = 0_u16;
            for (n, page) in new.chunks_mut(PAGE_LEN).enumerate() {
                if touched >> n & 1 == 1 {
                    let last = page.len() - 1;
                    page[last] ^= 1;
                    expected |= 1 << n;
                }
            }
            let mask = diff(SEED, &new, &PageSums::of(SEED, &old).unwrap()).unwrap();
            prop_assert_eq!(mask, PageMask(expected));
            let payload: Vec<u8> = mask.pages(&new).flatten().copied().collect();
            prop_assert_eq!(mask.payload_len(len), Some(payload.len()));
            apply(&mut old, mask, &payload).unwrap();
            prop_assert_eq!(old, new);
        }

        #[test]
        fn a_payload_that_does_not_fit_changes_nothing(
            len in 0_usize..=CHUNK_LEN, mask in any::<u16>(), payload_len in 0_usize..=CHUNK_LEN + 1
        ) {
            let mut chunk = vec![7; len];
            let before = chunk.clone();
            let fits = PageMask(mask).payload_len(len) == Some(payload_len);
            let result = apply(&mut chunk, PageMask(mask), &vec![9; payload_len]);
            prop_assert_eq!(result.is_ok(), fits);
            if !fits {
                prop_assert_eq!(chunk, before);
            }
        }
    }

    #[test]
    fn lengths_from_outside_are_checked() {
        assert!(PageSums::of(SEED, &vec![0; CHUNK_LEN + 1]).is_err());
        assert!(PageSums::from_slice(&[0; 17]).is_err());
        let old = PageSums::from_slice(&[0; 3]).unwrap();
        assert_eq!(diff(SEED, &[0; PAGE_LEN], &old).unwrap_err().kind(), Kind::WrongLength);
        assert_eq!(apply(&mut [0; 10], PageMask(0b10), &[]).unwrap_err().kind(), Kind::WrongLength);
        assert!(apply(&mut [0; 10], PageMask(1), &[0; 9]).is_err());
    }

    #[test]
    fn the_seed_changes_every_sum() {
        let page = [1; PAGE_LEN];
        assert_ne!(PageSums::of(SEED, &page).unwrap(), PageSums::of(SumSeed(1), &page).unwrap());
    }
}
