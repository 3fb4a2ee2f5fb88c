//! What is known of a running VM besides its arguments. The caller fills this from QMP; nothing is asked here.

use std::path::PathBuf;

/// What is known of a running VM. What is none or empty was not asked, which costs checks or becomes a finding.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VmFacts {
    /// Exact machine type: `query-machines`' name for the alias, or the type of `/machine` without `-machine`.
    pub machine: Option<String>,
    /// What this host's processor is (`model name` and flags' digest), for the models `host` and `max`.
    pub host_cpu: Option<String>,
    /// `query-memory-size-summary`'s base memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Number of `query-cpus-fast`'s entries.
    pub processors: Option<u32>,
    /// `query-uuid`; zeros are none.
    pub uuid: Option<String>,
    /// `query-block` or `query-named-block-nodes`, devices with a medium.
    pub blocks: Vec<BlockFact>,
    /// Ids of `qom-list /machine/peripheral`: shows what was plugged in or out since the start.
    pub peripherals: Option<Vec<String>>,
    /// Digests of the files that [`named_files`](super::named_files) lists under `boot`.
    pub files: Vec<FileFact>,
    /// Bridges of the tap devices that the VM uses: (`ifname`, bridge), from `/sys/class/net/IFNAME/master`.
    pub tap_bridges: Vec<(String, String)>,
}

/// A disk as QMP shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockFact {
    /// `device` of `query-block` (`virtio0`); empty with `-blockdev`.
    pub device: String,
    /// `inserted.node-name`.
    pub node: String,
    /// `qdev`: id or path of the guest's device.
    pub qdev: Option<String>,
    /// `inserted.image.filename`.
    pub file: PathBuf,
    /// `inserted.drv`.
    pub format: String,
    /// `inserted.image.virtual-size`, bytes.
    pub size: u64,
    /// `inserted.ro`.
    pub read_only: bool,
}

/// A file's content by digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileFact {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}
