//! The guest's disk: which bytes it holds after its first N writes, for every N.
//!
//! ```text
//! block 0: header | block 1: slot 1 | … | block n: slot n | what the guest never touches
//! ```
//!
//! Blocks are 4 KiB. The guest makes one write at a time, each a whole slot with the next sequence number; which slot is
//! a function of the number. So a disk as the guest left it at any instant, also when it was killed, is the one that N
//! writes make, for exactly one N: the largest number found. A write that was lost, one that came back, one in the wrong
//! place and one that is torn all make it a disk that no N makes.

use std::fmt;

use crate::random::{Stream, mix};

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Most slots of a disk (a disk of 64 GiB): what a header says is believed up to here.
pub const MAX_SLOTS: u64 = 16 << 20;

const HEADER: u64 = u64::from_le_bytes(*b"TGDISK01");
const SLOT: u64 = u64::from_le_bytes(*b"TGSLOT01");

/// A block, where direct I/O wants it.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK]);

impl Block {
    /// A block of zeros.
    pub const ZERO: Self = Self([0; BLOCK]);

    /// `first`, and then what a stream of `seed` gives.
    fn new(first: &[u64], seed: u64) -> Self {
        let mut block = Self::ZERO;
        let mut stream = Stream::new(seed);
        for (at, bytes) in block.0.chunks_exact_mut(8).enumerate() {
            let word = first.get(at).copied().unwrap_or_else(|| stream.next_word());
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        block
    }

    fn words<const N: usize>(&self) -> [u64; N] {
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(self.0.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        words
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: [u64; 4] = self.words();
        write!(f, "Block({first:x?}, …)")
    }
}

/// A disk that the guest has made its own: an identity, so that what an earlier guest left is not taken for its own, and
/// a number of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    id: u64,
    slots: u64,
}

impl Disk {
    /// A disk with `slots` slots, at least 1 and at most [`MAX_SLOTS`]. `id` should be a number that no other has.
    #[must_use]
    pub fn new(id: u64, slots: u64) -> Option<Self> {
        (1..=MAX_SLOTS).contains(&slots).then_some(Self { id, slots })
    }

    /// The disk that a header describes, if the block is one.
    #[must_use]
    pub fn from_header(block: &Block) -> Option<Self> {
        let [magic, id, slots] = block.words();
        let disk = Self::new(id, slots)?;
        (magic == HEADER && *block == disk.header()).then_some(disk)
    }

    /// Block 0.
    #[must_use]
    pub fn header(&self) -> Block {
        Block::new(&[HEADER, self.id, self.slots], mix(self.id ^ mix(self.slots)))
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The slot that write `sequence` goes to, which is also its block: 1 and up.
    #[must_use]
    pub fn slot_of(&self, sequence: u64) -> u64 {
        1 + mix(self.id ^ mix(sequence)) % self.slots
    }

    /// What write `sequence` (1 is the first) writes.
    #[must_use]
    pub fn block(&self, sequence: u64) -> Block {
        Block::new(&[SLOT, self.id, self.slot_of(sequence), sequence], mix(self.id ^ sequence))
    }

    /// What is in a block that should be a slot.
    #[must_use]
    pub fn read(&self, slot: u64, block: &Block) -> Found {
        let [magic, id, _, sequence] = block.words();
        if magic != SLOT || id != self.id {
            Found::Nothing
        } else if sequence != 0 && self.slot_of(sequence) == slot && *block == self.block(sequence) {
            Found::Write(sequence)
        } else {
            Found::Garbage
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// No write of this disk's guest.
    Nothing,
    /// The whole of this write.
    Write(u64),
    /// Part of a write, or a write that belongs elsewhere.
    Garbage,
}

/// The sequence number that each slot holds; 0 for none.
#[derive(Debug)]
pub struct Table {
    disk: Disk,
    last: u64,
    held: Vec<u64>,
}

impl Table {
    /// The table after the first `last` writes.
    #[must_use]
    pub fn after(disk: Disk, last: u64) -> Self {
        let count = usize::try_from(disk.slots).map_or(0, |slots| slots + 1);
        let mut table = Self { disk, last: 0, held: vec![0; count] };
        for _ in 0..last {
            table.write();
        }
        table
    }

    /// Number of the last write.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Where the next write goes, and the write that is there now, if there is one.
    #[must_use]
    pub fn next(&self) -> (u64, Option<u64>) {
        let slot = self.disk.slot_of(self.last + 1);
        let held = usize::try_from(slot).ok().and_then(|slot| self.held.get(slot)).copied();
        (slot, held.filter(|held| *held != 0))
    }

    /// Notes that the next write is done.
    pub fn write(&mut self) {
        let (slot, _) = self.next();
        self.last += 1;
        if let Some(held) = usize::try_from(slot).ok().and_then(|slot| self.held.get_mut(slot)) {
            *held = self.last;
        }
    }
}

/// Reads a whole disk, slot by slot, and finds whether some number of writes makes it.
#[derive(Debug)]
pub struct Verifier {
    disk: Disk,
    found: Vec<Found>,
}

/// A slot that holds something else than it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// Which slot.
    pub slot: u64,
    /// What is in it.
    pub found: Found,
    /// The write that should be in it; 0 for none.
    pub expected: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, found, expected } = self;
        write!(f, "disk slot {slot}: holds {found:?} instead of write {expected}")
    }
}

impl Verifier {
    /// Nothing read yet.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self { disk, found: Vec::new() }
    }

    /// Takes the next slot in, from slot 1 on.
    pub fn add(&mut self, block: &Block) {
        let slot = self.found.len() as u64 + 1;
        self.found.push(self.disk.read(slot, block));
    }

    /// After all slots: what the disk holds.
    ///
    /// # Errors
    /// The slots that no number of writes explains, if N is the largest number found. A slot that was not read counts
    /// as one that holds nothing.
    pub fn finish(self) -> Result<Table, Vec<Wrong>> {
        let sequences = self.found.iter().map(|found| match found {
            Found::Write(sequence) => *sequence,
            Found::Nothing | Found::Garbage => 0,
        });
        let table = Table::after(self.disk, sequences.max().unwrap_or(0));
        let found = self.found.iter().copied().chain(std::iter::repeat(Found::Nothing));
        let wrong =
            (1..).zip(table.held.iter().skip(1)).zip(found).filter_map(|((slot, expected), found)| {
                let right = match found {
                    Found::Nothing => *expected == 0,
                    Found::Write(sequence) => *expected == sequence,
                    Found::Garbage => false,
                };
                (!right).then_some(Wrong { slot, found, expected: *expected })
            });
        let wrong: Vec<Wrong> = wrong.collect();
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests;
