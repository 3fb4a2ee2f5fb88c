//! What both ends of an interrupted post-copy agree on: epochs, the numbers of their channels, and words for it.

use std::sync::atomic::Ordering;

use hypervisor::qmp::words::MigrationStatus;

use super::sender::RamCounters;
use crate::migrate::status::Postcopy;

/// Channel numbers of an epoch; the first connections of a migration are epoch 0.
const CHANNELS: u16 = 16;
/// Epochs before they begin anew at 1.
const EPOCHS: u16 = 4095;
/// Priority of the stream that everything comes in sooner or later: behind the pages that the guest waits for.
pub const BACKGROUND: i32 = -1;

/// The epoch after this one.
#[must_use]
pub fn next_epoch(epoch: u16) -> u16 {
    epoch % EPOCHS + 1
}

/// The number of a channel in an epoch; `number` counts its connections from 1.
#[must_use]
pub fn channel(epoch: u16, number: u16) -> u16 {
    epoch.wrapping_mul(CHANNELS).wrapping_add(number)
}

/// The epoch that a channel belongs to.
#[must_use]
pub fn epoch_of(channel: u16) -> u16 {
    channel / CHANNELS
}

/// The guest runs at the destination, and part of its memory is at the source alone.
#[must_use]
pub fn in_postcopy(status: &MigrationStatus) -> bool {
    shown(status).is_some()
}

/// How QEMU's word is shown.
#[must_use]
pub fn shown(status: &MigrationStatus) -> Option<Postcopy> {
    match status {
        MigrationStatus::PostcopyActive => Some(Postcopy::Active),
        MigrationStatus::PostcopyPaused => Some(Postcopy::Paused),
        MigrationStatus::PostcopyRecoverSetup | MigrationStatus::PostcopyRecover => {
            Some(Postcopy::Recovering)
        }
        _ => None,
    }
}

impl RamCounters {
    /// Goes on from where an earlier sender of the same migration was.
    pub fn carry_over(&self, before: &Self) {
        let pairs = [
            (&self.plain, &before.plain),
            (&self.wire, &before.wire),
            (&self.taken, &before.taken),
            (&self.pages, &before.pages),
            (&self.reduced, &before.reduced),
            (&self.again, &before.again),
            (&self.again_wire, &before.again_wire),
            (&self.literal, &before.literal),
        ];
        for (here, before) in pairs {
            here.fetch_add(before.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_an_epoch_are_its_own() {
        assert_eq!((epoch_of(1), epoch_of(2)), (0, 0), "of the first connections");
        let mut epoch = 0;
        for _ in 0..=EPOCHS {
            epoch = next_epoch(epoch);
            assert!((1..=EPOCHS).contains(&epoch));
            assert_eq!((epoch_of(channel(epoch, 1)), epoch_of(channel(epoch, 2))), (epoch, epoch));
        }
        assert_eq!(epoch, 1, "they begin anew");
    }

    #[test]
    fn counters_go_on() {
        let (before, after) = (RamCounters::default(), RamCounters::default());
        before.wire.store(7, Ordering::Relaxed);
        after.wire.store(1, Ordering::Relaxed);
        after.carry_over(&before);
        assert_eq!(after.wire.load(Ordering::Relaxed), 8);
    }
}
