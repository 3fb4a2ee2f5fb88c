//! What happens outside, as events of the machine: QEMU's words, the source's messages, an operator's commands.

use std::collections::VecDeque;

use hypervisor::qmp::EventKind;
use hypervisor::qmp::words::MigrationStatus;
use session::cutover::{DestinationAction, DestinationEvent, DestinationState, Verdict};

use super::{Owner, Signal};
use crate::migrate::message::{FromDestination, FromSource};
use crate::migrate::mode::Mode;
use crate::migrate::status::{Choice, Command};

impl Owner {
    pub(super) async fn signal(&mut self, signal: Signal, todo: &mut VecDeque<DestinationAction>) {
        if let Signal::Qemu(EventKind::Migration(status)) = &signal {
            self.note_migration(status);
        }
        match signal {
            Signal::Message(message) => self.message(message, todo).await,
            Signal::TunnelLost(which, why) if which != self.tunnels => {
                tracing::debug!(migration = %self.migration, %why, "an earlier connection to the source ended");
            }
            Signal::TunnelLost(_, why) => {
                tracing::info!(migration = %self.migration, %why, "the connection to the source is gone");
                self.tunnel = None;
                self.postcopy_path_lost();
                if !self.prepared {
                    self.over = true;
                } else if !self.waits_for_contact() {
                    self.arrived.clear();
                    self.apply(DestinationEvent::ContactLost, todo);
                }
            }
            Signal::Channel(_, hello, _) if self.is_of_another_epoch(&hello) => {
                tracing::debug!(channel = hello.channel, "a channel of a connection that is lost");
            }
            Signal::Channel(which, hello, channel) => self.channel(which, hello, *channel),
            // In post-copy the devices are there, and the memory follows as the guest asks for it.
            Signal::Qemu(EventKind::Migration(MigrationStatus::PostcopyActive)) => {
                self.postcopy = true;
                self.apply(DestinationEvent::Complete, todo);
            }
            Signal::Qemu(EventKind::Migration(MigrationStatus::Completed)) => {
                self.apply(DestinationEvent::Complete, todo);
            }
            Signal::Qemu(EventKind::Migration(MigrationStatus::Failed)) => {
                self.apply(DestinationEvent::Failed("QEMU could not take the guest in".to_owned()), todo);
            }
            Signal::Qemu(_) => {}
            Signal::Monitor(found) => self.monitor_came(found, todo).await,
            Signal::QemuGone(which, why) if which != self.monitors => {
                tracing::debug!(migration = %self.migration, %why, "a monitor that was given up ended");
            }
            Signal::QemuGone(_, why) => {
                let ending = matches!(
                    self.machine.state(),
                    DestinationState::Burning(_)
                        | DestinationState::Burned(_)
                        | DestinationState::Revoking(_)
                        | DestinationState::Revoked(_)
                );
                if !ending {
                    tracing::warn!(migration = %self.migration, %why, "QEMU at the destination is gone");
                }
                self.qmp = None;
                self.apply(DestinationEvent::QemuDied, todo);
            }
            Signal::Carrier(what, Ok(())) => tracing::debug!(what, "a byte path ended"),
            Signal::Carrier(what, Err(why)) if self.postcopy => {
                tracing::debug!(what, %why, "a byte path broke in post-copy");
                self.postcopy_path_lost();
            }
            Signal::Carrier(what, Err(why)) => {
                tracing::debug!(what, %why, "a byte path broke");
                self.apply(DestinationEvent::Failed(format!("{what}: {why}")), todo);
            }
        }
    }

    async fn message(&mut self, message: FromSource, todo: &mut VecDeque<DestinationAction>) {
        match message {
            FromSource::Probe(probe) => self.probed(&probe).await,
            FromSource::Prepare(prepare) if !self.prepared => match self.prepare(*prepare).await {
                Ok(true) => {
                    self.prepared = true;
                    if self.record.mode != Mode::Live {
                        // There is no memory to wait for; the disks are complete when the roots are equal, and no
                        // permit comes before.
                        self.apply(DestinationEvent::Complete, todo);
                    }
                }
                Ok(false) => self.over = true,
                Err(reason) => {
                    tracing::warn!(migration = %self.migration, %reason, "a migration is refused");
                    self.tell(&FromDestination::Refused { reason, findings: self.findings.clone() }).await;
                    self.abandon().await;
                    self.over = true;
                }
            },
            FromSource::Prepare(_) => {
                self.apply(DestinationEvent::Failed("the source asked twice".to_owned()), todo);
            }
            FromSource::Compare { roots, readback } => {
                self.readback = readback;
                let answer = self.compare(&roots, readback).await;
                match answer {
                    Ok(compared) => {
                        let equal = matches!(&compared, FromDestination::Compared { differing, .. } if differing.is_empty());
                        self.compared = if equal { roots } else { Vec::new() };
                        self.tell(&compared).await;
                    }
                    Err(why) => self.apply(DestinationEvent::Failed(why), todo),
                }
            }
            FromSource::Permit { generation, roots: _ } => {
                if generation == self.record.generation {
                    // From now on a channel that breaks is not waited for: QEMU must hear of it.
                    self.arrived.clear();
                    // Told again after a restart, it says nothing that is not durable already.
                    if self.record.sealed.is_none() {
                        self.seal();
                    }
                    self.apply(DestinationEvent::Permit, todo);
                } else {
                    let why = format!("a permit of generation {generation} came");
                    self.apply(DestinationEvent::Failed(why), todo);
                }
            }
            FromSource::Rejoin {} => self.rejoin().await,
            FromSource::Ask {} | FromSource::Revoke {} if !self.prepared => {
                self.tell(&FromDestination::Verdict { verdict: Verdict::Unknown }).await;
            }
            FromSource::Ask {} => self.apply(DestinationEvent::Ask, todo),
            FromSource::Revoke {} => {
                if self.moved_on() {
                    self.apply(DestinationEvent::Finalise, todo);
                }
                self.apply(DestinationEvent::Revoke, todo);
            }
            FromSource::Prove {} => {
                let proof = self.prove().await;
                self.tell(&proof).await;
            }
            FromSource::Recover { epoch, slots } => self.recover(epoch, slots, todo).await,
            FromSource::Lost { reason } => {
                self.apply(DestinationEvent::MemoryLost(reason), todo);
                self.apply(DestinationEvent::Ask, todo);
            }
            FromSource::Abort { reason } => {
                let reason = format!("the source gave up: {reason}");
                self.apply(DestinationEvent::Abort(reason), todo);
                if !self.prepared {
                    self.over = true;
                }
            }
            FromSource::Finalise {} => {
                self.apply(DestinationEvent::Finalise, todo);
                if *self.machine.state() == DestinationState::Finalised {
                    let receipts = self.receipts();
                    self.tell(&FromDestination::Finalised { receipts }).await;
                }
            }
        }
    }

    pub(super) fn command(&mut self, command: Command, todo: &mut VecDeque<DestinationAction>) {
        match command {
            Command::Cancel => {
                let waiting = matches!(self.machine.state(), DestinationState::Waiting { .. });
                if waiting && self.prepared {
                    let why = "cancelled at the destination".to_owned();
                    self.apply(DestinationEvent::Failed(why), todo);
                }
            }
            // Only the source takes back.
            Command::TakeBack => {}
            Command::Finalise => self.apply(DestinationEvent::Finalise, todo),
            Command::Resolve(Choice::Destination) if self.recovery.shown().is_some() => {
                if let Some(event) = self.postcopy_given_up() {
                    self.apply(event, todo);
                }
            }
            Command::Resolve(choice) => self.apply(DestinationEvent::Resolve(choice), todo),
        }
    }
}
