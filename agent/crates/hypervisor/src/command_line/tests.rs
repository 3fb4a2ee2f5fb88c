//! The arguments, word by word.

use super::*;
use crate::specification::{DiskFormat, FileFact, HostMapping, NamedHostFile, VmFacts, derive, resolve};

fn line(source: &str, facts: &VmFacts, mapping: &HostMapping, taps: &[(&str, &str)]) -> String {
    let words: Vec<_> = source.split_whitespace().map(ToOwned::to_owned).collect();
    let found = derive("web-1", &words, facts, None).unwrap();
    assert_eq!(found.findings, []);
    let (request, _) = resolve(&found.specification, mapping, 3, Start::Incoming).unwrap();
    let taps = taps.iter().map(|(id, tap)| ((*id).to_owned(), (*tap).to_owned())).collect();
    let place = Place { folder: "/vms/a,b/run".into(), taps };
    let words = arguments(&request, &place).unwrap();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join("\n")
}

fn mapping() -> HostMapping {
    let target = |path: &str, format| DiskTarget { path: path.into(), format };
    let file = FileFact { path: "/fw/OVMF_CODE.fd".into(), sha256: "ab".repeat(32), size: 9 };
    HostMapping {
        disks: [
            ("virtio0".to_owned(), target("/pool/d,1.qcow2", DiskFormat::Qcow2)),
            ("nvram".to_owned(), target("/pool/vars", DiskFormat::Raw)),
        ]
        .into(),
        default_bridge: Some("br0".to_owned()),
        firmware: vec![NamedHostFile { name: "OVMF_CODE.fd".to_owned(), file: file.clone() }],
        boot: vec![NamedHostFile { name: "vmlinux".to_owned(), file }],
        accelerators: vec![Accelerator::Tcg, Accelerator::Kvm],
        ..HostMapping::default()
    }
}

fn block(file: &str) -> crate::specification::BlockFact {
    crate::specification::BlockFact {
        device: String::new(),
        node: String::new(),
        qdev: None,
        file: file.into(),
        format: "raw".to_owned(),
        size: 1 << 20,
        read_only: false,
    }
}

#[test]
fn a_vm_of_novacron_becomes_these_words() {
    let source = "qemu -machine pc-i440fx-10.0,accel=kvm -cpu EPYC,+x2apic -m 1024 -smp 2,maxcpus=4 \
        -drive file=/v/disk.qcow2,format=raw,if=virtio,cache=writethrough -netdev tap,ifname=t0,id=net0 \
        -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,addr=0x5 -vnc :3 -serial file:/x -no-reboot \
        -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0 \
        -device virtio-serial-pci -chardev socket,id=c,path=/g -device virtserialport,chardev=c,name=org.qemu.guest_agent.0";
    let facts = VmFacts { blocks: vec![block("/v/disk.qcow2")], ..VmFacts::default() };
    let expected = r#"-name
guest=web-1,debug-threads=on
-nodefaults
-no-user-config
-sandbox
on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-qmp
unix:/vms/a,,b/run/qmp.sock,server=on,wait=off
-pidfile
/vms/a,b/run/qemu.pid
-msg
timestamp=on
-machine
pc-i440fx-10.0
-accel
kvm
-cpu
EPYC,+x2apic
-smp
cpus=2,maxcpus=4
-m
size=1073741824b
-rtc
base=utc
-no-reboot
-vga
std
-vnc
unix:/vms/a,,b/run/vnc.sock
-chardev
file,id=serial0,path=/vms/a,,b/run/serial0.log,append=on
-serial
chardev:serial0
-parallel
null
-device
ide-cd,bus=ide.1,unit=0
-device
floppy,unit=0
-netdev
tap,id=net-net0,ifname=tap7,script=no,downscript=no
-device
virtio-net-pci,netdev=net-net0,mac=52:54:00:00:00:01,addr=0x5
-object
rng-random,id=random-3,filename=/dev/urandom
-device
virtio-rng-pci,rng=random-3
-device
virtio-serial-pci
-chardev
socket,id=channel-5,path=/vms/a,,b/run/org.qemu.guest_agent.0.sock,server=on,wait=off
-device
virtserialport,chardev=channel-5,name=org.qemu.guest_agent.0
-blockdev
{"discard":"unmap","driver":"qcow2","file":{"discard":"unmap","driver":"file","filename":"/pool/d,1.qcow2","read-only":false},"node-name":"node-virtio0","read-only":false}
-device
virtio-blk-pci,drive=node-virtio0,write-cache=off
-S
-incoming
defer
-qmp
unix:/vms/a,,b/run/rescue.sock,server=on,wait=off"#;
    let found = line(source, &facts, &mapping(), &[("net0", "tap7")]);
    assert_eq!(found, expected);
}

#[test]
fn flash_and_kernel_are_named() {
    let source = "qemu -nodefaults -M pc-q35-10.0 -m 64 -drive if=pflash,format=raw,readonly=on,file=/u/OVMF_CODE.fd \
        -drive if=pflash,format=raw,file=/v/vars.fd -kernel /b/vmlinux -append quiet -boot menu=on,order=c \
        -uuid 00000000-0000-0000-0000-000000000001";
    let facts = VmFacts {
        blocks: vec![block("/u/OVMF_CODE.fd"), block("/v/vars.fd")],
        files: ["/b/vmlinux", "/u/OVMF_CODE.fd"]
            .map(|path| FileFact { path: path.into(), sha256: "ab".repeat(32), size: 9 })
            .into(),
        ..VmFacts::default()
    };
    let found = line(source, &facts, &mapping(), &[]);
    for part in [
        "-machine\npc-q35-10.0,pflash0=flash-code,pflash1=flash-variables\n",
        r#""filename":"/fw/OVMF_CODE.fd","read-only":true},"node-name":"flash-code","read-only":true"#,
        r#""filename":"/pool/vars","read-only":false},"node-name":"flash-variables""#,
        "-kernel\n/fw/OVMF_CODE.fd\n-append\nquiet\n-boot\norder=c,menu=on\n-blockdev",
        "-vga\nnone\n-display\nnone",
        "-uuid\n00000000-0000-0000-0000-000000000001\n",
    ] {
        assert!(found.contains(part), "{part} is not in\n{found}");
    }
}

#[test]
fn a_read_only_disk_is_filled_below_its_node_before_the_guest_comes() {
    let words = "qemu -nodefaults -M pc-q35-10.0 -drive file=/s.raw,format=raw,if=virtio,readonly=on";
    let words: Vec<_> = words.split_whitespace().map(ToOwned::to_owned).collect();
    let facts = VmFacts { blocks: vec![block("/s.raw")], ..VmFacts::default() };
    let found = derive("a", &words, &facts, None).unwrap();
    let mut mapping = mapping();
    if let Some(target) = mapping.disks.get_mut("virtio0") {
        target.format = DiskFormat::Raw;
    }
    let node = |start| {
        let (request, _) = resolve(&found.specification, &mapping, 1, start).unwrap();
        let line = arguments(&request, &Place { folder: "/x".into(), taps: BTreeMap::new() }).unwrap();
        line.iter().find(|word| word.to_string_lossy().starts_with('{')).unwrap().clone()
    };
    assert_eq!(
        node(Start::Incoming),
        r#"{"discard":"unmap","driver":"raw","file":{"discard":"unmap","driver":"file","filename":"/pool/d,1.qcow2","node-name":"below-0","read-only":false},"node-name":"node-virtio0","read-only":true}"#
    );
    assert!(node(Start::Running).to_string_lossy().contains(r#"qcow2","read-only":true}"#));
}

#[test]
fn a_bridge_without_its_tap_is_refused() {
    let words =
        ["qemu", "-nodefaults", "-M", "pc-i440fx-10.0", "-netdev", "tap,id=n", "-device", "e1000,netdev=n"];
    let found = derive("a", &words.map(String::from), &VmFacts::default(), None).unwrap();
    let (request, _) = resolve(&found.specification, &mapping(), 1, Start::Running).unwrap();
    let place = Place { folder: "/x".into(), taps: BTreeMap::new() };
    assert!(matches!(arguments(&request, &place), Err(SpecificationError::Missing { .. })));
}
