//! Offsets, lengths and the three grains of a volume: extent (1 MiB), chunk (64 KiB), page (4 KiB).

use std::fmt;

/// Bytes in an extent: the unit of work, of acknowledgement and of compression.
pub const EXTENT: u64 = 1 << 20;
/// Bytes in a chunk: the unit of identity and of dedup.
pub const CHUNK: u64 = 64 << 10;
/// Bytes in a page: the unit of change inside a chunk.
pub const PAGE: u64 = 4 << 10;
/// Chunks in a whole extent.
pub const CHUNKS_PER_EXTENT: usize = 16;
/// Pages in a whole chunk.
pub const PAGES_PER_CHUNK: usize = 16;
/// Largest volume that is accepted from anyone: 64 TiB, the largest cloud disk. Bounds every bitmap and table that is
/// sized by a volume: 8 MiB for the bitmap of its extents.
pub const MAX_VOLUME: u64 = 1 << 46;

/// Byte offset from the start of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteOffset(pub u64);

/// Length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteLen(pub u64);

/// Number of an extent, counted from 0 in units of [`EXTENT`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ExtentIndex(pub u64);

/// Number of a chunk, counted from 0 in units of [`CHUNK`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ChunkIndex(pub u64);

/// A half-open range of bytes, `start..end`. `start <= end` holds for every value that [`ByteRange::new`] made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// `start..start + len`, or `None` when that overflows.
    #[must_use]
    pub fn new(start: ByteOffset, len: ByteLen) -> Option<Self> {
        Some(Self { start: start.0, end: start.0.checked_add(len.0)? })
    }

    /// Bytes in the range.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// True when the range holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ExtentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ByteLen {
    /// Extents that a volume of this length has; the last one may be short.
    #[must_use]
    pub fn extents(self) -> u64 {
        self.0.div_ceil(EXTENT)
    }

    /// Chunks that a volume of this length has; the last one may be short.
    #[must_use]
    pub fn chunks(self) -> u64 {
        self.0.div_ceil(CHUNK)
    }
}

impl ExtentIndex {
    /// Where this extent starts. Saturates, so that an index from outside cannot wrap; check it with [`Self::range`].
    #[must_use]
    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.0.saturating_mul(EXTENT))
    }

    /// The bytes of this extent in a volume of `size`, or `None` when it lies past the end.
    #[must_use]
    pub fn range(self, size: ByteLen) -> Option<ByteRange> {
        let start = self.0.checked_mul(EXTENT)?;
        (start < size.0).then(|| ByteRange { start, end: size.0.min(start.saturating_add(EXTENT)) })
    }

    /// The extent's first chunk.
    #[must_use]
    pub fn first_chunk(self) -> ChunkIndex {
        ChunkIndex(self.0.saturating_mul(CHUNKS_PER_EXTENT as u64))
    }
}

impl ChunkIndex {
    /// Where this chunk starts.
    #[must_use]
    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.0.saturating_mul(CHUNK))
    }

    /// The bytes of this chunk in a volume of `size`, or `None` when it lies past the end.
    #[must_use]
    pub fn range(self, size: ByteLen) -> Option<ByteRange> {
        let start = self.0.checked_mul(CHUNK)?;
        (start < size.0).then(|| ByteRange { start, end: size.0.min(start.saturating_add(CHUNK)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_tail_is_a_short_extent_and_a_short_chunk() {
        let size = ByteLen(EXTENT + CHUNK + 512);
        assert_eq!(size.extents(), 2);
        assert_eq!(size.chunks(), 18);
        assert_eq!(ExtentIndex(1).range(size).unwrap().len(), CHUNK + 512);
        assert_eq!(ChunkIndex(17).range(size).unwrap().len(), 512);
        assert_eq!(ExtentIndex(2).range(size), None);
        assert_eq!(ExtentIndex(u64::MAX).range(size), None);
    }

    #[test]
    fn an_empty_volume_has_no_extent() {
        assert_eq!(ByteLen(0).extents(), 0);
        assert_eq!(ExtentIndex(0).range(ByteLen(0)), None);
    }
}
