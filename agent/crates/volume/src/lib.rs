//! Layer 0: what a volume is.
//!
//! A *volume* is a disk as a linear array of bytes. This crate holds the units and ids that every other crate
//! speaks in ([`units`], [`id`]), owned buffers that travel into an I/O call and always come back ([`buffer`]),
//! the [`Source`] and [`Sink`] traits, one error type, and the conformance suite that every implementation passes
//! (feature `conformance`).
//!
//! It does no I/O, reads no clock and knows no runtime.

pub mod buffer;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod id;
pub mod traits;
pub mod units;

pub use buffer::{Buffer, BufferPool, Memory};
pub use error::{Kind, Op, VolumeError};
pub use id::{ChunkId, Generation, KeyId, Sequence, SessionId};
pub use traits::{BufResult, Content, Fingerprint, Geometry, Io, Sink, Source, ZeroMode};
pub use units::{
    ByteLen, ByteOffset, ByteRange, CHUNK, CHUNKS_PER_EXTENT, ChunkIndex, EXTENT, ExtentIndex, MAX_VOLUME,
    PAGE, PAGES_PER_CHUNK,
};
