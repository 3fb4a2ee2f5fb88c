//! When the rounds of a warm copy are over: a decision, nothing else.

use std::time::Duration;

/// Most rounds over the disks while the guest runs. What did not converge until then will not.
const MOST: u32 = 12;
/// Rounds without progress that are enough to know.
const STALLED: u32 = 2;

/// What follows a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Next {
    /// Another round while the guest runs.
    Again,
    /// Stop the guest and copy the rest.
    Last {
        /// The rest fits the allowed pause. If not, it does not become less.
        fits: bool,
    },
}

/// How the rounds went so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in super::super) struct Rounds {
    done: u32,
    bytes: u64,
    took: Duration,
    stalled: u32,
}

impl Rounds {
    /// Rounds that are done.
    pub(in super::super) fn done(&self) -> u32 {
        self.done
    }

    /// Bytes of disk that pass in a second, over all rounds; none before anything passed.
    pub(in super::super) fn rate(&self) -> Option<u64> {
        let millis = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1);
        (self.bytes > 0).then(|| (self.bytes.saturating_mul(1000) / millis).max(1))
    }

    /// How long it takes to copy so much. Nothing, before anything passed: the disks were empty.
    pub(in super::super) fn time_for(&self, bytes: u64) -> Duration {
        self.rate().map_or(Duration::ZERO, |rate| Duration::from_millis(bytes.saturating_mul(1000) / rate))
    }

    /// Whether another round is made for what was written while the guest's stop waits.
    pub(in super::super) fn is_worth_it(&self, dirty: u64, budget: Duration) -> bool {
        self.time_for(dirty) > budget
    }

    /// Notes a round: what it copied in which time, and what the guest has written since it began.
    pub(in super::super) fn note(
        &mut self,
        copied: u64,
        took: Duration,
        dirty: u64,
        budget: Duration,
    ) -> Next {
        self.done += 1;
        self.bytes = self.bytes.saturating_add(copied);
        self.took += took;
        // The first round copies everything: what comes after it says nothing about progress yet.
        let progress = self.done == 1 || dirty < copied - copied / 8;
        self.stalled = if progress { 0 } else { self.stalled + 1 };
        if self.time_for(dirty) <= budget {
            Next::Last { fits: true }
        } else if self.stalled >= STALLED || self.done >= MOST {
            Next::Last { fits: false }
        } else {
            Next::Again
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rounds_go_on_until_the_rest_fits() {
        let mut rounds = Rounds::default();
        // 100 MiB/s; 100 ms are 10 MiB.
        let budget = Duration::from_millis(100);
        assert_eq!(rounds.note(1000 * MIB, SECOND * 10, 80 * MIB, budget), Next::Again);
        assert_eq!(rounds.time_for(50 * MIB), Duration::from_millis(500));
        assert_eq!(rounds.note(80 * MIB, SECOND * 8 / 10, 11 * MIB, budget), Next::Again);
        assert_eq!(rounds.note(11 * MIB, SECOND / 10, 9 * MIB, budget), Next::Last { fits: true });
        assert_eq!(rounds.done(), 3);
    }

    #[test]
    fn a_guest_that_writes_faster_is_stopped_all_the_same() {
        let mut rounds = Rounds::default();
        let budget = Duration::from_millis(1);
        let all: Vec<_> = (0..3).map(|_| rounds.note(100 * MIB, SECOND, 100 * MIB, budget)).collect();
        assert_eq!(all, [Next::Again, Next::Again, Next::Last { fits: false }]);
    }

    #[test]
    fn while_it_waits_a_round_is_made_when_the_rest_does_not_fit_any_more() {
        let (mut rounds, budget) = (Rounds::default(), Duration::from_millis(100));
        assert_eq!(rounds.note(100 * MIB, SECOND, MIB, budget), Next::Last { fits: true });
        assert!(!rounds.is_worth_it(10 * MIB, budget) && rounds.is_worth_it(11 * MIB, budget));
        // However long it waits: rounds that were made are no reason against another.
        for _ in 0..2 * MOST {
            assert!(matches!(rounds.note(11 * MIB, SECOND / 10, MIB, budget), Next::Last { .. }));
        }
        assert!(rounds.is_worth_it(11 * MIB, budget));
    }

    #[test]
    fn an_empty_disk_needs_one_round() {
        assert_eq!(Rounds::default().note(0, SECOND, 0, Duration::ZERO), Next::Last { fits: true });
        assert_eq!(Rounds::default().rate(), None);
    }

    proptest! {
        #[test]
        fn it_ends(
            rounds in proptest::collection::vec((any::<u64>(), 0..1_000_000_u64, any::<u64>()), 12),
            budget in 0..10_000_u64,
        ) {
            let mut state = Rounds::default();
            let ended = rounds.into_iter().any(|(copied, millis, dirty)| {
                let took = Duration::from_millis(millis);
                state.note(copied, took, dirty, Duration::from_millis(budget)) != Next::Again
            });
            prop_assert!(ended);
        }
    }
}
