//! What commands print: a result on stdout, progress and failures on stderr, or JSON objects on stdout.

pub mod migration;
pub mod progress;
pub mod summary;

use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;

/// For whom to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// People.
    #[default]
    Text,
    /// Programs: one JSON object a line on stdout.
    Json,
}

/// Writes a line to stdout. A reader that went away is no failure of what was done.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // A closed pipe: nobody reads, and there is nowhere better to say so.
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// Writes a JSON object as a line to stdout.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => tracing::error!(%error, "a result cannot be written as JSON; this is a bug"),
    }
}

/// Prints why a command failed.
pub fn failure(format: Format, failure: &Failure) {
    #[derive(Serialize)]
    struct Object<'a> {
        error: &'a Failure,
    }
    match format {
        Format::Json => json(&Object { error: failure }),
        Format::Text => {
            let mut err = std::io::stderr().lock();
            let mut text = format!("novaferry-agent: {}\n", failure.message);
            if let Some(advice) = &failure.advice {
                text.push_str("  what to do: ");
                text.push_str(advice);
                text.push('\n');
            }
            // As for stdout.
            drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
        }
    }
}

/// Bytes for people: 1536 as `1.5 KiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    scaled(count, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Bytes a second for people, decimal as networks are: `12.5 MB/s`.
#[must_use]
pub fn rate(bytes_per_second: u64) -> String {
    scaled(bytes_per_second, 1000, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s", "EB/s"])
}

fn scaled(count: u64, step: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let (mut whole, mut tenths) = (count, 0);
    while whole >= step && unit + 1 < units.len() {
        tenths = whole % step * 10 / step;
        whole /= step;
        unit += 1;
    }
    if unit == 0 { format!("{whole} {}", units[0]) } else { format!("{whole}.{tenths} {}", units[unit]) }
}

/// Seconds for people: `1:02:03`, `2:03`, `4.5 s`.
#[must_use]
pub fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}.{} s", time.subsec_millis() / 100),
        (0, _) => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(rate(12_500_000), "12.5 MB/s");
        assert_eq!(duration(Duration::from_millis(4540)), "4.5 s");
        assert_eq!(duration(Duration::from_secs(123)), "2:03");
        assert_eq!(duration(Duration::from_secs(3723)), "1:02:03");
    }
}
