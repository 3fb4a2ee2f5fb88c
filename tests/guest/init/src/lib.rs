//! What the test guest and those who watch it must agree on: its options, its heartbeat, its memory and its disk.
//!
//! The guest is a Linux kernel and one static program, `main.rs` here, that runs as process 1. It keeps regions of
//! memory and slots of a disk in states that are functions of a few numbers, so that a page or a block that was lost,
//! mixed up or brought back from an earlier time is found by whoever reads it next, inside the guest or outside. This
//! library is those functions, free of I/O: the guest uses them to make and to check, a test on the host to parse what
//! the guest prints and to check a disk image without the guest.
//!
//! `scripts/make-test-guest.sh` builds the program and the initramfs around it.

pub mod heartbeat;
pub mod memory;
pub mod options;
pub mod random;
pub mod slots;

pub use heartbeat::Heartbeat;
pub use options::Options;

/// What the guest prints, in front of the details, when something is not as it left it.
pub const CORRUPT: &str = "CORRUPT";

/// What the guest prints when its regions are filled and the heartbeats begin.
pub const READY: &str = "TG ready";

/// What the guest prints before it powers off because somebody pressed the power button.
pub const POWER_OFF: &str = "POWEROFF";
