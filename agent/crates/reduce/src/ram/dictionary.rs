//! From content to a slot that may hold it: the sender's index of equal pages.
//!
//! A table of sets of eight entries. An answer is a hint: the caller compares bytes. A set never grows and a search
//! looks at one set, so that a guest that makes hashes collide costs nothing but matches.

/// Entries of a set: one cache line.
const WAYS: usize = 8;
/// Slots for each set: half of the entries are used when all slots are.
const SLOTS_PER_SET: usize = 4;

/// An entry: the upper half of the hash, then the slot plus one; 0 is free.
type Entry = u64;

pub(super) struct Dictionary {
    sets: Vec<[Entry; WAYS]>,
}

fn entry(hash: u64, slot: u32) -> Entry {
    hash & !u64::from(u32::MAX) | (u64::from(slot) + 1)
}

impl Dictionary {
    pub(super) fn new(slots: u32) -> Self {
        let sets = (slots as usize).div_ceil(SLOTS_PER_SET).max(1);
        Self { sets: vec![[0; WAYS]; sets] }
    }

    /// The set is chosen by the lower half of the hash, the tag is the upper half.
    fn set(&self, hash: u64) -> usize {
        let lower = usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0);
        (lower * self.sets.len()) >> 32
    }

    /// Slots that may hold content of this hash.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> + use<> {
        let set = self.sets[self.set(hash)];
        set.into_iter().filter(move |entry| *entry != 0 && entry >> 32 == hash >> 32).map(|entry| {
            // The lower half is a slot plus one, which fits.
            u32::try_from((entry & u64::from(u32::MAX)) - 1).unwrap_or(u32::MAX)
        })
    }

    /// Notes that `slot` holds content of this hash. In a full set one older entry is forgotten.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) {
        let set = self.set(hash);
        let set = &mut self.sets[set];
        // The victim is chosen by the slot, which has nothing to do with the hash: as good as any, and repeatable.
        let victim = slot as usize % WAYS;
        let place = set.iter().position(|entry| *entry == 0).unwrap_or(victim);
        set[place] = entry(hash, slot);
    }

    /// Forgets that `slot` holds content of this hash.
    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let set = self.set(hash);
        for place in &mut self.sets[set] {
            if *place == entry(hash, slot) {
                *place = 0;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.sets.fill([0; WAYS]);
    }

    /// Bytes allocated.
    pub(super) fn memory(&self) -> usize {
        self.sets.capacity() * size_of::<[Entry; WAYS]>()
    }
}
