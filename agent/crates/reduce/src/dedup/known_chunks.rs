//! The sender's side: a set of tags.

use std::fmt;

use volume::ChunkId;

use super::{FREE, Inserted, SHARDS, grown, max_slots, probe, shard_of, stored};

const SLOT_BYTES: usize = size_of::<u64>();

/// What the receiver acknowledged in this session or declared to hold. Bounded by bytes; when full it takes no more,
/// so what a long transfer saw first (the base image) stays known.
pub struct KnownChunks {
    shards: [Shard; SHARDS],
    max_slots: usize,
    len: usize,
    refused: u64,
}

#[derive(Default)]
struct Shard {
    slots: Vec<u64>,
    used: usize,
}

impl fmt::Debug for KnownChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownChunks({} tags, {} bytes, {} refused)", self.len, self.memory(), self.refused)
    }
}

impl Default for KnownChunks {
    fn default() -> Self {
        Self::new(Self::DEFAULT_BYTES)
    }
}

impl KnownChunks {
    /// Memory of a sender's session: knows 5.8 million chunks, 350 GiB of different data.
    pub const DEFAULT_BYTES: usize = 64 << 20;

    /// An empty set that never holds more than `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let shards = std::array::from_fn(|_| Shard::default());
        Self { shards, max_slots: max_slots(max_bytes, SLOT_BYTES), len: 0, refused: 0 }
    }

    /// Adds a chunk. Zero chunks are never asked for and not stored.
    pub fn insert(&mut self, id: &ChunkId) -> Inserted {
        if *id == ChunkId::ZERO { Inserted::Present } else { self.insert_tag(id.tag()) }
    }

    /// Adds a tag that the receiver declared.
    pub fn insert_tag(&mut self, tag: u64) -> Inserted {
        let tag = stored(tag);
        let shard = &mut self.shards[shard_of(tag)];
        if shard.find(tag).is_some() {
            return Inserted::Present;
        }
        let placed = loop {
            if shard.place(tag) {
                break true;
            }
            let Some(slots) = grown(shard.slots.len(), self.max_slots) else { break false };
            self.len -= shard.grow(slots);
        };
        if placed {
            self.len += 1;
            Inserted::New
        } else {
            self.refused += 1;
            Inserted::Full
        }
    }

    /// Whether the receiver probably has the chunk. Never true for the zero chunk, which needs no reference.
    #[must_use]
    pub fn contains(&self, id: &ChunkId) -> bool {
        *id != ChunkId::ZERO && self.contains_tag(id.tag())
    }

    /// Whether the tag is in the set.
    #[must_use]
    pub fn contains_tag(&self, tag: u64) -> bool {
        let tag = stored(tag);
        self.shards[shard_of(tag)].find(tag).is_some()
    }

    /// Removes a chunk that the receiver turned out not to have. True when it was in.
    pub fn remove(&mut self, id: &ChunkId) -> bool {
        let tag = stored(id.tag());
        let removed = self.shards[shard_of(tag)].remove(tag);
        self.len -= usize::from(removed);
        removed
    }

    /// Tags in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no tag is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Insertions that found no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes allocated for slots now.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.slots.capacity() * SLOT_BYTES).sum()
    }
}

impl Shard {
    fn find(&self, tag: u64) -> Option<usize> {
        let probe = probe(tag, self.slots.len()).take_while(|slot| self.slots[*slot] != FREE);
        probe.into_iter().find(|slot| self.slots[*slot] == tag)
    }

    /// Puts a tag that is not in into a free slot. False when the shard is 70 % full (searches for what is not there
    /// get long beyond) or no slot near is free.
    fn place(&mut self, tag: u64) -> bool {
        if (self.used + 1) * 10 > self.slots.len() * 7 {
            return false;
        }
        let Some(slot) = probe(tag, self.slots.len()).find(|slot| self.slots[*slot] == FREE) else {
            return false;
        };
        self.slots[slot] = tag;
        self.used += 1;
        true
    }

    /// Moves the tags into a larger block. Returns how many were lost.
    fn grow(&mut self, slots: usize) -> usize {
        let before = self.used;
        let old = std::mem::replace(&mut self.slots, vec![FREE; slots]);
        self.used = 0;
        for tag in old.into_iter().filter(|tag| *tag != FREE) {
            // Fails only for made-up tags that collide: they are forgotten, which costs bandwidth.
            self.place(tag);
        }
        before - self.used
    }

    /// Removes a tag and moves what follows it, so that no search stops early at the slot that became free.
    fn remove(&mut self, tag: u64) -> bool {
        let Some(found) = self.find(tag) else { return false };
        self.slots[found] = FREE;
        self.used -= 1;
        let slots = self.slots.len();
        let mut at = (found + 1) % slots;
        while self.slots[at] != FREE {
            let moved = std::mem::replace(&mut self.slots[at], FREE);
            self.used -= 1;
            self.place(moved);
            at = (at + 1) % slots;
        }
        true
    }
}
