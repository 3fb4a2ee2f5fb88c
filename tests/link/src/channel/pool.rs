//! The packets under way, in buffers that are used again: after a warm-up nothing is allocated.

/// Most memory that one direction holds in packets. 256 MiB is 2 s at 1 Gbit/s, ten times what our cases need; a
/// link that wants more drops, and counts it.
pub const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;

/// Least room that a buffer is made with; smaller MTUs would only buy more bookkeeping.
const MIN_BUFFER: usize = 256;

/// The place of a packet in the pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Slot(usize);

#[derive(Debug)]
pub(super) struct Pool {
    packets: Vec<Vec<u8>>,
    free: Vec<usize>,
    capacity: usize,
    limit: usize,
}

impl Pool {
    /// A pool for packets of up to `mtu` bytes.
    pub(super) fn new(mtu: u16) -> Self {
        let capacity = usize::from(mtu).max(MIN_BUFFER);
        Self { packets: Vec::new(), free: Vec::new(), capacity, limit: MAX_HELD_BYTES / capacity }
    }

    /// Keeps a copy of `packet`, if there is room.
    pub(super) fn put(&mut self, packet: &[u8]) -> Option<Slot> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.packets.len() < self.limit => {
                self.packets.push(Vec::with_capacity(self.capacity));
                self.packets.len() - 1
            }
            None => return None,
        };
        self.packets[at].clear();
        self.packets[at].extend_from_slice(packet);
        Some(Slot(at))
    }

    /// Keeps a second copy of what is in `slot`, if there is room.
    pub(super) fn copy(&mut self, slot: Slot) -> Option<Slot> {
        let original = std::mem::take(&mut self.packets[slot.0]);
        let copy = self.put(&original);
        self.packets[slot.0] = original;
        copy
    }

    pub(super) fn get(&self, slot: Slot) -> &[u8] {
        &self.packets[slot.0]
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.packets[slot.0]
    }

    pub(super) fn free(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_HELD_BYTES, Pool};

    #[test]
    fn slots_are_used_again() {
        let mut pool = Pool::new(1500);
        let first = pool.put(b"one").unwrap();
        let second = pool.copy(first).unwrap();
        pool.get_mut(first)[0] = b'O';
        assert_eq!((pool.get(first), pool.get(second)), (&b"One"[..], &b"one"[..]));
        pool.free(first);
        assert_eq!(pool.put(b"three").unwrap(), first);
        assert_eq!(pool.get(first), b"three");
    }

    #[test]
    fn memory_is_bounded() {
        let mut pool = Pool::new(u16::MAX);
        let limit = MAX_HELD_BYTES / usize::from(u16::MAX);
        let slots: Vec<_> = (0..limit).map(|_| pool.put(b"x").unwrap()).collect();
        assert_eq!(pool.put(b"x"), None);
        assert_eq!(pool.copy(slots[0]), None);
        assert_eq!(pool.get(slots[0]), b"x");
        pool.free(slots[7]);
        assert_eq!(pool.put(b"y"), Some(slots[7]));
    }
}
