//! The bytes of a leaf table: the sidecar file with the chunk ids of one volume. This module does no file I/O.
//!
//! ```text
//! 0      header, version 1 (128 bytes), zeros up to 4096
//! 4096   32 bytes a chunk, in order; 32 zero bytes mean a chunk of zeros
//! ```
//!
//! Because zeros mean zero content, the file is as sparse as the volume: what was never written is a hole. The table
//! starts at 4096 so that its pages line up with those of the file system.
//!
//! Header, version 1 (all numbers little-endian). Frozen: other content needs another version.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `NFLEAVES` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | flags: bit 0 sealed (the root is that of the table); others zero |
//! | 12 | 4 | zero |
//! | 16 | 8 | volume size in bytes |
//! | 24 | 16 | id of the hash key |
//! | 40 | 8 | generation |
//! | 48 | 32 | root; zeros when not sealed |
//! | 80 | 40 | zero |
//! | 120 | 8 | XXH3-64 of bytes 0..120 |
//!
//! The checksum finds torn writes and bit rot in the header. The table itself is checked by its root.

use volume::{
    ByteLen, ByteOffset, CHUNKS_PER_EXTENT, ChunkId, ChunkIndex, ExtentIndex, Generation, KeyId, MAX_VOLUME,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Kind, Op, ReduceError};
use crate::merkle::Root;

/// Bytes of an encoded header.
pub const HEADER_LEN: usize = 128;
/// Where the ids start in the file.
pub const TABLE_OFFSET: u64 = 4096;
/// Bytes of one id.
pub const ID_LEN: usize = 32;
/// Bytes of the ids of a whole extent.
pub const EXTENT_IDS_LEN: usize = ID_LEN * CHUNKS_PER_EXTENT;

const MAGIC: &[u8; 8] = b"NFLEAVES";
const VERSION: u16 = 1;
const SEALED: u16 = 1;
const CHECKSUM_AT: usize = 120;

/// Header of version 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderV1 {
    /// Size of the volume.
    pub size: ByteLen,
    /// Key that the ids were computed with.
    pub key_id: KeyId,
    /// Generation of the volume that wrote the table last.
    pub generation: Generation,
    /// Root of the table, once the volume is sealed.
    pub root: Option<Root>,
}

impl HeaderV1 {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let flags = if self.root.is_some() { SEALED } else { 0 };
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.size.0.to_le_bytes());
        out[24..40].copy_from_slice(&self.key_id.0);
        out[40..48].copy_from_slice(&self.generation.0.to_le_bytes());
        if let Some(root) = self.root {
            out[48..80].copy_from_slice(&root.0);
        }
        let checksum = xxh3_64(&out[..CHECKSUM_AT]);
        out[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Kind::UnknownVersion`] for an intact header of another version; [`Kind::Corrupt`] for anything else that
    /// [`Self::encode`] did not make.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ReduceError> {
        let bad = |kind, what: &str| Err(ReduceError::new(kind, Op::ReadLeafTable, what));
        if bytes[..8] != *MAGIC {
            return bad(Kind::Corrupt, "it does not start like one");
        }
        if u64::from_le_bytes(field(bytes, CHECKSUM_AT)) != xxh3_64(&bytes[..CHECKSUM_AT]) {
            return bad(Kind::Corrupt, "the checksum of its header is wrong (torn write or bit rot)");
        }
        let version = u16::from_le_bytes(field(bytes, 8));
        if version != VERSION {
            return bad(
                Kind::UnknownVersion,
                &format!("it has version {version}, this program knows {VERSION}"),
            );
        }
        let flags = u16::from_le_bytes(field(bytes, 10));
        let size = u64::from_le_bytes(field(bytes, 16));
        let root: [u8; 32] = field(bytes, 48);
        let sealed = flags & SEALED != 0;
        let reserved_is_zero = crate::is_zero(&bytes[12..16]) && crate::is_zero(&bytes[80..CHECKSUM_AT]);
        if flags & !SEALED != 0 || !reserved_is_zero || (!sealed && root != [0; 32]) || size > MAX_VOLUME {
            return bad(Kind::Corrupt, "its header has values that are never written");
        }
        Ok(Self {
            size: ByteLen(size),
            key_id: KeyId(field(bytes, 24)),
            generation: Generation(u64::from_le_bytes(field(bytes, 40))),
            root: sealed.then_some(Root(root)),
        })
    }
}

/// The `N` bytes at a constant offset inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Where in the file the id of a chunk is. Saturates; check the index against the volume first.
#[must_use]
pub fn chunk_offset(chunk: ChunkIndex) -> ByteOffset {
    ByteOffset(chunk.0.saturating_mul(ID_LEN as u64).saturating_add(TABLE_OFFSET))
}

/// Where in the file the ids of an extent start.
#[must_use]
pub fn extent_offset(extent: ExtentIndex) -> ByteOffset {
    chunk_offset(extent.first_chunk())
}

/// Length of the file for a volume of `size`.
#[must_use]
pub fn file_len(size: ByteLen) -> ByteLen {
    ByteLen(chunk_offset(ChunkIndex(size.chunks())).0)
}

/// Writes ids as they stand in the file.
///
/// # Errors
/// [`Kind::WrongLength`] when `out` is not exactly [`ID_LEN`] bytes an id.
pub fn encode_ids(ids: &[ChunkId], out: &mut [u8]) -> Result<(), ReduceError> {
    if out.len() != ids.len() * ID_LEN {
        let what = format!("{} ids do not fill {} bytes", ids.len(), out.len());
        return Err(ReduceError::new(Kind::WrongLength, Op::WriteLeafTable, what));
    }
    for (place, id) in out.chunks_exact_mut(ID_LEN).zip(ids) {
        place.copy_from_slice(&id.0);
    }
    Ok(())
}

/// Reads ids as they stand in the file.
///
/// # Errors
/// [`Kind::WrongLength`] when `bytes` is no multiple of [`ID_LEN`]: the file was cut off.
pub fn decode_ids(bytes: &[u8]) -> Result<impl ExactSizeIterator<Item = ChunkId> + '_, ReduceError> {
    let (ids, rest) = bytes.as_chunks::<ID_LEN>();
    if !rest.is_empty() {
        let what = format!("{} bytes are no whole number of ids: the file was cut off", bytes.len());
        return Err(ReduceError::new(Kind::WrongLength, Op::ReadLeafTable, what));
    }
    Ok(ids.iter().map(|id| ChunkId(*id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(size: u64, key_id: [u8; 16], generation: u64, root: Option<[u8; 32]>) -> HeaderV1 {
        HeaderV1 {
            size: ByteLen(size),
            key_id: KeyId(key_id),
            generation: Generation(generation),
            root: root.map(Root),
        }
    }

    proptest! {
        #[test]
        fn headers_come_back(
            size in 0..=MAX_VOLUME, key_id in any::<[u8; 16]>(), generation in any::<u64>(),
            root in any::<Option<[u8; 32]>>()
        ) {
            let header = header(size, key_id, generation, root);
            prop_assert_eq!(HeaderV1::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn every_flipped_bit_is_found(bit in 0..HEADER_LEN * 8, generation in any::<u64>()) {
            let mut bytes = header(1 << 30, [5; 16], generation, Some([6; 32])).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(HeaderV1::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_headers_never_panic(bytes in proptest::array::uniform::<_, HEADER_LEN>(any::<u8>())) {
            prop_assert!(HeaderV1::decode(&bytes).is_err());
        }

        #[test]
        fn ids_come_back(ids in proptest::collection::vec(any::<[u8; 32]>().prop_map(ChunkId), 0..40)) {
            let mut bytes = vec![0xee; ids.len() * ID_LEN];
            encode_ids(&ids, &mut bytes).unwrap();
            prop_assert_eq!(decode_ids(&bytes).unwrap().collect::<Vec<_>>(), ids);
        }
    }

    fn with_checksum(mut bytes: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        let checksum = xxh3_64(&bytes[..CHECKSUM_AT]).to_le_bytes();
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum);
        bytes
    }

    #[test]
    fn another_version_is_named_and_odd_values_are_refused() {
        let good = header(1, [0; 16], 0, None).encode();
        let decode_with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            HeaderV1::decode(&with_checksum(bytes)).unwrap_err().kind()
        };
        assert_eq!(decode_with(8, 2), Kind::UnknownVersion);
        for (at, value) in [(10, 2), (12, 1), (22, 0x40), (48, 1), (80, 1), (119, 1)] {
            assert_eq!(decode_with(at, value), Kind::Corrupt, "byte {at}");
        }
    }

    #[test]
    fn holes_read_as_zero_chunks_and_cut_files_are_found() {
        assert!(decode_ids(&[0; EXTENT_IDS_LEN]).unwrap().all(|id| id == ChunkId::ZERO));
        assert!(decode_ids(&[0; 33]).is_err());
        assert!(encode_ids(&[ChunkId::ZERO], &mut [0; 31]).is_err());
    }

    #[test]
    fn places_follow_the_layout() {
        assert_eq!(chunk_offset(ChunkIndex(0)), ByteOffset(4096));
        assert_eq!(extent_offset(ExtentIndex(2)), ByteOffset(4096 + 1024));
        assert_eq!(file_len(ByteLen(0)), ByteLen(4096));
        assert_eq!(file_len(ByteLen(65_537)), ByteLen(4096 + 64));
        assert_eq!(chunk_offset(ChunkIndex(u64::MAX)), ByteOffset(u64::MAX));
    }
}
