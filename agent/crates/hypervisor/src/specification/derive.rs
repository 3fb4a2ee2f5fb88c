//! From the arguments of a running QEMU to a specification.
//!
//! Read once into `Collected`, then built in the order in which QEMU makes devices (`system/vl.c`, `qemu_init`):
//! the board's own, network cards of the board, `-device` in order, and last the devices that `-drive if=virtio`
//! stands for. Checked against real QEMU by comparing `info qtree` and by migrating.

mod board;
mod collect;
mod devices;

use std::path::{Path, PathBuf};

use super::arguments::Argument;
use super::{
    Accelerator, BootFile, Cpu, DiskFormat, Finding, Firmware, KernelBoot, Machine, NVRAM_ID, NovaCronConfig,
    Nvram, Processors, SPECIFICATION_VERSION, SpecificationError, VmFacts, VmSpecification, arguments,
};
use board::Board;
use collect::Collected;

/// The name of the port that a guest's agent listens on.
const GUEST_AGENT: &str = "org.qemu.guest_agent.0";

/// What [`derive()`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Derived {
    /// The VM. Not to be used while a finding is blocking.
    pub specification: VmSpecification,
    /// Where the source keeps its disks, and under which names its QEMU knows them. The last may be UEFI variables,
    /// under [`NVRAM_ID`].
    pub disks: Vec<SourceDisk>,
    /// What could not be expressed, and what will be different.
    pub findings: Vec<Finding>,
}

/// A disk at the source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceDisk {
    /// As in the specification.
    pub id: String,
    /// The image or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Length as the guest sees it, bytes.
    pub size: u64,
    /// The node under the device, by which QMP commands address it.
    pub node: String,
    /// The guest cannot write.
    pub read_only: bool,
}

/// Files of the host that a command line names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamedFiles {
    /// Kernel and initial file system: [`derive()`] wants their digests.
    pub boot: Vec<PathBuf>,
    /// `-pidfile`.
    pub pid_file: Option<PathBuf>,
    /// Unix sockets of QMP servers (`-qmp unix:`, `-chardev` with `-mon mode=control`).
    pub qmp: Vec<PathBuf>,
    /// Socket of the channel to the guest's agent: a `virtserialport` of that name on a `-chardev socket`.
    pub guest_agent: Option<PathBuf>,
}

/// Which files of the host a QEMU process uses, before anything else is known of it.
///
/// # Errors
/// [`SpecificationError::Argument`].
pub fn named_files(process: &[String]) -> Result<NamedFiles, SpecificationError> {
    let mut named = NamedFiles::default();
    let (mut controls, mut sockets) = (Vec::new(), Vec::new());
    let mut agent = None;
    for Argument { name, value } in arguments::split(process) {
        match name {
            "kernel" | "initrd" => named.boot.push(value.into()),
            "pidfile" => named.pid_file = Some(value.into()),
            "qmp" | "qmp-pretty" => {
                let path = value.strip_prefix("unix:").and_then(|rest| rest.split(',').next());
                named.qmp.extend(path.map(PathBuf::from));
            }
            "mon" => {
                let mut pairs = arguments::Pairs::read(name, value, Some("chardev"))?;
                if pairs.take("mode").as_deref() == Some("control") {
                    controls.extend(pairs.take("chardev"));
                }
            }
            "device" if value.contains(GUEST_AGENT) && !value.starts_with('{') => {
                let mut pairs = arguments::Pairs::read(name, value, Some("driver"))?;
                if pairs.take("name").as_deref() == Some(GUEST_AGENT) {
                    agent = pairs.take("chardev");
                }
            }
            "chardev" => {
                let mut pairs = arguments::Pairs::read(name, value, Some("backend"))?;
                if pairs.take("backend").as_deref() == Some("socket") {
                    sockets.extend(pairs.take("id").zip(pairs.take("path")));
                }
            }
            _ => {}
        }
    }
    let channel = sockets.iter().find(|(id, _)| Some(id) == agent.as_ref());
    named.guest_agent = channel.map(|(_, path)| PathBuf::from(path));
    let controlled = sockets.into_iter().filter(|(id, _)| controls.contains(id));
    named.qmp.extend(controlled.map(|(_, path)| PathBuf::from(path)));
    Ok(named)
}

/// The UEFI code that a QEMU process was started with: [`derive()`] wants its digest, too.
#[must_use]
pub fn firmware_code(process: &[String]) -> Option<PathBuf> {
    // What cannot be read is derive's to report.
    let collected = Collected::read(process, &mut Vec::new()).ok()?;
    let [code, _] = collected.flash_images();
    code?.ok().map(|image| image.path)
}

/// Describes the VM that the process with these arguments (`/proc/PID/cmdline`) runs.
///
/// `id` is the VM's id; `novacron` its `config.json` when NovaCron manages it.
///
/// # Errors
/// When the arguments are not those of a QEMU that could have started, or a value exceeds what a specification may
/// hold. What is merely not supported is a finding instead.
pub fn derive(
    id: &str,
    process: &[String],
    facts: &VmFacts,
    novacron: Option<&[u8]>,
) -> Result<Derived, SpecificationError> {
    let mut findings = Vec::new();
    let novacron = novacron.map(NovaCronConfig::read).transpose()?.map(|(config, found)| {
        findings.extend(found);
        config
    });
    let collected = Collected::read(process, &mut findings)?;
    let machine = machine(&collected, facts, &mut findings);
    let board = Board::of(&machine.kind);
    let cpu = cpu(&collected, facts, &mut findings);
    let kernel = kernel(&collected, facts, &mut findings);
    let mut builder = devices::Builder::new(facts, board, &mut findings);
    let firmware = builder.firmware(&collected);
    builder.devices(&collected);
    let devices::Built { devices, disks } = builder.finish();
    let memory = collected.memory;
    let processors = collected.processors;
    compare(&collected, facts, processors, &mut findings);
    let specification = VmSpecification {
        version: SPECIFICATION_VERSION,
        id: id.to_owned(),
        name: collected.name.clone().unwrap_or_else(|| id.to_owned()),
        uuid: collected.uuid.clone(),
        machine,
        cpu,
        processors,
        memory,
        firmware,
        kernel,
        boot: collected.boot.clone(),
        clock: collected.clock,
        video: board.video(&collected),
        vnc: collected.vnc,
        serial: board.serial(&collected),
        parallel_ports: board.parallel_ports(&collected),
        no_reboot: collected.no_reboot,
        no_shutdown: collected.no_shutdown,
        devices,
        novacron,
    };
    // An obstacle may have left something out that a valid specification has; then the obstacle is what to show.
    if !findings.iter().any(Finding::is_blocking) {
        specification.check()?;
    }
    Ok(Derived { specification, disks, findings })
}

fn machine(collected: &Collected, facts: &VmFacts, findings: &mut Vec<Finding>) -> Machine {
    let given = collected.machine.as_deref();
    let seen = facts.machine.as_deref().map(|kind| kind.strip_suffix("-machine").unwrap_or(kind));
    // Versioned types end in a version; `pc`, `q35` and no type at all mean whatever this QEMU takes them for.
    let versioned = given.filter(|kind| !["pc", "q35"].contains(kind));
    let kind = seen.or(versioned).unwrap_or_else(|| {
        findings.push(Finding::blocking(
            "machine-alias",
            format!("machine type {:?} is an alias, and QMP did not say of what", given.unwrap_or("default")),
            "give the VM a QMP socket, or start it with a versioned type such as pc-i440fx-10.0",
        ));
        given.unwrap_or("pc")
    });
    Machine {
        kind: kind.to_owned(),
        accelerator: collected.accelerator.unwrap_or(Accelerator::Tcg),
        options: collected.machine_options.clone(),
    }
}

fn cpu(collected: &Collected, facts: &VmFacts, findings: &mut Vec<Finding>) -> Cpu {
    // `TARGET_DEFAULT_CPU_TYPE` of x86_64.
    let mut parts = collected.cpu.as_deref().unwrap_or("qemu64").split(',').map(str::to_owned);
    let model = parts.next().unwrap_or_default();
    let of_host = ["host", "max"].contains(&model.as_str());
    if of_host && facts.host_cpu.is_none() {
        findings.push(Finding::blocking(
            "cpu-host",
            format!("-cpu {model} gives the guest this host's processor, which is not known"),
            "start the VM with a named model that both hosts have, such as -cpu EPYC",
        ));
    } else if of_host {
        findings.push(Finding::warning(
            "cpu-host",
            format!("-cpu {model} gives the guest this host's processor"),
            "only a host with the same processor can take it; a named model moves anywhere",
        ));
    }
    Cpu {
        host_model: facts.host_cpu.clone().filter(|_| of_host),
        features: parts.filter(|feature| !feature.is_empty()).collect(),
        model,
    }
}

fn kernel(collected: &Collected, facts: &VmFacts, findings: &mut Vec<Finding>) -> Option<KernelBoot> {
    let mut file = |path: &str| {
        let path = Path::new(path);
        let name = path.file_name()?.to_string_lossy().into_owned();
        let Some(fact) = facts.files.iter().find(|fact| fact.path == path) else {
            findings.push(Finding::blocking(
                "boot-file",
                format!("{} could not be read", path.display()),
                "put the file that the VM was started with back in its place",
            ));
            return None;
        };
        Some(BootFile { name, sha256: fact.sha256.clone(), size: fact.size })
    };
    let kernel = file(collected.kernel.as_deref()?)?;
    let initrd = collected.initrd.as_deref().and_then(file);
    Some(KernelBoot { kernel, initrd, command_line: collected.kernel_command_line.clone() })
}

/// What QMP says against what the arguments say: a difference means that the VM was changed since it was started.
fn compare(collected: &Collected, facts: &VmFacts, processors: Processors, findings: &mut Vec<Finding>) {
    let mut differs = |what: &'static str, here: String, there: String| {
        if here != there {
            findings.push(Finding::blocking(
                "changed-since-start",
                format!("{what}: started with {here}, now {there}"),
                "undo the change, or restart the VM with it, before moving it",
            ));
        }
    };
    if let Some(bytes) = facts.memory_bytes {
        differs("memory", collected.memory.bytes.to_string(), bytes.to_string());
    }
    if let Some(count) = facts.processors {
        differs("processors", processors.count.to_string(), count.to_string());
    }
    if let (Some(there), Some(here)) = (&facts.uuid, &collected.uuid) {
        differs("uuid", here.to_ascii_lowercase(), there.to_ascii_lowercase());
    }
    if let Some(ids) = &facts.peripherals {
        let mut started: Vec<_> = collected.device_ids().collect();
        let mut now: Vec<_> = ids.iter().map(String::as_str).collect();
        // Those of `-drive if=virtio` have the drive's name, which no argument says.
        now.retain(|id| started.contains(id) || !board::is_automatic(id));
        started.sort_unstable();
        now.sort_unstable();
        differs("devices", started.join(" "), now.join(" "));
    }
}
