//! What is asked and answered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::specification::{Accelerator, StartRequest};

/// Longest request, bytes of JSON with the newline: a specification with all its devices is some tens of KiB.
pub const MAX_REQUEST: usize = 1 << 20;
/// Longest answer, bytes of JSON with the newline: a thousand VMs with the last words of each.
pub const MAX_ANSWER: usize = 16 << 20;
/// Most files of a fence: more disks than a VM may have.
pub const MAX_FENCED_FILES: usize = 256;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Start a VM and wait until its QMP socket answers.
    Start {
        /// The VM, bound to this host.
        request: Box<StartRequest>,
    },
    /// Put a VM in place without starting it: its folder and NovaCron's `config.json`. Repeating it does no harm.
    Define {
        /// The VM, bound to this host; how it would start means nothing.
        request: Box<StartRequest>,
    },
    /// How a VM is.
    Status {
        /// Its id.
        vm: String,
    },
    /// How all VMs are.
    List {},
    /// End a VM's QEMU and wait until it has ended.
    Stop {
        /// Its id.
        vm: String,
        /// At once (SIGKILL) instead of after flushing its disks (SIGTERM). The guest is asked in neither case.
        kill: bool,
    },
    /// Forget a VM that does not run: its sockets are removed and its disks given back to the agent. Fence and
    /// generation stay.
    Forget {
        /// Its id.
        vm: String,
    },
    /// Make it durable that this host must not start the VM at this generation or an older one.
    Fence {
        /// Its id.
        vm: String,
        /// The generation that the VM leaves with.
        generation: u64,
        /// Disks that are renamed besides NovaCron's own `disk.qcow2`.
        files: Vec<PathBuf>,
    },
    /// Undo the fence of exactly this generation.
    Unfence {
        /// Its id.
        vm: String,
        /// The generation of the fence.
        generation: u64,
    },
    /// Interrupt the post-copy that brings a VM here, also while QEMU answers nothing else.
    #[serde(rename = "migrate-pause")]
    MigratePause {
        /// Its id.
        vm: String,
    },
    /// Let a VM whose post-copy is interrupted listen again, also while QEMU answers nothing else.
    #[serde(rename = "migrate-recover")]
    MigrateRecover {
        /// Its id.
        vm: String,
        /// Name of a socket that is made in the folder of its sockets.
        socket: String,
    },
    /// All fences.
    Fences {},
    /// What this host's QEMU can run.
    Host {
        /// By which means.
        accelerator: Accelerator,
    },
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To `start`, `define`, `status` and `stop`.
    Vm(VmStatus),
    /// To `list`.
    Vms(Vec<VmStatus>),
    /// To `fence`.
    Fence(FenceStatus),
    /// To `fences`.
    Fences(Vec<FenceStatus>),
    /// To `host`.
    Host(HostStatus),
    /// To `forget`, `unfence` and what is said to QEMU.
    Done {},
    /// Nothing was done, or not all of it.
    Error(Refusal),
}

/// A VM that vmd started or put in place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its id.
    pub vm: String,
    /// The generation that it was started or put in place with.
    pub generation: u64,
    /// How it is.
    pub state: VmState,
    /// NovaCron's folder of it.
    pub folder: PathBuf,
    /// The folder of its sockets: `qmp.sock`, and `incoming.sock` for a migration.
    pub sockets: PathBuf,
    /// The user that it runs as.
    pub uid: u32,
    /// Whether that user is its own: false when vmd is not root.
    pub isolated: bool,
}

/// How a VM is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum VmState {
    /// Its QEMU runs; whether the guest does, QMP says.
    Running {
        /// Process id.
        pid: u32,
    },
    /// It was put in place and not started by vmd.
    Stopped {},
    /// Its QEMU has ended, or never came up.
    Exited {
        /// The last lines that it said.
        stderr: String,
    },
}

/// A fence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FenceStatus {
    /// The VM.
    pub vm: String,
    /// Starts of this generation and older ones are refused.
    pub generation: u64,
    /// When it was made, seconds since 1970.
    pub since: u64,
    /// Files that were renamed: old and new path.
    pub renamed: Vec<(PathBuf, PathBuf)>,
}

/// What a host's QEMU says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostStatus {
    /// Major, minor, micro.
    pub version: (u32, u32, u32),
    /// Its program; an older vmd does not say.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// Boards that it knows, aliases included.
    pub machines: Vec<String>,
    /// Processor models.
    pub processors: Vec<Processor>,
}

/// A processor model of a host's QEMU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Processor {
    /// Its name.
    pub name: String,
    /// Features of it that a guest would not get on this host.
    pub lacks: Vec<String>,
}

/// Why nothing was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind.
    pub kind: RefusalKind,
    /// What, and what to do about it.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RefusalKind {
    /// The peer may not ask.
    Forbidden,
    /// This is no request, or one that makes no sense.
    Invalid,
    /// There is no such VM.
    Unknown,
    /// The VM is fenced at this generation or a newer one.
    Fenced,
    /// A newer generation is known.
    Stale,
    /// The VM runs.
    Running,
    /// QEMU or the system failed.
    Failed,
}
