//! Comparing, running, proving, and throwing away.

use std::path::Path;
use std::time::{Duration, Instant};

use hypervisor::qmp::words::{MigrationStatus, RunState};
use hypervisor::qmp::{Announce, Qmp};
use hypervisor::vmd::{RefusalKind, VmState, VmStatus, VmdClient};
use session::cutover::{DestinationEvent, DestinationState};

use super::monitor::BRIEFLY;
use super::{Owner, Sockets};
use crate::migrate::message::{DiskRoot, FromDestination};
use crate::migrate::mode::Mode;
use crate::migrate::readback::root_of_export;
use crate::migrate::record::Role;
use crate::migrate::source::chain;

/// Pause between questions to a vmd that does not answer.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Removes a file; it need not be there.
pub(super) fn remove(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Waits until a QEMU in post-copy has loaded the devices and stands before the first instruction.
async fn await_devices(qmp: &Qmp) -> Result<(), String> {
    const LIMIT: Duration = Duration::from_secs(20);
    const POLL: Duration = Duration::from_millis(2);
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let status = qmp.query_status().await.map_err(|error| chain(&error))?;
        if status.status != RunState::InMigrate {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err("QEMU does not finish loading the devices".to_owned())
}

impl Owner {
    /// Compares the source's roots with what was written here.
    pub(super) async fn compare(
        &self,
        roots: &[DiskRoot],
        readback: bool,
    ) -> Result<FromDestination, String> {
        let began = Instant::now();
        let mut differing = Vec::new();
        for disk in &self.disks {
            let leaves = disk.leaves.clone();
            let root = self.context.cpu.run(move |_| leaves.root()).await.map_err(|error| error.chain())?;
            if readback {
                let (socket, name) = self.export_of(&disk.id)?;
                let read = root_of_export(&socket, &name, disk.leaves.key(), &self.context.cpu).await?;
                if read != root {
                    return Err(format!("disk {} at the destination is not what was written", disk.id));
                }
            }
            let theirs = roots.iter().find(|theirs| theirs.disk == disk.id);
            if theirs.is_none_or(|theirs| theirs.root != root.to_string()) {
                differing.push(disk.id.clone());
            }
        }
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(FromDestination::Compared { differing, micros })
    }

    /// Lets the guest run: closes the exports, records that it starts, tells QEMU.
    pub(super) async fn start_guest(&mut self) -> DestinationEvent {
        match self.make_ready().await {
            Ok(()) => {}
            Err(why) => return DestinationEvent::StartRefused(why),
        }
        if !self.machine.starting() {
            return DestinationEvent::StartRefused("the guest may not run in this state".to_owned());
        }
        if let Err(error) = self.save() {
            // The record still says that the guest did not run, and it did not.
            return DestinationEvent::StartRefused(error.chain());
        }
        if self.record.mode == Mode::Cold {
            return self.define_vm().await;
        }
        let Some(qmp) = self.qmp.clone() else { return DestinationEvent::QemuDied };
        match qmp.cont().await {
            // A guest that boots announces itself.
            Ok(()) if self.record.mode == Mode::Warm => DestinationEvent::Started,
            Ok(()) => {
                if let Err(error) = qmp.announce_self(&Announce::default()).await {
                    tracing::warn!(error = %chain(&error), "the guest's new place is not announced to the network");
                }
                DestinationEvent::Started
            }
            // QEMU said no: no instruction ran.
            Err(error) if !error.may_have_happened() => DestinationEvent::StartRefused(chain(&error)),
            Err(error) => {
                tracing::error!(error = %chain(&error), "whether the guest runs is not known");
                DestinationEvent::QemuDied
            }
        }
    }

    async fn make_ready(&mut self) -> Result<(), String> {
        if self.record.mode != Mode::Live {
            return self.make_copied_ready().await;
        }
        let qmp = self.monitor().await?;
        self.close_exports(&qmp).await?;
        let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
        match info.status {
            Some(MigrationStatus::Completed) => Ok(()),
            Some(MigrationStatus::PostcopyActive) if self.postcopy => await_devices(&qmp).await,
            _ => Err("QEMU does not have all of the guest".to_owned()),
        }
    }

    /// Whether the guest is well, as far as the hypervisor knows.
    pub(super) async fn prove(&mut self) -> FromDestination {
        if self.record.mode == Mode::Cold {
            return self.prove_defined().await;
        }
        if let Some(proof) = self.proof_in_postcopy() {
            return proof;
        }
        let outcome = async {
            let qmp = match self.record.postcopy {
                true => self.monitor_if_it_answers().ok_or("QEMU does not answer yet")?,
                false => self.monitor().await?.within(BRIEFLY),
            };
            let status = qmp.query_status().await.map_err(|error| chain(&error))?;
            let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
            if let Some(status) = &info.status {
                self.note_migration(status);
            }
            let runs = status.running && status.status == RunState::Running;
            let pending = runs && info.status.as_ref().is_some_and(|status| !status.is_final());
            let complaint = match info.status {
                Some(MigrationStatus::Failed) => "QEMU did not get all of the guest's memory".to_owned(),
                _ if runs => String::new(),
                _ => "the guest does not run".to_owned(),
            };
            Ok::<_, String>((status.status.as_str().to_owned(), complaint, pending))
        };
        let (status, complaint, pending) = match outcome.await {
            Ok(said) => said,
            Err(why) => match self.silent_in_postcopy() {
                Some(proof) => return proof,
                None => ("unknown".to_owned(), why, false),
            },
        };
        FromDestination::Proof { status, complaint, pending }
    }

    /// Ends the guest's process and removes its disks. False when that failed: it is tried again at the next start.
    pub(super) async fn discard(&mut self) -> bool {
        self.qmp = None;
        // What serves or writes the images goes before their files.
        self.carriers.shutdown().await;
        self.images.clear();
        let done = match self.machine.state() {
            DestinationState::Revoking(_) => self.revoke().await,
            _ => self.try_discard().await,
        };
        match done {
            Ok(()) => true,
            Err(why) => {
                tracing::error!(migration = %self.migration, %why, "what was received cannot be thrown away");
                false
            }
        }
    }

    async fn try_discard(&mut self) -> Result<(), String> {
        // Before what they write to goes away.
        self.carriers.shutdown().await;
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        let known = vmd.list().await.map_err(|error| chain(&error))?;
        let generation = self.record.generation;
        let ours = |status: &&VmStatus| status.vm == self.record.vm && status.generation == generation;
        if let Some(status) = known.iter().find(ours) {
            vmd.stop(&self.record.vm, true).await.map_err(|error| chain(&error))?;
            vmd.forget(&self.record.vm).await.map_err(|error| chain(&error))?;
            // Whoever finds a configuration there would start a VM that never was this host's.
            for name in ["config.json", "qemu.pid"] {
                remove(&status.folder.join(name))?;
            }
        }
        let Role::Destination { disks, .. } = &self.record.role else { return Ok(()) };
        disks.iter().try_for_each(|disk| remove(disk.as_ref()))
    }

    /// After a restart: whether the guest's process is there. Asks until vmd answers.
    pub(super) async fn look_for_guest(&mut self) -> bool {
        loop {
            match self.guest_status().await {
                Ok(Some(status)) => {
                    self.sockets = Some(Sockets::in_folder(&status.sockets));
                    return match status.state {
                        VmState::Running { .. } => true,
                        VmState::Stopped {} => self.record.mode == Mode::Cold,
                        VmState::Exited { .. } => false,
                    };
                }
                Ok(None) => return false,
                Err(why) => {
                    tracing::warn!(migration = %self.migration, %why, "vmd does not say how the guest is")
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn guest_status(&self) -> Result<Option<VmStatus>, String> {
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        match vmd.status(&self.record.vm).await {
            Ok(status) => Ok((status.generation == self.record.generation).then_some(status)),
            Err(error) if error.refusal().is_some_and(|refusal| refusal.kind == RefusalKind::Unknown) => {
                Ok(None)
            }
            Err(error) => Err(chain(&error)),
        }
    }
}
