//! The sender's slots: what each one holds, which packets used it, and which one is given up next.

use super::channels::{Channels, Stamp};
use super::{PAGE_BYTES, PageBytes};

/// Slots that are looked at for one that can be given up. When none of them can, the page is sent without a slot.
const MAX_CLOCK_STEPS: usize = 64;

/// A page of the guest: number of its RAM block, byte offset in it.
pub(super) type PageKey = (u32, u64);

/// The packet that is being planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) channel: u8,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The page whose last version this is.
    key: PageKey,
    /// XXH3-64 of the content.
    hash: u64,
    /// The packet that wrote it last.
    written: Packet,
    /// The packet that used it last, reading or writing.
    used: Packet,
    /// Packets of other channels than that of `used` used it, too, and were not all settled then.
    shared: bool,
    /// Used since the clock's hand passed.
    referenced: bool,
}

/// What a slot held before it was given to another page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evicted {
    pub(super) key: PageKey,
    pub(super) hash: u64,
}

pub(super) struct Slots {
    /// As long as the limit; the operating system provides the memory when a slot is first written.
    content: Vec<PageBytes>,
    /// As many as were ever used.
    slots: Vec<Slot>,
    hand: usize,
}

fn index(slot: u32) -> usize {
    slot as usize
}

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        Self { content: vec![[0; PAGE_BYTES]; index(limit)], slots: Vec::new(), hand: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.hand = 0;
    }

    pub(super) fn content(&self, slot: u32) -> &PageBytes {
        &self.content[index(slot)]
    }

    pub(super) fn content_mut(&mut self, slot: u32) -> &mut PageBytes {
        &mut self.content[index(slot)]
    }

    pub(super) fn hash(&self, slot: u32) -> u64 {
        self.slots[index(slot)].hash
    }

    /// Whether the packet may refer to the slot's content.
    pub(super) fn may_read(&self, slot: u32, packet: Packet, channels: &Channels) -> bool {
        let written = self.slots[index(slot)].written;
        written.channel == packet.channel || channels.is_settled(written.channel, written.stamp)
    }

    /// Whether the packet may replace the slot's content.
    pub(super) fn may_write(&self, slot: u32, packet: Packet, channels: &Channels) -> bool {
        let slot = &self.slots[index(slot)];
        if slot.shared {
            // Who shared it was not noted: wait for everything up to the last use.
            return channels.is_settled_everywhere(slot.used.stamp);
        }
        slot.used.channel == packet.channel || channels.is_settled(slot.used.channel, slot.used.stamp)
    }

    /// Notes that the packet refers to the slot's content.
    pub(super) fn read(&mut self, slot: u32, packet: Packet, channels: &Channels) {
        let slot = &mut self.slots[index(slot)];
        slot.shared = if slot.shared {
            !channels.is_settled_everywhere(slot.used.stamp)
        } else {
            slot.used.channel != packet.channel && !channels.is_settled(slot.used.channel, slot.used.stamp)
        };
        slot.used = packet;
        slot.referenced = true;
    }

    /// Notes that the packet replaces the slot's content, which it may. The caller puts the bytes there.
    pub(super) fn write(&mut self, slot: u32, packet: Packet, hash: u64) {
        let slot = &mut self.slots[index(slot)];
        slot.hash = hash;
        slot.written = packet;
        slot.used = packet;
        slot.shared = false;
        slot.referenced = true;
    }

    /// A slot for a page that has none, and what it held; `None` when no slot can be given up quickly.
    ///
    /// New entries start unreferenced: pages that are sent once push out each other, not those that come again.
    pub(super) fn allocate(
        &mut self,
        key: PageKey,
        hash: u64,
        packet: Packet,
        channels: &Channels,
    ) -> Option<(u32, Option<Evicted>)> {
        let fresh = Slot { key, hash, written: packet, used: packet, shared: false, referenced: false };
        if self.slots.len() < self.content.len() {
            self.slots.push(fresh);
            return Some((u32::try_from(self.slots.len() - 1).ok()?, None));
        }
        for _ in 0..MAX_CLOCK_STEPS.min(self.slots.len()) {
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            let number = u32::try_from(at).ok()?;
            if self.slots[at].referenced {
                self.slots[at].referenced = false;
            } else if self.may_write(number, packet, channels) {
                let Slot { key, hash, .. } = std::mem::replace(&mut self.slots[at], fresh);
                return Some((number, Some(Evicted { key, hash })));
            }
        }
        None
    }

    /// Bytes of pages that were stored, and of the table.
    pub(super) fn memory(&self) -> usize {
        self.slots.len() * PAGE_BYTES + self.slots.capacity() * size_of::<Slot>()
    }
}
