//! Pure CPU work on the byte path: what need not be sent, how the rest is named, and how small it gets.
//!
//! ```text
//! extent ─► zero? ─► identity ─► dedup (known?) ─► delta (same pages?) ─► codec (level by controller) ─► tunnel
//!                       └──► leaf_table, merkle ─► root, receipt
//! ```
//!
//! | module | decides |
//! |---|---|
//! | [`zero`] | whether bytes are all zero |
//! | [`key`] | the secret that ids are computed with, and its public name |
//! | [`identity`] | the id of each 64 KiB chunk of an extent |
//! | [`merkle`] | the root that names the content of a whole volume |
//! | [`leaf_table`] | the bytes of the sidecar file that holds a volume's chunk ids |
//! | [`dedup`] | what the receiver has already (sender side), and where it has it (receiver side) |
//! | [`delta`] | which 4 KiB pages of a chunk changed |
//! | [`codec`] | zstd over batches, bounded on both sides |
//! | [`controller`] | the compression level, from what was measured |
//! | [`ram`] | what a page of a running VM is sent as: zero, equal, changed a little, or whole |
//!
//! Nothing here opens a file or a socket, reads a clock, draws a random number or spawns a thread.

pub mod codec;
pub mod controller;
pub mod dedup;
pub mod delta;
pub mod error;
pub mod identity;
pub mod key;
pub mod leaf_table;
pub mod merkle;
pub mod ram;
pub mod zero;

pub use codec::{Compressor, Decompressor, Outcome, PayHint};
pub use controller::{Choice, Controller, Fill, Mode, Sample};
pub use dedup::{ContentIndex, Inserted, KnownChunks, Location, VolumeSlot};
pub use delta::{PageMask, PageSums, SumSeed};
pub use error::{Kind, Op, ReduceError};
pub use identity::{ExtentIds, chunk_id, extent_ids};
pub use key::HashKey;
pub use merkle::{Root, RootBuilder, extent_node};
pub use zero::is_zero;

/// Bytes in a chunk as a length in memory.
pub(crate) const CHUNK_LEN: usize = 64 << 10;
/// Bytes in an extent as a length in memory.
pub(crate) const EXTENT_LEN: usize = 1 << 20;
/// Bytes in a page as a length in memory.
pub(crate) const PAGE_LEN: usize = 4 << 10;
const _: () = assert!(CHUNK_LEN as u64 == volume::CHUNK);
const _: () = assert!(EXTENT_LEN as u64 == volume::EXTENT);
const _: () = assert!(PAGE_LEN as u64 == volume::PAGE);
