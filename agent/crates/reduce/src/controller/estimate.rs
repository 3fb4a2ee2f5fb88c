//! What each rung costs: measured where it was used lately, otherwise a table scaled by what was measured nearby.

use std::time::Duration;

use super::{LADDER, Sample};

/// CPU seconds a byte of each rung on one core of a 2024 server, on a Debian root file system in 64 KiB blocks.
/// Only the proportions matter once one rung was measured.
const TABLE: [f64; LADDER.len()] =
    [0.0, 1.0 / 0.63e9, 1.0 / 0.51e9, 1.0 / 0.47e9, 1.0 / 0.34e9, 1.0 / 0.11e9, 1.0 / 0.07e9];

/// Measurements older than this describe other data.
const STALE: Duration = Duration::from_secs(60);
/// A sample of less says more about chance than about the level.
const MIN_BYTES: u64 = 256 << 10;
/// Weight of a new sample.
const SMOOTHING: f64 = 0.3;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimates {
    measured: [Option<(Duration, f64)>; LADDER.len()],
}

impl Estimates {
    pub(super) fn record(&mut self, rung: usize, now: Duration, sample: &Sample) {
        if rung == 0 || sample.compress_in < MIN_BYTES {
            return;
        }
        // Batches that were sent raw without trying cost nothing, and that belongs to the rung's price.
        let bytes = sample.plain_bytes.max(sample.compress_in);
        let cost = sample.compress_time.as_secs_f64() / bytes as f64;
        let old = self.fresh(rung, now).unwrap_or(cost);
        self.measured[rung] = Some((now, old + SMOOTHING * (cost - old)));
    }

    /// CPU seconds a byte of `rung`; `current` is the rung whose measurement scales the table if need be.
    pub(super) fn seconds_per_byte(&self, rung: usize, current: usize, now: Duration) -> f64 {
        self.fresh(rung, now).unwrap_or_else(|| {
            let scale = self.fresh(current, now).map_or(1.0, |measured| measured / TABLE[current]);
            TABLE[rung] * scale
        })
    }

    fn fresh(&self, rung: usize, now: Duration) -> Option<f64> {
        self.measured[rung].filter(|(at, _)| now.saturating_sub(*at) < STALE).map(|(_, cost)| cost)
    }
}
