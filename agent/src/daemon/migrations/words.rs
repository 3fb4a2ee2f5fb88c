//! Which command has a place in which state, and what is said when it has none.

use engine::migrate::record::{Record, Role};
use engine::migrate::status::{Choice, Command, DestinationState, SourceState};

use crate::output::migration::short;

/// Whether a migration in this state does anything about a command.
pub(super) fn fits(command: Command, role: &Role) -> bool {
    use DestinationState as D;
    use SourceState as S;
    match (command, role) {
        (Command::Cancel, Role::Source { state, .. }) => {
            matches!(state, S::Preparing | S::Mirroring | S::PreCopy | S::Paused | S::Fencing)
        }
        (Command::Cancel, Role::Destination { state, .. }) => matches!(state, D::Waiting { .. }),
        (Command::TakeBack, Role::Source { state, .. }) => {
            !matches!(state, S::Undoing(_)) && !state.is_final()
        }
        (Command::TakeBack, Role::Destination { .. }) => false,
        (Command::Finalise, Role::Source { state, .. }) => matches!(state, S::Running | S::Proven),
        (Command::Finalise, Role::Destination { state, .. }) => matches!(state, D::Running),
        (Command::Resolve(Choice::Source), Role::Source { state: S::TakingBack, .. }) => true,
        (Command::Resolve(_), Role::Source { state, .. }) => matches!(state, S::InDoubt | S::DestinationLost),
        (Command::Resolve(Choice::Source), Role::Destination { state, .. }) => {
            matches!(state, D::Permitted { .. } | D::Running)
        }
        (Command::Resolve(Choice::Destination), Role::Destination { state, .. }) => {
            matches!(state, D::Permitted { complete: true } | D::Running)
        }
    }
}

/// Why nothing is given up while the guest runs without all of its memory.
pub(super) fn memory_follows(record: &Record) -> String {
    let (id, vm) = (short(&record.migration), &record.vm);
    format!(
        "VM {vm} runs at the destination in post-copy, and needs what is left of its memory at the source; wait until it has \
         all: `novaferry-agent migration status {id}`"
    )
}

/// Why a command has no place. `host` and `port` are this host's.
pub(super) fn why_not(command: Command, record: &Record, host: &str, port: u16) -> String {
    let (id, vm, peer, state) = (short(&record.migration), &record.vm, &record.peer, record.state_name());
    match (command, &record.role) {
        (_, _) if record.is_final() => format!("migration {id} is over ({state})"),
        (Command::Cancel, Role::Source { state: SourceState::Running | SourceState::Proven, .. }) => format!(
            "VM {vm} runs at {peer}, and its memory there is newer than what is here; to go back, run on {peer}: \
             novaferry-agent migrate {vm} --to novaferry://{host}:{port}; or, to lose everything since the cut-over, run \
             here: novaferry-agent migration rollback {id} --discard-destination"
        ),
        (Command::Cancel, Role::Source { state: SourceState::TakingBack, .. }) => format!(
            "VM {vm} is being taken back already ({state}): {peer} has not confirmed yet that it ended it; when {peer} is \
             off and stays off: novaferry-agent migration resolve {id} --keep source --other-side-is-off"
        ),
        (Command::Cancel, Role::Source { state: SourceState::Permitting | SourceState::InDoubt, .. }) => {
            format!(
                "{peer} may run VM {vm} already ({state}); wait for its answer, or make sure that {peer} is off and run: \
             novaferry-agent migration resolve {id} --keep source --other-side-is-off"
            )
        }
        (Command::Cancel, Role::Source { state: SourceState::DestinationLost, .. }) => format!(
            "VM {vm} ran at {peer} and died there; to go back with its newest disks, run on {peer}: novaferry-agent migrate \
             {vm} --mode cold --to novaferry://{host}:{port}; or choose a copy: novaferry-agent migration resolve {id} \
             --keep source|destination --other-side-is-off"
        ),
        (Command::Cancel | Command::TakeBack, Role::Source { .. }) => {
            format!("migration {id} is being undone already ({state})")
        }
        (Command::Cancel, Role::Destination { .. }) => format!(
            "VM {vm} may run here already ({state}); to send it back: novaferry-agent migrate {vm} --to \
             novaferry://{peer}:{port}"
        ),
        (Command::TakeBack, Role::Destination { .. }) => format!(
            "VM {vm} is taken back by the host that it came from; run on {peer}: novaferry-agent migration rollback {id} \
             --discard-destination"
        ),
        (
            Command::Resolve(Choice::Source),
            Role::Source {
                state: SourceState::Permitting | SourceState::Running | SourceState::Proven, ..
            },
        ) => format!(
            "{peer} is asked first, in case that it is there after all ({state}): novaferry-agent migration rollback {id} \
             --discard-destination; when it does not answer, resolve"
        ),
        (Command::Finalise, _) => format!(
            "the guest is not known to run at the destination ({state}); wait for it, or see `novaferry-agent \
             migration status {id}`"
        ),
        (Command::Resolve(_), _) => {
            format!("there is nothing to choose ({state}); `novaferry-agent migration status {id}` shows it")
        }
    }
}
