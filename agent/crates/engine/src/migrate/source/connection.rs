//! The connection to the destination: made, lost, made again; what is said and heard over it.

use std::time::Duration;

use tunnel::ChannelTunnel;

use super::{Owner, Signal, Way, recover};
use crate::migrate::message::{self, FromSource};

/// First and longest pause between attempts to reach the destination again.
const REDIAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Owner {
    /// Sends a message.
    pub(super) async fn tell(&self, message: &FromSource) -> Result<(), String> {
        let tunnel = self.tunnel.as_ref().ok_or("there is no connection to the destination")?;
        tunnel.send_message(message::encode(message)?).await.map_err(|error| error.chain())
    }

    /// Sends a message; without a connection one is made first, and the machine is told when it is there.
    pub(super) async fn tell_or_redial(&mut self, message: &FromSource) {
        if let Err(why) = self.tell(message).await {
            tracing::debug!(%why, "the destination cannot be asked now");
            self.redial();
        }
    }

    pub(super) async fn ask(&mut self) {
        self.tell_or_redial(&FromSource::Ask {}).await;
    }

    /// Dials until the destination answers.
    pub(super) fn redial(&mut self) {
        if self.redialling {
            return;
        }
        self.redialling = true;
        let (options, context) = (self.job.dial.clone(), self.context.clone());
        let (migration, signals, current) = (self.job.migration, self.signals.clone(), self.ways.clone());
        let longest = if self.recovery.owes() { recover::REDIAL_WITHIN } else { REDIAL.1 };
        // Who takes connections and drops them at once is not dialled in a circle.
        let dropped = self.redialled.is_some_and(|since| since.elapsed() < REDIAL.0);
        self.watchers.spawn(async move {
            let mut pause = REDIAL.0;
            if dropped {
                tokio::time::sleep(pause).await;
            }
            loop {
                // They may have changed since the last attempt.
                let to = current.borrow().to.clone();
                match context.dial(&options).reach(&to, migration).await {
                    Ok((tunnel, way)) => {
                        drop(signals.send(Signal::Dialled(Box::new(tunnel), way)).await);
                        return;
                    }
                    Err(reason) => tracing::info!(%migration, %reason, "the destination does not answer"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        });
    }

    /// Keeps a tunnel and reads its messages.
    pub(super) fn take_tunnel(&mut self, tunnel: ChannelTunnel, way: Way) {
        // It may have changed while it was dialled.
        tunnel.set_limit(self.job.dial.limit);
        self.tunnel = Some(tunnel.clone());
        self.path = Some(way);
        self.tunnels += 1;
        let (signals, which) = (self.signals.clone(), self.tunnels);
        self.watchers.spawn(async move {
            let why = loop {
                match tunnel.recv_message().await {
                    Ok(bytes) => match message::decode(&bytes) {
                        Ok(message) => {
                            if signals.send(Signal::Message(message)).await.is_err() {
                                return;
                            }
                        }
                        Err(why) => break why,
                    },
                    Err(error) => break error.chain(),
                }
            };
            drop(signals.send(Signal::TunnelLost(which, why)).await);
        });
    }
}
