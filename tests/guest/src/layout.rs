//! The folder of a machine, as NovaCron lays it out, so that an agent finds it there.
//!
//! `VMS/ID/{config.json, qemu.pid, monitor.sock, disk.qcow2}` (`backend/core/vm/driver_kvm_enhanced.go`); beside them
//! ours: `qmp.sock`, `serial.log`, `qemu.log`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::disk::Format;

/// The names of a machine's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// The machine `id` among those in `vms`. Nothing is made.
    #[must_use]
    pub fn new(vms: &Path, id: &str) -> Self {
        Self { folder: vms.join(id) }
    }

    /// The machine's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// NovaCron's `VMConfig`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.folder.join("qemu.pid")
    }

    /// The QMP socket.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// The socket of the monitor for people.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.folder.join("monitor.sock")
    }

    /// What the guest prints on its first serial port.
    #[must_use]
    pub fn serial(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    /// What QEMU complains about.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self, format: Format) -> PathBuf {
        self.folder.join(match format {
            Format::Raw => "disk.raw",
            Format::Qcow2 => "disk.qcow2",
        })
    }

    /// The disk that the guest only reads.
    #[must_use]
    pub fn seed(&self, format: Format) -> PathBuf {
        self.folder.join(match format {
            Format::Raw => "seed.raw",
            Format::Qcow2 => "seed.qcow2",
        })
    }
}

/// What NovaCron has in `config.json` (`VMConfig` in `backend/core/vm/vm.go`). `cpu_shares` is what its driver passes
/// to `-smp`.
pub(crate) fn config(id: &str, memory: u64, processors: u32, disk: &Path, disk_size: u64) -> Value {
    json!({
        "id": id,
        "name": id,
        "type": "kvm",
        "command": "",
        "args": [],
        "cpu_shares": processors,
        "memory_mb": memory,
        "disk_size_gb": disk_size.div_ceil(1 << 30),
        "rootfs": disk,
        "image": "",
        "cloud_init_iso": "",
        "mounts": [],
        "env": {},
        "network_id": "",
        "owner_id": "owner",
        "tenant_id": "tenant",
        "work_dir": "",
        "tags": { "vm_type": "kvm" },
        "volume_attachments": [],
        "network_attachments": [],
        "placement": { "policy": "" },
        "migration": { "type": "live", "bandwidth_limit": 0, "compression_level": 0, "priority": 0 },
        "replication": { "enabled": false, "factor": 0, "mode": "" },
    })
}
