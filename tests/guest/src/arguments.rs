//! What a machine is made of, and QEMU's command line for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::available::Linux;
use crate::boot_sector::BootSector;
use crate::disk::Format;
use crate::init::Options;
use crate::layout::Layout;

/// Which board QEMU emulates. `microvm` is not among them: on a busy host Linux cannot calibrate its clock there against
/// the one old timer, and hangs in the boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Machine {
    /// i440FX, as NovaCron starts them.
    #[default]
    Pc,
    /// Q35, with PCI Express.
    Q35,
}

impl Machine {
    /// Value of `-machine`.
    fn argument(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
        }
    }
}

/// What runs in the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// The Linux guest.
    Linux(Linux, Options),
    /// The boot sector, on the disk.
    BootSector(BootSector),
}

/// How the machine can be spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Control {
    /// [`Layout::qmp`] alone.
    #[default]
    Qmp,
    /// [`Layout::monitor`] alone: what NovaCron starts, which no agent can move live.
    Monitor,
    /// Both.
    Both,
}

impl Control {
    pub(crate) fn has_qmp(self) -> bool {
        self != Self::Monitor
    }

    pub(crate) fn has_monitor(self) -> bool {
        self != Self::Qmp
    }
}

/// How a destination is told where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// Later, by `migrate-incoming`.
    Defer,
    /// At once, at this unix socket.
    Unix(PathBuf),
}

/// A disk of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskImage {
    /// How it is stored.
    pub format: Format,
    /// Bytes.
    pub size: u64,
    /// Where, if not in the machine's folder. An image that is there is taken as it is; else it is made: zeros, or
    /// those behind the boot sector.
    pub path: Option<PathBuf>,
}

/// What a machine is made of. The constructors fill in what most tests want; the fields are there to be changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Name of the machine and of its folder.
    pub id: String,
    /// What runs in it.
    pub payload: Payload,
    /// Which board.
    pub machine: Machine,
    /// MiB.
    pub memory: u64,
    /// Processors.
    pub processors: u32,
    /// Its disk: node `drive0` on node `file0`, device `vd0`.
    pub disk: DiskImage,
    /// The disk is given as `NovaCron` gives it, by `-drive if=virtio`: node and device have names of QEMU's own.
    pub by_drive: bool,
    /// A second disk, that the Linux guest reads over and over and cannot write: node `drive1`, device `vd1`.
    pub seed: Option<DiskImage>,
    /// How it can be spoken to.
    pub control: Control,
    /// Where it waits for a machine to come in, if it does.
    pub incoming: Option<Incoming>,
    /// `-S`: does not run before it is told to.
    pub stopped: bool,
    /// More of QEMU's arguments.
    pub more: Vec<OsString>,
}

impl Settings {
    /// The Linux guest: pc, 512 MiB, one processor, a raw disk of 64 MiB.
    #[must_use]
    pub fn linux(id: &str, linux: &Linux, options: Options) -> Self {
        Self::new(id, Payload::Linux(linux.clone(), options), 512, 64 << 20)
    }

    /// The boot sector: pc, memory up to 28 MiB beyond what it dirties, one processor, a raw disk of 1 MiB.
    #[must_use]
    pub fn boot_sector(id: &str, sector: &BootSector) -> Self {
        let memory = u64::from(sector.range().end >> 20) + 28;
        Self::new(id, Payload::BootSector(sector.clone()), memory, 1 << 20)
    }

    fn new(id: &str, payload: Payload, memory: u64, size: u64) -> Self {
        Self {
            id: id.to_owned(),
            payload,
            machine: Machine::default(),
            memory,
            processors: 1,
            disk: DiskImage { format: Format::Raw, size, path: None },
            by_drive: false,
            seed: None,
            control: Control::default(),
            incoming: None,
            stopped: false,
            more: Vec::new(),
        }
    }

    /// The same machine, waiting for the guest to come in ([`Incoming::Defer`]).
    #[must_use]
    pub fn destination(&self) -> Self {
        Self { incoming: Some(Incoming::Defer), ..self.clone() }
    }

    /// Where the disk is, for a machine in `layout`.
    #[must_use]
    pub fn disk_path(&self, layout: &Layout) -> PathBuf {
        self.disk.path.clone().unwrap_or_else(|| layout.disk(self.disk.format))
    }

    /// Where the second disk is.
    #[must_use]
    pub fn seed_path(&self, layout: &Layout) -> Option<PathBuf> {
        let seed = self.seed.as_ref()?;
        Some(seed.path.clone().unwrap_or_else(|| layout.seed(seed.format)))
    }

    /// What a disk begins with that is made for this machine.
    pub(crate) fn first_bytes(&self) -> Vec<u8> {
        match (&self.payload, &self.incoming) {
            (Payload::BootSector(sector), None) => sector.bytes().to_vec(),
            (Payload::BootSector(_) | Payload::Linux(..), _) => Vec::new(),
        }
    }

    /// QEMU's arguments for this machine in `layout`.
    #[must_use]
    pub fn arguments(&self, layout: &Layout) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.pair("-name", &self.id);
        arguments.pair("-machine", self.machine.argument());
        arguments.pair("-accel", "tcg,thread=multi");
        arguments.pair("-m", format!("{}M", self.memory));
        arguments.pair("-smp", self.processors.to_string());
        arguments.0.push("-nodefaults".into());
        arguments.pair("-display", "none");
        arguments.pair("-serial", joined("file:", &layout.serial(), ""));
        arguments.pair("-pidfile", layout.pid_file());
        if self.control.has_qmp() {
            arguments.pair("-qmp", joined("unix:", &layout.qmp(), ",server=on,wait=off"));
        }
        if self.control.has_monitor() {
            arguments.pair("-monitor", joined("unix:", &layout.monitor(), ",server=on,wait=off"));
        }
        let disk = self.disk_path(layout);
        let mut device = "virtio-blk-pci,drive=drive0,id=vd0".to_owned();
        match &self.payload {
            Payload::Linux(linux, options) => {
                arguments.pair("-kernel", &linux.kernel);
                arguments.pair("-initrd", &linux.initramfs);
                // Nothing of the kernel's own may come between the guest's lines; a panic is still printed.
                let options = Options { seed: self.seed.is_some(), ..*options };
                let append = format!("console=ttyS0 quiet loglevel=1 panic=-1 {options}");
                arguments.pair("-append", append);
            }
            Payload::BootSector(_) => device.push_str(",bootindex=0"),
        }
        if self.by_drive {
            let drive = joined("file=", &disk, &format!(",format={},if=virtio", self.disk.format.name()));
            arguments.pair("-drive", drive);
        } else {
            let node = json!({
                "driver": self.disk.format.name(),
                "node-name": "drive0",
                "file": { "driver": "file", "filename": disk, "node-name": "file0" },
            });
            arguments.pair("-blockdev", node.to_string());
            arguments.pair("-device", device);
        }
        if let (Some(seed), Some(path)) = (&self.seed, self.seed_path(layout)) {
            let node = json!({
                "driver": seed.format.name(),
                "node-name": "drive1",
                "read-only": true,
                "file": { "driver": "file", "filename": path, "read-only": true },
            });
            arguments.pair("-blockdev", node.to_string());
            arguments.pair("-device", "virtio-blk-pci,drive=drive1,id=vd1");
        }
        match &self.incoming {
            Some(Incoming::Defer) => arguments.pair("-incoming", "defer"),
            Some(Incoming::Unix(path)) => arguments.pair("-incoming", joined("unix:", path, "")),
            None => {}
        }
        if self.stopped {
            arguments.0.push("-S".into());
        }
        arguments.0.extend(self.more.iter().cloned());
        arguments.0
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut joined = OsString::from(before);
    joined.push(path);
    joined.push(after);
    joined
}
