//! Which range was the last to cover an extent: disjoint segments, each named by the newest sequence on it.
//!
//! Ranges can be as long as the volume, so nothing is kept per extent. A look-up is logarithmic in the segments; each
//! range adds at most two.

use std::collections::BTreeMap;

#[derive(Debug)]
struct Segment {
    end: u64,
    sequence: u64,
}

#[derive(Debug, Default)]
pub(super) struct Cover {
    segments: BTreeMap<u64, Segment>,
}

impl Cover {
    /// The newest sequence that covers an extent.
    pub(super) fn at(&self, extent: u64) -> Option<u64> {
        let (_, segment) = self.segments.range(..=extent).next_back()?;
        (extent < segment.end).then_some(segment.sequence)
    }

    /// What lies within `first..end`, cut off at both ends: `(first, end, sequence)`, ascending.
    pub(super) fn within(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let from = match self.segments.range(..=first).next_back() {
            Some((start, segment)) if segment.end > first => *start,
            _ => first,
        };
        self.segments
            .range(from..end.max(from))
            .map(move |(start, segment)| ((*start).max(first), segment.end.min(end), segment.sequence))
    }

    /// Lays `sequence` over `first..end`, except where something newer lies.
    pub(super) fn lay(&mut self, first: u64, end: u64, sequence: u64) {
        self.split(first);
        self.split(end);
        let older: Vec<u64> = self
            .segments
            .range(first..end)
            .filter(|(_, segment)| segment.sequence < sequence)
            .map(|(start, _)| *start)
            .collect();
        for start in older {
            self.segments.remove(&start);
        }
        let newer: Vec<(u64, u64)> =
            self.segments.range(first..end).map(|(start, segment)| (*start, segment.end)).collect();
        let mut at = first;
        for (start, upto) in newer.into_iter().chain([(end, end)]) {
            if at < start {
                self.segments.insert(at, Segment { end: start, sequence });
            }
            at = upto;
        }
    }

    /// Forgets `sequence` within `first..end`.
    pub(super) fn clear(&mut self, first: u64, end: u64, sequence: u64) {
        // A segment never reaches past the range that laid it, so none of this sequence needs to be split.
        let gone: Vec<u64> = self
            .segments
            .range(first..end)
            .filter(|(_, segment)| segment.sequence == sequence)
            .map(|(start, _)| *start)
            .collect();
        for start in gone {
            self.segments.remove(&start);
        }
    }

    fn split(&mut self, at: u64) {
        let Some((_, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let rest = Segment { end: segment.end, sequence: segment.sequence };
            segment.end = at;
            self.segments.insert(at, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_an_array(ops in proptest::collection::vec((0_u64..30, 1_u64..12, any::<bool>()), 0..40), at in 0_u64..40) {
            let mut cover = Cover::default();
            let mut array = [None; 48];
            let mut laid: Vec<(u64, u64, u64)> = Vec::new();
            for (nth, (first, count, clear)) in ops.into_iter().enumerate() {
                if clear && !laid.is_empty() {
                    let (first, end, sequence) = laid.remove(nth % laid.len());
                    cover.clear(first, end, sequence);
                    array.iter_mut().filter(|of| **of == Some(sequence)).for_each(|of| *of = None);
                } else {
                    // Distinct, but not ascending.
                    let sequence = (nth as u64 * 37) % 41 + 1;
                    let end = first + count;
                    cover.lay(first, end, sequence);
                    laid.push((first, end, sequence));
                    for extent in first..end {
                        let place = &mut array[usize::try_from(extent).unwrap()];
                        *place = (*place).max(Some(sequence));
                    }
                }
                for extent in 0..48 {
                    prop_assert_eq!(cover.at(extent), array[usize::try_from(extent).unwrap()]);
                }
                let listed: Vec<(u64, u64)> = cover
                    .within(at, at + 7)
                    .flat_map(|(first, end, sequence)| (first..end).map(move |extent| (extent, sequence)))
                    .collect();
                let expected: Vec<(u64, u64)> = (at..at + 7)
                    .filter_map(|extent| Some((extent, array[usize::try_from(extent).unwrap()]?)))
                    .collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
