//! How much memory agents take.

use anyhow::{Context, Result};

use super::Run;
use crate::report::{Goal, Record};
use crate::size::mebibytes;
use crate::{compare, corpus};

/// Length of the sparse volume.
const SPARSE: u64 = 1 << 40;
/// Most resident memory of an agent with one session, in MiB.
const ONE_SESSION: f64 = 256.0;
/// Most that a further session adds, in MiB.
const FURTHER_SESSION: f64 = 96.0;

/// Little data in a large hole.
pub(super) fn sparse(run: &Run<'_>) -> Result<Vec<Record>> {
    let source = run.path("source");
    corpus::sparse(&source, SPARSE, run.size, run.bench.seed)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let copied = pair.copy(&source, "disk", &["--transport", "quic", "--compress", "off"])?;
    let mut record = run.record(&copied, run.size, None, &source, &pair.volume("disk"))?;
    for (name, peak) in [("sender's memory", copied.peak_tx), ("receiver's memory", copied.peak_rx)] {
        record.goals.push(Goal::at_most(name, "MiB", mebibytes(peak), ONE_SESSION));
    }
    pair.end()?;
    Ok(vec![record])
}

/// What the receiver's peak grows by when two sessions run at once, after one alone.
pub(super) fn second_session(run: &Run<'_>) -> Result<Vec<Record>> {
    // Different content, or the later ones would be known.
    let volume = |name: &str, nth: u64| {
        let path = run.path(name);
        corpus::random(&path, run.size, run.bench.seed.wrapping_add(nth)).map(|()| path)
    };
    let (first, second, third) = (volume("one", 0)?, volume("two", 1)?, volume("three", 2)?);
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let options = ["--transport", "quic", "--compress", "off"];
    pair.copy(&first, "alone", &options)?;
    let before = pair.peak_memory()?;
    let beside = pair.start(&second, "beside", &options)?;
    let copied = pair.copy(&third, "disk", &options)?;
    beside.finish().context("the session beside")?;
    compare::equal(&second, &pair.volume("beside")).context("VERIFICATION FAILED: the session beside")?;
    let grown = pair.peak_memory()?.saturating_sub(before);
    let mut record = run.record(&copied, run.size, None, &third, &pair.volume("disk"))?;
    record.goals.push(Goal::at_most("further session's memory", "MiB", mebibytes(grown), FURTHER_SESSION));
    pair.end()?;
    Ok(vec![record])
}
