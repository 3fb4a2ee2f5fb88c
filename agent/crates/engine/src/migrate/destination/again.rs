//! After a restart: the record says that the guest was about to run here. It may have run, so that nothing that fails
//! now is a reason to throw it away.

use std::collections::VecDeque;

use hypervisor::qmp::{Announce, Qmp};
use session::cutover::{DestinationAction, DestinationEvent, DestinationState};
use tokio::time::Instant;

use super::Owner;
use super::run::ASK_AGAIN;
use crate::migrate::mode::Mode;
use crate::migrate::source::chain;

impl Owner {
    /// The guest was let run before, by an earlier process of this agent.
    pub(super) fn may_have_run(&self) -> bool {
        *self.machine.state() == DestinationState::Starting && self.record.mode != Mode::Cold
    }

    /// Finds out whether the guest runs, and lets it run if it does not. Looks again later while QEMU does not answer and
    /// is not gone; what the source says is heard meanwhile.
    pub(super) async fn start_again(&mut self, todo: &mut VecDeque<DestinationAction>) {
        self.start_again_at = None;
        if !self.may_have_run() {
            return;
        }
        let Some(qmp) = self.monitor_if_it_answers() else { return };
        match try_start_again(&qmp).await {
            Ok(()) => self.apply(DestinationEvent::Started, todo),
            Err(why) => {
                self.leave_monitor();
                self.not_found_out(&why, todo).await;
            }
        }
    }

    /// QEMU answers, or did not in a long time.
    pub(super) async fn monitor_came(
        &mut self,
        found: Result<Qmp, String>,
        todo: &mut VecDeque<DestinationAction>,
    ) {
        self.connecting = false;
        match found {
            Ok(qmp) => {
                self.adopt(qmp);
                self.start_again(todo).await;
            }
            Err(why) => self.not_found_out(&why, todo).await,
        }
    }

    async fn not_found_out(&mut self, why: &str, todo: &mut VecDeque<DestinationAction>) {
        if !self.look_for_guest().await {
            return self.apply(DestinationEvent::QemuDied, todo);
        }
        if self.may_have_run() {
            tracing::warn!(migration = %self.migration, why, "whether the guest runs here cannot be found out yet");
            self.start_again_at = Some(Instant::now() + ASK_AGAIN);
        }
    }
}

async fn try_start_again(qmp: &Qmp) -> Result<(), String> {
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
