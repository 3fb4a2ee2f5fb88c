//! Second copies onto the first.

use anyhow::Result;
use volume::{PAGE, PAGES_PER_CHUNK};

use super::Run;
use crate::corpus;
use crate::model::{Changed, Work};
use crate::report::{Goal, Record};

/// Part of the pages that change.
const CHANGED: f64 = 0.01;
/// Most wire bytes by the bytes of a volume that did not change, in percent.
const UNCHANGED_WIRE: f64 = 0.1;
/// Most wire bytes by the bytes of changed pages.
const CHANGED_WIRE: f64 = 1.5;

/// Pages that change at random, and the chunks that they are expected to be in.
pub(super) fn expected_change() -> Changed {
    let pages = i32::try_from(PAGES_PER_CHUNK).unwrap_or(i32::MAX);
    Changed { chunks: 1.0 - (1.0 - CHANGED).powi(pages), pages: CHANGED }
}

/// Nothing changed.
pub(super) fn unchanged(run: &Run<'_>) -> Result<Vec<Record>> {
    let change = Changed { chunks: 0.0, pages: 0.0 };
    let mut record = resync(run, 0, change)?;
    let wire = record.wire_bytes as f64 * 100.0 / record.bytes as f64;
    record.goals.push(Goal::at_most("wire bytes by data", "%", wire, UNCHANGED_WIRE));
    Ok(vec![record])
}

/// One page in a hundred changed.
pub(super) fn changed(run: &Run<'_>) -> Result<Vec<Record>> {
    let pages = (run.size / PAGE / 100).max(1);
    let mut record = resync(run, pages, expected_change())?;
    let wire = record.wire_bytes as f64 / (pages * PAGE) as f64;
    record.goals.push(Goal::at_most("wire bytes by changed pages", "x", wire, CHANGED_WIRE));
    Ok(vec![record])
}

fn resync(run: &Run<'_>, pages: u64, change: Changed) -> Result<Record> {
    let source = run.path("source");
    corpus::random(&source, run.size, run.bench.seed)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let options = ["--transport", "quic", "--compress", "off"];
    pair.copy(&source, "disk", &options)?;
    // With no page to change this still writes the file's times: they must not decide.
    corpus::change_pages(&source, pages, run.bench.seed ^ 0x7265_7379_6e63)?;
    let options = [&options[..], &["--resync", "trusted"]].concat();
    let copied = pair.copy(&source, "disk", &options)?;
    let work = Work { resync: Some(change), ..Work::INCOMPRESSIBLE };
    let record = run.record(&copied, run.size, Some(work), &source, &pair.volume("disk"))?;
    pair.end()?;
    Ok(record)
}
