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
    /// What of that was spent waiting for the time of the switchover, with the disks in step.
    pub waited_ms: u64,
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
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Prediction {
    /// How the VM moves, for people.
    #[serde(default)]
    pub method: String,
    /// From the start to the guest running at the destination.
    pub total_ms: u64,
    /// What of that is the memory's part.
    #[serde(default)]
    pub memory_ms: u64,
    /// What of the pause was taken to be the hosts' own part: without the memory's rest and round trips.
    #[serde(default)]
    pub hosts_ms: u64,
    /// The guest's pause; the longest that is allowed, where more is not known; 0 for one that is off.
    pub downtime_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Bytes that the guest writes to its RAM, a second.
    pub dirty_rate: u64,
    /// Bytes that the link was taken to carry, a second: what was measured, or the limit where that is less.
    pub link_rate: u64,
    /// Whether that was measured.
    #[serde(default)]
    pub link_measured: bool,
    /// The link's round trip, microseconds.
    #[serde(default)]
    pub round_trip_us: Option<u64>,
    /// Whether the memory converges at these rates.
    pub converges: bool,
    /// Where the figures come from, for people.
    pub basis: String,
}

impl Report {
    /// Compares what was predicted with what happened, as far as both are known.
    pub fn grade(&mut self) {
        let Some(predicted) = &self.predicted else { return };
        let percent = |measured: u64, expected: u64, of: &str| {
            let percent = u128::from(measured) * 100 / u128::from(expected.max(1));
            format!("{percent} % of the predicted {of}")
        };
        let time = self.total_ms.map(|total| total.saturating_sub(self.waited_ms));
        let time = time.map(|moved| percent(moved, predicted.total_ms, "time"));
        // A guest that was off was not paused.
        let pause = self.downtime_ms.filter(|_| predicted.downtime_ms > 0);
        let pause = pause.map(|pause| percent(pause, predicted.downtime_ms, "pause"));
        let bytes = percent(self.ram_wire.saturating_add(self.disk_wire), predicted.wire_bytes, "bytes");
        let parts: Vec<String> = [time, pause, Some(bytes)].into_iter().flatten().collect();
        self.grade = self.total_ms.map(|_| format!("took {}", parts.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Report {
        let predicted = Prediction {
            method: "live".to_owned(),
            total_ms: 10_000,
            memory_ms: 8_000,
            hosts_ms: 85,
            downtime_ms: 100,
            wire_bytes: 1 << 20,
            dirty_rate: 0,
            link_rate: 1 << 20,
            link_measured: true,
            round_trip_us: Some(400),
            converges: true,
            basis: String::new(),
        };
        Report {
            predicted: Some(predicted),
            total_ms: Some(12_000),
            downtime_ms: Some(50),
            ram_wire: 1 << 19,
            disk_wire: 1 << 18,
            ..Report::default()
        }
    }

    #[test]
    fn time_pause_and_bytes_are_graded() {
        let mut report = measured();
        report.grade();
        let all =
            "took 120 % of the predicted time, 50 % of the predicted pause, 75 % of the predicted bytes";
        assert_eq!(report.grade.as_deref(), Some(all));
        // A wait is nobody's fault.
        let mut waited = Report { total_ms: Some(72_000), waited_ms: 60_000, ..measured() };
        waited.grade();
        assert_eq!(waited.grade.as_deref(), Some(all));
        // A cold move has no pause, and nothing is graded before the end.
        report.downtime_ms = None;
        report.grade();
        let without = "took 120 % of the predicted time, 75 % of the predicted bytes";
        assert_eq!(report.grade.as_deref(), Some(without));
        for unknown in [Report { predicted: None, ..measured() }, Report { total_ms: None, ..measured() }] {
            let mut report = unknown;
            report.grade();
            assert_eq!(report.grade, None);
        }
    }

    #[test]
    fn a_record_of_an_older_release_is_read() {
        let old = r#"{"total_ms":1,"downtime_ms":2,"wire_bytes":3,"dirty_rate":4,"link_rate":5,"converges":true,"basis":"b"}"#;
        let read: Prediction = serde_json::from_str(old).unwrap();
        assert_eq!((read.method.as_str(), read.link_measured, read.round_trip_us), ("", false, None));
        assert_eq!(read.memory_ms, 0);
    }
}
