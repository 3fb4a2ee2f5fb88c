//! Layer 2: the hypervisor's side of a volume, and of a virtual machine.
//!
//! * [`nbd`] reads and writes any NBD export as a [`volume::Source`] or [`volume::Sink`].
//! * [`qemu_nbd`] puts an image file of any format QEMU knows behind such an export, backing chain included.
//! * [`qmp`] drives a running QEMU, [`guest_agent`] the agent in its guest.
//! * [`inventory`] finds the virtual machines of this host.
//! * [`qemu_img`] looks at images (what would not survive a copy) and makes new ones.
//!
//! No image format is parsed here: QEMU's own programs do that, as children that end with their owner.

pub mod error;
pub mod guest_agent;
pub mod inventory;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_nbd;
pub mod qmp;
mod tool;

pub use error::Error;
