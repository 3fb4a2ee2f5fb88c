//! What of a VM is copied as a disk: its disks in order, and last the UEFI variables.

use super::{DiskFormat, Firmware, NVRAM_ID, VmSpecification};

/// Node of the UEFI variables in a QEMU of this host.
pub(crate) const NVRAM_NODE: &str = "flash-variables";

/// Something that travels as a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carried<'a> {
    /// The disk's id, or [`NVRAM_ID`].
    pub id: &'a str,
    /// Length, bytes.
    pub size: u64,
    /// How the source keeps it.
    pub format: DiskFormat,
    /// The guest cannot write it.
    pub read_only: bool,
    /// The node through which it is written while QEMU waits for the guest ([`Start::Incoming`](super::Start)).
    pub node: String,
}

/// The node under a read-only disk: the disk's own node refuses writers.
pub(crate) fn below(at: usize) -> String {
    format!("below-{at}")
}

impl VmSpecification {
    /// All that travels as a disk, in the order of [`Derived::disks`](super::Derived) and of the channels.
    pub fn carried(&self) -> impl Iterator<Item = Carried<'_>> {
        let disks = self.disks().enumerate().map(|(at, disk)| Carried {
            id: &disk.id,
            size: disk.size,
            format: disk.format,
            read_only: disk.read_only,
            node: if disk.read_only { below(at) } else { disk.node.clone() },
        });
        let nvram = match &self.firmware {
            Firmware::Uefi { nvram, .. } => *nvram,
            Firmware::Bios { .. } => None,
        };
        disks.chain(nvram.map(|nvram| Carried {
            id: NVRAM_ID,
            size: nvram.size,
            format: nvram.format,
            read_only: false,
            node: NVRAM_NODE.to_owned(),
        }))
    }
}
