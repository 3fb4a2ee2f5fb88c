//! Where an agent's time goes: its state machine's steps, from its log.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::outcome::Step;

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// A step at a time of the day.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Logged {
    host: &'static str,
    name: String,
    /// Seconds since midnight, UTC.
    at: f64,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    fields: Fields,
}

#[derive(Deserialize)]
struct Fields {
    message: Option<String>,
    to: Option<String>,
}

/// The steps in an agent's log.
pub(super) fn read(host: &'static str, log: &Path) -> Result<Vec<Logged>> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(text.lines().filter_map(|line| step(host, line)).collect())
}

/// A line's step; most lines have none.
fn step(host: &'static str, line: &str) -> Option<Logged> {
    let Line { timestamp, fields } = serde_json::from_str(line).ok()?;
    let name = match fields.message?.as_str() {
        "migration" => fields.to?,
        "roots compared" => "roots-compared".to_owned(),
        _ => return None,
    };
    let clock = timestamp.split_once('T')?.1.trim_end_matches('Z');
    let mut at = 0.0;
    for part in clock.split(':') {
        at = at * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(Logged { host, name, at })
}

/// In order, in milliseconds since the first; and seconds from the memory's first byte to the guest running.
pub(super) fn since_the_first(mut logged: Vec<Logged>) -> (Vec<Step>, f64) {
    // Both hosts are this machine: one clock.
    let first = logged.first().map_or(0.0, |step| step.at);
    for step in &mut logged {
        step.at = (step.at - first).rem_euclid(DAY);
    }
    logged.sort_by(|one, other| one.at.total_cmp(&other.at));
    let at = |name: &str| {
        let step = logged.iter().find(|step| step.host == "source" && step.name == name);
        step.map_or(0.0, |step| step.at)
    };
    let stream = at("running") - at("pre-copy");
    let steps = logged.into_iter().map(|step| Step { host: step.host, name: step.name, ms: step.at * 1e3 });
    (steps.collect(), stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order_and_over_midnight() {
        let lines = [
            r#"{"timestamp":"2026-11-22T23:59:59.500000Z","level":"INFO","fields":{"message":"migration","from":"mirroring","to":"pre-copy"}}"#,
            r#"{"timestamp":"2026-11-23T00:00:01.750000Z","level":"INFO","fields":{"message":"migration","from":"permitting","to":"running"}}"#,
            r#"{"timestamp":"2026-11-23T00:00:00.000000Z","level":"INFO","fields":{"message":"ready","address":"127.0.0.1:1"}}"#,
            r#"{"timestamp":"2026-11-23T00:00:01.000000Z","level":"INFO","fields":{"message":"roots compared","micros":7}}"#,
            "no JSON",
        ];
        let logged: Vec<Logged> = lines.iter().filter_map(|line| step("source", line)).collect();
        let (steps, stream) = since_the_first(logged);
        let shown: Vec<(&str, f64)> =
            steps.iter().map(|step| (step.name.as_str(), step.ms.round())).collect();
        assert_eq!(shown, [("pre-copy", 0.0), ("roots-compared", 1500.0), ("running", 2250.0)]);
        assert!((stream - 2.25).abs() < 1e-6);
    }
}
