//! What can be seen of a migration from outside, and what can be asked of it.

use serde::{Deserialize, Serialize};
pub use session::cutover::{Choice, DestinationState, SourceState};
use tokio::sync::{mpsc, watch};

use super::cutover::Cutover;
use super::preflight::Finding;
use super::record::Record;

/// A migration as it is shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What is recorded.
    pub record: Record,
    /// What runs at this instant; empty when it is over.
    pub live: Live,
    /// What was noticed before it began.
    pub findings: Vec<Finding>,
}

/// Figures of this instant.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// Disk bytes that are in step.
    pub disk_done: u64,
    /// Disk bytes in all.
    pub disk_total: u64,
    /// RAM that was not sent in this round.
    pub ram_remaining: u64,
    /// RAM in all.
    pub ram_total: u64,
    /// Passes over the RAM.
    pub round: u64,
    /// Bytes that QEMU sends, a second.
    pub rate: u64,
    /// Bytes that the guest dirties, a second.
    pub dirty_rate: u64,
    /// The pause that QEMU expects now, milliseconds.
    pub expected_downtime_ms: u64,
    /// Bytes of RAM on their way, and how many may be.
    pub in_flight: u64,
    /// See `in_flight`.
    pub in_flight_limit: u64,
    /// How long the connection has been lost, milliseconds; 0 while there is one.
    pub lost_ms: u64,
    /// Set while all disks are in step and the switchover waits: for what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<Cutover>,
    /// Set while the guest runs at the destination without all of its memory.
    pub postcopy: Option<Postcopy>,
}

/// Where a post-copy stands: the guest runs at the destination, and part of its memory is at the source alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Postcopy {
    /// The memory follows.
    #[serde(rename = "postcopy-active")]
    Active,
    /// There is no connection; the guest stands still where it needs a page that is not there.
    #[serde(rename = "postcopy-paused")]
    Paused,
    /// It is being taken up again over another connection.
    #[serde(rename = "postcopy-recover")]
    Recovering,
}

/// What can be asked of a migration that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Undo it, if the permit has not left.
    Cancel,
    /// Give up the source's copy.
    Finalise,
    /// Undo it, even when the guest runs at the destination: it is ended there, and what it did there is lost.
    TakeBack,
    /// End doubt.
    Resolve(Choice),
}

/// A running migration, from outside.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Takes commands.
    pub commands: mpsc::Sender<Command>,
    /// Shows where it stands.
    pub status: watch::Receiver<Status>,
}
