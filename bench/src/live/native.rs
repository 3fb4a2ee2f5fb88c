//! QEMU alone: its mirror into the destination's NBD export, its migration with multifd, driven as the agents drive it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest::Vm;
use hypervisor::qmp::words::{
    CopyMode, ExportRemoval, JobStatus, MigrationCapability, MigrationStatus, OnError, SyncMode,
};
use hypervisor::qmp::{
    CapabilityState, EventKind, Events, MigrationAddress, MigrationParameters, Mirror, NbdExport, NbdNode,
    NewNode, Qmp, SocketAddress,
};
use link::Side;
use serde_json::{Value, json};

use super::certificates;
use super::outcome::{Moved, Step};
use super::relay::Relay;
use super::stage::{Mark, PATIENCE, Stage};

/// How long QEMU may take to answer.
const ANSWERS: Duration = Duration::from_secs(20);
/// As the agents set it.
const UNLIMITED: u64 = 1 << 40;
/// Longest pause, milliseconds: the agents' default.
const DOWNTIME: u64 = 300;
/// Connections for memory, as the agents' default.
const MULTIFD: u8 = 2;
/// Ports at the destination; its namespace has all ports to itself.
const RAM_PORT: u16 = 4444;
const NBD_PORT: u16 = 10809;
/// Names in QEMU.
const NODE: &str = "drive0";
const TARGET: &str = "target";
const JOB: &str = "mirror";
const EXPORT: &str = "export";
const CREDENTIALS: &str = "tls0";

/// Where the streams go to, and come in.
struct Paths {
    ram: [MigrationAddress; 2],
    nbd: [SocketAddress; 2],
    /// Counters of memory and disk, where nothing else counts.
    relays: Option<[Relay; 2]>,
}

/// Moves a guest, in the new folder `folder`.
pub(super) fn run(stage: &Stage<'_>, folder: &Path) -> Result<Moved> {
    let source = stage.source(&folder.join("s"))?;
    let settings = stage.settings().destination();
    let destination = stage.start(&folder.join("d"), settings, Side::B)?;
    let tls = stage.plan.tls.then(|| folder.join("tls"));
    if let Some(tls) = &tls {
        certificates::make(tls)?;
    }
    stage.runtime.block_on(migrate(stage, folder, tls.as_deref(), &source, &destination))
}

async fn connect(vm: &Vm) -> Result<Qmp> {
    Qmp::connect(&vm.layout().qmp(), ANSWERS).await.context("speak to QEMU")
}

fn paths(stage: &Stage<'_>, folder: &Path) -> Result<Paths> {
    if stage.link.is_some() {
        let host = Side::B.address().to_string();
        let ram = MigrationAddress::Uri(format!("tcp:{host}:{RAM_PORT}"));
        let nbd = SocketAddress::Inet { host, port: NBD_PORT };
        return Ok(Paths { ram: [ram.clone(), ram], nbd: [nbd.clone(), nbd], relays: None });
    }
    let socket = |name: &str| folder.join(name);
    let relays =
        [Relay::start(&socket("ram0"), socket("ram1"))?, Relay::start(&socket("nbd0"), socket("nbd1"))?];
    let uri = |name: &str| MigrationAddress::Uri(format!("unix:{}", socket(name).display()));
    let nbd = ["nbd0", "nbd1"].map(|name| SocketAddress::Unix(socket(name)));
    Ok(Paths { ram: [uri("ram0"), uri("ram1")], nbd, relays: Some(relays) })
}

async fn migrate(
    stage: &Stage<'_>,
    folder: &Path,
    tls: Option<&Path>,
    source: &Vm,
    destination: &Vm,
) -> Result<Moved> {
    let paths = paths(stage, folder)?;
    let [from, to] = [connect(source).await?, connect(destination).await?];
    receive(&to, &paths, tls, stage).await.context("prepare the destination's QEMU")?;
    set_up(&from, tls.map(|folder| (folder, "client")), stage).await.context("prepare the source's QEMU")?;

    let processes = [Some(source.pid()), Some(destination.pid())];
    let began = stage.mark(&processes)?;
    let mut course = Course { began: began.clone(), steps: Vec::new() };
    let mut events = from.subscribe();
    mirror(&from, &paths.nbd[0], tls.is_some()).await.context("mirror the disk")?;
    await_event(&mut events, |event| matches!(event, EventKind::JobReady(job) if job.device == JOB))
        .await
        .context("mirror the disk")?;
    course.step("mirror-ready");
    let in_step = stage.mark(&processes)?;

    from.migrate(&paths.ram[0], false).await.context("migrate")?;
    await_status(&mut events, &from, &MigrationStatus::PreSwitchover).await?;
    course.step("paused");
    from.block_job_cancel(JOB, false).await.context("end the mirror")?;
    let gone = |event: &EventKind| matches!(event, EventKind::JobStatusChange { id, status: JobStatus::Null } if id == JOB);
    await_event(&mut events, gone).await.context("end the mirror")?;
    from.blockdev_del(TARGET).await.context("let the mirror's target go")?;
    course.step("drained");
    from.migrate_continue(&MigrationStatus::PreSwitchover).await.context("continue the migration")?;
    await_status(&mut events, &from, &MigrationStatus::Completed).await?;
    course.step("completed");
    Stage::arrived(destination.serial())?;
    let done = stage.mark(&processes)?;
    let info = from.query_migrate().await.context("ask for the migration's figures")?;
    to.block_export_del(EXPORT, ExportRemoval::Hard).await.context("close the destination's export")?;

    let (first, report) = Stage::check(source.serial(), destination.serial())?;
    let ram = info.ram.unwrap_or_default();
    let counted = |from: &Mark, to: &Mark| to.link_since(from).unwrap_or(0);
    let (ram_wire, disk_wire) = match &paths.relays {
        Some([ram, disk]) => (ram.bytes(), disk.bytes()),
        // The little that the mirror does while the memory moves counts as memory.
        None => (counted(&in_step, &done), counted(&began, &in_step)),
    };
    Ok(Moved {
        seconds: first.duration_since(began.at).as_secs_f64(),
        stream_seconds: course.between("mirror-ready", "completed").unwrap_or_default(),
        downtime_ms: report.downtimes.first().copied().unwrap_or_default().as_secs_f64() * 1e3,
        qemu_downtime_ms: info.downtime,
        ram_plain: ram.transferred,
        ram_wire,
        disk_wire,
        link_bytes: done.link_since(&began),
        again: None,
        rounds: ram.dirty_sync_count,
        cpu_agents: 0.0,
        cpu_qemu: done.cpu_since(&began, 0) + done.cpu_since(&began, 1),
        cpu_bench: done.own_since(&began),
        heartbeats: report.in_file,
        steps: course.steps,
    })
}

/// What happened when.
struct Course {
    began: Mark,
    steps: Vec<Step>,
}

impl Course {
    fn step(&mut self, name: &str) {
        let ms = self.began.at.elapsed().as_secs_f64() * 1e3;
        self.steps.push(Step { host: "source", name: name.to_owned(), ms });
    }

    /// Seconds.
    fn between(&self, first: &str, second: &str) -> Option<f64> {
        let at = |name: &str| self.steps.iter().find(|step| step.name == name).map(|step| step.ms);
        Some((at(second)? - at(first)?) / 1e3)
    }
}

/// What both ends must agree on, and credentials.
async fn set_up(qmp: &Qmp, tls: Option<(&Path, &str)>, stage: &Stage<'_>) -> Result<()> {
    let mut capabilities = vec![
        MigrationCapability::ReturnPath,
        MigrationCapability::PauseBeforeSwitchover,
        MigrationCapability::Events,
        MigrationCapability::Multifd,
    ];
    if stage.plan.throttle {
        capabilities.push(MigrationCapability::AutoConverge);
    }
    let states: Vec<CapabilityState> =
        capabilities.into_iter().map(|capability| CapabilityState { capability, state: true }).collect();
    qmp.migrate_set_capabilities(&states).await.context("set capabilities")?;
    let mut parameters = MigrationParameters {
        max_bandwidth: Some(UNLIMITED),
        downtime_limit: Some(DOWNTIME),
        multifd_channels: Some(MULTIFD),
        ..MigrationParameters::default()
    };
    if let Some((folder, endpoint)) = tls {
        let object = json!({
            "qom-type": "tls-creds-x509", "id": CREDENTIALS, "endpoint": endpoint,
            "dir": folder.join(endpoint), "verify-peer": true,
        });
        qmp.execute::<Value>("object-add", &object).await.context("give QEMU its certificate")?;
        parameters.tls_creds = Some(CREDENTIALS.to_owned());
        parameters.tls_hostname = (endpoint == "client").then(|| certificates::SERVER.to_owned());
    }
    qmp.migrate_set_parameters(&parameters).await.context("set parameters")
}

async fn receive(qmp: &Qmp, paths: &Paths, tls: Option<&Path>, stage: &Stage<'_>) -> Result<()> {
    set_up(qmp, tls.map(|folder| (folder, "server")), stage).await?;
    match (&paths.nbd[1], tls) {
        (SocketAddress::Inet { host, port }, Some(_)) => {
            let address = json!({ "type": "inet", "data": { "host": host, "port": port.to_string() } });
            let arguments = json!({ "addr": address, "tls-creds": CREDENTIALS });
            qmp.execute::<Value>("nbd-server-start", &arguments).await.context("start the NBD server")?;
        }
        (address, _) => qmp.nbd_server_start(address, 0).await.context("start the NBD server")?,
    }
    let export = NbdExport {
        id: EXPORT.to_owned(),
        node_name: NODE.to_owned(),
        name: NODE.to_owned(),
        writable: true,
        bitmaps: Vec::new(),
    };
    qmp.block_export_add(&export).await.context("export the disk")?;
    qmp.migrate_incoming(&paths.ram[1], None).await.context("listen for the migration")
}

async fn mirror(qmp: &Qmp, target: &SocketAddress, tls: bool) -> Result<()> {
    match (target, tls) {
        (SocketAddress::Inet { host, port }, true) => {
            let node = json!({
                "driver": "nbd", "node-name": TARGET, "export": NODE,
                "server": { "type": "inet", "host": host, "port": port.to_string() },
                "tls-creds": CREDENTIALS, "tls-hostname": certificates::SERVER,
            });
            qmp.execute::<Value>("blockdev-add", &node).await.context("connect to the export")?;
        }
        _ => {
            let node = NbdNode {
                node_name: TARGET.to_owned(),
                server: target.clone(),
                export: NODE.to_owned(),
                reconnect_delay: None,
                open_timeout: None,
            };
            qmp.blockdev_add(&NewNode::Nbd(node)).await.context("connect to the export")?;
        }
    }
    let mirror = Mirror {
        job_id: JOB.to_owned(),
        device: NODE.to_owned(),
        target: TARGET.to_owned(),
        sync: SyncMode::Full,
        copy_mode: Some(CopyMode::Background),
        on_source_error: Some(OnError::Report),
        on_target_error: Some(OnError::Report),
        speed: None,
        granularity: None,
        filter_node_name: None,
    };
    qmp.blockdev_mirror(&mirror).await.context("start the mirror")
}

/// Waits for an event. Jobs and migrations that fail end the wait.
async fn await_event(events: &mut Events, wanted: impl Fn(&EventKind) -> bool) -> Result<()> {
    let search = async {
        loop {
            let event = events.next().await.context("listen to QEMU")?.kind;
            match &event {
                EventKind::JobCompleted(job) if job.error.is_some() => {
                    bail!("a job failed: {}", job.error.as_deref().unwrap_or_default());
                }
                EventKind::Migration(status @ (MigrationStatus::Failed | MigrationStatus::Cancelled)) => {
                    bail!("the migration is {}", status.as_str());
                }
                _ => {}
            }
            if wanted(&event) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.context("QEMU does not go on")?
}

async fn await_status(events: &mut Events, qmp: &Qmp, wanted: &MigrationStatus) -> Result<()> {
    let waited =
        await_event(events, |event| matches!(event, EventKind::Migration(status) if status == wanted));
    let Err(error) = waited.await else { return Ok(()) };
    let why = qmp.query_migrate().await.ok().and_then(|info| info.error_desc);
    Err(error).with_context(|| format!("QEMU says: {}", why.as_deref().unwrap_or("nothing")))
}
