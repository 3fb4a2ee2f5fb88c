//! After a restart: the record says that the guest was about to run here. It may have run, so that nothing that fails
//! now is a reason to throw it away.

use hypervisor::qmp::Announce;
use session::cutover::{DestinationEvent, DestinationState};

use super::Owner;
use super::recover::BRIEFLY;
use super::run::ASK_AGAIN;
use crate::migrate::mode::Mode;
use crate::migrate::source::chain;

impl Owner {
    /// The guest was let run before, by an earlier process of this agent.
    pub(super) fn may_have_run(&self) -> bool {
        *self.machine.state() == DestinationState::Starting && self.record.mode != Mode::Cold
    }

    /// Finds out whether the guest runs, and lets it run if it does not. Tries until QEMU answers or is gone; none when
    /// this process is to end before: the next one goes on.
    pub(super) async fn start_again(&mut self) -> Option<DestinationEvent> {
        loop {
            let Err(why) = self.try_start_again().await else { return Some(DestinationEvent::Started) };
            self.qmp = None;
            if !self.look_for_guest().await {
                return Some(DestinationEvent::QemuDied);
            }
            tracing::warn!(migration = %self.migration, %why, "whether the guest runs here cannot be found out yet");
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                () = self.context.stop.cancelled() => return None,
            }
        }
    }

    async fn try_start_again(&mut self) -> Result<(), String> {
        let qmp = self.monitor().await?.within(BRIEFLY);
        let status = qmp.query_status().await.map_err(|error| chain(&error))?;
        if status.running {
            return Ok(());
        }
        // All that it needs was there before the record said that it starts.
        qmp.cont().await.map_err(|error| chain(&error))?;
        if let Err(error) = qmp.announce_self(&Announce::default()).await {
            tracing::warn!(error = %chain(&error), "the guest's new place is not announced to the network");
        }
        Ok(())
    }
}
