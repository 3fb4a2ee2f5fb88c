//! What is derived, what is refused, what is bound. Real QEMU is in `tests/specification.rs`.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

fn block(file: &str, format: &str) -> BlockFact {
    BlockFact {
        device: String::new(),
        node: "#block123".to_owned(),
        qdev: None,
        file: file.into(),
        format: format.to_owned(),
        size: 64 << 20,
        read_only: false,
    }
}

fn facts(blocks: &[(&str, &str)]) -> VmFacts {
    VmFacts {
        machine: Some("pc-i440fx-10.0-machine".to_owned()),
        blocks: blocks.iter().map(|(file, format)| block(file, format)).collect(),
        ..VmFacts::default()
    }
}

fn derived(line: &str, facts: &VmFacts) -> Derived {
    derive("web-1", &words(line), facts, None).unwrap()
}

fn rules(line: &str) -> Vec<&'static str> {
    let found = derived(line, &facts(&[]));
    found.findings.iter().map(|finding| finding.rule).collect()
}

/// NovaCron's line (`driver_kvm_enhanced.go`), without the accelerator that tests lack.
const NOVACRON: &str = "qemu-system-x86_64 -machine pc-i440fx-10.0,accel=tcg -cpu qemu64 -m 1024 -smp 2 \
    -drive file=/vms/web-1/disk.qcow2,format=qcow2,if=virtio -netdev user,id=net0 \
    -device virtio-net-pci,netdev=net0 -vnc :3 -monitor unix:/vms/web-1/monitor.sock,server,nowait -daemonize \
    -pidfile /vms/web-1/qemu.pid -device virtio-balloon-pci -object rng-random,filename=/dev/urandom,id=rng0 \
    -device virtio-rng-pci,rng=rng0";

#[test]
fn novacrons_vm_is_expressed_with_what_qemu_adds() {
    let found = derived(NOVACRON, &facts(&[("/vms/web-1/disk.qcow2", "qcow2")]));
    assert_eq!(found.findings, []);
    let vm = found.specification;
    assert_eq!((vm.memory.bytes, vm.processors.count, vm.vnc), (1 << 30, 2, true));
    assert_eq!(
        (vm.video, vm.serial.as_slice(), vm.parallel_ports),
        (Video::Std, [Console::Null].as_slice(), 1)
    );
    let models: Vec<_> = vm.devices.iter().map(Device::model).collect();
    let expected =
        ["ide-cd", "floppy", "virtio-net-pci", "virtio-balloon-pci", "virtio-rng-pci", "virtio-blk-pci"];
    assert_eq!(models, expected);
    assert_eq!(vm.networks().next().unwrap().mac, "52:54:00:12:34:56");
    let disk = vm.disks().next().unwrap();
    assert_eq!((disk.id.as_str(), disk.size, disk.format), ("virtio0", 64 << 20, DiskFormat::Qcow2));
    assert_eq!(found.disks[0].path, PathBuf::from("/vms/web-1/disk.qcow2"));
}

#[test]
fn a_specification_survives_json() {
    let vm = derived(NOVACRON, &facts(&[("/vms/web-1/disk.qcow2", "qcow2")])).specification;
    let json = serde_json::to_string(&vm).unwrap();
    assert_eq!(serde_json::from_str::<VmSpecification>(&json).unwrap(), vm);
    let with_more = json.replacen('{', r#"{"command_line":"x","#, 1);
    assert!(serde_json::from_str::<VmSpecification>(&with_more).is_err());
    let without_version = json.replacen(r#""version":1"#, r#""version":2"#, 1);
    let other: VmSpecification = serde_json::from_str(&without_version).unwrap();
    assert_eq!(other.check(), Err(SpecificationError::Version { found: 2, known: 1 }));
}

#[test]
fn what_cannot_move_is_said() {
    let base = "qemu -nodefaults -machine pc-i440fx-10.0";
    for (more, rule) in [
        ("-device vfio-pci,host=01:00.0", "host-device"),
        ("-device usb-host,hostbus=1", "host-device"),
        ("-device virtio-9p-pci,fsdev=f", "shared-folder"),
        ("-virtfs local,path=/,mount_tag=x", "shared-folder"),
        ("-device ivshmem-plain,memdev=m", "shared-memory"),
        ("-tpmdev emulator,id=t", "tpm"),
        ("-device tpm-tis,tpmdev=t", "tpm"),
        ("-device nvme,serial=1", "unknown-device"),
        ("-cdrom /iso/cloud-init.iso", "medium"),
        ("-drive file=/x,if=scsi", "unknown-option"),
        ("-drive file=nbd:unix:/x,if=virtio", "disk"),
        ("-drive file=/absent,if=virtio,format=raw", "disk-unseen"),
        ("-cpu host", "cpu-host"),
        ("-snapshot", "throw-away-disks"),
        ("-net nic", "network-hub"),
        ("-netdev socket,id=n,listen=:1 -device e1000,netdev=n", "network"),
        ("-device e1000,romfile=/etc/shadow", "device-property"),
        ("-machine pc-i440fx-10.0,memory-backend=m", "machine-option"),
        ("-rtc base=2020-01-01", "clock"),
        ("-kernel /boot/vmlinux", "boot-file"),
        ("-fw_cfg name=x", "unknown-option"),
        ("-object memory-backend-file,id=m", "unknown-option"),
        ("-vga qxl", "unknown-option"),
        ("-accel xen", "accelerator"),
    ] {
        assert_eq!(rules(&format!("{base} {more}")), [rule], "{more}");
    }
    assert_eq!(rules(base), Vec::<&str>::new());
}

#[test]
fn aliases_of_boards_need_qmp() {
    let line = words("qemu -nodefaults -M q35");
    let found = derive("a", &line, &VmFacts::default(), None).unwrap();
    assert_eq!(found.findings[0].rule, "machine-alias");
    let versioned = words("qemu -nodefaults -M pc-q35-9.2");
    let found = derive("a", &versioned, &VmFacts::default(), None).unwrap();
    assert_eq!((found.findings, found.specification.machine.kind.as_str()), (vec![], "pc-q35-9.2"));
}

#[test]
fn changes_since_the_start_are_seen() {
    let line = "qemu -nodefaults -M pc-i440fx-10.0 -m 64 -device virtio-balloon-pci,id=b0";
    let same =
        VmFacts { peripherals: Some(vec!["b0".to_owned()]), memory_bytes: Some(64 << 20), ..facts(&[]) };
    assert_eq!(derived(line, &same).findings, []);
    let plugged = VmFacts { peripherals: Some(vec!["b0".to_owned(), "new".to_owned()]), ..facts(&[]) };
    let unplugged = VmFacts { peripherals: Some(Vec::new()), ..facts(&[]) };
    let grown = VmFacts { memory_bytes: Some(128 << 20), ..facts(&[]) };
    for changed in [plugged, unplugged, grown] {
        assert_eq!(derived(line, &changed).findings[0].rule, "changed-since-start");
    }
    assert_eq!(derived(line, &facts(&[("/hot.raw", "raw")])).findings[0].rule, "hotplugged-disk");
}

#[test]
fn uefi_is_code_by_name_and_variables_like_a_disk() {
    let line = "qemu -nodefaults -M pc-q35-10.0 -drive if=pflash,format=raw,readonly=on,file=/usr/OVMF_CODE.fd \
        -drive if=pflash,format=raw,file=/vms/a/vars.fd";
    assert_eq!(firmware_code(&words(line)), Some("/usr/OVMF_CODE.fd".into()));
    let blocks = [("/usr/OVMF_CODE.fd", "raw"), ("/vms/a/vars.fd", "raw"), ("/d.raw", "raw")];
    let unread = derived(line, &facts(&blocks[..2]));
    assert_eq!(unread.findings[0].rule, "firmware-file");
    let file = FileFact { path: "/usr/OVMF_CODE.fd".into(), sha256: "ab".repeat(32), size: 9 };
    let facts = VmFacts { files: vec![file.clone()], ..facts(&blocks) };
    let line = format!("{line} -drive file=/d.raw,format=raw,if=virtio,readonly=on");
    let found = derived(&line, &facts);
    assert_eq!(found.findings, []);
    let nvram = Some(Nvram { size: 64 << 20, format: DiskFormat::Raw });
    let code = BootFile { name: "OVMF_CODE.fd".to_owned(), sha256: file.sha256.clone(), size: 9 };
    assert_eq!(found.specification.firmware, Firmware::Uefi { code, nvram });
    // Both ends number what travels in the same order.
    let there: Vec<_> = found.specification.carried().map(|carried| carried.id).collect();
    assert_eq!(there, ["virtio0", NVRAM_ID]);
    assert!(found.disks.iter().map(|disk| disk.id.as_str()).eq(there));
    firmware_of_a_host(found.specification, file);
}

/// The code is there, of the same length, and perhaps another version of it.
fn firmware_of_a_host(vm: VmSpecification, file: FileFact) {
    let target = |format| DiskTarget { path: "/pool/x".into(), format };
    let mut mapping = HostMapping {
        disks: ["virtio0", NVRAM_ID].map(|id| (id.to_owned(), target(DiskFormat::Raw))).into(),
        accelerators: vec![Accelerator::Tcg],
        ..HostMapping::default()
    };
    let rule = |mapping: &HostMapping| match resolve(&vm, mapping, 1, Start::Incoming) {
        Ok((_, findings)) => findings.first().map(|finding| (finding.rule, false)),
        Err(findings) => findings.first().map(|finding| (finding.rule, true)),
    };
    assert_eq!(rule(&mapping), Some(("firmware-mapping", true)));
    let named = |file| vec![NamedHostFile { name: "OVMF_CODE.fd".to_owned(), file }];
    mapping.firmware = named(FileFact { size: 10, ..file.clone() });
    assert_eq!(rule(&mapping), Some(("firmware-mapping", true)));
    mapping.firmware = named(FileFact { sha256: "cd".repeat(32), ..file.clone() });
    assert_eq!(rule(&mapping), Some(("firmware-differs", false)));
    mapping.firmware = named(file);
    assert_eq!(rule(&mapping), None);
    mapping.disks.insert("virtio0".to_owned(), target(DiskFormat::Qcow2));
    let (request, _) = resolve(&vm, &mapping, 1, Start::Paused).unwrap();
    request.check().unwrap();
    StartRequest { start: Start::Incoming, ..request }.check().unwrap_err();
}

#[test]
fn files_that_a_process_uses_are_named() {
    let line = words(
        "qemu -kernel /k -initrd /i -pidfile /p -qmp unix:/q.sock,server=on,wait=off \
         -chardev socket,id=c,path=/m.sock,server=on -mon chardev=c,mode=control -chardev socket,id=d,path=/d",
    );
    let named = named_files(&line).unwrap();
    assert_eq!(named.boot, [PathBuf::from("/k"), PathBuf::from("/i")]);
    assert_eq!(named.pid_file, Some(PathBuf::from("/p")));
    assert_eq!(named.qmp, [PathBuf::from("/q.sock"), PathBuf::from("/m.sock")]);
}

#[test]
fn novacrons_configuration_travels_without_paths_and_commands() {
    let json = br#"{"id":"web-1","name":"web","type":"kvm","memory_mb":512,"rootfs":"/etc/shadow","command":"/bin/sh",
        "args":[],"mounts":[{"source":"/","target":"/"}],"tags":{"a":"b"}}"#;
    let found =
        derive("web-1", &words("qemu -nodefaults -M pc-i440fx-10.0"), &facts(&[]), Some(json)).unwrap();
    let rules: Vec<_> = found.findings.iter().map(|finding| (finding.rule, finding.is_blocking())).collect();
    assert_eq!(rules, [("novacron-config", false), ("novacron-config", false)]);
    let config = found.specification.novacron.unwrap();
    assert_eq!(config.text("name"), Some("web"));
    let file = config.file("web-1", Some(std::path::Path::new("/vms/web-1/disk.qcow2")));
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["rootfs"], "/vms/web-1/disk.qcow2");
    assert!(file.get("command").is_none() && file.get("mounts").is_none());
    let smuggled: NovaCronConfig = serde_json::from_str(r#"{"command":"/bin/sh"}"#).unwrap();
    assert!(smuggled.check().is_err());
    assert!(NovaCronConfig::read(&vec![b' '; 100 << 10]).is_err());
}

fn booted() -> (VmSpecification, HostMapping) {
    let line = "qemu -nodefaults -M pc-i440fx-10.0 -kernel /boot/vmlinux -append quiet \
        -drive file=/d.raw,format=raw,if=virtio -netdev bridge,br=lan,id=n -device e1000,netdev=n";
    let fact = FileFact { path: "/boot/vmlinux".into(), sha256: "ab".repeat(32), size: 7 };
    let found = derived(line, &VmFacts { files: vec![fact.clone()], ..facts(&[("/d.raw", "raw")]) });
    assert_eq!(found.findings, []);
    let mapping = HostMapping {
        disks: [("virtio0".to_owned(), DiskTarget { path: "/pool/d".into(), format: DiskFormat::Raw })]
            .into(),
        bridges: [("lan".to_owned(), "br7".to_owned())].into(),
        boot: vec![NamedHostFile {
            name: "vmlinux".to_owned(),
            file: FileFact { path: "/here/vmlinux".into(), ..fact },
        }],
        accelerators: vec![Accelerator::Tcg],
        ..HostMapping::default()
    };
    (found.specification, mapping)
}

#[test]
fn a_host_binds_what_it_has() {
    let (vm, mapping) = booted();
    let (request, findings) = resolve(&vm, &mapping, 3, Start::Incoming).unwrap();
    assert_eq!(findings, []);
    request.check().unwrap();
    assert_eq!(request.bindings.kernel, Some("/here/vmlinux".into()));
    assert_eq!(request.bindings.networks["n"], HostNetwork::Bridge { name: "br7".to_owned() });
    let json = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<StartRequest>(&json).unwrap(), request);
}

#[test]
fn what_a_host_lacks_is_said_all_at_once() {
    let (mut vm, mapping) = booted();
    vm.cpu.host_model = Some("EPYC".to_owned());
    let mut other = mapping.clone();
    other.boot[0].file.sha256 = "cd".repeat(32);
    let poor = HostMapping { boot: other.boot, machines: Some(Vec::new()), ..HostMapping::default() };
    let findings = resolve(&vm, &poor, 3, Start::Incoming).unwrap_err();
    let rules: Vec<_> = findings.iter().map(|finding| finding.rule).collect();
    let expected =
        ["accelerator", "machine", "cpu-host", "disk-mapping", "bridge-mapping", "boot-file-mapping"];
    assert_eq!(rules, expected);
}

#[test]
fn a_request_with_other_paths_is_refused() {
    let (vm, mapping) = booted();
    let (request, _) = resolve(&vm, &mapping, 3, Start::Incoming).unwrap();
    let with = |change: fn(&mut StartRequest)| {
        let mut request = request.clone();
        change(&mut request);
        request.check()
    };
    assert!(with(|r| r.version = 2).is_err());
    assert!(with(|r| r.bindings.kernel = Some("relative".into())).is_err());
    assert!(with(|r| r.bindings.kernel = Some("/a/../b".into())).is_err());
    assert!(with(|r| r.bindings.kernel = Some("/a\nb".into())).is_err());
    assert!(with(|r| r.bindings.kernel = None).is_err());
    assert!(with(|r| r.bindings.firmware = Some("/x".into())).is_err());
    assert!(with(|r| r.bindings.disks.clear()).is_err());
    assert!(with(|r| r.bindings.networks.clear()).is_err());
    assert!(
        with(|r| {
            let surplus = r.bindings.disks["virtio0"].clone();
            r.bindings.disks.insert("more".to_owned(), surplus);
        })
        .is_err()
    );
}

/// A change to a valid specification that no receiver may accept.
type Break = (&'static str, fn(&mut VmSpecification, usize, String));

const BREAKS: &[Break] = &[
    ("id", |vm, over, _| vm.id = "a".repeat(MAX_NAME + over)),
    ("id folder", |vm, _, _| vm.id = "../x".to_owned()),
    ("name", |vm, over, _| vm.name = "a".repeat(MAX_NAME + over)),
    ("name lines", |vm, _, _| vm.name = "a\nb".to_owned()),
    ("uuid", |vm, _, text| vm.uuid = Some(text)),
    ("machine", |vm, over, _| vm.machine.kind = "a".repeat(MAX_NAME + over)),
    ("machine comma", |vm, _, _| vm.machine.kind = "pc,accel=kvm".to_owned()),
    ("machine option", |vm, _, text| vm.machine.options = vec![Property::new(text, "on")]),
    ("features", |vm, over, _| vm.cpu.features = vec!["+a".to_owned(); MAX_FEATURES + over]),
    ("feature comma", |vm, _, _| vm.cpu.features = vec!["+a,b".to_owned()]),
    ("processors", |vm, over, _| vm.processors.count = MAX_PROCESSORS + u32::try_from(over).unwrap()),
    ("memory", |vm, over, _| vm.memory.bytes = MAX_MEMORY + over as u64),
    ("devices", |vm, over, _| {
        let device = PlainDevice { model: "VGA".to_owned(), device_id: None, properties: Vec::new() };
        vm.devices = vec![Device::Plain(device); MAX_DEVICES + over];
    }),
    ("model", |vm, _, text| {
        vm.devices.push(Device::Plain(PlainDevice { model: text, device_id: None, properties: Vec::new() }));
    }),
    ("property", |vm, _, text| {
        let properties = vec![Property::new(text, "1")];
        vm.devices.push(Device::Plain(PlainDevice { model: "VGA".to_owned(), device_id: None, properties }));
    }),
    ("rom", |vm, _, text| {
        let properties = vec![Property::new("romfile", text + "/")];
        vm.devices.push(Device::Plain(PlainDevice { model: "VGA".to_owned(), device_id: None, properties }));
    }),
    ("value", |vm, over, _| {
        let properties = vec![Property::new("serial", "a".repeat(MAX_VALUE + over))];
        vm.devices.push(Device::Plain(PlainDevice { model: "VGA".to_owned(), device_id: None, properties }));
    }),
    ("serial", |vm, over, _| vm.serial = vec![Console::Null; MAX_SERIAL + over]),
    ("kernel line", |vm, over, _| {
        if let Some(kernel) = &mut vm.kernel {
            kernel.command_line = "a".repeat(MAX_KERNEL_COMMAND_LINE + over);
        }
    }),
    ("kernel name", |vm, _, _| {
        if let Some(kernel) = &mut vm.kernel {
            kernel.kernel.name = "../vmlinux".to_owned();
        }
    }),
    ("firmware", |vm, _, text| vm.firmware = Firmware::Bios { file: Some(format!("/{text}")) }),
    ("boot", |vm, _, text| vm.boot.order = Some(text + ",")),
    ("twice", |vm, _, _| {
        let disk = vm.devices[vm.devices.len() - 1].clone();
        vm.devices.push(disk);
    }),
];

proptest! {
    #[test]
    fn what_no_receiver_may_accept_is_refused(
        at in 0..BREAKS.len(), over in 1usize..1000, text in "[ -~]{0,40}",
    ) {
        let (mut vm, _) = booted();
        prop_assert_eq!(vm.check(), Ok(()));
        let (name, change) = BREAKS[at];
        // Text that happens to be a name of the catalogue is not wrong.
        let text = format!("{text}!");
        change(&mut vm, over, text);
        prop_assert!(vm.check().is_err(), "{}", name);
    }

    #[test]
    fn any_arguments_are_read_without_harm(line in proptest::collection::vec(
        prop_oneof![
            "-(machine|m|smp|cpu|drive|blockdev|device|netdev|nic|boot|rtc|serial|chardev|object|hda|x)",
            "[a-z0-9,=.{}:\"/-]{0,30}",
        ],
        0..20,
    )) {
        if let Ok(found) = derive("a", &line, &facts(&[]), None) {
            let blocked = found.findings.iter().any(Finding::is_blocking);
            prop_assert!(blocked || found.specification.check().is_ok());
        }
    }
}

#[test]
fn a_stopped_vm_is_what_novacron_would_start() {
    let config =
        br#"{"id":"web-1","name":"web, one","cpu_shares":2,"memory_mb":1024,"cloud_init_iso":"/x.iso",
        "volume_attachments":[{"volume_id":"v1","boot":true},{"volume_id":"v2"}]}"#;
    let disk = block("/vms/web,1/disk.qcow2", "qcow2");
    let found = derive_stopped("web-1", config, disk, None).unwrap();
    let rules: Vec<_> = found.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["cloud-init", "volume-attachment"]);
    assert!(!found.findings.iter().any(Finding::is_blocking));
    let vm = found.specification;
    vm.check().unwrap();
    assert_eq!((vm.memory.bytes, vm.processors.count), (1 << 30, 2));
    assert_eq!((vm.machine.kind.as_str(), vm.machine.accelerator), ("pc-i440fx-2.8", Accelerator::Kvm));
    assert_eq!((vm.name.as_str(), found.disks.len()), ("web, one", 1));
    assert_eq!(found.disks[0].path, PathBuf::from("/vms/web,1/disk.qcow2"));
    // The same devices as when it runs.
    let running = derived(NOVACRON, &facts(&[("/vms/web-1/disk.qcow2", "qcow2")])).specification;
    assert_eq!(
        vm.devices.iter().map(Device::model).collect::<Vec<_>>(),
        running.devices.iter().map(Device::model).collect::<Vec<_>>()
    );
    derive_stopped("web-1", b"[]", block("/a", "qcow2"), None).unwrap_err();
}

#[test]
fn the_guests_agent_is_found() {
    let line = words(
        "qemu -device virtio-serial-pci -chardev socket,id=ga,path=/run/ga.sock,server=on,wait=off \
         -chardev socket,id=other,path=/x -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
    );
    assert_eq!(named_files(&line).unwrap().guest_agent, Some(PathBuf::from("/run/ga.sock")));
    assert_eq!(named_files(&words(NOVACRON)).unwrap().guest_agent, None);
}
