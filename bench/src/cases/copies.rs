//! First copies of volumes of different kinds.

use anyhow::Result;

use super::Run;
use crate::corpus;
use crate::model::{Compression, Work};
use crate::report::{Goal, Record};

/// Least part of the model that random bytes must reach, in percent.
const OF_MODEL: f64 = 60.0;

/// Random bytes, over QUIC or TCP.
pub(super) fn incompressible(run: &Run<'_>, tcp: bool) -> Result<Vec<Record>> {
    let source = run.path("source");
    corpus::random(&source, run.size, run.bench.seed)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let transport = if tcp { "tcp" } else { "quic" };
    let copied = pair.copy(&source, "disk", &["--transport", transport, "--compress", "off"])?;
    let work = Work { tcp, ..Work::INCOMPRESSIBLE };
    let mut record = run.record(&copied, run.size, Some(work), &source, &pair.volume("disk"))?;
    if !tcp && let Some(of_model) = record.of_model {
        record.goals.push(Goal::at_least("rate of the model's", "%", of_model * 100.0, OF_MODEL));
    }
    pair.end()?;
    Ok(vec![record])
}

/// Real files; the controller chooses how to compress them.
pub(super) fn os_image(run: &Run<'_>) -> Result<Vec<Record>> {
    let source = run.path("source");
    let size = corpus::real(&source, run.size)?;
    let mix = corpus::mix(&source)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let copied = pair.copy(&source, "disk", &["--transport", "quic", "--compress", "auto"])?;
    let work = Work {
        not_zero: mix.not_zero,
        unknown: mix.unique,
        compression: Compression::RealFiles,
        ..Work::INCOMPRESSIBLE
    };
    let record = run.record(&copied, size, Some(work), &source, &pair.volume("disk"))?;
    pair.end()?;
    Ok(vec![record])
}

/// Zeros and duplicates within the volume.
pub(super) fn zeros_dups(run: &Run<'_>) -> Result<Vec<Record>> {
    let source = run.path("source");
    corpus::zeros_and_duplicates(&source, run.size, run.bench.seed)?;
    let mix = corpus::mix(&source)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let copied = pair.copy(&source, "disk", &["--transport", "quic", "--compress", "off"])?;
    let work = Work { not_zero: mix.not_zero, unknown: mix.unique, ..Work::INCOMPRESSIBLE };
    let record = run.record(&copied, run.size, Some(work), &source, &pair.volume("disk"))?;
    pair.end()?;
    Ok(vec![record])
}

/// What another sealed volume holds already.
pub(super) fn duplicate(run: &Run<'_>) -> Result<Vec<Record>> {
    let source = run.path("source");
    corpus::random(&source, run.size, run.bench.seed)?;
    let pair = run.bench.agents.serve(&run.folder, None)?;
    let options = ["--transport", "quic", "--compress", "off"];
    pair.copy(&source, "known", &options)?;
    let copied = pair.copy(&source, "disk", &options)?;
    let work = Work { unknown: 0.0, ..Work::INCOMPRESSIBLE };
    let record = run.record(&copied, run.size, Some(work), &source, &pair.volume("disk"))?;
    pair.end()?;
    Ok(vec![record])
}
