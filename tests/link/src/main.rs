//! `novaferry-link`: a link emulator as a command, for benchmarks of any program.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use novaferry_link::units::parse_duration;
use novaferry_link::{BitRate, DEVICE, DirectionSpec, Link, LinkSpec, Probability, Queue, Side};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for a wrong command line (sysexits.h).
const USAGE: u8 = 64;

/// The shell's convention for a process that a signal has ended.
const SIGNAL_BASE: i32 = 128;

const EXAMPLES: &str = "\
Examples:
  A 200 Mbit/s link with 50 ms round trip and 1 % loss, measured with iperf3:
    novaferry-link --rate 200mbit --delay 25ms --loss 1% -- sh -c '
      ip netns exec $NOVAFERRY_LINK_B iperf3 -s -1 -D
      ip netns exec $NOVAFERRY_LINK_A iperf3 -c $NOVAFERRY_LINK_B_ADDR'

  A ping from inside side A:
    novaferry-link --delay 25ms --inside a -- ping -c 3 10.83.0.2

  A link that stays up until Ctrl-C; its namespaces are printed as JSON:
    novaferry-link --rate 1gbit --delay 10ms --jitter 2ms

Exit code: that of COMMAND (128 + n if signal n ended it), 1 if the link fails, 64 for a wrong command line.";

/// Two network namespaces joined by a link with a rate, delay, jitter, loss, reordering, duplication and MTU.
///
/// Prints one line of JSON with the names and addresses of both namespaces, then runs COMMAND, or waits for SIGINT or
/// SIGTERM without one, and removes everything. COMMAND finds the same in NOVAFERRY_LINK_A, NOVAFERRY_LINK_B (names of
/// the namespaces), NOVAFERRY_LINK_A_ADDR and NOVAFERRY_LINK_B_ADDR. The settings apply to each direction. Needs root.
#[derive(Parser, Debug)]
#[command(name = "novaferry-link", version, after_help = EXAMPLES)]
struct Cli {
    /// Bits a second of IP packets, e.g. 200mbit [default: as fast as this machine can]
    #[arg(long)]
    rate: Option<BitRate>,
    /// One-way delay, e.g. 25ms
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    delay: Duration,
    /// Each packet's delay is drawn from delay - jitter to delay + jitter
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    jitter: Duration,
    /// Packets do not overtake each other because of jitter
    #[arg(long)]
    keep_order: bool,
    /// Part of the packets that is lost, e.g. 1% or 0.01
    #[arg(long, default_value = "0")]
    loss: Probability,
    /// Part of the packets that is held back so that later ones overtake
    #[arg(long, default_value = "0")]
    reorder: Probability,
    /// How long they are held back
    #[arg(long, default_value = "5ms", value_parser = parse_duration)]
    reorder_delay: Duration,
    /// Part of the packets that arrives twice
    #[arg(long, default_value = "0")]
    duplicate: Probability,
    /// Part of the packets in which one bit is flipped
    #[arg(long, default_value = "0")]
    corrupt: Probability,
    /// How much may wait for the rate before packets are dropped, as time or size, e.g. 256kb
    #[arg(long, default_value = "50ms")]
    queue: Queue,
    /// Drop every UDP packet
    #[arg(long)]
    block_udp: bool,
    /// Largest IP packet in bytes
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Fixes every random decision
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run COMMAND inside this side's namespace
    #[arg(long, value_enum, requires = "command")]
    inside: Option<Inside>,
    /// Print the link's counters as a second line of JSON at the end
    #[arg(long)]
    stats: bool,
    /// The program to run, with its arguments
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Inside {
    A,
    B,
}

impl Cli {
    fn spec(&self) -> LinkSpec {
        let direction = DirectionSpec {
            rate: self.rate,
            delay: self.delay,
            jitter: self.jitter,
            keep_order: self.keep_order,
            loss: self.loss,
            reorder: self.reorder,
            reorder_delay: self.reorder_delay,
            duplicate: self.duplicate,
            corrupt: self.corrupt,
            queue: self.queue,
            block_udp: self.block_udp,
        };
        LinkSpec { mtu: self.mtu, seed: self.seed, ..LinkSpec::symmetric(direction) }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If not even the usage can be printed, the exit code is all that is left to say.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("novaferry-link: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        // Before the link is up, so that no signal can end us without the teardown.
        let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
        let link = Link::up(&cli.spec())?;
        print_line(&description(&link, cli))?;
        let mut child = start(cli, &link)?;
        let code = loop {
            let signal = tokio::select! {
                status = wait(child.as_mut()) => break exit_code(status.context("wait for the command")?),
                _ = interrupt.recv() => Signal::INT,
                _ = terminate.recv() => Signal::TERM,
            };
            match child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                Some(pid) => kill_process(pid, signal).context("pass the signal on to the command")?,
                None => break ExitCode::SUCCESS,
            }
        };
        if cli.stats {
            print_line(&serde_json::to_value(link.stats()?).context("encode the counters")?)?;
        }
        Ok(code)
    })
}

fn start(cli: &Cli, link: &Link) -> Result<Option<Child>> {
    let Some((program, arguments)) = cli.command.split_first() else { return Ok(None) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("NOVAFERRY_LINK_A", link.namespace(Side::A))
        .env("NOVAFERRY_LINK_B", link.namespace(Side::B))
        .env("NOVAFERRY_LINK_A_ADDR", Side::A.address().to_string())
        .env("NOVAFERRY_LINK_B_ADDR", Side::B.address().to_string())
        .kill_on_drop(true);
    let runtime = tokio::runtime::Handle::current();
    let mut spawn = move || {
        let _guard = runtime.enter();
        command.spawn()
    };
    let child = match cli.inside {
        None => spawn(),
        Some(Inside::A) => link.enter(Side::A, spawn)?,
        Some(Inside::B) => link.enter(Side::B, spawn)?,
    };
    Ok(Some(child.with_context(|| format!("start {program}"))?))
}

/// Waits for the command; without one, for ever.
async fn wait(child: Option<&mut Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_BASE + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn description(link: &Link, cli: &Cli) -> serde_json::Value {
    let side = |side: Side| {
        serde_json::json!({
            "namespace": link.namespace(side),
            "address": side.address(),
            "address_v6": side.address_v6(),
        })
    };
    serde_json::json!({
        "a": side(Side::A),
        "b": side(Side::B),
        "device": DEVICE,
        "mtu": cli.mtu,
        "seed": cli.seed,
    })
}

fn print_line(value: &serde_json::Value) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}").and_then(|()| stdout.flush()).context("print to standard output")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use novaferry_link::{BitRate, Queue};

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_reach_the_link() {
        let line = "novaferry-link --rate 200mbit --delay 25ms --jitter 0 --loss 1% --reorder 0 --duplicate 0 \
                    --mtu 1400 --queue 256kb --seed 7 -- true -x";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let spec = cli.spec();
        assert_eq!(spec.a_to_b, spec.b_to_a);
        assert_eq!(spec.a_to_b.rate, Some(BitRate::megabits(200).unwrap()));
        assert_eq!(spec.a_to_b.queue, Queue::Bytes(256_000));
        assert_eq!((spec.mtu, spec.seed), (1400, 7));
        assert_eq!(cli.command, ["true", "-x"]);
    }

    #[test]
    fn wrong_values_are_explained() {
        let error = Cli::try_parse_from(["novaferry-link", "--loss", "200%"]).unwrap_err();
        assert!(error.to_string().contains("1% or 0.01"), "{error}");
        assert!(Cli::try_parse_from(["novaferry-link", "--inside", "a"]).is_err(), "nothing to run inside");
    }
}
