//! A specification on this host: what of it is bound to which files and bridges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Accelerator, BootFile, Carried, DiskFormat, FileFact, Finding, Firmware, NetworkBackend,
    SpecificationError, VmSpecification, check,
};

/// Version of [`StartRequest`]; others are refused.
pub const START_VERSION: u32 = 1;
/// Longest path of a host, bytes: Linux's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// What this host has for the VM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostMapping {
    /// The receiver's files or devices by the specification's disk ids, and `nvram`.
    pub disks: BTreeMap<String, DiskTarget>,
    /// This host's bridges by the source's.
    pub bridges: BTreeMap<String, String>,
    /// The bridge for networks that `bridges` does not name; also for tap devices.
    pub default_bridge: Option<String>,
    /// The boot folder's files: [`inventory`](super::inventory).
    pub boot: Vec<NamedHostFile>,
    /// The firmware folder's files: [`inventory`](super::inventory).
    pub firmware: Vec<NamedHostFile>,
    /// What can execute guests here.
    pub accelerators: Vec<Accelerator>,
    /// Machine types of this host's QEMU; none when it was not asked.
    pub machines: Option<Vec<String>>,
    /// This host's processor, as in [`VmFacts::host_cpu`](super::VmFacts::host_cpu).
    pub host_cpu: Option<String>,
}

/// A file in a folder of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedHostFile {
    /// Name in the folder.
    pub name: String,
    /// What it is.
    pub file: FileFact,
}

/// Where a disk is on this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTarget {
    /// Absolute.
    pub path: PathBuf,
    /// How it is kept here.
    pub format: DiskFormat,
}

/// What a network card is plugged into on this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum HostNetwork {
    /// QEMU's own NAT.
    User {},
    /// A bridge, through a tap device that vmd makes.
    Bridge {
        /// Its name.
        name: String,
    },
    /// Nothing.
    Disconnected {},
}

/// What of a VM is bound to what of this host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bindings {
    /// Disks by id, and `nvram`.
    pub disks: BTreeMap<String, DiskTarget>,
    /// Network cards by id.
    pub networks: BTreeMap<String, HostNetwork>,
    /// The kernel.
    pub kernel: Option<PathBuf>,
    /// Its initial file system.
    pub initrd: Option<PathBuf>,
    /// BIOS or UEFI code.
    pub firmware: Option<PathBuf>,
}

/// What a QEMU does once it has made its devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Waits for a migration stream (`-incoming defer -S`).
    Incoming,
    /// Waits before the first instruction (`-S`) until QMP's `cont`. Its disks cannot be written from outside: the
    /// guest's devices hold them already.
    Paused,
    /// Boots.
    Running,
}

/// What vmd is asked to start: a VM, bound to this host. Still no command line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// [`START_VERSION`].
    pub version: u32,
    /// The session's generation: vmd refuses one that is older than what it knows, or fenced.
    pub generation: u64,
    /// What it does then.
    pub start: Start,
    /// The VM.
    pub specification: VmSpecification,
    /// Its files and bridges here.
    pub bindings: Bindings,
}

impl StartRequest {
    /// Whether this can be acted on: the specification is valid, everything that it needs is bound, and every path is
    /// absolute and plain. Whether vmd may use those paths is vmd's to say.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecificationError> {
        if self.version != START_VERSION {
            return Err(SpecificationError::Version { found: self.version, known: START_VERSION });
        }
        self.specification.check()?;
        let Bindings { disks, networks, kernel, initrd, firmware } = &self.bindings;
        let specification = &self.specification;
        let wanted: Vec<&str> = specification.carried().map(|carried| carried.id).collect();
        for id in &wanted {
            let target = disks.get(*id).ok_or_else(|| missing("a disk", id))?;
            check_path(&target.path)?;
        }
        // What is written below the disk's own node is bytes, not a format.
        let incoming = |disk: &Carried<'_>| self.start == Start::Incoming && disk.read_only;
        for disk in specification.carried().filter(incoming) {
            if disks.get(disk.id).is_some_and(|target| target.format != DiskFormat::Raw) {
                let why = "a read-only disk that comes with a running guest is kept raw";
                return Err(SpecificationError::value("bindings.disks.format", disk.id, why));
            }
        }
        let cards: Vec<&str> = specification.networks().map(|network| network.id.as_str()).collect();
        for id in &cards {
            if let HostNetwork::Bridge { name } = networks.get(*id).ok_or_else(|| missing("a network", id))? {
                check::check_id("bindings.networks.name", name)?;
            }
        }
        let surplus = disks.keys().find(|id| !wanted.contains(&id.as_str()));
        if let Some(id) = surplus.or_else(|| networks.keys().find(|id| !cards.contains(&id.as_str()))) {
            return Err(SpecificationError::value(
                "bindings",
                id,
                "the specification has nothing of that name",
            ));
        }
        let boot = specification.kernel.as_ref();
        let firmware_named = match &specification.firmware {
            Firmware::Bios { file } => file.is_some(),
            Firmware::Uefi { .. } => true,
        };
        let files = [
            ("kernel", boot.is_some(), kernel),
            ("initrd", boot.is_some_and(|boot| boot.initrd.is_some()), initrd),
            ("firmware", firmware_named, firmware),
        ];
        for (name, wanted, path) in files {
            match path {
                Some(path) if wanted => check_path(path)?,
                None if wanted => return Err(missing("a file", name)),
                Some(_) => {
                    return Err(SpecificationError::value("bindings", name, "the specification has none"));
                }
                None => {}
            }
        }
        Ok(())
    }
}

fn missing(field: &'static str, of: &str) -> SpecificationError {
    SpecificationError::Missing { field, value: of.to_owned() }
}

fn check_path(path: &Path) -> Result<(), SpecificationError> {
    let text = path.as_os_str();
    if text.len() > MAX_PATH {
        return Err(SpecificationError::TooLong {
            field: "bindings.path",
            found: text.len(),
            limit: MAX_PATH,
        });
    }
    let wrong = |why| SpecificationError::value("bindings.path", &path.to_string_lossy(), why);
    let Some(text) = path.to_str() else { return Err(wrong("paths are UTF-8")) };
    if text.chars().any(char::is_control) {
        return Err(wrong("paths have no control characters"));
    }
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if path.is_absolute() && plain { Ok(()) } else { Err(wrong("paths are absolute, without . and ..")) }
}

/// Binds a VM to this host. The request comes with warnings.
///
/// # Errors
/// All findings, when one of them is blocking.
pub fn resolve(
    specification: &VmSpecification,
    mapping: &HostMapping,
    generation: u64,
    start: Start,
) -> Result<(StartRequest, Vec<Finding>), Vec<Finding>> {
    let mut findings = Vec::new();
    if let Err(error) = specification.check() {
        findings.push(Finding::blocking(
            "specification",
            error.to_string(),
            "use the same release on both hosts",
        ));
        return Err(findings);
    }
    host(specification, mapping, &mut findings);
    let mut bindings = Bindings::default();
    for id in specification.carried().map(|carried| carried.id) {
        match mapping.disks.get(id) {
            Some(target) => {
                bindings.disks.insert(id.to_owned(), target.clone());
            }
            None => findings.push(Finding::blocking(
                "disk-mapping",
                format!("there is no place for disk {id}"),
                "name a pool for it at the receiver",
            )),
        }
    }
    for card in specification.networks() {
        let network = network(&card.backend, mapping, &mut findings);
        bindings.networks.insert(card.id.clone(), network);
    }
    if let Some(boot) = &specification.kernel {
        bindings.kernel = boot_file(&boot.kernel, mapping, &mut findings);
        bindings.initrd = boot.initrd.as_ref().and_then(|initrd| boot_file(initrd, mapping, &mut findings));
    }
    bindings.firmware = firmware(&specification.firmware, mapping, &mut findings);
    if findings.iter().any(Finding::is_blocking) {
        return Err(findings);
    }
    let specification = specification.clone();
    Ok((StartRequest { version: START_VERSION, generation, start, specification, bindings }, findings))
}

fn host(specification: &VmSpecification, mapping: &HostMapping, findings: &mut Vec<Finding>) {
    let machine = &specification.machine;
    if !mapping.accelerators.contains(&machine.accelerator) {
        findings.push(Finding::blocking(
            "accelerator",
            format!("the VM runs on {:?}, which this host does not have", machine.accelerator),
            "choose another host; a running guest cannot change between KVM and TCG",
        ));
    }
    if mapping.machines.as_ref().is_some_and(|machines| !machines.contains(&machine.kind)) {
        findings.push(Finding::blocking(
            "machine",
            format!("this host's QEMU does not know the board {}", machine.kind),
            "install the source's version of QEMU, or a newer one",
        ));
    }
    if specification.cpu.host_model.is_some() && specification.cpu.host_model != mapping.host_cpu {
        findings.push(Finding::blocking(
            "cpu-host",
            format!(
                "the VM has its host's processor (-cpu {}), and this host has another",
                specification.cpu.model
            ),
            "start the VM with a named model that both hosts have",
        ));
    }
}

fn network(backend: &NetworkBackend, mapping: &HostMapping, findings: &mut Vec<Finding>) -> HostNetwork {
    let bridge = match backend {
        // Offloads that a tap device has and the NAT has not would be missing to the guest, so this stays what it is.
        NetworkBackend::User {} => {
            findings.push(Finding::warning(
                "user-network",
                "a network card is on QEMU's own NAT",
                "connections of the guest break at the move; use a bridge that both hosts share",
            ));
            return HostNetwork::User {};
        }
        NetworkBackend::Disconnected {} => return HostNetwork::Disconnected {},
        NetworkBackend::Bridge { name } => mapping.bridges.get(name).or(mapping.default_bridge.as_ref()),
        NetworkBackend::Tap {} => mapping.default_bridge.as_ref(),
    };
    let Some(name) = bridge else {
        findings.push(Finding::blocking(
            "bridge-mapping",
            format!("no bridge of this host stands for {backend:?}"),
            "map the source's bridge to one of this host's in the receiver's configuration",
        ));
        return HostNetwork::Disconnected {};
    };
    HostNetwork::Bridge { name: name.clone() }
}

/// The firmware by name. Flash memory is a part of the guest's memory, so its length is that of the source's; its content
/// travels with a running guest, and is the receiver's from the next start on.
fn firmware(firmware: &Firmware, mapping: &HostMapping, findings: &mut Vec<Finding>) -> Option<PathBuf> {
    let name = match firmware {
        Firmware::Bios { file } => file.as_ref()?,
        Firmware::Uefi { code, .. } => &code.name,
    };
    let fix = "copy the source's file of that name into the receiver's firmware folder (`firmware` of [migrate_in])";
    let Some(here) = mapping.firmware.iter().find(|file| file.name == *name) else {
        findings.push(Finding::blocking(
            "firmware-mapping",
            format!("the firmware folder has no {name}"),
            fix,
        ));
        return None;
    };
    match firmware {
        Firmware::Uefi { code, .. } if code.size != here.file.size => {
            let evidence = format!("{name} has {} bytes here, and {} at the source", here.file.size, code.size);
            findings.push(Finding::blocking("firmware-mapping", evidence, fix));
        }
        Firmware::Uefi { code, .. } if code.sha256 != here.file.sha256 => findings.push(Finding::warning(
            "firmware-differs",
            format!("{name} in the firmware folder is not the source's: its digest differs"),
            "install the source's firmware if the guest is to boot with the same; until then it keeps what it has",
        )),
        Firmware::Uefi { .. } | Firmware::Bios { .. } => {}
    }
    Some(here.file.path.clone())
}

fn boot_file(file: &BootFile, mapping: &HostMapping, findings: &mut Vec<Finding>) -> Option<PathBuf> {
    let here = mapping.boot.iter().find(|here| here.name == file.name);
    let evidence = match here {
        Some(here) if here.file.sha256 == file.sha256 && here.file.size == file.size => {
            return Some(here.file.path.clone());
        }
        Some(_) => format!("{} in the boot folder is not the source's: its digest differs", file.name),
        None => format!("the boot folder has no {}", file.name),
    };
    findings.push(Finding::blocking(
        "boot-file-mapping",
        evidence,
        "copy the source's file of that name into the receiver's boot folder",
    ));
    None
}
