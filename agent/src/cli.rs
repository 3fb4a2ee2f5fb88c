//! The command line: what can be written, and how it becomes settings. Only here are clap's types; what each command
//! does is elsewhere.

mod join;
mod migrate;
mod pki;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::OsStringValueParser;
use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tunnel::{MAX_CONNECTIONS, PeerName, Profile, TransportChoice};
use volume::SessionId;
use wire::{Mode, VolumeFormat};

use crate::address::VolumeAddress;
use crate::config::units::Rate;
use crate::config::{self, Config, Log, LogFormat};
use crate::failure::{Exit, Failure};
use crate::observe::{self, Telemetry};
use crate::output::progress::TerminalLog;
use crate::output::{self, Format};
use crate::{control, copy, daemon, env, migrate as moving, verify};

/// Worker threads of the runtime: one that may be busy with a session's bookkeeping while the other answers signals,
/// control and metrics. Data is hashed and compressed on the engine's own threads, and connections have their own.
const RUNTIME_THREADS: usize = 2;

/// Moves virtual machines and volumes between hosts: encrypted, verified, resumable.
#[derive(Debug, Parser)]
#[command(name = "novaferry-agent", version, max_term_width = 100, after_help = TOP_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const TOP_HELP: &str = "\
Exit codes: 0 done and verified; 1 failed; 2 interrupted, run the same command again to go on; 64 wrong usage.
Environment: NOVAFERRY_LOG, a log filter such as \"info\" or \"novaferry_engine=debug,info\".

Examples:
  novaferry-agent pki init ca && novaferry-agent pki issue host-a --ca ca --out hosts
  novaferry-agent serve --config /etc/novaferry/agent.toml
  novaferry-agent copy disk.img novaferry://host-b:7440/gold/web-1 --identity hosts/host-a
  novaferry-agent migrate web-1 --to novaferry://host-b:7440";

#[derive(Debug, Subcommand)]
enum Command {
    /// Certificates without a coordinator: a local CA and the hosts' identities.
    Pki(pki::PkiArgs),
    /// Makes this host one of a coordinator's fleet, by a one-time token.
    Join(join::JoinArgs),
    /// Runs the daemon: takes volumes in and gives them out, as the configuration permits.
    Serve(ServeArgs),
    /// Copies a volume; run it again to resume.
    Copy(Box<CopyArgs>),
    /// Checks that a volume is what a receipt states.
    Verify(VerifyArgs),
    /// Sessions of the daemon on this host.
    Session(SessionArgs),
    /// Moves a running VM to another host.
    Migrate(Box<migrate::MigrateArgs>),
    /// Migrations from and to this host.
    Migration(migrate::MigrationArgs),
    /// Virtual machines of this host.
    Vm(migrate::VmArgs),
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OutputArg {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line on stdout.
    Json,
}

impl From<OutputArg> for Format {
    fn from(output: OutputArg) -> Self {
        match output {
            OutputArg::Text => Self::Text,
            OutputArg::Json => Self::Json,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Signals: SIGTERM drains (data in flight is made durable, sessions stay resumable) and ends with 0; SIGHUP reads the
identity and the revocation list again, which also happens by itself within seconds.

Examples:
  novaferry-agent serve --config /etc/novaferry/agent.toml
  novaferry-agent serve --config agent.toml --check-config")]
struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Only checks the file, the identity and the pools; unknown keys are errors.
    #[arg(long)]
    check_config: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// Byte for byte.
    Raw,
    /// A qcow2 image: what a guest would see of it, backing files included.
    Qcow2,
}

impl From<FormatArg> for VolumeFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum TransportArg {
    /// UDP only.
    Quic,
    /// TLS on TCP only, for networks that block UDP.
    Tcp,
    /// QUIC, and TCP if nothing answers on UDP.
    #[default]
    Auto,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ProfileArg {
    /// Little loss, perhaps jumbo frames (CUBIC).
    #[default]
    Lan,
    /// Long round trips, loss that is no congestion (BBR).
    Wan,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResyncArg {
    /// Believe the target's sealed leaf table; only the source is read.
    Trusted,
    /// Read both sides.
    Full,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum VerifyArg {
    /// Every chunk when it arrives, the whole by its root.
    #[default]
    Sink,
    /// In addition read everything back from the target.
    Readback,
}

#[derive(Debug, Args)]
#[command(after_help = "\
SRC and DST are each a path, a block device, nbd+unix:///EXPORT?socket=PATH, nbd://HOST/EXPORT, or (one of them)
novaferry://HOST[:PORT]/POOL/NAME; the default port is 7440, IPv6 addresses stand in brackets.

The receipt is always kept in the state folder, in receipts/; --receipt writes a copy where you want it.
State folder: --state, else $STATE_DIRECTORY, else /var/lib/novaferry for root and ~/.local/state/novaferry for others.

Examples:
  novaferry-agent copy disk.img novaferry://host-b/gold/web-1 --identity hosts/host-a
  novaferry-agent copy novaferry://[fd00::2]:7440/gold/web-1 web-1.qcow2 --identity hosts/host-a --profile wan
  novaferry-agent copy /dev/vg/web novaferry://host-b/gold/web-1 --identity hosts/host-a --resync trusted
  novaferry-agent copy web.qcow2 web.img --output json")]
struct CopyArgs {
    /// The volume to read.
    #[arg(value_name = "SRC", value_parser = address())]
    source: VolumeAddress,
    /// The volume to write.
    #[arg(value_name = "DST", value_parser = address())]
    target: VolumeAddress,
    /// This host's identity: the folder that `pki issue` made.
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Talk to the host of this name only; without it, to any host of the same CA.
    #[arg(long, value_name = "NAME", value_parser = peer_name)]
    peer: Option<PeerName>,
    /// How bytes travel.
    #[arg(long, value_enum, default_value_t)]
    transport: TransportArg,
    /// What lies between the hosts.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArg,
    /// Compression: auto, off, or a level from -5 to 9.
    #[arg(long, value_name = "auto|off|LEVEL", default_value = "auto", value_parser = compression, allow_hyphen_values = true)]
    compress: reduce::Mode,
    /// Connections that carry data.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CONNECTIONS)))]
    connections: u8,
    /// Bind connections to this local address; give it several times for several links.
    #[arg(long, value_name = "ADDR")]
    via: Vec<IpAddr>,
    /// Highest rate, such as 200Mbit/s or 50MB/s.
    #[arg(long, value_name = "RATE")]
    limit: Option<Rate>,
    /// Overwrite an old copy, sending only what differs.
    #[arg(long, value_enum)]
    resync: Option<ResyncArg>,
    /// How to verify before the copy is sealed.
    #[arg(long, value_enum, default_value_t)]
    verify: VerifyArg,
    /// Also write the receipt here.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
    /// How the source is stored; by default qcow2 if its name ends so. Content is never probed.
    #[arg(long, value_enum)]
    source_format: Option<FormatArg>,
    /// How the target is to be stored; by default qcow2 if its name ends so.
    #[arg(long, value_enum)]
    target_format: Option<FormatArg>,
    /// Leave internal snapshots and stored bitmaps of a qcow2 source behind.
    #[arg(long)]
    drop_snapshots: bool,
    /// Where to keep journals, keys and receipts.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// How long to keep dialling without progress, such as 30s, 10m or 2h.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    patience: Duration,
    /// Open and check both ends as far as possible, say what would happen, change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The hash key is looked for in --key, in the state folder of `copy`, and in the pools of --config.
Without --trust the signature is not checked, which is said.

Examples:
  novaferry-agent verify receipt.json disk.img --trust hosts/host-a
  novaferry-agent verify receipt.json /srv/novaferry/gold/web-1 --config /etc/novaferry/agent.toml --trust hosts/host-b")]
struct VerifyArgs {
    /// The receipt.
    #[arg(value_name = "RECEIPT")]
    receipt: PathBuf,
    /// The volume: a path, a block device or an NBD export.
    #[arg(value_name = "VOLUME", value_parser = address())]
    volume: VolumeAddress,
    /// Check the signature against ca.pem, and crl.pem if it is there, in this folder.
    #[arg(long, value_name = "DIR")]
    trust: Option<PathBuf>,
    /// The hash key, or a folder of keys.
    #[arg(long, value_name = "FILE|DIR")]
    key: Option<PathBuf>,
    /// Look for the hash key in the pools of this configuration too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the volume is stored; by default qcow2 if its name ends so.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// State folder of `copy`, which has keys.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

#[derive(Debug, Args)]
struct SessionArgs {
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Debug, Args)]
struct SocketArgs {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_CONTROL)]
    socket: PathBuf,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

#[derive(Debug, Subcommand)]
enum SessionCommand {
    /// Lists the sessions that run.
    #[command(after_help = "Example:\n  novaferry-agent session list --output json")]
    List {
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Ends a session; its peer is told, and may run the same command again later.
    #[command(after_help = "Example:\n  novaferry-agent session cancel 0123456789abcdef0123456789abcdef")]
    Cancel {
        /// The session, as `list` prints it.
        #[arg(value_name = "SESSION", value_parser = session_id)]
        session: SessionId,
        #[command(flatten)]
        socket: SocketArgs,
    },
}

fn address() -> impl TypedValueParser<Value = VolumeAddress> {
    OsStringValueParser::new().try_map(|text: OsString| VolumeAddress::parse(&text))
}

fn peer_name(text: &str) -> Result<PeerName, tunnel::InvalidPeerName> {
    text.parse()
}

fn session_id(text: &str) -> Result<SessionId, String> {
    text.parse().map_err(|_none| "a session is 32 hexadecimal digits, as `session list` prints it".to_owned())
}

fn compression(text: &str) -> Result<reduce::Mode, String> {
    match text {
        "auto" => Ok(reduce::Mode::Auto),
        "off" => Ok(reduce::Mode::Off),
        _ => match text.parse() {
            Ok(level) if reduce::codec::LEVELS.contains(&level) => Ok(reduce::Mode::Fixed(level)),
            _ => Err(format!(
                "write auto, off, or a level from {} to {}",
                reduce::codec::LEVELS.start(),
                reduce::codec::LEVELS.end()
            )),
        },
    }
}

/// `300ms`, `30s`, `10m`, `2h`, or `0` for no time at all.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    // In milliseconds.
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == "0" => 1,
        _ => return Err("write a whole number and ms, s, m or h, such as 2m".to_owned()),
    };
    let millis = number.parse().ok().and_then(|number: u64| number.checked_mul(factor));
    match millis {
        // A year: longer is a mistake, and far below what clocks can add.
        Some(millis) if millis <= 365 * 86_400_000 => Ok(Duration::from_millis(millis)),
        _ => Err("write a whole number and ms, s, m or h, up to a year, such as 2m".to_owned()),
    }
}

impl CopyArgs {
    fn settings(self) -> Result<copy::Settings, Failure> {
        let Self {
            source,
            target,
            identity,
            peer,
            transport,
            profile,
            compress,
            connections,
            via,
            limit,
            resync,
            verify,
            receipt,
            output,
            source_format,
            target_format,
            drop_snapshots,
            state,
            patience,
            dry_run,
        } = self;
        let target_format = target_format.map_or_else(|| copy::default_format(&target), VolumeFormat::from);
        Ok(copy::Settings {
            route: copy::Route::new(source, target, source_format.map(VolumeFormat::from), target_format)?,
            identity,
            peer,
            transport: match transport {
                TransportArg::Quic => TransportChoice::Quic,
                TransportArg::Tcp => TransportChoice::Tcp,
                TransportArg::Auto => TransportChoice::Auto,
            },
            profile: match profile {
                ProfileArg::Lan => Profile::Lan,
                ProfileArg::Wan => Profile::Wan,
            },
            connections,
            via,
            limit: limit.map(Rate::bytes_per_second),
            compress,
            mode: match resync {
                None => Mode::Create,
                Some(ResyncArg::Trusted) => Mode::ResyncTrusted,
                Some(ResyncArg::Full) => Mode::ResyncFull,
            },
            readback: matches!(verify, VerifyArg::Readback),
            target_format,
            drop_snapshots,
            receipt,
            state,
            patience,
            dry_run,
            output: output.into(),
        })
    }
}

/// Runs the program: reads the command line, does what it says, prints what came of it.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr: nobody reads.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let (format, result) = match cli.command {
        Command::Pki(args) => pki::run(args),
        Command::Join(args) => join::run(args),
        Command::Serve(args) => (Format::Text, serve(&args)),
        Command::Copy(args) => {
            let format = args.output.into();
            (format, args.settings().and_then(|settings| interactive(format, copy::run(settings))))
        }
        Command::Verify(args) => {
            let format = args.output.into();
            (format, verify_settings(args).and_then(|settings| interactive(format, verify::run(settings))))
        }
        Command::Session(args) => session(args),
        Command::Migrate(args) => {
            let format = args.output.into();
            (format, interactive(format, moving::run(args.settings())))
        }
        Command::Migration(args) => asked(args.request()),
        Command::Vm(args) => asked(args.request()),
    };
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output::failure(format, &failure);
            failure.exit().into()
        }
    }
}

fn verify_settings(args: VerifyArgs) -> Result<verify::Settings, Failure> {
    let VerifyArgs { receipt, volume, trust, key, config, format, state, output } = args;
    let format = format.map_or_else(|| copy::default_format(&volume), VolumeFormat::from);
    let volume = copy::local(volume, Some(format)).map_err(|remote| {
        Failure::usage(
            format!("{remote} is on another host"),
            "run `verify` there on the file in its pool, or pull the volume first",
        )
    })?;
    Ok(verify::Settings { receipt, volume, trust, key, config, state, output: output.into() })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build().map_err(
        |error| {
            Failure::new(
                "runtime",
                format!("cannot start threads: {error}"),
                "check the limits of this process",
            )
        },
    )
}

/// Runs a command that a person may watch: logs go to stderr around the line of progress.
fn interactive(format: Format, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let log = Log { format: LogFormat::Text, level: copy::log_level(format).to_owned() };
    let (subscriber, telemetry) =
        observe::logs::subscriber(&log, env::log_filter(), None, "copy", || TerminalLog)?;
    observe::logs::install(subscriber)?;
    let result = runtime()?.block_on(work);
    end(telemetry);
    result
}

fn end(telemetry: Telemetry) {
    if let Err(error) = telemetry.shutdown() {
        tracing::warn!(%error, "traces");
    }
}

fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let (config, warnings) = Config::load(&args.config)?;
    if args.check_config {
        if !warnings.is_empty() {
            let keys: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
            return Err(Failure::new(
                "config-unknown-key",
                format!("{}: unknown keys: {}", args.config.display(), keys.join(", ")),
                "remove them or correct their spelling; agent.toml.example shows every key",
            ));
        }
        daemon::check(&config)?;
        output::line(&format!("{}: all is well", args.config.display()));
        return Ok(());
    }
    let host = daemon::host_name(&config)?;
    let telemetry = observe::init(&config.log, config.otlp.as_ref(), &host)?;
    for warning in warnings {
        tracing::warn!(file = %args.config.display(), "{warning}");
    }
    let result = runtime()?.block_on(daemon::run(config));
    end(telemetry);
    result
}

fn session(args: SessionArgs) -> (Format, Result<(), Failure>) {
    let SessionArgs { command } = args;
    asked(match command {
        SessionCommand::List { socket } => (socket, control::Request::List {}),
        SessionCommand::Cancel { session, socket } => {
            (socket, control::Request::Cancel { session: session.to_string() })
        }
    })
}

/// Asks the daemon and prints its answer.
fn asked((socket, request): (SocketArgs, control::Request)) -> (Format, Result<(), Failure>) {
    let format = Format::from(socket.output);
    let result = runtime()
        .and_then(|runtime| runtime.block_on(control::client::run(&socket.socket, &request, format)));
    (format, result)
}
