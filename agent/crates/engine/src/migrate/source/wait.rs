//! The wait between the disks being in step and the switchover: the guest runs here, and what it writes travels.
//!
//! ```text
//! disks in step ──── waits ────► memory begins ──── held ────► the guest is stopped
//!                                      └── lead: its forecast ──┘ cut-over time
//! ```
//!
//! To the machine all of it is still the copying of the disks, or of the memory: whatever happens meanwhile is handled
//! as it is then.

use std::collections::VecDeque;
use std::time::Duration;

use session::cutover::{SourceAction, SourceEvent, SourceState};
use tokio::time::Instant;

use super::{OnNoConverge, Owner, converge};
use crate::migrate::cutover::{Cutover, now_ms};
use crate::migrate::mode::Mode;
use crate::migrate::record::Role;

/// What is known of a wait.
#[derive(Debug, Default)]
pub(in super::super) struct Wait {
    /// All disks are in step since then.
    in_step: Option<Instant>,
    /// The memory began before the time had come, then and so long before.
    held: Option<(Instant, Duration)>,
    /// It was let go: what is wanted from then on comes too late.
    over: bool,
}

impl Owner {
    /// All disks are in step; what follows, if it is not to wait.
    pub(super) fn in_step(&mut self) -> Option<SourceEvent> {
        if self.wait.in_step.is_none() {
            self.wait.in_step = Some(Instant::now());
            if !self.record.cutover.is_due(now_ms()) {
                tracing::info!(migration = %self.job.migration, cutover = ?self.record.cutover, "all disks are in step; it waits");
            }
        }
        // The next step needs the other side: a connection that is lost is waited for first.
        let begins = self.wait.over || self.record.cutover.begins(now_ms(), self.lead());
        (begins && self.lost.is_none()).then_some(SourceEvent::MirrorReady)
    }

    /// Goes on when the time has come.
    pub(super) fn begin_when_due(&mut self, todo: &mut VecDeque<SourceAction>) {
        match self.state() {
            SourceState::Mirroring if self.wait.in_step.is_some() => {
                self.all_in_step(todo);
            }
            SourceState::PreCopy if self.wait.held.is_some() => self.let_go_when_due(),
            _ => {}
        }
    }

    /// All disks are in step: goes on, or waits.
    pub(super) fn all_in_step(&mut self, todo: &mut VecDeque<SourceAction>) {
        let Some(event) = self.in_step() else { return };
        // The rounds of a warm copy look once more at what is left, and say when they are done.
        if self.record.mode == Mode::Warm && self.copying.let_go() {
            self.wait.over = true;
            return;
        }
        self.note_waited(self.wait.in_step.map_or(Duration::ZERO, |since| since.elapsed()));
        self.apply(event, todo);
    }

    /// How long before its time the memory begins: as long as it was forecast to take, where the guest can be kept from
    /// being stopped until then.
    fn lead(&self) -> Duration {
        let options = &self.job.options;
        let paused = matches!(self.record.role, Role::Source { was_paused: true, .. });
        let can_be_held = self.record.mode == Mode::Live
            && self.qmp.as_ref().is_some_and(converge::can_wait)
            && !paused
            && !options.postcopy
            // It would be slowed down for nothing.
            && options.on_no_converge != OnNoConverge::Throttle;
        if !can_be_held {
            return Duration::ZERO;
        }
        let forecast = self.record.report.predicted.as_ref().map_or(0, |predicted| predicted.memory_ms);
        Duration::from_millis(forecast).min(options.timeout)
    }

    /// The memory begins: the guest is not stopped before its time.
    pub(super) fn hold_until_due(&mut self) {
        let early = !self.record.cutover.is_due(now_ms());
        self.convergence.hold(early);
        self.wait.held = early.then(|| (Instant::now(), self.lead()));
    }

    fn let_go_when_due(&mut self) {
        let Some((since, lead)) = self.wait.held else { return };
        // What it does until then says nothing about its convergence.
        self.rates.begin_again(self.record.report.rounds);
        if self.record.cutover.is_due(now_ms()) {
            (self.wait.held, self.wait.over) = (None, true);
            self.convergence.hold(false);
            self.note_waited(since.elapsed().saturating_sub(lead));
        }
    }

    /// The guest may not be stopped yet.
    pub(super) fn is_held(&self) -> bool {
        self.wait.held.is_some()
    }

    fn note_waited(&mut self, waited: Duration) {
        let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        self.record.report.waited_ms = self.record.report.waited_ms.saturating_add(millis);
    }

    /// What is waited for now, if the disks are in step.
    pub(super) fn waits(&self) -> Option<Cutover> {
        let waits = match self.state() {
            SourceState::Mirroring => self.wait.in_step.is_some(),
            SourceState::PreCopy => self.is_held(),
            _ => false,
        };
        (waits && !self.wait.over && !self.record.cutover.is_due(now_ms())).then_some(self.record.cutover)
    }

    /// Somebody wants another time, or none.
    pub(super) fn take_cutover(&mut self, wanted: Cutover, todo: &mut VecDeque<SourceAction>) {
        let cutover = self.record.cutover.steered(wanted);
        if cutover == self.record.cutover || self.wait.over {
            return;
        }
        tracing::info!(migration = %self.job.migration, ?cutover, "the time of the switchover is another one now");
        self.record.cutover = cutover;
        if *self.state() != SourceState::Preparing
            && let Err(error) = self.save()
        {
            tracing::warn!(error = %error.chain(), "the time of a switchover cannot be recorded");
        }
        self.begin_when_due(todo);
        self.publish(None);
    }
}
