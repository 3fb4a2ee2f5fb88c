use proptest::prelude::*;

use super::*;

fn parse(arguments: &str) -> CommandLine {
    let mut bytes = b"/usr/bin/qemu-system-x86_64\0".to_vec();
    for argument in arguments.split_whitespace() {
        bytes.extend(argument.as_bytes());
        bytes.push(0);
    }
    CommandLine::parse(&bytes)
}

fn listens(path: &str) -> Endpoint {
    Endpoint::Listens(path.into())
}

fn monitors(arguments: &str) -> Vec<(Language, Endpoint)> {
    parse(arguments).monitors.into_iter().map(|monitor| (monitor.language, monitor.endpoint)).collect()
}

#[test]
fn novacron_starts_with_hmp_alone() {
    let line = parse(
        "-machine pc-i440fx-2.8,accel=kvm -cpu host -m 512 -drive file=/vms/a/disk.qcow2,format=qcow2,if=virtio \
         -monitor unix:/vms/a/monitor.sock,server,nowait -daemonize -pidfile /vms/a/qemu.pid",
    );
    assert!(line.is_qemu_system());
    assert!(!line.is_libvirt());
    assert_eq!(line.pid_file.as_deref(), Some(Path::new("/vms/a/qemu.pid")));
    let expected = Monitor { language: Language::Hmp, endpoint: listens("/vms/a/monitor.sock") };
    assert_eq!(line.monitors, [expected]);
}

#[test]
fn every_way_to_write_a_qmp_socket() {
    for arguments in [
        "-qmp unix:/s,server=on,wait=off",
        "--qmp unix:/s,server,nowait",
        "-qmp-pretty unix:path=/s,server=on",
        "-chardev socket,id=c,path=/s,server=on,wait=off -mon chardev=c,mode=control",
        "-mon c,mode=control,pretty=on -chardev socket,path=/s,server=yes,id=c",
        "-chardev backend=socket,id=c,path=/s,server=on -qmp chardev:c",
    ] {
        assert_eq!(monitors(arguments), [(Language::Qmp, listens("/s"))], "{arguments}");
    }
    assert_eq!(monitors("-qmp unix:/a,,b,server=on"), [(Language::Qmp, listens("/a,b"))]);
}

#[test]
fn what_cannot_be_connected_to_is_other() {
    for arguments in [
        "-qmp stdio",
        "-qmp tcp:localhost:4444,server=on,wait=off",
        "-qmp unix:/s",
        "-qmp unix:/s,server=off",
        "-chardev socket,id=c,fd=30,server=on,wait=off -mon chardev=c,mode=control",
        "-chardev stdio,id=c -mon chardev=c,mode=control",
        "-mon chardev=missing,mode=control",
    ] {
        let found = monitors(arguments);
        assert!(matches!(found[..], [(Language::Qmp, Endpoint::Other(_))]), "{arguments}: {found:?}");
    }
    assert_eq!(monitors("-monitor none -display none"), []);
    assert_eq!(monitors("-qmp"), []);
}

#[test]
fn the_mode_of_a_monitor_is_hmp_unless_it_says_control() {
    let device = "-chardev socket,id=c,path=/s,server=on";
    assert_eq!(monitors(&format!("{device} -mon c")), [(Language::Hmp, listens("/s"))]);
    assert_eq!(monitors(&format!("{device} -mon c,mode=readline")), [(Language::Hmp, listens("/s"))]);
}

#[test]
fn libvirt_is_known_by_its_name_and_folders() {
    let line = parse(
        "-name guest=web,debug-threads=on -object secret,id=k,file=/var/lib/libvirt/qemu/domain-1-web/master-key.aes \
         -chardev socket,id=charmonitor,fd=30,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control",
    );
    assert!(line.is_libvirt());
    assert_eq!(line.name.as_deref(), Some("web"));
    assert!(!parse("-name guest=web").is_libvirt());
    assert!(!parse("-name web -drive file=/var/lib/libvirt/images/web.qcow2").is_libvirt());
}

#[test]
fn other_programs_are_no_qemu() {
    for program in ["/usr/bin/sleep", "qemu-nbd", "", "/tmp/qemu-system-x86_64/sh"] {
        assert!(!CommandLine::parse(format!("{program}\0-qmp\0").as_bytes()).is_qemu_system(), "{program}");
    }
    assert!(CommandLine::parse(b"qemu-system-aarch64\0").is_qemu_system());
    assert!(!CommandLine::parse(b"").is_qemu_system());
}

#[test]
fn files_are_told_apart_by_whole_folders() {
    let line =
        parse("-drive file=/vms/a/disk.qcow2,if=virtio -monitor unix:/vms/b/m,server,nowait /mnt/vms/c/d");
    for (folder, inside) in
        [("/vms/a", true), ("/vms/b", true), ("/vms", true), ("/vms/c", false), ("/vm", false)]
    {
        assert_eq!(line.names_file_in(Path::new(folder)), inside, "{folder}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(CommandLine::parse(&bytes));
    }

    #[test]
    fn a_doubled_comma_is_one(path in "/[a-z,]{0,20}") {
        let written = format!("unix:path={},server=on", path.replace(',', ",,"));
        let line = CommandLine::parse(format!("qemu-system-x\0-qmp\0{written}").as_bytes());
        prop_assert_eq!(&line.monitors[0].endpoint, &listens(&path));
    }
}
