//! `novaferry-vmd` as a process, with real QEMU (capabilities `qemu-system` and `root`).

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hypervisor::specification::{
    Accelerator, BlockFact, Device, DiskFormat, DiskTarget, HostMapping, HostNetwork, NetworkBackend,
    NetworkDevice, Start, StartRequest, VmFacts, derive, resolve,
};
use hypervisor::vmd::{RefusalKind, VmState, VmdClient, VmdError};
use rustix::process::{Pid, Signal, kill_process};

/// Far beyond what anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Users for the VMs of these tests.
const UIDS: (u32, u32) = (431_000, 431_009);
/// Somebody who may not ask.
const STRANGER: u32 = 431_999;

/// True when the test must end here; panics when the capability was required.
fn skip(test: &str, capability: &str, lacks: bool) -> bool {
    if !lacks {
        return false;
    }
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|one| one == capability), "{test} requires {capability}");
    eprintln!("SKIP {test}: no {capability}");
    true
}

fn skip_qemu(test: &str) -> bool {
    skip(test, "qemu-system", !Path::new("/usr/bin/qemu-system-x86_64").exists())
}

fn skip_user(test: &str) -> bool {
    skip(test, "root", !is_root())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A host: folders, a vmd, and the VMs that it started. All end with the test.
struct Host {
    base: PathBuf,
    vmd: Option<Child>,
    words: &'static [&'static str],
    _folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::within(&[])
    }

    /// With a vmd that is started by these words.
    fn within(words: &'static [&'static str]) -> Self {
        let folder = tempfile::Builder::new().prefix("vmd").tempdir_in("/tmp").unwrap();
        let base = folder.path().to_owned();
        std::fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
        for name in ["vms", "vms/web-1", "boot"] {
            std::fs::create_dir(base.join(name)).unwrap();
        }
        let mut host = Self { base, vmd: None, words, _folder: folder };
        std::fs::write(host.disk(), vec![0; 1 << 20]).unwrap();
        host.launch();
        host
    }

    fn disk(&self) -> PathBuf {
        self.base.join("vms/web-1/disk.qcow2")
    }

    fn socket(&self) -> PathBuf {
        self.base.join("vmd.sock")
    }

    fn launch(&mut self) {
        let path = |name: &str| self.base.join(name).into_os_string();
        let mut words = self.words.iter().copied().chain([env!("CARGO_BIN_EXE_novaferry-vmd"), "serve"]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        for (flag, value) in
            [("--socket", path("vmd.sock")), ("--state", path("state")), ("--vms", path("vms"))]
        {
            command.arg(flag).arg(value);
        }
        command.arg("--boot").arg(path("boot")).arg("--firmware").arg(path("boot"));
        command.arg("--uids").arg(format!("{}-{}", UIDS.0, UIDS.1));
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.vmd = Some(child);
        until("vmd answers", || UnixStream::connect(self.socket()).is_ok());
    }

    /// As by a crash.
    fn kill(&mut self) {
        if let Some(mut vmd) = self.vmd.take() {
            vmd.kill().unwrap();
            vmd.wait().unwrap();
        }
    }

    async fn client(&self) -> VmdClient {
        VmdClient::connect(&self.socket()).await.unwrap()
    }

    fn request(&self, generation: u64) -> StartRequest {
        let line = format!(
            "qemu -nodefaults -M pc-i440fx-10.0 -accel tcg -m 32 -serial file:/x -drive file={},format=raw,if=virtio",
            self.disk().display()
        );
        let block = BlockFact {
            device: String::new(),
            node: String::new(),
            qdev: None,
            file: self.disk(),
            format: "raw".to_owned(),
            size: 1 << 20,
            read_only: false,
        };
        let facts = VmFacts { blocks: vec![block], ..VmFacts::default() };
        let words: Vec<_> = line.split(' ').map(ToOwned::to_owned).collect();
        let config = br#"{"id":"web-1","name":"web","memory_mb":32,"rootfs":"/elsewhere"}"#;
        let derived = derive("web-1", &words, &facts, Some(config)).unwrap();
        let target = DiskTarget { path: self.disk(), format: DiskFormat::Raw };
        let mapping = HostMapping {
            disks: [("virtio0".to_owned(), target)].into(),
            accelerators: vec![Accelerator::Tcg],
            ..HostMapping::default()
        };
        resolve(&derived.specification, &mapping, generation, Start::Incoming).unwrap().0
    }

    /// Process ids of what was started with a pid file below this host's folder.
    fn guests(&self) -> Vec<i32> {
        let below = format!("{}/vms/", self.base.display());
        let processes = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let pids = processes.filter_map(|name| name.parse().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0')
                .skip_while(|word| *word != "-pidfile")
                .nth(1)
                .is_some_and(|file| file.starts_with(&below))
        })
        .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        for pid in self.guests() {
            // Ended meanwhile: that is what is wanted.
            if let Some(pid) = Pid::from_raw(pid) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kind(result: Result<impl std::fmt::Debug, VmdError>) -> RefusalKind {
    result.unwrap_err().refusal().expect("a refusal").kind
}

fn pid(state: &VmState) -> u32 {
    match state {
        VmState::Running { pid } => *pid,
        VmState::Exited { stderr } => panic!("it has ended: {stderr}"),
        VmState::Stopped {} => panic!("it was never started"),
    }
}

/// Why QEMU, or vmd, does not listen at this socket.
async fn refusal_to_recover(vmd: &VmdClient, socket: &str) -> String {
    vmd.migrate_recover("web-1", socket).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_vm_outlives_vmd() {
    if skip_qemu("a_vm_outlives_vmd") {
        return;
    }
    let mut host = Host::new();
    let vmd = host.client().await;
    assert_eq!(vmd.list().await.unwrap(), []);
    assert_eq!(kind(vmd.status("web-1").await), RefusalKind::Unknown);
    let started = vmd.start(host.request(3)).await.unwrap();
    let running = pid(&started.state);
    assert_eq!((started.generation, started.isolated), (3, is_root()));
    assert_eq!(kind(vmd.start(host.request(3)).await), RefusalKind::Running);
    assert_eq!(kind(vmd.forget("web-1").await), RefusalKind::Running);
    // What NovaCron reads.
    let folder = host.base.join("vms/web-1");
    assert_eq!(std::fs::read_to_string(folder.join("qemu.pid")).unwrap(), format!("{running}\n"));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["name"], config["rootfs"].as_str()), (&"web".into(), host.disk().to_str()));
    host.kill();
    assert!(host.guests().contains(&i32::try_from(running).unwrap()), "the guest died with vmd");
    host.launch();
    let vmd = host.client().await;
    let found = vmd.list().await.unwrap();
    assert_eq!(found, std::slice::from_ref(&started));
    assert!(UnixStream::connect(started.sockets.join("qmp.sock")).is_ok());
    // The vmd of now has connected to its second monitor, over which QEMU speaks for itself.
    let began = Instant::now();
    while refusal_to_recover(&vmd, "incoming-1.sock").await.contains("not connected") {
        assert!(began.elapsed() < PATIENCE, "vmd does not connect to it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = refusal_to_recover(&vmd, "incoming-1.sock").await;
    assert!(why.contains("postcopy"), "{why}");
    let why = vmd.migrate_pause("web-1").await.unwrap_err().to_string();
    assert!(why.contains("postcopy"), "{why}");
    assert!(refusal_to_recover(&vmd, "../x").await.contains("plain name"));
    let ended = vmd.stop("web-1", false).await.unwrap();
    assert!(matches!(ended.state, VmState::Exited { .. }));
    assert!(host.guests().is_empty() && !folder.join("qemu.pid").exists());
    vmd.forget("web-1").await.unwrap();
    assert_eq!(vmd.list().await.unwrap(), []);
    assert!(!started.sockets.exists() && host.disk().exists());
    assert_eq!(kind(vmd.start(host.request(2)).await), RefusalKind::Stale, "an older generation");
    pid(&vmd.start(host.request(4)).await.unwrap().state);
    vmd.stop("web-1", true).await.unwrap();
}

#[tokio::test]
async fn a_vm_that_does_not_come_up_says_why() {
    if skip_qemu("a_vm_that_does_not_come_up_says_why") {
        return;
    }
    let mut host = Host::new();
    let vmd = host.client().await;
    let mut request = host.request(1);
    request.specification.cpu.model = "no-such-model".to_owned();
    let error = vmd.start(request).await.unwrap_err();
    assert_eq!(error.refusal().unwrap().kind, RefusalKind::Failed);
    assert!(error.to_string().contains("no-such-model"), "{error}");
    host.kill();
    host.launch();
    let VmState::Exited { stderr } = host.client().await.status("web-1").await.unwrap().state else {
        panic!("it runs");
    };
    assert!(stderr.contains("no-such-model"), "{stderr}");
}

#[tokio::test]
async fn what_qemu_can_run_is_told() {
    if skip_qemu("what_qemu_can_run_is_told") {
        return;
    }
    let host = Host::new();
    let told = host.client().await.host(Accelerator::Tcg).await.unwrap();
    assert!(told.version >= (5, 0, 0), "{:?}", told.version);
    assert!(["pc", "q35"].iter().all(|board| told.machines.iter().any(|known| known == board)));
    let model = told.processors.iter().find(|model| model.name == "qemu64").unwrap();
    assert_eq!(model.lacks, Vec::<String>::new(), "TCG has all of its own model");
}

#[tokio::test]
async fn a_vm_has_a_user_of_its_own() {
    let test = "a_vm_has_a_user_of_its_own";
    if skip_qemu(test) || skip_user(test) {
        return;
    }
    let host = Host::new();
    let vmd = host.client().await;
    let started = vmd.start(host.request(1)).await.unwrap();
    assert_eq!(started.uid, UIDS.0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&started.state))).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let own = vec![UIDS.0.to_string(); 4];
    assert_eq!((field("Uid:"), field("Gid:")), (own.clone(), own));
    assert_eq!(field("Groups:"), Vec::<String>::new());
    assert_eq!((field("CapEff:"), field("CapBnd:")), (vec!["0".repeat(16)], vec!["0".repeat(16)]));
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    let owner = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    let group = rustix::process::getegid().as_raw();
    assert_eq!(owner(&host.disk()), (UIDS.0, group, 0o660));
    assert_eq!(owner(&started.folder), (0, group, 0o2771));
    assert_eq!(owner(&started.sockets), (UIDS.0, group, 0o2770));
    assert_eq!(owner(&started.sockets.join("qmp.sock")), (UIDS.0, group, 0o770));
    vmd.stop("web-1", true).await.unwrap();
    vmd.forget("web-1").await.unwrap();
    assert_eq!(owner(&host.disk()), (0, group, 0o660));
}

#[tokio::test]
async fn a_fence_holds_after_a_crash_and_is_undone_exactly() {
    let mut host = Host::new();
    let folder = host.base.join("vms/web-1");
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let vmd = host.client().await;
    let fence = vmd.fence("web-1", 7, Vec::new()).await.unwrap();
    assert_eq!((fence.generation, fence.renamed.len()), (7, 2));
    assert_eq!(vmd.fence("web-1", 7, Vec::new()).await.unwrap(), fence, "twice does no harm");
    assert_eq!(names(), ["MIGRATED-7.txt", "config.json.migrated-7", "disk.qcow2.migrated-7"]);
    host.kill();
    // As if the crash had come before the second rename.
    std::fs::rename(folder.join("disk.qcow2.migrated-7"), folder.join("disk.qcow2")).unwrap();
    host.launch();
    assert!(!host.disk().exists());
    let vmd = host.client().await;
    assert_eq!(vmd.fences().await.unwrap(), [fence]);
    for generation in [1, 6, 7] {
        assert_eq!(kind(vmd.start(host.request(generation)).await), RefusalKind::Fenced);
    }
    assert_eq!(kind(vmd.fence("web-1", 6, Vec::new()).await), RefusalKind::Stale);
    assert_eq!(kind(vmd.unfence("web-1", 6).await), RefusalKind::Stale);
    assert_eq!(kind(vmd.unfence("web-1", 8).await), RefusalKind::Stale);
    vmd.unfence("web-1", 7).await.unwrap();
    vmd.unfence("web-1", 7).await.unwrap();
    assert_eq!((names(), vmd.fences().await.unwrap()), (before, vec![]));
    assert_eq!(kind(vmd.start(host.request(6)).await), RefusalKind::Stale, "the generation is remembered");
    assert_eq!(kind(vmd.fence("../x", 9, Vec::new()).await), RefusalKind::Invalid);
    assert_eq!(kind(vmd.fence("web-1", 9, vec!["/etc/passwd".into()]).await), RefusalKind::Failed);
}

#[tokio::test]
async fn a_vm_comes_back_with_a_newer_generation() {
    if skip_qemu("a_vm_comes_back_with_a_newer_generation") {
        return;
    }
    let mut host = Host::new();
    let vmd = host.client().await;
    vmd.fence("web-1", 7, Vec::new()).await.unwrap();
    // The receiver has made its disk anew.
    std::fs::write(host.disk(), vec![0; 1 << 20]).unwrap();
    pid(&vmd.start(host.request(8)).await.unwrap().state);
    assert_eq!(vmd.fences().await.unwrap(), []);
    host.kill();
    host.launch();
    assert!(host.disk().exists(), "the old fence does not take the new disk away");
    let vmd = host.client().await;
    assert_eq!(kind(vmd.fence("web-1", 7, Vec::new()).await), RefusalKind::Stale);
    vmd.fence("web-1", 9, Vec::new()).await.unwrap();
    let running = vmd.status("web-1").await.unwrap();
    pid(&running.state);
}

#[tokio::test]
async fn paths_outside_the_folders_are_refused() {
    let host = Host::new();
    let vmd = host.client().await;
    let mut request = host.request(1);
    for target in request.bindings.disks.values_mut() {
        target.path = "/etc/passwd".into();
    }
    let before = std::fs::metadata("/etc/passwd").unwrap();
    assert_eq!(kind(vmd.start(request).await), RefusalKind::Invalid);
    let after = std::fs::metadata("/etc/passwd").unwrap();
    assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
    assert_eq!(vmd.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_vm_is_plugged_into_a_bridge_and_out_again() {
    let test = "a_vm_is_plugged_into_a_bridge_and_out_again";
    let private: &[&str] = &["unshare", "--net", "--mount", "sh", "-c"];
    let tried = Command::new(private[0]).args(&private[1..]).arg("ip link add br7 type bridge").output();
    let able = tried.is_ok_and(|output| output.status.success()) && Path::new("/dev/net/tun").exists();
    if skip_qemu(test) || skip_user(test) || skip(test, "netns", !able) {
        return;
    }
    // A network of its own; /sys shows the one that it was mounted in. The mode of the device is what udev gives it.
    const PRIVATE: &[&str] = &[
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        "mount -t sysfs none /sys && mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && ip link add br7 type bridge && exec \"$0\" \"$@\"",
    ];
    let host = Host::within(PRIVATE);
    let vmd = host.client().await;
    let mut request = host.request(1);
    let card = NetworkDevice {
        id: "net0".to_owned(),
        model: "virtio-net-pci".to_owned(),
        device_id: None,
        mac: "52:54:00:12:34:56".to_owned(),
        backend: NetworkBackend::Tap {},
        properties: Vec::new(),
    };
    request.specification.devices.push(Device::Network(card));
    let bridge = HostNetwork::Bridge { name: "br7".to_owned() };
    request.bindings.networks.insert("net0".to_owned(), bridge);
    let started = vmd.start(request.clone()).await.unwrap();
    let id = host.vmd.as_ref().unwrap().id();
    let ports = || {
        let output = Command::new("nsenter")
            .args(["--net", "--target", &id.to_string(), "ip", "-oneline", "link", "show", "master", "br7"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // LOWER_UP: QEMU has it open.
    assert!(ports().contains("novaferry0") && ports().contains("LOWER_UP"), "{}", ports());
    pid(&started.state);
    vmd.stop("web-1", false).await.unwrap();
    assert_eq!(ports(), "");
    let absent = HostNetwork::Bridge { name: "absent".to_owned() };
    request.bindings.networks.insert("net0".to_owned(), absent);
    let error = vmd.start(request).await.unwrap_err();
    assert!(error.to_string().contains("bridge"), "{error}");
    assert!(host.guests().is_empty());
}

/// What vmd says to these bytes.
fn say(host: &Host, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may answer and close before it has all.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut said = String::new();
    drop(BufReader::new(stream).read_line(&mut said));
    said
}

#[tokio::test]
async fn hostile_requests_do_no_harm() {
    let host = Host::new();
    let deep = "[".repeat(500_000) + "\n";
    let long = format!("{{\"command\":\"status\",\"vm\":\"{}\"}}\n", "a".repeat(2 << 20));
    for line in
        ["\n", "{}\n", "null\n", "{\"command\":\"run\"}\n", "{\"command\":\"start\",\"request\":1}\n", &deep]
    {
        assert!(say(&host, line.as_bytes()).contains("\"invalid\""), "{}", &line[..line.len().min(40)]);
    }
    assert!(!say(&host, long.as_bytes()).contains("\"vm\""));
    say(&host, b"\xff\xfe\x00");
    let idle: Vec<_> = (0..20).map(|_| UnixStream::connect(host.socket()).unwrap()).collect();
    assert_eq!(host.client().await.list().await.unwrap(), []);
    drop(idle);
}

/// Run by the next test as another user.
#[test]
#[ignore = "a part of strangers_are_refused"]
fn ask_as_a_stranger() {
    let socket = std::env::var_os("VMD_SOCKET").unwrap();
    let mut said = String::new();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.contains("\"forbidden\"") && said.contains(&STRANGER.to_string()), "{said}");
}

#[test]
fn strangers_are_refused() {
    if skip_user("strangers_are_refused") {
        return;
    }
    let host = Host::new();
    let mode = std::fs::metadata(host.socket()).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o660);
    // The door is opened, to see the guard behind it.
    std::fs::set_permissions(host.socket(), Permissions::from_mode(0o666)).unwrap();
    let program = host.base.join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let status = Command::new(&program)
        .args(["--exact", "ask_as_a_stranger", "--ignored"])
        .env("VMD_SOCKET", host.socket())
        .current_dir(&host.base)
        .uid(STRANGER)
        .gid(STRANGER)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_vm_is_put_in_place_without_starting() {
    let mut host = Host::new();
    // NovaCron's own name for the disk is free: the VM's disk is elsewhere.
    let folder = host.base.join("vms/web-1");
    let disk = folder.join("virtio0-g3.qcow2");
    std::fs::rename(host.disk(), &disk).unwrap();
    let mut request = host.request(3);
    request
        .bindings
        .disks
        .insert("virtio0".to_owned(), DiskTarget { path: disk.clone(), format: DiskFormat::Qcow2 });
    for _ in 0..2 {
        let status = host.client().await.define(request.clone()).await.unwrap();
        assert_eq!((status.state, status.generation), (VmState::Stopped {}, 3));
    }
    assert_eq!(std::fs::read_link(host.disk()).unwrap(), disk);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["rootfs"].as_str(), disk.to_str());
    // It is known to the next vmd, too, and leaves this host like any other.
    host.kill();
    host.launch();
    let client = host.client().await;
    assert_eq!(client.status("web-1").await.unwrap().state, VmState::Stopped {});
    let fence = client.fence("web-1", 4, vec![disk.clone()]).await.unwrap();
    assert_eq!(fence.renamed.len(), 3);
    let error = client.define(request.clone()).await.unwrap_err();
    assert_eq!(error.refusal().unwrap().kind, RefusalKind::Fenced);
    client.forget("web-1").await.unwrap();
    assert_eq!(client.list().await.unwrap(), []);
    // A disk of that name is somebody's, and is not replaced.
    client.unfence("web-1", 4).await.unwrap();
    std::fs::remove_file(host.disk()).unwrap();
    std::fs::write(host.disk(), b"x").unwrap();
    let error = client.define(StartRequest { generation: 5, ..request }).await.unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    assert_eq!(std::fs::read(host.disk()).unwrap(), b"x");
}
