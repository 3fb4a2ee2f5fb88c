//! The root that names the content of a whole volume.
//!
//! All hashes are BLAKE3 keyed with the owner's [`HashKey`]:
//!
//! ```text
//! leaf  = chunk id (32 bytes; all zero for a chunk of zeros)
//! node  = BLAKE3(key, 0x01 || leaf || leaf || …)          one per extent: 16 leaves, fewer in the last extent
//! root  = BLAKE3(key, 0x02 || size as u64 little-endian || node || node || …)
//! ```
//!
//! The size fixes how many nodes there are and how many leaves each has, so that no two volumes of different shape
//! share a root and no node can stand for a leaf. Two levels are enough: the leaf table is at hand wherever the root
//! is checked, and one extent's ids and the list of nodes prove an extent.
//!
//! The vectors in `tests/golden.rs` are frozen: a receipt that was signed once must verify for ever.

use std::fmt;
use std::str::FromStr;

use volume::{ByteLen, CHUNKS_PER_EXTENT, ChunkId, ExtentIndex, MAX_VOLUME};
use zeroize::Zeroize;

use crate::error::{Kind, Op, ReduceError};
use crate::key::HashKey;

const NODE_DOMAIN: u8 = 1;
const ROOT_DOMAIN: u8 = 2;
const ID_LEN: usize = 32;

/// Bytes of nodes that are collected before they are hashed: BLAKE3 is fastest from 16 KiB on.
const NODE_BUFFER: usize = 64 << 10;

/// Names the content of one volume under one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub [u8; 32]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ChunkId(self.0).fmt(f)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Root {
    type Err = volume::id::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<ChunkId>().map(|id| Self(id.0))
    }
}

/// Computes a [`Root`] from the ids of a volume's extents, given in order. Its memory does not depend on the volume.
pub struct RootBuilder {
    key: HashKey,
    size: ByteLen,
    next: u64,
    hasher: blake3::Hasher,
    /// Nodes that were not hashed yet; at most [`NODE_BUFFER`] bytes.
    pending: Vec<u8>,
    zero_node: [u8; ID_LEN],
}

impl fmt::Debug for RootBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootBuilder({} of {} extents)", self.next, self.size.extents())
    }
}

impl Drop for RootBuilder {
    fn drop(&mut self) {
        // The hasher holds the key; `HashKey` wipes itself.
        self.hasher.zeroize();
    }
}

impl RootBuilder {
    /// Starts the root of a volume of `size` bytes.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when the size exceeds [`MAX_VOLUME`].
    pub fn new(key: &HashKey, size: ByteLen) -> Result<Self, ReduceError> {
        if size.0 > MAX_VOLUME {
            return Err(wrong(format!("a volume of {} bytes exceeds the limit of {MAX_VOLUME}", size.0)));
        }
        let mut hasher = blake3::Hasher::new_keyed(key.as_bytes());
        hasher.update(&[ROOT_DOMAIN]);
        hasher.update(&size.0.to_le_bytes());
        Ok(Self {
            zero_node: node(key, &[ChunkId::ZERO; CHUNKS_PER_EXTENT]),
            key: HashKey::from_bytes(*key.as_bytes()),
            size,
            next: 0,
            hasher,
            pending: Vec::with_capacity(NODE_BUFFER),
        })
    }

    /// The extent whose ids are expected next.
    #[must_use]
    pub fn next_extent(&self) -> ExtentIndex {
        ExtentIndex(self.next)
    }

    /// Adds the next extent.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when the volume has no further extent or the extent has another number of chunks.
    pub fn push_extent(&mut self, ids: &[ChunkId]) -> Result<(), ReduceError> {
        let expected = self.chunks_of(self.next).ok_or_else(|| self.past_the_end(1))?;
        if ids.len() as u64 != expected {
            return Err(wrong(format!("extent {} has {expected} chunks, not {}", self.next, ids.len())));
        }
        let node = if expected == CHUNKS_PER_EXTENT as u64 && ids.iter().all(|id| *id == ChunkId::ZERO) {
            self.zero_node
        } else {
            node(&self.key, ids)
        };
        self.push_node(node);
        Ok(())
    }

    /// Adds `count` extents that hold only zeros; the last one of the volume may be short.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when the volume has fewer extents left. Nothing is added then.
    pub fn push_zero_extents(&mut self, count: u64) -> Result<(), ReduceError> {
        let end = self.next.checked_add(count).filter(|end| *end <= self.size.extents());
        let end = end.ok_or_else(|| self.past_the_end(count))?;
        while self.next < end {
            let short = self.chunks_of(self.next).filter(|chunks| *chunks < CHUNKS_PER_EXTENT as u64);
            match short {
                None => self.push_node(self.zero_node),
                Some(chunks) => {
                    let ids = [ChunkId::ZERO; CHUNKS_PER_EXTENT];
                    let ids = ids.iter().take(usize::try_from(chunks).unwrap_or(CHUNKS_PER_EXTENT));
                    let ids: Vec<ChunkId> = ids.copied().collect();
                    self.push_node(node(&self.key, &ids));
                }
            }
        }
        Ok(())
    }

    /// Adds the next extent by its node, as [`extent_node`] made it: for tables that keep their nodes.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when the volume has no further extent.
    pub fn push_extent_node(&mut self, node: [u8; ID_LEN]) -> Result<(), ReduceError> {
        self.chunks_of(self.next).ok_or_else(|| self.past_the_end(1))?;
        self.push_node(node);
        Ok(())
    }

    /// The root.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] when extents are missing.
    pub fn finish(mut self) -> Result<Root, ReduceError> {
        if self.next != self.size.extents() {
            return Err(wrong(format!("only {} of {} extents were given", self.next, self.size.extents())));
        }
        self.hasher.update(&self.pending);
        Ok(Root(*self.hasher.finalize().as_bytes()))
    }

    /// Chunks of an extent of this volume; `None` past the end.
    fn chunks_of(&self, extent: u64) -> Option<u64> {
        Some(ByteLen(ExtentIndex(extent).range(self.size)?.len()).chunks())
    }

    fn push_node(&mut self, node: [u8; ID_LEN]) {
        self.pending.extend_from_slice(&node);
        if self.pending.len() >= NODE_BUFFER {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
        self.next += 1;
    }

    fn past_the_end(&self, count: u64) -> ReduceError {
        wrong(format!("{count} more after {} of {} extents", self.next, self.size.extents()))
    }
}

fn wrong(what: String) -> ReduceError {
    ReduceError::new(Kind::WrongLength, Op::BuildRoot, what)
}

/// The node of one extent: of its 1 to [`CHUNKS_PER_EXTENT`] chunk ids.
#[must_use]
pub fn extent_node(key: &HashKey, ids: &[ChunkId]) -> [u8; ID_LEN] {
    node(key, &ids[..ids.len().min(CHUNKS_PER_EXTENT)])
}

fn node(key: &HashKey, ids: &[ChunkId]) -> [u8; ID_LEN] {
    let mut input = [0; 1 + CHUNKS_PER_EXTENT * ID_LEN];
    input[0] = NODE_DOMAIN;
    for (place, id) in input[1..].chunks_exact_mut(ID_LEN).zip(ids) {
        place.copy_from_slice(&id.0);
    }
    *blake3::keyed_hash(key.as_bytes(), &input[..1 + ids.len() * ID_LEN]).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume::{CHUNK, EXTENT};

    fn key() -> HashKey {
        HashKey::from_bytes([3; 32])
    }

    #[test]
    fn the_definition_holds_word_for_word() {
        let ids: Vec<ChunkId> = (0_u8..19).map(|n| ChunkId([n; 32])).collect();
        let size = EXTENT + 2 * CHUNK + 1;
        let mut builder = RootBuilder::new(&key(), ByteLen(size)).unwrap();
        builder.push_extent(&ids[..16]).unwrap();
        builder.push_extent(&ids[16..]).unwrap();
        let leaves: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        let hash = |bytes: &[u8]| *blake3::keyed_hash(key().as_bytes(), bytes).as_bytes();
        let first = hash(&[&[1][..], &leaves[..512]].concat());
        let second = hash(&[&[1][..], &leaves[512..]].concat());
        let root = hash(&[&[2][..], &size.to_le_bytes(), &first, &second].concat());
        assert_eq!(builder.finish().unwrap(), Root(root));
        let mut by_nodes = RootBuilder::new(&key(), ByteLen(size)).unwrap();
        by_nodes.push_extent_node(extent_node(&key(), &ids[..16])).unwrap();
        by_nodes.push_extent_node(extent_node(&key(), &ids[16..])).unwrap();
        assert!(by_nodes.push_extent_node(first).is_err());
        assert_eq!(by_nodes.finish().unwrap(), Root(root));
    }

    #[test]
    fn zero_runs_equal_zero_extents_given_one_by_one() {
        for size in [0, 1, EXTENT - 1, EXTENT, 3 * EXTENT + CHUNK, 5000 * EXTENT + 512] {
            let size = ByteLen(size);
            let mut one = RootBuilder::new(&key(), size).unwrap();
            one.push_zero_extents(size.extents()).unwrap();
            let mut other = RootBuilder::new(&key(), size).unwrap();
            while let Some(chunks) = other.chunks_of(other.next) {
                let ids = [ChunkId::ZERO; CHUNKS_PER_EXTENT];
                other.push_extent(&ids[..usize::try_from(chunks).unwrap()]).unwrap();
            }
            assert_eq!(one.finish().unwrap(), other.finish().unwrap(), "{size:?}");
        }
    }

    #[test]
    fn the_size_is_part_of_the_root() {
        let root = |size| {
            let mut builder = RootBuilder::new(&key(), ByteLen(size)).unwrap();
            builder.push_zero_extents(1).unwrap();
            builder.finish().unwrap()
        };
        assert_ne!(root(EXTENT), root(EXTENT - 1));
    }

    #[test]
    fn wrong_counts_are_refused_and_change_nothing() {
        let mut builder = RootBuilder::new(&key(), ByteLen(EXTENT + CHUNK)).unwrap();
        assert_eq!(builder.push_extent(&[]).unwrap_err().kind(), Kind::WrongLength);
        assert_eq!(builder.push_extent(&[ChunkId::ZERO; 17]).unwrap_err().kind(), Kind::WrongLength);
        assert_eq!(builder.push_zero_extents(3).unwrap_err().kind(), Kind::WrongLength);
        assert_eq!(builder.push_zero_extents(u64::MAX).unwrap_err().kind(), Kind::WrongLength);
        builder.push_extent(&[ChunkId::ZERO; 16]).unwrap();
        assert_eq!(builder.push_extent(&[ChunkId::ZERO; 16]).unwrap_err().kind(), Kind::WrongLength);
        builder.push_extent(&[ChunkId::ZERO; 1]).unwrap();
        assert!(builder.push_extent(&[ChunkId::ZERO; 1]).is_err());
        builder.finish().unwrap();
        assert!(RootBuilder::new(&key(), ByteLen(1)).unwrap().finish().is_err());
        assert!(RootBuilder::new(&key(), ByteLen(MAX_VOLUME + 1)).is_err());
    }

    #[test]
    fn roots_print_and_parse() {
        let root = Root([0x5a; 32]);
        assert_eq!(root.to_string().parse(), Ok(root));
        assert!("5a".parse::<Root>().is_err());
    }
}
