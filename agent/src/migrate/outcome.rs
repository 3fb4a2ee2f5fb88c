//! What a migration came to, as far as one who follows it is concerned.

use engine::migrate::preflight::objection;
use engine::migrate::record::{Record, Role};
use engine::migrate::status::SourceState;

use crate::control::migration::Shown;
use crate::failure::Failure;
use crate::output::migration::{measured, plan, short};

/// Looks for which a migration that is done may still be busy with putting things away.
const PATIENT_LOOKS: u32 = 40;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Followed {
    /// Only to look.
    pub(super) dry_run: bool,
    /// To keep the source's copy.
    pub(super) hold: bool,
}

/// What to tell people, or why it is a failure.
pub(super) type Verdict = Result<String, Failure>;

/// The guest runs at the destination, for good.
pub(super) fn is_settled(record: &Record) -> bool {
    matches!(record.role, Role::Source { state: SourceState::Proven | SourceState::Finalised, .. })
}

/// The outcome, or none while there is something to wait for. `settled` counts earlier looks at which it was settled.
pub(super) fn of(shown: &Shown, followed: Followed, settled: u32) -> Option<Verdict> {
    use SourceState as S;
    let Shown { status, over } = shown;
    let record = &status.record;
    let (vm, id, peer) = (&record.vm, short(&record.migration), &record.peer);
    let Role::Source { state, .. } = &record.role else { return Some(Ok(String::new())) };
    let patient = settled < PATIENT_LOOKS;
    match state {
        S::Preparing if *over && followed.dry_run => Some(rehearsed(shown)),
        S::Finalised if !over && patient => None,
        S::Proven if !over && patient && !followed.hold => None,
        S::Finalised => Some(Ok(done(record))),
        S::Proven => Some(Ok(format!(
            "{}\nthe copy here is kept until: novaferry-agent migration finalise {id}",
            done(record)
        ))),
        S::RolledBack(why) | S::Stopped(why) if followed.dry_run => Some(Err(Failure::new(
            "migration-blocked",
            format!("VM {vm} cannot be moved so: {why}"),
            "correct the cause; nothing was changed",
        ))),
        S::RolledBack(why) => Some(Err(Failure::new(
            "migration-undone",
            format!("VM {vm} stays here: {why}"),
            format!(
                "correct the cause and migrate again; `novaferry-agent migration status {id}` shows more"
            ),
        ))),
        S::Stopped(why) => Some(Err(Failure::new(
            "migration-stopped",
            format!("VM {vm} runs nowhere, and its disks here are the truth: {why}"),
            "look at the log of its QEMU, and start it here again",
        ))),
        S::DestinationLost => Some(Err(Failure::new(
            "migration-destination-lost",
            format!("VM {vm} ran at {peer} and died there"),
            format!(
                "choose a copy: novaferry-agent migration resolve {id} --keep source|destination --other-side-is-off"
            ),
        ))),
        S::Lost(why) => Some(Err(Failure::new(
            "migration-lost",
            format!("VM {vm} is lost: it ran at {peer}, and {why}"),
            format!("its disks at {peer} are what is left: end its process there, and start it from them"),
        ))),
        S::Running if record.report.note.is_some() => Some(Err(Failure::new(
            "migration-not-proven",
            format!(
                "VM {vm} was started at {peer}, but: {}",
                record.report.note.as_deref().unwrap_or_default()
            ),
            format!("look at it there; `novaferry-agent migration finalise {id}` gives up the copy here"),
        ))),
        state if *over => Some(Err(Failure::new(
            "migration-interrupted",
            format!("the daemon stopped while migration {id} was {}", state.name()),
            "start the daemon: it goes on, or undoes what can be undone",
        ))),
        _ => None,
    }
}

fn done(record: &Record) -> String {
    let report = &record.report;
    let mut text = format!("done: {} runs at {}", record.vm, record.peer);
    if report.total_ms.is_some() {
        text.push_str(": ");
        text.push_str(&measured(report));
    }
    if let Some(grade) = &report.grade {
        text.push('\n');
        text.push_str(grade);
    }
    text
}

fn rehearsed(shown: &Shown) -> Verdict {
    let status = &shown.status;
    if let Some(objection) = objection(&status.findings) {
        // What stands against it comes first; the plan is of no use before that is gone.
        let message = format!("VM {} cannot be moved so: {objection}", status.record.vm);
        return Err(Failure::new("migration-blocked", message, "correct the cause; nothing was changed"));
    }
    let mut text = format!("nothing stands against moving {}; nothing was changed", status.record.vm);
    if let Some(predicted) = &status.record.report.predicted {
        text.push('\n');
        text.push_str(&plan(predicted));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use engine::migrate::preflight::Finding;
    use engine::migrate::status::{Live, Status};
    use volume::SessionId;

    use super::*;

    const PLAIN: Followed = Followed { dry_run: false, hold: false };

    fn shown(state: SourceState, over: bool) -> Shown {
        let role = Role::Source {
            state,
            address: "b:1".to_owned(),
            alternates: Vec::new(),
            qmp: "/q".to_owned(),
            folder: None,
            process: None,
            fenced: false,
            was_paused: false,
        };
        let record = Record::new(SessionId([1; 16]), "web", "host-b", role);
        Shown { status: Status { record, live: Live::default(), findings: Vec::new() }, over }
    }

    fn code(shown: &Shown, followed: Followed) -> Option<String> {
        of(shown, followed, 0).map(|verdict| verdict.map_or_else(|failure| failure.code, |_| "ok".to_owned()))
    }

    #[test]
    fn what_runs_is_waited_for() {
        use SourceState as S;
        for state in
            [S::Preparing, S::Mirroring, S::PreCopy, S::Paused, S::Fencing, S::Permitting, S::InDoubt]
        {
            assert_eq!(code(&shown(state.clone(), false), PLAIN), None, "{state:?}");
            let interrupted = Some("migration-interrupted".to_owned());
            assert_eq!(code(&shown(state.clone(), true), PLAIN), interrupted, "{state:?}");
        }
        assert_eq!(code(&shown(S::Running, false), PLAIN), None);
        assert_eq!(code(&shown(S::Undoing("x".to_owned()), false), PLAIN), None);
    }

    #[test]
    fn what_is_settled_is_waited_for_a_while() {
        use SourceState as S;
        assert_eq!(code(&shown(S::Finalised, false), PLAIN), None);
        assert_eq!(code(&shown(S::Finalised, true), PLAIN).unwrap(), "ok");
        assert!(of(&shown(S::Finalised, false), PLAIN, PATIENT_LOOKS).unwrap().is_ok());
        assert_eq!(code(&shown(S::Proven, false), PLAIN), None);
        assert!(of(&shown(S::Proven, false), PLAIN, PATIENT_LOOKS).unwrap().is_ok());
        let held = of(&shown(S::Proven, false), Followed { hold: true, ..PLAIN }, 0).unwrap().unwrap();
        assert!(held.ends_with("novaferry-agent migration finalise 01010101"), "{held}");
    }

    #[test]
    fn failures_say_where_the_guest_is() {
        use SourceState as S;
        assert_eq!(code(&shown(S::RolledBack("x".to_owned()), true), PLAIN).unwrap(), "migration-undone");
        assert_eq!(code(&shown(S::Stopped("x".to_owned()), true), PLAIN).unwrap(), "migration-stopped");
        assert_eq!(code(&shown(S::DestinationLost, false), PLAIN).unwrap(), "migration-destination-lost");
        assert_eq!(code(&shown(S::Lost("x".to_owned()), true), PLAIN).unwrap(), "migration-lost");
        let mut sick = shown(S::Running, false);
        sick.status.record.report.note = Some("the guest does not run".to_owned());
        assert_eq!(code(&sick, PLAIN).unwrap(), "migration-not-proven");
    }

    #[test]
    fn a_rehearsal_fails_when_something_blocks() {
        let dry = Followed { dry_run: true, hold: false };
        let mut looked = shown(SourceState::Preparing, true);
        assert_eq!(code(&looked, dry).unwrap(), "ok");
        looked.status.findings.push(Finding::warning("clock-skew", "3 s", "use NTP"));
        assert_eq!(code(&looked, dry).unwrap(), "ok");
        looked.status.findings.push(Finding::blocking("memory", "too little", "free some"));
        assert_eq!(code(&looked, dry).unwrap(), "migration-blocked");
        let refused = shown(SourceState::RolledBack("the destination refused: no".to_owned()), true);
        assert_eq!(code(&refused, dry).unwrap(), "migration-blocked");
    }
}
