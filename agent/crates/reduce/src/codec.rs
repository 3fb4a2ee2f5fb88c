//! zstd over batches of at most 1 MiB: bounded in memory and in output on both sides.
//!
//! One batch is one zstd frame: no dictionary, no checksum (chunk ids vouch for the content), a window of at most
//! 1 MiB. A frame that is not clearly smaller than its content is not used; the batch travels raw.
//!
//! [`PayHint`] decides before any compression whether it is worth trying. [`Decompressor`] is what hostile bytes meet.

mod compress;
mod decompress;
mod hint;

pub use compress::{Compressor, Outcome};
pub use decompress::Decompressor;
pub use hint::PayHint;

use std::ops::RangeInclusive;

/// Largest plain size of a batch: one extent.
pub const MAX_BATCH: usize = crate::EXTENT_LEN;
/// Levels that are accepted. Above 9 zstd gains next to nothing on disk content and costs several times the time.
pub const LEVELS: RangeInclusive<i32> = -5..=9;
/// Base-2 logarithm of the largest window on either side: a batch never needs more.
const WINDOW_LOG: u32 = 20;

/// What zstd said, as a cause in our error.
#[derive(Debug, thiserror::Error)]
#[error("zstd: {0}")]
struct ZstdError(&'static str);

impl ZstdError {
    fn of(code: usize) -> Self {
        Self(zstd::zstd_safe::get_error_name(code))
    }
}

#[cfg(test)]
mod tests;
