//! Whether a link can be used, by what probes found.

use super::{Measured, State};

/// Probes in a row that change a state.
const ROW: usize = 3;
/// What is worse than twice the usual counts only above this: loss of a million, and a round trip in microseconds.
const LEAST_LOSS_PPM: u32 = 10_000;
const LEAST_RTT_US: u64 = 2_000;

/// What is usual on a link: medians of all that was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usual {
    rtt_us: u64,
    loss_ppm: u32,
    rate: Option<u64>,
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

impl Usual {
    fn of(probes: &[Option<Measured>]) -> Option<Self> {
        let good = || probes.iter().flatten();
        Some(Self {
            rtt_us: median(good().map(|measured| measured.rtt_us))?,
            loss_ppm: median(good().map(|measured| measured.loss_ppm))?,
            rate: median(good().filter_map(|measured| measured.rate)),
        })
    }

    fn is_worse(&self, measured: &Measured) -> bool {
        let Self { rtt_us, loss_ppm, .. } = *self;
        measured.rtt_us > rtt_us.saturating_mul(2).max(LEAST_RTT_US)
            || measured.loss_ppm > loss_ppm.saturating_mul(2).max(LEAST_LOSS_PPM)
    }

    fn is_slower(&self, rate: u64) -> bool {
        self.rate.is_some_and(|usual| rate.saturating_mul(2) < usual)
    }
}

impl State {
    /// The state after the last probe; all that are remembered, oldest first, those that failed as none.
    ///
    /// Three failures in a row are needed for `Down`, three good probes to be back from it, three worse than twice the usual
    /// for `Degraded`, and three that are not to be back. The rate is tried seldom: of it the last three that there are count.
    #[must_use]
    pub fn next(self, probes: &[Option<Measured>]) -> Self {
        let last = &probes[probes.len().saturating_sub(ROW)..];
        let Some(usual) = Usual::of(probes) else {
            // Nothing ever came through.
            return if last.len() == ROW { Self::Down } else { self };
        };
        let full = last.len() == ROW;
        if full && last.iter().all(Option::is_none) {
            return Self::Down;
        }
        let all =
            |is: &dyn Fn(&Measured) -> bool| full && last.iter().all(|probe| probe.as_ref().is_some_and(is));
        let rates: Vec<u64> =
            probes.iter().rev().flatten().filter_map(|probe| probe.rate).take(ROW).collect();
        let slow = rates.len() == ROW && rates.iter().all(|rate| usual.is_slower(*rate));
        let worse = all(&|probe| usual.is_worse(probe)) || (slow && all(&|_| true));
        let good = all(&|probe| !usual.is_worse(probe)) && !slow;
        match self {
            Self::Unknown if last.last().is_some_and(Option::is_some) => Self::Up,
            _ if worse => Self::Degraded,
            Self::Degraded | Self::Down if good => Self::Up,
            // Back, of mixed quality.
            Self::Down if all(&|_| true) => Self::Degraded,
            _ => self,
        }
    }
}
