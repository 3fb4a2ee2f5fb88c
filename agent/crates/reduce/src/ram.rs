//! Reduction of the RAM of a running VM: 4 KiB pages that travel in packets of at most 128, on several channels.
//!
//! A live migration sends pages again and again, mostly with small edits, and many pages of a guest are equal. So the
//! sender keeps the last version that it sent of a bounded number of pages in numbered **slots**, and the receiver
//! keeps the bytes of the same slots. Every packet says which slot it reads and which it writes: no side guesses what
//! the other one evicted, and no hash is trusted, since the sender compares bytes before it refers to a slot.
//!
//! ```text
//! Batch::new (zero? hash) ─► Encoder::plan (decide, XOR) ─► Plan::pack (zstd) ─► channel ─► Unpacker::unpack ─► Decoder::apply
//!   any thread                under the owner's lock          any thread                     any thread          under the lock
//! ```
//!
//! ## Channels
//! Packets of one channel are decoded in order; between channels there is no order but what [`Encoder::acknowledge`]
//! tells. Hence two rules, and no wait on the receiver's side, which could deadlock with flow control:
//!
//! - a packet may **read** a slot when the packet that last wrote it went before on the same channel, or was
//!   acknowledged as decoded;
//! - a packet may **write** a slot when every packet that read or wrote it went before on the same channel, or was
//!   acknowledged as decoded.
//!
//! What may not be read or written is sent plain without a slot: that costs bytes and is never wrong. Every plan that
//! was made must be packed, sent and decoded, in the order of the plans of its channel. When a channel breaks, both
//! sides call `reset` before the first packet of the next attempt.
//!
//! ## Packet, version 1
//! Integers are little-endian; a page is 4096 bytes.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | coding of the body: 1 raw, 2 one zstd frame (RFC 8878, window of at most 1 MiB, no dictionary) |
//! | 1 | pages, 1 to 128 |
//! | 1 | loose pages, 0 to 128: those that are not worth compressing |
//! | 4 | length of the body, decoded; at most 128 x (2 + 5 + 72 + 4096) |
//! | … | the body, as `coding` says |
//! | loose x 4096 | the loose pages |
//!
//! The body, decoded, ends exactly after its last part:
//!
//! | part | content |
//! |---|---|
//! | runs | (kind: u8, count: u8, 1 to 128) until the counts add up to `pages`; more is an error |
//! | slots | for each page whose kind names a slot, LEB128 of zigzag(slot - expected); expected is 0, then the last slot + 1 |
//! | masks | for each delta: u64, bit n for block n of 64 bytes; then a byte for each bit set, bit n for word n of 8 bytes |
//! | words | for each bit set in those bytes: 8 bytes, old XOR new |
//! | packed | the packed pages |
//!
//! | kind | page | slot |
//! |---|---|---|
//! | 1 | all zero | none |
//! | 2 | the content of the slot | read |
//! | 3 / 4 | the next packed page | none / written |
//! | 5 / 6 | the next loose page | none / written |
//! | 7 / 8 | the content of the slot with the delta | read / read and written |
//!
//! Pages are decoded in order: a page may read what an earlier one of the same packet wrote. Reading a slot that was
//! never written, or one that does not exist, is an error.

mod channels;
mod decoder;
mod delta;
mod dictionary;
mod encoder;
mod layout;
mod pack;
mod slots;

pub use decoder::{Decoder, Unpacked, Unpacker};
pub use encoder::{Batch, Encoder, Page};
pub use pack::{Packer, PacketStats, Plan};

/// Bytes of a page. Guests with another target page size are not reduced.
pub const PAGE_BYTES: usize = crate::PAGE_LEN;
/// The bytes of one page.
pub type PageBytes = [u8; PAGE_BYTES];
/// Most pages of a packet: QEMU's multifd packets hold 512 KiB (`migration/multifd.h`, `MULTIFD_PACKET_SIZE`).
pub const MAX_PAGES: usize = 128;
/// Most slots: 16 GiB of pages on either side. Guessed; the operator's memory budget is far below.
pub const MAX_SLOTS: u32 = 1 << 22;
/// Longest packet: a body that is raw, or loose pages, and the header.
pub const MAX_PACKET: usize = layout::HEADER + layout::MAX_BODY;

/// A page of zeros, to compare with and to copy.
static ZERO_PAGE: PageBytes = [0; PAGE_BYTES];

#[cfg(test)]
mod tests;
