//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tempfile::TempDir;

use crate::cases::{Bench, Case};
use crate::live::{Live, LiveCase, Predict};
use crate::machine::Machine;
use crate::report::{Output, Report};
use crate::{calibrate, cases, live, size};

/// Exit code for a wrong command line (sysexits.h).
const USAGE: u8 = 64;
/// Name of the agent's binary.
const AGENT: &str = "novaferry-agent";
/// Least memory of a guest: what its kernel needs.
const LEAST_MEMORY: u64 = 64 << 20;

/// Measures this machine, and what agents reach of what it can do.
#[derive(Debug, Parser)]
#[command(name = "novaferry-bench", version, max_term_width = 100, after_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Exit codes: 0 it ran, whether goals are met or not; 1 something failed or a copy differs; 64 wrong usage.

Examples:
  novaferry-bench calibrate
  novaferry-bench run incompressible --size 2GiB --repeat 5
  novaferry-bench run all --output json > results.jsonl
  novaferry-bench live same-host --pairs 30
  novaferry-bench live wan --output json -- --compress 3
  novaferry-bench predict --moves 30 --seed 7";

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the constants of this machine; prints them and the model's ceiling for each case.
    Calibrate(Common),
    /// Calibrates, copies between two agent processes, verifies every byte, prints rates, costs and goals.
    Run(RunArgs),
    /// Moves running guests with novaferry and with QEMU alone, in turns; verifies them, prints times, bytes, goals.
    Live(LiveArgs),
    /// Moves guests of all kinds over links that the agents have not seen, and compares with what they expected.
    Predict(PredictArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Bytes that each constant is measured with.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value_t = calibrate::DEFAULT_SAMPLE)]
    sample: u64,
    /// Where volumes are made and copied to; decides which disk is measured [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The case, or all of them.
    #[arg(value_enum)]
    case: Case,
    /// Bytes of data instead of the case's own size; at least 1 MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// How often each case is run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Fixes the content of volumes and what the emulated link loses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The agent's binary [default: novaferry-agent beside this program].
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Keep volumes and logs, and say where they are.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct LiveArgs {
    /// The case.
    #[arg(value_enum)]
    case: LiveCase,
    /// How often the case is run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Moves on each side, taking turns.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// The guest's memory instead of the case's own; what it keeps there grows and shrinks with it. At least 64 MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory: Option<u64>,
    /// Fixes what the emulated link does.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The agent's binary; novaferry-vmd is beside it [default: novaferry-agent beside this program].
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Keep disks and logs, and say where they are.
    #[arg(long)]
    keep: bool,
    /// More arguments of the agent's `migrate`, behind `--`.
    #[arg(last = true, value_name = "MORE")]
    more: Vec<String>,
    /// Where the guests' folders are made [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct PredictArgs {
    /// Moves, each of another guest over another link.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    moves: u32,
    /// Chooses guests and links.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The agent's binary; novaferry-vmd is beside it [default: novaferry-agent beside this program].
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Keep disks and logs, and say where they are.
    #[arg(long)]
    keep: bool,
    /// Where the guests' folders are made [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Reads the command line and does what it says.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If not even the usage can be printed, the exit code is all that is left to say.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Calibrate(common) => calibrate(common),
        Command::Run(args) => run_cases(args),
        Command::Live(args) => run_live(args),
        Command::Predict(args) => run_predict(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("novaferry-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn calibrate(common: Common) -> Result<()> {
    let Common { sample, folder, output } = common;
    let folder = folder.unwrap_or_else(std::env::temp_dir);
    let machine = Machine::look()?;
    let constants = calibrate::measure(&machine, &folder, sample)?;
    Report(output).calibration(&machine, &constants, &cases::ceilings(&constants))
}

fn agent_or_default(agent: Option<PathBuf>) -> Result<PathBuf> {
    match agent {
        Some(agent) => Ok(agent),
        None => Ok(std::env::current_exe().context("find this program")?.with_file_name(AGENT)),
    }
}

fn new_folder(inside: Option<PathBuf>, keep: bool) -> Result<TempDir> {
    let inside = inside.unwrap_or_else(std::env::temp_dir);
    let mut folder = tempfile::Builder::new()
        .prefix("novaferry-bench-")
        .tempdir_in(&inside)
        .with_context(|| format!("make a folder in {}", inside.display()))?;
    folder.disable_cleanup(keep);
    Ok(folder)
}

fn run_live(args: LiveArgs) -> Result<()> {
    let LiveArgs { case, repeat, pairs, memory, seed, agent, keep, more, folder, output } = args;
    anyhow::ensure!(
        memory.is_none_or(|memory| memory >= LEAST_MEMORY),
        "choose a --memory of at least 64 MiB"
    );
    let agent = agent_or_default(agent)?;
    let folder = new_folder(folder, keep)?;
    let live =
        Live { case, repeat, pairs, memory, seed, agent: &agent, more: &more, folder: folder.path(), keep };
    let result = live::run(&live, Report(output));
    if keep {
        eprintln!("novaferry-bench: disks and logs are in {}", folder.path().display());
    }
    result
}

fn run_predict(args: PredictArgs) -> Result<()> {
    let PredictArgs { moves, seed, agent, keep, folder, output } = args;
    let agent = agent_or_default(agent)?;
    let folder = new_folder(folder, keep)?;
    let predict = Predict { moves, seed, agent: &agent, folder: folder.path(), keep };
    let result = live::predict(&predict, Report(output));
    if keep {
        eprintln!("novaferry-bench: disks and logs are in {}", folder.path().display());
    }
    result
}

fn run_cases(args: RunArgs) -> Result<()> {
    let RunArgs { case, size, repeat, seed, agent, keep, common: Common { sample, folder, output } } = args;
    let agent = agent_or_default(agent)?;
    let folder = new_folder(folder, keep)?;
    let report = Report(output);
    let bench = Bench::new(&agent, folder.path(), seed, size)?;
    let machine = Machine::look()?;
    let constants = calibrate::measure(&machine, folder.path(), sample)?;
    report.calibration(&machine, &constants, &cases::ceilings(&constants))?;
    let result = cases::run(&bench, case, repeat, &constants, keep, report);
    if keep {
        eprintln!("novaferry-bench: volumes and logs are in {}", folder.path().display());
    }
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_case_has_the_name_that_it_is_reported_under() {
        use clap::ValueEnum;
        for case in Case::value_variants() {
            assert_eq!(case.to_possible_value().unwrap().get_name(), case.name());
        }
    }
}
