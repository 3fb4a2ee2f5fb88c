//! NovaCron's words for what is called otherwise here. Its parts disagree: all are read, one of a surface is written.

use model::Timestamp;
use model::migration::{Migration, Mode, State, Wish};
use serde_json::Value;

use crate::api::problem::Problem;

/// What Go writes for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A time as NovaCron writes it.
pub(super) fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}

fn plain(text: &str) -> String {
    text.trim().to_ascii_lowercase().replace('_', "-")
}

/// How a VM is to move, by any of NovaCron's words.
///
/// # Errors
/// When it is none of them.
pub(super) fn mode(text: &str) -> Result<Mode, Problem> {
    match plain(text).as_str() {
        "live" | "hybrid" | "pre-copy" | "precopy" | "post-copy" | "postcopy" | "streaming" => Ok(Mode::Live),
        "warm" | "suspend" | "checkpoint" => Ok(Mode::Warm),
        "cold" | "offline" => Ok(Mode::Cold),
        _ => Err(Problem::invalid("no such migration type; they are cold, warm and live")),
    }
}

/// NovaCron stops the guest for a cold move and starts it afterwards: of a guest that runs, that is a warm one here.
pub(super) fn fitting(mode: Mode, runs: bool) -> Mode {
    match mode {
        Mode::Cold if runs => Mode::Warm,
        Mode::Warm if !runs => Mode::Cold,
        other => other,
    }
}

/// How a VM moves.
pub(super) fn strategy(mode: Mode) -> &'static str {
    match mode {
        Mode::Live => "live",
        Mode::Warm => "warm",
        Mode::Cold => "cold",
    }
}

/// `low`, `normal` or `high`.
///
/// # Errors
/// When it is none of NovaCron's words.
pub(super) fn priority(text: Option<&str>) -> Result<&'static str, Problem> {
    match text.map(plain).as_deref() {
        None | Some("" | "normal" | "medium") => Ok("normal"),
        Some("low") => Ok("low"),
        Some("high" | "critical") => Ok("high"),
        Some(_) => Err(Problem::invalid("no such priority; they are low, normal and high")),
    }
}

/// Where a migration stands, in the words of both surfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Pending,
    InProgress,
    Completed,
    Failed,
    Cancelled,
    RolledBack,
}

impl Status {
    pub(super) fn of(migration: &Migration) -> Self {
        match migration.state {
            State::Queued => Self::Pending,
            State::Moving | State::CuttingOver | State::Proving | State::Undoing | State::InDoubt => {
                Self::InProgress
            }
            State::Held | State::Completed | State::Rehearsed => Self::Completed,
            State::Undone if migration.wish == Wish::Cancel => Self::Cancelled,
            State::Undone => Self::RolledBack,
            State::DestinationLost | State::Stopped | State::Lost | State::Refused => Self::Failed,
        }
    }

    /// In the words of `/multicloud`.
    pub(super) fn multicloud(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::RolledBack => "rolled_back",
        }
    }

    /// In the words of `/migration`, which has none for what was rolled back.
    pub(super) fn job(self) -> &'static str {
        match self {
            Self::Pending => "queued",
            Self::RolledBack => "failed",
            other => other.multicloud(),
        }
    }

    /// By any of NovaCron's words.
    ///
    /// # Errors
    /// When it is none of them.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        match plain(text).as_str() {
            "pending" | "queued" => Ok(Self::Pending),
            "in-progress" | "running" | "preparing" | "initiating" | "transferring" | "activating"
            | "finalizing" | "completing" | "rolling-back" | "rollingback" => Ok(Self::InProgress),
            "completed" => Ok(Self::Completed),
            "failed" | "error" => Ok(Self::Failed),
            "cancelled" | "canceled" => Ok(Self::Cancelled),
            "rolled-back" | "rolledback" => Ok(Self::RolledBack),
            _ => Err(Problem::invalid("no such status")),
        }
    }
}

/// Percent: by bytes until the guest pauses.
pub(super) fn progress(migration: &Migration) -> u64 {
    /// Share of a move that is the transfer, percent.
    const TRANSFER: u64 = 85;
    match migration.state {
        State::Completed | State::Held | State::Rehearsed => 100,
        State::Proving | State::DestinationLost | State::Lost => 95,
        State::CuttingOver | State::InDoubt => 90,
        _ => migration.at_source.as_ref().map_or(0, |progress| {
            let ram = progress.ram_total.saturating_sub(progress.ram_remaining);
            let done = u128::from(progress.disk_done) + u128::from(ram);
            let total = u128::from(progress.disk_total) + u128::from(progress.ram_total);
            let percent = (done * u128::from(TRANSFER)).checked_div(total).unwrap_or(0);
            u64::try_from(percent).unwrap_or(TRANSFER).min(TRANSFER)
        }),
    }
}

/// The phase of a live migration, in the words of NovaCron's orchestrator.
pub(super) fn phase(migration: &Migration) -> &'static str {
    let said = migration.at_source.as_ref().map_or("", |progress| progress.state.as_str());
    match migration.state {
        State::Queued => "initializing",
        State::Moving => match said {
            "mirroring" => "disk_copy",
            "pre-copy" => "memory_copy",
            _ => "initializing",
        },
        State::CuttingOver if said == "paused" => "downtime",
        State::CuttingOver | State::InDoubt => "activation",
        State::Proving => "verification",
        State::Held | State::Completed | State::Rehearsed => "completed",
        State::Undoing
        | State::Undone
        | State::DestinationLost
        | State::Stopped
        | State::Lost
        | State::Refused => "failed",
    }
}

/// Why a migration did not arrive, for people.
pub(super) fn error(migration: &Migration) -> Option<String> {
    let failed = matches!(Status::of(migration), Status::Failed | Status::RolledBack);
    failed.then(|| {
        let report = migration.at_source.as_ref().map(|progress| &progress.report["error"]);
        let said = report.and_then(Value::as_str);
        let why = migration.refusal.as_deref().or(said);
        why.map_or_else(|| migration.state.as_str().to_owned(), ToOwned::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_novacrons_words_are_read() {
        for (word, expected) in [
            ("cold", Mode::Cold),
            ("offline", Mode::Cold),
            ("Warm", Mode::Warm),
            ("suspend", Mode::Warm),
            ("pre_copy", Mode::Live),
            (" LIVE ", Mode::Live),
        ] {
            assert_eq!(mode(word).unwrap(), expected, "{word}");
        }
        assert!(mode("teleport").is_err());
        for (word, expected) in [
            ("queued", Status::Pending),
            ("rollingback", Status::InProgress),
            ("rolledback", Status::RolledBack),
            ("rolled_back", Status::RolledBack),
            ("canceled", Status::Cancelled),
            ("error", Status::Failed),
        ] {
            assert_eq!(Status::parse(word).unwrap(), expected, "{word}");
        }
        assert!(Status::parse("odd").is_err());
        assert_eq!((priority(None).unwrap(), priority(Some("Medium")).unwrap()), ("normal", "normal"));
        assert!(priority(Some("asap")).is_err());
        assert_eq!(fitting(Mode::Cold, true), Mode::Warm);
        assert_eq!(fitting(Mode::Warm, false), Mode::Cold);
        assert_eq!(fitting(Mode::Live, true), Mode::Live);
    }

    #[test]
    fn no_surface_gets_a_word_that_it_has_not() {
        assert_eq!(Status::RolledBack.job(), "failed");
        assert_eq!(Status::Pending.job(), "queued");
        assert_eq!(Status::RolledBack.multicloud(), "rolled_back");
        assert_eq!(time(None), "0001-01-01T00:00:00Z");
    }
}
