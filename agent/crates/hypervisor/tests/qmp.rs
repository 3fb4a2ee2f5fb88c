//! Against a real `qemu-system-x86_64` (capability `qemu-system`).

#[path = "support/capability.rs"]
mod capability;
#[expect(dead_code, reason = "ending and waiting for files is for the tests of the inventory")]
#[path = "support/system.rs"]
mod system;

use std::fs;
use std::path::Path;
use std::time::Duration;

use capability::have;
use novaferry_hypervisor::qmp::words::{
    CpuExpansion, DirtyRateStatus, ErrorClass, ExportRemoval, JobType, MigrationCapability, MigrationStatus,
    MultifdCompression, OnError, RunState, ShutdownCause, SyncMode,
};
use novaferry_hypervisor::qmp::{
    Action, Announce, Backup, BitmapName, CapabilityState, CpuModel, DirtyRateRequest, EventKind, Events,
    ImageNode, MigrationAddress, MigrationParameters, Mirror, MonitorErrorKind, NbdExport, NbdNode,
    NewBitmap, NewNode, Qmp, SocketAddress,
};
use system::{System, TIMEOUT, connect, qmp_option};
use tempfile::TempDir;

/// A stopped machine and a connection to it.
struct Vm {
    qmp: Qmp,
    folder: TempDir,
    _system: System,
}

impl Vm {
    async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp.sock");
        let option = qmp_option(&socket);
        let system = System::start(["-qmp", &option].into_iter().chain(more.iter().copied()));
        Self { qmp: connect(&socket).await, folder, _system: system }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

fn have_qemu(test: &str) -> bool {
    have("qemu-system", "qemu-system-x86_64", test)
}

/// The first event from now on that `wanted` takes.
async fn wait<T>(events: &mut Events, mut wanted: impl FnMut(EventKind) -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = wanted(events.next().await.expect("an event").kind) {
                return found;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, search).await.expect("the event comes")
}

async fn migration_reaches(events: &mut Events, status: MigrationStatus) {
    wait(events, |kind| (kind == EventKind::Migration(status.clone())).then_some(())).await;
}

#[tokio::test]
async fn the_machine_is_described() {
    if !have_qemu("the_machine_is_described") {
        return;
    }
    let uuid = "6d2f7c2e-9c52-4f60-8f7f-0a3c1b9c3f11";
    let vm =
        Vm::start(&["-name", "web,debug-threads=on", "-uuid", uuid, "-smp", "2", "-cpu", "qemu64"]).await;
    let qmp = &vm.qmp;
    assert_eq!(qmp.query_version().await.unwrap(), *qmp.version());
    assert!(qmp.version().major >= 7);
    let status = qmp.query_status().await.unwrap();
    assert_eq!((status.running, status.status), (false, RunState::PreLaunch));
    assert_eq!(qmp.query_name().await.unwrap().as_deref(), Some("web"));
    assert_eq!(qmp.query_uuid().await.unwrap(), uuid);
    let cpus = qmp.query_cpus().await.unwrap();
    assert_eq!(cpus.iter().map(|cpu| cpu.cpu_index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(cpus[0].target, "x86_64");
    assert_eq!(qmp.query_memory_size().await.unwrap().base_memory, 64 << 20);
    let machine = qmp.machine_type().await.unwrap();
    assert!(machine.starts_with("pc-i440fx-"), "{machine}");
    let properties = qmp.qom_list("/machine").await.unwrap();
    assert!(properties.iter().any(|property| property.name == "peripheral"));
    assert!(!qmp.qom_get::<bool>("/machine/unattached/device[0]", "hotplugged").await.unwrap());
    assert_eq!(qmp.query_block().await.unwrap(), []);

    let models = qmp.query_cpu_definitions().await.unwrap();
    assert!(models.iter().any(|model| model.name == "base" && model.is_static));
    let model = CpuModel { name: "qemu64".to_owned(), props: serde_json::Map::new() };
    let full = qmp.query_cpu_model_expansion(CpuExpansion::Full, &model).await.unwrap();
    assert_eq!(full.props["lm"], true);
    let fixed = qmp.query_cpu_model_expansion(CpuExpansion::Static, &model).await.unwrap();
    assert_eq!(fixed.name, "base");

    let error = qmp.execute::<serde_json::Value>("no-such-command", &()).await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Refused(ErrorClass::CommandNotFound));
}

#[tokio::test]
async fn a_second_client_waits_for_the_first_to_leave() {
    if !have_qemu("a_second_client_waits_for_the_first_to_leave") {
        return;
    }
    let vm = Vm::start(&[]).await;
    let Vm { qmp, folder, _system } = vm;
    let socket = folder.path().join("qmp.sock");
    let error = Qmp::connect(&socket, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Timeout);
    drop(qmp);
    let again = connect(&socket).await;
    assert_eq!(again.query_status().await.unwrap().status, RunState::PreLaunch);
}

#[tokio::test]
async fn events_follow_the_guest() {
    if !have_qemu("events_follow_the_guest") {
        return;
    }
    let vm = Vm::start(&[]).await;
    let qmp = &vm.qmp;
    let mut events = qmp.subscribe();
    qmp.cont().await.unwrap();
    let resumed = events.next().await.unwrap();
    assert_eq!(resumed.kind, EventKind::Resume);
    assert!(resumed.at.is_some());
    assert!(qmp.query_status().await.unwrap().running);
    qmp.stop().await.unwrap();
    let stopped = events.next().await.unwrap();
    assert_eq!(stopped.kind, EventKind::Stop);
    assert!(stopped.at >= resumed.at);
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
    qmp.system_powerdown().await.unwrap();
    wait(&mut events, |kind| (kind == EventKind::PowerDown).then_some(())).await;
    qmp.announce_self(&Announce { rounds: 1, ..Announce::default() }).await.unwrap();
    // QEMU may end before its answer is read.
    let quit = qmp.quit().await;
    assert!(quit.is_ok() || quit.unwrap_err().kind() == MonitorErrorKind::Lost);
    let why = wait(&mut events, |kind| match kind {
        EventKind::Shutdown { guest: false, reason } => Some(reason),
        _ => None,
    });
    assert_eq!(why.await, ShutdownCause::HostQmpQuit);
    assert_eq!(events.next().await.unwrap_err().kind(), MonitorErrorKind::Lost);
    assert_eq!(qmp.cont().await.unwrap_err().kind(), MonitorErrorKind::Lost);
}

#[tokio::test]
async fn out_of_band_commands_pass_a_hung_main_loop() {
    if !have_qemu("out_of_band_commands_pass_a_hung_main_loop") {
        return;
    }
    let vm = Vm::start(&[]).await;
    let qmp = &vm.qmp;
    assert!(qmp.has_out_of_band());
    // An NBD server that accepts and says nothing: QEMU's main loop waits for its greeting.
    let socket = vm.file("silent");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let node = NewNode::Nbd(NbdNode {
        node_name: "silent".to_owned(),
        server: SocketAddress::Unix(socket),
        export: "x".to_owned(),
        reconnect_delay: None,
        open_timeout: None,
    });
    let add = qmp.blockdev_add(&node);
    let probe = async {
        let (silent, _) = listener.accept().await.unwrap();
        let hung = qmp.within(Duration::from_millis(200)).query_status().await.unwrap_err();
        assert_eq!(hung.kind(), MonitorErrorKind::Timeout);
        for refused in [qmp.migrate_pause().await, qmp.migrate_recover("unix:/nowhere").await] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), MonitorErrorKind::Refused(ErrorClass::Generic));
            assert!(error.to_string().contains("postcopy"), "{error}");
        }
        drop(silent);
    };
    let (added, ()) = tokio::join!(add, probe);
    assert!(matches!(added.unwrap_err().kind(), MonitorErrorKind::Refused(_)));
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::PreLaunch, "it goes on");
}

/// The event `completed` comes a moment before the machine's own state follows.
async fn becomes(qmp: &Qmp, state: RunState) {
    for _ in 0..3000 {
        if qmp.query_status().await.unwrap().status == state {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the machine does not become {state}");
}

fn on(capability: MigrationCapability) -> CapabilityState {
    CapabilityState { capability, state: true }
}

#[tokio::test]
async fn a_migration_is_slowed_cancelled_paused_and_completed() {
    if !have_qemu("a_migration_is_slowed_cancelled_paused_and_completed") {
        return;
    }
    let vm = Vm::start(&[]).await;
    let qmp = &vm.qmp;
    assert_eq!(qmp.query_migrate().await.unwrap().status, None);
    let capabilities = [on(MigrationCapability::Events), on(MigrationCapability::PauseBeforeSwitchover)];
    qmp.migrate_set_capabilities(&capabilities).await.unwrap();
    let states = qmp.query_migrate_capabilities().await.unwrap();
    assert!(capabilities.iter().all(|capability| states.contains(capability)));
    assert!(states.contains(&CapabilityState { capability: MigrationCapability::Multifd, state: false }));
    let parameters = MigrationParameters {
        max_bandwidth: Some(10_000),
        downtime_limit: Some(50),
        multifd_channels: Some(3),
        multifd_compression: Some(MultifdCompression::None),
        announce_rounds: Some(0),
        cpu_throttle_initial: Some(30),
        max_postcopy_bandwidth: Some(1 << 30),
        ..MigrationParameters::default()
    };
    qmp.migrate_set_parameters(&parameters).await.unwrap();
    let set = qmp.query_migrate_parameters().await.unwrap();
    assert_eq!(set.max_bandwidth, Some(10_000));
    assert_eq!((set.downtime_limit, set.multifd_channels), (Some(50), Some(3)));
    assert_eq!((set.announce_rounds, set.cpu_throttle_initial), (Some(0), Some(30)));

    let mut events = qmp.subscribe();
    let to = MigrationAddress::Uri("exec:cat >/dev/null".to_owned());
    qmp.migrate(&to, false).await.unwrap();
    migration_reaches(&mut events, MigrationStatus::Active).await;
    let information = qmp.query_migrate().await.unwrap();
    assert_eq!(information.status, Some(MigrationStatus::Active));
    let ram = information.ram.unwrap();
    assert!(ram.total >= 64 << 20 && ram.remaining > 0 && ram.page_size == 4096, "{ram:?}");
    let again = qmp.migrate(&to, false).await.unwrap_err();
    assert!(matches!(again.kind(), MonitorErrorKind::Refused(_)), "{again}");
    qmp.migrate_cancel().await.unwrap();
    migration_reaches(&mut events, MigrationStatus::Cancelled).await;
    assert_eq!(qmp.query_migrate().await.unwrap().status, Some(MigrationStatus::Cancelled));
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::PreLaunch, "nothing changed");

    let fast = MigrationParameters { max_bandwidth: Some(0), ..MigrationParameters::default() };
    qmp.migrate_set_parameters(&fast).await.unwrap();
    let wrong = qmp.migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap_err();
    assert!(matches!(wrong.kind(), MonitorErrorKind::Refused(_)), "{wrong}");
    qmp.cont().await.unwrap();
    qmp.migrate(&to, false).await.unwrap();
    let mut passes = 0;
    wait(&mut events, |kind| {
        passes += u32::from(matches!(kind, EventKind::MigrationPass(_)));
        (kind == EventKind::Migration(MigrationStatus::PreSwitchover)).then_some(())
    })
    .await;
    assert!(passes > 0);
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::FinishMigrate);
    qmp.migrate_continue(&MigrationStatus::PreSwitchover).await.unwrap();
    migration_reaches(&mut events, MigrationStatus::Completed).await;
    let information = qmp.query_migrate().await.unwrap();
    assert!(information.status.unwrap().is_final());
    assert!(information.total_time.is_some() && information.downtime.is_some());
    assert!(information.ram.unwrap().normal_bytes > 0);
    becomes(qmp, RunState::PostMigrate).await;
}

#[tokio::test]
async fn a_guest_arrives_over_a_channel() {
    if !have_qemu("a_guest_arrives_over_a_channel") {
        return;
    }
    let source = Vm::start(&[]).await;
    let destination = Vm::start(&["-incoming", "defer"]).await;
    let events_on = [on(MigrationCapability::Events)];
    source.qmp.migrate_set_capabilities(&events_on).await.unwrap();
    let address = SocketAddress::Unix(destination.file("in.sock"));
    assert_eq!(destination.qmp.query_status().await.unwrap().status, RunState::InMigrate);
    let (channel, uri) = (MigrationAddress::Channel(address), destination.file("in.sock"));
    // QEMU 8.2 and later know channels.
    let version = destination.qmp.version();
    let channels = (version.major, version.minor) >= (8, 2);
    let at = if channels { channel } else { MigrationAddress::Uri(format!("unix:{}", uri.display())) };
    let stay = ((version.major, version.minor) >= (9, 1)).then_some(false);
    destination.qmp.migrate_incoming(&at, stay).await.unwrap();
    let mut events = source.qmp.subscribe();
    let mut resumed = destination.qmp.subscribe();
    source.qmp.cont().await.unwrap();
    source.qmp.migrate(&at, false).await.unwrap();
    migration_reaches(&mut events, MigrationStatus::Completed).await;
    // It was started with `-S`: the destination waits to be told.
    destination.qmp.cont().await.unwrap();
    wait(&mut resumed, |kind| (kind == EventKind::Resume).then_some(())).await;
    becomes(&source.qmp, RunState::PostMigrate).await;
    assert!(destination.qmp.query_status().await.unwrap().running);
}

#[tokio::test]
async fn the_dirty_rate_is_measured() {
    if !have_qemu("the_dirty_rate_is_measured") {
        return;
    }
    let vm = Vm::start(&[]).await;
    let qmp = &vm.qmp;
    assert_eq!(qmp.query_dirty_rate().await.unwrap().status, DirtyRateStatus::Unstarted);
    qmp.calc_dirty_rate(&DirtyRateRequest { calc_time: 1, sample_pages: Some(512), mode: None })
        .await
        .unwrap();
    for _ in 0..600 {
        let rate = qmp.query_dirty_rate().await.unwrap();
        if rate.status == DirtyRateStatus::Measured {
            assert_eq!((rate.dirty_rate, rate.calc_time), (Some(0), 1), "a stopped guest dirties nothing");
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no result in a minute");
}

fn raw(name: &str, file: &Path) -> NewNode {
    NewNode::Raw(ImageNode {
        node_name: name.to_owned(),
        file: file.to_owned(),
        read_only: false,
        backing: None,
    })
}

const DISK: usize = 4 << 20;

#[tokio::test]
async fn a_disk_is_mirrored_to_another_qemu() {
    if !have_qemu("a_disk_is_mirrored_to_another_qemu") {
        return;
    }
    let (source, destination) = (Vm::start(&[]).await, Vm::start(&[]).await);
    let content: Vec<u8> = (0..DISK).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect();
    fs::write(source.file("disk"), &content).unwrap();
    fs::write(destination.file("disk"), vec![0; DISK]).unwrap();
    source.qmp.blockdev_add(&raw("drive0", &source.file("disk"))).await.unwrap();
    destination.qmp.blockdev_add(&raw("drive0", &destination.file("disk"))).await.unwrap();
    let server = SocketAddress::Unix(destination.file("nbd.sock"));
    destination.qmp.nbd_server_start(&server, 0).await.unwrap();
    let export = NbdExport {
        id: "exp0".to_owned(),
        node_name: "drive0".to_owned(),
        name: "drive0".to_owned(),
        writable: true,
        bitmaps: Vec::new(),
    };
    destination.qmp.block_export_add(&export).await.unwrap();
    let exports = destination.qmp.query_block_exports().await.unwrap();
    assert_eq!((exports[0].id.as_str(), exports[0].shutting_down), ("exp0", false));

    let target = NbdNode {
        node_name: "target".to_owned(),
        server,
        export: "drive0".to_owned(),
        reconnect_delay: Some(0),
        open_timeout: Some(5),
    };
    source.qmp.blockdev_add(&NewNode::Nbd(target)).await.unwrap();
    let mut events = source.qmp.subscribe();
    let mirror = Mirror {
        job_id: "mirror0".to_owned(),
        device: "drive0".to_owned(),
        target: "target".to_owned(),
        sync: SyncMode::Full,
        copy_mode: None,
        on_source_error: Some(OnError::Stop),
        on_target_error: Some(OnError::Stop),
        speed: None,
        granularity: Some(65_536),
        filter_node_name: Some("mirror0-filter".to_owned()),
    };
    source.qmp.blockdev_mirror(&mirror).await.unwrap();
    let ready = wait(&mut events, |kind| match kind {
        EventKind::JobReady(progress) => Some(progress),
        _ => None,
    });
    assert_eq!(ready.await.device, "mirror0");
    let jobs = source.qmp.query_block_jobs().await.unwrap();
    assert_eq!((jobs.len(), &jobs[0].kind, jobs[0].ready), (1, &JobType::Mirror, true));
    source.qmp.block_job_cancel("mirror0", false).await.unwrap();
    let done = wait(&mut events, |kind| match kind {
        EventKind::JobCompleted(progress) => Some(progress),
        _ => None,
    });
    assert_eq!(done.await.error, None);
    // The job lets go of its nodes after the event that says so.
    wait(&mut events, |kind| match kind {
        EventKind::JobStatusChange { status, .. } => (status.as_str() == "null").then_some(()),
        _ => None,
    })
    .await;
    source.qmp.blockdev_del("target").await.unwrap();
    let mut events = destination.qmp.subscribe();
    destination.qmp.block_export_del("exp0", ExportRemoval::Hard).await.unwrap();
    wait(&mut events, |kind| (kind == EventKind::ExportDeleted { id: "exp0".to_owned() }).then_some(()))
        .await;
    destination.qmp.nbd_server_stop().await.unwrap();
    assert!(fs::read(destination.file("disk")).unwrap() == content);
}

#[tokio::test]
async fn a_snapshot_is_served_while_the_guest_may_write() {
    let test = "a_snapshot_is_served_while_the_guest_may_write";
    if !have_qemu(test) || !have("qemu", "qemu-img", test) {
        return;
    }
    let vm = Vm::start(&[]).await;
    let qmp = &vm.qmp;
    for name in ["disk", "overlay"] {
        novaferry_hypervisor::qemu_img::create_qcow2(&vm.file(name), DISK as u64).await.unwrap();
    }
    let qcow2 = |name: &str, file: &str, backing: Option<&str>| {
        NewNode::Qcow2(ImageNode {
            node_name: name.to_owned(),
            file: vm.file(file),
            read_only: false,
            backing: backing.map(str::to_owned),
        })
    };
    qmp.blockdev_add(&qcow2("drive0", "disk", None)).await.unwrap();
    let bitmap = |name: &str| BitmapName { node: "drive0".to_owned(), name: name.to_owned() };
    let new = |name: &str, persistent| NewBitmap {
        node: "drive0".to_owned(),
        name: name.to_owned(),
        granularity: Some(65_536),
        persistent,
        disabled: false,
    };
    qmp.bitmap_add(&new("b0", true)).await.unwrap();
    qmp.blockdev_add(&qcow2("fleece0", "overlay", Some("drive0"))).await.unwrap();
    let backup = Backup {
        job_id: "fleece".to_owned(),
        device: "drive0".to_owned(),
        target: "fleece0".to_owned(),
        sync: SyncMode::None,
    };
    qmp.transaction(&[
        Action::BlockDirtyBitmapAdd(new("b1", false)),
        Action::BlockDirtyBitmapDisable(bitmap("b0")),
        Action::BlockdevBackup(backup),
    ])
    .await
    .unwrap();
    let server = SocketAddress::Unix(vm.file("nbd.sock"));
    qmp.nbd_server_start(&server, 0).await.unwrap();
    let export = NbdExport {
        id: "e0".to_owned(),
        node_name: "fleece0".to_owned(),
        name: "snapshot".to_owned(),
        writable: false,
        bitmaps: vec![bitmap("b0")],
    };
    qmp.block_export_add(&export).await.unwrap();
    let nodes = qmp.query_block_nodes().await.unwrap();
    let drive = nodes.iter().find(|node| node.node_name.as_deref() == Some("drive0")).unwrap();
    assert_eq!((drive.driver.as_str(), drive.image.virtual_size), ("qcow2", DISK as u64));
    let found =
        |name: &str| drive.dirty_bitmaps.iter().find(|bitmap| bitmap.name.as_deref() == Some(name)).unwrap();
    assert!(found("b1").recording && !found("b0").recording && found("b0").persistent);
    assert_eq!((found("b0").granularity, found("b0").count), (65_536, 0));

    let failed =
        [Action::BlockDirtyBitmapRemove(bitmap("b1")), Action::BlockDirtyBitmapRemove(bitmap("missing"))];
    qmp.transaction(&failed).await.unwrap_err();
    qmp.bitmap_clear(&bitmap("b1")).await.unwrap();
    let mut events = qmp.subscribe();
    qmp.block_export_del("e0", ExportRemoval::Safe).await.unwrap();
    wait(&mut events, |kind| matches!(kind, EventKind::ExportDeleted { .. }).then_some(())).await;
    qmp.block_job_cancel("fleece", false).await.unwrap();
    wait(&mut events, |kind| matches!(kind, EventKind::JobCancelled(_)).then_some(())).await;
    for name in ["b0", "b1"] {
        qmp.bitmap_remove(&bitmap(name)).await.unwrap();
    }
}
