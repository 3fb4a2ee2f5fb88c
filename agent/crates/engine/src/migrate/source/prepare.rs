//! Before anything moves: describe the VM, reach the destination, have it make room.

use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::vmd::VmdClient;

use super::facts::describe;
use super::{Owner, StepResult, chain};
use crate::migrate::message::{FromSource, Prepare, VERSION};
use crate::migrate::preflight::{Finding, objection};
use crate::migrate::record::Role;

impl Owner {
    /// Asks the destination to make room. Its answer is a message.
    pub(super) async fn prepare(&mut self) -> StepResult {
        let qmp = self.monitor().await?;
        let status = qmp.query_status().await.map_err(|error| chain(&error))?;
        if let Role::Source { was_paused, .. } = &mut self.record.role {
            *was_paused = !status.running;
        }
        let pid = self.job.process.ok_or("the VM's process is not known; is its qemu.pid there?")?.pid;
        let derived = describe(&self.job.vm, pid, self.job.folder.as_deref(), &qmp).await?;
        self.findings = derived.findings.iter().cloned().map(Finding::from).collect();
        if !self.job.options.dry_run
            && let Err(error) = VmdClient::connect(&self.context.vmd).await
        {
            let fix = "start novaferry-vmd on this host: it keeps the mark that the old copy may not run";
            self.findings.push(Finding::blocking("vmd", chain(&error), fix));
        }
        if qmp.query_migrate().await.map_err(|error| chain(&error))?.status.is_some_and(|status| {
            !status.is_final() && status != hypervisor::qmp::words::MigrationStatus::None
        }) {
            let fix = "wait for it, or end it with migrate_cancel";
            self.findings.push(Finding::blocking("migrating", "QEMU migrates this VM already", fix));
        }
        self.rates.predict(&qmp, &derived.specification, &self.job, &mut self.record.report).await?;
        self.publish(None);
        if let Some(objection) = objection(&self.findings)
            && !self.job.options.dry_run
        {
            return Err(objection);
        }
        let tunnel = tunnel::dial_channels(&self.job.dial, &self.context.credentials, self.job.migration)
            .await
            .map_err(|error| error.chain())?;
        self.record.peer = tunnel.peer().to_string();
        self.take_tunnel(tunnel);
        let generation = self.context.records.generation(&self.job.vm).map_err(|error| error.chain())?;
        let version = qmp.version().clone();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prepare = Prepare {
            version: VERSION,
            specification: derived.specification.clone(),
            generation: generation.0,
            qemu: (version.major, version.minor, version.micro),
            multifd: self.job.options.multifd,
            slots: self.job.options.slots,
            postcopy: self.job.options.postcopy,
            clock_ms: u64::try_from(clock.as_millis()).unwrap_or(0),
            dry_run: self.job.options.dry_run,
            pool: self.job.options.pool.clone(),
        };
        self.derived = Some(derived);
        self.tell(&FromSource::Prepare(Box::new(prepare))).await?;
        Ok(None)
    }
}
