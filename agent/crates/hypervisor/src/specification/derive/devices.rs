//! The devices, in the order in which QEMU makes them.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::arguments::Pairs;
use super::super::blockdev::{Drive, Image, Obstacle};
use super::super::catalogue::{self, canonical};
use super::super::check::{is_plain_name, is_qemu_id};
use super::super::{
    BlockFact, BootFile, ChannelDevice, Device, DiskDevice, DiskFormat, DriveDevice, Finding, NetworkBackend,
    NetworkDevice, PlainDevice, Property, VmFacts,
};
use super::board::Board;
use super::collect::{Collected, unknown};
use super::{Firmware, NVRAM_ID, Nvram, SourceDisk};

/// What came out.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) devices: Vec<Device>,
    pub(super) disks: Vec<SourceDisk>,
}

/// Builds devices.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    facts: &'a VmFacts,
    board: Board,
    findings: &'a mut Vec<Finding>,
    built: Built,
    /// UEFI variables: the last of the disks.
    nvram: Option<SourceDisk>,
    /// Ids that are taken.
    ids: BTreeSet<String>,
    /// Nodes that are taken.
    nodes: BTreeSet<String>,
    /// Facts that have been matched, by place.
    seen: BTreeSet<usize>,
    /// Last octets of QEMU's own MAC addresses that are taken.
    macs: BTreeSet<u8>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(facts: &'a VmFacts, board: Board, findings: &'a mut Vec<Finding>) -> Self {
        Self {
            facts,
            board,
            findings,
            built: Built::default(),
            nvram: None,
            ids: BTreeSet::new(),
            nodes: BTreeSet::new(),
            seen: BTreeSet::new(),
            macs: BTreeSet::new(),
        }
    }

    /// BIOS or flash memory.
    pub(super) fn firmware(&mut self, collected: &Collected) -> Firmware {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let [code, variables] = collected.flash_images();
        let Some(code) = code else {
            return Firmware::Bios { file: collected.bios.as_deref().and_then(|path| name(Path::new(path))) };
        };
        let code = match code {
            Ok(image) if image.read_only => image,
            Ok(image) => {
                self.obstacle(
                    "firmware",
                    format!("{}: code and variables in one flash image", image.path.display()),
                );
                image
            }
            Err(obstacle) => {
                self.obstacle("firmware", obstacle);
                return Firmware::Bios { file: None };
            }
        };
        self.fact(&code, &[]);
        let nvram = variables.and_then(|image| {
            let disk = self.image(NVRAM_ID, image, &[])?;
            let nvram = Nvram { size: disk.size, format: disk.format };
            self.nvram = Some(disk);
            Some(nvram)
        });
        let Some(fact) = self.facts.files.iter().find(|fact| fact.path == code.path) else {
            self.obstacle("firmware-file", format!("{} could not be read", code.path.display()));
            return Firmware::Bios { file: None };
        };
        let code = BootFile {
            name: name(&code.path).unwrap_or_default(),
            sha256: fact.sha256.clone(),
            size: fact.size,
        };
        Firmware::Uefi { code, nvram }
    }

    /// Everything else.
    pub(super) fn devices(&mut self, collected: &Collected) {
        if let Some(video) =
            collected.video.as_deref().filter(|video| !["none", "std", "cirrus", "virtio"].contains(video))
        {
            self.findings.push(unknown("vga", video));
        }
        if self.board == Board::Other && !collected.no_defaults {
            self.obstacle("board-defaults", "what this board has by itself is not known".to_owned());
        }
        self.cards(collected);
        let drives = collected.drives.clone();
        let (mut free, mut virtio) = (Vec::new(), Vec::new());
        let mut places = BTreeSet::new();
        for drive in drives {
            match drive.interface.as_deref().unwrap_or_else(|| self.board.default_interface()) {
                "none" => free.push(drive),
                "virtio" => virtio.push(drive),
                "ide" => self.ide(drive, &mut places),
                "floppy" => self.floppy(drive),
                "pflash" => {}
                other => self.findings.push(unknown("drive", &format!("if={other}"))),
            }
        }
        if self.board.has_optical(collected) && places.insert(2) {
            let properties = self.board.ide_place(2);
            self.push(Device::Drive(DriveDevice { model: "ide-cd".to_owned(), device_id: None, properties }));
        }
        if self.board.has_floppy(collected) {
            self.empty_floppy();
        }
        for pairs in collected.devices.iter().cloned() {
            self.device(pairs, collected, &free);
        }
        for (at, drive) in virtio.into_iter().enumerate() {
            let name = drive.id.clone().unwrap_or_else(|| format!("virtio{at}"));
            let properties = policies(&drive);
            self.disk("virtio-blk-pci", None, &name, drive.image, &[&name], properties);
        }
    }

    pub(super) fn finish(mut self) -> Built {
        self.built.disks.extend(self.nvram.take());
        for (at, block) in self.facts.blocks.iter().enumerate() {
            if !self.seen.contains(&at) {
                self.findings.push(Finding::blocking(
                    "hotplugged-disk",
                    format!("{} is in use but not among the arguments", block.file.display()),
                    "unplug it, or restart the VM with it, before moving it",
                ));
            }
        }
        self.built
    }

    fn obstacle(&mut self, rule: &'static str, evidence: String) {
        let fix = match rule {
            "disk" => "give the VM raw or qcow2 disks in files or block devices of this host",
            "disk-unseen" => "give the VM a QMP socket, so that its disks can be looked at",
            "firmware" => "start the VM with code (read-only) and variables in two flash images",
            "firmware-file" => {
                "put the file that the VM was started with back in its place, by its absolute path"
            }
            "network" => "plug the network card into a bridge, a tap device or QEMU's NAT",
            "medium" => "eject the medium in the guest, or through the monitor, before the move",
            _ => "start the VM without it, or move it cold",
        };
        self.findings.push(Finding::blocking(rule, evidence, fix));
    }

    fn push(&mut self, device: Device) {
        self.built.devices.push(device);
    }

    /// An id that is plain and not taken, from a name that may be neither.
    fn unique(&mut self, wanted: &str, otherwise: &str) -> String {
        let base = if is_plain_name(wanted) && wanted != NVRAM_ID { wanted } else { otherwise };
        let mut candidates = std::iter::once(base.to_owned()).chain((1..).map(|n| format!("{base}-{n}")));
        let free = candidates.find(|id| !self.ids.contains(id)).unwrap_or_default();
        self.ids.insert(free.clone());
        free
    }

    fn fact(&mut self, image: &Image, names: &[&str]) -> Option<BlockFact> {
        let matches = |block: &BlockFact| {
            image.node.as_deref() == Some(block.node.as_str())
                || (!block.device.is_empty() && names.contains(&block.device.as_str()))
                || block.file == image.path
        };
        let blocks = self.facts.blocks.iter().enumerate();
        let (at, block) =
            blocks.filter(|(at, _)| !self.seen.contains(at)).find(|(_, block)| matches(block))?;
        self.seen.insert(at);
        Some(block.clone())
    }

    /// The disk at the source, with what QMP knows of it.
    fn image(&mut self, id: &str, image: Result<Image, Obstacle>, names: &[&str]) -> Option<SourceDisk> {
        let image = match image {
            Ok(image) => image,
            Err(evidence) => {
                self.obstacle("disk", format!("{id}: {evidence}"));
                return None;
            }
        };
        let Some(fact) = self.fact(&image, names) else {
            self.obstacle("disk-unseen", format!("{id}: QMP does not show {}", image.path.display()));
            return None;
        };
        let format = match fact.format.as_str() {
            "raw" | "file" | "host_device" => DiskFormat::Raw,
            "qcow2" => DiskFormat::Qcow2,
            other => {
                self.obstacle("disk", format!("{id}: format {other:?}"));
                return None;
            }
        };
        if image.format.is_none() {
            self.findings.push(Finding::warning(
                "probed-format",
                format!("{id}: QEMU guesses the format of {}", image.path.display()),
                "name the format (format=raw or qcow2): a guest could write a header that changes the guess",
            ));
        }
        Some(SourceDisk {
            id: id.to_owned(),
            // The arguments may be relative to a folder that is not known; QMP's is what is open now.
            path: if image.path.is_absolute() { image.path } else { fact.file },
            format,
            size: fact.size,
            node: fact.node,
            read_only: image.read_only,
        })
    }

    fn disk(
        &mut self,
        model: &str,
        device_id: Option<String>,
        name: &str,
        image: Option<Result<Image, Obstacle>>,
        names: &[&str],
        mut properties: Vec<Property>,
    ) {
        let id = self.unique(name, "disk");
        let Some(image) = image else {
            self.obstacle("disk", format!("{id}: a disk without an image"));
            return;
        };
        if let Ok(Image { write_cache: Some(false), .. }) = image {
            properties.push(Property::new("write-cache", "off"));
        }
        let given = image.as_ref().ok().and_then(|image| image.node.clone());
        let Some(source) = self.image(&id, image, names) else { return };
        let own = format!("node-{id}").chars().take(31).collect();
        let mut node = given.filter(|node| is_qemu_id(node)).unwrap_or(own);
        while !self.nodes.insert(node.clone()) {
            node = format!("node-{}", self.nodes.len());
        }
        self.push(Device::Disk(DiskDevice {
            id,
            node,
            model: model.to_owned(),
            device_id,
            size: source.size,
            format: source.format,
            read_only: source.read_only,
            properties,
        }));
        self.built.disks.push(source);
    }

    fn ide(&mut self, drive: Drive, places: &mut BTreeSet<u32>) {
        let given = drive.index.or_else(|| self.board.ide_index(drive.bus_unit.0, drive.bus_unit.1));
        let index = given.or_else(|| (0..64).find(|index| !places.contains(index))).unwrap_or(0);
        places.insert(index);
        let mut properties = self.board.ide_place(index);
        properties.extend(policies(&drive));
        let per_bus = if self.board == Board::Q35 { 1 } else { 2 };
        let automatic = |kind: &str| format!("ide{}-{kind}{}", index / per_bus, index % per_bus);
        if drive.optical {
            let name = drive.id.unwrap_or_else(|| automatic("cd"));
            self.medium(drive.image, &[&name]);
            self.push(Device::Drive(DriveDevice { model: "ide-cd".to_owned(), device_id: None, properties }));
        } else {
            let name = drive.id.unwrap_or_else(|| automatic("hd"));
            self.disk("ide-hd", None, &name, drive.image, &[&name], properties);
        }
    }

    fn floppy(&mut self, drive: Drive) {
        let name = drive.id.unwrap_or_else(|| "floppy0".to_owned());
        self.medium(drive.image, &[&name]);
        self.empty_floppy();
    }

    fn empty_floppy(&mut self) {
        let properties = vec![Property::new("unit", "0")];
        self.push(Device::Drive(DriveDevice { model: "floppy".to_owned(), device_id: None, properties }));
    }

    /// A medium that lies in a drive stops the move; one that was ejected since the start does not.
    fn medium(&mut self, image: Option<Result<Image, Obstacle>>, names: &[&str]) {
        match image {
            None => {}
            Some(Err(obstacle)) => self.obstacle("medium", obstacle),
            Some(Ok(image)) => {
                let inside = self.fact(&image, names).is_some();
                if inside || self.facts.blocks.is_empty() {
                    self.obstacle("medium", format!("{} is in a drive", image.path.display()));
                }
            }
        }
    }

    /// Cards of the board: `-nic`, or the one that QEMU adds.
    fn cards(&mut self, collected: &Collected) {
        for mut pairs in collected.cards.iter().cloned() {
            let kind = pairs.take("type").unwrap_or_default();
            if kind == "none" {
                continue;
            }
            let model = pairs.take("model").or_else(|| self.board.default_card().map(ToOwned::to_owned));
            let model =
                model.map(|model| if model == "virtio" { "virtio-net-pci".to_owned() } else { model });
            let Some(model) = model.filter(|model| catalogue::NETWORKS.contains(&canonical(model))) else {
                self.obstacle("network", format!("-nic {kind} with a model that cannot be moved"));
                continue;
            };
            let (mac, id) = (pairs.take("mac"), pairs.take("id"));
            let backend = self.backend(&kind, pairs);
            self.network(canonical(&model), None, id, mac, backend, Vec::new());
        }
        if let Some(model) = self.board.default_card().filter(|_| self.board.has_card(collected)) {
            self.network(model, None, None, None, NetworkBackend::User {}, Vec::new());
        }
    }

    fn backend(&mut self, kind: &str, mut pairs: Pairs) -> NetworkBackend {
        match kind {
            "user" => {
                if pairs.take_prefix("hostfwd").is_empty() {
                    return NetworkBackend::User {};
                }
                self.findings.push(Finding::warning(
                    "port-forwarding",
                    "ports of this host are forwarded to the VM (hostfwd)",
                    "forward them at the destination by other means",
                ));
                NetworkBackend::User {}
            }
            "bridge" => NetworkBackend::Bridge { name: pairs.take("br").unwrap_or_else(|| "br0".to_owned()) },
            "tap" => {
                let name = pairs.take("ifname").or_else(|| pairs.take("br"));
                let known = self.facts.tap_bridges.iter().find(|(tap, _)| Some(tap) == name.as_ref());
                known.map_or(NetworkBackend::Tap {}, |(_, bridge)| NetworkBackend::Bridge {
                    name: bridge.clone(),
                })
            }
            _ => {
                self.obstacle("network", format!("network backend {kind:?}"));
                NetworkBackend::Disconnected {}
            }
        }
    }

    fn network(
        &mut self,
        model: &str,
        device_id: Option<String>,
        name: Option<String>,
        mac: Option<String>,
        backend: NetworkBackend,
        properties: Vec<Property>,
    ) {
        let id = self.unique(name.as_deref().unwrap_or("net"), "net");
        let mac = self.mac(mac);
        let model = model.to_owned();
        self.push(Device::Network(NetworkDevice { id, model, device_id, mac, backend, properties }));
    }

    /// `qemu_macaddr_default_if_unset` (`net/net.c`): the first free one of a fixed range.
    fn mac(&mut self, given: Option<String>) -> String {
        const PREFIX: &str = "52:54:00:12:34:";
        if let Some(mac) = given {
            let mac = mac.to_ascii_lowercase().replace('-', ":");
            let last = mac.strip_prefix(PREFIX).and_then(|last| u8::from_str_radix(last, 16).ok());
            self.macs.extend(last);
            return mac;
        }
        let last = (0x56..0xff).find(|last| !self.macs.contains(last)).unwrap_or(0xff);
        self.macs.insert(last);
        format!("{PREFIX}{last:02x}")
    }

    fn device(&mut self, mut pairs: Pairs, collected: &Collected, drives: &[Drive]) {
        let driver = pairs.take("driver").unwrap_or_default();
        let model = canonical(&driver);
        let id = pairs.take("id");
        let device_id = id.clone().filter(|id| is_qemu_id(id));
        if device_id != id {
            self.obstacle("device", format!("-device {driver} with the id {id:?}"));
        }
        if catalogue::DISKS.contains(&model) || catalogue::DRIVES.contains(&model) {
            let name = pairs.take("drive");
            let drive = drives.iter().find(|drive| drive.id == name && name.is_some());
            let from_node = name.as_deref().filter(|name| collected.nodes.has(name));
            let image = match drive {
                Some(drive) => drive.image.clone(),
                None => from_node.map(|name| collected.nodes.image(name)),
            };
            pairs.take("iothread");
            let mut properties = drive.map(policies).unwrap_or_default();
            properties.extend(self.properties(&driver, pairs));
            let names: Vec<&str> = name.as_deref().into_iter().collect();
            if catalogue::DRIVES.contains(&model) {
                self.medium(image, &names);
                self.push(Device::Drive(DriveDevice { model: model.to_owned(), device_id, properties }));
                return;
            }
            let wanted = device_id.clone().or_else(|| name.clone()).unwrap_or_default();
            self.disk(model, device_id, &wanted, image, &names, properties);
        } else if catalogue::NETWORKS.contains(&model) {
            let (mac, netdev) = (pairs.take("mac"), pairs.take("netdev"));
            let backend = netdev.as_deref().and_then(|netdev| collected.netdevs.get(netdev)).cloned();
            let backend = match backend {
                Some(mut backend) => {
                    let kind = backend.take("type").unwrap_or_default();
                    self.backend(&kind, backend)
                }
                None => NetworkBackend::Disconnected {},
            };
            let properties = self.properties(&driver, pairs);
            let name = device_id.clone().or(netdev);
            self.network(model, device_id, name, mac, backend, properties);
        } else if catalogue::CHANNELS.contains(&model) {
            pairs.take("chardev");
            let wanted =
                device_id.clone().or_else(|| pairs.get("name").map(ToOwned::to_owned)).unwrap_or_default();
            let id = self.unique(&wanted, "channel");
            let properties = self.properties(&driver, pairs);
            self.push(Device::Channel(ChannelDevice { id, model: model.to_owned(), device_id, properties }));
        } else if catalogue::is_plain(model) {
            for of_the_host in ["rng", "iothread"] {
                pairs.take(of_the_host);
            }
            let properties = self.properties(&driver, pairs);
            self.push(Device::Plain(PlainDevice { model: model.to_owned(), device_id, properties }));
        } else {
            self.foreign(&driver);
        }
    }

    fn properties(&mut self, driver: &str, pairs: Pairs) -> Vec<Property> {
        let mut properties = Vec::new();
        for (name, value) in pairs.rest() {
            // No ROM at all is something that the guest sees; any other ROM is a file.
            if catalogue::PROPERTIES.contains(&name.as_str()) || (name == "romfile" && value.is_empty()) {
                properties.push(Property { name, value });
            } else {
                self.findings.push(Finding::blocking(
                    "device-property",
                    format!("-device {driver},{name}={value}").chars().take(200).collect::<String>(),
                    "start the VM without this property; it cannot be reproduced on the other host",
                ));
            }
        }
        properties
    }

    fn foreign(&mut self, driver: &str) {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| driver.starts_with(prefix));
        let (rule, fix) = if starts(&["vfio", "usb-host", "scsi-block", "scsi-generic", "vhost"]) {
            ("host-device", "a device of this host cannot move: detach it, or move the VM cold without it")
        } else if starts(&["virtio-9p", "virtio-fs"]) {
            ("shared-folder", "unmount the folder in the guest and start the VM without it")
        } else if starts(&["ivshmem"]) {
            ("shared-memory", "memory shared with this host cannot move: start the VM without it")
        } else if starts(&["tpm"]) {
            ("tpm", "a TPM's secrets do not leave their host: start the VM without it")
        } else if starts(&["pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem"]) {
            ("memory-device", "start the VM with all its memory in -m")
        } else {
            ("unknown-device", "start the VM without this device, or move it cold")
        };
        self.findings.push(Finding::blocking(rule, format!("-device {driver}"), fix));
    }
}

fn policies(drive: &Drive) -> Vec<Property> {
    drive.policies.iter().map(|(name, value)| Property::new(name.as_str(), value.as_str())).collect()
}
