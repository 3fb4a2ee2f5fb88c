//! Live migration: a VM that runs here continues on another host.
//!
//! ```text
//! source:       preflight ─► disks mirror ─► RAM pre-copy ─► pause ─► roots equal ─► fence ─► permit ─► prove ─► give up
//! destination:  make room, start QEMU paused, receive ──────────────────────────────────────► run ─► announce
//! ```
//!
//! Who may run the VM when is decided by [`session::cutover`]; here is what carries it out. [`source`] and
//! [`destination`] are one owner task each: it takes one signal at a time, asks its machine what follows, makes the
//! new state durable, and only then does what was asked. [`ram`] and [`disk`] are the byte paths.

pub mod contact;
pub mod cutover;
pub mod destination;
pub mod disk;
pub mod host_cpu;
pub mod layer2;
pub mod leaves;
pub mod link;
pub mod message;
pub mod mode;
pub mod preflight;
pub mod ram;
mod readback;
pub mod record;
pub mod report;
pub mod source;
pub mod status;
