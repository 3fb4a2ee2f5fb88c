//! What the two agents of a migration tell each other on the control stream: JSON in `Message` frames of at most
//! 64 KiB. The first message carries [`VERSION`]; another is refused by name.

use serde::{Deserialize, Serialize};
use session::cutover::Verdict;

use super::layer2::Segment;
use super::mode::Mode;
use super::preflight::Finding;
use hypervisor::specification::VmSpecification;

/// Version of these messages.
pub const VERSION: u32 = 1;

/// What the source asks for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// [`VERSION`].
    pub version: u32,
    /// With the memory, without it, or switched off.
    #[serde(default)]
    pub mode: Mode,
    /// What is to run.
    pub specification: VmSpecification,
    /// The newest generation of the VM that the source knows.
    pub generation: u64,
    /// QEMU's version at the source: major, minor, micro; zeros when none runs.
    pub qemu: (u32, u32, u32),
    /// Features of the VM's processor model that the source does not have either.
    #[serde(default)]
    pub cpu_lacks: Vec<String>,
    /// multifd channels; 0 for a single stream.
    pub multifd: u8,
    /// Pages that the receiver keeps for the reduction of RAM.
    pub slots: u32,
    /// Post-copy may be used.
    pub postcopy: bool,
    /// The source's clock, milliseconds since 1970.
    pub clock_ms: u64,
    /// Only say what would be wrong.
    pub dry_run: bool,
    /// Where to put the disks; the receiver's default pool when none.
    pub pool: Option<String>,
    /// How long the source waits for a connection that was lost, milliseconds.
    #[serde(default)]
    pub reconnect_ms: u64,
    /// What the source knows of the bridges that the VM's cards are in, at most [`MAX_SEGMENTS`](super::layer2::MAX_SEGMENTS).
    #[serde(default)]
    pub segments: Vec<Segment>,
    /// W3C context of the source's span, which the destination's follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// A piece of the probe that measures the link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// [`VERSION`].
    pub version: u32,
    /// Which burst it belongs to.
    pub nth: u32,
    /// The last of its burst: to be answered.
    pub answer: bool,
    /// Bytes that mean nothing.
    pub padding: String,
}

/// A disk's root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskRoot {
    /// The disk's id in the specification.
    pub disk: String,
    /// Merkle root, 64 hexadecimal digits.
    pub root: String,
}

/// From the source.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromSource {
    /// Measures the link, before `Prepare`. Nothing is made for it.
    Probe(Probe),
    /// Make room.
    Prepare(Box<Prepare>),
    /// Compare these with what was written there.
    Compare {
        /// In the specification's order.
        roots: Vec<DiskRoot>,
        /// Read the disks for it instead of believing the tables.
        readback: bool,
    },
    /// The single-use right to run the guest.
    Permit {
        /// Of this generation.
        generation: u64,
        /// What both ends found the disks to be.
        roots: Vec<DiskRoot>,
    },
    /// The connection was lost: go on with what came before it.
    Rejoin {},
    /// What became of the permit?
    Ask {},
    /// Is the guest well?
    Prove {},
    /// Throw away what was received.
    Abort {
        /// For people.
        reason: String,
    },
    /// End the guest for good, even if it runs: an operator takes it back.
    Revoke {},
    /// The source's copy is given up.
    Finalise {},
    /// In post-copy: the connection was lost; let QEMU listen again.
    Recover {
        /// Number of this attempt; its channels are numbered by it.
        epoch: u16,
        /// Pages that the receiver keeps for the reduction of RAM.
        slots: u32,
    },
    /// In post-copy: what the guest's memory still lacks is gone for good.
    Lost {
        /// For people.
        reason: String,
    },
}

/// From the destination.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromDestination {
    /// A burst of the probe is here.
    Probed {
        /// Which.
        nth: u32,
    },
    /// Ready to receive, or, after a dry run, what would stand against it.
    Prepared {
        /// This attempt's generation.
        generation: u64,
        /// Key of the leaf tables, 64 hexadecimal digits.
        key: String,
        /// What was noticed.
        findings: Vec<Finding>,
    },
    /// Nothing was made.
    Refused {
        /// For people: what and what to do.
        reason: String,
        /// What stands against it.
        findings: Vec<Finding>,
    },
    /// Everything is still here, and the channels may come.
    Rejoined {},
    /// The outcome of a comparison.
    Compared {
        /// Disks whose roots differ.
        differing: Vec<String>,
        /// How long it took, microseconds.
        micros: u64,
    },
    /// The guest runs here.
    Runs {},
    /// The guest never ran here and never will under this migration.
    NotRun {
        /// For people.
        reason: String,
    },
    /// The answer to a question.
    Verdict {
        /// The answer.
        verdict: Verdict,
    },
    /// The answer to `Prove`.
    Proof {
        /// What the hypervisor says of the guest.
        status: String,
        /// Empty when the guest is well.
        complaint: String,
        /// Nothing is wrong, and the guest's memory is not all there yet: ask again.
        pending: bool,
    },
    /// The guest is this host's alone.
    Finalised {
        /// The signed receipts of the cut-over, one a disk, as JSON.
        receipts: Vec<String>,
    },
    /// QEMU listens again.
    Recovering {
        /// As asked for.
        epoch: u16,
    },
}

/// A message as bytes.
///
/// # Errors
/// When it is longer than a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let bytes = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    if bytes.len() > wire::MAX_CONTROL_BODY {
        return Err(format!("a message of {} bytes does not fit a frame", bytes.len()));
    }
    Ok(bytes)
}

/// Bytes as a message.
///
/// # Errors
/// When they are no message of this version.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the peer sent no message of ours: {error}"))
}
