//! Hosts, and what they say of themselves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Name;

/// A host of the fleet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Host {
    /// The name in its certificate.
    pub name: Name,
    /// Where it stands.
    pub site: Name,
    /// When it joined first.
    pub joined: Timestamp,
    /// When its certificates were revoked, if they were.
    pub revoked: Option<Timestamp>,
    /// When it was heard of last.
    pub seen: Option<Timestamp>,
    /// What it said last.
    pub observed: Option<Observed>,
}

/// What a host says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Observed {
    /// Release of its agent.
    pub version: String,
    /// `HOST:PORT` at which other agents reach it, best first; `NETWORK=HOST:PORT` on a network that links name.
    pub addresses: Vec<String>,
    /// Logical processors.
    pub processors: u32,
    /// RAM.
    pub memory_bytes: u64,
    /// RAM that could be given to a VM.
    pub memory_available_bytes: u64,
    /// The processor's model, as `/proc/cpuinfo` has it.
    pub processor: String,
    /// It has `/dev/kvm`.
    pub kvm: bool,
    /// Version of its QEMU, such as `10.0.2`; empty when it has none, or an older agent does not say.
    pub qemu: String,
    /// Its agent lets in what this coordinator sends, whatever `allow` of its settings says; an older one does not.
    pub expects: bool,
    /// Its agent keeps disks in step until a cut-over may be; an older one does not.
    pub waits: bool,
    /// Its agent dials where it cannot be dialled; an older one does not.
    pub calls: bool,
    /// Where disks can be put.
    pub pools: Vec<Pool>,
    /// Its virtual machines.
    pub vms: Vec<Vm>,
}

/// Where disks can be put.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name on that host.
    pub name: String,
    /// Bytes that are free.
    pub free_bytes: u64,
}

/// A virtual machine on a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `running`, `suspended` or `stopped`.
    pub state: String,
    /// How it can be moved: `live`, `cold-or-warm`, `not-yet` or `stopped`.
    pub access: String,
    /// Why it cannot be moved live; empty if it can.
    pub reason: String,
    /// What it needs; nothing where it is not known.
    #[serde(flatten)]
    pub needs: Needs,
}

/// What a VM needs of its host, as its QEMU was started, or, of one that is off, as it is defined. What is not known is
/// zero or empty, as all of it is with an older agent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Needs {
    /// RAM.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub processors: u32,
    /// Sizes of its disks as the guest sees them, together; zero when that of one is not known.
    pub disk_bytes: u64,
    /// The processor's model as QEMU was told, such as `host`, `max` or `Skylake-Server`: of one that runs.
    pub cpu: String,
    /// The machine's type as QEMU was told, such as `pc-q35-10.0`: of one that runs.
    pub machine: String,
    /// It runs on the processor itself (KVM).
    pub kvm: bool,
    /// Whose it is.
    pub tenant: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
