//! The grains of a volume as lengths in memory.

/// Bytes in a chunk.
pub(crate) const CHUNK_LEN: usize = 64 << 10;
/// Bytes in a page.
pub(crate) const PAGE_LEN: usize = 4 << 10;
const _: () = assert!(CHUNK_LEN as u64 == volume::CHUNK && PAGE_LEN as u64 == volume::PAGE);
