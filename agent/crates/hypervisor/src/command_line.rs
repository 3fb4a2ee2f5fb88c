//! The arguments of QEMU for a VM that is bound to this host.
//!
//! Pure and the only place that writes such arguments. Nothing is left to defaults (`-nodefaults`), devices come in
//! the order of the specification, and whatever a peer chose is a word from a list or has its commas doubled, which
//! is the only escape that QEMU's option syntax knows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::specification::carried::NVRAM_NODE;
use crate::specification::{
    Accelerator, ClockBase, Console, Device, DiskDevice, DiskTarget, Firmware, HostNetwork, NVRAM_ID,
    NetworkDevice, Property, SpecificationError, Start, StartRequest, Video, VmSpecification, catalogue,
};

/// Name of the QMP socket in a VM's folder.
pub const QMP_SOCKET: &str = "qmp.sock";
/// Name of the second QMP socket of a VM that comes from elsewhere: vmd's own, held from the start on, because a QEMU
/// whose main loop stands still agrees on out-of-band commands with nobody new.
pub const RESCUE_SOCKET: &str = "rescue.sock";
/// Name of the process id file in a VM's folder: NovaCron's name.
pub const PID_FILE: &str = "qemu.pid";
/// Name of the socket that the agent may name in `migrate-incoming`; QEMU makes it then.
pub const INCOMING_SOCKET: &str = "incoming.sock";
/// Name of the VNC socket in a VM's folder.
pub const VNC_SOCKET: &str = "vnc.sock";

/// What the host adds to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The VM's folder, absolute: sockets, console logs and `qemu.pid` are in it.
    pub folder: PathBuf,
    /// Tap devices that were made, by network id.
    pub taps: BTreeMap<String, String>,
}

/// The arguments for `qemu-system-x86_64`, without the program.
///
/// # Errors
/// What [`StartRequest::check`] finds, and a bridge without its tap device.
pub fn arguments(request: &StartRequest, place: &Place) -> Result<Vec<OsString>, SpecificationError> {
    request.check()?;
    let vm = &request.specification;
    let mut line = Line::default();
    line.add("-name", &format!("guest={},debug-threads=on", escape(&vm.name)));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.add("-qmp", &format!("unix:{},server=on,wait=off", path(&place.folder.join(QMP_SOCKET))));
    line.add("-pidfile", &place.folder.join(PID_FILE).to_string_lossy());
    line.add("-msg", "timestamp=on");
    machine(&mut line, vm);
    boot(&mut line, request);
    let disk = |id: &str| request.bindings.disks.get(id).ok_or_else(|| missing(id));
    if let Firmware::Uefi { .. } = vm.firmware {
        let code = request.bindings.firmware.as_deref().ok_or_else(|| missing("firmware"))?;
        line.blockdev("flash-code", code, "raw", Access::Read);
        if let Some(target) = request.bindings.disks.get(NVRAM_ID) {
            line.blockdev(NVRAM_NODE, &target.path, target.format.name(), Access::Write);
        }
    }
    let none = vm.video == Video::None;
    line.add("-vga", if none { "none" } else { video(vm.video) });
    if vm.vnc {
        line.add("-vnc", &format!("unix:{}", path(&place.folder.join(VNC_SOCKET))));
    } else {
        line.add("-display", "none");
    }
    consoles(&mut line, vm, &place.folder);
    for (at, device) in vm.devices.iter().enumerate() {
        match device {
            Device::Disk(device) => {
                let mut all = vm.carried();
                let below = all.find(|carried| carried.read_only && carried.id == device.id);
                let access = match below {
                    None => Access::Write,
                    Some(carried) if request.start == Start::Incoming => Access::Below(carried.node),
                    Some(_) => Access::Read,
                };
                disk_device(&mut line, device, disk(&device.id)?, access);
            }
            Device::Network(device) => network(&mut line, device, request, place)?,
            Device::Drive(device) => {
                line.device(&device.model, device.device_id.as_deref(), &[], &device.properties)
            }
            Device::Channel(device) => {
                let socket = place.folder.join(format!("{}.sock", device.id));
                let chardev = format!("channel-{at}");
                line.add(
                    "-chardev",
                    &format!("socket,id={chardev},path={},server=on,wait=off", path(&socket)),
                );
                let own = [("chardev", chardev.as_str())];
                line.device(&device.model, device.device_id.as_deref(), &own, &device.properties);
            }
            Device::Plain(device) if catalogue::RANDOM.contains(&device.model.as_str()) => {
                let object = format!("random-{at}");
                line.add("-object", &format!("rng-random,id={object},filename=/dev/urandom"));
                let own = [("rng", object.as_str())];
                line.device(&device.model, device.device_id.as_deref(), &own, &device.properties);
            }
            Device::Plain(device) => {
                line.device(&device.model, device.device_id.as_deref(), &[], &device.properties)
            }
        }
    }
    match request.start {
        Start::Running => {}
        Start::Paused => line.flag("-S"),
        Start::Incoming => {
            line.flag("-S");
            line.add("-incoming", "defer");
            line.add("-qmp", &format!("unix:{},server=on,wait=off", path(&place.folder.join(RESCUE_SOCKET))));
        }
    }
    Ok(line.0)
}

fn machine(line: &mut Line, vm: &VmSpecification) {
    let mut machine = vm.machine.kind.clone();
    for Property { name, value } in &vm.machine.options {
        machine.push_str(&format!(",{name}={}", escape(value)));
    }
    if let Firmware::Uefi { nvram, .. } = &vm.firmware {
        machine.push_str(",pflash0=flash-code");
        if nvram.is_some() {
            machine.push_str(&format!(",pflash1={NVRAM_NODE}"));
        }
    }
    line.add("-machine", &machine);
    line.add(
        "-accel",
        match vm.machine.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        },
    );
    let parts: Vec<&str> =
        std::iter::once(vm.cpu.model.as_str()).chain(vm.cpu.features.iter().map(String::as_str)).collect();
    line.add("-cpu", &parts.join(","));
    let processors = &vm.processors;
    let mut smp = format!("cpus={}", processors.count);
    let parts = [
        ("sockets", processors.sockets),
        ("dies", processors.dies),
        ("cores", processors.cores),
        ("threads", processors.threads),
        ("maxcpus", processors.maximum),
    ];
    for (name, number) in parts {
        if let Some(number) = number {
            smp.push_str(&format!(",{name}={number}"));
        }
    }
    line.add("-smp", &smp);
    let mut memory = format!("size={}b", vm.memory.bytes);
    if let Some(slots) = vm.memory.slots {
        memory.push_str(&format!(",slots={slots}"));
    }
    if let Some(bytes) = vm.memory.maximum_bytes {
        memory.push_str(&format!(",maxmem={bytes}b"));
    }
    line.add("-m", &memory);
    if let Some(uuid) = &vm.uuid {
        line.add("-uuid", uuid);
    }
    line.add(
        "-rtc",
        match vm.clock {
            ClockBase::Utc => "base=utc",
            ClockBase::Localtime => "base=localtime",
        },
    );
    if vm.no_reboot {
        line.flag("-no-reboot");
    }
    if vm.no_shutdown {
        line.flag("-no-shutdown");
    }
}

fn boot(line: &mut Line, request: &StartRequest) {
    let vm = &request.specification;
    if let (Firmware::Bios { file: Some(_) }, Some(file)) = (&vm.firmware, &request.bindings.firmware) {
        line.add("-bios", &file.to_string_lossy());
    }
    if let (Some(boot), Some(kernel)) = (&vm.kernel, &request.bindings.kernel) {
        line.add("-kernel", &kernel.to_string_lossy());
        if let Some(initrd) = &request.bindings.initrd {
            // QEMU takes a list here for multiboot kernels, so commas mean something.
            line.add("-initrd", &path(initrd));
        }
        line.add("-append", &boot.command_line);
    }
    let word = |on: bool| if on { "on".to_owned() } else { "off".to_owned() };
    let order = [
        ("order", vm.boot.order.clone()),
        ("once", vm.boot.once.clone()),
        ("menu", vm.boot.menu.map(word)),
        ("strict", vm.boot.strict.map(word)),
    ];
    let order: Vec<_> =
        order.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
    if !order.is_empty() {
        line.add("-boot", &order.join(","));
    }
}

fn consoles(line: &mut Line, vm: &VmSpecification, folder: &Path) {
    for (at, console) in vm.serial.iter().enumerate() {
        let id = format!("serial{at}");
        let file = |suffix: &str| path(&folder.join(format!("{id}.{suffix}")));
        let backend = match console {
            Console::Null => format!("null,id={id}"),
            Console::File => format!("file,id={id},path={},append=on", file("log")),
            Console::Pty => format!("pty,id={id}"),
            Console::Socket => format!("socket,id={id},path={},server=on,wait=off", file("sock")),
        };
        line.add("-chardev", &backend);
        line.add("-serial", &format!("chardev:{id}"));
    }
    for _ in 0..vm.parallel_ports {
        line.add("-parallel", "null");
    }
}

const fn video(video: Video) -> &'static str {
    match video {
        Video::None => "none",
        Video::Std => "std",
        Video::Cirrus => "cirrus",
        Video::Virtio => "virtio",
    }
}

/// Who writes an image.
#[derive(Debug)]
enum Access {
    Read,
    Write,
    /// Not the guest; but whoever fills it before the guest comes, through a node of this name.
    Below(String),
}

fn disk_device(line: &mut Line, device: &DiskDevice, target: &DiskTarget, access: Access) {
    line.blockdev(&device.node, &target.path, target.format.name(), access);
    let own = [("drive", device.node.as_str())];
    line.device(&device.model, device.device_id.as_deref(), &own, &device.properties);
}

fn network(
    line: &mut Line,
    device: &NetworkDevice,
    request: &StartRequest,
    place: &Place,
) -> Result<(), SpecificationError> {
    let backend = format!("net-{}", device.id);
    match request.bindings.networks.get(&device.id).ok_or_else(|| missing(&device.id))? {
        HostNetwork::User {} => line.add("-netdev", &format!("user,id={backend}")),
        HostNetwork::Bridge { .. } => {
            let tap = place.taps.get(&device.id).ok_or_else(|| missing(&device.id))?;
            line.add("-netdev", &format!("tap,id={backend},ifname={tap},script=no,downscript=no"));
        }
        HostNetwork::Disconnected {} => {
            let own = [("mac", device.mac.as_str())];
            line.device(&device.model, device.device_id.as_deref(), &own, &device.properties);
            return Ok(());
        }
    }
    let own = [("netdev", backend.as_str()), ("mac", device.mac.as_str())];
    line.device(&device.model, device.device_id.as_deref(), &own, &device.properties);
    Ok(())
}

fn missing(of: &str) -> SpecificationError {
    SpecificationError::Missing { field: "a binding", value: of.to_owned() }
}

/// Commas doubled.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: &str) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn blockdev(&mut self, node: &str, file: &Path, format: &str, access: Access) {
        let device = file.starts_with("/dev");
        let driver = if device { "host_device" } else { "file" };
        let (own, below) = match access {
            Access::Read => (true, true),
            Access::Write => (false, false),
            Access::Below(_) => (true, false),
        };
        let mut node = json!({
            "driver": format,
            "node-name": node,
            "read-only": own,
            "discard": "unmap",
            "file": { "driver": driver, "filename": file.to_string_lossy(), "read-only": below, "discard": "unmap" },
        });
        if let Access::Below(name) = access {
            node["file"]["node-name"] = name.into();
        }
        self.add("-blockdev", &node.to_string());
    }

    fn device(&mut self, model: &str, id: Option<&str>, own: &[(&str, &str)], properties: &[Property]) {
        let mut text = model.to_owned();
        let id = id.map(|id| ("id", id));
        let properties = properties.iter().map(|property| (property.name.as_str(), property.value.as_str()));
        for (name, value) in id.into_iter().chain(own.iter().copied()).chain(properties) {
            text.push_str(&format!(",{name}={}", escape(value)));
        }
        self.add("-device", &text);
    }
}

#[cfg(test)]
mod tests;
