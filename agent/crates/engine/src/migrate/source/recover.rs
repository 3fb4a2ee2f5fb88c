//! Post-copy: the guest runs at the destination while part of its memory is here alone. When the connection is lost both
//! QEMUs pause the migration, and go on over the next one.
//!
//! ```text
//! source                                             destination
//!  connection lost: QEMU's sockets are closed, and both QEMUs are `postcopy-paused`; it is dialled again
//!  Recover ────────────────────────────────────────► QEMU: migrate-recover, it listens at another socket
//!  QEMU: migrate, resume ◄───────────── Recovering ──
//!  QEMU's connections ═ channels of this epoch ═════► QEMU; pages that are not there yet come again
//! ```
//!
//! What is to be done is read from QEMU's own state at every look, so that it does not matter how often the connection
//! is lost, where in a recovery, or whether this process was started again meanwhile. Both ends begin each epoch with
//! an empty memory of pages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::inventory::Activity;
use hypervisor::qmp::words::MigrationStatus;
use hypervisor::qmp::{MigrationAddress, MigrationInfo, Qmp};
use session::cutover::{SourceAction, SourceEvent, SourceState};
use tokio::time::Instant;
use volume::Generation;
use wire::{ChannelHello, ChannelKind};

use super::{Owner, chain, mirror};
use crate::migrate::contact::Single;
use crate::migrate::message::FromSource;
use crate::migrate::mode::Mode;
use crate::migrate::ram::{RamSender, resumed};
use crate::migrate::status::{Live, Postcopy};

/// When the destination is asked again to take a recovery up. It may have to wait for its QEMU meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long QEMU may take to notice that its sockets are closed before it is told.
const NOTICE: Duration = Duration::from_secs(1);
/// Longest pause between attempts to reach a destination whose guest waits for its memory.
pub(super) const REDIAL_WITHIN: Duration = Duration::from_secs(3);
/// QEMU's connections of a recovery: the stream, and the pages that the guest waits for.
const CONNECTIONS: u16 = 2;

/// What is known of a post-copy.
#[derive(Debug, Default)]
pub(in super::super) struct Recovery {
    /// It was asked for, or nobody remembers.
    possible: bool,
    /// QEMU's word at the last look.
    status: Option<MigrationStatus>,
    /// The recovery that was asked for last.
    epoch: u16,
    asked: Option<Instant>,
    /// The destination waits for QEMU's connections.
    agreed: bool,
    /// The byte paths broke, and QEMU has not noticed so far.
    broken: Option<Instant>,
    /// Why the memory here is no more.
    gone: Option<String>,
}

impl Recovery {
    /// Of a migration that may come to post-copy.
    pub(super) fn new(possible: bool) -> Self {
        Self { possible, ..Self::default() }
    }

    /// The guest at the destination needs memory that is here.
    pub(super) fn owes(&self) -> bool {
        self.status.as_ref().is_some_and(resumed::in_postcopy)
    }

    /// The byte paths are gone: what was agreed on is void.
    fn lost(&mut self) {
        (self.asked, self.agreed) = (None, false);
        self.broken.get_or_insert_with(Instant::now);
    }
}

impl Owner {
    /// The connection is lost, or one of the memory's byte paths broke. In post-copy nothing fails by that: QEMU is to
    /// notice, and to wait.
    pub(super) fn postcopy_path_lost(&mut self) {
        if self.recovery.possible && *self.state() == SourceState::Running {
            self.carriers.abort_all();
            self.recovery.lost();
        }
    }

    /// QEMU here is gone or has given up.
    pub(super) fn postcopy_source_gone(&mut self, why: &str) {
        if self.recovery.possible && *self.state() == SourceState::Running {
            self.recovery.gone.get_or_insert_with(|| why.to_owned());
        }
    }

    /// The destination waits for QEMU's connections.
    pub(super) fn postcopy_agreed(&mut self, epoch: u16) {
        self.recovery.agreed = epoch == self.recovery.epoch;
    }

    /// The destination does not have all of the memory. When there is none left here to come, that is for good: its QEMU
    /// has noticed that the stream ended, so that nothing is on its way either.
    pub(super) fn postcopy_pending(&mut self, status: &str, todo: &mut VecDeque<SourceAction>) {
        let Some(gone) = &self.recovery.gone else { return };
        if status == MigrationStatus::PostcopyPaused.as_str() {
            let why = format!("{gone}, and the guest's memory was not all at the destination yet");
            tracing::error!(migration = %self.job.migration, vm = %self.job.vm, %why, "a guest is lost in post-copy");
            self.apply(SourceEvent::MemoryLost(why), todo);
        }
    }

    /// Looks at what is left of the memory here and does what its state asks for.
    pub(super) async fn tend_postcopy(&mut self) {
        if !self.recovery.possible || self.record.mode != Mode::Live || self.recovery.gone.is_some() {
            return;
        }
        let looked = match self.monitor().await {
            Ok(qmp) => qmp.query_migrate().await.map(|info| (qmp, info)).map_err(|error| chain(&error)),
            Err(why) => Err(why),
        };
        let (qmp, info) = match looked {
            Ok(looked) => looked,
            Err(why) => {
                tracing::debug!(%why, "QEMU at the source does not tell how post-copy stands");
                let process = self.job.process;
                if process.is_some_and(|one| one.activity().is_ok_and(|now| now == Activity::Dead)) {
                    self.postcopy_source_gone("QEMU at the source has ended");
                }
                return;
            }
        };
        let status = info.status.clone();
        if status != self.recovery.status {
            let now = status.as_ref().map_or("none", |status| status.as_str());
            tracing::info!(migration = %self.job.migration, now, "post-copy at the source");
            self.recovery.status.clone_from(&status);
        }
        match status {
            Some(MigrationStatus::PostcopyPaused) => self.recover(&qmp).await,
            Some(MigrationStatus::PostcopyActive) => self.pause_if_broken(&qmp).await,
            Some(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                self.postcopy_source_gone(
                    "QEMU at the source gave its migration up when the connection broke",
                );
            }
            _ => {}
        }
        self.show_postcopy(&info);
    }

    fn show_postcopy(&mut self, info: &MigrationInfo) {
        let mut live = Live::default();
        if let Some(ram) = info.ram.as_ref().filter(|_| self.recovery.owes()) {
            (live.ram_remaining, live.ram_total) = (ram.remaining, ram.total);
            live.round = ram.dirty_sync_count;
        }
        live.postcopy = match &info.status {
            Some(MigrationStatus::PostcopyPaused) if self.tunnel.is_none() => Some(Postcopy::Paused),
            Some(MigrationStatus::PostcopyPaused) => Some(Postcopy::Recovering),
            status => status.as_ref().and_then(resumed::shown),
        };
        if let Some(ram) = &self.ram {
            (live.in_flight, live.in_flight_limit) = (ram.flight.bytes(), ram.flight.limit());
        }
        self.note_bytes();
        self.publish(Some(live));
    }

    /// QEMU notices closed sockets when it writes to them. One that has nothing to write is told.
    async fn pause_if_broken(&mut self, qmp: &Qmp) {
        if self.recovery.broken.is_some_and(|since| since.elapsed() > NOTICE) {
            self.recovery.broken = None;
            if let Err(error) = qmp.migrate_pause().await {
                tracing::debug!(error = %chain(&error), "QEMU at the source does not pause its migration");
            }
        }
    }

    /// QEMU waits for a connection.
    async fn recover(&mut self, qmp: &Qmp) {
        self.recovery.broken = None;
        if std::mem::take(&mut self.recovery.agreed) {
            // Whatever comes of it, it gets some time.
            self.recovery.asked = Some(Instant::now());
            match self.resume_ram(qmp).await {
                Ok(()) => tracing::info!(migration = %self.job.migration, "post-copy goes on"),
                Err(why) => tracing::info!(%why, "post-copy does not go on yet"),
            }
            return;
        }
        if self.tunnel.is_none() {
            self.redial();
            return;
        }
        if self.recovery.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return;
        }
        self.recovery.epoch = resumed::next_epoch(self.recovery.epoch);
        self.recovery.asked = Some(Instant::now());
        let (epoch, slots) = (self.recovery.epoch, self.job.options.slots);
        tracing::info!(migration = %self.job.migration, epoch, "asks the destination to take post-copy up again");
        if let Err(why) = self.tell(&FromSource::Recover { epoch, slots }).await {
            tracing::debug!(%why, "the destination cannot be asked to recover now");
        }
    }

    /// Lets QEMU connect again, and carries its connections to the destination.
    async fn resume_ram(&mut self, qmp: &Qmp) -> Result<(), String> {
        let epoch = self.recovery.epoch;
        let tunnel = self.tunnel.clone().ok_or("there is no connection to the destination")?;
        self.carriers.abort_all();
        let ram = RamSender::new(self.job.options.slots, self.job.options.level, self.context.cpu.clone());
        if let Some(before) = &self.ram {
            ram.counters.carry_over(&before.counters);
        }
        self.ram = Some(Arc::clone(&ram));
        // A name of its own: the file of the one before goes when its task is gone.
        let socket = self.socket(&format!("ram-{epoch}"));
        let (listener, file) = mirror::listen_at(&socket)?;
        let (migration, generation) = (self.job.migration, Generation(self.record.generation));
        self.carry("the memory's channels", async move {
            let _file = file;
            let mut work = tokio::task::JoinSet::new();
            let mut number = 0;
            loop {
                tokio::select! {
                    accepted = listener.accept(), if number < CONNECTIONS => {
                        let (stream, _) = accepted.map_err(|error| error.to_string())?;
                        number += 1;
                        let channel = resumed::channel(epoch, number);
                        let hello = ChannelHello { migration, generation, channel, kind: ChannelKind::Ram };
                        let channel = tunnel.open_channel(hello).await.map_err(|error| error.chain())?;
                        if number == 1 {
                            // Behind the pages that the guest waits for.
                            channel.write.set_priority(resumed::BACKGROUND);
                        }
                        let ram = Arc::clone(&ram);
                        let short = u8::try_from(number).unwrap_or(u8::MAX);
                        work.spawn(async move { ram.carry(short, stream, Single(Some(channel))).await });
                    }
                    Some(done) = work.join_next() => {
                        done.map_err(|panic| panic.to_string())?.map_err(|error| chain(&error))?;
                        if work.is_empty() {
                            return Ok(());
                        }
                    }
                }
            }
        });
        qmp.migrate(&MigrationAddress::Uri(format!("unix:{}", socket.display())), true)
            .await
            .map_err(|error| chain(&error))
    }
}
