//! `[vms]`, `[[vm]]` and `[migrate_in]`: which virtual machines this host has, and which may come to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::file::{FileMigrateIn, FileVm, FileVms};
use super::pool::{self, Pool, PoolName};
use super::units::ByteSize;
use hypervisor::inventory::{MAX_LABEL, MAX_LABELS};
use pki::PeerName;

/// NovaCron's folder of VMs.
const FOLDER: &str = "/var/lib/novacron/vms";
/// `novaferry-vmd`'s socket.
const VMD: &str = "/run/novaferry-vmd/vmd.sock";
/// Folder for the sockets that QEMU connects to.
const RUNTIME: &str = "/run/novaferry";
/// Pages kept for the reduction of one VM's RAM.
const RAM_CACHE: ByteSize = ByteSize(256 << 20);
/// Least of them: fewer find nothing.
const LEAST_RAM_CACHE: ByteSize = ByteSize(1 << 20);
/// Most of them: every migration that is allowed may fill as much.
const MOST_RAM_CACHE: ByteSize = ByteSize(64 << 30);
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Longest name of a network interface (Linux, `IFNAMSIZ` with its zero).
const MAX_INTERFACE: usize = 15;

/// A VM that no folder of NovaCron's tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedVm {
    /// Its name and id.
    pub name: String,
    /// The socket at which its QEMU listens for QMP.
    pub qmp: PathBuf,
    /// Its folder, if it has one.
    pub folder: Option<PathBuf>,
    /// Whose it is, over what its `config.json` says; or empty.
    pub tenant: String,
    /// Its labels, over those of its `config.json`: what the coordinator chooses hosts by.
    pub labels: BTreeMap<String, String>,
}

/// Where virtual machines are, and who starts them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vms {
    /// NovaCron's folder of VMs. It need not be there.
    pub folder: PathBuf,
    /// `novaferry-vmd`'s socket.
    pub vmd: PathBuf,
    /// For sockets that QEMU connects to, when a VM has no folder of its own.
    pub runtime: PathBuf,
    /// VMs by name.
    pub named: Vec<NamedVm>,
}

/// What may come to this host, and where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MigrateIn {
    /// Hosts that may move VMs here.
    pub allow: Vec<PeerName>,
    /// Pool for the disks when the source asks for none.
    pub pool: Option<PoolName>,
    /// The bridge for networks that `bridges` does not name.
    pub default_bridge: Option<String>,
    /// This host's bridges by the source's.
    pub bridges: BTreeMap<String, String>,
    /// Kernels and initial file systems of VMs that boot directly.
    pub boot: Option<PathBuf>,
    /// BIOS and UEFI files.
    pub firmware: Option<PathBuf>,
    /// Most that a source may have kept here for the reduction of one VM's RAM.
    pub ram_cache: ByteSize,
}

impl MigrateIn {
    /// `ram_cache` in pages.
    #[must_use]
    pub fn slots(&self) -> u32 {
        slots(self.ram_cache)
    }
}

/// Pages of 4 KiB in a cache of RAM.
#[must_use]
pub fn slots(cache: ByteSize) -> u32 {
    u32::try_from(cache.0 / PAGE).unwrap_or(u32::MAX)
}

/// Checks a cache of RAM.
///
/// # Errors
/// For people: what is possible.
pub fn check_ram_cache(cache: ByteSize) -> Result<(), String> {
    if (LEAST_RAM_CACHE..=MOST_RAM_CACHE).contains(&cache) {
        return Ok(());
    }
    Err(format!("write {LEAST_RAM_CACHE} to {MOST_RAM_CACHE}, such as \"{RAM_CACHE}\""))
}

pub(super) fn vms(file: FileVms, named: Vec<FileVm>) -> Result<Vms, ConfigError> {
    let FileVms { folder, vmd, runtime } = file;
    let mut known: Vec<NamedVm> = Vec::with_capacity(named.len());
    for (index, vm) in named.into_iter().enumerate() {
        let vm = one(index, vm)?;
        if known.iter().any(|earlier| earlier.name == vm.name) {
            return Err(ConfigError::value(
                &format!("vm.{index}.name"),
                &vm.name,
                "there is a VM of this name above: give each a name of its own".into(),
            ));
        }
        known.push(vm);
    }
    Ok(Vms {
        folder: super::absolute("vms.folder", folder, FOLDER)?,
        vmd: super::absolute("vms.vmd", vmd, VMD)?,
        runtime: super::absolute("vms.runtime", runtime, RUNTIME)?,
        named: known,
    })
}

fn one(index: usize, file: FileVm) -> Result<NamedVm, ConfigError> {
    let FileVm { name, qmp, folder, tenant, labels } = file;
    let key = |field: &str| format!("vm.{index}.{field}");
    let advice = "write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit";
    let name = name.ok_or_else(|| ConfigError::missing(&key("name"), advice))?;
    if !pool::is_name(&name) {
        return Err(ConfigError::value(&key("name"), &name, advice.into()));
    }
    let example = format!("/run/{name}/qmp.sock");
    let advice =
        format!("write the socket at which its QEMU listens (-qmp unix:{example},server=on,wait=off)");
    let qmp = qmp.ok_or_else(|| ConfigError::missing(&key("qmp"), &advice))?;
    pool::check_absolute(&key("qmp"), &qmp, &example)?;
    if let Some(folder) = &folder {
        pool::check_absolute(&key("folder"), folder, &format!("{FOLDER}/{name}"))?;
    }
    let tenant = tenant.unwrap_or_default();
    let too_long = |text: &str| text.len() > MAX_LABEL || text.contains(char::is_control);
    let advice = || format!("write at most {MAX_LABEL} bytes, without control characters");
    if too_long(&tenant) {
        return Err(ConfigError::value(&key("tenant"), &tenant, advice()));
    }
    if labels.len() > MAX_LABELS {
        let advice = format!("write at most {MAX_LABELS} labels");
        return Err(ConfigError::value(&key("labels"), &labels.len().to_string(), advice));
    }
    for (label, value) in &labels {
        if label.is_empty() || too_long(label) {
            return Err(ConfigError::value(&key("labels"), label, format!("{}, and one at least", advice())));
        }
        if too_long(value) {
            return Err(ConfigError::value(&key(&format!("labels.{label}")), value, advice()));
        }
    }
    Ok(NamedVm { name, qmp, folder, tenant, labels })
}

pub(super) fn migrate_in(file: FileMigrateIn, pools: &[Pool]) -> Result<MigrateIn, ConfigError> {
    let FileMigrateIn { allow, pool, default_bridge, bridges, boot, firmware, ram_cache } = file;
    let pool = match pool {
        None => None,
        Some(name) => match pools.iter().find(|pool| pool.name.as_str() == name) {
            Some(pool) => Some(pool.name.clone()),
            None => {
                let advice = "write the name of a [[pool]] of this file";
                return Err(ConfigError::value("migrate_in.pool", &name, advice.into()));
            }
        },
    };
    for (theirs, ours) in &bridges {
        interface(&format!("migrate_in.bridges.{theirs}"), ours)?;
        interface("migrate_in.bridges", theirs)?;
    }
    if let Some(bridge) = &default_bridge {
        interface("migrate_in.default_bridge", bridge)?;
    }
    folder("migrate_in.boot", boot.as_deref(), "/var/lib/novaferry-vmd/boot")?;
    folder("migrate_in.firmware", firmware.as_deref(), "/usr/share/OVMF")?;
    let ram_cache = ram_cache.unwrap_or(RAM_CACHE);
    check_ram_cache(ram_cache)
        .map_err(|advice| ConfigError::value("migrate_in.ram_cache", &ram_cache.to_string(), advice))?;
    Ok(MigrateIn {
        allow: pool::peers("migrate_in.allow", allow)?,
        pool,
        default_bridge,
        bridges,
        boot,
        firmware,
        ram_cache,
    })
}

fn folder(key: &str, path: Option<&Path>, example: &str) -> Result<(), ConfigError> {
    path.map_or(Ok(()), |path| pool::check_absolute(key, path, example))
}

/// A name that a network interface can have (Linux, `dev_valid_name`).
fn interface(key: &str, name: &str) -> Result<(), ConfigError> {
    let good = !name.is_empty()
        && name.len() <= MAX_INTERFACE
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c.is_whitespace() || c == '/' || c == ':');
    if good {
        return Ok(());
    }
    Err(ConfigError::value(key, name, "write the name of a bridge, such as \"br0\"".into()))
}
