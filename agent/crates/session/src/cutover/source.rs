//! The host that the VM leaves.

use serde::{Deserialize, Serialize};

use super::{Choice, Verdict};

/// Where a migration stands at its source.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "with")]
pub enum SourceState {
    /// The destination is being asked to make room.
    Preparing,
    /// The disks are copied while the guest runs.
    Mirroring,
    /// The memory is copied while the guest runs.
    PreCopy,
    /// The guest is stopped; the mirror drains and the roots are compared.
    Paused,
    /// The roots are equal; the fence is made durable.
    Fencing,
    /// The fence stands and a permit has left or is about to. Only the destination's word leads out of here.
    Permitting,
    /// A permit left, and what became of it is not known.
    InDoubt,
    /// The destination runs the guest; it is being proved.
    Running,
    /// The destination proved itself; this side's copy waits to be given up.
    Proven,
    /// Done: this side's copy is no longer a VM.
    Finalised,
    /// The guest ran at the destination and died there. The operator chooses what to start.
    DestinationLost,
    /// An operator takes the guest back and gives up what it did at the destination. Only the destination's word that
    /// its guest is ended for good, or an operator's that it is off, leads to the guest running here.
    TakingBack,
    /// The guest ran at the destination while part of its memory was here alone, and that part is gone: the guest is
    /// lost, and the disks at the destination are what is left of it.
    Lost(String),
    /// Being undone: the guest is to run here again.
    Undoing(String),
    /// Undone: the guest runs here.
    RolledBack(String),
    /// The guest's process died here before a permit left: it runs nowhere, and the disks here are its truth.
    Stopped(String),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum SourceEvent {
    /// The destination is ready to receive.
    Prepared,
    /// Every disk is in step.
    MirrorReady,
    /// The hypervisor stopped the guest before its last part.
    SwitchoverReached,
    /// The mirror is drained and flushed, and both roots are the same.
    RootsEqual,
    /// The fence is durable.
    FenceDurable,
    /// The destination runs the guest.
    Runs,
    /// The destination says that the guest never ran there and never will.
    NotRun,
    /// The destination's answer to a question.
    Verdict(Verdict),
    /// The proof succeeded.
    Proved,
    /// This side's copy is given up: by the operator, or by itself after the proof.
    Finalise,
    /// The copy is given up, durably.
    FinaliseDone,
    /// Somebody wants the migration undone.
    Cancel,
    /// An operator wants the guest back, even at the price of all that it did at the destination.
    TakeBack,
    /// A step failed here or was refused there.
    Failed(String),
    /// The connection is gone, or the destination's process is.
    ContactLost,
    /// There is a connection again.
    ContactBack,
    /// The guest's process here is gone.
    QemuDied,
    /// The guest at the destination needs memory that was here alone and is gone: it was in post-copy.
    MemoryLost(String),
    /// The guest runs here again.
    Resumed,
    /// The operator decided.
    Resolve(Choice),
    /// This process started again and found its record.
    Restarted,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum SourceAction {
    /// Ask the destination to make room.
    Prepare,
    /// Begin to copy the disks.
    StartMirror,
    /// Begin to copy the memory.
    StartRam,
    /// Drain and flush the mirror, and compare the roots.
    CompareRoots,
    /// Make the fence durable.
    MakeFence,
    /// Send the permit, and let the hypervisor send its last part.
    Permit,
    /// Ask the destination what became of the permit.
    Ask,
    /// Prove the guest at the destination.
    Prove,
    /// Tell the destination to give up what it has.
    Abort,
    /// Tell the destination to end its guest for good, even if it runs.
    Revoke,
    /// Lift the fence, end mirror and copy, and let the guest run here.
    Resume,
    /// Give up this side's copy, durably, and tell the destination.
    GiveUp,
    /// Tell the destination that the rest of the guest's memory will never come.
    SayLost,
}

impl SourceState {
    /// Whether the record of this state must be on the medium before its actions are done. The others are as good as
    /// the state before them: after a crash both are undone alike.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::Mirroring | Self::PreCopy | Self::Paused)
    }

    /// Nothing will happen any more without an operator.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finalised | Self::Lost(_) | Self::RolledBack(_) | Self::Stopped(_))
    }

    /// The guest may be let run here.
    #[must_use]
    pub fn may_run_here(&self) -> bool {
        matches!(
            self,
            Self::Preparing
                | Self::Mirroring
                | Self::PreCopy
                | Self::Undoing(_)
                | Self::RolledBack(_)
                | Self::Stopped(_)
        )
    }

    /// The name in records and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Mirroring => "mirroring",
            Self::PreCopy => "pre-copy",
            Self::Paused => "paused",
            Self::Fencing => "fencing",
            Self::Permitting => "permitting",
            Self::InDoubt => "in-doubt",
            Self::Running => "running",
            Self::Proven => "proven",
            Self::Finalised => "finalised",
            Self::DestinationLost => "destination-lost",
            Self::TakingBack => "taking-back",
            Self::Lost(_) => "lost",
            Self::Undoing(_) => "undoing",
            Self::RolledBack(_) => "rolled-back",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// The machine. `handle` takes what happened and gives what to do, in order, after the new state is recorded.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Source {
    state: SourceState,
}

impl Default for Source {
    fn default() -> Self {
        Self { state: SourceState::Preparing }
    }
}

impl Source {
    /// From a record. Follow with [`SourceEvent::Restarted`].
    #[must_use]
    pub fn from_record(state: SourceState) -> Self {
        Self { state }
    }

    /// What a new migration begins with.
    #[must_use]
    pub fn first_actions() -> Vec<SourceAction> {
        vec![SourceAction::Prepare]
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &SourceState {
        &self.state
    }

    /// What follows from an event; `None` when it has no place in this state.
    pub fn handle(&mut self, event: SourceEvent) -> Option<Vec<SourceAction>> {
        let (state, actions) = step(&self.state, event)?;
        self.state = state;
        Some(actions)
    }
}

/// Why a guest runs here again that had run at the destination.
const REVOKED: &str =
    "an operator took the guest back; what it did at the destination since the cut-over is lost";

fn step(state: &SourceState, event: SourceEvent) -> Option<(SourceState, Vec<SourceAction>)> {
    use SourceAction as A;
    use SourceEvent as E;
    use SourceState as S;
    // The guest first: it is what people wait for. The destination has no permit, so nothing hurries there.
    let undo = |why: &str| Some((S::Undoing(why.to_owned()), vec![A::Resume, A::Abort]));
    let take_back = Some((S::TakingBack, vec![A::Revoke]));
    match state {
        S::Preparing | S::Mirroring | S::PreCopy | S::Paused | S::Fencing => match (state, event) {
            (S::Preparing, E::Prepared) => Some((S::Mirroring, vec![A::StartMirror])),
            (S::Mirroring, E::MirrorReady) => Some((S::PreCopy, vec![A::StartRam])),
            (S::PreCopy, E::SwitchoverReached) => Some((S::Paused, vec![A::CompareRoots])),
            (S::Paused, E::RootsEqual) => Some((S::Fencing, vec![A::MakeFence])),
            (S::Fencing, E::FenceDurable) => Some((S::Permitting, vec![A::Permit])),
            (_, E::Cancel | E::TakeBack) => undo("cancelled"),
            (_, E::NotRun) => undo("the destination gave up"),
            (_, E::Failed(why)) => undo(&why),
            (_, E::ContactLost) => undo("the connection to the destination was lost"),
            (_, E::Restarted) => undo("the agent at the source was restarted"),
            (_, E::QemuDied) => Some((
                S::Stopped("the guest's process at the source died during the migration".to_owned()),
                vec![A::Abort],
            )),
            _ => None,
        },
        // The guest must not run here, whatever happens, until the destination or an operator says so.
        S::Permitting => match event {
            E::Runs => Some((S::Running, vec![A::Prove])),
            E::NotRun | E::Verdict(Verdict::Burned) => undo("the destination did not start the guest"),
            E::ContactLost | E::Restarted | E::Failed(_) | E::QemuDied => Some((S::InDoubt, vec![A::Ask])),
            E::TakeBack => take_back,
            _ => None,
        },
        S::InDoubt => match event {
            // Also a connection that is lost before its answer came.
            E::ContactLost | E::ContactBack | E::Restarted => Some((S::InDoubt, vec![A::Ask])),
            E::TakeBack => take_back,
            E::Verdict(Verdict::Revoked) => undo(REVOKED),
            E::NotRun | E::Verdict(Verdict::Burned) => undo("the destination did not start the guest"),
            E::Verdict(Verdict::Ready) => Some((S::Permitting, vec![A::Permit])),
            E::Runs | E::Verdict(Verdict::Runs) => Some((S::Running, vec![A::Prove])),
            E::Verdict(Verdict::RanAndDied) => Some((S::DestinationLost, vec![])),
            E::Resolve(Choice::Source) => undo("an operator chose the source's copy"),
            E::Resolve(Choice::Destination) => Some((S::Proven, vec![])),
            _ => None,
        },
        S::Running => match event {
            E::Proved => Some((S::Proven, vec![])),
            // Nothing is undone here any more: the question waits until there is a connection again.
            E::ContactLost | E::ContactBack | E::Restarted => Some((S::Running, vec![A::Prove])),
            E::Verdict(Verdict::RanAndDied) => Some((S::DestinationLost, vec![])),
            E::MemoryLost(why) => Some((S::Lost(why), vec![A::SayLost])),
            E::Finalise => Some((S::Finalised, vec![A::GiveUp])),
            E::TakeBack => take_back,
            _ => None,
        },
        S::Proven => match event {
            E::Finalise => Some((S::Finalised, vec![A::GiveUp])),
            E::TakeBack => take_back,
            E::Verdict(Verdict::RanAndDied) => Some((S::DestinationLost, vec![])),
            _ => None,
        },
        S::DestinationLost => match event {
            E::Resolve(Choice::Source) => undo("an operator chose the source's copy"),
            E::Resolve(Choice::Destination) => Some((S::Proven, vec![])),
            E::TakeBack => take_back,
            _ => None,
        },
        // Asked again until it is answered: the destination does nothing twice. That the guest runs there, which may
        // have been said before it heard, is no answer.
        S::TakingBack => match event {
            E::ContactLost | E::ContactBack | E::Restarted | E::TakeBack => take_back,
            E::Verdict(Verdict::Revoked) => undo(REVOKED),
            E::NotRun | E::Verdict(Verdict::Burned) => {
                undo("an operator took the guest back; it had not run at the destination, so nothing is lost")
            }
            E::Verdict(Verdict::Kept) => Some((S::Running, vec![A::Prove])),
            E::Resolve(Choice::Source) => undo("an operator chose the source's copy"),
            _ => None,
        },
        S::Finalised => match event {
            // Giving up is repeated until it is done; it does nothing twice.
            E::Restarted | E::ContactBack => Some((S::Finalised, vec![A::GiveUp])),
            _ => None,
        },
        S::Undoing(why) => match event {
            E::Resumed => Some((S::RolledBack(why.clone()), vec![])),
            E::QemuDied => Some((S::Stopped(format!("{why}; then the guest's process died here")), vec![])),
            E::Restarted => Some((S::Undoing(why.clone()), vec![A::Resume, A::Abort])),
            _ => None,
        },
        S::Lost(why) => match event {
            // Until the destination has heard it; saying it twice does no harm.
            E::ContactLost | E::ContactBack | E::Restarted => Some((S::Lost(why.clone()), vec![A::SayLost])),
            _ => None,
        },
        S::RolledBack(_) | S::Stopped(_) => None,
    }
}
