//! Whether the source's QEMU uses the disks while the guest is paused.
//!
//! QEMU lets go of the images at the end of a migration. For those that were given by `-drive` it opens the file once
//! more, by its name, only to read (`auto-read-only`; `raw_reconfigure_getfd` in `block/file-posix.c`); that fails when
//! the fence has renamed the file, and the migration with it. So the images are let go before the fence, and taken back
//! before the guest runs here again: QEMU itself would not, and aborts when a guest writes to an image that it has let
//! go.

use hypervisor::qmp::Qmp;

use super::chain;

/// The first QEMU that can be told. Older ones move VMs whose images were given by `-blockdev`.
const FIRST: u32 = 10;

/// Lets the images go. Nothing of ours may use them.
pub(super) async fn let_go(qmp: &Qmp) -> Result<(), String> {
    set(qmp, false).await.map_err(|why| format!("QEMU does not let go of the disks: {why}"))
}

/// Takes them back, if they were let go.
pub(super) async fn take_back(qmp: &Qmp) -> Result<(), String> {
    set(qmp, true).await.map_err(|why| format!("QEMU cannot open the disks again: {why}"))
}

async fn set(qmp: &Qmp, active: bool) -> Result<(), String> {
    if qmp.version().major < FIRST {
        return Ok(());
    }
    qmp.blockdev_set_active(active).await.map_err(|error| chain(&error))
}
