//! How many bytes of RAM may be on their way between the two QEMUs.
//!
//! The limit is one for all channels, but a channel with nothing on its way may always send a packet. QEMU's channels
//! wait for each other at the end of a pass: the receiving thread of one that has its SYNC takes no more until all have
//! theirs. Were the room full of what follows on that one, the other's SYNC would wait for room for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Bytes in flight over all channels of a migration, and their limit.
#[derive(Debug)]
pub struct InFlight {
    bytes: AtomicU64,
    /// Those of each channel.
    own: Box<[AtomicU64; CHANNELS]>,
    limit: AtomicU64,
    changed: Notify,
}

/// Numbers that a channel may have.
const CHANNELS: usize = 1 << u8::BITS;
/// Least limit: four packets of 512 KiB on each of two channels. With two, packing, travelling and unpacking waited for
/// each other on a busy host, and a gigabit link was a third full.
pub const MIN_LIMIT: u64 = 4 << 20;
/// Most: what both ends may hold in memory.
pub const MAX_LIMIT: u64 = 64 << 20;

impl Default for InFlight {
    fn default() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            own: Box::new([const { AtomicU64::new(0) }; CHANNELS]),
            limit: AtomicU64::new(MIN_LIMIT * 4),
            changed: Notify::new(),
        }
    }
}

impl InFlight {
    /// Sets the limit, kept between [`MIN_LIMIT`] and [`MAX_LIMIT`].
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes.clamp(MIN_LIMIT, MAX_LIMIT), Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes that the destination's QEMU has not taken yet.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until `len` more fit, and counts them. One packet of a channel always fits when nothing else of that channel
    /// is on its way. A channel has one taker.
    pub async fn take(&self, channel: u8, len: u64) {
        let own = &self.own[usize::from(channel)];
        loop {
            let changed = self.changed.notified();
            let is_idle = own.load(Ordering::Acquire) == 0;
            let taken = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| {
                (is_idle || bytes + len <= self.limit()).then_some(bytes + len)
            });
            if taken.is_ok() {
                own.fetch_add(len, Ordering::AcqRel);
                return;
            }
            changed.await;
        }
    }

    /// The destination's QEMU has taken `len` of a channel.
    pub fn give(&self, channel: u8, len: u64) {
        for count in [&self.own[usize::from(channel)], &self.bytes] {
            let given = count
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| Some(bytes.saturating_sub(len)));
            debug_assert!(given.is_ok());
        }
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_taker_waits_for_room_and_one_packet_always_fits() {
        let flight = Arc::new(InFlight::default());
        flight.set_limit(0);
        assert_eq!(flight.limit(), MIN_LIMIT);
        flight.take(0, MIN_LIMIT * 3).await;
        let waiter = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.take(0, 1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        flight.give(0, MIN_LIMIT * 3);
        waiter.await.unwrap();
        assert_eq!(flight.bytes(), 1);
    }

    #[tokio::test]
    async fn what_waits_on_one_channel_does_not_keep_another_waiting() {
        let flight = Arc::new(InFlight::default());
        flight.set_limit(0);
        // Channel 1 is past its SYNC, and its receiver takes nothing before channel 0 has its own.
        flight.take(1, MIN_LIMIT).await;
        let (packet, packets) = (512 << 10, 5);
        for _ in 0..packets {
            // Each is taken by its receiver before the next.
            tokio::time::timeout(std::time::Duration::from_secs(20), flight.take(0, packet)).await.unwrap();
            assert_eq!(flight.bytes(), MIN_LIMIT + packet);
            flight.give(0, packet);
        }
        assert_eq!(flight.bytes(), MIN_LIMIT);
    }
}
