//! Layer 2: one transfer as two state machines that do no I/O and read no clock.
//!
//! [`Sender`] decides which extent is read, compared, encoded and sent when; [`Receiver`] in which order what has
//! arrived is applied, committed and acknowledged. Both follow quinn's verbs: `handle_*` takes what happened, `poll_*`
//! gives what to do, `now` is an argument (time since the session began). A driver (`engine`) does the reading,
//! hashing, writing and sending.
//!
//! One pair of machines lives for one *attempt*. After a crash or a lost tunnel new machines are made from the
//! journals ([`ExtentSet`] of what is settled), under a higher generation; nothing else survives.
//!
//! ```text
//! sender:    scan ─► zero / same ────────────────────────► Range ─┐
//!              │  └► differs, target has an old copy ► PageQuery  │
//!              │                                  PageSums ◄┘     │
//!              └─► encode ─► ready ─► in flight (Extent) ─────────┤
//!                    ▲                      │ lane died, Need     ▼
//!                    └──────────────────────┘                Ack ► settled ► all settled ► Seal ► Sealed
//! receiver:  arrive ─► stale? drop ─► place locked? wait ─► apply ─► uncommitted ─► fdatasync, journal ─► Ack
//! ```

pub mod cutover;
pub mod error;
pub mod extents;
pub mod old;
pub mod receiver;
pub mod sender;

pub use error::SessionError;
pub use extents::ExtentSet;
pub use old::OldExtent;
pub use receiver::{Applied, Change, Intake, Receiver, ReceiverAction, ReceiverTerms};
pub use sender::{Dispatch, Outcome, Sender, SenderAction, SenderTerms};

/// Payload bytes that may be unacknowledged: what is sent again after a crash is at most this. 64 MiB fills
/// 10 Gbit/s at 50 ms.
pub const WINDOW_BYTES: u64 = 64 << 20;
/// Frames that may be unacknowledged; bounds the maps of both sides. Small frames of a re-sync need more than
/// 64 MiB / 1 MiB: 4,096 of 5 KiB fill 3 Gbit/s at 50 ms.
pub const WINDOW_FRAMES: u32 = 4096;

/// Sequences between the floor and the newest, per frame of the window: bounds what the receiver remembers of order,
/// and lets one slow frame lag behind without stopping the others.
const SPAN_PER_FRAME: u64 = 4;
