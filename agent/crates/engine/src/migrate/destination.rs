//! The host that a VM comes to: one owner task for each migration.

mod again;
mod images;
mod monitor;
mod policy;
mod prepare;
mod qemu;
mod receipts;
mod recover;
mod rejoin;
mod revoke;
mod run;
mod signals;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::qemu_nbd::Export;
use hypervisor::qmp::{EventKind, Qmp};
use hypervisor::specification::{StartRequest, VmSpecification};
use session::cutover::{Destination, DestinationAction, DestinationEvent, DestinationState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tunnel::ChannelTunnel;
use volume::SessionId;

use super::contact::Arrived;
pub use policy::{Arrival, Arrivals, Policy, stranger};
pub(super) use receipts::Sealed;
pub use receipts::of as receipts_of;

use super::leaves::LiveLeaves;
use super::message::{self, DiskRoot, FromDestination, FromSource};
use super::preflight::Finding;
use super::ram::RamReceiver;
use super::record::{Record, Records, Role};
use super::status::{Command, Status};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::pool::Pool;
use receipt::ReceiptSigner;

/// Signals that wait for the owner.
const SIGNALS: usize = 256;

/// What every migration to this host needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// Records and generations.
    pub records: Records,
    /// CPU threads.
    pub cpu: Cpu,
    /// Pools that disks may be put into.
    pub pools: Arc<Vec<Pool>>,
    /// `novaferry-vmd`'s socket.
    pub vmd: PathBuf,
    /// What may come, and where to.
    pub policy: Arc<Policy>,
    /// Signs the receipt of the cut-over.
    pub signer: Arc<ReceiptSigner>,
    /// The process is to end.
    pub stop: CancellationToken,
}

/// What happened outside.
#[derive(Debug)]
pub(super) enum Signal {
    Message(FromSource),
    /// Of this tunnel, counted from 1.
    TunnelLost(u64, String),
    /// Of this tunnel.
    Channel(u64, wire::ChannelHello, Box<tunnel::Channel>),
    Qemu(EventKind),
    /// Of this monitor.
    QemuGone(u64, String),
    /// QEMU answers, or did not in a long time.
    Monitor(Result<Qmp, String>),
    Carrier(&'static str, Result<(), String>),
}

/// One disk that comes.
#[derive(Debug)]
pub(super) struct DiskRun {
    pub(super) id: String,
    pub(super) leaves: Arc<LiveLeaves>,
}

/// Where QEMU listens here.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    pub(super) qmp: PathBuf,
    pub(super) nbd: PathBuf,
    pub(super) incoming: PathBuf,
}

impl Sockets {
    /// In the folder that vmd made for them.
    pub(super) fn in_folder(folder: &std::path::Path) -> Self {
        Self {
            qmp: folder.join("qmp.sock"),
            nbd: folder.join("nbd.sock"),
            incoming: folder.join("incoming.sock"),
        }
    }
}

pub(super) struct Owner {
    pub(super) context: Context,
    pub(super) migration: SessionId,
    pub(super) machine: Destination,
    pub(super) record: Record,
    status: watch::Sender<Status>,
    pub(super) signals: mpsc::Sender<Signal>,
    pub(super) carriers: JoinSet<()>,
    /// Those who listen: to QEMU and to the source.
    watchers: JoinSet<()>,
    pub(super) tunnel: Option<ChannelTunnel>,
    /// Tunnels so far: an old one's end may be noticed after the next one came.
    tunnels: u64,
    /// What gives the channels to their byte paths, by number.
    pub(super) arrived: BTreeMap<u16, Arrived>,
    /// How long a lost connection is waited for before there is a permit.
    pub(super) patience: Duration,
    /// Until then.
    lost_until: Option<Instant>,
    pub(super) qmp: Option<Qmp>,
    /// Monitors so far: an old one's end says nothing about QEMU.
    monitors: u64,
    /// Somebody waits for QEMU's monitor.
    connecting: bool,
    /// After a restart, while it is not known whether the guest runs: when that is looked at again.
    start_again_at: Option<Instant>,
    pub(super) specification: Option<VmSpecification>,
    pub(super) findings: Vec<Finding>,
    pub(super) sockets: Option<Sockets>,
    pub(super) disks: Vec<DiskRun>,
    /// Warm and cold: servers of the images while they are written.
    pub(super) images: BTreeMap<String, Export>,
    /// Warm and cold: the VM, bound to this host.
    pub(super) request: Option<StartRequest>,
    pub(super) pool: String,
    pub(super) key_id: String,
    pub(super) ram: Option<Arc<RamReceiver>>,
    /// The guest's memory follows while it runs.
    pub(super) postcopy: bool,
    recovery: recover::Recovery,
    /// The disks were read back in the pause.
    pub(super) readback: bool,
    /// The source's roots, once they were found to be those of what is here.
    pub(super) compared: Vec<DiskRoot>,
    /// Nothing was made here: refused, or a dry run.
    pub(super) over: bool,
    prepared: bool,
    /// From the request to the end, in the source's trace.
    span: tracing::Span,
}

/// Takes part in a migration until it is decided, or the process ends. The tunnels come in `contacts`: the first, and
/// those after a lost one.
pub async fn run(
    context: Context,
    migration: SessionId,
    record: Option<Record>,
    mut contacts: mpsc::Receiver<ChannelTunnel>,
    mut commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
) -> Option<Record> {
    let (signals, mut inbox) = mpsc::channel(SIGNALS);
    let resumed = record.is_some();
    let record = record.unwrap_or_else(|| new_record(migration, ""));
    let machine = match &record.role {
        Role::Destination { state, .. } => Destination::from_record(state.clone()),
        Role::Source { .. } => Destination::default(),
    };
    let mut owner = Owner {
        context,
        migration,
        machine,
        record,
        status,
        signals,
        carriers: JoinSet::new(),
        watchers: JoinSet::new(),
        tunnel: None,
        tunnels: 0,
        arrived: BTreeMap::new(),
        patience: Duration::ZERO,
        lost_until: None,
        qmp: None,
        monitors: 0,
        connecting: false,
        start_again_at: None,
        specification: None,
        findings: Vec::new(),
        sockets: None,
        disks: Vec::new(),
        images: BTreeMap::new(),
        request: None,
        pool: String::new(),
        key_id: String::new(),
        ram: None,
        postcopy: false,
        recovery: recover::Recovery::default(),
        readback: false,
        compared: Vec::new(),
        over: false,
        prepared: resumed,
        span: tracing::Span::none(),
    };
    let mut todo = VecDeque::new();
    let stop = owner.context.stop.clone();
    if resumed && !owner.machine.state().is_final() {
        // Nothing is decided about a guest before vmd has said how it is.
        let alive = tokio::select! {
            () = stop.cancelled() => return Some(owner.record),
            alive = owner.look_for_guest() => alive,
        };
        owner.apply(DestinationEvent::Restarted { alive }, &mut todo);
    }
    loop {
        while let Some(action) = todo.pop_front() {
            owner.perform(action, &mut todo).await;
        }
        if owner.over || owner.machine.state().is_final() && owner.tunnel.is_none() && contacts.is_empty() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            Some(tunnel) = contacts.recv() => owner.take_tunnel(tunnel),
            Some(signal) = inbox.recv() => {
                let span = owner.span.clone();
                tracing::Instrument::instrument(owner.signal(signal, &mut todo), span).await;
            }
            Some(command) = commands.recv() => owner.command(command, &mut todo),
            () = until(owner.lost_until) => owner.give_up_contact(&mut todo),
            () = until(owner.start_again_at) => owner.start_again(&mut todo).await,
        }
    }
    owner.close().await
}

/// Waits until then; for ever without an instant.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The record of a migration that begins.
#[must_use]
pub fn new_record(migration: SessionId, peer: &str) -> Record {
    let state = DestinationState::Waiting { complete: false };
    Record::new(migration, "", peer, Role::Destination { state, disks: Vec::new() })
}

impl Owner {
    pub(super) fn save(&mut self) -> Result<(), EngineError> {
        let machine = self.machine.state().clone();
        if let Role::Destination { state, .. } = &mut self.record.role {
            *state = machine;
        }
        self.context.records.save(&mut self.record)
    }

    pub(super) fn apply(&mut self, event: DestinationEvent, todo: &mut VecDeque<DestinationAction>) {
        let before = self.machine.clone();
        let Some(actions) = self.machine.handle(event.clone()) else { return };
        let changed = before.state() != self.machine.state();
        if changed {
            tracing::info!(
                migration = %self.migration, vm = %self.record.vm, from = before.state().name(),
                to = self.machine.state().name(), ?event, "migration"
            );
        }
        if changed
            && self.prepared
            && self.machine.state().is_durable()
            && let Err(error) = self.save()
        {
            tracing::error!(error = %error.chain(), "a migration's state cannot be recorded");
            let giving_up =
                matches!(self.machine.state(), DestinationState::Burning(_) | DestinationState::Revoking(_));
            self.machine = before;
            // What was not recorded must not be acted on. Giving up that cannot be recorded is tried again at the next
            // start; until then the source is in doubt, which is the truth.
            if !giving_up {
                self.apply(DestinationEvent::Failed(error.chain()), todo);
            }
            return;
        }
        todo.extend(actions);
        self.publish();
    }

    pub(super) fn publish(&self) {
        self.status.send_modify(|status| {
            status.record = self.record.clone();
            if let Role::Destination { state, .. } = &mut status.record.role {
                *state = self.machine.state().clone();
            }
            status.findings.clone_from(&self.findings);
            status.live.postcopy = self.recovery.shown();
        });
    }

    async fn perform(&mut self, action: DestinationAction, todo: &mut VecDeque<DestinationAction>) {
        match action {
            DestinationAction::Run => {
                if self.may_have_run() {
                    return self.start_again(todo).await;
                }
                let event = self.start_guest().await;
                self.apply(event, todo);
            }
            DestinationAction::Discard => {
                if self.discard().await {
                    self.apply(DestinationEvent::Discarded, todo);
                }
            }
            DestinationAction::SayRuns => self.tell(&FromDestination::Runs {}).await,
            DestinationAction::SayNotRun => {
                let reason = match self.machine.state() {
                    DestinationState::Burned(why) => why.clone(),
                    _ => String::new(),
                };
                self.tell(&FromDestination::NotRun { reason }).await;
            }
            DestinationAction::Say(verdict) => self.tell(&FromDestination::Verdict { verdict }).await,
        }
    }

    pub(super) async fn tell(&self, message: &FromDestination) {
        let Some(tunnel) = &self.tunnel else { return };
        let sent = match message::encode(message) {
            Ok(bytes) => tunnel.send_message(bytes).await.map_err(|error| error.chain()),
            Err(why) => Err(why),
        };
        if let Err(why) = sent {
            tracing::debug!(%why, "the source cannot be told; it will ask");
        }
    }

    fn take_tunnel(&mut self, tunnel: ChannelTunnel) {
        if self.record.peer.is_empty() {
            self.record.peer = tunnel.peer().to_string();
        }
        if self.record.peer != tunnel.peer().as_str() {
            tracing::warn!(peer = %tunnel.peer(), "a migration of another host is asked about");
            tunnel.close(
                tunnel::CloseCode::Failed(wire::FailCode::NotAuthorised),
                "this migration belongs to another host",
            );
            return;
        }
        if let Some(earlier) = self.tunnel.replace(tunnel.clone()) {
            earlier.close(tunnel::CloseCode::Done, "the source made another connection");
        }
        self.tunnels += 1;
        let (signals, which) = (self.signals.clone(), self.tunnels);
        self.watchers.spawn(async move {
            let mut open = true;
            let why = loop {
                tokio::select! {
                    message = tunnel.recv_message() => match message.map_err(|error| error.chain()) {
                        Ok(bytes) => match message::decode(&bytes) {
                            Ok(message) => {
                                if signals.send(Signal::Message(message)).await.is_err() {
                                    return;
                                }
                            }
                            Err(why) => {
                                let code = tunnel::CloseCode::Failed(wire::FailCode::Protocol);
                                tunnel.close(code, &why);
                                break why;
                            }
                        },
                        Err(why) => break why,
                    },
                    channel = tunnel.accept_channel(), if open => match channel {
                        Ok((hello, channel)) => {
                            if signals.send(Signal::Channel(which, hello, Box::new(channel))).await.is_err() {
                                return;
                            }
                        }
                        // What the source said before it hung up comes first; then the messages say why.
                        Err(_over) => open = false,
                    },
                }
            };
            // Fails when the owner is gone.
            drop(signals.send(Signal::TunnelLost(which, why)).await);
        });
    }

    /// Runs a byte path; its end is a signal.
    pub(super) fn carry(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let signals = self.signals.clone();
        self.carriers.spawn(async move {
            let result = work.await;
            drop(signals.send(Signal::Carrier(what, result)).await);
        });
    }

    async fn close(mut self) -> Option<Record> {
        self.carriers.shutdown().await;
        self.watchers.shutdown().await;
        if let Some(tunnel) = &self.tunnel {
            tunnel.close(tunnel::CloseCode::Done, "the migration is over at the destination");
        }
        if !self.prepared {
            return None;
        }
        if let Err(error) = self.save() {
            tracing::error!(error = %error.chain(), "a migration's end cannot be recorded");
        }
        self.publish();
        Some(self.record)
    }
}
