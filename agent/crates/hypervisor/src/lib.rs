//! Layer 2: the hypervisor's side of a volume.
//!
//! * [`nbd`] reads and writes any NBD export as a [`volume::Source`] or [`volume::Sink`].
//! * [`qemu_nbd`] puts an image file of any format QEMU knows behind such an export, backing chain included.
//! * [`specification`] says what a VM is, apart from its host; [`command_line`] turns one into QEMU's arguments;
//!   [`vmd`] asks `novaferry-vmd`, which alone starts QEMU, to run it.
//! * [`qemu_img`] looks at images (what would not survive a copy) and makes new ones.
//!
//! No image format is parsed here: QEMU's own programs do that, as children that end with their owner.

pub mod command_line;
pub mod error;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_nbd;
pub mod specification;
mod tool;
pub mod vmd;

pub use error::Error;
