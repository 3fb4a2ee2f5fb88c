//! The cut-over of a live migration as two state machines, one a host: who may run the VM, at every instant, whatever
//! dies.
//!
//! ```text
//! source:       Preparing ─► Mirroring ─► PreCopy ─► Paused ─► Fencing ─► Permitting ─► Running ─► Proven ─► Finalised
//!                   └────────────┴───────────┴─────────┴─────────┴──► Undoing ─► RolledBack        │
//!                                                      Permitting ─► InDoubt ─► (verdict) ─────────┘
//!               Permitting, InDoubt, Running, Proven, DestinationLost ─► TakingBack ─► Undoing ─► RolledBack
//! destination:  Waiting ─► Permitted ─► Starting ─► Running ─► Finalised
//!                   └────────────┴──► Burning ─► Burned  └─► Revoking ─► Revoked
//!                                                                     Running ─► Lost (post-copy: see below)
//! destination:  Waiting ─► Permitted ─► Starting ─► Running ─► Finalised
//!                   └────────────┴──► Burning ─► Burned     └─► Lost
//! ```
//!
//! The rules that the machines keep (design, "Live migration"):
//!
//! - **Fence before permit.** The source makes its fence durable, then records that a permit leaves, then sends it. A
//!   record without the last step proves that no permit left, so that the source may undo by itself.
//! - **A permit is for once.** The destination records it before it acts on it. A destination that will not run burns
//!   it durably before it says so: that word lets the source resume.
//! - **Intent before running.** The destination records `Starting` before its vCPUs may run. After a crash a record
//!   without it proves that the guest never ran there.
//! - **In doubt is a state.** When the answer to a permit is lost, the source starts nothing until the destination says
//!   what became of it, or an operator asserts that the other side is off.
//! - **Taken back only by word.** A guest that may have run at the destination goes on at the source from older memory
//!   only when an operator said so, and the destination ended its own for good and recorded that before it answered.
//!
//! - **Post-copy waits.** A guest that runs at the destination while some of its memory is at the source needs both. A
//!   lost connection changes nothing about who runs it; it is proved, and the source's copy given up, when all of it has
//!   come. When that memory is gone, both ends say that the guest is lost.
//!
//! Every state is recorded before the actions that entering it asks for are done; [`SourceState::is_durable`] and
//! [`DestinationState::is_durable`] say which records must reach the medium. What does not fit a state is ignored:
//! the table in `tests/cutover` shows each pair.

pub mod destination;
pub mod source;

use serde::{Deserialize, Serialize};

pub use destination::{Destination, DestinationAction, DestinationEvent, DestinationState};
pub use source::{Source, SourceAction, SourceEvent, SourceState};

/// What the destination says became of a permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest never ran there and never will under this migration: durable.
    Burned,
    /// The permit is recorded, the guest is complete and has not run; it runs when told again.
    Ready,
    /// The guest runs there.
    Runs,
    /// The guest may have run there, and is dead now.
    RanAndDied,
    /// The guest may have run there; it was ended because the source took it back, and never runs there again under
    /// this migration: durable.
    Revoked,
    /// The guest is that host's for good: it is not given back.
    Kept,
    /// Nothing is known of this migration there: its records were lost.
    Unknown,
}

/// Whose copy an operator chooses, asserting that the other host's is off and stays off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The source's: resumes where it was paused; what the destination did since is lost.
    Source,
    /// The destination's.
    Destination,
}
