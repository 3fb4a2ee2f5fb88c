//! Before anything moves: describe the VM, reach the destination, measure the link, have it make room.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::qmp::words::MigrationStatus;
use hypervisor::specification::{Derived, NetworkBackend, VmSpecification};
use hypervisor::vmd::VmdClient;

use super::facts::describe;
use super::plan::Watch;
use super::{Owner, StepResult, chain, converge};
use crate::migrate::layer2::{self, Segment};
use crate::migrate::message::{FromSource, Prepare, VERSION};
use crate::migrate::mode::Mode;
use crate::migrate::preflight::{Finding, not_migratable, objection};
use crate::migrate::record::Role;

/// QEMU's version at the source, and the features of the VM's processor model that it does not have.
type Runs = ((u32, u32, u32), Vec<String>);

impl Owner {
    /// Asks the destination to make room. Its answer is a message.
    pub(super) async fn prepare(&mut self) -> StepResult {
        let (derived, (qemu, cpu_lacks), watch) = match self.record.mode {
            Mode::Cold => self.look_at_stopped().await?,
            Mode::Live | Mode::Warm => self.look_at_running().await?,
        };
        if !self.job.options.dry_run
            && let Err(error) = VmdClient::connect(&self.context.vmd).await
        {
            let fix = "start novaferry-vmd on this host: it keeps the mark that the old copy may not run";
            self.findings.push(Finding::blocking("vmd", chain(&error), fix));
        }
        self.publish(None);
        if let Some(objection) = objection(&self.findings)
            && !self.job.options.dry_run
        {
            return Err(objection);
        }
        let to = self.ways.borrow().to.clone();
        let (tunnel, way) = self.context.dial(&self.job.dial).reach(&to, self.job.migration).await?;
        self.record.peer = tunnel.peer().to_string();
        self.plan(&tunnel, watch).await?;
        self.take_tunnel(tunnel, way);
        let generation = self.context.records.generation(&self.job.vm).map_err(|error| error.chain())?;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let live = self.record.mode == Mode::Live;
        let prepare = Prepare {
            version: VERSION,
            specification: derived.specification.clone(),
            generation: generation.0,
            qemu,
            cpu_lacks,
            mode: self.record.mode,
            multifd: if live { self.job.options.multifd } else { 0 },
            slots: if live { self.job.options.slots } else { 0 },
            postcopy: live && self.job.options.postcopy,
            clock_ms: u64::try_from(clock.as_millis()).unwrap_or(0),
            dry_run: self.job.options.dry_run,
            pool: self.job.options.pool.clone(),
            reconnect_ms: u64::try_from(self.job.options.reconnect.as_millis()).unwrap_or(u64::MAX),
            segments: segments(&derived.specification),
            traceparent: self.job.traceparent.clone(),
        };
        self.derived = Some(derived);
        self.tell(&FromSource::Prepare(Box::new(prepare))).await?;
        Ok(None)
    }

    /// What runs, and by which QEMU.
    async fn look_at_running(&mut self) -> Result<(Derived, Runs, Watch), String> {
        let qmp = self.monitor().await?;
        let status = qmp.query_status().await.map_err(|error| chain(&error))?;
        if let Role::Source { was_paused, .. } = &mut self.record.role {
            *was_paused = !status.running;
        }
        let pid = self.job.process.ok_or("the VM's process is not known; is its qemu.pid there?")?.pid;
        let derived = describe(&self.job.vm, pid, self.job.folder.as_deref(), &qmp).await?;
        self.findings = derived.findings.iter().cloned().map(Finding::from).collect();
        if self.record.mode == Mode::Live {
            self.findings.extend(converge::finding(&qmp));
        }
        let migration = qmp.query_migrate().await.map_err(|error| chain(&error))?;
        if migration.status.is_some_and(|status| !status.is_final() && status != MigrationStatus::None) {
            let fix = "wait for it, or end it with migrate_cancel";
            self.findings.push(Finding::blocking("migrating", "QEMU migrates this VM already", fix));
        }
        let live = self.record.mode == Mode::Live;
        if live {
            self.findings.extend(not_migratable(migration.blocked_reasons.as_deref().unwrap_or_default()));
        } else {
            self.prepare_warm(&qmp, pid, status.running).await?;
        }
        let watch = Watch::running(&qmp, pid, &derived, live, &self.job.options).await?;
        let version = qmp.version();
        let definitions = qmp.query_cpu_definitions().await.map_err(|error| chain(&error))?;
        let model = &derived.specification.cpu.model;
        let lacks = definitions.into_iter().find(|one| one.name == *model);
        let lacks = lacks.and_then(|one| one.unavailable_features).unwrap_or_default();
        Ok((derived, ((version.major, version.minor, version.micro), lacks), watch))
    }

    /// What would run.
    async fn look_at_stopped(&mut self) -> Result<(Derived, Runs, Watch), String> {
        let derived = self.describe_stopped().await?;
        self.findings.extend(derived.findings.iter().cloned().map(Finding::from));
        let watch = Watch::stopped(&derived);
        Ok((derived, Runs::default(), watch))
    }
}

/// What is known here of the bridges of the VM's cards.
fn segments(specification: &VmSpecification) -> Vec<Segment> {
    let bridges = specification.networks().filter_map(|card| match &card.backend {
        NetworkBackend::Bridge { name } => Some(name.as_str()),
        NetworkBackend::User {} | NetworkBackend::Tap {} | NetworkBackend::Disconnected {} => None,
    });
    let bridges: BTreeSet<&str> = bridges.collect();
    bridges.into_iter().filter_map(layer2::segment).take(layer2::MAX_SEGMENTS).collect()
}
