//! Layer 2: the hypervisor's side of a volume.
//!
//! * [`nbd`] reads and writes any NBD export as a [`volume::Source`] or [`volume::Sink`], and serves one to QEMU's
//!   mirror.
//! * [`qemu_nbd`] puts an image file of any format QEMU knows behind such an export, backing chain included.
//! * [`qemu_img`] looks at images (what would not survive a copy) and makes new ones.
//!
//! No image format is parsed here: QEMU's own programs do that, as children that end with their owner.

pub mod error;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_nbd;
mod tool;

pub use error::Error;
