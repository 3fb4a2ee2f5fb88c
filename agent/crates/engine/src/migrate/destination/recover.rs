//! Post-copy whose connection was lost, at the destination: the guest runs, stands where it needs a page that is not
//! there, and goes on when QEMU has another connection to the source. See `source/recover.rs`.
//!
//! A device that needs such a page holds QEMU's main loop, and with it every command but those that go out of band. So
//! a QEMU that is known to be paused is asked nothing else.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::qmp::words::MigrationStatus;
use session::cutover::{DestinationAction, DestinationEvent, DestinationState};
use tokio::time::Instant;
use volume::Generation;
use wire::{ChannelHello, ChannelKind};

use super::Owner;
use super::monitor::OutOfBand;
use crate::migrate::message::FromDestination;
use crate::migrate::mode::Mode;
use crate::migrate::ram::{RamReceiver, resumed};
use crate::migrate::status::Postcopy;

/// How long QEMU may take to notice that its sockets are closed before it is told.
const NOTICE: Duration = Duration::from_millis(500);
/// How long it may take to listen again.
const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// Sockets of earlier epochs that may lie around; QEMU removes them.
const MAX_SOCKETS: u32 = 64;

/// What is known of a post-copy.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// QEMU's last word.
    status: Option<MigrationStatus>,
    /// Channels of other epochs belong to connections that are lost.
    epoch: u16,
}

impl Recovery {
    /// What to show.
    pub(super) fn shown(&self) -> Option<Postcopy> {
        self.status.as_ref().and_then(resumed::shown)
    }
}

impl Owner {
    /// QEMU says where its migration stands.
    pub(super) fn note_migration(&mut self, status: &MigrationStatus) {
        if resumed::in_postcopy(status) && self.recovery.status.as_ref() != Some(status) {
            tracing::info!(migration = %self.migration, now = status.as_str(), "post-copy at the destination");
        }
        self.recovery.status = Some(status.clone());
        self.publish();
    }

    /// The connection is lost. In post-copy QEMU is to notice, and to wait.
    pub(super) fn postcopy_path_lost(&mut self) {
        if self.recovery.shown().is_some() {
            self.carriers.abort_all();
        }
    }

    /// A channel that was opened over a connection that is lost.
    pub(super) fn is_of_another_epoch(&self, hello: &ChannelHello) -> bool {
        self.recovery.epoch > 0
            && hello.kind == ChannelKind::Ram
            && resumed::epoch_of(hello.channel) != self.recovery.epoch
    }

    /// What is answered to a question for a proof while QEMU is better not asked.
    pub(super) fn proof_in_postcopy(&self) -> Option<FromDestination> {
        let status = self.recovery.status.as_ref()?;
        (resumed::in_postcopy(status) && *status != MigrationStatus::PostcopyActive).then(|| still(status))
    }

    /// What is answered when QEMU does not: in post-copy that is no complaint, and after a restart nobody knows better.
    pub(super) fn silent_in_postcopy(&self) -> Option<FromDestination> {
        let unknown = MigrationStatus::Unknown("unknown".to_owned());
        let status = self.recovery.status.as_ref().or_else(|| self.record.postcopy.then_some(&unknown))?;
        (resumed::in_postcopy(status) || *status == unknown).then(|| still(status))
    }

    /// The source asks to go on after a lost connection.
    pub(super) async fn recover(&mut self, epoch: u16, slots: u32, todo: &mut VecDeque<DestinationAction>) {
        use DestinationState as S;
        match self.machine.state() {
            S::Starting | S::Running if self.record.mode == Mode::Live => {}
            // The source does not know that there is no guest any more that could go on.
            S::Died | S::Lost(_) => return self.apply(DestinationEvent::Ask, todo),
            state => return tracing::debug!(state = state.name(), "there is nothing to be recovered"),
        }
        // It may have had all of it, and the source did not hear of it.
        if self.recovery.status == Some(MigrationStatus::Completed) {
            let proof = self.prove().await;
            return self.tell(&proof).await;
        }
        match self.try_recover(epoch, slots).await {
            Ok(()) => self.tell(&FromDestination::Recovering { epoch }).await,
            Err(why) => {
                tracing::info!(migration = %self.migration, %why, "post-copy cannot go on yet");
                let proof = self.prove().await;
                self.tell(&proof).await;
            }
        }
    }

    async fn try_recover(&mut self, epoch: u16, slots: u32) -> Result<(), String> {
        if epoch == 0 || resumed::epoch_of(resumed::channel(epoch, 1)) != epoch {
            return Err(format!("there is no epoch {epoch}"));
        }
        if slots > self.context.policy.max_slots {
            return Err(format!(
                "at most {} pages are kept here for a VM's RAM",
                self.context.policy.max_slots
            ));
        }
        // QEMU's sockets close with them; it pauses, if it has not noticed before.
        self.carriers.shutdown().await;
        self.arrived.clear();
        let qemu = self.out_of_band().await?;
        let mut sockets = self.sockets.clone().ok_or("the VM is not there")?;
        sockets.incoming = free_socket(&sockets.incoming)?;
        listen_again(&qemu, &sockets.incoming).await?;
        self.sockets = Some(sockets);
        self.ram = Some(RamReceiver::new(slots, self.context.cpu.clone()));
        self.recovery.epoch = epoch;
        self.postcopy = true;
        if let Some(tunnel) = &self.tunnel {
            tunnel.register(Generation(self.record.generation));
        }
        Ok(())
    }

    /// What an operator's word for this side means while memory is missing: it never comes.
    pub(super) fn postcopy_given_up(&self) -> Option<DestinationEvent> {
        self.recovery.shown().map(|_| {
            let why = "an operator said that the source is off, and it still had some of the guest's memory";
            DestinationEvent::MemoryLost(why.to_owned())
        })
    }
}

fn still(status: &MigrationStatus) -> FromDestination {
    FromDestination::Proof { status: status.as_str().to_owned(), complaint: String::new(), pending: true }
}

/// A name beside the last socket's that is not there.
fn free_socket(last: &Path) -> Result<PathBuf, String> {
    let folder = last.parent().ok_or("QEMU's socket has no folder")?;
    (1..=MAX_SOCKETS)
        .map(|nth| folder.join(format!("incoming-{nth}.sock")))
        .find(|path| path != last && !path.exists())
        .ok_or_else(|| format!("{} is full of old sockets; remove them", folder.display()))
}

/// Lets a QEMU that is paused, or about to be, listen at `socket`.
async fn listen_again(qemu: &OutOfBand, socket: &Path) -> Result<(), String> {
    let folder = socket.parent().ok_or("QEMU's socket has no folder")?;
    let name = socket.file_name().and_then(|name| name.to_str()).ok_or("QEMU's socket has no name")?;
    let (began, mut told) = (Instant::now(), false);
    loop {
        match qemu.recover(folder, name).await {
            Ok(()) => return Ok(()),
            Err(why) if began.elapsed() > LIMIT => return Err(why),
            Err(why) => tracing::debug!(%why, "QEMU is not paused yet"),
        }
        if !told && began.elapsed() > NOTICE {
            told = true;
            if let Err(why) = qemu.pause().await {
                tracing::debug!(%why, "QEMU at the destination does not pause its migration");
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recovery_listens_at_another_socket() {
        let folder = tempfile::tempdir().unwrap();
        let first = free_socket(&folder.path().join("incoming.sock")).unwrap();
        assert_eq!(first, folder.path().join("incoming-1.sock"));
        assert_eq!(free_socket(&first).unwrap(), folder.path().join("incoming-2.sock"));
        std::fs::write(folder.path().join("incoming-2.sock"), "").unwrap();
        assert_eq!(free_socket(&first).unwrap(), folder.path().join("incoming-3.sock"));
    }
}
