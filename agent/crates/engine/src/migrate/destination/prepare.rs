//! Making room: findings, generation, disks, a QEMU that waits.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::nbd::Address;
use hypervisor::nbd::client::{Client, Options};
use hypervisor::qmp::{MigrationAddress, MigrationParameters, NbdExport, Qmp, SocketAddress};
use hypervisor::specification::{
    Accelerator, BootFile, DiskFormat, DiskTarget, Firmware, HostMapping, NamedHostFile, VmSpecification,
    inventory, resolve,
};
use hypervisor::vmd::{VmState, VmdClient};
use session::cutover::DestinationState;
use tunnel::Channel;
use volume::{ByteLen, Generation};
use wire::{ChannelHello, ChannelKind};

use super::images::{relax, start_of};
use super::{DiskRun, Owner, Sockets, qemu, stranger};
use crate::migrate::contact::arrivals;
use crate::migrate::disk;
use crate::migrate::host_cpu::host_cpu;
use crate::migrate::layer2;
use crate::migrate::leaves::LiveLeaves;
use crate::migrate::message::{FromDestination, Prepare, Probe, VERSION};
use crate::migrate::mode::Mode;
use crate::migrate::preflight::{Finding, clock_skew, disk_room, memory_room, objection};
use crate::migrate::ram::RamReceiver;
use crate::migrate::record::Role;
use crate::migrate::source::{capabilities, chain};
use crate::pool::Pool;

/// Most disks of a VM.
const MAX_DISKS: usize = 64;
/// Most multifd channels.
const MAX_MULTIFD: u8 = 16;

impl Owner {
    /// Who asks, if we understand each other.
    fn welcome(&self, version: u32) -> Result<String, String> {
        if version != VERSION {
            return Err(format!(
                "the source speaks version {version} of migrations and this host version {VERSION}; use the same release"
            ));
        }
        let peer = self.record.peer.clone();
        if !self.context.policy.hears(&peer) {
            return Err(stranger(&peer));
        }
        Ok(peer)
    }

    /// A piece of the measurement of the link.
    pub(super) async fn probed(&mut self, probe: &Probe) {
        match self.welcome(probe.version) {
            Ok(_) if !probe.answer => {}
            Ok(_) => self.tell(&FromDestination::Probed { nth: probe.nth }).await,
            Err(reason) => {
                tracing::warn!(migration = %self.migration, %reason, "a migration is refused");
                self.tell(&FromDestination::Refused { reason, findings: Vec::new() }).await;
                self.over = !self.prepared;
            }
        }
    }

    /// Makes room. True when the migration may begin, false after a dry run; an error is the refusal.
    pub(super) async fn prepare(&mut self, prepare: Prepare) -> Result<bool, String> {
        let peer = self.welcome(prepare.version)?;
        let specification = prepare.specification.clone();
        specification.check().map_err(|error| chain(&error))?;
        self.context.policy.admits(self.migration, &peer, &specification.id)?;
        if prepare.postcopy && prepare.multifd > 0 {
            return Err("post-copy needs a single stream: leave multifd out".to_owned());
        }
        if prepare.multifd > MAX_MULTIFD || specification.carried().count() > MAX_DISKS {
            return Err(format!("at most {MAX_MULTIFD} multifd channels and {MAX_DISKS} disks are taken"));
        }
        self.record.vm.clone_from(&specification.id);
        self.span = tracing::info_span!(
            "migration", migration = %self.migration, vm = self.record.vm, role = "destination"
        );
        trace::follow(&self.span, prepare.traceparent.as_deref());
        let vm = specification.id.clone();
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        let here = vmd.list().await.map_err(|error| chain(&error))?;
        let runs =
            here.iter().any(|status| status.vm == vm && matches!(status.state, VmState::Running { .. }));
        if runs {
            let evidence = format!("a VM {vm} runs here");
            self.findings.push(Finding::blocking("vm-exists", evidence, "move or stop it first"));
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let here_ms = u64::try_from(clock.as_millis()).unwrap_or(0);
        self.findings.extend(clock_skew(prepare.clock_ms, here_ms));
        if prepare.mode != Mode::Cold {
            self.findings.extend(room(&specification));
        }
        let known = self.context.records.generation(&vm).map_err(|error| error.chain())?;
        let generation = Generation(known.0.max(prepare.generation).saturating_add(1));
        let pool = self.pool(prepare.pool.as_deref())?;
        let (targets, full) = targets(&pool, &specification, generation)?;
        self.findings.extend(full);
        let mut mapping = self.mapping(&specification, targets.clone()).await?;
        self.findings.extend(qemu::look(&vmd, &prepare, &mut mapping).await);
        self.findings.extend(relax(prepare.mode, &specification, &mut mapping));
        let request = match resolve(&specification, &mapping, generation.0, start_of(prepare.mode)) {
            Ok((request, found)) => {
                self.findings.extend(found.into_iter().map(Finding::from));
                Some(request)
            }
            Err(found) => {
                self.findings.extend(found.into_iter().map(Finding::from));
                None
            }
        };
        let (bridges, default) = (&self.context.policy.bridges, self.context.policy.default_bridge.as_ref());
        let networks = specification.networks();
        self.findings.extend(layer2::findings(
            networks,
            &prepare.segments,
            bridges,
            default,
            layer2::segment,
        ));
        if prepare.dry_run {
            let findings = self.findings.clone();
            let message = FromDestination::Prepared { generation: 0, key: String::new(), findings };
            self.tell(&message).await;
            return Ok(false);
        }
        if let Some(objection) = objection(&self.findings) {
            return Err(objection);
        }
        let request = request.ok_or("the VM cannot be bound to this host")?;
        // From here on something is made: the record says so first.
        self.set_patience(prepare.reconnect_ms);
        self.record.generation = generation.0;
        self.record.mode = prepare.mode;
        self.record.postcopy = prepare.postcopy;
        if let Role::Destination { disks, .. } = &mut self.record.role {
            *disks = targets.values().map(|target| target.path.display().to_string()).collect();
        }
        self.pool = pool.name().to_owned();
        self.specification = Some(specification.clone());
        self.context.records.raise_generation(&vm, generation).map_err(|error| error.chain())?;
        self.save().map_err(|error| error.chain())?;
        for disk in specification.carried() {
            if let Some(target) = targets.get(disk.id) {
                make_disk(target, disk.size).await?;
            }
        }
        if prepare.mode == Mode::Live {
            let status = vmd.start(request).await.map_err(|error| chain(&error))?;
            self.sockets = Some(Sockets::in_folder(&status.sockets));
            self.receive_with(&prepare, &specification, &targets).await?;
        } else {
            if prepare.mode == Mode::Warm {
                self.rehearse(&vmd, &request).await?;
            }
            self.open_images(&specification, &targets).await?;
            self.request = Some(request);
        }
        let key = pool.keys().and_then(|keys| keys.of_owner(&peer)).map_err(|error| error.chain())?;
        self.key_id = key.id().to_string();
        let folder = self.context.records.folder(self.migration).map_err(|error| error.chain())?;
        for disk in specification.carried() {
            let table = reduce::HashKey::from_bytes(*key.as_bytes());
            let leaves =
                LiveLeaves::new(folder.path(), ByteLen(disk.size), table).map_err(|error| error.chain())?;
            self.disks.push(DiskRun { id: disk.id.to_owned(), leaves: Arc::new(leaves) });
        }
        let slots = prepare.slots.min(self.context.policy.max_slots);
        if slots < prepare.slots {
            return Err(format!("at most {slots} pages are kept here for a VM's RAM; ask for fewer"));
        }
        self.ram = Some(RamReceiver::new(slots, self.context.cpu.clone()));
        if let Some(tunnel) = &self.tunnel {
            tunnel.register(generation);
        }
        let findings = self.findings.clone();
        let key = hex(key.as_bytes());
        self.tell(&FromDestination::Prepared { generation: generation.0, key, findings }).await;
        Ok(true)
    }

    fn pool(&self, wanted: Option<&str>) -> Result<Pool, String> {
        let name = wanted.or(self.context.policy.pool.as_deref());
        let name =
            name.ok_or("no pool is set for VMs that come; set `pool` of [migrate_in] in agent.toml there")?;
        let pool = self.context.pools.iter().find(|pool| pool.name() == name);
        let pool = pool.ok_or_else(|| format!("there is no pool {name} at the destination"))?;
        // Whoever says where VMs go, and joins a coordinator, lets it put them there.
        let is_ours = self.context.policy.pool.as_deref() == Some(name);
        if !(is_ours && self.context.policy.expects(self.migration, &self.record.peer)) {
            pool.allow_push(&self.record.peer).map_err(|error| error.to_string())?;
        }
        Ok(pool.clone())
    }

    async fn mapping(
        &self,
        specification: &VmSpecification,
        disks: BTreeMap<String, DiskTarget>,
    ) -> Result<HostMapping, String> {
        let policy = Arc::clone(&self.context.policy);
        let kernel = specification.kernel.iter();
        let boot: Vec<String> = kernel
            .flat_map(|boot| [Some(&boot.kernel), boot.initrd.as_ref()])
            .flatten()
            .map(|file: &BootFile| file.name.clone())
            .collect();
        let firmware: Vec<String> = match &specification.firmware {
            Firmware::Bios { file } => file.iter().cloned().collect(),
            Firmware::Uefi { code, .. } => vec![code.name.clone()],
        };
        let look = |folder: Option<PathBuf>, names: Vec<String>| -> Result<Vec<NamedHostFile>, String> {
            let Some(folder) = folder else { return Ok(Vec::new()) };
            inventory(&folder, names.iter().map(String::as_str))
                .map_err(|error| format!("look into {}: {error}", folder.display()))
        };
        let (boot_folder, firmware_folder) = (policy.boot.clone(), policy.firmware.clone());
        let found = tokio::task::spawn_blocking(move || {
            Ok::<_, String>((look(boot_folder, boot)?, look(firmware_folder, firmware)?))
        });
        let (boot, firmware) =
            found.await.map_err(|error| format!("looking at boot files failed: {error}"))??;
        Ok(HostMapping {
            disks,
            bridges: policy.bridges.clone(),
            default_bridge: policy.default_bridge.clone(),
            boot,
            firmware,
            accelerators: vec![Accelerator::Tcg],
            machines: None,
            host_cpu: host_cpu(),
        })
    }

    /// Sets the waiting QEMU up like the source's, and opens its disks and its ears.
    async fn receive_with(
        &mut self,
        prepare: &Prepare,
        specification: &VmSpecification,
        targets: &BTreeMap<String, DiskTarget>,
    ) -> Result<(), String> {
        let qmp = self.monitor().await?;
        let failed = |error| chain(&error);
        qmp.migrate_set_capabilities(&capabilities(prepare.multifd, prepare.postcopy))
            .await
            .map_err(failed)?;
        let parameters = MigrationParameters {
            multifd_channels: (prepare.multifd > 0).then_some(prepare.multifd),
            // The guest is announced when it runs, by whoever let it run.
            announce_rounds: Some(0),
            ..MigrationParameters::default()
        };
        qmp.migrate_set_parameters(&parameters).await.map_err(failed)?;
        let sockets = self.sockets.clone().ok_or("the VM is not there")?;
        if !targets.is_empty() {
            qmp.nbd_server_start(&SocketAddress::Unix(sockets.nbd.clone()), 0).await.map_err(failed)?;
        }
        for disk in specification.carried() {
            let export = NbdExport {
                id: export_name(disk.id),
                node_name: disk.node,
                name: disk.id.to_owned(),
                writable: true,
                bitmaps: Vec::new(),
            };
            qmp.block_export_add(&export).await.map_err(failed)?;
        }
        let incoming = MigrationAddress::Uri(format!("unix:{}", sockets.incoming.display()));
        qmp.migrate_incoming(&incoming, None).await.map_err(failed)
    }

    /// A channel of the source: a disk's goes to QEMU's export, RAM's to its migration socket.
    pub(super) fn channel(&mut self, epoch: u64, hello: ChannelHello, channel: Channel) {
        // One that comes after a broken one goes to the same byte path.
        if let Some(arrived) = self.arrived.get(&hello.channel) {
            if let Err(error) = arrived.try_send((epoch, channel)) {
                tracing::debug!(channel = hello.channel, %error, "a channel comes to a byte path that has ended");
            }
            return;
        }
        let (arrived, channels) = arrivals((epoch, channel));
        match hello.kind {
            ChannelKind::Ram => {
                let (Some(ram), Some(sockets)) = (self.ram.clone(), self.sockets.clone()) else { return };
                self.carry("the memory's channels", async move {
                    let stream = tokio::net::UnixStream::connect(&sockets.incoming)
                        .await
                        .map_err(|error| format!("QEMU does not take the memory: {error}"))?;
                    ram.carry(stream, channels).await.map_err(|error| chain(&error))
                });
            }
            ChannelKind::Disk => {
                let nth = usize::from(hello.channel.wrapping_sub(256));
                let Some(disk) = self.disks.get(nth) else {
                    tracing::warn!(channel = hello.channel, "a channel of no disk");
                    return;
                };
                let (leaves, cpu) = (Arc::clone(&disk.leaves), self.context.cpu.clone());
                let export = self.export_of(&disk.id);
                self.carry("a disk's channel", async move {
                    let options = Options { contexts: Vec::new(), ..Options::default() };
                    let (socket, name) = export?;
                    let export = Client::connect(&Address::Unix(socket), &name, &options)
                        .await
                        .map_err(|error| chain(&error))?;
                    disk::receive(channels, Arc::new(export), leaves, cpu)
                        .await
                        .map_err(|error| error.chain())
                });
            }
        }
        // Only before the permit another one may come after it.
        if matches!(self.machine.state(), DestinationState::Waiting { .. }) {
            self.arrived.insert(hello.channel, arrived);
        }
    }

    /// Undoes what a refused preparation made.
    pub(super) async fn abandon(&mut self) {
        if self.record.generation > 0 {
            self.discard().await;
        }
    }

    /// QEMU's exports.
    pub(super) async fn close_exports(&self, qmp: &Qmp) -> Result<(), String> {
        use hypervisor::qmp::words::ExportRemoval;
        let exports = qmp.query_block_exports().await.map_err(|error| chain(&error))?;
        for export in exports.iter().filter(|export| export.id.starts_with("novaferry-")) {
            qmp.block_export_del(&export.id, ExportRemoval::Hard).await.map_err(|error| chain(&error))?;
        }
        if let Err(error) = qmp.nbd_server_stop().await {
            tracing::debug!(error = %chain(&error), "QEMU's NBD server is stopped already");
        }
        Ok(())
    }
}

fn export_name(disk: &str) -> String {
    format!("novaferry-{disk}")
}

/// Memory of this host that may be given to guests, against what the VM needs.
fn room(specification: &VmSpecification) -> Option<Finding> {
    let needed = specification.memory.bytes;
    match available_memory() {
        Some(available) => memory_room(needed, available),
        None => Some(Finding::warning(
            "memory",
            format!(
                "the VM has {needed} bytes of RAM; /proc/meminfo, which says what is available, cannot be read"
            ),
            "let the destination's agent read it: ProcSubset=all in its unit, as in the drop-in vms.conf",
        )),
    }
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Files for the disks: of this generation's own names, so that no older copy is ever written over.
fn targets(
    pool: &Pool,
    specification: &VmSpecification,
    generation: Generation,
) -> Result<(BTreeMap<String, DiskTarget>, Option<Finding>), String> {
    let folder = pool.vm_folder(&specification.id).map_err(|error| error.chain())?;
    let mut targets = BTreeMap::new();
    let mut total = 0_u64;
    for disk in specification.carried() {
        total = total.saturating_add(disk.size);
        // A read-only disk is written below its format (`StartRequest::check`).
        let format = if disk.read_only { DiskFormat::Raw } else { disk.format };
        let suffix = match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let path = folder.join(format!("{}-g{}.{suffix}", disk.id, generation.0));
        targets.insert(disk.id.to_owned(), DiskTarget { path, format });
    }
    let free =
        rustix::fs::statvfs(&folder).map_err(|error| format!("look at {}: {error}", folder.display()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    Ok((targets, disk_room(total, free, pool.name())))
}

async fn make_disk(target: &DiskTarget, size: u64) -> Result<(), String> {
    let path: &Path = &target.path;
    match target.format {
        DiskFormat::Raw => {
            let file = std::fs::File::create_new(path)
                .map_err(|error| format!("create {}: {error}", path.display()))?;
            file.set_len(size).map_err(|error| format!("size {}: {error}", path.display()))
        }
        DiskFormat::Qcow2 => {
            hypervisor::qemu_img::create_qcow2(path, size).await.map_err(|error| chain(&error))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}
