//! Dedup: what the receiver has already, and where.
//!
//! Both sides work with [`volume::ChunkId::tag`], the first 8 bytes of an id. A wrong answer costs bandwidth and never
//! correctness: the sender refers to a chunk by its whole id, the receiver re-hashes what it finds at the place and
//! answers "send it" when that is something else.
//!
//! Both tables are bounded by bytes, allocate as they fill, and take only bounded time for any input: the peer chooses
//! the tags it declares.

mod content_index;
mod known_chunks;

pub use content_index::{ContentIndex, Location, VolumeSlot};
pub use known_chunks::KnownChunks;

/// What became of an insertion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// It is in now.
    New,
    /// It was in already.
    Present,
    /// There is no room for it: it was not taken. Nothing that is in was lost.
    Full,
}

/// The tables are cut into this many shards by the top bits of the tag, each growing by itself: while one is copied
/// into a larger block, the extra memory is 1/64 of the table.
const SHARDS: usize = 64;
const SHARD_SHIFT: u32 = 64 - SHARDS.trailing_zeros();
/// Slots of a shard's first allocation.
const FIRST_SLOTS: usize = 64;
/// Slots that are looked at before a shard counts as full. Random tags come near it only in a table that is full;
/// tags that were made to collide cost this much at most.
const MAX_PROBE: usize = 1024;
/// Marks a free slot. A real tag of 0 is stored as 1: another wrong answer that costs bandwidth only.
const FREE: u64 = 0;

fn stored(tag: u64) -> u64 {
    tag.max(1)
}

fn shard_of(tag: u64) -> usize {
    usize::try_from(tag >> SHARD_SHIFT).unwrap_or(0)
}

/// The slot where the search for a tag starts: the bits below those that chose the shard, scaled to the slots there
/// are (multiply and shift, Lemire 2019), so that a shard can have any size.
fn first_slot(tag: u64, slots: usize) -> usize {
    let scaled = (u128::from(tag << SHARDS.trailing_zeros()) * slots as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

/// The slots to look at for a tag, in order.
fn probe(tag: u64, slots: usize) -> impl Iterator<Item = usize> {
    let first = first_slot(tag, slots);
    (first..slots).chain(0..first).take(MAX_PROBE)
}

/// Most slots of `slot_bytes` a shard may have when all shards and the old block of one that is growing stay within
/// `max_bytes`.
fn max_slots(max_bytes: usize, slot_bytes: usize) -> usize {
    max_bytes / ((SHARDS + 1) * slot_bytes)
}

/// Size of a shard after growing, or `None` when it may not grow.
fn grown(slots: usize, max_slots: usize) -> Option<usize> {
    let next = if slots == 0 { FIRST_SLOTS } else { slots * 2 }.min(max_slots);
    (next > slots).then_some(next)
}

#[cfg(test)]
mod tests;
