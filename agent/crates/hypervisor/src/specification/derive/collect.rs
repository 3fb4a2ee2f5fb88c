//! What the arguments say, before it is given a meaning.

use std::collections::BTreeMap;

use super::super::arguments::{Pairs, bad, flag, number, size, split};
use super::super::blockdev::{Drive, Image, Nodes, Obstacle};
use super::super::{
    Accelerator, BootOrder, ClockBase, Console, Finding, Memory, Processors, Property, SpecificationError,
    catalogue, check,
};

/// Options that are the host's business alone: a destination has its own.
const OF_THE_HOST: &[&str] = &[
    "S",
    "D",
    "d",
    "chroot",
    "daemonize",
    "display",
    "incoming",
    "k",
    "mon",
    "monitor",
    "msg",
    "no-user-config",
    "only-migratable",
    "overcommit",
    "pidfile",
    "qmp",
    "qmp-pretty",
    "run-with",
    "runas",
    "sandbox",
    "trace",
];

/// What the arguments say.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) machine_options: Vec<Property>,
    pub(super) accelerator: Option<Accelerator>,
    pub(super) cpu: Option<String>,
    pub(super) processors: Processors,
    pub(super) memory: Memory,
    pub(super) bios: Option<String>,
    pub(super) flash: [Option<String>; 2],
    pub(super) kernel: Option<String>,
    pub(super) initrd: Option<String>,
    pub(super) kernel_command_line: String,
    pub(super) boot: BootOrder,
    pub(super) clock: ClockBase,
    pub(super) video: Option<String>,
    pub(super) vnc: bool,
    pub(super) serial: Option<Vec<Console>>,
    pub(super) parallel: Option<u8>,
    pub(super) no_defaults: bool,
    pub(super) no_reboot: bool,
    pub(super) no_shutdown: bool,
    pub(super) drives: Vec<Drive>,
    pub(super) nodes: Nodes,
    pub(super) netdevs: BTreeMap<String, Pairs>,
    /// `-nic`, and whether any option said something about networks.
    pub(super) cards: Vec<Pairs>,
    pub(super) networks_named: bool,
    pub(super) chardevs: BTreeMap<String, Pairs>,
    pub(super) devices: Vec<Pairs>,
}

impl Default for Processors {
    fn default() -> Self {
        Self { count: 1, sockets: None, dies: None, cores: None, threads: None, maximum: None }
    }
}

impl Default for Memory {
    fn default() -> Self {
        // QEMU's default, `hw/core/machine.c`.
        Self { bytes: 128 << 20, slots: None, maximum_bytes: None }
    }
}

impl Collected {
    pub(super) fn read(process: &[String], findings: &mut Vec<Finding>) -> Result<Self, SpecificationError> {
        let mut all = Self::default();
        let mut chosen_serial = Vec::new();
        for argument in split(process) {
            let (option, value) = (argument.name, argument.value);
            let pairs = |implied| Pairs::read(option, value, implied);
            match option {
                "name" => all.name = pairs(Some("guest"))?.take("guest"),
                "uuid" => {
                    check::check_uuid(value)?;
                    all.uuid = Some(value.to_ascii_lowercase());
                }
                "machine" | "M" => all.machine(pairs(Some("type"))?, findings)?,
                "accel" => {
                    all.accelerator(&pairs(Some("accel"))?.take("accel").unwrap_or_default(), findings)
                }
                "enable-kvm" => all.accelerator = Some(Accelerator::Kvm),
                "usb" => all.machine_options.push(Property::new("usb", "on")),
                "no-acpi" => all.machine_options.push(Property::new("acpi", "off")),
                "no-hpet" => all.machine_options.push(Property::new("hpet", "off")),
                "cpu" => all.cpu = Some(value.to_owned()),
                "smp" => all.processors(pairs(Some("cpus"))?)?,
                "m" => all.memory(pairs(Some("size"))?)?,
                "bios" => all.bios = Some(value.to_owned()),
                "kernel" => all.kernel = Some(value.to_owned()),
                "initrd" => all.initrd = Some(value.to_owned()),
                "append" => value.clone_into(&mut all.kernel_command_line),
                "boot" => all.boot(pairs(Some("order"))?, findings)?,
                "rtc" => all.clock(pairs(Some("base"))?, findings),
                "vga" => all.video = Some(value.to_owned()),
                "vnc" => all.vnc = value != "none",
                "nographic" => {}
                "serial" => chosen_serial.push(value),
                "parallel" => {
                    let count = all.parallel.unwrap_or(0);
                    all.parallel = Some(count.saturating_add(u8::from(value != "none")));
                }
                "nodefaults" => all.no_defaults = true,
                "no-reboot" => all.no_reboot = true,
                "no-shutdown" => all.no_shutdown = true,
                "drive" => all.drives.push(Drive::read(pairs(None)?)?),
                "blockdev" => all.nodes.add(pairs(Some("driver"))?)?,
                "hda" | "hdb" | "hdc" | "hdd" | "" => {
                    let index = (0..).zip(["hda", "hdb", "hdc", "hdd"]).find(|(_, name)| *name == option);
                    all.drives.push(Drive::short(None, index.map_or(0, |(index, _)| index), false, value));
                }
                "cdrom" => all.drives.push(Drive::short(None, 2, true, value)),
                "fda" => all.drives.push(Drive::short(Some("floppy"), 0, false, value)),
                "netdev" => {
                    let mut pairs = pairs(Some("type"))?;
                    let id = pairs.take("id").ok_or_else(|| bad(option, "id is missing"))?;
                    all.netdevs.insert(id, pairs);
                    all.networks_named = true;
                }
                "nic" => {
                    all.cards.push(pairs(Some("type"))?);
                    all.networks_named = true;
                }
                "net" => {
                    all.networks_named = true;
                    if value != "none" {
                        findings.push(Finding::blocking(
                            "network-hub",
                            format!("-net {value}"),
                            "start the VM with -netdev and -device, or -nic",
                        ));
                    }
                }
                "chardev" => {
                    let mut pairs = pairs(Some("backend"))?;
                    let id = pairs.take("id").ok_or_else(|| bad(option, "id is missing"))?;
                    all.chardevs.insert(id, pairs);
                }
                "device" => all.devices.push(pairs(Some("driver"))?),
                "object" => object(&pairs(Some("qom-type"))?, findings),
                _ if OF_THE_HOST.contains(&option) => {}
                _ => findings.push(unknown(option, value)),
            }
        }
        if !chosen_serial.is_empty() {
            let consoles = chosen_serial.into_iter().filter(|value| *value != "none");
            all.serial = Some(consoles.map(|value| all.console(value)).collect());
        }
        Ok(all)
    }

    /// The images of the flash memories: code, variables.
    pub(super) fn flash_images(&self) -> [Option<Result<Image, Obstacle>>; 2] {
        let flash = self.drives.iter().filter(|drive| drive.interface.as_deref() == Some("pflash"));
        let mut images = [None, None];
        for (at, drive) in flash.enumerate() {
            let unit = drive.bus_unit.1.or(drive.index).map_or(at, |unit| unit as usize);
            if let Some(place) = images.get_mut(unit) {
                place.clone_from(&drive.image);
            }
        }
        for (place, node) in images.iter_mut().zip(&self.flash) {
            if let Some(node) = node {
                *place = Some(self.nodes.image(node));
            }
        }
        images
    }

    /// Ids that `-device` gave.
    pub(super) fn device_ids(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter_map(|device| device.get("id"))
    }

    fn machine(&mut self, mut pairs: Pairs, findings: &mut Vec<Finding>) -> Result<(), SpecificationError> {
        if let Some(kind) = pairs.take("type") {
            self.machine = Some(kind);
        }
        if let Some(accelerators) = pairs.take("accel") {
            self.accelerator(&accelerators, findings);
        }
        for (at, key) in ["pflash0", "pflash1"].into_iter().enumerate() {
            if let Some(node) = pairs.take(key) {
                self.flash[at] = Some(node);
            }
        }
        for (name, value) in pairs.rest() {
            if !catalogue::MACHINE_OPTIONS.contains(&name.as_str()) {
                findings.push(Finding::blocking(
                    "machine-option",
                    format!("-machine {name}={value}"),
                    "start the VM without this option; it cannot be reproduced on the other host",
                ));
                continue;
            }
            if name == "nvdimm" && flag("machine", &value)? {
                findings.push(unknown("machine", "nvdimm=on"));
            }
            self.machine_options.retain(|option| option.name != name);
            self.machine_options.push(Property { name, value });
        }
        Ok(())
    }

    /// The first of a list that this program knows: QEMU takes the first that works.
    fn accelerator(&mut self, list: &str, findings: &mut Vec<Finding>) {
        self.accelerator = match list.split(':').next() {
            Some("kvm") => Some(Accelerator::Kvm),
            Some("tcg") => Some(Accelerator::Tcg),
            _ => {
                findings.push(Finding::blocking("accelerator", format!("accel={list}"), "use kvm or tcg"));
                None
            }
        };
    }

    fn processors(&mut self, mut pairs: Pairs) -> Result<(), SpecificationError> {
        let mut take = |key| pairs.take(key).map(|text| number("smp", &text)).transpose();
        let (sockets, dies, cores, threads) =
            (take("sockets")?, take("dies")?, take("cores")?, take("threads")?);
        let (count, maximum) = (take("cpus")?, take("maxcpus")?);
        // `machine_parse_smp_config`: the product, where no count is given.
        let product = [sockets, dies, cores, threads].into_iter().flatten().try_fold(1, u32::checked_mul);
        let product = product.ok_or_else(|| bad("smp", "too many processors"))?;
        let count = count.or(maximum).unwrap_or(product);
        self.processors = Processors { count, sockets, dies, cores, threads, maximum };
        if pairs.is_empty() { Ok(()) } else { Err(bad("smp", "this topology is not supported")) }
    }

    fn memory(&mut self, mut pairs: Pairs) -> Result<(), SpecificationError> {
        if let Some(text) = pairs.take("size") {
            self.memory.bytes = size("m", &text, 1 << 20)?;
        }
        self.memory.slots = pairs.take("slots").map(|text| number("m", &text)).transpose()?;
        self.memory.maximum_bytes = pairs.take("maxmem").map(|text| size("m", &text, 1 << 20)).transpose()?;
        Ok(())
    }

    fn boot(&mut self, mut pairs: Pairs, findings: &mut Vec<Finding>) -> Result<(), SpecificationError> {
        let mut switch = |key| pairs.take(key).map(|text| flag("boot", &text)).transpose();
        let (menu, strict) = (switch("menu")?, switch("strict")?);
        self.boot = BootOrder { order: pairs.take("order"), once: pairs.take("once"), menu, strict };
        for (name, value) in pairs.rest() {
            findings.push(unknown("boot", &format!("{name}={value}")));
        }
        Ok(())
    }

    fn clock(&mut self, mut pairs: Pairs, findings: &mut Vec<Finding>) {
        match pairs.take("base").as_deref() {
            None | Some("utc") => {}
            Some("localtime") => self.clock = ClockBase::Localtime,
            Some(base) => findings.push(Finding::blocking(
                "clock",
                format!("-rtc base={base}"),
                "a clock that starts at a fixed time cannot be moved; use utc or localtime",
            )),
        }
        for (name, value) in pairs.rest() {
            if (name.as_str(), value.as_str()) != ("clock", "host") {
                findings.push(unknown("rtc", &format!("{name}={value}")));
            }
        }
    }

    fn console(&self, value: &str) -> Console {
        let named = value.strip_prefix("chardev:").and_then(|id| self.chardevs.get(id)?.get("backend"));
        match named.unwrap_or_else(|| value.split([':', ',']).next().unwrap_or_default()) {
            "file" => Console::File,
            "pty" => Console::Pty,
            "unix" | "socket" | "tcp" | "telnet" => Console::Socket,
            _ => Console::Null,
        }
    }
}

/// Objects that only serve a device which brings its own at the destination are no obstacle.
fn object(pairs: &Pairs, findings: &mut Vec<Finding>) {
    let kind = pairs.get("qom-type").unwrap_or_default();
    match kind {
        "rng-random" | "rng-builtin" => {}
        "iothread" => findings.push(Finding::warning(
            "iothread",
            format!("I/O thread {}", pairs.get("id").unwrap_or_default()),
            "nothing: the guest cannot tell; the destination serves the device from its main loop",
        )),
        _ => findings.push(unknown("object", kind)),
    }
}

/// What there is no rule for stops the move: better than a guest that finds itself on other hardware.
pub(super) fn unknown(option: &str, value: &str) -> Finding {
    let evidence = format!("-{option} {value}").trim_end().chars().take(200).collect::<String>();
    let (rule, fix) = match option {
        "tpmdev" => ("tpm", "a TPM's secrets do not leave their host: start the VM without it"),
        "fsdev" | "virtfs" => {
            ("shared-folder", "unmount the folder in the guest and start the VM without it")
        }
        "snapshot" => {
            ("throw-away-disks", "what the guest writes would be lost: start the VM without -snapshot")
        }
        "spice" | "sdl" | "curses" => ("display", "start the VM with -vnc or without a display"),
        _ => ("unknown-option", "start the VM without this option, or move it cold"),
    };
    Finding::blocking(rule, evidence, fix)
}
