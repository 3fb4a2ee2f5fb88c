use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

/// Words between blanks; `'…'` keeps those within.
fn started(line: &str) -> Started {
    let mut bytes = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend(part.bytes().chain([0]));
            continue;
        }
        part.split_whitespace().for_each(|word| bytes.extend(word.bytes().chain([0])));
    }
    Started::read(&CommandLine::parse(&bytes))
}

fn image(path: &str, format: &str) -> Image {
    Image { path: path.into(), format: format.to_owned() }
}

/// `driver_kvm_enhanced.go`.
const NOVACRON: &str = "qemu-system-x86_64 -machine pc-i440fx-2.8,accel=kvm -cpu host -m 2048 -smp 2 \
    -drive file=/var/lib/novacron/vms/web-1/disk.qcow2,format=qcow2,if=virtio -netdev user,id=net0 \
    -device virtio-net-pci,netdev=net0 -vnc :3 \
    -monitor unix:/var/lib/novacron/vms/web-1/monitor.sock,server,nowait -daemonize \
    -pidfile /var/lib/novacron/vms/web-1/qemu.pid -device virtio-balloon-pci \
    -object rng-random,filename=/dev/urandom,id=rng0 -device virtio-rng-pci,rng=rng0";

/// `command_line::arguments`, as novaferry-vmd starts what comes.
const VMD: &str = "/usr/bin/qemu-system-x86_64 -name guest=web-1,debug-threads=on -nodefaults -no-user-config \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
    -qmp unix:/vms/web-1/run/qmp.sock,server=on,wait=off -pidfile /vms/web-1/run/qemu.pid -msg timestamp=on \
    -machine pc-q35-10.0,usb=off,pflash0=flash-code,pflash1=nvram -accel tcg,thread=multi \
    -cpu Skylake-Server,+avx512f,-mpx -smp cpus=4,sockets=2,cores=2,maxcpus=8 \
    -m size=4294967296b,slots=4,maxmem=17179869184b -rtc base=utc \
    -blockdev '{\"driver\":\"raw\",\"node-name\":\"flash-code\",\"file\":{\"driver\":\"file\",\"filename\":\"/fw/code.fd\"}}' \
    -blockdev '{\"driver\":\"raw\",\"node-name\":\"nvram\",\"file\":{\"driver\":\"file\",\"filename\":\"/p/nvram\"}}' \
    -vga none -display none -chardev null,id=serial0 -serial chardev:serial0 \
    -blockdev '{\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/p/.vms/web-1/vd0-1,a\",\"read-only\":false},\"node-name\":\"vd0\",\"read-only\":false}' \
    -device virtio-blk-pci,id=disk0,drive=vd0,bootindex=1 \
    -blockdev '{\"driver\":\"raw\",\"file\":{\"driver\":\"host_device\",\"filename\":\"/dev/vg/web\",\"node-name\":\"below\"},\"node-name\":\"vd1\",\"read-only\":true}' \
    -device scsi-hd,drive=vd1 -S -incoming defer";

/// libvirt 10 on Ubuntu 24.04 (`virt-install --os-variant debian12`), its channels left out.
const LIBVIRT: &str = "/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -S \
    -object '{\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":\"/var/lib/libvirt/qemu/domain-1-web/master-key.aes\"}' \
    -machine pc-q35-8.2,usb=off,vmport=off,dump-guest-core=off,memory-backend=pc.ram,hpet=off,acpi=on -accel kvm \
    -cpu host,migratable=on -m size=4194304k \
    -object '{\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":4294967296}' -overcommit mem-lock=off \
    -smp 2,sockets=2,cores=1,threads=1 -uuid 9c2b7a4e-7a3f-4c69-9d68-0f3b6a2d7c11 -no-user-config -nodefaults \
    -chardev socket,id=charmonitor,fd=30,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control \
    -rtc base=utc,driftfix=slew -global kvm-pit.lost_tick_policy=delay -no-shutdown -boot strict=on \
    -device '{\"driver\":\"pcie-root-port\",\"port\":16,\"chassis\":1,\"id\":\"pci.1\",\"bus\":\"pcie.0\",\"multifunction\":true,\"addr\":\"0x2\"}' \
    -blockdev '{\"driver\":\"file\",\"filename\":\"/var/lib/libvirt/images/debian12.qcow2\",\"node-name\":\"libvirt-4-storage\",\"auto-read-only\":true,\"discard\":\"unmap\"}' \
    -blockdev '{\"node-name\":\"libvirt-4-format\",\"read-only\":true,\"driver\":\"qcow2\",\"file\":\"libvirt-4-storage\",\"backing\":null}' \
    -blockdev '{\"driver\":\"file\",\"filename\":\"/var/lib/libvirt/images/web.qcow2\",\"node-name\":\"libvirt-3-storage\",\"auto-read-only\":true,\"discard\":\"unmap\"}' \
    -blockdev '{\"node-name\":\"libvirt-3-format\",\"read-only\":false,\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":\"libvirt-3-storage\",\"backing\":\"libvirt-4-format\"}' \
    -device '{\"driver\":\"virtio-blk-pci\",\"bus\":\"pci.4\",\"addr\":\"0x0\",\"drive\":\"libvirt-3-format\",\"id\":\"virtio-disk0\",\"bootindex\":1}' \
    -blockdev '{\"driver\":\"host_device\",\"filename\":\"/dev/vg0/data\",\"node-name\":\"libvirt-2-storage\",\"cache\":{\"direct\":true,\"no-flush\":false}}' \
    -blockdev '{\"node-name\":\"libvirt-2-format\",\"read-only\":false,\"driver\":\"raw\",\"file\":\"libvirt-2-storage\"}' \
    -device '{\"driver\":\"virtio-blk-pci\",\"drive\":\"libvirt-2-format\",\"id\":\"virtio-disk1\",\"write-cache\":\"on\"}' \
    -blockdev '{\"driver\":\"file\",\"filename\":\"/iso/debian.iso\",\"node-name\":\"libvirt-1-storage\",\"read-only\":true}' \
    -device '{\"driver\":\"ide-cd\",\"bus\":\"ide.0\",\"drive\":\"libvirt-1-storage\",\"id\":\"sata0-0-0\"}' \
    -device '{\"driver\":\"virtio-net-pci\",\"netdev\":\"hostnet0\",\"id\":\"net0\",\"mac\":\"52:54:00:aa:bb:cc\"}' \
    -sandbox on,obsolete=deny -msg timestamp=on";

/// `qm showcmd` of Proxmox VE 8, its USB and network left out.
const PROXMOX_8: &str = "/usr/bin/kvm -id 100 -name 'web,debug-threads=on' -no-shutdown \
    -chardev 'socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control' \
    -pidfile /var/run/qemu-server/100.pid -daemonize -smbios 'type=1,uuid=5d0c5e0a-ee5c-4b2d-9b8a-3a0b7d1f2c11' \
    -smp '4,sockets=1,cores=4,maxcpus=4' -nodefaults -boot 'menu=on,strict=on,reboot-timeout=1000' \
    -vnc 'unix:/var/run/qemu-server/100.vnc,password=on' \
    -cpu x86-64-v2-AES,enforce,+kvm_pv_eoi,+kvm_pv_unhalt,vendor=GenuineIntel -m 8192 \
    -object 'iothread,id=iothread-virtioscsi0' -device 'pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e' \
    -drive 'if=none,id=drive-ide2,media=cdrom,aio=io_uring' \
    -device 'ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=101' \
    -device 'virtio-scsi-pci,id=virtioscsi0,bus=pci.3,addr=0x1,iothread=iothread-virtioscsi0' \
    -drive 'file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,throttling.bps-write=104857600,format=raw,cache=none,aio=io_uring,detect-zeroes=on' \
    -device 'scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100' \
    -machine 'type=q35+pve0'";

/// Of Proxmox VE 9: a filter on top, all nodes in one option.
const PROXMOX_9: &str = "/usr/bin/kvm -id 101 -name 'db,debug-threads=on' -smp '2,sockets=2,cores=1,maxcpus=2' -cpu host \
    -m 2048 -object 'throttle-group,id=throttle-drive-scsi0' \
    -blockdev '{\"detect-zeroes\":\"unmap\",\"discard\":\"unmap\",\"driver\":\"throttle\",\"file\":{\"cache\":{\"direct\":true,\"no-flush\":false},\"detect-zeroes\":\"unmap\",\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"aio\":\"io_uring\",\"cache\":{\"direct\":true,\"no-flush\":false},\"driver\":\"file\",\"filename\":\"/var/lib/vz/images/101/vm-101-disk-0.qcow2\",\"node-name\":\"e7c\"},\"node-name\":\"f7c\",\"read-only\":false},\"node-name\":\"drive-scsi0\",\"read-only\":false,\"throttle-group\":\"throttle-drive-scsi0\"}' \
    -device 'scsi-hd,bus=scsihw0.0,scsi-id=0,drive=drive-scsi0,id=scsi0,device_id=drive-scsi0' \
    -machine 'accel=kvm,type=pc-i440fx-9.2+pve1'";

#[test]
fn what_others_start_is_understood() {
    let expect = |line: &str, memory, processors, cpu: &str, machine: &str, kvm, disks: &[(&str, &str)]| {
        let disks: Vec<_> = disks.iter().map(|(path, format)| image(path, format)).collect();
        let (cpu, machine) = (cpu.to_owned(), machine.to_owned());
        let expected = Started { memory_bytes: memory, processors, cpu, machine, kvm, disks: Some(disks) };
        assert_eq!(started(line), expected, "{line}");
    };
    let disk = [("/var/lib/novacron/vms/web-1/disk.qcow2", "qcow2")];
    expect(NOVACRON, 2 * GIB, 2, "host", "pc-i440fx-2.8", true, &disk);
    let disks = [("/p/.vms/web-1/vd0-1,a", "qcow2"), ("/dev/vg/web", "raw")];
    expect(VMD, 4 * GIB, 4, "Skylake-Server", "pc-q35-10.0", false, &disks);
    let disks = [("/dev/vg0/data", "raw"), ("/var/lib/libvirt/images/web.qcow2", "qcow2")];
    expect(LIBVIRT, 4 * GIB, 2, "host", "pc-q35-8.2", true, &disks);
    // Without a word about it, what it runs on is QEMU's choice.
    let disk = [("/dev/pve/vm-100-disk-0", "raw")];
    expect(PROXMOX_8, 8 * GIB, 4, "x86-64-v2-AES", "q35+pve0", false, &disk);
    let disk = [("/var/lib/vz/images/101/vm-101-disk-0.qcow2", "qcow2")];
    expect(PROXMOX_9, 2 * GIB, 2, "host", "pc-i440fx-9.2+pve1", true, &disk);
}

#[test]
fn sizes_and_counts_are_written_in_many_ways() {
    for (line, bytes) in [
        ("-m 512", 512 << 20),
        ("-m 1G", GIB),
        ("-m size=1048576k", GIB),
        ("-m 64 -m slots=2,maxmem=1G", 64 << 20),
        ("-m lots", 0),
        ("", 0),
    ] {
        assert_eq!(started(&format!("qemu {line}")).memory_bytes, bytes, "{line}");
    }
    for (line, count) in [
        ("", 1),
        ("-smp 3", 3),
        ("-smp cpus=3,maxcpus=8", 3),
        ("-smp sockets=2,cores=2,threads=2", 8),
        ("-smp sockets=2,maxcpus=8", 8),
        ("-smp many", 0),
        ("-smp sockets=65536,cores=65536", 0),
        ("-readconfig /etc/qemu/web.conf", 0),
    ] {
        assert_eq!(started(&format!("qemu {line}")).processors, count, "{line}");
    }
}

#[test]
fn only_who_can_use_nothing_but_kvm_is_on_kvm() {
    for (line, kvm) in [
        ("-enable-kvm", true),
        ("-M pc -accel kvm,dirty-ring-size=4096", true),
        ("-machine q35,accel=kvm", true),
        ("-machine q35,accel=kvm:tcg", false),
        ("-accel kvm -accel tcg", false),
        ("-accel tcg", false),
        ("", false),
    ] {
        assert_eq!(started(&format!("qemu {line}")).kvm, kvm, "{line}");
    }
}

#[test]
fn one_disk_that_is_not_known_hides_the_sum() {
    let good = "-drive file=/a,format=raw,if=virtio";
    for more in [
        "-hda /b.img",
        "/b.img",
        "-drive file=/b.qcow2,if=virtio",
        "-drive file=rbd:pool/b,format=raw",
        "-drive file.driver=nbd,file.path=/b,format=raw,file=x",
        "-device virtio-blk-pci,drive=absent",
        "-device vhost-user-blk-pci,chardev=c",
        "-blockdev driver=nbd,node-name=n -blockdev driver=raw,file=n,node-name=d -device virtio-blk-pci,drive=d",
        "-blockdev driver=raw,file=d,node-name=d -device virtio-blk-pci,drive=d",
        "-blockdev driver=file,filename=/b,node-name=f -blockdev driver=raw,file=f,offset=512,node-name=d \
         -device virtio-blk-pci,drive=d",
        "-blockdev driver=qcow2,file.driver=qcow2,file.file.driver=file,file.file.filename=/b,node-name=d \
         -device virtio-blk-pci,drive=d",
    ] {
        assert_eq!(started(&format!("qemu {good} {more}")).disks, None, "{more}");
    }
    // None of these is a disk.
    for more in [
        "-cdrom /b.iso",
        "-drive file=/b.iso,media=cdrom",
        "-drive if=none,id=empty",
        "-drive file=/b,format=raw,if=none,id=unused",
        "-drive file=/b,format=raw,if=pflash",
        "-fda /b",
        "-blockdev driver=file,filename=/b,node-name=unused",
    ] {
        assert_eq!(started(&format!("qemu {good} {more}")).disks, Some(vec![image("/a", "raw")]), "{more}");
    }
    assert_eq!(started("qemu -nodefaults").disks, Some(Vec::new()));
}

proptest! {
    #[test]
    fn arbitrary_arguments_never_panic(
        words in proptest::collection::vec(
            "(-(m|smp|machine|accel|drive|blockdev|device) )?[a-z0-9=,.{}\":-]{0,40}", 0..12,
        ),
    ) {
        drop(started(&words.join(" ")));
    }
}
