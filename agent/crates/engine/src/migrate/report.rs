//! What a migration came to: predictions beside measurements.

use serde::{Deserialize, Serialize};

/// Figures of one migration. Times in milliseconds, sizes in bytes; none where nothing was measured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// `live`, `warm` or `cold`.
    pub mode: String,
    /// What was expected before anything moved.
    pub predicted: Option<Prediction>,
    /// From the start to the guest running at the destination.
    pub total_ms: Option<u64>,
    /// From the guest's stop at the source to its run at the destination, by the source's clock, answers included.
    pub downtime_ms: Option<u64>,
    /// What QEMU says of its own downtime.
    pub qemu_downtime_ms: Option<u64>,
    /// RAM that QEMU sent.
    pub ram_plain: u64,
    /// RAM on the channels.
    pub ram_wire: u64,
    /// Pages that had been sent before and were sent again, in bytes before they were reduced.
    pub ram_again_plain: u64,
    /// What those were on the channels; a frame of both kinds counts by its share of pages.
    pub ram_again_wire: u64,
    /// Bytes that the mirror wrote.
    pub disk_plain: u64,
    /// Disk bytes on the channels.
    pub disk_wire: u64,
    /// Passes over the RAM; without it, over the disks.
    pub rounds: u64,
    /// How often a lost connection came back.
    pub reconnects: u64,
    /// Highest share of CPU time that the guest was denied so that it converged, percent.
    pub throttled_percent: u64,
    /// What the other host complained of, if it did.
    pub note: Option<String>,
    /// How the prediction fared, for people.
    pub grade: Option<String>,
}

/// What is expected before anything moves, and from what.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// From the start to the guest running at the destination.
    pub total_ms: u64,
    /// The guest's pause.
    pub downtime_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Bytes that the guest writes to its RAM, a second.
    pub dirty_rate: u64,
    /// Bytes that the link was taken to carry, a second.
    pub link_rate: u64,
    /// Whether the memory converges at these rates.
    pub converges: bool,
    /// Where the figures come from, for people.
    pub basis: String,
}

impl Report {
    /// Compares what was predicted with what happened.
    pub fn grade(&mut self) {
        let (Some(predicted), Some(total), Some(downtime)) =
            (&self.predicted, self.total_ms, self.downtime_ms)
        else {
            return;
        };
        let ratio = |measured: u64, expected: u64| measured.saturating_mul(100) / expected.max(1);
        self.grade = Some(format!(
            "took {} % of the predicted time and {} % of the predicted downtime, with {} % of the predicted bytes",
            ratio(total, predicted.total_ms),
            ratio(downtime, predicted.downtime_ms),
            ratio(self.ram_wire + self.disk_wire, predicted.wire_bytes),
        ));
    }
}
