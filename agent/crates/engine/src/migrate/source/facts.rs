//! What QEMU and its process say of the VM: the ground of its specification.

use std::path::{Path, PathBuf};

use hypervisor::qmp::Qmp;
use hypervisor::specification::{BlockFact, Derived, VmFacts, derive, fact_of, firmware_code, named_files};
use sysfs::tap_bridges;

use super::chain;
use crate::migrate::host_cpu::host_cpu;

mod sysfs {
    //! Which bridges the VM's tap devices are in.

    use std::path::Path;

    /// Most network devices that are looked at.
    const MAX_DEVICES: usize = 64;

    /// (`ifname`, bridge) of the tap devices that the arguments name.
    pub(super) fn tap_bridges(arguments: &[String]) -> Vec<(String, String)> {
        let names = arguments.iter().flat_map(|argument| argument.split(','));
        let names = names.filter_map(|part| part.strip_prefix("ifname="));
        names
            .filter(|name| !name.contains('/') && !name.starts_with('.'))
            .take(MAX_DEVICES)
            .filter_map(|name| {
                let master = Path::new("/sys/class/net").join(name).join("master");
                let bridge = std::fs::read_link(master).ok()?;
                Some((name.to_owned(), bridge.file_name()?.to_str()?.to_owned()))
            })
            .collect()
    }
}

/// The arguments of a process (`/proc/PID/cmdline`).
fn arguments(pid: u32) -> Result<Vec<String>, String> {
    let path = format!("/proc/{pid}/cmdline");
    let bytes = std::fs::read(&path).map_err(|error| {
        format!("cannot read {path}; run the agent as a user who may see the VM's process: {error}")
    })?;
    let text = String::from_utf8(bytes).map_err(|_not_text| format!("{path} is not UTF-8"))?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

/// The socket of the channel to the guest's agent, if the VM has one.
///
/// # Errors
/// For people: what could not be read.
pub(super) fn guest_agent(pid: u32) -> Result<Option<PathBuf>, String> {
    named_files(&arguments(pid)?).map(|named| named.guest_agent).map_err(|error| chain(&error))
}

/// The user that a process runs as.
///
/// # Errors
/// For people: the process is gone.
pub(super) fn user(pid: u32) -> Result<u32, String> {
    use std::os::unix::fs::MetadataExt;
    let path = format!("/proc/{pid}");
    std::fs::metadata(&path).map(|data| data.uid()).map_err(|error| format!("look at {path}: {error}"))
}

/// Describes the VM that a process runs.
///
/// # Errors
/// For people: what could not be asked or read.
pub(super) async fn describe(
    vm: &str,
    pid: u32,
    folder: Option<&Path>,
    qmp: &Qmp,
) -> Result<Derived, String> {
    let arguments = arguments(pid)?;
    let failed = |what: &'static str| {
        move |error: hypervisor::qmp::MonitorError| format!("ask QEMU for {what}: {}", chain(&error))
    };
    let named = named_files(&arguments).map_err(|error| chain(&error))?;
    let memory = qmp.query_memory_size().await.map_err(failed("its memory"))?;
    let processors = qmp.query_cpus().await.map_err(failed("its processors"))?;
    let blocks = qmp.query_block().await.map_err(failed("its disks"))?;
    let peripherals = qmp.qom_list("/machine/peripheral").await.map_err(failed("its devices"))?;
    let facts = VmFacts {
        machine: Some(qmp.machine_type().await.map_err(failed("its machine type"))?),
        host_cpu: host_cpu(),
        memory_bytes: Some(memory.base_memory),
        processors: u32::try_from(processors.len()).ok(),
        uuid: Some(qmp.query_uuid().await.map_err(failed("its UUID"))?),
        blocks: blocks
            .into_iter()
            .filter_map(|device| {
                let inserted = device.inserted?;
                Some(BlockFact {
                    device: device.device,
                    node: inserted.node_name.unwrap_or_default(),
                    qdev: device.qdev,
                    file: inserted.image.filename.into(),
                    format: inserted.driver,
                    size: inserted.image.virtual_size,
                    read_only: inserted.read_only,
                })
            })
            .collect(),
        peripherals: Some(
            peripherals
                .into_iter()
                .filter(|property| property.kind.starts_with("child<"))
                .map(|property| property.name)
                .collect(),
        ),
        files: digests(named.boot.into_iter().chain(firmware_code(&arguments)).collect()).await?,
        tap_bridges: tap_bridges(&arguments),
    };
    let novacron = match folder.map(|folder| folder.join("config.json")) {
        Some(path) if path.exists() => {
            Some(std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?)
        }
        _ => None,
    };
    derive(vm, &arguments, &facts, novacron.as_deref())
        .map_err(|error| format!("the VM cannot be described: {}", chain(&error)))
}

async fn digests(paths: Vec<PathBuf>) -> Result<Vec<hypervisor::specification::FileFact>, String> {
    let work = tokio::task::spawn_blocking(move || {
        paths
            .into_iter()
            .map(|path| fact_of(&path).map_err(|error| format!("cannot read {}: {error}", path.display())))
            .collect()
    });
    work.await.map_err(|error| format!("hashing the boot files failed: {error}"))?
}
