//! What a receiver demands of a specification before it looks at what it means.

use std::collections::BTreeSet;

use super::{
    BootFile, Cpu, Device, Firmware, KernelBoot, Machine, Memory, NVRAM_ID, NetworkBackend, NetworkDevice,
    Processors, Property, SPECIFICATION_VERSION, SpecificationError, VmSpecification, catalogue,
};

/// Longest id, name, model or the like, bytes. QEMU's own node names end at 31.
pub const MAX_NAME: usize = 64;
/// Longest value of a property, bytes: serial numbers and QEMU's longest enumerations are far below.
pub const MAX_VALUE: usize = 256;
/// Longest description of the host's processor, bytes: its name and a digest.
pub const MAX_HOST_MODEL: usize = 512;
/// Longest kernel command line, bytes: `COMMAND_LINE_SIZE` of Linux on x86 is 2048.
pub const MAX_KERNEL_COMMAND_LINE: usize = 4096;
/// Most devices: a PCI bus has 32 places; bridges with all of them full are not what is moved. Guessed.
pub const MAX_DEVICES: usize = 128;
/// Most properties of one device or board.
pub const MAX_PROPERTIES: usize = 64;
/// Most features of a processor: the longest of QEMU's models name about 150.
pub const MAX_FEATURES: usize = 256;
/// Most serial ports: what a PC board has.
pub const MAX_SERIAL: usize = 4;
/// Most parallel ports: what a PC board has.
pub const MAX_PARALLEL: u8 = 3;
/// Most processors: QEMU's limit for q35.
pub const MAX_PROCESSORS: u32 = 4096;
/// Largest memory, bytes: 64 TiB, what QEMU's x86 addresses reach.
pub const MAX_MEMORY: u64 = 64 << 40;
/// Largest disk, bytes: as for volumes.
pub const MAX_DISK: u64 = 64 << 40;

impl VmSpecification {
    /// Whether this is a specification that a receiver may act on. Does not say whether this host can run it: that is
    /// [`resolve`](super::resolve()).
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecificationError> {
        let Self {
            version,
            id,
            name,
            uuid,
            machine,
            cpu,
            processors,
            memory,
            firmware,
            kernel,
            boot,
            clock: _,
            video: _,
            vnc: _,
            serial,
            parallel_ports,
            no_reboot: _,
            no_shutdown: _,
            devices,
            novacron,
        } = self;
        if *version != SPECIFICATION_VERSION {
            return Err(SpecificationError::Version { found: *version, known: SPECIFICATION_VERSION });
        }
        check_id("id", id)?;
        check_text("name", name, MAX_NAME)?;
        if let Some(uuid) = uuid {
            check_uuid(uuid)?;
        }
        check_machine(machine)?;
        check_cpu(cpu)?;
        check_processors(processors)?;
        check_memory(memory)?;
        check_firmware(firmware)?;
        if let Some(kernel) = kernel {
            check_kernel(kernel)?;
        }
        for letters in [&boot.order, &boot.once].into_iter().flatten() {
            check_length("boot.order", letters.len(), MAX_NAME)?;
            if letters.is_empty() || !letters.bytes().all(|letter| letter.is_ascii_lowercase()) {
                return Err(SpecificationError::value(
                    "boot.order",
                    letters,
                    "drives are lower-case letters",
                ));
            }
        }
        check_length("serial", serial.len(), MAX_SERIAL)?;
        check_length("parallel_ports", usize::from(*parallel_ports), usize::from(MAX_PARALLEL))?;
        check_devices(devices)?;
        if let Some(novacron) = novacron {
            novacron.check()?;
        }
        Ok(())
    }
}

fn check_machine(machine: &Machine) -> Result<(), SpecificationError> {
    check_word("machine.kind", &machine.kind)?;
    // Any board may have these; those that it lacks make QEMU refuse to start.
    check_properties("machine.options", &machine.options, catalogue::MACHINE_OPTIONS)?;
    for option in &machine.options {
        check_word("machine.options", &option.value)?;
    }
    Ok(())
}

fn check_cpu(cpu: &Cpu) -> Result<(), SpecificationError> {
    check_word("cpu.model", &cpu.model)?;
    check_length("cpu.features", cpu.features.len(), MAX_FEATURES)?;
    for feature in &cpu.features {
        check_length("cpu.features", feature.len(), MAX_NAME)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-_.=".contains(&byte);
        if feature.is_empty() || !feature.bytes().all(allowed) {
            return Err(SpecificationError::value(
                "cpu.features",
                feature,
                "features are +NAME, -NAME or NAME=VALUE",
            ));
        }
    }
    cpu.host_model.as_ref().map_or(Ok(()), |model| check_text("cpu.host_model", model, MAX_HOST_MODEL))
}

fn check_processors(processors: &Processors) -> Result<(), SpecificationError> {
    let Processors { count, sockets, dies, cores, threads, maximum } = *processors;
    for number in [Some(count), sockets, dies, cores, threads, maximum].into_iter().flatten() {
        if number == 0 || number > MAX_PROCESSORS {
            return Err(SpecificationError::value("processors", &number.to_string(), "1 to 4096"));
        }
    }
    Ok(())
}

fn check_memory(memory: &Memory) -> Result<(), SpecificationError> {
    for bytes in [Some(memory.bytes), memory.maximum_bytes].into_iter().flatten() {
        if bytes == 0 || bytes > MAX_MEMORY {
            return Err(SpecificationError::value("memory", &bytes.to_string(), "1 byte to 64 TiB"));
        }
    }
    if memory.slots.is_some_and(|slots| slots > 256) {
        return Err(SpecificationError::value("memory.slots", "", "at most 256"));
    }
    Ok(())
}

fn check_firmware(firmware: &Firmware) -> Result<(), SpecificationError> {
    match firmware {
        Firmware::Bios { file: None } => Ok(()),
        Firmware::Bios { file: Some(file) } => check_file_name("firmware.file", file),
        Firmware::Uefi { code, nvram } => {
            check_boot_file(code)?;
            nvram.map_or(Ok(()), |nvram| check_size("firmware.nvram", nvram.size))
        }
    }
}

fn check_kernel(kernel: &KernelBoot) -> Result<(), SpecificationError> {
    check_boot_file(&kernel.kernel)?;
    if let Some(initrd) = &kernel.initrd {
        check_boot_file(initrd)?;
    }
    check_text("kernel.command_line", &kernel.command_line, MAX_KERNEL_COMMAND_LINE)
}

fn check_boot_file(file: &BootFile) -> Result<(), SpecificationError> {
    check_file_name("boot_file.name", &file.name)?;
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if file.sha256.len() != 64 || !file.sha256.bytes().all(digit) {
        return Err(SpecificationError::value("boot_file.sha256", &file.sha256, "64 hexadecimal digits"));
    }
    if file.size == 0 || file.size > super::MAX_BOOT_FILE {
        return Err(SpecificationError::value("boot_file.size", &file.size.to_string(), "1 byte to 1 GiB"));
    }
    Ok(())
}

fn check_devices(devices: &[Device]) -> Result<(), SpecificationError> {
    check_length("devices", devices.len(), MAX_DEVICES)?;
    let (mut ids, mut nodes, mut device_ids) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut once = |field: &'static str, id: &str| {
        if ids.insert(id.to_owned()) {
            return Ok(());
        }
        Err(SpecificationError::Twice { field, value: id.to_owned() })
    };
    for device in devices {
        let models: &[&[&str]] = match device {
            Device::Disk(disk) => {
                check_id("devices.id", &disk.id)?;
                if disk.id == NVRAM_ID {
                    return Err(SpecificationError::value(
                        "devices.id",
                        &disk.id,
                        "UEFI variables are called that",
                    ));
                }
                once("devices.id", &disk.id)?;
                check_qemu_id("devices.node", &disk.node)?;
                if !nodes.insert(&disk.node) {
                    return Err(SpecificationError::Twice {
                        field: "devices.node",
                        value: disk.node.clone(),
                    });
                }
                check_size("devices.size", disk.size)?;
                &[catalogue::DISKS]
            }
            Device::Network(network) => {
                check_network(network)?;
                once("devices.id", &network.id)?;
                &[catalogue::NETWORKS]
            }
            Device::Drive(_) => &[catalogue::DRIVES],
            Device::Channel(channel) => {
                check_id("devices.id", &channel.id)?;
                once("devices.id", &channel.id)?;
                &[catalogue::CHANNELS]
            }
            Device::Plain(_) => &[catalogue::PLAIN, catalogue::RANDOM],
        };
        if !models.iter().any(|models| models.contains(&device.model())) {
            return Err(SpecificationError::value(
                "devices.model",
                device.model(),
                "it is not in the list of devices that can be moved",
            ));
        }
        if let Some(id) = device.device_id() {
            check_qemu_id("devices.device_id", id)?;
            if !device_ids.insert(id.to_owned()) {
                return Err(SpecificationError::Twice { field: "devices.device_id", value: id.to_owned() });
            }
        }
        check_properties("devices.properties", device.properties(), catalogue::PROPERTIES)?;
    }
    Ok(())
}

fn check_network(network: &NetworkDevice) -> Result<(), SpecificationError> {
    check_id("devices.id", &network.id)?;
    let groups: Vec<_> = network.mac.split(':').collect();
    let octet = |group: &&str| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
    if groups.len() != 6 || !groups.iter().all(octet) {
        return Err(SpecificationError::value("devices.mac", &network.mac, "six octets, aa:bb:cc:dd:ee:ff"));
    }
    match &network.backend {
        NetworkBackend::Bridge { name } => check_word("devices.backend.name", name),
        NetworkBackend::User {} | NetworkBackend::Tap {} | NetworkBackend::Disconnected {} => Ok(()),
    }
}

fn check_properties(
    field: &'static str,
    properties: &[Property],
    allowed: &[&str],
) -> Result<(), SpecificationError> {
    check_length(field, properties.len(), MAX_PROPERTIES)?;
    let mut seen = BTreeSet::new();
    for Property { name, value } in properties {
        // No option ROM: the only value of this property that is no file.
        let without_rom = name == "romfile" && value.is_empty();
        if !allowed.contains(&name.as_str()) && !without_rom {
            return Err(SpecificationError::value(
                field,
                name,
                "it is not in the list of properties that travel",
            ));
        }
        if !seen.insert(name) {
            return Err(SpecificationError::Twice { field, value: name.clone() });
        }
        check_text(field, value, MAX_VALUE)?;
    }
    Ok(())
}

fn check_size(field: &'static str, size: u64) -> Result<(), SpecificationError> {
    if size == 0 || size > MAX_DISK {
        return Err(SpecificationError::value(field, &size.to_string(), "1 byte to 64 TiB"));
    }
    Ok(())
}

fn check_length(field: &'static str, found: usize, limit: usize) -> Result<(), SpecificationError> {
    if found > limit {
        return Err(SpecificationError::TooLong { field, found, limit });
    }
    Ok(())
}

/// Printable ASCII: no line can be forged with it, and commas are the command line's to escape.
fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), SpecificationError> {
    check_length(field, text.len(), limit)?;
    if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(SpecificationError::value(field, text, "only printable ASCII is accepted"));
    }
    Ok(())
}

/// A word without separators of QEMU's option syntax.
fn check_word(field: &'static str, text: &str) -> Result<(), SpecificationError> {
    check_length(field, text.len(), MAX_NAME)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(SpecificationError::value(
            field,
            text,
            "only letters, digits, '-', '_' and '.' are accepted",
        ));
    }
    Ok(())
}

/// Letters, digits, `-`, `_` and `.`, not starting with `.` or `-`: safe as the name of a folder, a unit or a socket.
#[must_use]
pub fn is_plain_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= MAX_NAME && !text.starts_with(['.', '-']) && text.bytes().all(allowed)
}

pub(super) fn check_id(field: &'static str, text: &str) -> Result<(), SpecificationError> {
    check_length(field, text.len(), MAX_NAME)?;
    if !is_plain_name(text) {
        return Err(SpecificationError::value(
            field,
            text,
            "only letters, digits, '-', '_' and '.' are accepted, not starting with '.' or '-'",
        ));
    }
    Ok(())
}

fn check_file_name(field: &'static str, text: &str) -> Result<(), SpecificationError> {
    check_id(field, text)
}

/// `id_wellformed` of QEMU (`util/id.c`), and its limit for node names.
pub(super) fn is_qemu_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= 31
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.bytes().all(allowed)
}

fn check_qemu_id(field: &'static str, text: &str) -> Result<(), SpecificationError> {
    if !is_qemu_id(text) {
        return Err(SpecificationError::value(
            field,
            text,
            "QEMU's ids are a letter and at most 30 of letters, digits, '-', '_', '.'",
        ));
    }
    Ok(())
}

pub(super) fn check_uuid(text: &str) -> Result<(), SpecificationError> {
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if groups != [8, 4, 4, 4, 12] || !digits {
        return Err(SpecificationError::value("uuid", text, "it is no UUID"));
    }
    Ok(())
}
