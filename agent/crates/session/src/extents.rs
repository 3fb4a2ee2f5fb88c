//! A set of extents as a bitmap: 128 KiB for each TiB of volume.

use wire::Run;

/// Which extents of one volume are settled.
#[derive(Clone, PartialEq, Eq)]
pub struct ExtentSet {
    words: Vec<u64>,
    extents: u64,
    count: u64,
}

impl std::fmt::Debug for ExtentSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExtentSet({} of {})", self.count, self.extents)
    }
}

fn place(extent: u64) -> (usize, u64) {
    (usize::try_from(extent / 64).unwrap_or(usize::MAX), 1 << (extent % 64))
}

impl ExtentSet {
    /// The empty set of a volume of this many extents.
    #[must_use]
    pub fn new(extents: u64) -> Self {
        Self { words: vec![0; place(extents.div_ceil(64) * 64).0], extents, count: 0 }
    }

    /// Extents in the volume.
    #[must_use]
    pub fn extents(&self) -> u64 {
        self.extents
    }

    /// Extents in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True when no extent is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.extents
    }

    /// True when the extent is in the set.
    #[must_use]
    pub fn contains(&self, extent: u64) -> bool {
        let (word, bit) = place(extent);
        extent < self.extents && self.words[word] & bit != 0
    }

    /// Adds an extent; false when it was there or lies past the end.
    pub fn insert(&mut self, extent: u64) -> bool {
        if extent >= self.extents || self.contains(extent) {
            return false;
        }
        let (word, bit) = place(extent);
        self.words[word] |= bit;
        self.count += 1;
        true
    }

    /// Removes an extent; false when it was not there.
    pub fn remove(&mut self, extent: u64) -> bool {
        if !self.contains(extent) {
            return false;
        }
        let (word, bit) = place(extent);
        self.words[word] &= !bit;
        self.count -= 1;
        true
    }

    /// Adds a run, cut off at the end of the volume.
    pub fn insert_run(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.extents);
        let mut at = first;
        while at < end {
            let (word, _) = place(at);
            let upto = (at / 64 * 64 + 64).min(end);
            let width = upto - at;
            let mask = if width == 64 { u64::MAX } else { ((1 << width) - 1) << (at % 64) };
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
            at = upto;
        }
    }

    /// The first extent at or after `from` that is missing, or the number of extents.
    #[must_use]
    pub fn first_missing(&self, from: u64) -> u64 {
        self.scan(from, 0)
    }

    /// The first extent at or after `from` that is in the set, or the number of extents.
    #[must_use]
    pub fn first_present(&self, from: u64) -> u64 {
        self.scan(from, u64::MAX)
    }

    /// First bit at or after `from` whose value, xored with `flip`, is 0.
    fn scan(&self, from: u64, flip: u64) -> u64 {
        let mut at = from;
        while at < self.extents {
            let (word, _) = place(at);
            let clear = !(self.words[word] ^ flip) & (u64::MAX << (at % 64));
            if clear != 0 {
                return (at / 64 * 64 + u64::from(clear.trailing_zeros())).min(self.extents);
            }
            at = at / 64 * 64 + 64;
        }
        self.extents
    }

    /// Only the extents that are in both.
    pub fn intersect(&mut self, other: &Self) {
        for (ours, theirs) in self.words.iter_mut().zip(&other.words) {
            *ours &= theirs;
        }
        self.count = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
    }

    /// The set as ascending runs.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs_from(0)
    }

    /// The part of the set at and after `from` as ascending runs.
    pub fn runs_from(&self, from: u64) -> impl Iterator<Item = Run> + '_ {
        let mut at = from;
        std::iter::from_fn(move || {
            let first = self.first_present(at);
            if first >= self.extents {
                return None;
            }
            at = self.first_missing(first);
            Some(Run { first, count: at - first })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(extents in 1_u64..300, ops in proptest::collection::vec((0_u8..4, 0_u64..320, 0_u64..150), 0..60)) {
            let mut set = ExtentSet::new(extents);
            let mut oracle = BTreeSet::new();
            for (op, at, count) in ops {
                match op {
                    0 => prop_assert_eq!(set.insert(at), at < extents && oracle.insert(at)),
                    1 => prop_assert_eq!(set.remove(at), oracle.remove(&at)),
                    2 => { set.insert_run(at, count); oracle.extend((at..at + count).filter(|e| *e < extents)); }
                    _ => {
                        let missing = (at..extents).find(|e| !oracle.contains(e)).unwrap_or(extents);
                        prop_assert_eq!(set.first_missing(at), missing);
                        let present = oracle.range(at..).next().copied().unwrap_or(extents);
                        prop_assert_eq!(set.first_present(at), present);
                    }
                }
                prop_assert_eq!(set.count(), oracle.len() as u64);
            }
            let listed: Vec<u64> = set.runs().flat_map(|run| run.first..run.first + run.count).collect();
            prop_assert_eq!(listed, oracle.into_iter().collect::<Vec<_>>());
        }
    }
}
