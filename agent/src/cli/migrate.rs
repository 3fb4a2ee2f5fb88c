//! `migrate`, `migration` and `vm`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use engine::migrate::cutover::{Cutover, now_ms};
use engine::migrate::status::Choice;
use tunnel::PeerName;

use super::{OutputArg, ProfileArg, SocketArgs, TransportArg, compression, duration, peer_name};
use crate::address::HostAddress;
use crate::config;
use crate::config::units::{ByteSize, Rate};
use crate::control::Request;
use crate::control::migration::{Migrate, Mode, Network, NoConverge, Transport};
use crate::env;
use crate::migrate;

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ModeArg {
    /// The VM runs on while its disks and its memory travel.
    #[default]
    Live,
    /// The disks travel while it runs; then it shuts down and boots there.
    Warm,
    /// The VM is off.
    Cold,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum NoConvergeArg {
    /// Give up; the guest goes on here.
    #[default]
    Cancel,
    /// Slow the guest's processors down until it converges.
    Throttle,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum VerifyDisksArg {
    /// Compare the tables that both ends keep while they copy.
    #[default]
    Tables,
    /// Read both disks while the guest is paused: the pause grows with them.
    Readback,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The daemon on this host moves the VM; this command starts that and shows how it goes. It may be left with Ctrl-C: the
migration goes on, and `novaferry-agent migration` looks after it. The other host must allow it: [migrate_in] there.

Examples:
  novaferry-agent migrate web-1 --to novaferry://host-b:7440 --dry-run
  novaferry-agent migrate web-1 --to novaferry://host-b:7440
  novaferry-agent migrate web-1 --to novaferry://[fd00::2]:7440 --pool gold --profile wan --max-downtime 1s
  novaferry-agent migrate web-1 --to novaferry://host-b --hold --detach --output json")]
pub(super) struct MigrateArgs {
    /// The VM, by its id or name, as `vm list` prints it.
    #[arg(value_name = "VM")]
    vm: String,
    /// The agent that takes it, such as novaferry://host-b:7440; the default port is 7440.
    #[arg(long, value_name = "ADDRESS")]
    to: HostAddress,
    /// Another address of the same agent, dialled when those before it do not answer; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    alternate: Vec<HostAddress>,
    /// The pool for its disks there; by default the one that its agent.toml names.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// How it moves.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Longest pause of the guest, such as 300ms or 2s.
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = duration)]
    max_downtime: Duration,
    /// Longest time for its memory to converge, such as 10m or 1h.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// How long a lost connection is waited for while the guest runs here, such as 30s; 0s gives up at once. It goes on
    /// with what was sent before. A guest that is paused already is never kept waiting: its move is undone.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    reconnect: Duration,
    /// What to do when the memory is dirtied faster than it travels.
    #[arg(long, value_enum, default_value_t)]
    on_no_converge: NoConvergeArg,
    /// Channels for the memory; 0 for a single stream.
    #[arg(long, value_name = "N", default_value_t = Migrate::MULTIFD, value_parser = clap::value_parser!(u8).range(0..=i64::from(Migrate::MAX_MULTIFD)))]
    multifd: u8,
    /// Switch to post-copy after the first pass: the guest runs at the destination before all of its memory is there, so
    /// it always converges. Once it runs there, losing either host or the link for good LOSES THE GUEST, for its memory is
    /// on both; a link that comes back is taken up again, and the guest waits meanwhile. Takes a single stream (--multifd
    /// means nothing).
    #[arg(long)]
    postcopy: bool,
    /// Memory at each end for finding what was sent before.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Migrate::RAM_CACHE))]
    ram_cache: ByteSize,
    /// Highest rate, such as 200Mbit/s or 50MB/s.
    #[arg(long, value_name = "RATE")]
    limit: Option<Rate>,
    /// How bytes travel.
    #[arg(long, value_enum, default_value_t)]
    transport: TransportArg,
    /// What lies between the hosts.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArg,
    /// Bind connections to this local address; give it several times for several links.
    #[arg(long, value_name = "ADDR")]
    via: Vec<IpAddr>,
    /// Talk to the host of this name only; without it, to any host of the same CA.
    #[arg(long, value_name = "NAME", value_parser = peer_name)]
    peer: Option<PeerName>,
    /// Compression of the memory: auto, off, or a level from -5 to 9.
    #[arg(long, value_name = "auto|off|LEVEL", default_value = "auto", value_parser = compression, allow_hyphen_values = true)]
    compress: reduce::Mode,
    /// How to make sure that the disks are equal before the guest runs there.
    #[arg(long, value_enum, default_value_t)]
    verify: VerifyDisksArg,
    /// Keep the copy here until `migration finalise`.
    #[arg(long)]
    hold: bool,
    /// Copy the disks now and keep them in step, until `migration cutover` lets the guest leave.
    #[arg(long, conflicts_with = "cutover_after")]
    seed: bool,
    /// Copy the disks now and keep them in step, and let the guest leave after this time, such as 2h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cutover_after: Option<Duration>,
    /// Say what would stand against it and what is to be expected, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Come back as soon as it has begun.
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_CONTROL)]
    socket: PathBuf,
    /// What to print.
    #[arg(long, value_enum, default_value_t)]
    pub(super) output: OutputArg,
}

/// That it may switch over after this time.
fn cutover(after: Option<Duration>) -> Cutover {
    after.map_or(Cutover::Now, |after| Cutover::At(now_ms().saturating_add(millis(after))))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl MigrateArgs {
    pub(super) fn settings(self) -> migrate::Settings {
        let Self {
            vm,
            to,
            alternate,
            pool,
            mode,
            max_downtime,
            timeout,
            reconnect,
            on_no_converge,
            multifd,
            postcopy,
            ram_cache,
            limit,
            transport,
            profile,
            via,
            peer,
            compress,
            verify,
            hold,
            seed,
            cutover_after,
            dry_run,
            detach,
            socket,
            output,
        } = self;
        let migrate = Migrate {
            vm,
            to: to.to_string(),
            called: false,
            alternates: alternate.iter().map(ToString::to_string).collect(),
            mode: match mode {
                ModeArg::Live => Mode::Live,
                ModeArg::Warm => Mode::Warm,
                ModeArg::Cold => Mode::Cold,
            },
            pool,
            max_downtime_ms: millis(max_downtime),
            timeout_ms: millis(timeout),
            reconnect_ms: millis(reconnect),
            on_no_converge: match on_no_converge {
                NoConvergeArg::Cancel => NoConverge::Cancel,
                NoConvergeArg::Throttle => NoConverge::Throttle,
            },
            multifd,
            postcopy,
            ram_cache: ram_cache.0,
            limit: limit.map(Rate::bytes_per_second),
            transport: match transport {
                TransportArg::Quic => Transport::Quic,
                TransportArg::Tcp => Transport::Tcp,
                TransportArg::Auto => Transport::Auto,
            },
            profile: match profile {
                ProfileArg::Lan => Network::Lan,
                ProfileArg::Wan => Network::Wan,
            },
            via,
            peer: peer.map(|peer| peer.to_string()),
            compress: match compress {
                reduce::Mode::Auto => Some(Migrate::COMPRESS),
                reduce::Mode::Off => None,
                reduce::Mode::Fixed(level) => Some(level),
            },
            readback: matches!(verify, VerifyDisksArg::Readback),
            hold,
            cutover: if seed { Cutover::Asked } else { cutover(cutover_after) },
            dry_run,
            traceparent: env::traceparent(),
        };
        migrate::Settings { migrate, detach, socket, output: output.into() }
    }
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Lists the VMs of this host, and how each can be moved.
    #[command(after_help = "Example:\n  novaferry-agent vm list --output json")]
    List {
        #[command(flatten)]
        socket: SocketArgs,
    },
}

impl VmArgs {
    pub(super) fn request(self) -> (SocketArgs, Request) {
        match self.command {
            VmCommand::List { socket } => (socket, Request::Vms {}),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct MigrationArgs {
    #[command(subcommand)]
    command: MigrationCommand,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeepArg {
    /// The copy that was paused: what the destination did since is lost.
    Source,
    /// The copy at the destination.
    Destination,
}

#[derive(Debug, Subcommand)]
enum MigrationCommand {
    /// Lists the migrations from and to this host, newest first.
    #[command(after_help = "Example:\n  novaferry-agent migration list --output json")]
    List {
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Shows one: where it stands, what was found, what was measured, what can be done.
    #[command(after_help = "Example:\n  novaferry-agent migration status 0123abcd")]
    Status {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Undoes one before the guest was allowed to run at the destination: it goes on at the source.
    #[command(after_help = "Example:\n  novaferry-agent migration cancel 0123abcd")]
    Cancel {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Lets a guest leave whose disks are kept in step (`migrate --seed`), or changes when it may.
    #[command(
        after_help = "Examples:\n  novaferry-agent migration cutover 0123abcd\n  novaferry-agent migration cutover 0123abcd --after 2h"
    )]
    Cutover {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        /// Not at once, but after this time.
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        after: Option<Duration>,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Gives up the source's copy of a guest that runs at the destination, after `migrate --hold`.
    #[command(after_help = "Example:\n  novaferry-agent migration finalise 0123abcd")]
    Finalise {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Back to the source: cancels, or says how to go back once the guest runs at the destination.
    #[command(after_help = "\
Once the guest has run at the destination, the source's memory is old: going back is a migration the other way, and
this command says which. With --discard-destination the guest is ended at the destination, for good, and goes on at the
source from the instant of the cut-over, as long as its copy there was not finalised: EVERYTHING THAT IT DID SINCE IS
LOST. Nothing runs at the source before the destination has confirmed; when it does not answer, see `migration resolve`.

Examples:
  novaferry-agent migration rollback 0123abcd
  novaferry-agent migration rollback 0123abcd --discard-destination")]
    Rollback {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        /// End the guest at the destination, and lose everything that it did there.
        #[arg(long)]
        discard_destination: bool,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Ends doubt: chooses the copy that is to live when the other host does not answer any more.
    #[command(after_help = "\
DANGER: when the other host is not off and stays off, the guest runs twice, and both write. Make sure that it is.

Example:
  novaferry-agent migration resolve 0123abcd --keep source --other-side-is-off")]
    Resolve {
        /// The migration, as `list` prints it, or the first digits of it.
        #[arg(value_name = "ID", value_parser = migration_id)]
        id: String,
        /// The copy that is to live.
        #[arg(long, value_enum)]
        keep: KeepArg,
        /// You have made sure that the host of the other copy is off and stays off.
        #[arg(long, required = true)]
        other_side_is_off: bool,
        #[command(flatten)]
        socket: SocketArgs,
    },
}

impl MigrationArgs {
    pub(super) fn request(self) -> (SocketArgs, Request) {
        use MigrationCommand as C;
        match self.command {
            C::List { socket } => (socket, Request::Migrations {}),
            C::Status { id, socket } => (socket, Request::Migration { id }),
            C::Rollback { id, discard_destination: true, socket } => {
                (socket, Request::MigrationTakeBack { id })
            }
            C::Cancel { id, socket } | C::Rollback { id, socket, .. } => {
                (socket, Request::MigrationCancel { id })
            }
            C::Cutover { id, after, socket } => {
                (socket, Request::MigrationCutover { id, cutover: cutover(after) })
            }
            C::Finalise { id, socket } => (socket, Request::MigrationFinalise { id }),
            // The flag is required, so it is there.
            C::Resolve { id, keep, other_side_is_off: _, socket } => {
                let keep = match keep {
                    KeepArg::Source => Choice::Source,
                    KeepArg::Destination => Choice::Destination,
                };
                (socket, Request::MigrationResolve { id, keep })
            }
        }
    }
}

fn migration_id(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|c| c.is_ascii_hexdigit());
    if (1..=32).contains(&text.len()) && digits {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a migration is up to 32 hexadecimal digits, as `migration list` prints it".to_owned())
}
