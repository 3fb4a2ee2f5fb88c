//! A connection that is lost while the guest runs here: it is waited for, and what was on its way is sent again.
//!
//! Once the guest is stopped there is no waiting: then the move is undone, which is what ends the pause soonest.

use std::collections::VecDeque;

use session::cutover::{SourceAction, SourceEvent, SourceState};

use super::Owner;
use crate::migrate::message::FromSource;
use crate::migrate::mode::Mode;

impl Owner {
    /// The guest runs here, and nothing of what travels needs an answer soon.
    pub(super) fn can_wait(&self) -> bool {
        let copying = match self.state() {
            SourceState::Mirroring => true,
            SourceState::PreCopy => self.record.mode == Mode::Live && self.stopped.is_none(),
            _ => false,
        };
        copying && !self.job.options.reconnect.is_zero()
    }

    /// How long a connection that may come back has been lost, milliseconds; 0 while there is one.
    pub(super) fn lost_millis(&self) -> u64 {
        let lost = self.lost.map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        lost.map_or(0, |millis| millis.max(1))
    }

    /// There is a connection again: asks the destination whether it still has what came before.
    pub(super) async fn rejoin(&mut self) {
        if self.lost.is_none() {
            return;
        }
        if let Err(why) = self.tell(&FromSource::Rejoin {}).await {
            tracing::debug!(migration = %self.job.migration, %why, "the connection is lost again");
        }
    }

    /// The destination goes on.
    pub(super) fn rejoined(&mut self) {
        let (Some(since), Some(tunnel)) = (self.lost.take(), self.tunnel.clone()) else { return };
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.rates.forgive(since.elapsed());
        tracing::info!(migration = %self.job.migration, millis, "the connection to the destination is back");
        self.record.report.reconnects += 1;
        self.contact.up(tunnel);
    }

    /// Gives up a connection that does not come back in time.
    pub(super) fn check_contact(&mut self, todo: &mut VecDeque<SourceAction>) {
        if self.lost.is_some_and(|since| since.elapsed() > self.job.options.reconnect) {
            self.lost = None;
            self.apply(SourceEvent::ContactLost, todo);
        }
    }

    /// From now on a connection that is lost is not waited for.
    pub(super) fn wait_no_more(&mut self) {
        self.lost = None;
        self.contact.no_return();
    }

    /// QEMU's writes to the destination wait no more: the migration is being undone, and nobody answers them.
    pub(super) fn fail_targets(&self) {
        for disk in &self.disks {
            disk.target.give_up();
        }
    }
}
