//! What is to be expected of a move, from what was measured: pure arithmetic.

use std::time::Duration;

use super::memory::{MIN_DOWNTIME_LIMIT, OVERHEAD, ROUND_TRIPS, patience};

/// What the destination takes to make room: its preflight and its QEMU's start.
const PREPARE: Duration = Duration::from_millis(500);
/// What a mirror takes besides its bytes, until QEMU calls it ready.
const MIRROR: Duration = Duration::from_millis(500);
/// And in round trips: what the guest writes meanwhile is begun again and again until nothing of it is under way.
const MIRROR_TRIPS: u32 = 60;
/// The hosts' own part of a pause: to load the devices' states, to compare the disks, to make fence and permit durable. On
/// two cores that both hosts share, with emulated guests; a host learns its own from the moves that it has made.
pub(super) const HOSTS: Duration = Duration::from_millis(85);
/// Round trips of a pause, in tenths: messages that wait for one another, and what was under way when the guest stopped.
const PAUSE_TRIPS: u32 = 22;
/// How much slower the whole way of a page is than reading and reducing it by one thread: QEMU's part at both ends and
/// restoring it.
const WAY: u64 = 2;
/// Passes after which the memory is taken not to converge.
const MAX_PASSES: u64 = 64;
/// What no permille is above.
pub(super) const WHOLE: u64 = 1000;

/// What is known before a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// RAM that is not all zeros, bytes.
    pub(super) ram: u64,
    /// What reduction leaves of it, in thousandths.
    pub(super) permille: u64,
    /// Bytes that the guest writes to its RAM, a second.
    pub(super) dirty_rate: u64,
    /// What reduction leaves of those when they are sent again, in thousandths.
    pub(super) again: u64,
    /// Bytes of the disks that travel.
    pub(super) disks: u64,
    /// Bytes that travel of what the guest writes to its disks, a second.
    pub(super) disk_writes: u64,
    /// RAM with content that one thread of this host reads and reduces, bytes a second, if that was tried.
    pub(super) speed: Option<u64>,
    /// Bytes that the link carries, a second.
    pub(super) link_rate: u64,
    pub(super) round_trip: Duration,
    /// Longest pause of the guest.
    pub(super) budget: Duration,
    /// Longest time for the memory.
    pub(super) timeout: Duration,
    pub(super) postcopy: bool,
    /// The hosts' own part of the pause.
    pub(super) hosts: Duration,
    /// Since the move began.
    pub(super) elapsed: Duration,
}

/// What follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    pub(super) total: Duration,
    /// What of that is the memory's part.
    pub(super) memory: Duration,
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

/// So many thousandths of it.
pub(super) fn part(bytes: u64, permille: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(permille) / u128::from(WHOLE)).unwrap_or(u64::MAX)
}

impl Known {
    /// What the link carries of the memory: the guest's writes to its disks go first.
    fn rate(&self) -> u64 {
        self.link_rate.saturating_sub(self.disk_writes).max(self.link_rate / 10).max(1)
    }

    /// How long RAM takes, of which reduction leaves so much: over the link, or through both hosts if that is slower, as
    /// they work while the link carries.
    fn takes(&self, ram: u64, permille: u64) -> Duration {
        let work = self.speed.map_or(Duration::ZERO, |speed| time_of(ram, speed / WAY));
        time_of(part(ram, permille), self.rate()).max(work)
    }

    /// The disks, then pass after pass of what the guest wrote during the one before, until what is left fits the pause.
    pub(super) fn live(&self) -> Expected {
        let copied = if self.disks == 0 && self.disk_writes == 0 {
            Duration::ZERO
        } else {
            MIRROR + self.round_trip * MIRROR_TRIPS + time_of(self.disks, self.rate())
        };
        // What QEMU is allowed is what the engine tells it.
        let kept = self.round_trip * ROUND_TRIPS + OVERHEAD;
        let budget = self.budget.saturating_sub(kept).max(MIN_DOWNTIME_LIMIT);
        let answers = self.hosts + self.round_trip * PAUSE_TRIPS / 10;
        let (mut left, mut permille) = (self.ram, self.permille);
        let (mut elapsed, mut wire) = (Duration::ZERO, self.disks);
        let expected = |left: u64, elapsed: Duration, wire: u64, converges| {
            let rest = self.takes(left, self.again);
            let last = if self.postcopy { Duration::ZERO } else { rest };
            let after = if converges { rest } else { Duration::ZERO };
            let writes = bytes_in(copied + elapsed, self.disk_writes);
            Expected {
                total: self.elapsed + PREPARE + copied + elapsed + after + answers,
                memory: elapsed + after,
                downtime: if converges { answers + last } else { self.budget },
                wire: wire.saturating_add(writes).saturating_add(if converges {
                    part(left, self.again)
                } else {
                    0
                }),
                converges,
            }
        };
        for pass in 1..=MAX_PASSES {
            let takes = self.takes(left, permille);
            wire = wire.saturating_add(part(left, permille));
            elapsed += takes;
            left = bytes_in(takes, self.dirty_rate).min(self.ram);
            permille = self.again;
            let allowed = budget / (1 << patience(pass, elapsed, self.timeout));
            if self.postcopy || self.takes(left, permille) <= allowed {
                return expected(left, elapsed, wire, true);
            }
            if elapsed > self.timeout {
                break;
            }
        }
        expected(left, elapsed, wire, false)
    }

    /// The disks once, with what the guest writes to them meanwhile. Its boot is not known.
    pub(super) fn copy(&self, stops: bool) -> Expected {
        let takes = time_of(self.disks, self.rate());
        Expected {
            total: self.elapsed + PREPARE + takes,
            memory: Duration::ZERO,
            downtime: if stops { self.budget } else { Duration::ZERO },
            wire: self.disks.saturating_add(bytes_in(takes, self.disk_writes)),
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
        again: WHOLE,
        disks: 100 * MIB,
        disk_writes: 0,
        speed: None,
        link_rate: 100 * MIB,
        round_trip: Duration::from_millis(1),
        budget: Duration::from_millis(300),
        timeout: Duration::from_secs(600),
        postcopy: false,
        hosts: HOSTS,
        elapsed: Duration::from_millis(400),
    };

    /// What is expected besides bytes.
    fn besides() -> Duration {
        IDLE.elapsed + PREPARE + MIRROR + IDLE.round_trip * MIRROR_TRIPS
    }

    #[test]
    fn an_idle_guest_takes_one_pass_and_the_answers() {
        let answers = Duration::from_micros(2_200) + HOSTS;
        let expected = IDLE.live();
        let total = besides() + time_of(300 * MIB, IDLE.rate()) + answers;
        assert_eq!((expected.downtime, expected.wire, expected.converges), (answers, 300 * MIB, true));
        assert!(expected.total.abs_diff(total) < Duration::from_millis(1), "{expected:?}, not {total:?}");
        // Half of it is saved by reduction: less time, fewer bytes.
        let half = Known { permille: WHOLE / 2, ..IDLE }.live();
        assert_eq!(half.wire, 200 * MIB);
        assert!(half.total < total - Duration::from_millis(900), "{half:?}");
        // A slow host, and a guest that writes to its disks.
        let slow = Known { speed: Some(100 * MIB), ..IDLE }.live();
        // 200 MiB at half of 100 MiB/s take 4 s instead of 2.
        assert!(slow.total > total + Duration::from_millis(1900), "{slow:?}");
        let writes = Known { disk_writes: 10 * MIB, ..IDLE }.live();
        assert!(writes.wire > 335 * MIB && writes.total > total, "{writes:?}");
    }

    #[test]
    fn a_busy_guest_takes_more_passes_and_a_longer_pause() {
        let expected = Known { dirty_rate: 50 * MIB, ..IDLE }.live();
        assert!(expected.converges, "{expected:?}");
        // 200, 100, 50 and so on.
        assert!((490 * MIB..=500 * MIB).contains(&expected.wire), "{expected:?}");
        assert!(expected.downtime > IDLE.live().downtime && expected.downtime <= IDLE.budget, "{expected:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_does_not_converge() {
        let fast = Known { dirty_rate: 150 * MIB, ..IDLE };
        assert!(!fast.live().converges);
        assert!(Known { again: 100, ..fast }.live().converges, "reduction makes the link wider");
        let expected = Known { postcopy: true, ..fast }.live();
        assert!(expected.converges && expected.downtime < HOSTS + Duration::from_millis(5), "{expected:?}");
        // Nor does one whose first pass takes all the time.
        assert!(!Known { timeout: Duration::from_secs(1), dirty_rate: 99 * MIB, ..IDLE }.live().converges);
    }

    #[test]
    fn copies_count_the_disks_and_nothing_overflows() {
        let copied = IDLE.elapsed + PREPARE + time_of(100 * MIB, IDLE.rate());
        assert_eq!((IDLE.copy(true).total, IDLE.copy(true).wire), (copied, 100 * MIB));
        assert_eq!((IDLE.copy(true).downtime, IDLE.copy(false).downtime), (IDLE.budget, Duration::ZERO));
        let absurd = Known { ram: u64::MAX, disks: u64::MAX, dirty_rate: u64::MAX, link_rate: 0, ..IDLE };
        assert!(!absurd.live().converges);
        assert_eq!(absurd.copy(true).wire, u64::MAX);
    }
}
