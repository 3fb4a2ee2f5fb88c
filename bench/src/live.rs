//! `live`: the same running guest moved by novaferry and by QEMU alone, in pairs that take turns.
//!
//! ```text
//! case: which guest, which path ─► stage ─┬─► ferry: two agents, two vmd, `migrate` ─┐
//!                                         └─► native: QEMU's mirror and multifd ─────┴─► outcome: figures, goals
//! ```
//!
//! Both sides start a guest of their own from the same seed, wait until it is in its stride, move it over the same
//! path, and wait until it has checked all of its memory at its destination. Bytes of QEMU's streams are counted by
//! [`relay`], which costs it a copy, or by the emulated link.

mod case;
mod certificates;
mod ferry;
mod interrupted;
mod native;
mod outcome;
mod predict;
mod relay;
mod stage;
mod steps;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use guest::Linux;
use tokio::runtime::Builder;

use crate::agents::Agents;
use crate::machine::load;
use crate::report::Report;
pub(crate) use case::LiveCase;
use outcome::{Moved, Mover};
pub(crate) use outcome::{Record, Summary};
pub(crate) use predict::{Forecasts, Fulfilled, Predict, predict};
use stage::{Stage, make_folder};

/// Threads of the relays and of the drivers of QEMU: as many as two hosts have for it here.
const THREADS: usize = 2;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    pub(crate) case: LiveCase,
    /// How often the whole case is run.
    pub(crate) repeat: u32,
    /// Pairs of each run.
    pub(crate) pairs: u32,
    /// The guest's memory in bytes instead of the case's own.
    pub(crate) memory: Option<u64>,
    pub(crate) seed: u64,
    /// The agent's binary.
    pub(crate) agent: &'a Path,
    /// More arguments of `migrate`.
    pub(crate) more: &'a [String],
    /// A new folder.
    pub(crate) folder: &'a Path,
    pub(crate) keep: bool,
}

/// novaferry, and how it is asked.
#[derive(Debug)]
struct Movers<'a> {
    agents: Agents,
    more: &'a [String],
}

/// Runs a case.
pub(crate) fn run(live: &Live<'_>, report: Report) -> Result<()> {
    let Live { case, repeat, pairs, memory, seed, agent, more, folder, keep } = live;
    let plan = case.plan(*memory, *seed)?;
    ensure!(
        plan.link.is_none() || rustix::process::geteuid().is_root(),
        "the case {} makes network namespaces, which needs root",
        case.name()
    );
    let linux = Linux::find().map_err(|why| anyhow!(why))?;
    make_folder(folder)?;
    let movers = Movers { agents: Agents::new(agent, folder)?, more };
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("start a runtime")?;
    {
        let _inside = runtime.enter();
        interrupted::watch(folder, *keep)?;
    }
    for repeat in 1..=*repeat {
        // Sockets' paths are short by law.
        let place = folder.join(repeat.to_string());
        let stage = Stage::set(plan.clone(), &linux, &runtime, place)?;
        let done = (1..=*pairs)
            .map(|pair| one_pair(&stage, &movers, *case, (repeat, pair), *keep, report))
            .collect::<Result<Vec<_>>>()?;
        report.summary(&Summary::of(*case, &plan, repeat, &done))?;
        overrun(&stage)?;
        if !*keep {
            fs::remove_dir_all(&stage.folder)
                .with_context(|| format!("remove {}", stage.folder.display()))?;
        }
    }
    Ok(())
}

/// Says when the emulated link lost packets because the machine is too slow for it.
fn overrun(stage: &Stage<'_>) -> Result<()> {
    let Some(link) = &stage.link else { return Ok(()) };
    let stats = link.stats().context("ask the emulated link")?;
    let overrun = stats.a_to_b.overrun + stats.b_to_a.overrun;
    if overrun > 0 {
        eprintln!(
            "novaferry-bench: the machine was too slow for the emulated link: {overrun} packets were dropped before it"
        );
    }
    Ok(())
}

fn one_pair(
    stage: &Stage<'_>,
    movers: &Movers<'_>,
    case: LiveCase,
    (repeat, pair): (u32, u32),
    keep: bool,
    report: Report,
) -> Result<(Moved, Moved)> {
    let one = |mover: Mover| {
        let folder = stage.folder.join(format!("{}{pair}", if mover == Mover::Qemu { "q" } else { "n" }));
        make_folder(&folder)?;
        let moved = match mover {
            Mover::Novaferry => {
                ferry::run(stage, movers, &folder).context("move the guest with novaferry")?.0
            }
            Mover::Qemu => native::run(stage, &folder).context("move the guest with QEMU alone")?,
        };
        let record = Record {
            kind: "move",
            case: case.name(),
            repeat,
            pair,
            mover,
            moved: moved.clone(),
            load: load()?,
            verified: true,
        };
        report.moved(&record)?;
        if !keep {
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        Ok::<_, anyhow::Error>(moved)
    };
    // Who comes first changes from pair to pair.
    if pair.is_multiple_of(2) {
        let theirs = one(Mover::Qemu)?;
        return Ok((one(Mover::Novaferry)?, theirs));
    }
    Ok((one(Mover::Novaferry)?, one(Mover::Qemu)?))
}
