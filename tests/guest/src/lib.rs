//! Test guests: real QEMU machines whose memory and disk prove that nothing was lost on the way.
//!
//! ```text
//!   Vm (QEMU, in a folder as NovaCron makes it)          Vm, or whoever starts it, at the destination
//!   serial.log ──► Serial: chunks, timed by the host      serial.log ──► Serial
//!                     └───────────────► Timeline::join ◄───────────────────┘
//!                     heartbeats 1..n, none missing, none bad; the pause at each switch; the longest gap
//! ```
//!
//! Two guests: a boot sector of 512 bytes that dirties memory as fast as it can ([`BootSector`], seconds a test), and a
//! Linux kernel with one program that rewrites memory and disk and checks both ([`Linux`], made by
//! `scripts/make-test-guest.sh`; see [`init`]).
//!
//! What a test needs of the machine it says with [`available`] and [`Linux::available`]: without, the test is skipped
//! by name, or fails where `NOVAFERRY_REQUIRE` names `qemu-system`.
//!
//! Not here: moving the guests. A test drives their QMP sockets itself, or has an agent do it.

pub mod arguments;
mod available;
mod boot_sector;
pub mod disk;
mod error;
mod layout;
pub mod serial;
pub mod timeline;
mod vm;

pub use arguments::{Control, DiskImage, Incoming, Machine, Payload, Settings};
pub use available::{CAPABILITY, Linux, QEMU, available};
pub use boot_sector::{BootSector, SECTOR, Torn};
pub use error::{Error, Kind};
/// What the Linux guest runs, and what it agrees on with its watchers.
pub use guest_init as init;
pub use init::{Heartbeat, Options};
pub use layout::Layout;
pub use serial::Serial;
pub use timeline::{Report, Timeline};
pub use vm::Vm;
