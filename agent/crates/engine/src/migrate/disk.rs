//! One disk of a moving VM: what QEMU's mirror writes into our NBD server becomes writes to the destination's export.
//!
//! ```text
//! QEMU ─ NBD ─► sender: zero? compress ─► channel ─► receiver: restore, lock the chunks ─► NBD ─► QEMU's export
//!      ◄─────────────────── answer ◄──────────────────────── answer ◄──────────────────────┘
//! ```
//!
//! A write is answered when the destination's export has answered it, a flush only after its flush: what QEMU believes
//! to be stable is stable there. Both ends keep a [`crate::migrate::leaves::LiveLeaves`] of the writes that pass.

pub mod frame;
pub mod receiver;
pub mod sender;

pub use receiver::receive;
pub use sender::MirrorTarget;
