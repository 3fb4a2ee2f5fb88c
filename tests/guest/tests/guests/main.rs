//! The guests on real QEMU (capability `qemu-system`): they run, they find what is wrong, and what watches them sees a
//! move and how long it took.

mod boot_sector;
mod linux;
mod migration;
mod qmp;

use std::time::Duration;

/// Ends a test that hangs; nothing is measured with it.
pub(crate) const HANG: Duration = Duration::from_secs(60);
