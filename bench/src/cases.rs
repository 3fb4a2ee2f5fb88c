//! The cases: what is copied, how, and which goal it has.

mod copies;
mod memory;
mod resync;
mod wan;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::agents::{Agents, Copied};
use crate::compare;
use crate::machine::load;
use crate::model::{Ceiling, Changed, Compression, Constants, Work, ceiling};
use crate::report::{Record, Report};
use crate::size::gigabytes;

/// Least data of a case: an extent.
const LEAST: u64 = 1 << 20;

/// A case, or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Case {
    /// Random bytes, compression off.
    Incompressible,
    /// This machine's own files, compression as the controller chooses.
    OsImage,
    /// Half zero, half of the rest duplicate, compression off.
    ZerosDups,
    /// All content known from another volume of the same owner.
    Duplicate,
    /// A second copy of what did not change.
    ResyncUnchanged,
    /// A second copy after 1 % of the pages changed.
    #[value(name = "resync-1pct")]
    ResyncChanged,
    /// 1 TiB of hole with data in it: memory.
    #[value(name = "sparse-1tib")]
    Sparse,
    /// Two sessions at once: memory.
    SecondSession,
    /// As incompressible, over TCP.
    Tcp,
    /// A slow, long, lossy link; needs root.
    Wan,
    /// Every case above.
    All,
}

impl Case {
    /// The name on the command line and in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Incompressible => "incompressible",
            Self::OsImage => "os-image",
            Self::ZerosDups => "zeros-dups",
            Self::Duplicate => "duplicate",
            Self::ResyncUnchanged => "resync-unchanged",
            Self::ResyncChanged => "resync-1pct",
            Self::Sparse => "sparse-1tib",
            Self::SecondSession => "second-session",
            Self::Tcp => "tcp",
            Self::Wan => "wan",
            Self::All => "all",
        }
    }

    /// Bytes of data unless asked otherwise.
    fn default_size(self) -> u64 {
        match self {
            Self::Sparse => 4 << 30,
            Self::SecondSession | Self::OsImage => 1 << 30,
            // Ten seconds of the link.
            Self::Wan => 256 << 20,
            _ => 2 << 30,
        }
    }
}

/// What all cases share.
#[derive(Debug)]
pub(crate) struct Bench {
    agents: Agents,
    folder: PathBuf,
    seed: u64,
    size: Option<u64>,
}

impl Bench {
    /// Prepares identities in `folder`.
    pub(crate) fn new(agent: &Path, folder: &Path, seed: u64, size: Option<u64>) -> Result<Self> {
        ensure!(size.is_none_or(|size| size >= LEAST), "choose a --size of at least 1 MiB");
        Ok(Self { agents: Agents::new(agent, folder)?, folder: folder.to_owned(), seed, size })
    }
}

/// One run of one case: where it works, and what it makes records of.
struct Run<'a> {
    bench: &'a Bench,
    constants: &'a Constants,
    case: Case,
    repeat: u32,
    folder: PathBuf,
    size: u64,
}

impl Run<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A record of a copy of `bytes`, after which `volume` must hold what `source` does.
    fn record(
        &self,
        copied: &Copied,
        bytes: u64,
        work: Option<Work>,
        source: &Path,
        volume: &Path,
    ) -> Result<Record> {
        let load = load()?;
        compare::equal(source, volume).context("VERIFICATION FAILED: the copy is not what was copied")?;
        let Copied { summary, peak_tx, peak_rx, cpu_rx, other_cpus } = copied;
        let amount = gigabytes(bytes);
        let gb_per_s = amount / summary.seconds;
        let cpu_tx = summary.cpu_seconds_tx.map(|seconds| seconds / amount);
        let cpu_rx = cpu_rx / amount;
        let ceiling = work.map(|work| ceiling(self.constants, &work));
        let of_cpu = |ceiling: Ceiling| Some((ceiling.cpu_tx + ceiling.cpu_rx) / (cpu_tx? + cpu_rx));
        Ok(Record {
            kind: "case",
            case: self.case.name(),
            variant: None,
            repeat: self.repeat,
            bytes,
            seconds: summary.seconds,
            gb_per_s,
            cpu_s_per_gb_tx: cpu_tx,
            cpu_s_per_gb_rx: cpu_rx,
            wire_bytes: summary.wire_bytes,
            payload_bytes: summary.payload_bytes,
            zero_bytes: summary.zero_bytes,
            dedup_bytes: summary.dedup_bytes,
            resent_bytes: summary.resent_bytes,
            peak_memory_tx: *peak_tx,
            peak_memory_rx: *peak_rx,
            ceiling,
            of_model: ceiling.map(|ceiling| gb_per_s / ceiling.one_box),
            of_model_cpu: ceiling.and_then(of_cpu),
            load,
            other_cpus: *other_cpus,
            verified: true,
            goals: Vec::new(),
        })
    }
}

/// Runs a case, or all, some times.
pub(crate) fn run(
    bench: &Bench,
    case: Case,
    repeat: u32,
    constants: &Constants,
    keep: bool,
    report: Report,
) -> Result<()> {
    let cases: Vec<Case> = match case {
        Case::All => Case::value_variants().iter().copied().filter(|case| *case != Case::All).collect(),
        one => vec![one],
    };
    // Interleaved: what disturbs the machine for a while disturbs all of them.
    for repeat in 1..=repeat {
        for one in &cases {
            if *one == Case::Wan && !rustix::process::geteuid().is_root() {
                ensure!(case == Case::All, "the case wan makes network namespaces, which needs root");
                report.skipped(one.name(), "it makes network namespaces, which needs root")?;
                continue;
            }
            let folder = bench.folder.join(format!("{}-{repeat}", one.name()));
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
            let size = bench.size.unwrap_or_else(|| one.default_size());
            let run = Run { bench, constants, case: *one, repeat, folder, size };
            for record in run_one(&run).with_context(|| format!("case {}", one.name()))? {
                report.record(&record)?;
            }
            if !keep {
                fs::remove_dir_all(&run.folder)
                    .with_context(|| format!("remove {}", run.folder.display()))?;
            }
        }
    }
    Ok(())
}

fn run_one(run: &Run<'_>) -> Result<Vec<Record>> {
    match run.case {
        Case::Incompressible => copies::incompressible(run, false),
        Case::Tcp => copies::incompressible(run, true),
        Case::OsImage => copies::os_image(run),
        Case::ZerosDups => copies::zeros_dups(run),
        Case::Duplicate => copies::duplicate(run),
        Case::ResyncUnchanged => resync::unchanged(run),
        Case::ResyncChanged => resync::changed(run),
        Case::Sparse => memory::sparse(run),
        Case::SecondSession => memory::second_session(run),
        Case::Wan => wan::run(run),
        Case::All => Ok(Vec::new()),
    }
}

/// What the model says of each case that it covers, with the mixes that the corpora are made to have.
pub(crate) fn ceilings(constants: &Constants) -> Vec<(&'static str, Ceiling)> {
    let plain = Work::INCOMPRESSIBLE;
    let unchanged = Changed { chunks: 0.0, pages: 0.0 };
    [
        (Case::Incompressible, plain),
        (Case::Tcp, Work { tcp: true, ..plain }),
        (Case::OsImage, Work { compression: Compression::RealFiles, ..plain }),
        (Case::ZerosDups, Work { not_zero: 0.5, unknown: 0.5, ..plain }),
        (Case::Duplicate, Work { unknown: 0.0, ..plain }),
        (Case::ResyncUnchanged, Work { resync: Some(unchanged), ..plain }),
        (Case::ResyncChanged, Work { resync: Some(resync::expected_change()), ..plain }),
    ]
    .map(|(case, work)| (case.name(), ceiling(constants, &work)))
    .to_vec()
}
