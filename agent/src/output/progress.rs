//! Progress of a copy while it runs.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use engine::progress::{Progress, Snapshot};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Format, bytes, duration, rate};

/// How often progress is looked at: rates are means over the last [`WINDOW`] of these.
const TICK: Duration = Duration::from_secs(1);
/// Looks that a rate is the mean of.
const WINDOW: usize = 10;
/// Looks between two lines in a log.
const LOG_EVERY: u32 = 10;

/// Rates over the last seconds.
#[derive(Debug, Default)]
pub struct Rates {
    looks: VecDeque<(Instant, u64, u64)>,
}

/// One look at a copy.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Look {
    /// Bytes that are settled: durable at the receiver.
    pub settled_bytes: u64,
    /// Length of the volume.
    pub logical_bytes: u64,
    /// Bytes on the wire, both directions.
    pub wire_bytes: u64,
    /// Settled bytes a second.
    pub logical_rate: u64,
    /// Wire bytes a second.
    pub wire_rate: u64,
    /// Seconds left at this rate; none while it is unknown.
    pub eta_seconds: Option<u64>,
}

impl Rates {
    /// Looks at counters.
    pub fn look(&mut self, now: Instant, snapshot: &Snapshot) -> Look {
        let (settled, wire) = (snapshot.settled, snapshot.wire_total());
        self.looks.push_back((now, settled, wire));
        if self.looks.len() > WINDOW {
            self.looks.pop_front();
        }
        let (then, first_settled, first_wire) = self.looks.front().copied().unwrap_or((now, settled, wire));
        let millis = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX);
        let per_second = |from: u64, to: u64| {
            u64::try_from(u128::from(to.saturating_sub(from)) * 1000 / u128::from(millis.max(1)))
                .unwrap_or(u64::MAX)
        };
        let logical_rate = per_second(first_settled, settled);
        let left = snapshot.size.saturating_sub(settled);
        Look {
            settled_bytes: settled,
            logical_bytes: snapshot.size,
            wire_bytes: wire,
            logical_rate,
            wire_rate: per_second(first_wire, wire),
            eta_seconds: left.checked_div(logical_rate),
        }
    }
}

impl Look {
    /// As one line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let percent = u128::from(self.settled_bytes) * 100 / u128::from(self.logical_bytes.max(1));
        let mut text = format!(
            "{percent:3} %  {} of {}  {} logical  {} wire  ratio {}",
            bytes(self.settled_bytes),
            bytes(self.logical_bytes),
            rate(self.logical_rate),
            rate(self.wire_rate),
            ratio(self.settled_bytes, self.wire_bytes),
        );
        if let Some(left) = self.eta_seconds {
            text.push_str("  ETA ");
            text.push_str(&duration(Duration::from_secs(left)));
        }
        text
    }
}

/// Logical bytes by wire bytes, with one decimal: `3.2`.
#[must_use]
pub fn ratio(logical: u64, wire: u64) -> String {
    match (u128::from(logical) * 10).checked_div(u128::from(wire)) {
        None => "-".to_owned(),
        Some(tenths) => format!("{}.{}", tenths / 10, tenths % 10),
    }
}

/// Shows progress until `end`: a line that is rewritten on a terminal, a log line every ten seconds elsewhere, a JSON
/// object a second for programs.
pub async fn show(progress: Arc<Progress>, format: Format, end: CancellationToken) {
    #[derive(Serialize)]
    struct Object {
        progress: Look,
    }
    let terminal = format == Format::Text && std::io::stderr().is_terminal();
    let mut rates = Rates::default();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut count = 0u32;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = end.cancelled() => break,
        }
        let look = rates.look(Instant::now(), &progress.snapshot());
        // The first tick is at once: nothing is known yet.
        if count > 0 {
            match (format, terminal) {
                (Format::Json, _) => super::json(&Object { progress: look }),
                (Format::Text, true) => rewrite(&look.text()),
                (Format::Text, false) if count.is_multiple_of(LOG_EVERY) => {
                    tracing::info!("{}", look.text());
                }
                (Format::Text, false) => {}
            }
        }
        count = count.wrapping_add(1);
    }
    if terminal {
        rewrite("");
    }
}

/// Puts a line in the place of the last one on a terminal.
pub(crate) fn rewrite(text: &str) {
    let mut err = std::io::stderr().lock();
    // A terminal that is gone: nobody watches.
    drop(write!(err, "\r\x1b[K{text}").and_then(|()| err.flush()));
}

/// Where log lines of an interactive command go: the line of progress is wiped before each.
#[derive(Clone, Copy, Debug, Default)]
pub struct TerminalLog;

impl Write for TerminalLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut err = std::io::stderr().lock();
        if err.is_terminal() {
            err.write_all(b"\r\x1b[K")?;
        }
        err.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_means_over_the_window() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let snapshot = |settled, wire| Snapshot { size: 10_000, settled, wire, ..Snapshot::default() };
        let first = rates.look(start, &snapshot(0, 0));
        assert_eq!((first.logical_rate, first.eta_seconds), (0, None));
        let second = rates.look(start + TICK, &snapshot(1000, 250));
        assert_eq!((second.logical_rate, second.wire_rate, second.eta_seconds), (1000, 250, Some(9)));
        for n in 2..30 {
            rates.look(start + TICK * n, &snapshot(1000, 250));
        }
        let stalled = rates.look(start + TICK * 30, &snapshot(1000, 250));
        assert_eq!((stalled.logical_rate, stalled.eta_seconds), (0, None));
        assert_eq!(
            second.text(),
            " 10 %  1000 B of 9.7 KiB  1.0 kB/s logical  250 B/s wire  ratio 4.0  ETA 9.0 s"
        );
    }
}
