//! What the sender was told about the target's old content, ahead of its cursor.

use std::collections::BTreeMap;

use volume::{ByteLen, CHUNKS_PER_EXTENT, ExtentIndex};
use wire::{Held, Leaves};

use crate::error::SessionError;

/// What the target holds at one extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OldExtent {
    /// Nothing is known: send it.
    Unknown,
    /// Zeros.
    Zero,
    /// One chunk-id prefix a chunk; all zero for a zero chunk.
    Prefixes(Vec<[u8; 16]>),
}

/// Leaves as they come in, until their extents are scanned. The receiver sends them a bounded way ahead
/// ([`crate::receiver::DECLARE_AHEAD`]); more than that ends the session.
#[derive(Debug)]
pub(crate) struct OldContent {
    size: ByteLen,
    /// Extents below this one have been declared.
    declared: u64,
    runs: BTreeMap<u64, (u64, OldExtent)>,
}

impl OldContent {
    pub(crate) fn new(size: ByteLen) -> Self {
        Self { size, declared: 0, runs: BTreeMap::new() }
    }

    /// Takes a frame. Runs start and end at extent borders, or at the end of the volume.
    pub(crate) fn declare(&mut self, leaves: Leaves) -> Result<(), SessionError> {
        const PER: u64 = CHUNKS_PER_EXTENT as u64;
        let count = match &leaves.held {
            Held::Zero(count) | Held::Unknown(count) => *count,
            Held::Prefixes(prefixes) => prefixes.len() as u64,
        };
        let first = leaves.first.0;
        let end = first.checked_add(count).ok_or(SessionError::PastEnd)?;
        let chunks = self.size.chunks();
        if first != self.declared * PER || end > chunks || (end % PER != 0 && end != chunks) {
            return Err(SessionError::Leaves(ExtentIndex(self.declared)));
        }
        let extents = end.div_ceil(PER) - self.declared;
        match leaves.held {
            Held::Zero(_) => {
                self.runs.insert(self.declared, (extents, OldExtent::Zero));
            }
            Held::Unknown(_) => {
                self.runs.insert(self.declared, (extents, OldExtent::Unknown));
            }
            Held::Prefixes(prefixes) => {
                for (nth, part) in prefixes.chunks(CHUNKS_PER_EXTENT).enumerate() {
                    self.runs.insert(self.declared + nth as u64, (1, OldExtent::Prefixes(part.to_vec())));
                }
            }
        }
        self.declared += extents;
        Ok(())
    }

    /// What is held at an extent, or `None` when that was not declared yet.
    pub(crate) fn at(&self, extent: u64) -> Option<&OldExtent> {
        if extent >= self.declared {
            return None;
        }
        // What was forgotten is unknown again.
        match self.runs.range(..=extent).next_back() {
            Some((first, (count, old))) if extent - first < *count => Some(old),
            _ => Some(&OldExtent::Unknown),
        }
    }

    /// Forgets everything below `extent`.
    pub(crate) fn forget_below(&mut self, extent: u64) {
        while let Some(entry) = self.runs.first_entry() {
            if entry.key() + entry.get().0 > extent {
                break;
            }
            entry.remove();
        }
    }

    /// Runs kept, to bound a peer that declares too far ahead.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }
}
