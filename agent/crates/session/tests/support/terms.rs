//! Terms and frames that the tests start from.

use volume::{ExtentIndex, Generation, KeyId, Sequence};
use wire::{ChunkEntry, Encoding, ExtentHead, Grant, HashKeyBytes};

/// A first attempt with nothing special, sequences from `first`.
pub(crate) fn grant(first: u64, window_frames: u32) -> Grant {
    Grant {
        generation: Generation(1),
        key_id: KeyId([1; 16]),
        key: HashKeyBytes([2; 32]),
        page_seed: 3,
        first_sequence: Sequence(first),
        window_bytes: 1 << 20,
        window_frames,
        resumed: false,
        leaves: false,
        known: false,
        zeroed: false,
    }
}

/// A whole extent of zero chunks.
pub(crate) fn head(sequence: u64, floor: u64, extent: u64) -> ExtentHead {
    ExtentHead {
        sequence: Sequence(sequence),
        floor: Sequence(floor),
        extent: ExtentIndex(extent),
        encoding: Encoding::Raw,
        wire_len: 0,
        plain_len: 0,
        chunks: vec![ChunkEntry::Zero; 16],
    }
}
