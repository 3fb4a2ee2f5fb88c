//! What a virtual machine is, apart from the host that runs it: the only thing about a VM that travels.
//!
//! ```text
//! the running QEMU's arguments ─┐
//! what QMP says of it ──────────┼─► derive ─► VmSpecification ═══ wire ═══► check ─► resolve ─► StartRequest ─► vmd
//! NovaCron's config.json ───────┘     └─► findings                            (this host's paths, bridges, firmware)
//! ```
//!
//! * [`derive()`] reads the arguments of the running QEMU. What it cannot express is a [`Finding`], never dropped in
//!   silence.
//! * [`VmSpecification::check`] is run by whoever receives one: models, properties and machine options come from
//!   closed lists ([`catalogue`]), every string and list is capped, and no string can name a file of the host.
//! * [`resolve()`] binds it to a host: disks, bridges, kernels by name and digest, firmware by name.
//!
//! Devices are kept in one list in the order in which QEMU makes them, because bus addresses that nobody named are
//! given in that order, and a migration stream names devices by address. What QEMU adds by itself (a display adapter,
//! a network card, a parallel port, empty drives) is written out, so that the destination runs with `-nodefaults`.

pub(crate) mod arguments;
mod blockdev;
pub(crate) mod carried;
pub mod catalogue;
mod check;
mod derive;
mod device;
mod error;
mod facts;
mod files;
mod finding;
mod novacron;
mod resolve;
mod stopped;

use serde::{Deserialize, Serialize};

pub use carried::Carried;
pub use check::{
    MAX_DEVICES, MAX_DISK, MAX_FEATURES, MAX_HOST_MODEL, MAX_KERNEL_COMMAND_LINE, MAX_MEMORY, MAX_NAME,
    MAX_PARALLEL, MAX_PROCESSORS, MAX_PROPERTIES, MAX_SERIAL, MAX_VALUE, is_plain_name,
};
pub use derive::{Derived, NamedFiles, SourceDisk, derive, firmware_code, named_files};
pub use device::{
    ChannelDevice, Device, DiskDevice, DiskFormat, DriveDevice, NetworkBackend, NetworkDevice, PlainDevice,
    Property,
};
pub use error::SpecificationError;
pub use facts::{BlockFact, FileFact, VmFacts};
pub use files::{MAX_BOOT_FILE, fact_of, inventory};
pub use finding::{Finding, Severity};
pub use novacron::NovaCronConfig;
pub use resolve::{
    Bindings, DiskTarget, HostMapping, HostNetwork, NamedHostFile, START_VERSION, Start, StartRequest,
    resolve,
};
pub use stopped::derive_stopped;

/// Version of [`VmSpecification`]; others are refused.
pub const SPECIFICATION_VERSION: u32 = 1;

/// A virtual machine as its guest sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpecification {
    /// [`SPECIFICATION_VERSION`].
    pub version: u32,
    /// The VM's id: NovaCron's, or what the agent's configuration calls it. Names folders, so it is a plain word.
    pub id: String,
    /// Its name for people (`-name`).
    pub name: String,
    /// `-uuid`; none when QEMU was started without, which a guest sees as zeros.
    pub uuid: Option<String>,
    /// Board.
    pub machine: Machine,
    /// Processor model.
    pub cpu: Cpu,
    /// How many processors.
    pub processors: Processors,
    /// RAM.
    pub memory: Memory,
    /// What runs first.
    pub firmware: Firmware,
    /// A kernel that is started without a boot loader.
    pub kernel: Option<KernelBoot>,
    /// What the firmware boots from.
    pub boot: BootOrder,
    /// The real-time clock's base.
    pub clock: ClockBase,
    /// The board's display adapter (`-vga`). One that is an ordinary device is in `devices`.
    pub video: Video,
    /// Whether the screen can be watched over VNC: at the destination always through a socket in the VM's folder.
    pub vnc: bool,
    /// Serial ports of the board, in order.
    pub serial: Vec<Console>,
    /// Parallel ports of the board; where they went to on the host is not kept.
    pub parallel_ports: u8,
    /// `-no-reboot`: QEMU ends instead of restarting the guest.
    pub no_reboot: bool,
    /// `-no-shutdown`: QEMU stays when the guest switches off.
    pub no_shutdown: bool,
    /// All other devices, in the order in which they are made.
    pub devices: Vec<Device>,
    /// NovaCron's configuration of the VM, without paths.
    pub novacron: Option<NovaCronConfig>,
}

/// A board.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Exact type, such as `pc-i440fx-10.0`: an alias such as `pc` would mean another board to another QEMU.
    pub kind: String,
    /// Who executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Options of the board, from [`catalogue::MACHINE_OPTIONS`].
    pub options: Vec<Property>,
}

/// Who executes the guest's instructions. A running guest cannot change between these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// A processor model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// QEMU's name of it.
    pub model: String,
    /// `+sse4.2`, `-svm`, `pmu=off`, as given.
    pub features: Vec<String>,
    /// With models that mean "this host's" (`host`, `max`): what the source's processor is, compared literally.
    pub host_model: Option<String>,
}

/// How many processors and how they are arranged (`-smp`). What is none is QEMU's choice, the same at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processors {
    /// Running at boot.
    pub count: u32,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Dies a socket.
    pub dies: Option<u32>,
    /// Cores a die.
    pub cores: Option<u32>,
    /// Threads a core.
    pub threads: Option<u32>,
    /// Processors that may be plugged in.
    pub maximum: Option<u32>,
}

/// RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// At boot, bytes.
    pub bytes: u64,
    /// Slots for plugging in more.
    pub slots: Option<u32>,
    /// Most that may be there, bytes.
    pub maximum_bytes: Option<u64>,
}

/// What runs first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Firmware {
    /// A BIOS.
    Bios {
        /// A file in the firmware folder; none is the one that comes with QEMU.
        file: Option<String>,
    },
    /// UEFI in flash memory.
    Uefi {
        /// The code: a file in the firmware folder.
        code: BootFile,
        /// The variables: carried like a disk, under the id [`NVRAM_ID`].
        nvram: Option<Nvram>,
    },
}

/// Id under which UEFI variables are carried and bound.
pub const NVRAM_ID: &str = "nvram";

/// UEFI variables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nvram {
    /// Bytes.
    pub size: u64,
    /// How the source keeps them.
    pub format: DiskFormat,
}

/// A kernel that is started directly.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelBoot {
    /// The kernel.
    pub kernel: BootFile,
    /// Its first file system.
    pub initrd: Option<BootFile>,
    /// What it is told.
    pub command_line: String,
}

/// A file that must be the same on the other host: QEMU keeps it in guest-visible ROM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootFile {
    /// Name without folder.
    pub name: String,
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// `-boot`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootOrder {
    /// Letters of drives, `order=`.
    pub order: Option<String>,
    /// Letters of drives for the first boot, `once=`.
    pub once: Option<String>,
    /// `menu=`.
    pub menu: Option<bool>,
    /// `strict=`.
    pub strict: Option<bool>,
}

/// What the real-time clock shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockBase {
    /// UTC.
    #[default]
    Utc,
    /// The host's local time.
    Localtime,
}

/// The board's display adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Video {
    /// None.
    #[default]
    None,
    /// `-vga std`.
    Std,
    /// `-vga cirrus`.
    Cirrus,
    /// `-vga virtio`.
    Virtio,
}

/// Where a serial port goes at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// Nowhere.
    Null,
    /// Appended to `serialN.log` in the VM's folder.
    File,
    /// A pseudo terminal of the host.
    Pty,
    /// The socket `serialN.sock` in the VM's folder.
    Socket,
}

impl VmSpecification {
    /// The disks, in order.
    pub fn disks(&self) -> impl Iterator<Item = &DiskDevice> {
        self.devices.iter().filter_map(|device| match device {
            Device::Disk(disk) => Some(disk),
            Device::Network(_) | Device::Drive(_) | Device::Channel(_) | Device::Plain(_) => None,
        })
    }

    /// The network cards, in order.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkDevice> {
        self.devices.iter().filter_map(|device| match device {
            Device::Network(network) => Some(network),
            Device::Disk(_) | Device::Drive(_) | Device::Channel(_) | Device::Plain(_) => None,
        })
    }
}

#[cfg(test)]
mod tests;
