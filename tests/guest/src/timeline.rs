//! What a guest printed on the hosts that it was on, one after the other, as one text: is anything missing, and how
//! long was it gone?
//!
//! The guest's own clock stands still while it is stopped, so a pause is measured by the host's: from the last
//! heartbeat in one file to the first in the next, less the interval that always lies between two. That interval, too,
//! is measured by the host: an emulated guest on a busy host calibrates its clock badly, some percent off. A line that
//! the switch cut in two is joined, and counts as printed where it ended.

use std::fmt;
use std::time::{Duration, Instant};

use crate::init::{CORRUPT, Heartbeat, Options, READY};
use crate::serial::{Chunk, Serial};

/// A line that a guest printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When its end was seen.
    pub at: Instant,
    /// In which file, counted from 0, its end was.
    pub file: usize,
    /// Without its end.
    pub text: String,
}

/// A heartbeat, and when it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// When it was seen.
    pub at: Instant,
    /// In which file, counted from 0.
    pub file: usize,
    /// What the guest said.
    pub heartbeat: Heartbeat,
}

/// What the guest said of its disk when it booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskAtStart {
    /// It was not the guest's own, and now is.
    Fresh,
    /// It holds what exactly this many writes make.
    Intact(u64),
}

/// All lines, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeline {
    files: usize,
    lines: Vec<Line>,
}

/// A guest that was whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// How many heartbeats there are: 1 up to this number.
    pub heartbeats: u64,
    /// How many of them are in each file.
    pub in_file: Vec<u64>,
    /// The median time between two heartbeats on one host; what the guest was told, if no host heard two.
    pub interval: Duration,
    /// For each switch from a file to the next: how much longer than the interval nothing was heard.
    pub downtimes: Vec<Duration>,
    /// The longest time between two heartbeats, wherever it was.
    pub longest_gap: Duration,
}

/// Why a guest was not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The guest found this wrong.
    Corrupt(String),
    /// A heartbeat says that something was wrong.
    Bad(u64),
    /// After heartbeat `previous` (0: at the start) came `found`.
    Missing {
        /// The last one that was where it should be.
        previous: u64,
        /// The one after it.
        found: u64,
    },
    /// A file has fewer heartbeats than the caller wants to see.
    Silent {
        /// Which file, counted from 0.
        file: usize,
        /// How many it has.
        heartbeats: u64,
    },
    /// The guest did not say what it was told to do, so its interval is not known.
    NotReady,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(line) => write!(f, "the guest found: {line}"),
            Self::Bad(number) => write!(f, "heartbeat {number} is BAD"),
            Self::Missing { previous, found } => write!(f, "after heartbeat {previous} came {found}"),
            Self::Silent { file, heartbeats } => write!(f, "only {heartbeats} heartbeats in file {file}"),
            Self::NotReady => write!(f, "there is no line {READY:?}"),
        }
    }
}

impl std::error::Error for Broken {}

impl Timeline {
    /// Joins what was printed so far, in the order of the guest's hosts.
    #[must_use]
    pub fn join(serials: &[&Serial]) -> Self {
        let files: Vec<Vec<Chunk>> = serials.iter().map(|serial| serial.chunks()).collect();
        let files: Vec<&[Chunk]> = files.iter().map(Vec::as_slice).collect();
        Self::of(&files)
    }

    /// Joins the chunks of files.
    #[must_use]
    pub fn of(files: &[&[Chunk]]) -> Self {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        for (file, chunks) in files.iter().enumerate() {
            for Chunk { at, bytes } in *chunks {
                let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
                while let Some(piece) = pieces.next() {
                    line.extend(piece);
                    if pieces.peek().is_some() {
                        let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                        lines.push(Line { at: *at, file, text });
                        line.clear();
                    }
                }
            }
        }
        Self { files: files.len(), lines }
    }

    /// The whole lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The heartbeats.
    pub fn beats(&self) -> impl Iterator<Item = Beat> {
        self.lines.iter().filter_map(|Line { at, file, text }| {
            let heartbeat = text.parse().ok()?;
            Some(Beat { at: *at, file: *file, heartbeat })
        })
    }

    /// What the guest said that it was told, if it was ready.
    #[must_use]
    pub fn options(&self) -> Option<Options> {
        let said = self.lines.iter().find_map(|line| line.text.strip_prefix(READY))?;
        Options::parse(said).ok()
    }

    /// What the guest said of its disk when it booted, the last time if it did more than once.
    #[must_use]
    pub fn disk_at_start(&self) -> Option<DiskAtStart> {
        self.lines.iter().rev().find_map(|line| {
            let said = line.text.strip_prefix("DISK ")?;
            match said.strip_prefix("intact seq=") {
                Some(writes) => writes.parse().ok().map(DiskAtStart::Intact),
                None => (said == "fresh").then_some(DiskAtStart::Fresh),
            }
        })
    }

    /// Whether the guest was whole all the way, with at least `in_each` heartbeats in each file: no heartbeat missing,
    /// twice or bad, nothing found corrupt.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn check(&self, in_each: u64) -> Result<Report, Broken> {
        if let Some(line) = self.lines.iter().find(|line| line.text.contains(CORRUPT)) {
            return Err(Broken::Corrupt(line.text.clone()));
        }
        let told = Duration::from_millis(self.options().ok_or(Broken::NotReady)?.heartbeat);
        let mut report = Report {
            heartbeats: 0,
            in_file: vec![0; self.files],
            interval: told,
            downtimes: vec![Duration::ZERO; self.files.saturating_sub(1)],
            longest_gap: Duration::ZERO,
        };
        let mut before: Option<Beat> = None;
        let mut gaps = Vec::new();
        for beat in self.beats() {
            let Beat { at, file, heartbeat } = beat;
            if !heartbeat.intact {
                return Err(Broken::Bad(heartbeat.number));
            }
            if heartbeat.number != report.heartbeats + 1 {
                return Err(Broken::Missing { previous: report.heartbeats, found: heartbeat.number });
            }
            if let Some(before) = before {
                let gap = at.saturating_duration_since(before.at);
                report.longest_gap = report.longest_gap.max(gap);
                if before.file == file {
                    gaps.push(gap);
                } else {
                    report.downtimes[file - 1] = gap;
                }
            }
            report.heartbeats = heartbeat.number;
            report.in_file[file] += 1;
            before = Some(beat);
        }
        gaps.sort_unstable();
        report.interval = gaps.get(gaps.len() / 2).copied().unwrap_or(told);
        for downtime in &mut report.downtimes {
            *downtime = downtime.saturating_sub(report.interval);
        }
        // With one in each file at least, files follow each other without one left out, and no downtime stays unset.
        let silent = report.in_file.iter().position(|heartbeats| *heartbeats < in_each.max(1));
        match silent {
            Some(file) => Err(Broken::Silent { file, heartbeats: report.in_file[file] }),
            None => Ok(report),
        }
    }
}

#[cfg(test)]
mod tests;
