//! The receiver's side: where content with some tag lies.

use std::fmt;

use volume::{ChunkId, ChunkIndex};

use super::{FREE, Inserted, SHARDS, grown, max_slots, probe, shard_of, stored};

/// A volume in the pool, by a small number that the engine hands out for as long as the volume is indexed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeSlot(u16);

impl VolumeSlot {
    /// How many volumes can be indexed at once: 14 bits of a packed place.
    pub const COUNT: u16 = 1 << 14;

    /// The slot of this number, or `None` when it is not below [`Self::COUNT`].
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < Self::COUNT).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

/// Where a chunk lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Location {
    /// The volume.
    pub volume: VolumeSlot,
    /// The chunk in it, below 2^34 (the largest volume, 64 TiB, has 2^30 chunks).
    pub chunk: ChunkIndex,
}

/// Largest chunk number that an entry holds.
const MAX_CHUNK: u64 = (1 << 34) - 1;
/// Locations that are kept for one tag. A second one helps when the first was overwritten or its volume deleted; more
/// would let content that is everywhere fill the index.
const CANDIDATES: usize = 2;
/// Bytes of a slot: tag 8, chunk number low 4, volume and chunk number high 2.
const SLOT_BYTES: usize = 14;

/// Tag to location, 14 bytes a slot and at most 16 an entry in a full index. Entries may be stale or wrong: whoever
/// uses one reads the place and hashes what is there.
pub struct ContentIndex {
    shards: [Shard; SHARDS],
    max_slots: usize,
    len: usize,
    refused: u64,
}

/// Three parallel arrays: together they would be padded to 16 bytes a slot, and a search touches only the tags.
#[derive(Default)]
struct Shard {
    tags: Vec<u64>,
    chunks: Vec<u32>,
    volumes: Vec<u16>,
    used: usize,
}

impl fmt::Debug for ContentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentIndex({} entries, {} bytes, {} refused)", self.len, self.memory(), self.refused)
    }
}

impl ContentIndex {
    /// An empty index that never holds more than `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let shards = std::array::from_fn(|_| Shard::default());
        Self { shards, max_slots: max_slots(max_bytes, SLOT_BYTES), len: 0, refused: 0 }
    }

    /// Notes that `id` lies at `location`. Of more than two places of one content the first and the latest are kept.
    /// Zero chunks and chunk numbers from 2^34 on are not stored.
    pub fn insert(&mut self, id: &ChunkId, location: Location) -> Inserted {
        if *id == ChunkId::ZERO {
            return Inserted::Present;
        }
        if location.chunk.0 > MAX_CHUNK {
            self.refused += 1;
            return Inserted::Full;
        }
        let tag = stored(id.tag());
        let shard = &mut self.shards[shard_of(tag)];
        let mut same = [None; CANDIDATES];
        for (place, slot) in same.iter_mut().zip(shard.slots_of(tag)) {
            *place = Some(slot);
        }
        if same.iter().flatten().any(|slot| shard.location(*slot) == location) {
            return Inserted::Present;
        }
        if let Some(latest) = same[CANDIDATES - 1] {
            shard.set(latest, tag, location);
            return Inserted::New;
        }
        let placed = loop {
            if shard.place(tag, location) {
                break true;
            }
            let Some(slots) = grown(shard.tags.len(), self.max_slots) else { break false };
            self.len -= shard.rebuild(slots, |_| true);
        };
        if placed {
            self.len += 1;
            Inserted::New
        } else {
            self.refused += 1;
            Inserted::Full
        }
    }

    /// Places where the chunk may lie, the oldest first; at most two.
    pub fn candidates(&self, id: &ChunkId) -> impl Iterator<Item = Location> + '_ {
        let tag = stored(id.tag());
        let shard = &self.shards[shard_of(tag)];
        let wanted = *id != ChunkId::ZERO;
        shard.slots_of(tag).filter(move |_| wanted).map(|slot| shard.location(slot)).take(CANDIDATES)
    }

    /// Drops all entries of a volume that was deleted or is about to be overwritten. Takes a pass over the index.
    pub fn forget_volume(&mut self, volume: VolumeSlot) {
        for shard in &mut self.shards {
            if shard.entries().any(|(_, location)| location.volume == volume) {
                self.len -= shard.rebuild(shard.tags.len(), |location| location.volume != volume);
            }
        }
    }

    /// All tags, to declare them to a sender. A tag with two places comes twice.
    pub fn tags(&self) -> impl Iterator<Item = u64> + '_ {
        self.shards.iter().flat_map(|shard| shard.tags.iter().copied().filter(|tag| *tag != FREE))
    }

    /// Entries in the index.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when the index holds nothing.
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
        let bytes = |shard: &Shard| {
            shard.tags.capacity() * 8 + shard.chunks.capacity() * 4 + shard.volumes.capacity() * 2
        };
        self.shards.iter().map(bytes).sum()
    }
}

impl Shard {
    /// The slots that hold `tag`, in the order of insertion.
    fn slots_of(&self, tag: u64) -> impl Iterator<Item = usize> + '_ {
        let run = probe(tag, self.tags.len()).take_while(|slot| self.tags[*slot] != FREE);
        run.filter(move |slot| self.tags[*slot] == tag)
    }

    fn location(&self, slot: usize) -> Location {
        let packed = self.volumes[slot];
        let chunk = u64::from(self.chunks[slot]) | u64::from(packed & 0b11) << 32;
        Location { volume: VolumeSlot(packed >> 2), chunk: ChunkIndex(chunk) }
    }

    fn set(&mut self, slot: usize, tag: u64, location: Location) {
        let [b0, b1, b2, b3, high, ..] = location.chunk.0.to_le_bytes();
        self.tags[slot] = tag;
        self.chunks[slot] = u32::from_le_bytes([b0, b1, b2, b3]);
        self.volumes[slot] = location.volume.0 << 2 | u16::from(high);
    }

    /// Puts an entry into a free slot. False when the shard is 7/8 full (14 bytes a slot, 16 an entry) or no slot near
    /// is free.
    fn place(&mut self, tag: u64, location: Location) -> bool {
        if (self.used + 1) * 8 > self.tags.len() * 7 {
            return false;
        }
        let Some(slot) = probe(tag, self.tags.len()).find(|slot| self.tags[*slot] == FREE) else {
            return false;
        };
        self.set(slot, tag, location);
        self.used += 1;
        true
    }

    fn entries(&self) -> impl Iterator<Item = (u64, Location)> + '_ {
        let used = self.tags.iter().enumerate().filter(|(_, tag)| **tag != FREE);
        used.map(|(slot, tag)| (*tag, self.location(slot)))
    }

    /// Moves the entries that `keep` wants into fresh arrays of `slots` slots. Returns how many are gone.
    fn rebuild(&mut self, slots: usize, keep: impl Fn(&Location) -> bool) -> usize {
        let fresh =
            Self { tags: vec![FREE; slots], chunks: vec![0; slots], volumes: vec![0; slots], used: 0 };
        let old = std::mem::replace(self, fresh);
        // From a free slot on, so that a run that wraps around keeps its order of insertion.
        let start = old.tags.iter().position(|tag| *tag == FREE).unwrap_or(0);
        for slot in (start..old.tags.len()).chain(0..start) {
            let location = old.location(slot);
            if old.tags[slot] != FREE && keep(&location) {
                // Fails only for made-up tags that collide: they are forgotten, which costs bandwidth.
                self.place(old.tags[slot], location);
            }
        }
        old.used - self.used
    }
}
