//! Layer 2: the hypervisor's side of a volume, and of a running machine.
//!
//! * [`nbd`] reads and writes any NBD export as a [`volume::Source`] or [`volume::Sink`].
//! * [`qemu_nbd`] puts an image file of any format QEMU knows behind such an export, backing chain included.
//! * [`qemu_img`] looks at images (what would not survive a copy) and makes new ones.
//! * [`stream`] and [`multifd`] cut QEMU's migration streams into pages and literal bytes, byte for byte.
//!
//! No image format is parsed here: QEMU's own programs do that, as children that end with their owner.

pub mod error;
pub mod multifd;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_nbd;
#[cfg(test)]
mod recorded;
pub mod stream;
mod tool;

pub use error::Error;
