//! The fence, and the two ways in which a migration ends at its source: the guest runs here again, or its copy is
//! given up.

use std::path::PathBuf;
use std::time::Duration;

use hypervisor::inventory::Activity;
use hypervisor::qmp::words::{MigrationStatus, RunState};
use hypervisor::qmp::{Announce, MigrationParameters, Qmp};
use hypervisor::vmd::VmdClient;
use session::cutover::SourceEvent;
use tokio::time::Instant;
use volume::Generation;

use super::monitor::is_dead;
use super::warm::fleece;
use super::{Owner, StepResult, chain, handover, mirror};
use crate::migrate::message::FromSource;
use crate::migrate::mode::Mode;
use crate::migrate::record::Role;

/// How long QEMU may take to end a migration or a job.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// Pause between attempts to let the guest run again.
const TRY_AGAIN: Duration = Duration::from_secs(2);

impl Owner {
    /// Makes it durable that this host may not run the VM.
    pub(super) async fn make_fence(&mut self) -> StepResult {
        let generation = Generation(self.record.generation);
        self.context.records.raise_generation(&self.job.vm, generation).map_err(|error| error.chain())?;
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        if self.record.mode == Mode::Live {
            handover::let_go(&self.monitor().await?).await?;
        }
        let fence = vmd
            .fence(&self.job.vm, self.record.generation, self.fenced_files())
            .await
            .map_err(|error| format!("the fence cannot be made: {}", chain(&error)))?;
        // What was started in the last instant is seen now: after the fence nothing is.
        let renamed = fence.renamed;
        self.check_unchanged(|path| {
            let new = renamed.iter().find(|(from, _)| from == path);
            new.map_or_else(|| path.to_owned(), |(_, to)| to.clone())
        })?;
        Ok(Some(SourceEvent::FenceDurable))
    }

    /// What anybody would need to start the old copy: NovaCron's configuration and the disks' files.
    fn fenced_files(&self) -> Vec<PathBuf> {
        let config = self.job.folder.iter().map(|folder| folder.join("config.json"));
        let disks = self.derived.iter().flat_map(|derived| derived.disks.iter());
        // What nobody writes may be another VM's, too, and starts nothing by itself.
        let disks = disks.filter(|disk| !disk.read_only).map(|disk| disk.path.clone());
        config.chain(disks).filter(|path| path.is_file()).collect()
    }

    /// Undoes everything here and lets the guest run. While its process lives this is tried again, because a guest
    /// that stays paused is lost to its users: vmd may be starting only now, or QEMU be busy. None when this process is
    /// to end before it succeeded; the next one goes on.
    pub(super) async fn resume(&mut self) -> Option<SourceEvent> {
        loop {
            let Err(why) = self.try_resume().await else { return Some(SourceEvent::Resumed) };
            if is_dead(self.job.process).await {
                tracing::debug!(migration = %self.job.migration, %why, "there is no guest to be resumed");
                return Some(SourceEvent::QemuDied);
            }
            tracing::error!(migration = %self.job.migration, %why, "the guest cannot be resumed at the source");
            self.record.report.note = Some(why);
            self.publish(None);
            tokio::select! {
                () = tokio::time::sleep(TRY_AGAIN) => {}
                () = self.context.stop.cancelled() => return None,
            }
        }
    }

    async fn try_resume(&mut self) -> Result<(), String> {
        self.wait_no_more();
        if self.tunnel.is_none() {
            self.fail_targets();
        }
        // The fence first: a guest that runs must be startable again.
        let (fenced, was_paused) = match &self.record.role {
            Role::Source { fenced, was_paused, .. } => (*fenced, *was_paused),
            Role::Destination { .. } => (false, false),
        };
        if fenced {
            // What runs here from now on is newer than whatever the destination was given: nothing of that generation
            // is taken from anybody any more.
            let newer = Generation(self.record.generation.saturating_add(1));
            self.context.records.raise_generation(&self.job.vm, newer).map_err(|error| error.chain())?;
            let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
            vmd.unfence(&self.job.vm, self.record.generation).await.map_err(|error| chain(&error))?;
        }
        self.end_copying().await;
        if self.record.mode == Mode::Cold {
            self.carriers.shutdown().await;
            self.disks.clear();
            return Ok(());
        }
        let qmp = self.monitor().await?;
        // Before anything that lets QEMU run the guest by itself.
        handover::take_back(&qmp).await?;
        fleece::end_exports(&qmp).await?;
        // The mirrors first: the destination gives up when the memory's stream ends, and their targets with it.
        if let Err(why) = remove_mirrors(&qmp).await {
            // What the destination does not answer is not waited for when this is tried again.
            self.fail_targets();
            return Err(why);
        }
        Box::pin(self.reclaim(&qmp)).await?;
        cancel_migration(&qmp).await?;
        if self.record.mode == Mode::Warm {
            self.remove_rounds(&qmp).await?;
        }
        self.carriers.shutdown().await;
        self.disks.clear();
        self.ram = None;
        let status = qmp.query_status().await.map_err(|error| chain(&error))?;
        let ours =
            matches!(status.status, RunState::PostMigrate | RunState::FinishMigrate | RunState::Paused);
        // A guest that was paused before stays so; all states but `paused` are of the migration's making.
        let was_paused = status.status == RunState::Paused && was_paused;
        if !status.running && ours && !was_paused {
            qmp.cont().await.map_err(|error| chain(&error))?;
            // It may have been announced at the destination.
            if fenced && let Err(error) = qmp.announce_self(&Announce::default()).await {
                tracing::warn!(error = %chain(&error), "the guest's return is not announced to the network");
            }
        }
        if self.record.mode == Mode::Warm {
            self.thaw().await;
        }
        Ok(())
    }

    /// Gives up this side's copy: ends its process, and tells the destination. The disks' files stay under the names
    /// that the fence gave them. A VM of this name that came back meanwhile is another one, and is left alone.
    pub(super) async fn give_up(&mut self) {
        let came_back = match VmdClient::connect(&self.context.vmd).await {
            Ok(vmd) => self.give_up_at(&vmd).await,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "vmd cannot be told that the VM is gone");
                false
            }
        };
        let gone =
            self.job.process.is_some_and(|process| process.activity().is_ok_and(|a| a == Activity::Dead));
        self.end_copying().await;
        if !came_back && !gone && self.record.mode != Mode::Cold {
            match self.monitor().await {
                Ok(qmp) => {
                    if let Err(error) = qmp.quit().await {
                        tracing::debug!(error = %chain(&error), "QEMU at the source is gone already");
                    }
                }
                Err(why) => tracing::debug!(%why, "QEMU at the source is gone already"),
            }
        }
        if let Err(why) = self.tell(&FromSource::Finalise {}).await {
            tracing::debug!(%why, "the destination is told when it answers again");
            self.redial();
        }
    }

    /// Ends vmd's process of this side's copy. True when the VM came back here at a newer generation.
    async fn give_up_at(&self, vmd: &VmdClient) -> bool {
        match vmd.status(&self.job.vm).await {
            Ok(status) if status.generation >= self.record.generation => return true,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = %chain(&error), "vmd does not run this VM");
                return false;
            }
        }
        if let Err(error) = vmd.stop(&self.job.vm, true).await {
            tracing::warn!(error = %chain(&error), "vmd does not end the VM's old process");
        } else if let Err(error) = vmd.forget(&self.job.vm).await {
            tracing::warn!(error = %chain(&error), "vmd does not forget the VM");
        }
        false
    }
}

async fn cancel_migration(qmp: &Qmp) -> Result<(), String> {
    let over = |status: Option<&MigrationStatus>| {
        status.is_none_or(|status| status.is_final() || *status == MigrationStatus::None)
    };
    let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
    if over(info.status.as_ref()) {
        return Ok(());
    }
    qmp.migrate_cancel().await.map_err(|error| chain(&error))?;
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
        if over(info.status.as_ref()) {
            // Throttling and bandwidths are of the migration that is over.
            let parameters =
                MigrationParameters { downtime_limit: Some(300), ..MigrationParameters::default() };
            return qmp.migrate_set_parameters(&parameters).await.map_err(|error| chain(&error));
        }
        tokio::time::sleep(POLL).await;
    }
    Err("QEMU does not end its migration".to_owned())
}

pub(super) async fn remove_mirrors(qmp: &Qmp) -> Result<(), String> {
    let failed = |error| chain(&error);
    let since = Instant::now();
    loop {
        let jobs = qmp.query_block_jobs().await.map_err(failed)?;
        let ours: Vec<_> = jobs.into_iter().filter(|job| mirror::is_ours(&job.device)).collect();
        if ours.is_empty() {
            break;
        }
        if since.elapsed() > PATIENCE {
            return Err("QEMU does not end the mirror of a disk".to_owned());
        }
        for job in ours {
            if let Err(error) = qmp.block_job_cancel(&job.device, true).await {
                tracing::debug!(error = %chain(&error), "a mirror is ending already");
            }
        }
        tokio::time::sleep(POLL).await;
    }
    for node in qmp.query_block_nodes().await.map_err(failed)? {
        if let Some(name) = node.node_name.filter(|name| mirror::is_ours(name)) {
            qmp.blockdev_del(&name).await.map_err(failed)?;
        }
    }
    Ok(())
}
