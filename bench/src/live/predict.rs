//! `predict`: are an agent's forecasts right? Guests of all kinds move over links of all kinds, each for the first time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use engine::migrate::report::Report as Figures;
use guest::{Linux, Options};
use link::{BitRate, DirectionSpec, LinkSpec, Queue};
use serde::Serialize;
use tokio::runtime::Builder;
use volume::conformance::Dice;

use super::case::Plan;
use super::outcome::{Moved, Step};
use super::stage::{Stage, make_folder};
use super::{Movers, THREADS, ferry, interrupted};
use crate::agents::Agents;
use crate::machine::load;
use crate::report::{Goal, Report};

/// Share of the moves whose forecasts are to hold, percent.
const HOLD: f64 = 90.0;
/// How far time and bytes may be off, percent of what it took.
const TIME: u64 = 20;
const BYTES: u64 = 10;
/// The same of the pause, percent and milliseconds: the larger one counts.
const PAUSE: (u64, u64) = (25, 20);
/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Predict<'a> {
    pub(crate) moves: u32,
    pub(crate) seed: u64,
    /// The agent's binary.
    pub(crate) agent: &'a Path,
    /// A new folder.
    pub(crate) folder: &'a Path,
    pub(crate) keep: bool,
}

/// What was expected, or what came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Figure {
    total_ms: u64,
    downtime_ms: u64,
    wire_bytes: u64,
}

/// One move.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Fulfilled {
    /// Always `forecast`.
    kind: &'static str,
    nth: u32,
    /// The guest's memory and disk, and the link.
    memory_mib: u64,
    disk_mib: u64,
    megabits: u64,
    round_trip_ms: f64,
    /// MiB a second that it writes.
    writes: u64,
    expected: Figure,
    took: Figure,
    /// Whether time, bytes and pause held.
    held: [bool; 3],
    basis: String,
    /// Bytes of the memory and of the disk, as they travelled; passes over the memory.
    ram_wire: u64,
    disk_wire: u64,
    rounds: u64,
    /// What happened when.
    steps: Vec<Step>,
    load: [f64; 3],
}

/// All moves.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Forecasts {
    /// Always `forecasts`.
    kind: &'static str,
    moves: usize,
    goals: Vec<Goal>,
}

/// A guest and a link that nobody chose.
fn plan(dice: &mut Dice) -> Result<Plan> {
    let memory = [128, 192, 256, 384, 512][usize::try_from(dice.below(5))?];
    let part = |dice: &mut Dice, of: u64| 8 + dice.below(of);
    // From 20 to 1000 Mbit/s, small ones as often as large ones.
    let megabits = [20, 50, 100, 200, 500, 1000][usize::try_from(dice.below(6))?];
    let megabits = megabits - dice.below(megabits / 4);
    let delay = Duration::from_millis([0, 1, 5, 10, 20][usize::try_from(dice.below(5))?]);
    let direction = DirectionSpec {
        rate: Some(BitRate::megabits(megabits).context("choose a rate")?),
        delay,
        queue: Queue::Time(Duration::from_millis(50)),
        ..DirectionSpec::default()
    };
    let files = dice.below(2) == 0;
    let options = Options {
        constant: part(dice, memory / 3),
        duplicate: part(dice, memory / 6),
        hot: part(dice, 24),
        // Less than the link carries: one that does not converge has no time that can be foretold.
        rate: 1 + dice.below((megabits / 16).min(60)),
        disk: 32,
        heartbeat: 50,
        disk_writes: 1 + dice.below(4),
        ..Options::default()
    };
    Ok(Plan {
        memory,
        options,
        disk: 64 * MIB,
        files,
        link: Some(LinkSpec { seed: dice.roll(), ..LinkSpec::symmetric(direction) }),
        round_trip: delay.as_secs_f64() * 2e3,
        tls: false,
        profile: if delay > Duration::from_millis(4) { "wan" } else { "lan" },
        throttle: false,
    })
}

/// Moves, and compares.
pub(crate) fn predict(predict: &Predict<'_>, report: Report) -> Result<()> {
    let Predict { moves, seed, agent, folder, keep } = predict;
    ensure!(rustix::process::geteuid().is_root(), "`predict` makes network namespaces, which needs root");
    let linux = Linux::find().map_err(|why| anyhow!(why))?;
    make_folder(folder)?;
    let movers = Movers { agents: Agents::new(agent, folder)?, more: &[] };
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("start a runtime")?;
    {
        let _inside = runtime.enter();
        interrupted::watch(folder, *keep)?;
    }
    let mut dice = Dice::new(*seed);
    let mut all = Vec::new();
    for nth in 1..=*moves {
        let plan = plan(&mut dice)?;
        let stage = Stage::set(plan, &linux, &runtime, folder.join(nth.to_string()))?;
        let place = stage.folder.join("n");
        make_folder(&place)?;
        let (moved, figures) = ferry::run(&stage, &movers, &place).with_context(|| format!("move {nth}"))?;
        let fulfilled = Fulfilled::of(nth, &stage.plan, &figures, moved)?;
        report.fulfilled(&fulfilled)?;
        all.push(fulfilled);
        if !keep {
            std::fs::remove_dir_all(&stage.folder)
                .with_context(|| format!("remove {}", stage.folder.display()))?;
        }
    }
    report.forecasts(&Forecasts::of(&all))
}

impl Fulfilled {
    fn of(nth: u32, plan: &Plan, figures: &Figures, moved: Moved) -> Result<Self> {
        let predicted = figures.predicted.as_ref().context("find a prediction in the report")?;
        let expected = Figure {
            total_ms: predicted.total_ms,
            downtime_ms: predicted.downtime_ms,
            wire_bytes: predicted.wire_bytes,
        };
        let took = Figure {
            total_ms: figures.total_ms.context("find the time in the report")?,
            downtime_ms: figures.downtime_ms.context("find the pause in the report")?,
            wire_bytes: figures.ram_wire + figures.disk_wire,
        };
        let near = |expected: u64, took: u64, percent: u64, least: u64| {
            expected.abs_diff(took) <= (took.saturating_mul(percent) / 100).max(least)
        };
        let held = [
            near(expected.total_ms, took.total_ms, TIME, 0),
            near(expected.wire_bytes, took.wire_bytes, BYTES, 0),
            near(expected.downtime_ms, took.downtime_ms, PAUSE.0, PAUSE.1),
        ];
        let megabits =
            plan.link.as_ref().and_then(|link| link.a_to_b.rate).map_or(0, |rate| rate.get() / 1_000_000);
        Ok(Self {
            kind: "forecast",
            nth,
            memory_mib: plan.memory,
            disk_mib: plan.disk / MIB,
            megabits,
            round_trip_ms: plan.round_trip,
            writes: plan.options.rate,
            expected,
            took,
            held,
            basis: predicted.basis.clone(),
            ram_wire: figures.ram_wire,
            disk_wire: figures.disk_wire,
            rounds: figures.rounds,
            steps: moved.steps,
            load: load()?,
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let sign = |held: bool| if held { "" } else { " MISSED" };
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let Self {
            nth,
            memory_mib,
            disk_mib,
            megabits,
            round_trip_ms,
            writes,
            expected,
            took,
            held,
            basis,
            ..
        } = self;
        format!(
            "#{nth}: {memory_mib} MiB and a disk of {disk_mib}, writes {writes} MiB/s; {megabits} Mbit/s, {round_trip_ms} ms: \
             time {} of {} ms{}, bytes {:.1} of {:.1} MiB{}, pause {} of {} ms{}\n  {basis}",
            expected.total_ms,
            took.total_ms,
            sign(held[0]),
            mib(expected.wire_bytes),
            mib(took.wire_bytes),
            sign(held[1]),
            expected.downtime_ms,
            took.downtime_ms,
            sign(held[2]),
        )
    }
}

impl Forecasts {
    fn of(all: &[Fulfilled]) -> Self {
        let share = |nth: usize| {
            let held = all.iter().filter(|one| one.held[nth]).count();
            held as f64 * 100.0 / all.len().max(1) as f64
        };
        let goals = vec![
            Goal::at_least("forecasts of the time within 20 %", "%", share(0), HOLD),
            Goal::at_least("forecasts of the bytes within 10 %", "%", share(1), HOLD),
            Goal::at_least("forecasts of the pause within 25 % or 20 ms", "%", share(2), HOLD),
        ];
        Self { kind: "forecasts", moves: all.len(), goals }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let goals: Vec<String> = self.goals.iter().map(Goal::text).collect();
        format!("{} moves\n  {}", self.moves, goals.join("\n  "))
    }
}
