//! Chunk ids: what a chunk's content is called.

use std::fmt;
use std::ops::Deref;

use volume::{CHUNKS_PER_EXTENT, ChunkId};

use crate::error::{Kind, Op, ReduceError};
use crate::key::HashKey;
use crate::zero::is_zero;
use crate::{CHUNK_LEN, EXTENT_LEN};

/// The id of a chunk: [`ChunkId::ZERO`] when all its bytes are zero, whatever its length, else keyed BLAKE3.
///
/// BLAKE3 could in theory give the 32 zero bytes for content that is not zero, which would then be taken for zeros.
/// That is one collision among all possible ones: a chance of 2^-256 for each chunk, where any two of 2^38 chunks
/// (16 PiB) collide with 2^-181. Because the key is secret nobody can search for it either, so it is not handled apart.
#[must_use]
pub fn chunk_id(key: &HashKey, data: &[u8]) -> ChunkId {
    if is_zero(data) {
        return ChunkId::ZERO;
    }
    ChunkId(*blake3::keyed_hash(key.as_bytes(), data).as_bytes())
}

/// The ids of one extent, in order; at most [`CHUNKS_PER_EXTENT`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExtentIds {
    ids: [ChunkId; CHUNKS_PER_EXTENT],
    count: usize,
}

impl Deref for ExtentIds {
    type Target = [ChunkId];
    fn deref(&self) -> &[ChunkId] {
        &self.ids[..self.count]
    }
}

impl fmt::Debug for ExtentIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The ids of an extent that lies in memory as consecutive `slices` (normally four of 256 KiB).
///
/// # Errors
/// [`Kind::WrongLength`] when a slice other than the last is no multiple of the chunk size (a chunk would cross a
/// border), or when the slices hold more than an extent.
pub fn extent_ids(key: &HashKey, slices: &[&[u8]]) -> Result<ExtentIds, ReduceError> {
    let wrong = |what: String| ReduceError::new(Kind::WrongLength, Op::Identify, what);
    let mut found = ExtentIds { ids: [ChunkId::ZERO; CHUNKS_PER_EXTENT], count: 0 };
    let mut short_seen = false;
    for slice in slices.iter().filter(|slice| !slice.is_empty()) {
        if short_seen {
            return Err(wrong(format!("a slice before the last is no multiple of {CHUNK_LEN} bytes")));
        }
        short_seen = slice.len() % CHUNK_LEN != 0;
        for chunk in slice.chunks(CHUNK_LEN) {
            let Some(place) = found.ids.get_mut(found.count) else {
                return Err(wrong(format!("more than {EXTENT_LEN} bytes")));
            };
            *place = chunk_id(key, chunk);
            found.count += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_give_the_same_ids_as_the_whole() {
        let key = HashKey::from_bytes([1; 32]);
        let mut dice = volume::conformance::Dice::new(7);
        let mut data = vec![0; EXTENT_LEN];
        dice.fill(&mut data);
        data[5 * CHUNK_LEN..6 * CHUNK_LEN].fill(0);
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, 300_001, EXTENT_LEN - 1, EXTENT_LEN] {
            let whole = &data[..len];
            let expected: Vec<_> = whole.chunks(CHUNK_LEN).map(|c| chunk_id(&key, c)).collect();
            let parts: Vec<&[u8]> = whole.chunks(256 << 10).collect();
            assert_eq!(&*extent_ids(&key, &parts).unwrap(), &expected[..], "{len} bytes");
        }
        assert_eq!(extent_ids(&key, &[&data]).unwrap()[5], ChunkId::ZERO);
    }

    #[test]
    fn a_chunk_across_slices_and_too_much_data_are_refused() {
        let key = HashKey::from_bytes([1; 32]);
        let data = vec![1; EXTENT_LEN + 1];
        let crossing = extent_ids(&key, &[&data[..100], &data[100..200]]).unwrap_err();
        assert_eq!(crossing.kind(), Kind::WrongLength);
        assert_eq!(extent_ids(&key, &[&data]).unwrap_err().kind(), Kind::WrongLength);
    }

    #[test]
    fn zeros_have_one_name_at_any_length_and_under_any_key() {
        let key = HashKey::from_bytes([9; 32]);
        for len in [0, 1, 512, CHUNK_LEN] {
            assert_eq!(chunk_id(&key, &vec![0; len]), ChunkId::ZERO);
        }
        assert_ne!(chunk_id(&key, &[0, 1]), ChunkId::ZERO);
    }

    #[test]
    fn keys_separate_ids() {
        let a = chunk_id(&HashKey::from_bytes([1; 32]), b"same");
        assert_ne!(a, chunk_id(&HashKey::from_bytes([2; 32]), b"same"));
    }
}
