//! One VM that moves, as the coordinator sees it: what was asked, what both hosts say, and what follows from that.
//!
//! The hosts decide who may run the VM (`session::cutover` in the agent). The coordinator starts them, watches, and passes
//! on what operators wish: its state is a reading of theirs, so that losing the coordinator loses nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Name;
use crate::host::Needs;
use crate::link::Price;
use crate::plan::Estimate;

/// How a VM moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = MigrationMode))]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It runs on while its disks and its memory travel.
    #[default]
    Live,
    /// Its disks travel while it runs; then it is shut down and boots at the destination.
    Warm,
    /// It is off.
    Cold,
}

/// What was asked for beside the VM and its new host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = MigrationOptions))]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How.
    pub mode: Mode,
    /// Longest pause of the guest, milliseconds; the agent's own default if none.
    pub max_downtime_ms: Option<u64>,
    /// Bytes a second.
    pub limit: Option<u64>,
    /// Keep the source's copy until an operator gives it up.
    pub hold: bool,
    /// Copy the disks at once and keep them in step, until an operator lets the guest leave.
    pub seed: bool,
    /// The same until this time, by the source's clock.
    pub cutover_at: Option<Timestamp>,
    /// Find out what stands against it, and change nothing.
    pub dry_run: bool,
    /// W3C context of the trace that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Options {
    /// Whether the guest leaves later than it could.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.seed || self.cutover_at.is_some()
    }
}

/// What is to become of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// It is to go on to its end.
    #[default]
    Arrive,
    /// It is to be undone, if the permit has not left.
    Cancel,
    /// The source's copy is to be given up.
    Finalise,
    /// It is to be undone even when the guest runs at the destination: what it did there is lost.
    TakeBack,
    /// Doubt is to end in favour of the source; an operator has made sure that the destination is off.
    KeepSource,
    /// Doubt is to end in favour of the destination; an operator has made sure that the source is off.
    KeepDestination,
}

/// What a host says of its part.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Progress {
    /// The state's name in the agent's machine.
    pub state: String,
    /// Nobody works on it there any more.
    pub over: bool,
    /// Fencing number of the VM.
    pub generation: u64,
    /// Disk bytes in step.
    pub disk_done: u64,
    /// Disk bytes in all.
    pub disk_total: u64,
    /// RAM that was not sent in this round.
    pub ram_remaining: u64,
    /// RAM in all.
    pub ram_total: u64,
    /// Bytes a second.
    pub rate: u64,
    /// The pause that is expected now, milliseconds.
    pub expected_downtime_ms: u64,
    /// At the source: all disks are in step, and it waits for the time of its cut-over.
    pub waits: bool,
    /// The agent's report: forecast, figures, findings.
    pub report: serde_json::Value,
    /// Its agent says receipts and roots; an older one does not.
    pub signs: bool,
    /// At the destination, once the VM is its own: what it signed, one a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipts: Option<Vec<serde_json::Value>>,
    /// At the source, from the cut-over on: its disks then, and their Merkle roots.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub roots: BTreeMap<String, String>,
}

/// What the destination signed, as the coordinator checked it: by whom, for which migration, and that the source had the
/// same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = MigrationProof))]
pub struct Proof {
    /// Who signed.
    pub by: Name,
    /// When the disks were so, by its clock.
    pub at: Timestamp,
    /// The source said the same of its disks; false when its agent is one that does not say.
    pub both: bool,
    /// The disks.
    pub disks: Vec<Proven>,
}

/// A disk that came over whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Proven {
    /// Its id in the VM.
    pub disk: String,
    /// Its size.
    pub bytes: u64,
    /// Merkle root of what it holds, 64 hexadecimal digits.
    pub root: String,
    /// It was read again from the medium at both ends.
    pub read_back: bool,
}

/// Where a migration stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = MigrationState))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The source has not heard of it.
    Queued,
    /// It is prepared, or data travels; the guest is where it was.
    Moving,
    /// The guest pauses, and both hosts agree on who runs it.
    CuttingOver,
    /// The guest runs at the destination, and is looked at.
    Proving,
    /// The guest runs at the destination; the source keeps its copy until an operator gives it up.
    Held,
    /// It is being undone.
    Undoing,
    /// Contact was lost after the permit left: nothing starts by itself.
    InDoubt,
    /// The guest ran at the destination and died there; an operator must choose a copy.
    DestinationLost,
    /// The guest runs at the destination, for good; both hosts say so.
    Completed,
    /// The guest is where it was.
    Undone,
    /// The guest runs nowhere; the source's disks are the truth.
    Stopped,
    /// The guest ran at the destination, and is lost; what is left is its disks there.
    Lost,
    /// The source would not begin.
    Refused,
    /// Nothing was changed: it was only asked what would be.
    Rehearsed,
}

impl State {
    /// Each of them.
    pub const ALL: [Self; 14] = [
        Self::Queued,
        Self::Moving,
        Self::CuttingOver,
        Self::Proving,
        Self::Held,
        Self::Undoing,
        Self::InDoubt,
        Self::DestinationLost,
        Self::Completed,
        Self::Undone,
        Self::Stopped,
        Self::Lost,
        Self::Refused,
        Self::Rehearsed,
    ];

    /// Nothing will happen any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Undone | Self::Stopped | Self::Lost | Self::Refused | Self::Rehearsed
        )
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Moving => "moving",
            Self::CuttingOver => "cutting-over",
            Self::Proving => "proving",
            Self::Held => "held",
            Self::Undoing => "undoing",
            Self::InDoubt => "in-doubt",
            Self::DestinationLost => "destination-lost",
            Self::Completed => "completed",
            Self::Undone => "undone",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Rehearsed => "rehearsed",
        }
    }
}

/// A migration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Migration {
    /// 32 hexadecimal digits, the same at both hosts.
    pub id: String,
    /// The VM's id.
    pub vm: String,
    /// Where it was.
    pub source: Name,
    /// Where it goes.
    pub destination: Name,
    /// What was asked for.
    pub options: Options,
    /// What is to become of it.
    pub wish: Wish,
    /// Who asked for it.
    pub by: String,
    /// When.
    pub created: Timestamp,
    /// When its state changed last.
    pub changed: Timestamp,
    /// Where it stands.
    pub state: State,
    /// What the source said last.
    pub at_source: Option<Progress>,
    /// What the destination said last.
    pub at_destination: Option<Progress>,
    /// Why the source would not begin.
    pub refusal: Option<String>,
    /// What shows that it all arrived.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// Why what the destination signed is not believed; then the migration does not count as done.
    #[serde(default)]
    pub unproven: Option<String>,
    /// The plan that it is a part of.
    #[serde(default)]
    pub plan: Option<String>,
    /// The link that was chosen for it.
    #[serde(default)]
    pub link: Option<Name>,
    /// What the VM needed when it was begun.
    #[serde(default)]
    pub needs: Needs,
    /// What it was expected to take.
    #[serde(default)]
    pub estimate: Option<Estimate>,
    /// What its link costs, as it was when it was begun.
    #[serde(default)]
    pub price: Price,
}

/// A wish that has no place in the state that a migration is in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("migration {id} is {}: {why}", state.as_str())]
pub struct Unfitting {
    /// Which.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// Why not, and what to do.
    pub why: &'static str,
}

impl Migration {
    /// Where it stands, by what both hosts said.
    #[must_use]
    pub fn read(&self) -> State {
        use State as S;
        if self.refusal.is_some() {
            // It was taken back before the source had begun.
            return if self.wish == Wish::Cancel { S::Undone } else { S::Refused };
        }
        let Some(source) = &self.at_source else { return S::Queued };
        let there = self.at_destination.as_ref().map(|progress| progress.state.as_str());
        // The source gives its copy up after the destination's proof. A source that says so alone is not believed.
        let runs_there = matches!(there, Some("running" | "finalised"));
        let signs = self.at_destination.as_ref().is_some_and(|progress| progress.signs);
        let proven = self.proof.is_some() || !signs;
        match source.state.as_str() {
            "preparing" if self.options.dry_run && source.over => S::Rehearsed,
            "preparing" | "mirroring" | "pre-copy" => S::Moving,
            "paused" | "fencing" | "permitting" => S::CuttingOver,
            "in-doubt" => S::InDoubt,
            "running" => S::Proving,
            "proven" if runs_there && self.options.hold && self.wish != Wish::Finalise => S::Held,
            "finalised" if runs_there && proven => S::Completed,
            "proven" | "finalised" => S::Proving,
            "destination-lost" => S::DestinationLost,
            "taking-back" | "undoing" => S::Undoing,
            "rolled-back" => S::Undone,
            "stopped" => S::Stopped,
            "lost" => S::Lost,
            // A newer agent's word: it works on it, or does not.
            _ if source.over => S::InDoubt,
            _ => S::Moving,
        }
    }

    /// Takes in a wish.
    ///
    /// # Errors
    /// When it has no place in this state.
    pub fn wish(&mut self, wish: Wish) -> Result<(), Unfitting> {
        use State as S;
        let fits = match wish {
            Wish::Arrive => Err("it goes on by itself"),
            Wish::Cancel => match self.state {
                S::Queued | S::Moving | S::CuttingOver | S::Undoing => Ok(()),
                S::Held => Err("the guest runs at the destination; roll it back, or migrate it back"),
                S::InDoubt | S::DestinationLost => Err("resolve it"),
                _ => Err("it cannot be undone any more; migrate the VM back"),
            },
            Wish::Finalise => match self.state {
                S::Held | S::Proving => Ok(()),
                _ => Err("only a move whose guest runs at the destination can be finalised"),
            },
            Wish::TakeBack => match self.state {
                S::Held | S::Proving => Ok(()),
                S::Queued | S::Moving | S::CuttingOver => Err("the guest has not left; cancel it"),
                _ => Err("only a move that is held can be rolled back"),
            },
            Wish::KeepSource | Wish::KeepDestination => match self.state {
                S::InDoubt | S::DestinationLost => Ok(()),
                _ => Err("there is no doubt to end"),
            },
        };
        match fits {
            Ok(()) => {
                self.wish = wish;
                Ok(())
            }
            Err(why) => Err(Unfitting { id: self.id.clone(), state: self.state, why }),
        }
    }
}

impl Migration {
    /// Lets the guest leave, at once or from a time on.
    ///
    /// # Errors
    /// When it does not wait for that.
    pub fn let_leave(&mut self, at: Option<Timestamp>) -> Result<(), Unfitting> {
        let why = match self.state {
            _ if !self.options.waits() => "it leaves as soon as it can",
            State::Queued | State::Moving => {
                (self.options.seed, self.options.cutover_at) = (false, at);
                return Ok(());
            }
            _ => "it does not wait any more",
        };
        Err(Unfitting { id: self.id.clone(), state: self.state, why })
    }

    /// Its disks are in step, and it waits: it needs nobody's place.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.state == State::Moving && self.at_source.as_ref().is_some_and(|source| source.waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(source: Option<(&str, bool)>, destination: Option<&str>) -> Migration {
        let progress = |state: &str, over| Progress { state: state.to_owned(), over, ..Progress::default() };
        let mut migration = Migration {
            id: "ab".repeat(16),
            vm: "web-1".to_owned(),
            source: "host-a".parse().unwrap(),
            destination: "host-b".parse().unwrap(),
            options: Options::default(),
            wish: Wish::Arrive,
            by: "token:1".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            changed: Timestamp::UNIX_EPOCH,
            state: State::Queued,
            at_source: source.map(|(state, over)| progress(state, over)),
            at_destination: destination.map(|state| progress(state, false)),
            refusal: None,
            proof: None,
            unproven: None,
            plan: None,
            link: None,
            needs: Needs::default(),
            estimate: None,
            price: Price::default(),
        };
        migration.state = migration.read();
        migration
    }

    #[test]
    fn the_state_is_read_from_both_hosts() {
        use State as S;
        for (source, destination, state) in [
            (None, None, S::Queued),
            (Some(("preparing", false)), None, S::Moving),
            (Some(("mirroring", false)), Some("receiving"), S::Moving),
            (Some(("pre-copy", false)), Some("receiving"), S::Moving),
            (Some(("paused", false)), Some("receiving"), S::CuttingOver),
            (Some(("permitting", false)), Some("permitted"), S::CuttingOver),
            (Some(("in-doubt", false)), Some("running"), S::InDoubt),
            (Some(("running", false)), Some("running"), S::Proving),
            (Some(("finalised", true)), Some("finalised"), S::Completed),
            (Some(("finalised", true)), Some("running"), S::Completed),
            (Some(("rolled-back", true)), Some("discarded"), S::Undone),
            (Some(("stopped", true)), None, S::Stopped),
            (Some(("lost", true)), Some("lost"), S::Lost),
            (Some(("destination-lost", false)), Some("died"), S::DestinationLost),
            (Some(("taking-back", false)), Some("revoking"), S::Undoing),
            (Some(("a-newer-word", false)), None, S::Moving),
            (Some(("a-newer-word", true)), None, S::InDoubt),
        ] {
            assert_eq!(migration(source, destination).state, state, "{source:?} {destination:?}");
        }
    }

    #[test]
    fn one_host_alone_is_not_believed_that_it_is_done() {
        for liar in ["proven", "finalised"] {
            for there in [None, Some("receiving"), Some("discarded"), Some("permitted")] {
                assert_eq!(migration(Some((liar, true)), there).state, State::Proving, "{liar} {there:?}");
            }
        }
    }

    #[test]
    fn only_what_waits_is_let_go() {
        let mut plain = migration(Some(("mirroring", false)), Some("receiving"));
        assert!(plain.let_leave(None).is_err());
        let at = Timestamp::from_second(7).unwrap();
        let mut seeded = plain.clone();
        seeded.options.seed = true;
        assert!(!seeded.is_parked());
        seeded.at_source.as_mut().unwrap().waits = true;
        assert!(seeded.is_parked());
        seeded.let_leave(Some(at)).unwrap();
        assert_eq!((seeded.options.seed, seeded.options.cutover_at), (false, Some(at)));
        seeded.let_leave(None).unwrap();
        assert!(!seeded.options.waits());
        let mut late = migration(Some(("permitting", false)), Some("permitted"));
        late.options.cutover_at = Some(at);
        assert!(late.let_leave(None).is_err() && !late.is_parked());
    }

    #[test]
    fn a_destination_that_signs_must_show_it() {
        let mut moved = migration(Some(("finalised", true)), Some("finalised"));
        moved.at_destination.as_mut().unwrap().signs = true;
        assert_eq!(moved.read(), State::Proving);
        let by = "host-b".parse().unwrap();
        moved.proof = Some(Proof { by, at: Timestamp::UNIX_EPOCH, both: true, disks: Vec::new() });
        assert_eq!(moved.read(), State::Completed);
    }

    #[test]
    fn a_copy_is_held_until_it_is_given_up() {
        let mut held = migration(Some(("proven", false)), Some("running"));
        assert_eq!(held.state, State::Proving, "it will be given up");
        held.options.hold = true;
        held.state = held.read();
        assert_eq!(held.state, State::Held);
        held.wish(Wish::Cancel).unwrap_err();
        held.wish(Wish::Finalise).unwrap();
        assert_eq!(held.read(), State::Proving);
    }

    #[test]
    fn rehearsals_and_refusals_end() {
        let mut rehearsed = migration(Some(("preparing", true)), None);
        rehearsed.options.dry_run = true;
        assert_eq!(rehearsed.read(), State::Rehearsed);
        let mut refused = migration(None, None);
        refused.refusal = Some("there is no such VM".to_owned());
        assert_eq!(refused.read(), State::Refused);
        refused.wish(Wish::Cancel).unwrap();
        assert_eq!(refused.read(), State::Undone);
    }

    #[test]
    fn wishes_have_their_place() {
        use State as S;
        let all = [
            S::Queued,
            S::Moving,
            S::CuttingOver,
            S::Proving,
            S::Held,
            S::Undoing,
            S::InDoubt,
            S::DestinationLost,
            S::Completed,
            S::Undone,
            S::Stopped,
            S::Lost,
            S::Refused,
            S::Rehearsed,
        ];
        let where_it_fits = |wish: Wish| -> Vec<State> {
            let mut migration = migration(None, None);
            all.into_iter()
                .filter(|state| {
                    migration.state = *state;
                    let before = migration.wish;
                    let fits = migration.wish(wish).is_ok();
                    assert!(fits || migration.wish == before);
                    fits
                })
                .collect()
        };
        assert_eq!(where_it_fits(Wish::Cancel), [S::Queued, S::Moving, S::CuttingOver, S::Undoing]);
        assert_eq!(where_it_fits(Wish::Finalise), [S::Proving, S::Held]);
        assert_eq!(where_it_fits(Wish::TakeBack), [S::Proving, S::Held]);
        assert_eq!(where_it_fits(Wish::KeepSource), [S::InDoubt, S::DestinationLost]);
        assert_eq!(where_it_fits(Wish::KeepDestination), [S::InDoubt, S::DestinationLost]);
        assert_eq!(where_it_fits(Wish::Arrive), []);
        for state in all {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
