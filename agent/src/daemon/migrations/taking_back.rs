//! Whether a guest can be taken back from a destination where it may have run: whether what waits here is still there,
//! and still the newest that this host knows.

use engine::migrate::mode::Mode;
use engine::migrate::record::{Record, Role};
use engine::migrate::status::SourceState;
use hypervisor::inventory::{Activity, Process};
use volume::Generation;

use crate::output::migration::short;

/// What stands against it, and what to do instead. `known` is the VM's newest generation here; `host` and `port` are
/// this host's.
pub(super) fn objection(record: &Record, known: Generation, host: &str, port: u16) -> Option<String> {
    use SourceState as S;
    let Role::Source { state, process, .. } = &record.role else { return None };
    // Before the permit it is a cancel; what was begun is gone on with.
    if !matches!(state, S::Permitting | S::InDoubt | S::Running | S::Proven | S::DestinationLost) {
        return None;
    }
    let (id, vm, peer) = (short(&record.migration), &record.vm, &record.peer);
    let back = |options: &str| {
        format!(
            "to go back, run on {peer}: novaferry-agent migrate {vm} {options}--to novaferry://{host}:{port}"
        )
    };
    if record.mode == Mode::Cold {
        return Some(format!("VM {vm} is off, so nothing of it waits here; {}", back("--mode cold ")));
    }
    if known.0 > record.generation {
        return Some(format!(
            "VM {vm} was moved again since migration {id}: the copy that waits here is not the one before the newest; \
             `novaferry-agent migration list` shows where it is"
        ));
    }
    let dead = process.is_some_and(|(pid, start_time)| {
        Process { pid, start_time }.activity().is_ok_and(|activity| activity == Activity::Dead)
    });
    dead.then(|| {
        format!(
            "the QEMU of VM {vm} that waited here has ended, so there is nothing to go on with; {}",
            back("")
        )
    })
}

#[cfg(test)]
mod tests {
    use volume::SessionId;

    use super::*;

    fn record(state: SourceState, process: Option<(u32, u64)>) -> Record {
        let role = Role::Source {
            state,
            address: "b:1".to_owned(),
            alternates: Vec::new(),
            qmp: "/q".to_owned(),
            folder: None,
            process,
            fenced: true,
            was_paused: false,
        };
        let mut record = Record::new(SessionId([1; 16]), "web", "host-b", role);
        record.generation = 4;
        record
    }

    #[test]
    fn only_what_waits_here_and_is_the_newest_is_gone_on_with() {
        let asked = |record: &Record, known| objection(record, Generation(known), "host-a", 7440);
        let me = Process::find(std::process::id()).unwrap();
        let waits = record(SourceState::Proven, Some((me.pid, me.start_time)));
        assert_eq!(asked(&waits, 4), None);
        let why = asked(&waits, 5).unwrap();
        assert!(why.contains("was moved again since migration 01010101"), "{why}");
        let gone = record(SourceState::Proven, Some((me.pid, me.start_time + 1)));
        let why = asked(&gone, 4).unwrap();
        assert!(
            why.ends_with("run on host-b: novaferry-agent migrate web --to novaferry://host-a:7440"),
            "{why}"
        );
        let mut cold = waits;
        cold.mode = Mode::Cold;
        let why = asked(&cold, 4).unwrap();
        assert!(why.contains("migrate web --mode cold --to novaferry://host-a:7440"), "{why}");
        // A cancel, and one that was begun.
        assert_eq!(asked(&record(SourceState::PreCopy, gone_process(&gone)), 9), None);
        assert_eq!(asked(&record(SourceState::TakingBack, gone_process(&gone)), 9), None);
    }

    fn gone_process(record: &Record) -> Option<(u32, u64)> {
        let Role::Source { process, .. } = &record.role else { return None };
        *process
    }
}
