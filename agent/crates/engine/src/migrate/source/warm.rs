//! Warm: the disks are copied in rounds while the guest runs, then it is stopped for the last round and boots at the
//! destination.
//!
//! Each round copies the disks as they were at one instant ([`fleece`]), so that what was copied belongs together; the
//! guest's file systems are frozen around that instant if its agent answers. The last round is made from the disks
//! themselves, since a stopped guest does not write.

pub(super) mod fleece;
pub(super) mod guest;
pub(super) mod rounds;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::nbd::DirtyMap;
use hypervisor::nbd::client::DIRTY_BITMAP;
use hypervisor::qmp::Qmp;
use session::cutover::SourceEvent;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::copy::{Readable, allocated, copy};
use super::{Owner, Signal, StepResult, chain, facts};
use crate::migrate::cutover::now_ms;
use crate::migrate::disk::MirrorTarget;
use crate::migrate::preflight::Finding;
use fleece::{Disk, Place};
use rounds::{Next, Rounds};

/// What is kept of the allowed pause for answers and for what both hosts do meanwhile.
const OVERHEAD: Duration = Duration::from_millis(50);

/// How often it is looked at what the guest has written, while its shutdown waits. Each round stops its file systems for
/// an instant, if it has an agent.
const LOOK: Duration = Duration::from_secs(10);

/// What copying the disks has going.
#[derive(Debug, Default)]
pub(in super::super) struct Copying {
    /// The rounds; they end with the migration.
    pub(super) work: JoinSet<()>,
    /// Where the disks are read in the end, in the order of `Owner::disks`.
    pub(super) readable: Vec<Readable>,
    /// Cold: servers of the images, and what their files were like at first.
    pub(super) images: super::cold::Images,
    /// The last point: its bitmap knows what the guest has written since.
    point: u32,
    disks: Vec<Disk>,
    place: Option<Place>,
    agent: Option<PathBuf>,
    /// Rounds go on until they are told that the guest may be stopped.
    may_stop: Option<watch::Sender<bool>>,
}

impl Copying {
    /// The guest may be stopped; whether there are rounds that are to end first.
    pub(super) fn let_go(&self) -> bool {
        self.may_stop.as_ref().is_some_and(|may_stop| {
            may_stop.send_replace(true);
            true
        })
    }
}

/// What the rounds came to.
#[derive(Debug)]
pub(in super::super) struct Copied {
    point: u32,
    rounds: u64,
    note: Option<String>,
}

impl Copied {
    /// A copy that needed one pass.
    pub(super) fn once() -> Self {
        Self { point: 0, rounds: 1, note: None }
    }
}

/// The rounds, apart from their owner.
struct Work {
    qmp: Qmp,
    place: Place,
    agent: Option<PathBuf>,
    qemu: u32,
    disks: Vec<(Disk, Arc<MirrorTarget>)>,
    budget: Duration,
    may_stop: watch::Receiver<bool>,
    signals: mpsc::Sender<Signal>,
}

impl Owner {
    /// What only matters to a warm move: findings, and the guest's agent.
    pub(super) async fn prepare_warm(&mut self, qmp: &Qmp, pid: u32, running: bool) -> Result<(), String> {
        if fleece::is_taken(qmp).await? {
            let fix = "let the backup or copy that uses it end first";
            self.findings.push(Finding::blocking("nbd-server", "QEMU's NBD server is in use", fix));
        }
        let known = if running { facts::guest_agent(pid)? } else { None };
        self.copying.agent = match known {
            Some(socket) if guest::answers(&socket).await => Some(socket),
            _ => None,
        };
        if self.copying.agent.is_none() {
            let fix = "run qemu-guest-agent in the guest, on a virtserialport org.qemu.guest_agent.0 of the VM; without \
                       it the disks are as after a power failure";
            self.findings.push(Finding::warning("guest-agent", "the guest's agent does not answer", fix));
        }
        Ok(())
    }

    /// Begins to copy while the guest runs.
    pub(super) async fn start_rounds(&mut self) -> StepResult {
        let qmp = self.monitor().await?;
        let pid = self.job.process.ok_or("the VM's process is not known; is its qemu.pid there?")?.pid;
        let disks = self.open_targets()?;
        if disks.is_empty() {
            return Ok(self.in_step());
        }
        let place = Place::new(&self.job.qmp, &self.job.migration);
        fleece::start_server(&qmp, &place).await?;
        let disks: Vec<Disk> =
            disks.into_iter().map(|disk| Disk { node: disk.node, size: disk.size }).collect();
        self.copying.place = Some(place.clone());
        self.copying.disks.clone_from(&disks);
        let targets = self.disks.iter().map(|disk| Arc::clone(&disk.target));
        let round_trip = self.tunnel.as_ref().and_then(|tunnel| tunnel.stats().rtt).unwrap_or_default();
        let signals = self.signals.clone();
        let (may_stop, stop) = watch::channel(self.record.cutover.is_due(now_ms()));
        self.copying.may_stop = Some(may_stop);
        let work = Work {
            may_stop: stop,
            signals: signals.clone(),
            qmp,
            place,
            agent: self.copying.agent.clone(),
            qemu: facts::user(pid)?,
            disks: disks.into_iter().zip(targets).collect(),
            budget: self.job.options.max_downtime.saturating_sub(round_trip * 3 + OVERHEAD),
        };
        self.copying.work.spawn(async move {
            let signal = match work.rounds().await {
                Ok(copied) => Signal::Copied(copied),
                Err(why) => Signal::Carrier("the copy of the disks", Err(why)),
            };
            // Fails when the owner is gone.
            drop(signals.send(signal).await);
        });
        Ok(None)
    }

    /// The rounds are done.
    pub(super) fn note_copied(&mut self, copied: Copied) {
        self.copying.may_stop = None;
        self.copying.point = copied.point;
        self.record.report.rounds = copied.rounds;
        if copied.note.is_some() {
            self.record.report.note = copied.note;
        }
    }

    /// Stops the guest and copies the rest.
    pub(super) async fn last_round(&mut self) -> StepResult {
        self.wait_no_more();
        let qmp = self.monitor().await?;
        if let Some(agent) = &self.copying.agent {
            // It is thawed when the guest runs here again: see `thaw`. At the destination it boots.
            guest::freeze(agent).await;
        }
        self.stopped.get_or_insert_with(Instant::now);
        qmp.stop().await.map_err(|error| chain(&error))?;
        let Some(place) = self.copying.place.clone() else {
            return Ok(Some(SourceEvent::SwitchoverReached)); // no disks
        };
        let point = self.copying.point;
        fleece::show_stopped(&qmp, &self.copying.disks, point).await?;
        self.copying.readable = (0..self.disks.len()).map(|at| place.readable(at)).collect();
        for (disk, readable) in self.disks.iter().zip(&self.copying.readable) {
            copy_dirty(readable, point, &disk.target).await?;
        }
        Ok(Some(SourceEvent::SwitchoverReached))
    }

    /// Takes away everything that the rounds made in QEMU, once nothing of ours uses it.
    pub(super) async fn remove_rounds(&mut self, qmp: &Qmp) -> Result<(), String> {
        let place = Place::new(&self.job.qmp, &self.job.migration);
        fleece::remove_rest(qmp, &place).await
    }

    /// Removes what a QEMU that is gone has left in files.
    pub(super) fn remove_overlays(&self) {
        if let Err(why) = Place::new(&self.job.qmp, &self.job.migration).remove_files() {
            tracing::warn!(%why, "files of the copy stay");
        }
    }

    /// Lets the guest's file systems go on, if they are frozen.
    pub(super) async fn thaw(&self) {
        let known = self.job.process.and_then(|process| match facts::guest_agent(process.pid) {
            Ok(socket) => socket,
            Err(why) => {
                tracing::warn!(%why, "whether the guest's file systems are frozen is not known");
                None
            }
        });
        if let Some(socket) = known {
            guest::thaw(&socket).await;
        }
    }
}

/// Copies what was written since `point`.
async fn copy_dirty(readable: &Readable, point: u32, target: &MirrorTarget) -> Result<u64, String> {
    let bitmap = fleece::bitmap_name(point);
    let volume = readable.open(vec![format!("{DIRTY_BITMAP}{bitmap}")]).await?;
    let map = DirtyMap::of_bitmap(&volume, &bitmap).await.map_err(|error| chain(&error))?;
    let copied = copy(volume.client(), &map, target).await?;
    volume.close().await;
    Ok(copied)
}

impl Work {
    async fn rounds(mut self) -> Result<Copied, String> {
        let mut rounds = Rounds::default();
        let only: Vec<Disk> = self.disks.iter().map(|(disk, _)| disk.clone()).collect();
        let mut point = 0;
        loop {
            self.begin(&only, point).await?;
            let began = Instant::now();
            let copied = tokio::select! {
                copied = self.copy(point) => copied?,
                why = fleece::watch_room(&self.place, &only) => return Err(why),
            };
            let took = began.elapsed();
            fleece::clear(&self.qmp, &self.place, &only, point).await?;
            let dirty = fleece::dirty(&self.qmp, &only, point).await?;
            let next = rounds.note(copied, took, dirty, self.budget);
            tracing::info!(round = rounds.done(), copied, ?took, dirty, ?next, "a round over the disks");
            if let Next::Last { fits } = next
                && !self.wait(&rounds, &only, point).await?
            {
                let dirty = fleece::dirty(&self.qmp, &only, point).await?;
                let note = (!fits).then(|| {
                    format!(
                        "the guest writes its disks as fast as they are copied: the last round of {dirty} bytes takes \
                         about {} ms, more than was allowed",
                        rounds.time_for(dirty).as_millis()
                    )
                });
                return Ok(Copied { point, rounds: u64::from(rounds.done()), note });
            }
            point += 1;
        }
    }

    /// The rest fits the pause, or does not become less: waits until the guest may be stopped, or until so much was written
    /// meanwhile that another round is worth it. Gives whether it is.
    async fn wait(&mut self, rounds: &Rounds, disks: &[Disk], point: u32) -> Result<bool, String> {
        let mut waited = false;
        while !*self.may_stop.borrow_and_update() {
            if !waited {
                // Fails when the owner is gone.
                drop(self.signals.send(Signal::InStep).await);
                waited = true;
            }
            let let_go = tokio::time::timeout(LOOK, self.may_stop.changed()).await;
            if let Ok(Err(_owner_gone)) = let_go {
                return Err("the migration has ended".to_owned());
            }
            if let_go.is_err()
                && rounds.is_worth_it(fleece::dirty(&self.qmp, disks, point).await?, self.budget)
            {
                return Ok(true);
            }
        }
        // What came together since the last look would be a part of the pause.
        Ok(waited && rounds.is_worth_it(fleece::dirty(&self.qmp, disks, point).await?, self.budget))
    }

    /// Makes a point, with the guest's file systems frozen around it.
    async fn begin(&self, disks: &[Disk], point: u32) -> Result<(), String> {
        let Some(agent) = &self.agent else {
            return fleece::begin(&self.qmp, &self.place, disks, point, self.qemu).await;
        };
        guest::freeze(agent).await;
        let begun = fleece::begin(&self.qmp, &self.place, disks, point, self.qemu).await;
        guest::thaw(agent).await;
        begun
    }

    async fn copy(&self, point: u32) -> Result<u64, String> {
        let mut copied = 0;
        for (at, (_, target)) in self.disks.iter().enumerate() {
            let readable = self.place.readable(at);
            copied += match point.checked_sub(1) {
                Some(before) => copy_dirty(&readable, before, target).await?,
                None => {
                    let (volume, map) = allocated(&readable).await?;
                    let copied = copy(volume.client(), &map, target).await?;
                    volume.close().await;
                    copied
                }
            };
        }
        Ok(copied)
    }
}
