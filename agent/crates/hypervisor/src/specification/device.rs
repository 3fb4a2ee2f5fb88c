//! Devices of a specification.

use serde::{Deserialize, Serialize};

/// A device, tagged by what it needs of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Device {
    /// A disk with content.
    Disk(DiskDevice),
    /// A network card.
    Network(NetworkDevice),
    /// A floppy or optical drive without medium.
    Drive(DriveDevice),
    /// A port of a virtio serial bus, such as the guest agent's: the socket `NAME.sock` in the VM's folder.
    Channel(ChannelDevice),
    /// A device that needs nothing of the host.
    Plain(PlainDevice),
}

impl Device {
    /// QEMU's name of the device.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Disk(disk) => &disk.model,
            Self::Network(network) => &network.model,
            Self::Drive(drive) => &drive.model,
            Self::Channel(channel) => &channel.model,
            Self::Plain(plain) => &plain.model,
        }
    }

    /// Its `id=`, when it was given one.
    #[must_use]
    pub fn device_id(&self) -> Option<&str> {
        match self {
            Self::Disk(disk) => disk.device_id.as_deref(),
            Self::Network(network) => network.device_id.as_deref(),
            Self::Drive(drive) => drive.device_id.as_deref(),
            Self::Channel(channel) => channel.device_id.as_deref(),
            Self::Plain(plain) => plain.device_id.as_deref(),
        }
    }

    /// Its properties: bus and address among them.
    #[must_use]
    pub fn properties(&self) -> &[Property] {
        match self {
            Self::Disk(disk) => &disk.properties,
            Self::Network(network) => &network.properties,
            Self::Drive(drive) => &drive.properties,
            Self::Channel(channel) => &channel.properties,
            Self::Plain(plain) => &plain.properties,
        }
    }
}

/// A property that the guest can see (or that places the device), from the catalogue's list for the model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Property {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

impl Property {
    /// A property.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDevice {
    /// Unique in the VM; by this it is bound to a volume of the receiver.
    pub id: String,
    /// The block node under the device at the destination. The source's, where that has a proper one, so that dirty
    /// bitmaps find it.
    pub node: String,
    /// `virtio-blk-pci`, `scsi-hd`, `ide-hd`, `virtio-blk-device`.
    pub model: String,
    /// `id=` of the device.
    pub device_id: Option<String>,
    /// Length as the guest sees it, bytes.
    pub size: u64,
    /// How the source keeps it. The destination may keep it otherwise: the guest cannot tell.
    pub format: DiskFormat,
    /// The guest cannot write.
    pub read_only: bool,
    /// `bus`, `addr`, `unit`, `serial`, `bootindex` and the like.
    pub properties: Vec<Property>,
}

/// How an image is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// As it is; also block devices.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A network card.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDevice {
    /// Unique in the VM; by this it is bound to a network of the receiver.
    pub id: String,
    /// `virtio-net-pci`, `e1000` and so on.
    pub model: String,
    /// `id=` of the device.
    pub device_id: Option<String>,
    /// Always given: the one that QEMU chose, when the source named none.
    pub mac: String,
    /// What it is plugged into at the source.
    pub backend: NetworkBackend,
    /// `bus`, `addr`, `bootindex` and the like.
    pub properties: Vec<Property>,
}

/// What a network card is plugged into.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum NetworkBackend {
    /// QEMU's own NAT. Connections through it do not survive a move.
    User {},
    /// A bridge of the host.
    Bridge {
        /// Its name, as the source knows it.
        name: String,
    },
    /// A tap device whose bridge the source does not say.
    Tap {},
    /// Nothing: a card without a cable.
    Disconnected {},
}

/// A floppy or optical drive without medium.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveDevice {
    /// `floppy`, `ide-cd`, `scsi-cd`.
    pub model: String,
    /// `id=` of the device.
    pub device_id: Option<String>,
    /// `bus`, `unit` and the like.
    pub properties: Vec<Property>,
}

/// A port of a virtio serial bus.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelDevice {
    /// Names the socket in the VM's folder: unique in the VM.
    pub id: String,
    /// `virtserialport` or `virtconsole`.
    pub model: String,
    /// `id=` of the device.
    pub device_id: Option<String>,
    /// `bus`, `nr`, `name`.
    pub properties: Vec<Property>,
}

/// A device that needs nothing of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainDevice {
    /// From [`catalogue::PLAIN`](super::catalogue::PLAIN).
    pub model: String,
    /// `id=` of the device. Others name the bus that it makes by this.
    pub device_id: Option<String>,
    /// From the catalogue's list.
    pub properties: Vec<Property>,
}
