//! The inventory of a host that runs real QEMUs (capability `qemu-system`).

#[path = "support/capability.rs"]
mod capability;
#[expect(dead_code, reason = "connecting is for the tests of QMP")]
#[path = "support/system.rs"]
mod system;

use std::fs;
use std::path::Path;

use capability::have;
use novaferry_hypervisor::inventory::{Access, Entry, Inventory, Places, Sizes, State, Vm, find};
use novaferry_hypervisor::qemu_img;
use rustix::process::{Pid, Signal, kill_process};
use system::{System, qmp_option, until};

fn vm<'a>(vms: &'a [Vm], id: &str) -> &'a Vm {
    let mut found = vms.iter().filter(|vm| vm.id == id);
    let vm = found.next().unwrap_or_else(|| panic!("{id} is missing: {vms:?}"));
    assert!(found.next().is_none(), "{id} is there twice");
    vm
}

/// Starts a VM as NovaCron would, but in the foreground; ready when its pid file is there, and `socket`, too: QEMU
/// makes its monitors later.
async fn start(folder: &Path, more: &[&str], socket: Option<&Path>) -> System {
    fs::create_dir(folder).unwrap();
    let pid_file = folder.join("qemu.pid");
    let system =
        System::start(["-pidfile", pid_file.to_str().unwrap()].into_iter().chain(more.iter().copied()));
    until("the pid file", || fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n'))).await;
    until("the socket", || socket.is_none_or(Path::exists)).await;
    system
}

#[tokio::test]
async fn a_novacron_host_is_told_as_it_is() {
    if !have("qemu-system", "qemu-system-x86_64", "a_novacron_host_is_told_as_it_is") {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    let folder = |id: &str| host.path().join(id);
    let qmp = folder("live").join("qmp.sock");
    let live = start(&folder("live"), &["-qmp", &qmp_option(&qmp)], Some(&qmp)).await;
    fs::write(folder("live/config.json"), r#"{"id": "live", "name": "web", "memory_mb": 64}"#).unwrap();
    let hmp = format!("unix:{},server,nowait", folder("hmp").join("monitor.sock").display());
    let hmp = start(&folder("hmp"), &["-name", "old", "-monitor", &hmp], None).await;
    let lost = start(&folder("lost"), &["-qmp", "stdio"], None).await;
    fs::remove_file(folder("lost/qemu.pid")).unwrap();
    // Killed, so that its pid file stays.
    let mut dead = start(&folder("dead"), &[], None).await;
    dead.end();
    assert!(folder("dead/qemu.pid").exists());
    for (id, content) in [
        ("recycled", std::process::id().to_string()),
        ("taken", live.0.id().to_string()),
        ("garbage", "seven\n".to_owned()),
        ("long", "1".repeat(100)),
    ] {
        fs::create_dir(folder(id)).unwrap();
        fs::write(folder(id).join("qemu.pid"), content).unwrap();
    }
    fs::create_dir(folder("never")).unwrap();
    fs::write(folder("never/config.json"), "[]").unwrap();
    std::os::unix::fs::symlink(folder("live"), folder("link")).unwrap();

    let places = Places { novacron: Some(host.path().to_owned()), ..Places::default() };
    let vms = find(&places).unwrap();

    let found = vm(&vms, "live");
    assert_eq!((found.pid(), &found.state, found.name.as_str()), (Some(live.0.id()), &State::Running, "web"));
    assert_eq!(found.access, Access::Live { qmp: qmp.clone() });
    assert_eq!(found.config.as_ref().unwrap().memory_mb, Some(64));
    assert_eq!(found.findings, Vec::<String>::new());

    let found = vm(&vms, "hmp");
    assert_eq!((found.pid(), found.name.as_str()), (Some(hmp.0.id()), "old"));
    let Access::ColdOrWarmOnly { reason, fix } = &found.access else { panic!("{found:?}") };
    assert!(reason.contains("HMP"), "{reason}");
    let socket = folder("hmp").join("qmp.sock");
    assert_eq!(*fix, format!("-qmp unix:{},server=on,wait=off", socket.display()));

    let found = vm(&vms, "lost");
    assert_eq!((found.pid(), &found.state), (Some(lost.0.id()), &State::Running), "without its pid file");
    assert!(matches!(&found.access, Access::ColdOrWarmOnly { reason, .. } if reason.contains("stdio")));
    assert_eq!(found.findings.len(), 1, "{:?}", found.findings);

    for (id, findings) in
        [("dead", 1), ("recycled", 1), ("taken", 1), ("garbage", 1), ("long", 1), ("never", 1)]
    {
        let found = vm(&vms, id);
        assert_eq!(
            (found.pid(), &found.state, &found.access),
            (None, &State::Stopped, &Access::Stopped),
            "{id}"
        );
        assert_eq!(found.findings.len(), findings, "{id}: {:?}", found.findings);
    }
    assert!(vms.iter().all(|vm| vm.id != "link"), "links are not followed");
}

#[tokio::test]
async fn the_configuration_names_vms() {
    if !have("qemu-system", "qemu-system-x86_64", "the_configuration_names_vms") {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    let folder = host.path().join("vm");
    let qmp = folder.join("q,mp");
    let option = format!("unix:{},server=on,wait=off", qmp.display().to_string().replace(',', ",,"));
    let mut system = start(&folder, &["-qmp", &option], Some(&qmp)).await;
    let entry = |name: &str, qmp: &Path| Entry {
        name: name.to_owned(),
        qmp: qmp.to_owned(),
        folder: None,
        tenant: String::new(),
        labels: [].into(),
    };
    let wrong = Entry { folder: Some(folder.clone()), ..entry("wrong", &folder.join("other")) };
    let hidden = host.path().join("hidden");
    let listener = std::os::unix::net::UnixListener::bind(&hidden).unwrap();
    let places = Places {
        entries: vec![
            entry("good", &qmp),
            wrong,
            entry("none", Path::new("/nowhere")),
            entry("hidden", &hidden),
        ],
        novacron: Some(host.path().to_owned()),
    };
    let vms = find(&places).unwrap();
    assert_eq!(vm(&vms, "good").access, Access::Live { qmp: qmp.clone() });
    assert_eq!(vm(&vms, "good").pid(), Some(system.0.id()));
    assert!(matches!(vm(&vms, "wrong").access, Access::ColdOrWarmOnly { .. }));
    assert_eq!(vm(&vms, "none").access, Access::Stopped);
    assert_eq!((&vm(&vms, "hidden").state, vm(&vms, "hidden").pid()), (&State::Running, None));
    assert!(vms.iter().all(|vm| vm.id != "vm"), "the configuration has it already");

    let process = vm(&vms, "good").process.unwrap();
    let pid = Pid::from_child(&system.0);
    kill_process(pid, Signal::STOP).unwrap();
    until("the stop", || vm(&find(&places).unwrap(), "good").state == State::Suspended).await;
    kill_process(pid, Signal::CONT).unwrap();
    until("the continuation", || vm(&find(&places).unwrap(), "good").state == State::Running).await;
    assert_eq!(vm(&find(&places).unwrap(), "good").process, Some(process));

    system.end();
    drop(listener);
    let vms = find(&places).unwrap();
    for id in ["good", "hidden"] {
        assert_eq!((&vm(&vms, id).state, &vm(&vms, id).access), (&State::Stopped, &Access::Stopped), "{id}");
    }
}

#[tokio::test]
async fn what_a_vm_needs_is_told_while_it_runs_and_when_it_is_off() {
    if !have("qemu-system", "qemu-system-x86_64", "what_a_vm_needs_is_told_while_it_runs_and_when_it_is_off")
    {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    let folder = host.path().join("web");
    let images = host.path().join("images");
    fs::create_dir(&images).unwrap();
    let [first, second] = ["first.qcow2", "second.raw"].map(|name| images.join(name));
    qemu_img::create_qcow2(&first, 48 << 20).await.unwrap();
    fs::write(&second, [0; 1 << 20]).unwrap();
    let drive = |path: &Path, format: &str| format!("file={},format={format},if=virtio", path.display());
    let (first_drive, second_drive) = (drive(&first, "qcow2"), drive(&second, "raw"));
    let more = ["-smp", "2", "-cpu", "max", "-drive", &first_drive, "-drive", &second_drive];
    let mut system = start(&folder, &more, None).await;
    let config = r#"{"memory_mb": 512, "cpu_shares": 4, "disk_size_gb": 3, "tenant_id": "acme", "tags": {"tier": "web"}}"#;
    fs::write(folder.join("config.json"), config).unwrap();

    let places = Places { novacron: Some(host.path().to_owned()), ..Places::default() };
    let (mut inventory, mut sizes) = (Inventory::new(places), Sizes::default());
    // The second look remembers, and says the same.
    for _ in 0..2 {
        let vms = inventory.find().unwrap();
        let needs = &vm(&vms, "web").needs;
        // Of QEMU's own line: the definition may have been changed since.
        assert_eq!((needs.memory_bytes, needs.processors), (64 << 20, 2));
        assert_eq!((needs.cpu.as_str(), needs.machine.as_str(), needs.kvm), ("max", "pc", false));
        assert_eq!((needs.tenant.as_str(), needs.labels["tier"].as_str()), ("acme", "web"));
        let at = vms.iter().position(|vm| vm.id == "web").unwrap();
        // QEMU holds the image's lock.
        assert_eq!(sizes.of(&vms).await[at], 49 << 20);
    }

    system.end();
    let vms = inventory.find().unwrap();
    let needs = &vm(&vms, "web").needs;
    assert_eq!((needs.memory_bytes, needs.processors), (512 << 20, 4));
    assert_eq!((needs.cpu.as_str(), needs.machine.as_str(), needs.tenant.as_str()), ("", "", "acme"));
    let at = vms.iter().position(|vm| vm.id == "web").unwrap();
    assert_eq!(sizes.of(&vms).await[at], 3 << 30, "as it is planned: NovaCron has made no disk yet");
    fs::rename(&first, folder.join("disk.qcow2")).unwrap();
    let vms = inventory.find().unwrap();
    assert_eq!(sizes.of(&vms).await[at], 48 << 20, "as it is");
}

#[test]
fn a_missing_folder_has_no_vms() {
    let places = Places { novacron: Some("/nowhere/vms".into()), ..Places::default() };
    assert!(find(&places).unwrap().iter().all(|vm| vm.folder.is_none()));
}
