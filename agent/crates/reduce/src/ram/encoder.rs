//! The sender's decisions: what each page is sent as.

use std::collections::HashMap;
use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use super::channels::Channels;
use super::delta::{Deltas, Difference};
use super::dictionary::Dictionary;
use super::layout::Operation;
use super::pack::{PacketStats, Plan};
use super::slots::{Packet, PageKey, Slots};
use super::{MAX_PAGES, MAX_SLOTS, PAGE_BYTES, PageBytes};
use crate::error::{Kind, Op, ReduceError};
use crate::zero::is_zero;

/// A page to send.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Number of its RAM block.
    pub block: u32,
    /// Byte offset in the block.
    pub offset: u64,
    /// Its content.
    pub bytes: &'a PageBytes,
}

/// The pages of one packet, looked at but not decided on: needs no [`Encoder`], so no lock.
#[derive(Debug)]
pub struct Batch<'a> {
    pages: Vec<Page<'a>>,
    /// XXH3-64 of each page, or `None` when all its bytes are zero.
    hashes: Vec<Option<u64>>,
}

impl<'a> Batch<'a> {
    /// Takes the pages of a packet, in the order in which the receiver gets them.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] for no page or more than [`MAX_PAGES`].
    pub fn new(pages: Vec<Page<'a>>) -> Result<Self, ReduceError> {
        if pages.is_empty() || pages.len() > MAX_PAGES {
            let what = format!("{} pages for a packet of 1 to {MAX_PAGES}", pages.len());
            return Err(ReduceError::new(Kind::WrongLength, Op::EncodePages, what));
        }
        let hash = |page: &Page<'_>| (!is_zero(page.bytes)).then(|| xxh3_64(page.bytes));
        let hashes = pages.iter().map(hash).collect();
        Ok(Self { pages, hashes })
    }
}

/// The sender's half for all channels of an epoch: which slot holds what, and which packets are decoded.
///
/// Calls only with decisions; the CPU work around them is in [`Batch::new`] and [`Plan::pack`].
pub struct Encoder {
    limit: u32,
    slots: Slots,
    channels: Channels,
    /// The slot that holds the last version of a page.
    pages: HashMap<PageKey, u32>,
    dictionary: Dictionary,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({} of {} slots, {} bytes)", self.pages.len(), self.limit, self.memory())
    }
}

impl Encoder {
    /// An encoder with `slots` empty slots of 4 KiB, as many as the receiver's [`super::Decoder`] has. Zero slots
    /// leave zero pages and compression. More than [`MAX_SLOTS`] count as that many.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let limit = slots.min(MAX_SLOTS);
        Self {
            limit,
            slots: Slots::new(limit),
            channels: Channels::default(),
            pages: HashMap::new(),
            dictionary: Dictionary::new(limit),
        }
    }

    /// Decides on the pages of packet `number` of `channel` and takes them into the slots. The numbers of a channel
    /// rise, gaps are allowed. The plan must reach the receiver (see the module), or both sides be reset.
    ///
    /// # Errors
    /// [`Kind::Refused`] when the number is not above the channel's last one; nothing has changed then.
    pub fn plan<'a>(&mut self, channel: u8, number: u64, batch: Batch<'a>) -> Result<Plan<'a>, ReduceError> {
        let stamp = self.channels.begin(channel, number)?;
        let Batch { pages, hashes } = batch;
        let mut plan = Plan::new(pages.len());
        let mut used_slots = false;
        for (page, hash) in pages.iter().zip(hashes) {
            let operation = match (hash, stamp) {
                (None, _) => Operation::Zero,
                (Some(_), None) => Operation::Packed { into: None },
                (Some(hash), Some(stamp)) => {
                    self.decide(page, hash, Packet { channel, stamp }, &mut plan.deltas, &mut plan.stats)
                }
            };
            match operation {
                Operation::Zero => plan.stats.zero += 1,
                Operation::Packed { .. } | Operation::Loose { .. } => {
                    plan.stats.plain += 1;
                    plan.pages.push(page.bytes);
                }
                Operation::Delta { .. } => plan.stats.delta += 1,
                // Counted where it is known whose content it is.
                Operation::Copy { .. } => {}
            }
            used_slots |= !matches!(operation, Operation::Zero | Operation::Packed { into: None });
            plan.operations.push(operation);
        }
        if stamp.is_some() && !used_slots {
            self.channels.withdraw(channel);
        }
        Ok(plan)
    }

    /// The receiver has decoded all packets of `channel` up to `number`. A number below an earlier one is ignored.
    ///
    /// # Errors
    /// [`Kind::Refused`] when no packet with such a number was planned on the channel.
    pub fn acknowledge(&mut self, channel: u8, number: u64) -> Result<(), ReduceError> {
        self.channels.acknowledge(channel, number)
    }

    /// Starts an epoch: all slots are empty, all channels unused.
    pub fn reset(&mut self) {
        self.slots.clear();
        self.channels = Channels::default();
        self.pages.clear();
        self.dictionary.clear();
    }

    /// Bytes of the slots that are used and of all tables.
    #[must_use]
    pub fn memory(&self) -> usize {
        let entry = size_of::<(PageKey, u32)>() + 1;
        self.slots.memory()
            + self.channels.memory()
            + self.dictionary.memory()
            + self.pages.capacity() * entry
    }

    /// What a page that is not zero is sent as, in this order: nothing new, like another page, a small delta, whole.
    fn decide(
        &mut self,
        page: &Page<'_>,
        hash: u64,
        packet: Packet,
        deltas: &mut Deltas,
        stats: &mut PacketStats,
    ) -> Operation {
        let key = (page.block, page.offset);
        let own = self.pages.get(&key).copied();
        let base = own.filter(|slot| self.slots.may_read(*slot, packet, &self.channels));
        let before = deltas.end();
        let difference =
            base.map_or(Difference::Large, |slot| deltas.push(self.slots.content(slot), page.bytes));
        if let (Some(slot), Difference::None) = (base, difference) {
            self.slots.read(slot, packet, &self.channels);
            stats.same += 1;
            return Operation::Copy { slot };
        }
        if let Some(slot) = self.find_equal(page.bytes, hash, packet) {
            deltas.truncate(before);
            self.slots.read(slot, packet, &self.channels);
            stats.copied += 1;
            return Operation::Copy { slot };
        }
        let writable = own.filter(|slot| self.slots.may_write(*slot, packet, &self.channels));
        if let (Some(slot), Difference::Small) = (base, difference) {
            self.slots.read(slot, packet, &self.channels);
            if writable.is_some() {
                self.replace(slot, page.bytes, hash, packet);
            }
            return Operation::Delta { slot, keep: writable.is_some() };
        }
        if let Some(slot) = writable {
            self.replace(slot, page.bytes, hash, packet);
            return Operation::Packed { into: writable };
        }
        if own.is_some() {
            // Its slot cannot be written now; the old version stays a base for later.
            return Operation::Packed { into: None };
        }
        Operation::Packed { into: self.store(key, page.bytes, hash, packet) }
    }

    /// A slot with exactly these bytes that the packet may read.
    fn find_equal(&self, bytes: &PageBytes, hash: u64, packet: Packet) -> Option<u32> {
        self.dictionary.candidates(hash).find(|slot| {
            self.slots.may_read(*slot, packet, &self.channels) && self.slots.content(*slot) == bytes
        })
    }

    /// Puts a new version of a page into its slot.
    fn replace(&mut self, slot: u32, bytes: &PageBytes, hash: u64, packet: Packet) {
        self.dictionary.remove(self.slots.hash(slot), slot);
        self.slots.write(slot, packet, hash);
        *self.slots.content_mut(slot) = *bytes;
        self.dictionary.insert(hash, slot);
    }

    /// Puts a page into a slot of its own, when there is one.
    fn store(&mut self, key: PageKey, bytes: &PageBytes, hash: u64, packet: Packet) -> Option<u32> {
        let (slot, evicted) = self.slots.allocate(key, hash, packet, &self.channels)?;
        if let Some(evicted) = evicted {
            self.pages.remove(&evicted.key);
            self.dictionary.remove(evicted.hash, slot);
        }
        *self.slots.content_mut(slot) = *bytes;
        self.dictionary.insert(hash, slot);
        self.pages.insert(key, slot);
        Some(slot)
    }
}

const _: () = assert!(PAGE_BYTES == 4096, "QEMU's target page on the supported hosts");
