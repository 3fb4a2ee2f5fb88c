//! The bytes of a journal, version 1. Frozen: other content needs another version.
//!
//! All numbers are little-endian. Header, 64 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `NFJOURNL` |
//! | 8 | 2 | version, 1 |
//! | 10 | 6 | zero |
//! | 16 | 16 | session |
//! | 32 | 8 | volume size |
//! | 40 | 16 | id of the hash key |
//! | 56 | 8 | XXH3-64 of bytes 0..56 |
//!
//! Record: kind (1 byte: 1 extent, 2 zero run, 3 dirty run), number of ids (1 byte, 1 to 16 for kind 1, else 0), 6 zero
//! bytes, first extent (8), count of extents (8, 1 for kind 1), the ids (32 each), and XXH3-64 of all that, seeded with
//! the checksum of the record before (of the header for the first). The chain keeps a record that was left behind by an
//! earlier, longer journal in the same blocks from being believed.
//!
//! A dirty run takes back what was said of its extents before: it is durable before the first byte of an extent is
//! overwritten that an earlier record speaks of.

use std::io::{self, ErrorKind, Read};

use session::Change;
use volume::{ByteLen, ChunkId, ExtentIndex, KeyId, MAX_VOLUME, SessionId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
const MAGIC: &[u8; 8] = b"NFJOURNL";
const VERSION: u16 = 1;
const FIXED: usize = 24;
const ID: usize = 32;
const CHECKSUM: usize = 8;
const KIND_EXTENT: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_DIRTY: u8 = 3;

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// This is durable. Never [`Change::Same`].
    Settled(Change),
    /// Nothing is known of these extents any more.
    Dirty {
        /// First extent.
        first: ExtentIndex,
        /// How many.
        count: u64,
    },
}

/// Header of version 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderV1 {
    /// Whose journal.
    pub session: SessionId,
    /// Length of the volume.
    pub size: ByteLen,
    /// Key of the ids.
    pub key_id: KeyId,
}

impl HeaderV1 {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.session.0);
        out[32..40].copy_from_slice(&self.size.0.to_le_bytes());
        out[40..56].copy_from_slice(&self.key_id.0);
        let checksum = xxh3_64(&out[..56]);
        out[56..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The checksum that the first record is chained to.
    #[must_use]
    pub fn chain(&self) -> u64 {
        word(&self.encode()[56..])
    }

    /// Reads a header, or `None` when these bytes are not one of version 1.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let good = bytes[..8] == *MAGIC
            && bytes[8..10] == VERSION.to_le_bytes()
            && bytes[10..16] == [0; 6]
            && word(&bytes[56..]) == xxh3_64(&bytes[..56]);
        let size = word(&bytes[32..]);
        let mut header = Self { session: SessionId([0; 16]), size: ByteLen(size), key_id: KeyId([0; 16]) };
        header.session.0.copy_from_slice(&bytes[16..32]);
        header.key_id.0.copy_from_slice(&bytes[40..56]);
        (good && size <= MAX_VOLUME).then_some(header)
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(out)
}

/// Appends a change's record to `out` and returns the new end of the chain.
///
/// # Panics
/// For [`Change::Same`], which the driver has replaced by the ids that it stands for, and for an extent without ids or
/// with more than 16.
pub fn encode_change(change: &Change, chain: u64, out: &mut Vec<u8>) -> u64 {
    let (kind, first, count, ids): (u8, u64, u64, &[ChunkId]) = match change {
        Change::Extent { extent, ids } => {
            assert!((1..=16).contains(&ids.len()), "an extent has 1 to 16 chunks, not {}", ids.len());
            (KIND_EXTENT, extent.0, 1, ids)
        }
        Change::Zero { first, count } => (KIND_ZERO, first.0, *count, &[]),
        Change::Same { .. } => unreachable!("the driver journals ids, never `Same`"),
    };
    encode(kind, first, count, ids, chain, out)
}

/// Appends the record of a dirty run to `out` and returns the new end of the chain.
pub fn encode_dirty(first: ExtentIndex, count: u64, chain: u64, out: &mut Vec<u8>) -> u64 {
    encode(KIND_DIRTY, first.0, count, &[], chain, out)
}

fn encode(kind: u8, first: u64, count: u64, ids: &[ChunkId], chain: u64, out: &mut Vec<u8>) -> u64 {
    let start = out.len();
    out.extend_from_slice(&[kind, u8::try_from(ids.len()).unwrap_or(u8::MAX), 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    ids.iter().for_each(|id| out.extend_from_slice(&id.0));
    let checksum = xxh3_64_with_seed(&out[start..], chain);
    out.extend_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Where a replay stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayEnd {
    /// Bytes up to the end of the last whole record.
    pub len: u64,
    /// Checksum of that record.
    pub chain: u64,
    /// Bytes that are no whole record follow.
    pub torn: bool,
}

/// An intact header and where the records after it end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replay {
    /// The header.
    pub header: HeaderV1,
    /// The end.
    pub end: ReplayEnd,
}

/// Fills `out`; false when the input ends before that.
fn fill(from: &mut impl Read, out: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(out) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn ids_of(bytes: &[u8]) -> Vec<ChunkId> {
    let (ids, _rest) = bytes.as_chunks::<ID>();
    ids.iter().map(|id| ChunkId(*id)).collect()
}

/// Reads a journal and hands each whole record to `take`. `None` when the header is not intact.
///
/// # Errors
/// What reading fails with. Torn and corrupt records are no errors: the replay ends there.
pub fn replay(mut from: impl Read, mut take: impl FnMut(Entry)) -> io::Result<Option<Replay>> {
    let mut bytes = [0; HEADER_LEN];
    if !fill(&mut from, &mut bytes)? {
        return Ok(None);
    }
    let Some(header) = HeaderV1::decode(&bytes) else { return Ok(None) };
    let extents = header.size.extents();
    let mut end = ReplayEnd { len: HEADER_LEN as u64, chain: word(&bytes[56..]), torn: false };
    let mut record = [0; FIXED + 16 * ID + CHECKSUM];
    loop {
        let mut first = [0];
        if !fill(&mut from, &mut first)? {
            return Ok(Some(Replay { header, end }));
        }
        end.torn = true;
        record[0] = first[0];
        if !fill(&mut from, &mut record[1..FIXED])? {
            break;
        }
        let ids = usize::from(record[1]);
        let shape = match record[0] {
            KIND_EXTENT => (1..=16).contains(&ids),
            KIND_ZERO | KIND_DIRTY => ids == 0,
            _ => false,
        };
        let body = FIXED + ids * ID;
        if !shape || !fill(&mut from, &mut record[FIXED..body + CHECKSUM])? {
            break;
        }
        let checksum = word(&record[body..]);
        let (at, count) = (word(&record[8..]), word(&record[16..]));
        let many = if record[0] == KIND_EXTENT { count == 1 } else { count >= 1 };
        let inside = many && at.checked_add(count).is_some_and(|past| past <= extents);
        if checksum != xxh3_64_with_seed(&record[..body], end.chain) || record[2..8] != [0; 6] || !inside {
            break;
        }
        let first = ExtentIndex(at);
        take(match record[0] {
            KIND_EXTENT => {
                Entry::Settled(Change::Extent { extent: first, ids: ids_of(&record[FIXED..body]) })
            }
            KIND_ZERO => Entry::Settled(Change::Zero { first, count }),
            _ => Entry::Dirty { first, count },
        });
        end = ReplayEnd { len: end.len + (body + CHECKSUM) as u64, chain: checksum, torn: false };
    }
    Ok(Some(Replay { header, end }))
}

#[cfg(test)]
mod tests;
