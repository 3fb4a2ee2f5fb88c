//! What is to be expected of a move, from what was measured: pure arithmetic.

use std::time::Duration;

use super::memory::{MIN_DOWNTIME_LIMIT, OVERHEAD, ROUND_TRIPS, patience};

/// What a move takes besides its bytes: measuring, the destination's QEMU, its start. Measured on loopback: 2 to 3 s.
const SETUP: Duration = Duration::from_secs(2);
/// Passes after which the memory is taken not to converge.
const MAX_PASSES: u64 = 64;
/// What no permille is above.
const WHOLE: u64 = 1000;

/// What is known before a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// RAM that is not all zeros, bytes.
    pub(super) ram: u64,
    /// What reduction leaves of it, in thousandths.
    pub(super) permille: u64,
    /// Bytes that the guest writes to its RAM, a second.
    pub(super) dirty_rate: u64,
    /// Bytes of the disks that travel.
    pub(super) disks: u64,
    /// Bytes that the link carries, a second.
    pub(super) link_rate: u64,
    pub(super) round_trip: Duration,
    /// Longest pause of the guest.
    pub(super) budget: Duration,
    /// Longest time for the memory.
    pub(super) timeout: Duration,
    pub(super) postcopy: bool,
}

/// What follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    pub(super) total: Duration,
    pub(super) downtime: Duration,
    pub(super) wire: u64,
    pub(super) converges: bool,
}

/// So many bytes at a rate.
fn time_of(bytes: u64, rate: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// So much time at a rate.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX)
}

impl Known {
    /// Bytes of RAM on the wire.
    fn reduced(&self, ram: u64) -> u64 {
        u64::try_from(u128::from(ram) * u128::from(self.permille) / u128::from(WHOLE)).unwrap_or(u64::MAX)
    }

    /// The disks, then pass after pass of what the guest wrote during the one before, until what is left fits the pause.
    pub(super) fn live(&self) -> Expected {
        let copied = time_of(self.disks, self.link_rate);
        let answers = self.round_trip * ROUND_TRIPS + OVERHEAD;
        let budget = self.budget.saturating_sub(answers).max(MIN_DOWNTIME_LIMIT);
        let (mut left, mut elapsed, mut wire) = (self.ram, Duration::ZERO, self.disks);
        let expected = |left: u64, elapsed: Duration, wire: u64, converges| {
            let last =
                if self.postcopy { Duration::ZERO } else { time_of(self.reduced(left), self.link_rate) };
            let after = if converges { time_of(self.reduced(left), self.link_rate) } else { Duration::ZERO };
            Expected {
                total: SETUP + copied + elapsed + after + answers,
                downtime: if converges { answers + last } else { self.budget },
                wire: wire.saturating_add(if converges { self.reduced(left) } else { 0 }),
                converges,
            }
        };
        for pass in 1..=MAX_PASSES {
            let takes = time_of(self.reduced(left), self.link_rate);
            wire = wire.saturating_add(self.reduced(left));
            elapsed += takes;
            left = bytes_in(takes, self.dirty_rate).min(self.ram);
            let allowed = budget / (1 << patience(pass, elapsed, self.timeout));
            if self.postcopy || time_of(self.reduced(left), self.link_rate) <= allowed {
                return expected(left, elapsed, wire, true);
            }
            if elapsed > self.timeout {
                break;
            }
        }
        expected(left, elapsed, wire, false)
    }

    /// The disks once. What the guest writes meanwhile and its boot are not known.
    pub(super) fn copy(&self, stops: bool) -> Expected {
        Expected {
            total: SETUP + time_of(self.disks, self.link_rate),
            downtime: if stops { self.budget } else { Duration::ZERO },
            wire: self.disks,
            converges: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// An idle guest of 200 MiB with a disk of 100 MiB over 100 MiB/s.
    const IDLE: Known = Known {
        ram: 200 * MIB,
        permille: WHOLE,
        dirty_rate: 0,
        disks: 100 * MIB,
        link_rate: 100 * MIB,
        round_trip: Duration::from_millis(1),
        budget: Duration::from_millis(300),
        timeout: Duration::from_secs(600),
        postcopy: false,
    };

    #[test]
    fn an_idle_guest_takes_one_pass_and_the_answers() {
        let answers = Duration::from_millis(3) + OVERHEAD;
        let expected = IDLE.live();
        let total = SETUP + Duration::from_secs(3) + answers;
        assert_eq!(expected, Expected { total, downtime: answers, wire: 300 * MIB, converges: true });
        // Half of it is saved by reduction: less time, fewer bytes.
        let half = Known { permille: WHOLE / 2, ..IDLE }.live();
        assert_eq!((half.wire, half.total), (200 * MIB, SETUP + Duration::from_secs(2) + answers));
    }

    #[test]
    fn a_busy_guest_takes_more_passes_and_a_longer_pause() {
        let expected = Known { dirty_rate: 50 * MIB, ..IDLE }.live();
        assert!(expected.converges, "{expected:?}");
        // 200, 100, 50 and so on.
        assert!((480 * MIB..=500 * MIB).contains(&expected.wire), "{expected:?}");
        assert!(expected.downtime > IDLE.live().downtime && expected.downtime <= IDLE.budget, "{expected:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_does_not_converge() {
        let fast = Known { dirty_rate: 150 * MIB, ..IDLE };
        assert!(!fast.live().converges);
        assert!(Known { permille: 100, ..fast }.live().converges, "reduction makes the link wider");
        let expected = Known { postcopy: true, ..fast }.live();
        assert!(expected.converges && expected.downtime < Duration::from_millis(50), "{expected:?}");
        // Nor does one whose first pass takes all the time.
        assert!(!Known { timeout: Duration::from_secs(1), dirty_rate: 99 * MIB, ..IDLE }.live().converges);
    }

    #[test]
    fn copies_count_the_disks_and_nothing_overflows() {
        assert_eq!(IDLE.copy(true).total, SETUP + Duration::from_secs(1));
        assert_eq!((IDLE.copy(true).downtime, IDLE.copy(false).downtime), (IDLE.budget, Duration::ZERO));
        let absurd = Known { ram: u64::MAX, disks: u64::MAX, dirty_rate: u64::MAX, link_rate: 0, ..IDLE };
        assert!(!absurd.live().converges);
        assert_eq!(absurd.copy(true).wire, u64::MAX);
    }
}
