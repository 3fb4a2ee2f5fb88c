//! What would be done, or is being done: several VMs, each with its destination, its way there, and what that takes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::migration::{Options, State as Stands};
use crate::route::Order;
use crate::{Name, link};

/// What becomes of the rest when one migration fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// What runs goes on, and no other begins.
    #[default]
    Stop,
    /// The others go on.
    Continue,
}

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = PlanWanted))]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// VMs by id or name.
    pub vms: Vec<String>,
    /// Instead of `vms`: all that run on this host.
    pub drain: Option<Name>,
    /// A host, or else a site. None when a host is drained: any other host.
    pub to: Option<Name>,
    /// Where the VMs are, if their names do not say.
    pub from: Option<Name>,
    /// How each moves.
    pub options: Options,
    /// The only link to use.
    pub link: Option<Name>,
    /// By what a way is chosen.
    pub prefer: Order,
    /// When all must have arrived.
    pub deadline: Option<Timestamp>,
    /// Most that all may cost, millionths of the links' currency.
    pub max_cost_micros: Option<u64>,
    /// Migrations at once.
    pub at_once: Option<u32>,
    /// What becomes of the rest when one fails.
    pub on_failure: OnFailure,
    /// Begin at once, if nothing stands against it.
    pub start: bool,
}

/// Where a figure comes from, and what it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Estimate {
    /// From the start to the guest running at the destination, milliseconds.
    pub duration_ms: u64,
    /// The guest's pause, milliseconds; 0 for one that is off.
    pub downtime_ms: u64,
    /// On the wire.
    pub bytes: u64,
    /// Millionths of the link's currency.
    pub cost_micros: u64,
    /// ISO 4217; empty when it costs nothing.
    pub currency: String,
    /// Where the figures come from, for people.
    pub basis: Vec<String>,
}

/// A host that was not chosen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Rejected {
    /// Which.
    pub host: Name,
    /// Why, for people; all that speaks against it.
    pub why: Vec<String>,
}

/// Where a step stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = PlanStepState))]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It has no destination.
    Blocked,
    /// Its turn comes.
    #[default]
    Waiting,
    /// Its migration was begun.
    Begun,
    /// Its VM arrived; or, of a rehearsal, nothing stands against it.
    Done,
    /// Its VM did not arrive.
    Failed,
    /// It will not begin.
    Skipped,
}

/// One VM of a plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = PlanStep))]
pub struct Step {
    /// The VM's id.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub source: Name,
    /// Where it goes; none when no host can take it.
    pub destination: Option<Name>,
    /// Over which link; none for the hosts' own addresses.
    pub link: Option<Name>,
    /// The migration's id, chosen beforehand: a step that is begun again is the same migration.
    pub migration: String,
    /// The wave in which it is expected to begin, from 1.
    pub wave: u32,
    /// What it is expected to take.
    pub estimate: Estimate,
    /// Hosts that were not chosen.
    pub rejected: Vec<Rejected>,
    /// Where it stands.
    pub state: StepState,
    /// Why it is blocked, failed or skipped.
    pub why: Option<String>,
}

/// Where a plan stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = PlanState))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It can be started.
    #[default]
    Draft,
    /// Something stands against it.
    Blocked,
    /// Its steps are done one after another.
    Running,
    /// No step begins any more; those that were begun go on, or are undone.
    Stopping,
    /// All VMs arrived.
    Completed,
    /// Some VM did not arrive.
    Failed,
    /// It was ended before its end.
    Cancelled,
}

impl State {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Draft,
        Self::Blocked,
        Self::Running,
        Self::Stopping,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Nothing will happen any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Blocked | Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Blocked => "blocked",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Plan {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What was asked for.
    pub wanted: Wanted,
    /// Who asked for it.
    pub by: String,
    /// When.
    pub created: Timestamp,
    /// When it changed last.
    pub changed: Timestamp,
    /// Where it stands.
    pub state: State,
    /// Its steps, in the order in which they begin.
    pub steps: Vec<Step>,
    /// All of it together: the time until the last VM has arrived, the longest pause, the sums of bytes and cost.
    pub total: Estimate,
    /// What stands against it.
    pub blocked: Vec<String>,
}

impl Step {
    /// Takes in where its migration stands.
    pub fn follow(&mut self, stands: Stands, refusal: Option<&str>) {
        if self.state != StepState::Begun {
            return;
        }
        match stands {
            Stands::Completed | Stands::Rehearsed => self.state = StepState::Done,
            stands if stands.is_final() => {
                self.state = StepState::Failed;
                self.why = Some(refusal.map_or_else(|| stands.as_str().to_owned(), ToOwned::to_owned));
            }
            // The guest runs at the destination, and an operator looks after the rest.
            Stands::Held => self.state = StepState::Done,
            _ => {}
        }
    }
}

impl Plan {
    /// Follows from its steps where it stands.
    pub fn settle(&mut self) {
        use StepState as S;
        if self.state.is_final() || self.state == State::Draft {
            return;
        }
        let failed = self.steps.iter().any(|step| step.state == S::Failed);
        let stops = self.state == State::Stopping || (failed && self.wanted.on_failure == OnFailure::Stop);
        if stops {
            for step in self.steps.iter_mut().filter(|step| step.state == S::Waiting) {
                step.state = S::Skipped;
                let why = if failed { "another step failed" } else { "the plan was cancelled" };
                step.why = Some(why.to_owned());
            }
        }
        if self.steps.iter().any(|step| matches!(step.state, S::Waiting | S::Begun)) {
            return;
        }
        let skipped = self.steps.iter().any(|step| step.state == S::Skipped);
        self.state = match (failed, skipped) {
            (true, _) => State::Failed,
            (false, true) => State::Cancelled,
            (false, false) if self.state == State::Stopping => State::Cancelled,
            (false, false) => State::Completed,
        };
    }
}

/// What a link's use costs: its bytes, and its hours as far as they are used.
#[must_use]
pub fn cost(price: &link::Price, bytes: u64, duration_ms: u64) -> u64 {
    let bytes = u128::from(bytes) * u128::from(price.per_gb_micros) / 1_000_000_000;
    let hours = u128::from(duration_ms) * u128::from(price.per_hour_micros) / 3_600_000;
    u64::try_from(bytes + hours).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(states: &[StepState], on_failure: OnFailure) -> Plan {
        let step = |state: &StepState| Step {
            vm: "web-1".to_owned(),
            name: "web".to_owned(),
            source: "host-a".parse().unwrap(),
            destination: Some("host-b".parse().unwrap()),
            link: None,
            migration: "ab".repeat(16),
            wave: 1,
            estimate: Estimate::default(),
            rejected: Vec::new(),
            state: *state,
            why: None,
        };
        Plan {
            id: "cd".repeat(16),
            wanted: Wanted { on_failure, ..Wanted::default() },
            by: "token:1".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            changed: Timestamp::UNIX_EPOCH,
            state: State::Running,
            steps: states.iter().map(step).collect(),
            total: Estimate::default(),
            blocked: Vec::new(),
        }
    }

    #[test]
    fn a_plan_ends_with_its_steps() {
        use StepState as S;
        for (steps, on_failure, state) in [
            (&[S::Done, S::Done][..], OnFailure::Stop, State::Completed),
            (&[S::Done, S::Begun], OnFailure::Stop, State::Running),
            (&[S::Failed, S::Waiting], OnFailure::Stop, State::Failed),
            (&[S::Failed, S::Begun, S::Waiting], OnFailure::Stop, State::Running),
            (&[S::Failed, S::Waiting], OnFailure::Continue, State::Running),
            (&[S::Failed, S::Done], OnFailure::Continue, State::Failed),
        ] {
            let mut plan = plan(steps, on_failure);
            plan.settle();
            assert_eq!(plan.state, state, "{steps:?} {on_failure:?}");
        }
    }

    #[test]
    fn a_cancelled_plan_begins_nothing() {
        use StepState as S;
        let mut plan = plan(&[S::Done, S::Begun, S::Waiting], OnFailure::Stop);
        plan.state = State::Stopping;
        plan.settle();
        assert_eq!((plan.state, plan.steps[2].state), (State::Stopping, S::Skipped));
        plan.steps[1].follow(Stands::Undone, None);
        assert_eq!(plan.steps[1].state, S::Failed);
        plan.settle();
        assert!(plan.state.is_final());
    }

    #[test]
    fn a_draft_is_not_begun_by_looking_at_it() {
        let mut plan = plan(&[StepState::Waiting], OnFailure::Stop);
        plan.state = State::Draft;
        let before = plan.clone();
        plan.settle();
        assert_eq!(plan, before);
    }

    #[test]
    fn costs_are_exact() {
        let price =
            link::Price { currency: "USD".to_owned(), per_gb_micros: 90_000, per_hour_micros: 360_000 };
        assert_eq!(cost(&price, 2_000_000_000, 10_000), 180_000 + 1_000);
        assert_eq!(cost(&link::Price::default(), u64::MAX, u64::MAX), 0);
    }
}
