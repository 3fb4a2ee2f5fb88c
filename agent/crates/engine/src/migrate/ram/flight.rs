//! How many bytes of RAM may be on their way between the two QEMUs.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Bytes in flight over all channels of a migration, and their limit.
#[derive(Debug)]
pub struct InFlight {
    bytes: AtomicU64,
    limit: AtomicU64,
    changed: Notify,
}

/// Least limit: four packets of 512 KiB on each of two channels. With two, packing, travelling and unpacking waited for
/// each other on a busy host, and a gigabit link was a third full.
pub const MIN_LIMIT: u64 = 4 << 20;
/// Most: what both ends may hold in memory.
pub const MAX_LIMIT: u64 = 64 << 20;

impl Default for InFlight {
    fn default() -> Self {
        Self { bytes: AtomicU64::new(0), limit: AtomicU64::new(MIN_LIMIT * 4), changed: Notify::new() }
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

    /// Waits until `len` more fit, and counts them. A single packet always fits when nothing else is on its way.
    pub async fn take(&self, len: u64) {
        loop {
            let changed = self.changed.notified();
            let taken = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| {
                (bytes == 0 || bytes + len <= self.limit()).then_some(bytes + len)
            });
            if taken.is_ok() {
                return;
            }
            changed.await;
        }
    }

    /// The destination's QEMU has taken `len`.
    pub fn give(&self, len: u64) {
        let given = self
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| Some(bytes.saturating_sub(len)));
        debug_assert!(given.is_ok());
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
        flight.take(MIN_LIMIT * 3).await;
        let waiter = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.take(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        flight.give(MIN_LIMIT * 3);
        waiter.await.unwrap();
        assert_eq!(flight.bytes(), 1);
    }
}
