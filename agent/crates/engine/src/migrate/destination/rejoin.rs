//! A connection that is lost before there is a permit: the source may come back and go on.

use std::collections::VecDeque;
use std::time::Duration;

use session::cutover::{DestinationAction, DestinationEvent, DestinationState};
use tokio::time::Instant;
use volume::Generation;

use super::Owner;
use crate::migrate::message::FromDestination;

/// Longest time that a source may have us wait.
const MOST: Duration = Duration::from_secs(600);
/// What a source that waits to the end needs to dial and to ask.
const MORE: Duration = Duration::from_secs(15);

impl Owner {
    /// How long the source wants to be waited for.
    pub(super) fn set_patience(&mut self, millis: u64) {
        let wanted = Duration::from_millis(millis).min(MOST);
        self.patience = if wanted.is_zero() { wanted } else { wanted + MORE };
    }

    /// Whether a lost connection is waited for, which begins now.
    pub(super) fn waits_for_contact(&mut self) -> bool {
        let waiting = matches!(self.machine.state(), DestinationState::Waiting { .. });
        if !waiting || self.patience.is_zero() {
            return false;
        }
        self.lost_until.get_or_insert_with(|| Instant::now() + self.patience);
        true
    }

    /// The source did not come back.
    pub(super) fn give_up_contact(&mut self, todo: &mut VecDeque<DestinationAction>) {
        self.lost_until = None;
        self.arrived.clear();
        self.apply(DestinationEvent::ContactLost, todo);
    }

    /// The source is back on the newest connection.
    pub(super) async fn rejoin(&mut self) {
        let answer = match self.machine.state() {
            DestinationState::Waiting { .. } if self.prepared => {
                self.lost_until = None;
                if let Some(tunnel) = &self.tunnel {
                    tunnel.register(Generation(self.record.generation));
                }
                tracing::info!(migration = %self.migration, "the source is back");
                FromDestination::Rejoined {}
            }
            DestinationState::Burned(why) => FromDestination::NotRun { reason: why.clone() },
            // What is being thrown away is told when it is gone. After a permit nobody rejoins: the source asks.
            state => {
                tracing::debug!(migration = %self.migration, state = state.name(), "there is nothing to go on with");
                return;
            }
        };
        self.tell(&answer).await;
    }
}
