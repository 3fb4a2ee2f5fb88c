//! Counters of one transfer, read by whoever shows it while its owner task counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters, in bytes unless said otherwise. Relaxed: nobody decides anything by them.
        #[derive(Debug, Default)]
        pub struct Progress { $($(#[$doc])* pub $name: AtomicU64),* }

        /// The counters at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64),* }

        impl Progress {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}
counters! {
    /// Length of the volume.
    size,
    /// Settled: durable at the receiver.
    settled,
    /// Payload that was sent, or arrived.
    payload,
    /// Everything on the wire in both directions, of all attempts that ended.
    wire_before,
    /// Everything on the wire in both directions, of this attempt.
    wire,
    /// Settled because it is zero.
    zero,
    /// Settled because the target held it at the same place.
    same,
    /// Chunks that went as references.
    dedup,
    /// Payload of extents that had been sent before: lost with a lane, refused, or unacknowledged at a crash.
    resent,
    /// Written to the target.
    written,
    /// Attempts so far, as a count.
    attempts,
    /// Time in the last commit, microseconds.
    commit_micros,
    /// Round trip, microseconds; 0 when unknown.
    rtt_micros,
    /// Congestion window.
    congestion_window,
    /// Packets lost, as a count.
    lost_packets,
    /// Length of the journal.
    journal,
}

impl Progress {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn set(counter: &AtomicU64, n: u64) {
        counter.store(n, Ordering::Relaxed);
    }

    /// An attempt ended: its wire bytes are counted for good.
    pub(crate) fn end_attempt(&self) {
        let wire = self.wire.swap(0, Ordering::Relaxed);
        self.wire_before.fetch_add(wire, Ordering::Relaxed);
    }

    pub(crate) fn note(&self, stats: &tunnel::TunnelStats) {
        Self::set(&self.wire, stats.wire_sent + stats.wire_received);
        Self::set(&self.congestion_window, stats.congestion_window);
        Self::set(&self.lost_packets, stats.lost_packets);
        let micros = stats.rtt.map_or(0, |rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        Self::set(&self.rtt_micros, micros);
    }
}

impl Snapshot {
    /// Everything on the wire so far.
    #[must_use]
    pub fn wire_total(&self) -> u64 {
        self.wire_before + self.wire
    }
}
