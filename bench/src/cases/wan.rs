//! A link of 200 Mbit/s with a round trip of 50 ms that loses packets.

use std::time::Duration;

use anyhow::{Context, Result};
use link::{BitRate, DirectionSpec, Link, LinkSpec, Probability};

use super::Run;
use crate::corpus;
use crate::report::{Goal, Record};

/// Rate of the link in Mbit/s.
const RATE: u64 = 200;
/// One way.
const DELAY: Duration = Duration::from_millis(25);
/// Loss, and the least part of the link's rate that must be reached, both in percent.
const LOSSES: [(f64, f64); 2] = [(1.0, 70.0), (5.0, 50.0)];

/// Random bytes at each loss.
pub(super) fn run(run: &Run<'_>) -> Result<Vec<Record>> {
    let source = run.path("source");
    corpus::random(&source, run.size, run.bench.seed)?;
    LOSSES.into_iter().map(|(loss, wanted)| one(run, &source, loss, wanted)).collect()
}

fn one(run: &Run<'_>, source: &std::path::Path, loss: f64, wanted: f64) -> Result<Record> {
    let direction = DirectionSpec {
        rate: Some(BitRate::megabits(RATE)?),
        delay: DELAY,
        loss: Probability::new(loss / 100.0)?,
        ..DirectionSpec::default()
    };
    let spec = LinkSpec { seed: run.bench.seed, ..LinkSpec::symmetric(direction) };
    let link = Link::up(&spec).context("make the emulated link")?;
    let folder = run.folder.join(format!("loss-{loss}"));
    let pair = run.bench.agents.serve(&folder, Some(&link))?;
    let copied =
        pair.copy(source, "disk", &["--transport", "quic", "--profile", "wan", "--compress", "off"])?;
    let mut record = run.record(&copied, run.size, None, source, &pair.volume("disk"))?;
    record.variant = Some(format!("loss {loss} %"));
    let reached = record.gb_per_s * 8e3 / RATE as f64 * 100.0;
    record.goals.push(Goal::at_least("rate of the link's", "%", reached, wanted));
    pair.end()?;
    let overrun = link.stats()?.a_to_b.overrun;
    if overrun > 0 {
        eprintln!(
            "novaferry-bench: the machine was too slow for the emulated link: {overrun} packets were dropped before it"
        );
    }
    Ok(record)
}
