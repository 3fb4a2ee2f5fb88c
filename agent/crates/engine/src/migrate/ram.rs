//! The memory of a moving VM: each connection of QEMU's migration is cut into its packets, the pages are reduced, and
//! the destination gets the same bytes back.
//!
//! ```text
//! QEMU ─ socket ─► sender: tokens ─► plan (one encoder) ─► pack ─► channel ─► receiver: unpack ─► apply ─ socket ─► QEMU
//!      ◄────────── return path ◄────────────────────────── channel ◄─────────── return path, acknowledgements ◄──┘
//! ```
//!
//! What the tokenisers do not know travels as it is, for good. Acknowledgements tell the encoder which packets are
//! decoded, and bound the bytes between the two QEMUs: with more than a fraction of what the link carries in the
//! allowed downtime, QEMU's idea of when it may stop the guest would be wrong.

mod again;
pub mod flight;
pub mod frame;
mod lane;
mod outbox;
mod reading;
pub mod receiver;
pub mod resumed;
pub mod sender;

pub use flight::InFlight;
pub use receiver::RamReceiver;
pub use sender::RamSender;

#[cfg(test)]
mod tests;
