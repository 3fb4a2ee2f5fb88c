//! The host that a VM leaves: one owner task for each migration.
//!
//! ```text
//! signals: messages of the destination, QEMU's events, carriers that ended, commands, time
//!    │
//!    ▼
//! machine (session::cutover) ─► record, durable where the state says so ─► actions: prepare, mirror, memory, undo
//! ```

mod calls;
mod cold;
mod connection;
mod content;
mod converge;
mod copy;
mod facts;
mod forecast;
mod handover;
mod memory;
mod mirror;
mod monitor;
mod plan;
mod prepare;
mod reclaim;
mod recover;
mod rejoin;
mod sample;
mod signals;
mod undo;
mod wait;
mod warm;
mod ways;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::inventory::Process;
use hypervisor::qmp::{EventKind, Qmp};
use hypervisor::specification::Derived;
use session::cutover::{Source, SourceAction, SourceEvent, SourceState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tunnel::{ChannelTunnel, Credentials, DialOptions};
use volume::SessionId;

use super::contact::Contact;
use super::cutover::Cutover;
use super::disk::MirrorTarget;
use super::message::{FromDestination, FromSource};
use super::mode::Mode;
use super::preflight::Finding;
use super::ram::RamSender;
use super::record::{Record, Records, Role};
use super::status::{Command, Live, Status};
use crate::cpu::Cpu;
use crate::error::EngineError;

pub use calls::Calls;
pub(super) use memory::capabilities;
pub use ways::{Way, Ways};

/// Signals that wait for the owner.
const SIGNALS: usize = 256;
/// How often progress is looked at, and the bounds of the flight set.
const TICK: Duration = Duration::from_millis(200);
/// What every migration away from this host needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// Records and generations.
    pub records: Records,
    /// This host's identity.
    pub credentials: Credentials,
    /// CPU threads.
    pub cpu: Cpu,
    /// For sockets that QEMU connects to, when the VM has no folder of its own.
    pub runtime: PathBuf,
    /// `novaferry-vmd`'s socket: it keeps the fences.
    pub vmd: PathBuf,
    /// Connections that the destination opens.
    pub calls: Calls,
    /// The process is to end: what is undecided is left to the next start.
    pub stop: CancellationToken,
}

impl Context {
    /// How a destination is dialled, or dials.
    fn dial<'a>(&'a self, options: &'a DialOptions) -> ways::Dial<'a> {
        ways::Dial { options, credentials: &self.credentials, calls: &self.calls }
    }
}

/// What to do when the memory is dirtied faster than it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnNoConverge {
    /// Give up; the guest goes on here.
    #[default]
    Cancel,
    /// Slow the guest's processors down until it converges.
    Throttle,
}

/// How one VM is to be moved.
#[derive(Clone, Debug)]
pub struct Options {
    /// With the memory, without it, or switched off.
    pub mode: Mode,
    /// Longest pause of the guest.
    pub max_downtime: Duration,
    /// Longest time for the memory to converge.
    pub timeout: Duration,
    /// What then.
    pub on_no_converge: OnNoConverge,
    /// multifd channels; 0 for a single stream.
    pub multifd: u8,
    /// Let the guest run at the destination before all of its memory is there: once it runs, losing either host loses
    /// the guest. Needs a single stream.
    pub postcopy: bool,
    /// Pages that are kept for the reduction of RAM, at each end.
    pub slots: u32,
    /// Compression of RAM.
    pub level: reduce::Choice,
    /// Wait for `finalise` after the proof.
    pub hold: bool,
    /// Read the disks in the pause instead of believing the leaf tables.
    pub readback: bool,
    /// Pool at the destination; its default when none.
    pub pool: Option<String>,
    /// How long a lost connection is waited for while the guest runs here.
    pub reconnect: Duration,
    /// When it may switch over; until then the disks are kept in step.
    pub cutover: Cutover,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
}

/// A VM to be moved.
#[derive(Clone, Debug)]
pub struct Job {
    /// Chosen at random.
    pub migration: SessionId,
    /// The VM's id.
    pub vm: String,
    /// Its QMP socket.
    pub qmp: PathBuf,
    /// Its QEMU's process.
    pub process: Option<Process>,
    /// Its folder, if it has one.
    pub folder: Option<PathBuf>,
    /// The destination: how it is dialled, wherever that is.
    pub dial: DialOptions,
    /// Where it is reached, the best first; at least one.
    pub to: Vec<Way>,
    /// How.
    pub options: Options,
    /// W3C context of the trace that this is a part of; not kept over a restart.
    pub traceparent: Option<String>,
}

/// What happened outside.
#[derive(Debug)]
pub(super) enum Signal {
    Message(FromDestination),
    /// Which, and why.
    TunnelLost(u64, String),
    Dialled(Box<ChannelTunnel>, Way),
    /// The destination answers at an address that is better than the one in use.
    BetterWay(Way),
    Qemu(EventKind),
    /// Its monitor hung up; whether its process ended.
    QemuGone {
        why: String,
        dead: bool,
    },
    /// The disks of a warm move are in step, and go on being so.
    InStep,
    /// The disks are copied, but for what the guest writes now.
    Copied(warm::Copied),
    /// A byte path ended.
    Carrier(&'static str, Result<(), String>),
}

/// One disk on its way.
#[derive(Debug)]
pub(super) struct DiskRun {
    pub(super) id: String,
    pub(super) node: String,
    pub(super) size: u64,
    pub(super) target: Arc<MirrorTarget>,
}

/// What a step of the owner says: an event for the machine, if the outcome is known at once.
type StepResult = Result<Option<SourceEvent>, String>;

/// One migration.
pub(super) struct Owner {
    pub(super) context: Context,
    pub(super) job: Job,
    machine: Source,
    record: Record,
    status: watch::Sender<Status>,
    pub(super) signals: mpsc::Sender<Signal>,
    /// Byte paths: they end when the migration is undone.
    pub(super) carriers: JoinSet<()>,
    /// Those who listen: to QEMU, to the destination, for its return.
    watchers: JoinSet<()>,
    pub(super) tunnel: Option<ChannelTunnel>,
    /// Tunnels so far: an old one's end may be noticed after the next one came.
    tunnels: u64,
    /// When the newest of them was made again.
    redialled: Option<Instant>,
    /// The address that the last tunnel was made to.
    path: Option<Way>,
    /// Where the destination is reached, kept current by whoever asked for the migration.
    ways: watch::Receiver<Ways>,
    redialling: bool,
    /// The connection as the byte paths see it.
    pub(super) contact: Contact,
    /// It is lost since then, and waited for.
    lost: Option<Instant>,
    pub(super) qmp: Option<Qmp>,
    pub(super) derived: Option<Derived>,
    pub(super) findings: Vec<Finding>,
    pub(super) disks: Vec<DiskRun>,
    ready: BTreeSet<String>,
    pub(super) wait: wait::Wait,
    /// Warm and cold.
    pub(super) copying: warm::Copying,
    pub(super) ram: Option<Arc<RamSender>>,
    pub(super) key: Option<[u8; 32]>,
    pub(super) rates: memory::Rates,
    convergence: Arc<converge::Convergence>,
    recovery: recover::Recovery,
    pub(super) began: Instant,
    stopped: Option<Instant>,
    /// The destination has heard how it ended.
    finalised: bool,
    dry_run_done: bool,
}

impl Job {
    /// Where the destination is reached, and how fast, until somebody says otherwise.
    #[must_use]
    pub fn ways(&self) -> Ways {
        Ways { to: self.to.clone(), limit: self.dial.limit, cutover: self.options.cutover }
    }
}

/// Carries a migration out to its end, or to the process' end. `record` is new, or what an earlier process left.
pub async fn run(
    context: Context,
    job: Job,
    record: Record,
    resumed: bool,
    mut commands: mpsc::Receiver<Command>,
    ways: watch::Receiver<Ways>,
    status: watch::Sender<Status>,
) -> Record {
    let mut record = record;
    if !resumed {
        record.mode = job.options.mode;
        record.cutover = job.options.cutover;
    }
    let recovery = recover::Recovery::new(resumed || job.options.postcopy);
    let (signals, mut inbox) = mpsc::channel(SIGNALS);
    let machine = match &record.role {
        Role::Source { state, .. } => Source::from_record(state.clone()),
        Role::Destination { .. } => Source::default(),
    };
    let mut owner = Owner {
        context,
        job,
        machine,
        record,
        status,
        signals,
        carriers: JoinSet::new(),
        watchers: JoinSet::new(),
        tunnel: None,
        tunnels: 0,
        redialled: None,
        path: None,
        ways,
        redialling: false,
        contact: Contact::default(),
        lost: None,
        qmp: None,
        derived: None,
        findings: Vec::new(),
        disks: Vec::new(),
        ready: BTreeSet::new(),
        wait: wait::Wait::default(),
        copying: warm::Copying::default(),
        ram: None,
        key: None,
        rates: memory::Rates::default(),
        convergence: Arc::default(),
        recovery,
        began: Instant::now(),
        stopped: None,
        finalised: false,
        dry_run_done: false,
    };
    let mut todo = VecDeque::new();
    if resumed {
        owner.apply(SourceEvent::Restarted, &mut todo);
    } else {
        todo.extend(Source::first_actions());
        if let Err(error) = owner.save() {
            owner.apply(SourceEvent::Failed(error.chain()), &mut todo);
        }
    }
    let stop = owner.context.stop.clone();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(action) = todo.pop_front() {
            owner.step(action, &mut todo, &mut commands).await;
        }
        if owner.is_over() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            Some(signal) = inbox.recv() => owner.signal(signal, &mut todo).await,
            Some(command) = commands.recv() => owner.command(command, &mut todo),
            Ok(()) = owner.ways.changed() => owner.take_ways(&mut todo),
            _ = ticks.tick() => owner.tick(&mut todo).await,
        }
    }
    owner.close().await
}

impl Owner {
    fn state(&self) -> &SourceState {
        self.machine.state()
    }

    /// The permit has not left: cancelling means undoing.
    fn can_cancel(&self) -> bool {
        use SourceState as S;
        matches!(self.state(), S::Preparing | S::Mirroring | S::PreCopy | S::Paused | S::Fencing)
    }

    fn is_over(&self) -> bool {
        match self.state() {
            SourceState::Finalised | SourceState::Lost(_) => self.finalised,
            state => state.is_final() || self.dry_run_done,
        }
    }

    fn save(&mut self) -> Result<(), EngineError> {
        if self.job.options.dry_run {
            return Ok(());
        }
        let machine = self.machine.state().clone();
        if let Role::Source { state, .. } = &mut self.record.role {
            *state = machine;
        }
        self.context.records.save(&mut self.record)
    }

    /// Does one action. While nothing is decided yet, a cancel interrupts it.
    async fn step(
        &mut self,
        action: SourceAction,
        todo: &mut VecDeque<SourceAction>,
        commands: &mut mpsc::Receiver<Command>,
    ) {
        let can_cancel = self.can_cancel();
        let outcome = {
            let mut work = std::pin::pin!(self.perform(action));
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut work => break Some(outcome),
                    Some(command) = commands.recv(), if can_cancel => match command {
                        Command::Cancel | Command::TakeBack => break None,
                        // Nothing is there to be finalised or resolved yet.
                        Command::Finalise | Command::Resolve(_) => {}
                    },
                }
            }
        };
        match outcome {
            None => self.apply(SourceEvent::Cancel, todo),
            Some(Ok(Some(event))) => self.apply(event, todo),
            Some(Ok(None)) => {}
            // Whether the guest died with its monitor is found out first; the machine is told then.
            Some(Err(why)) if self.qmp.as_ref().is_some_and(|qmp| qmp.ended().is_some()) => {
                tracing::debug!(migration = %self.job.migration, %why, "a step ended with QEMU's monitor");
            }
            Some(Err(why)) => {
                tracing::warn!(migration = %self.job.migration, state = self.state().name(), %why, "a step failed");
                self.apply(SourceEvent::Failed(why), todo);
            }
        }
    }

    /// Asks the machine what follows, and makes the state durable before anything is done about it.
    fn apply(&mut self, event: SourceEvent, todo: &mut VecDeque<SourceAction>) {
        let before = self.machine.clone();
        let Some(actions) = self.machine.handle(event.clone()) else { return };
        let undoing = matches!(self.state(), SourceState::Undoing(_) | SourceState::Stopped(_));
        if *self.state() == SourceState::Fencing
            && let Role::Source { fenced, .. } = &mut self.record.role
        {
            *fenced = true;
        }
        if undoing || before.state() != self.machine.state() {
            tracing::info!(
                migration = %self.job.migration, vm = %self.job.vm, from = before.state().name(),
                to = self.state().name(), ?event, "migration"
            );
        }
        if self.state().is_durable()
            && before.state() != self.machine.state()
            && let Err(error) = self.save()
        {
            tracing::error!(error = %error.chain(), "a migration's state cannot be recorded");
            if !undoing {
                // What was not recorded must not be acted on.
                self.machine = before;
                self.apply(SourceEvent::Failed(error.chain()), todo);
                return;
            }
        }
        if undoing {
            todo.clear();
        }
        todo.extend(actions);
        self.publish(None);
    }

    pub(super) fn publish(&self, live: Option<Live>) {
        self.status.send_modify(|status| {
            status.record = self.record.clone();
            if let Role::Source { state, .. } = &mut status.record.role {
                *state = self.machine.state().clone();
            }
            status.findings.clone_from(&self.findings);
            if let Some(live) = live {
                status.live = live;
            }
        });
    }

    async fn perform(&mut self, action: SourceAction) -> StepResult {
        match action {
            SourceAction::Prepare => self.prepare().await,
            SourceAction::StartMirror => match self.record.mode {
                Mode::Live => self.start_mirror().await,
                Mode::Warm => self.start_rounds().await,
                Mode::Cold => self.start_cold().await,
            },
            SourceAction::StartRam => match self.record.mode {
                Mode::Live => self.start_ram().await,
                Mode::Warm => self.last_round().await,
                Mode::Cold => Ok(Some(SourceEvent::SwitchoverReached)),
            },
            SourceAction::CompareRoots => self.compare_roots().await,
            SourceAction::MakeFence => self.make_fence().await,
            SourceAction::Permit => self.permit().await,
            SourceAction::Ask => {
                self.ask().await;
                Ok(None)
            }
            SourceAction::Prove => {
                self.tell_or_redial(&FromSource::Prove {}).await;
                Ok(None)
            }
            SourceAction::Abort => {
                let reason = match self.state() {
                    SourceState::Undoing(why) | SourceState::RolledBack(why) | SourceState::Stopped(why) => {
                        why.clone()
                    }
                    _ => "the source gave up".to_owned(),
                };
                if let Err(why) = self.tell(&FromSource::Abort { reason }).await {
                    tracing::debug!(%why, "the destination cannot be told; it gives up by itself");
                }
                Ok(None)
            }
            SourceAction::Revoke => {
                self.tell_or_redial(&FromSource::Revoke {}).await;
                Ok(None)
            }
            SourceAction::Resume => Ok(self.resume().await),
            SourceAction::GiveUp => {
                self.give_up().await;
                Ok(None)
            }
            SourceAction::SayLost => {
                let SourceState::Lost(reason) = self.state().clone() else { return Ok(None) };
                self.tell_or_redial(&FromSource::Lost { reason }).await;
                Ok(None)
            }
        }
    }

    fn keep_receipts(&self, receipts: &[String]) {
        let text = format!("[{}]\n", receipts.join(",\n"));
        if let Err(error) = self.context.records.keep_receipts(self.job.migration, &text) {
            tracing::error!(error = %error.chain(), "the receipts of a migration cannot be kept");
        }
    }

    async fn close(mut self) -> Record {
        self.end_copying().await;
        self.carriers.shutdown().await;
        self.watchers.shutdown().await;
        if let Some(tunnel) = &self.tunnel {
            tunnel.close(tunnel::CloseCode::Done, "the migration is over at the source");
        }
        if self.dry_run_done {
            return self.record;
        }
        if let Err(error) = self.save() {
            tracing::error!(error = %error.chain(), "a migration's end cannot be recorded");
        }
        if self.record.mode == Mode::Warm && self.state().is_final() {
            self.remove_overlays();
        }
        self.publish(Some(Live::default()));
        self.record
    }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
