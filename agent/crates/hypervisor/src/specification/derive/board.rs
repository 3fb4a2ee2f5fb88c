//! What boards have by themselves, and what QEMU adds without being asked (`qemu_create_default_devices`,
//! `default_driver_check` in `system/vl.c`; `hw/i386/pc_piix.c`, `pc_q35.c`, `microvm.c`).

use super::super::{Console, Property, Video};
use super::collect::Collected;

/// A family of boards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Board {
    I440fx,
    Q35,
    Microvm,
    /// Nothing is known: defaults cannot be written out.
    Other,
}

impl Board {
    pub(super) fn of(machine: &str) -> Self {
        let is = |prefix: &str| machine.starts_with(prefix);
        if is("pc-i440fx") || machine == "pc" {
            Self::I440fx
        } else if is("pc-q35") || machine == "q35" {
            Self::Q35
        } else if is("microvm") {
            Self::Microvm
        } else {
            Self::Other
        }
    }

    pub(super) const fn is_pc(self) -> bool {
        matches!(self, Self::I440fx | Self::Q35)
    }

    /// The card of `-nic` without a model, and of no network option at all.
    pub(super) const fn default_card(self) -> Option<&'static str> {
        match self {
            Self::I440fx => Some("e1000"),
            Self::Q35 => Some("e1000e"),
            Self::Microvm | Self::Other => None,
        }
    }

    /// What `-drive` without `if=` is.
    pub(super) const fn default_interface(self) -> &'static str {
        if self.is_pc() { "ide" } else { "none" }
    }

    /// Where the IDE drive with this index is: the q35's AHCI has one drive a bus.
    pub(super) fn ide_place(self, index: u32) -> Vec<Property> {
        let (bus, unit) = if self == Self::Q35 { (index, 0) } else { (index / 2, index % 2) };
        vec![Property::new("bus", format!("ide.{bus}")), Property::new("unit", unit.to_string())]
    }

    /// The index of a drive that was given a bus and a unit.
    pub(super) fn ide_index(self, bus: Option<u32>, unit: Option<u32>) -> Option<u32> {
        let units = if self == Self::Q35 { 1 } else { 2 };
        if bus.is_none() && unit.is_none() {
            return None;
        }
        bus.unwrap_or(0).checked_mul(units)?.checked_add(unit.unwrap_or(0))
    }

    fn adds(self, collected: &Collected) -> bool {
        self.is_pc() && !collected.no_defaults
    }

    /// `-vga`, or the standard adapter where nothing else draws.
    pub(super) fn video(self, collected: &Collected) -> Video {
        const ADAPTERS: &[&str] = &["VGA", "cirrus-vga", "virtio-vga", "qxl-vga", "vmware-svga", "ati-vga"];
        match collected.video.as_deref() {
            Some("std") => Video::Std,
            Some("cirrus") => Video::Cirrus,
            Some("virtio") => Video::Virtio,
            Some(_) => Video::None,
            None if self.adds(collected) && !has_device(collected, ADAPTERS) => Video::Std,
            None => Video::None,
        }
    }

    pub(super) fn serial(self, collected: &Collected) -> Vec<Console> {
        match &collected.serial {
            Some(consoles) => consoles.clone(),
            None if collected.no_defaults || has_device(collected, &["isa-serial"]) => Vec::new(),
            None => vec![Console::Null],
        }
    }

    pub(super) fn parallel_ports(self, collected: &Collected) -> u8 {
        let default = u8::from(self.adds(collected) && !has_device(collected, &["isa-parallel"]));
        collected.parallel.unwrap_or(default)
    }

    /// The empty floppy drive of the i440fx.
    pub(super) fn has_floppy(self, collected: &Collected) -> bool {
        let given = collected.drives.iter().any(|drive| drive.interface.as_deref() == Some("floppy"));
        self == Self::I440fx
            && self.adds(collected)
            && !given
            && !has_device(collected, &["isa-fdc", "floppy"])
    }

    /// The empty optical drive, at IDE index 2.
    pub(super) fn has_optical(self, collected: &Collected) -> bool {
        self.adds(collected) && !has_device(collected, &["ide-cd", "ide-hd", "scsi-cd", "scsi-hd"])
    }

    /// The card on QEMU's own NAT.
    pub(super) fn has_card(self, collected: &Collected) -> bool {
        self.adds(collected) && !collected.networks_named
    }
}

fn has_device(collected: &Collected, models: &[&str]) -> bool {
    collected.devices.iter().any(|device| device.get("driver").is_some_and(|driver| models.contains(&driver)))
}

/// Ids that QEMU gives to the devices of `-drive if=virtio` (`drive_new`).
pub(super) fn is_automatic(id: &str) -> bool {
    id.strip_prefix("virtio").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}
