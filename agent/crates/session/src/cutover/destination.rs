//! The host that the VM comes to.

use serde::{Deserialize, Serialize};

use super::{Choice, Verdict};

/// Where a migration stands at its destination.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "with")]
pub enum DestinationState {
    /// Receives; no permit has come.
    Waiting {
        /// The guest's memory and devices are complete.
        complete: bool,
    },
    /// A permit is recorded; the guest is not complete, or waits to be told again.
    Permitted {
        /// The guest's memory and devices are complete.
        complete: bool,
    },
    /// The guest is about to run, or does: from here on it counts as having run.
    Starting,
    /// The guest runs.
    Running,
    /// Done: the guest is this host's.
    Finalised,
    /// What was received is being thrown away; the guest never ran.
    Burning(String),
    /// The guest never ran here and never will under this migration.
    Burned(String),
    /// The guest ran, or may have, and is dead.
    Died,
    /// The source takes the guest back: it is being ended, and what it did here is thrown away.
    Revoking(String),
    /// The guest ran here, or may have. It was ended, and never runs here again under this migration.
    Revoked(String),
    /// The guest ran here while part of its memory was at the source alone, and that part is gone: what still runs of
    /// it stands where it needs that part. Its disks here are what is left.
    Lost(String),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum DestinationEvent {
    /// The hypervisor has all of the guest.
    Complete,
    /// The source's permit came.
    Permit,
    /// The hypervisor was told to run, and runs.
    Started,
    /// The hypervisor could not be told to run, and it is certain that no instruction ran.
    StartRefused(String),
    /// The source gave up.
    Abort(String),
    /// A step failed here.
    Failed(String),
    /// The connection is gone, or the source's process is.
    ContactLost,
    /// The source asks what became of its permit.
    Ask,
    /// The source gave up its copy.
    Finalise,
    /// The source takes the guest back, by an operator's word.
    Revoke,
    /// The guest's process here is gone.
    QemuDied,
    /// The rest of the guest's memory will never come: it was in post-copy.
    MemoryLost(String),
    /// What was received is thrown away.
    Discarded,
    /// The operator decided.
    Resolve(Choice),
    /// This process started again and found its record and the guest's process.
    Restarted {
        /// The guest's process is there.
        alive: bool,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum DestinationAction {
    /// Close the export, record that the guest starts, and let it run.
    Run,
    /// End the guest's process and remove what was received.
    Discard,
    /// Tell the source that the guest runs.
    SayRuns,
    /// Tell the source that the guest never ran and never will.
    SayNotRun,
    /// Answer the source's question.
    Say(Verdict),
}

impl DestinationState {
    /// Whether the record of this state must be on the medium before its actions are done.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::Waiting { complete: true } | Self::Permitted { complete: true } | Self::Running)
    }

    /// Nothing will happen any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finalised | Self::Burned(_) | Self::Died | Self::Revoked(_) | Self::Lost(_))
    }

    /// The guest may run here.
    #[must_use]
    pub fn may_run_here(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Finalised | Self::Lost(_))
    }

    /// The name in records and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "receiving",
            Self::Permitted { .. } => "permitted",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finalised => "finalised",
            Self::Burning(_) => "discarding",
            Self::Burned(_) => "discarded",
            Self::Died => "died",
            Self::Revoking(_) => "revoking",
            Self::Revoked(_) => "revoked",
            Self::Lost(_) => "lost",
        }
    }
}

/// The machine. `handle` takes what happened and gives what to do, in order, after the new state is recorded.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Destination {
    state: DestinationState,
}

impl Default for Destination {
    fn default() -> Self {
        Self { state: DestinationState::Waiting { complete: false } }
    }
}

impl Destination {
    /// From a record. Follow with [`DestinationEvent::Restarted`].
    #[must_use]
    pub fn from_record(state: DestinationState) -> Self {
        Self { state }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &DestinationState {
        &self.state
    }

    /// What follows from an event; `None` when it has no place in this state.
    pub fn handle(&mut self, event: DestinationEvent) -> Option<Vec<DestinationAction>> {
        let (state, actions) = step(&self.state, event)?;
        self.state = state;
        Some(actions)
    }
}

/// Why a guest is ended that may have run here.
const TAKEN_BACK: &str = "the source took the guest back by an operator's word";

fn step(
    state: &DestinationState,
    event: DestinationEvent,
) -> Option<(DestinationState, Vec<DestinationAction>)> {
    use DestinationAction as A;
    use DestinationEvent as E;
    use DestinationState as S;
    let burn = |why: String| Some((S::Burning(why), vec![A::Discard]));
    let revoke = |why: &str| Some((S::Revoking(why.to_owned()), vec![A::Discard]));
    match state {
        S::Waiting { complete } => match event {
            E::Complete => Some((S::Waiting { complete: true }, vec![])),
            E::Permit if *complete => Some((S::Permitted { complete: true }, vec![A::Run])),
            E::Permit => Some((S::Permitted { complete: false }, vec![])),
            E::Abort(why) | E::Failed(why) => burn(why),
            E::ContactLost => burn("the connection to the source was lost".to_owned()),
            E::QemuDied => burn("the guest's process here died".to_owned()),
            E::Ask => burn("the source asked, and there was no permit".to_owned()),
            E::Revoke => burn(TAKEN_BACK.to_owned()),
            E::Restarted { .. } => burn("the agent at the destination was restarted".to_owned()),
            _ => None,
        },
        S::Permitted { complete } => match event {
            E::Complete => Some((S::Permitted { complete: true }, vec![A::Run])),
            E::Permit if *complete => Some((S::Permitted { complete: true }, vec![A::Run])),
            // `Starting` is recorded by whoever runs it, before the first instruction: see `Destination::starting`.
            E::Failed(why) | E::StartRefused(why) | E::Abort(why) => burn(why),
            E::QemuDied => burn("the guest's process here died before it ran".to_owned()),
            // Whether all of the guest had come is not recorded; what is certain is that it never ran.
            E::Restarted { .. } => {
                burn("the agent at the destination was restarted before the guest ran".to_owned())
            }
            E::Ask if *complete => Some((S::Permitted { complete: true }, vec![A::Say(Verdict::Ready)])),
            E::Ask => burn("the source asked, and the guest was not complete".to_owned()),
            E::Revoke => burn(TAKEN_BACK.to_owned()),
            E::Resolve(Choice::Source) => burn("an operator chose the source's copy".to_owned()),
            E::Resolve(Choice::Destination) if *complete => {
                Some((S::Permitted { complete: true }, vec![A::Run]))
            }
            _ => None,
        },
        S::Starting => match event {
            E::Started => Some((S::Running, vec![A::SayRuns])),
            E::StartRefused(why) => burn(why),
            E::QemuDied | E::Restarted { alive: false } => Some((S::Died, vec![A::Say(Verdict::RanAndDied)])),
            // The source is fenced and this side has the permit: letting it run once more does no harm.
            E::Restarted { alive: true } => Some((S::Starting, vec![A::Run])),
            E::Revoke => revoke(TAKEN_BACK),
            _ => None,
        },
        S::Running => match event {
            E::Ask => Some((S::Running, vec![A::Say(Verdict::Runs)])),
            E::Restarted { alive: true } => Some((S::Running, vec![A::SayRuns])),
            E::Finalise | E::Resolve(Choice::Destination) => Some((S::Finalised, vec![])),
            E::QemuDied | E::Restarted { alive: false } => Some((S::Died, vec![])),
            E::Revoke => revoke(TAKEN_BACK),
            E::Resolve(Choice::Source) => revoke("an operator chose the source's copy"),
            E::MemoryLost(why) => Some((S::Lost(why), vec![])),
            _ => None,
        },
        S::Finalised => match event {
            E::Ask => Some((S::Finalised, vec![A::Say(Verdict::Runs)])),
            E::Revoke => Some((S::Finalised, vec![A::Say(Verdict::Kept)])),
            _ => None,
        },
        S::Burning(why) => match event {
            E::Discarded => Some((S::Burned(why.clone()), vec![A::SayNotRun])),
            // Throwing away may have failed: it is tried again.
            E::Restarted { .. } | E::Revoke => Some((S::Burning(why.clone()), vec![A::Discard])),
            _ => None,
        },
        S::Revoking(why) => match event {
            E::Discarded => Some((S::Revoked(why.clone()), vec![A::Say(Verdict::Revoked)])),
            E::Restarted { .. } | E::Revoke => Some((S::Revoking(why.clone()), vec![A::Discard])),
            _ => None,
        },
        S::Revoked(why) => match event {
            E::Ask | E::Revoke | E::Permit => Some((S::Revoked(why.clone()), vec![A::Say(Verdict::Revoked)])),
            _ => None,
        },
        S::Burned(why) => match event {
            E::Ask => Some((S::Burned(why.clone()), vec![A::Say(Verdict::Burned)])),
            // It crossed our word on the way.
            E::Permit | E::Revoke => Some((S::Burned(why.clone()), vec![A::SayNotRun])),
            _ => None,
        },
        S::Lost(why) => match event {
            E::Ask => Some((S::Lost(why.clone()), vec![A::Say(Verdict::RanAndDied)])),
            _ => None,
        },
        S::Died => match event {
            E::Ask => Some((S::Died, vec![A::Say(Verdict::RanAndDied)])),
            E::Revoke => revoke(TAKEN_BACK),
            E::Resolve(Choice::Source) => revoke("an operator chose the source's copy"),
            E::Finalise | E::Resolve(Choice::Destination) => Some((S::Finalised, vec![])),
            _ => None,
        },
    }
}

impl Destination {
    /// Just before the first instruction: call when [`DestinationAction::Run`] is carried out and everything that can
    /// be refused has been tried, and record the state. False when running is not allowed.
    pub fn starting(&mut self) -> bool {
        match self.state {
            DestinationState::Permitted { complete: true } | DestinationState::Starting => {
                self.state = DestinationState::Starting;
                true
            }
            _ => false,
        }
    }
}
