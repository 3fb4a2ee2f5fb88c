//! Layer 2: the hypervisor's side of a volume, and of a virtual machine.
//!
//! * [`nbd`] reads, writes and serves NBD exports; as a client, as a [`volume::Source`] or [`volume::Sink`].
//! * [`nbd`] reads and writes any NBD export as a [`volume::Source`] or [`volume::Sink`], and serves one to QEMU's
//!   mirror.
//! * [`qemu_nbd`] puts an image file of any format QEMU knows behind such an export, backing chain included.
//! * [`specification`] says what a VM is, apart from its host; [`command_line`] turns one into QEMU's arguments;
//!   [`vmd`] asks `novaferry-vmd`, which alone starts QEMU, to run it.
//! * [`qemu_img`] looks at images (what would not survive a copy) and makes new ones.
//! * [`qmp`] drives a running QEMU, [`guest_agent`] the agent in its guest.
//! * [`reclaim`] takes a guest back from a post-copy that broke before it ran elsewhere.
//! * [`inventory`] finds the virtual machines of this host.
//! * [`stream`] and [`multifd`] cut QEMU's migration streams into pages and literal bytes, byte for byte.
//!
//! No image format is parsed here: QEMU's own programs do that, as children that end with their owner.

pub mod command_line;
pub mod error;
pub mod guest_agent;
pub mod inventory;
pub mod multifd;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_nbd;
pub mod qmp;
pub mod reclaim;
#[cfg(test)]
mod recorded;
pub mod specification;
pub mod stream;
mod tool;
pub mod vmd;

pub use error::Error;
