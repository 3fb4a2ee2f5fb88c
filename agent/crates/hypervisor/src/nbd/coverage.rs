//! Which bytes of a read have come: chunks may arrive in any order, but never twice and never outside.

use super::wire::ProtocolError;

/// Disjoint pieces kept at once. A server that answers in order needs one; the cap bounds what a hostile one costs.
const MAX_PIECES: usize = 1024;

/// Sorted, disjoint, merged pieces of a buffer.
#[derive(Debug)]
pub(super) struct Coverage {
    length: u64,
    pieces: Vec<(u64, u64)>,
}

impl Coverage {
    pub(super) fn new(length: u64) -> Self {
        Self { length, pieces: Vec::new() }
    }

    /// Marks `start..end`; `None` when it is empty, outside, or overlaps what came before.
    fn place(&mut self, start: u64, end: u64) -> Option<()> {
        if start >= end || end > self.length {
            return None;
        }
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        let touches_before = match at.checked_sub(1).map(|before| self.pieces[before]) {
            Some((_, before_end)) if before_end > start => return None,
            Some((_, before_end)) => before_end == start,
            None => false,
        };
        let touches_after = match self.pieces.get(at) {
            Some((after_start, _)) if *after_start < end => return None,
            Some((after_start, _)) => *after_start == end,
            None => false,
        };
        match (touches_before, touches_after) {
            (true, true) => {
                self.pieces[at - 1].1 = self.pieces[at].1;
                self.pieces.remove(at);
            }
            (true, false) => self.pieces[at - 1].1 = end,
            (false, true) => self.pieces[at].0 = start,
            (false, false) => self.pieces.insert(at, (start, end)),
        }
        Some(())
    }

    /// Marks a chunk at `offset` of the export as come, for a read that began at `base`. Returns its place in the
    /// buffer.
    pub(super) fn add(
        &mut self,
        base: u64,
        offset: u64,
        length: u64,
    ) -> Result<std::ops::Range<usize>, ProtocolError> {
        let placed = || {
            let start = offset.checked_sub(base)?;
            Some((start, start.checked_add(length)?))
        };
        let misplaced = ProtocolError::BadPlacement { offset, length };
        let Some((start, end)) = placed() else { return Err(misplaced) };
        if self.place(start, end).is_none() {
            return Err(misplaced);
        }
        if self.pieces.len() > MAX_PIECES {
            return Err(ProtocolError::TooFragmented { limit: MAX_PIECES });
        }
        match (usize::try_from(start), usize::try_from(end)) {
            (Ok(start), Ok(end)) => Ok(start..end),
            _ => Err(misplaced),
        }
    }

    /// Fails when a byte is missing.
    pub(super) fn complete(&self) -> Result<(), ProtocolError> {
        let come: u64 = self.pieces.iter().map(|(start, end)| end - start).sum();
        if come == self.length {
            Ok(())
        } else {
            Err(ProtocolError::Incomplete { missing: self.length - come })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_order_completes_and_nothing_may_come_twice() {
        let mut coverage = Coverage::new(100);
        for (offset, length) in [(1050, 10), (1000, 50), (1080, 20)] {
            coverage.add(1000, offset, length).unwrap();
        }
        assert_eq!(coverage.complete(), Err(ProtocolError::Incomplete { missing: 20 }));
        for (offset, length) in [(999, 1), (1059, 2), (1060, 21), (1060, 0), (1100, 1), (u64::MAX, 2)] {
            assert!(coverage.add(1000, offset, length).is_err(), "{offset}+{length}");
        }
        assert_eq!(coverage.add(1000, 1060, 20), Ok(60..80));
        assert_eq!(coverage.complete(), Ok(()));
    }

    #[test]
    fn fragments_are_bounded() {
        let mut coverage = Coverage::new(1 << 20);
        let refused = (0..1 << 19).find(|n| coverage.add(0, n * 2, 1).is_err());
        assert_eq!(refused, Some(MAX_PIECES as u64));
    }

    proptest! {
        #[test]
        fn agrees_with_a_byte_map(pieces in prop::collection::vec((0_u64..70, 0_u64..20), 0..60)) {
            let mut coverage = Coverage::new(64);
            let mut model = [false; 64];
            for (start, length) in pieces {
                let place = usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap();
                let free = length > 0 && model.get(place.clone()).is_some_and(|m| m.iter().all(|b| !b));
                prop_assert_eq!(coverage.add(0, start, length).is_ok(), free);
                if free {
                    model[place].fill(true);
                }
            }
            prop_assert_eq!(coverage.complete().is_ok(), model.iter().all(|b| *b));
        }
    }
}
