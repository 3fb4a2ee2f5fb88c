//! What is said about migrations and virtual machines on the control socket.

use std::collections::BTreeMap;
use std::net::IpAddr;

use engine::migrate::cutover::Cutover;
use engine::migrate::record::{Record, Role};
use engine::migrate::status::Status;
use serde::{Deserialize, Serialize};

/// How a VM moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It runs on while its disks and its memory travel.
    #[default]
    Live,
    /// Its disks travel while it runs; then it is shut down and boots at the destination.
    Warm,
    /// It does not run.
    Cold,
}

/// What to do when the memory is dirtied faster than it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoConverge {
    /// Give up; the guest goes on at the source.
    #[default]
    Cancel,
    /// Slow the guest's processors down.
    Throttle,
}

/// How bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// UDP only.
    Quic,
    /// TLS on TCP only.
    Tcp,
    /// QUIC, and TCP if nothing answers on UDP.
    #[default]
    Auto,
}

/// What lies between the hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Little loss.
    #[default]
    Lan,
    /// Long round trips, loss that is no congestion.
    Wan,
}

/// Which VM goes where, and how. Only `vm` and `to` must be given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The VM's id or name.
    pub vm: String,
    /// `novaferry://HOST:PORT`.
    pub to: String,
    /// More addresses of the same host, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternates: Vec<String>,
    /// That host dials this one, when no address before answers; `to` may be empty then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub called: bool,
    /// How.
    #[serde(default)]
    pub mode: Mode,
    /// Pool for the disks there; the receiver's default when none.
    #[serde(default)]
    pub pool: Option<String>,
    /// Longest pause of the guest, milliseconds.
    #[serde(default = "Migrate::default_downtime")]
    pub max_downtime_ms: u64,
    /// Longest time for the memory to converge, milliseconds.
    #[serde(default = "Migrate::default_timeout")]
    pub timeout_ms: u64,
    /// How long a lost connection is waited for while the guest runs at the source, milliseconds.
    #[serde(default = "Migrate::default_reconnect")]
    pub reconnect_ms: u64,
    /// What to do when it does not converge.
    #[serde(default)]
    pub on_no_converge: NoConverge,
    /// multifd channels; 0 for a single stream.
    #[serde(default = "Migrate::default_multifd")]
    pub multifd: u8,
    /// Let the guest run there before all of its memory is there: once it runs, losing either host loses the guest.
    #[serde(default)]
    pub postcopy: bool,
    /// Memory at each end for the reduction of RAM, bytes.
    #[serde(default = "Migrate::default_ram_cache")]
    pub ram_cache: u64,
    /// Bytes a second, both directions together.
    #[serde(default)]
    pub limit: Option<u64>,
    /// How bytes travel.
    #[serde(default)]
    pub transport: Transport,
    /// What lies between the hosts.
    #[serde(default)]
    pub profile: Network,
    /// Local addresses to dial from.
    #[serde(default)]
    pub via: Vec<IpAddr>,
    /// Talk to the host of this name only.
    #[serde(default)]
    pub peer: Option<String>,
    /// zstd level for RAM, `null` for none.
    #[serde(default = "Migrate::default_compress")]
    pub compress: Option<i32>,
    /// Read both disks in the pause instead of comparing the tables that both ends kept.
    #[serde(default)]
    pub readback: bool,
    /// Keep the source's copy until `migration-finalise`.
    #[serde(default)]
    pub hold: bool,
    /// When it may switch over; until then its disks are kept in step.
    #[serde(default, skip_serializing_if = "Cutover::is_now")]
    pub cutover: Cutover,
    /// Say what would stand against it, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// W3C context of the trace that this is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Migrate {
    /// Longest pause of a guest, milliseconds: QEMU's own default.
    pub const DOWNTIME_MS: u64 = 300;
    /// Longest time for the memory to converge, milliseconds.
    pub const TIMEOUT_MS: u64 = 600_000;
    /// How long a lost connection is waited for, milliseconds: a switch or a router that starts again takes less.
    pub const RECONNECT_MS: u64 = 60_000;
    /// The longest that can be asked for: as long as a destination waits.
    pub const MAX_RECONNECT_MS: u64 = 600_000;
    /// multifd channels: more do not help one link.
    pub const MULTIFD: u8 = 2;
    /// Most of them.
    pub const MAX_MULTIFD: u8 = 8;
    /// Memory for the reduction of RAM, bytes: what a receiver allows by default.
    pub const RAM_CACHE: u64 = 256 << 20;
    /// zstd level for RAM: the fastest that still finds more than repetitions; pages that pay were found by then.
    pub const COMPRESS: i32 = 1;

    /// A migration with all defaults.
    #[must_use]
    pub fn new(vm: impl Into<String>, to: impl Into<String>) -> Self {
        Self {
            vm: vm.into(),
            to: to.into(),
            alternates: Vec::new(),
            called: false,
            mode: Mode::default(),
            pool: None,
            max_downtime_ms: Self::DOWNTIME_MS,
            timeout_ms: Self::TIMEOUT_MS,
            reconnect_ms: Self::RECONNECT_MS,
            on_no_converge: NoConverge::default(),
            multifd: Self::MULTIFD,
            postcopy: false,
            ram_cache: Self::RAM_CACHE,
            limit: None,
            transport: Transport::default(),
            profile: Network::default(),
            via: Vec::new(),
            peer: None,
            compress: Some(Self::COMPRESS),
            readback: false,
            hold: false,
            cutover: Cutover::Now,
            dry_run: false,
            traceparent: None,
        }
    }

    fn default_downtime() -> u64 {
        Self::DOWNTIME_MS
    }

    fn default_timeout() -> u64 {
        Self::TIMEOUT_MS
    }

    fn default_reconnect() -> u64 {
        Self::RECONNECT_MS
    }

    fn default_multifd() -> u8 {
        Self::MULTIFD
    }

    fn default_ram_cache() -> u64 {
        Self::RAM_CACHE
    }

    #[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
    fn default_compress() -> Option<i32> {
        Some(Self::COMPRESS)
    }
}

/// How a VM can be moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "can", rename_all = "kebab-case")]
pub enum ListedAccess {
    /// Live.
    Live {
        /// The socket at which its QEMU listens.
        qmp: String,
    },
    /// It runs, but cannot be driven.
    ColdOrWarmOnly {
        /// Why.
        reason: String,
        /// The option that QEMU needs at its next start.
        fix: String,
    },
    /// Not by this version.
    NotYet {
        /// Why.
        reason: String,
    },
    /// It does not run.
    Stopped,
}

/// A virtual machine as it is listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedVm {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `running`, `suspended` or `stopped`.
    pub state: String,
    /// How it can be moved.
    pub access: ListedAccess,
    /// Its QEMU's process.
    pub pid: Option<u32>,
    /// Its folder.
    pub folder: Option<String>,
    /// What it needs of its host; an older daemon does not say.
    #[serde(default, flatten)]
    pub needs: ListedNeeds,
    /// What is odd about it.
    pub findings: Vec<String>,
}

/// What a virtual machine needs of its host, as its QEMU was started, or, of one that is off, as it is defined. What is
/// not known is zero or empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListedNeeds {
    /// RAM.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub processors: u32,
    /// Sizes of its disks as the guest sees them, together; zero when that of one is not known.
    pub disk_bytes: u64,
    /// The processor's model as QEMU was told: of one that runs.
    pub cpu: String,
    /// The machine's type as QEMU was told: of one that runs.
    pub machine: String,
    /// It runs on the processor itself.
    pub kvm: bool,
    /// Whose it is.
    pub tenant: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A migration as it is listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedMigration {
    /// Its id.
    pub migration: String,
    /// The VM's id.
    pub vm: String,
    /// This host's part: `source` or `destination`.
    pub role: String,
    /// Where it stands.
    pub state: String,
    /// The other host; empty until it was reached.
    pub peer: String,
    /// Fencing number of the VM; 0 until it was given.
    pub generation: u64,
    /// When it began, seconds since 1970.
    pub began: u64,
    /// When its record last changed, seconds since 1970.
    pub changed: u64,
    /// Nobody works on it in this daemon any more.
    pub over: bool,
}

impl ListedMigration {
    /// What a record says.
    #[must_use]
    pub fn new(record: &Record, over: bool) -> Self {
        Self {
            migration: record.migration.clone(),
            vm: record.vm.clone(),
            role: role_name(&record.role).to_owned(),
            state: record.state_name().to_owned(),
            peer: record.peer.clone(),
            generation: record.generation,
            began: record.began,
            changed: record.changed,
            over,
        }
    }
}

/// A role's name.
#[must_use]
pub fn role_name(role: &Role) -> &'static str {
    match role {
        Role::Source { .. } => "source",
        Role::Destination { .. } => "destination",
    }
}

/// A migration with everything that is known of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// Record, figures of this instant, findings.
    #[serde(flatten)]
    pub status: Status,
    /// Nobody works on it in this daemon any more.
    pub over: bool,
}
