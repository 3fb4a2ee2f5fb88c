//! What happened outside, as the machine's events: the destination's messages, QEMU's events, commands.

use std::collections::VecDeque;
use std::time::Duration;

use hypervisor::qmp::EventKind;
use hypervisor::qmp::words::{JobStatus, MigrationStatus};
use session::cutover::{Choice, SourceAction, SourceEvent, SourceState, Verdict};
use tokio::time::Instant;

use super::{Owner, Signal, mirror};
use crate::migrate::message::FromDestination;
use crate::migrate::mode::Mode;
use crate::migrate::preflight::Finding;
use crate::migrate::status::Command;

impl Owner {
    pub(super) async fn signal(&mut self, signal: Signal, todo: &mut VecDeque<SourceAction>) {
        match signal {
            Signal::Copied(copied) => {
                self.note_copied(copied);
                self.all_in_step(todo);
            }
            Signal::InStep => self.all_in_step(todo),
            Signal::Message(message) => self.message(message, todo),
            Signal::TunnelLost(which, why) if which != self.tunnels => {
                tracing::debug!(migration = %self.job.migration, %why, "an older connection has ended");
            }
            Signal::BetterWay(way) => self.move_over(&way),
            Signal::TunnelLost(_, why) => {
                tracing::warn!(migration = %self.job.migration, %why, "the connection to the destination is lost");
                self.tunnel = None;
                self.contact.down();
                self.postcopy_path_lost();
                if self.can_wait() {
                    self.lost.get_or_insert_with(Instant::now);
                    self.redial();
                } else {
                    self.apply(SourceEvent::ContactLost, todo);
                }
            }
            Signal::Dialled(tunnel, way) => {
                self.redialling = false;
                self.redialled = Some(Instant::now());
                self.take_tunnel(*tunnel, way);
                self.apply(SourceEvent::ContactBack, todo);
                self.rejoin().await;
            }
            Signal::Qemu(EventKind::Migration(MigrationStatus::PreSwitchover))
                if *self.state() == SourceState::Permitting =>
            {
                self.send_last_part().await;
            }
            Signal::Qemu(event) => self.qemu(event, todo),
            Signal::QemuGone { why, dead: false } => {
                self.qmp = None;
                self.apply(SourceEvent::Failed(format!("QEMU's monitor is lost: {why}")), todo);
            }
            Signal::QemuGone { why, dead: true } => {
                self.qmp = None;
                if *self.state() != SourceState::Finalised {
                    tracing::warn!(migration = %self.job.migration, %why, "QEMU at the source is gone");
                }
                self.postcopy_source_gone("QEMU at the source has ended");
                self.apply(SourceEvent::QemuDied, todo);
            }
            Signal::Carrier(what, Ok(())) => tracing::debug!(what, "a byte path ended"),
            Signal::Carrier(what, Err(why)) => {
                tracing::debug!(what, %why, "a byte path broke");
                self.postcopy_path_lost();
                self.apply(SourceEvent::Failed(format!("{what}: {why}")), todo);
            }
        }
    }

    fn message(&mut self, message: FromDestination, todo: &mut VecDeque<SourceAction>) {
        match message {
            FromDestination::Rejoined {} => self.rejoined(),
            // An answer to the measurement of the link that came too late for it.
            FromDestination::Probed { .. } => {}
            FromDestination::Prepared { generation, key, findings } => {
                self.prepared(generation, &key, findings, todo);
            }
            FromDestination::Refused { reason, findings } => {
                self.findings.extend(findings);
                self.apply(SourceEvent::Failed(format!("the destination refused: {reason}")), todo);
            }
            FromDestination::Compared { differing, micros } => {
                tracing::info!(migration = %self.job.migration, micros, "roots compared");
                let event = if differing.is_empty() {
                    SourceEvent::RootsEqual
                } else {
                    SourceEvent::Failed(format!("the disks {} differ at the two hosts", differing.join(", ")))
                };
                self.apply(event, todo);
            }
            FromDestination::Runs {} => {
                self.note_run();
                self.apply(SourceEvent::Runs, todo);
            }
            FromDestination::NotRun { reason } => {
                tracing::warn!(migration = %self.job.migration, %reason, "the destination did not start the guest");
                self.record.report.note = Some(reason);
                self.apply(SourceEvent::NotRun, todo);
            }
            FromDestination::Verdict { verdict } => {
                if verdict == Verdict::Unknown {
                    let why = "the destination's records of this migration are lost; find out whether the guest runs \
                               there, then use `migration resolve`";
                    tracing::warn!(migration = %self.job.migration, why, "doubt cannot be ended by asking");
                    self.record.report.note = Some(why.to_owned());
                    self.publish(None);
                }
                if verdict == Verdict::Kept {
                    let why = "the destination keeps the guest: it was finalised or moved on there";
                    tracing::warn!(migration = %self.job.migration, why, "the guest is not taken back");
                    self.record.report.note = Some(why.to_owned());
                }
                self.finalised |= matches!(self.state(), SourceState::Lost(_));
                self.apply(SourceEvent::Verdict(verdict), todo);
            }
            FromDestination::Proof { pending: true, status, .. } => self.postcopy_pending(&status, todo),
            FromDestination::Recovering { epoch } => self.postcopy_agreed(epoch),
            FromDestination::Proof { status, complaint, .. } if complaint.is_empty() => {
                tracing::info!(migration = %self.job.migration, %status, "the guest proved itself");
                self.apply(SourceEvent::Proved, todo);
                if !self.job.options.hold {
                    self.apply(SourceEvent::Finalise, todo);
                }
            }
            FromDestination::Proof { complaint, .. } => {
                tracing::info!(migration = %self.job.migration, %complaint, "the guest did not prove itself yet");
                self.record.report.note = Some(complaint);
                self.publish(None);
            }
            FromDestination::Finalised { receipts } => {
                self.keep_receipts(&receipts);
                self.finalised = true;
            }
        }
    }

    pub(super) fn prepared(
        &mut self,
        generation: u64,
        key: &str,
        findings: Vec<Finding>,
        todo: &mut VecDeque<SourceAction>,
    ) {
        self.findings.extend(findings);
        if self.job.options.dry_run {
            self.dry_run_done = true;
            self.publish(None);
            return;
        }
        let known = self.context.records.generation(&self.job.vm);
        let fresh = known.is_ok_and(|known| generation > known.0);
        let parsed: Option<volume::ChunkId> = key.parse().ok();
        match parsed {
            Some(bytes) if fresh => {
                self.key = Some(bytes.0);
                self.record.generation = generation;
                if let Some(tunnel) = self.tunnel.clone() {
                    self.contact.up(tunnel);
                }
                self.apply(SourceEvent::Prepared, todo);
            }
            _ => {
                let why = format!("the destination's generation {generation} or its key is not valid");
                self.apply(SourceEvent::Failed(why), todo);
            }
        }
    }

    pub(super) fn qemu(&mut self, event: EventKind, todo: &mut VecDeque<SourceAction>) {
        match event {
            // The rounds end their jobs themselves, and mind their errors.
            EventKind::JobCancelled(_) | EventKind::JobCompleted(_) | EventKind::JobStatusChange { .. }
                if self.record.mode != Mode::Live => {}
            EventKind::JobReady(job) if mirror::is_ours(&job.device) => {
                self.ready.insert(job.device);
                self.check_ready(todo);
            }
            EventKind::JobError { device, .. } if mirror::is_ours(&device) => {
                self.apply(SourceEvent::Failed(self.why_mirror_failed(&device)), todo);
            }
            EventKind::JobCompleted(job) | EventKind::JobCancelled(job)
                if mirror::is_ours(&job.device) && matches!(self.state(), SourceState::Mirroring) =>
            {
                let why = job.error.unwrap_or_else(|| "it ended early".to_owned());
                self.apply(SourceEvent::Failed(format!("the mirror {}: {why}", job.device)), todo);
            }
            EventKind::JobStatusChange { id, status: JobStatus::Aborting } if mirror::is_ours(&id) => {
                self.apply(SourceEvent::Failed(format!("QEMU gave up the mirror {id}")), todo);
            }
            EventKind::Stop if self.stopped.is_none() && matches!(self.state(), SourceState::PreCopy) => {
                self.stopped = Some(Instant::now());
                if self.convergence.is_ours() {
                    self.apply(SourceEvent::SwitchoverReached, todo);
                }
            }
            EventKind::Migration(MigrationStatus::PreSwitchover) => {
                self.stopped.get_or_insert_with(Instant::now);
                self.apply(SourceEvent::SwitchoverReached, todo);
            }
            EventKind::Migration(MigrationStatus::Failed) => {
                self.apply(SourceEvent::Failed("QEMU's migration failed".to_owned()), todo);
            }
            EventKind::Migration(MigrationStatus::Cancelled) => {
                self.apply(SourceEvent::Failed("somebody cancelled QEMU's migration".to_owned()), todo);
            }
            EventKind::Shutdown { .. } if self.can_cancel() => {
                self.apply(
                    SourceEvent::Failed("the guest was shut down during the migration".to_owned()),
                    todo,
                );
            }
            _ => {}
        }
    }

    pub(super) fn check_ready(&mut self, todo: &mut VecDeque<SourceAction>) {
        if self.ready.len() >= self.disks.len() {
            self.all_in_step(todo);
        }
    }

    pub(super) fn command(&mut self, command: Command, todo: &mut VecDeque<SourceAction>) {
        if command == Command::Finalise && self.recovery.owes() {
            tracing::warn!(migration = %self.job.migration, "not finalised: the guest still needs memory that is here");
            return;
        }
        let halves = self.job.options.postcopy
            && matches!(self.state(), SourceState::Permitting | SourceState::Running);
        if command == Command::TakeBack && halves {
            let why = "the guest's memory is not whole at the destination yet, and QEMU cannot go back from post-copy; \
                       take it back when it is proven";
            tracing::warn!(migration = %self.job.migration, why, "the guest is not taken back");
            self.record.report.note = Some(why.to_owned());
            self.publish(None);
            return;
        }
        let event = match command {
            Command::Cancel => SourceEvent::Cancel,
            Command::TakeBack => SourceEvent::TakeBack,
            Command::Finalise => SourceEvent::Finalise,
            Command::Resolve(choice) => SourceEvent::Resolve(choice),
        };
        let chose_destination = matches!(event, SourceEvent::Resolve(Choice::Destination));
        self.apply(event, todo);
        if chose_destination && !self.job.options.hold {
            self.apply(SourceEvent::Finalise, todo);
        }
    }

    pub(super) fn note_run(&mut self) {
        let report = &mut self.record.report;
        let millis = |since: Duration| u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        report.total_ms = Some(millis(self.began.elapsed()));
        report.downtime_ms = self.stopped.map(|stopped| millis(stopped.elapsed()));
        self.note_bytes();
        self.record.report.grade();
    }
}
