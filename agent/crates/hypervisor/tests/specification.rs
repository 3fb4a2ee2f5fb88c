//! Against real QEMU (capability `qemu-system`): a VM that was started by an ordinary command line is described,
//! bound to another "host", started there without defaults, has the same devices at the same addresses, and a
//! running guest moves into it.

#[path = "support/capability.rs"]
mod capability;
#[path = "support/monitor.rs"]
mod monitor;

use std::path::{Path, PathBuf};

use capability::have;
use monitor::{Guest, arguments_of, boot_disk, folder, until};
use novaferry_hypervisor::command_line::{Place, QMP_SOCKET, arguments};
use novaferry_hypervisor::specification::{
    Accelerator, BlockFact, Derived, DiskTarget, HostMapping, NamedHostFile, Start, VmFacts, derive, fact_of,
    named_files, resolve,
};
use serde_json::{Value, json};

fn facts(guest: &mut Guest, process: &[String]) -> VmFacts {
    let monitor = &mut guest.monitor;
    let machine = monitor.execute("qom-get", json!({"path": "/machine", "property": "type"}));
    let blocks = monitor.execute("query-block", json!({}));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let with_medium = blocks.as_array().unwrap().iter().filter(|block| block.get("inserted").is_some());
    let blocks = with_medium.map(|block| BlockFact {
        device: text(&block["device"]),
        node: text(&block["inserted"]["node-name"]),
        qdev: block["qdev"].as_str().map(ToOwned::to_owned),
        file: text(&block["inserted"]["image"]["filename"]).into(),
        format: text(&block["inserted"]["drv"]),
        size: block["inserted"]["image"]["virtual-size"].as_u64().unwrap(),
        read_only: block["inserted"]["ro"].as_bool().unwrap(),
    });
    let blocks = blocks.collect();
    let memory = monitor.execute("query-memory-size-summary", json!({}));
    let processors = monitor.execute("query-cpus-fast", json!({}));
    let peripherals = monitor.execute("qom-list", json!({"path": "/machine/peripheral"}));
    let peripherals = peripherals.as_array().unwrap().iter().map(|one| text(&one["name"]));
    VmFacts {
        machine: Some(text(&machine)),
        memory_bytes: memory["base-memory"].as_u64(),
        processors: Some(u32::try_from(processors.as_array().unwrap().len()).unwrap()),
        blocks,
        peripherals: Some(peripherals.filter(|name| name != "type").collect()),
        files: named_files(process).unwrap().boot.iter().map(|path| fact_of(path).unwrap()).collect(),
        ..VmFacts::default()
    }
}

/// Devices with their properties, without what is the host's.
fn devices(guest: &mut Guest) -> String {
    let tree = guest.monitor.human("info qtree");
    let of_the_host = ["drive = ", "netdev = ", "chardev = ", "rng = ", "dev: ", "bootindex = "];
    let mut lines: Vec<_> = tree.lines().map(str::trim).collect();
    lines.retain(|line| !of_the_host.iter().any(|start| line.starts_with(start)));
    let names = tree.lines().map(str::trim).filter_map(|line| line.strip_prefix("dev: ")?.split(',').next());
    format!(
        "{}\n{}\n{}",
        names.collect::<Vec<_>>().join(" "),
        lines.join("\n"),
        guest.monitor.human("info pci")
    )
}

struct Move {
    source: Guest,
    destination: Guest,
    derived: Derived,
    base: PathBuf,
    _folder: tempfile::TempDir,
}

/// Starts a VM by these arguments ("DIR" is its folder, with `disk.raw`), and its twin.
fn twin(line: &str) -> Move {
    let (guard, base) = folder();
    let run = base.join("run");
    std::fs::create_dir(&run).unwrap();
    for disk in ["disk.raw", "copy.raw"] {
        boot_disk(&base.join(disk));
    }
    boot_disk(&base.join("kernel"));
    let line = line.replace("DIR", base.to_str().unwrap());
    let mut words: Vec<_> = line.split_whitespace().map(ToOwned::to_owned).collect();
    let qmp = base.join("src.sock");
    words.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", qmp.display())]);
    words.extend(["-serial".to_owned(), format!("file:{}/src.out", base.display())]);
    let mut source = Guest::start(&words, &qmp);
    let process = arguments_of(&source);
    let facts = facts(&mut source, &process);
    let derived = derive("web-1", &process, &facts, None).unwrap();
    assert!(!derived.findings.iter().any(|finding| finding.is_blocking()), "{:?}", derived.findings);
    let target = |path: &Path| DiskTarget { path: path.to_owned(), format: derived.disks[0].format };
    let disks = derived.disks.iter().map(|disk| (disk.id.clone(), target(&base.join("copy.raw"))));
    let boot = fact_of(&base.join("kernel")).unwrap();
    let mapping = HostMapping {
        disks: disks.collect(),
        accelerators: vec![Accelerator::Tcg],
        boot: vec![NamedHostFile { name: "kernel".to_owned(), file: boot }],
        ..HostMapping::default()
    };
    let (request, _) = resolve(&derived.specification, &mapping, 1, Start::Incoming).unwrap();
    let place = Place { folder: run.clone(), taps: [].into() };
    let destination = Guest::start(&arguments(&request, &place).unwrap(), &run.join(QMP_SOCKET));
    Move { source, destination, derived, base, _folder: guard }
}

fn serial(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'B').count())
}

impl Move {
    /// Moves the running guest. Afterwards both have the same devices at the same addresses.
    fn migrate(&mut self) {
        let incoming = self.base.join("run/incoming.sock");
        let uri = json!({"uri": format!("unix:{}", incoming.display())});
        assert_eq!(self.destination.monitor.status(), "inmigrate");
        self.destination.monitor.execute("migrate-incoming", uri.clone());
        self.source.monitor.execute("migrate", uri);
        let source = &mut self.source.monitor;
        until("the migration ends", || {
            let state = source.execute("query-migrate", json!({}));
            assert_ne!(state["status"], "failed", "{state}");
            state["status"] == "completed"
        });
        let destination = &mut self.destination.monitor;
        // -S: it waits for the word.
        until("the stream is read", || destination.status() == "paused");
        assert_eq!(self.source.monitor.status(), "postmigrate");
        // Now, because the source's firmware has placed its devices in the address spaces, and the stream told where.
        let (source, destination) = (devices(&mut self.source), devices(&mut self.destination));
        similar(&source, &destination);
    }

    fn goes_on(&mut self) {
        self.destination.monitor.execute("cont", json!({}));
        let out = self.base.join("run/serial0.log");
        until("the guest goes on", || serial(&out) > 2);
    }
}

#[track_caller]
fn similar(source: &str, destination: &str) {
    for (here, there) in source.lines().zip(destination.lines()) {
        assert_eq!(here, there, "devices differ");
    }
    assert_eq!(source.lines().count(), destination.lines().count());
}

#[test]
fn a_vm_with_qemus_defaults_moves() {
    if !have("qemu-system", "qemu-system-x86_64", "a_vm_with_qemus_defaults_moves") {
        return;
    }
    // As NovaCron starts them, with an alias for the board.
    let mut both = twin(
        "-machine pc,accel=tcg -cpu qemu64 -m 64 -smp 2 -drive file=DIR/disk.raw,format=raw,if=virtio \
         -netdev user,id=net0 -device virtio-net-pci,netdev=net0 -vnc unix:DIR/vnc.sock \
         -monitor unix:DIR/monitor.sock,server,nowait -device virtio-balloon-pci \
         -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0",
    );
    let out = both.base.join("src.out");
    until("the guest runs", || serial(&out) > 2);
    both.migrate();
    both.goes_on();
    assert_eq!(both.derived.specification.machine.kind.split('-').next(), Some("pc"));
}

#[test]
fn a_vm_without_defaults_moves() {
    if !have("qemu-system", "qemu-system-x86_64", "a_vm_without_defaults_moves") {
        return;
    }
    let mut both = twin(
        "-name src -M q35 -accel tcg,thread=multi -m 64M -nodefaults -display none -kernel DIR/kernel -append quiet \
         -device pcie-root-port,id=rp0,slot=1 -device virtio-scsi-pci,id=scsi0,bus=rp0 \
         -blockdev driver=file,filename=DIR/disk.raw,node-name=f0 -blockdev driver=raw,file=f0,node-name=d0 \
         -device scsi-hd,drive=d0,bus=scsi0.0,serial=abc -device virtio-serial-pci,id=ser0 \
         -chardev socket,id=ga,path=DIR/ga.sock,server=on,wait=off \
         -device virtserialport,bus=ser0.0,chardev=ga,name=org.qemu.guest_agent.0 -device qemu-xhci -device usb-tablet",
    );
    both.migrate();
}

#[test]
fn drives_and_cards_of_the_board_are_in_their_places() {
    if !have("qemu-system", "qemu-system-x86_64", "drives_and_cards_of_the_board_are_in_their_places") {
        return;
    }
    for line in [
        "-M pc -accel tcg -m 64 -hda DIR/disk.raw -display none -nic user,model=rtl8139",
        "-M q35 -accel tcg -m 64 -drive file=DIR/disk.raw,format=raw -display none -uuid 12345678-1234-1234-1234-123456789abc",
        "-M pc -accel tcg -m 64 -nographic -monitor none -vga cirrus -boot menu=on -net none DIR/disk.raw",
    ] {
        let mut both = twin(line);
        let out = both.base.join("src.out");
        until("the guest runs", || serial(&out) > 2);
        both.migrate();
        both.goes_on();
    }
}
