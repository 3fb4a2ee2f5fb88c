//! Every pair of state and event, compared with `table.txt`. A change of a rule shows here as a changed line.

use std::fmt::Write as _;

use novaferry_session::cutover::{
    Choice, Destination, DestinationEvent, DestinationState, Source, SourceEvent, SourceState, Verdict,
};

fn source_states() -> Vec<SourceState> {
    use SourceState as S;
    vec![
        S::Preparing,
        S::Mirroring,
        S::PreCopy,
        S::Paused,
        S::Fencing,
        S::Permitting,
        S::InDoubt,
        S::Running,
        S::Proven,
        S::Finalised,
        S::DestinationLost,
        S::TakingBack,
        S::Lost("why".to_owned()),
        S::Undoing("why".to_owned()),
        S::RolledBack("why".to_owned()),
        S::Stopped("why".to_owned()),
    ]
}

fn source_events() -> Vec<SourceEvent> {
    use SourceEvent as E;
    vec![
        E::Prepared,
        E::MirrorReady,
        E::SwitchoverReached,
        E::RootsEqual,
        E::FenceDurable,
        E::Runs,
        E::NotRun,
        E::Verdict(Verdict::Burned),
        E::Verdict(Verdict::Ready),
        E::Verdict(Verdict::Runs),
        E::Verdict(Verdict::RanAndDied),
        E::Verdict(Verdict::Unknown),
        E::Verdict(Verdict::Revoked),
        E::Verdict(Verdict::Kept),
        E::Proved,
        E::Finalise,
        E::FinaliseDone,
        E::Cancel,
        E::TakeBack,
        E::Failed("cause".to_owned()),
        E::ContactLost,
        E::ContactBack,
        E::QemuDied,
        E::MemoryLost("cause".to_owned()),
        E::Resumed,
        E::Resolve(Choice::Source),
        E::Resolve(Choice::Destination),
        E::Restarted,
    ]
}

fn destination_states() -> Vec<DestinationState> {
    use DestinationState as S;
    vec![
        S::Waiting { complete: false },
        S::Waiting { complete: true },
        S::Permitted { complete: false },
        S::Permitted { complete: true },
        S::Starting,
        S::Running,
        S::Finalised,
        S::Burning("why".to_owned()),
        S::Burned("why".to_owned()),
        S::Died,
        S::Revoking("why".to_owned()),
        S::Revoked("why".to_owned()),
        S::Lost("why".to_owned()),
    ]
}

fn destination_events() -> Vec<DestinationEvent> {
    use DestinationEvent as E;
    vec![
        E::Complete,
        E::Permit,
        E::Started,
        E::StartRefused("cause".to_owned()),
        E::Abort("cause".to_owned()),
        E::Failed("cause".to_owned()),
        E::ContactLost,
        E::Ask,
        E::Finalise,
        E::Revoke,
        E::QemuDied,
        E::MemoryLost("cause".to_owned()),
        E::Discarded,
        E::Resolve(Choice::Source),
        E::Resolve(Choice::Destination),
        E::Restarted { alive: true },
        E::Restarted { alive: false },
    ]
}

#[test]
fn the_table_is_as_written_down() {
    let mut table = String::new();
    for state in source_states() {
        writeln!(table, "source {state:?}").unwrap();
        for event in source_events() {
            let mut machine = Source::from_record(state.clone());
            if let Some(actions) = machine.handle(event.clone()) {
                writeln!(table, "  {event:?} -> {:?}, do {actions:?}", machine.state()).unwrap();
            } else {
                assert_eq!(*machine.state(), state, "what is ignored changes nothing");
            }
        }
    }
    for state in destination_states() {
        writeln!(table, "destination {state:?}").unwrap();
        for event in destination_events() {
            let mut machine = Destination::from_record(state.clone());
            if let Some(actions) = machine.handle(event.clone()) {
                writeln!(table, "  {event:?} -> {:?}, do {actions:?}", machine.state()).unwrap();
            } else {
                assert_eq!(*machine.state(), state, "what is ignored changes nothing");
            }
        }
    }
    let written = include_str!("table.txt");
    if table != written {
        println!("{table}");
    }
    assert!(table == written, "the rules changed: compare what was printed with table.txt");
}

#[test]
fn records_read_back() {
    for state in source_states() {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SourceState>(&text).unwrap(), state, "{text}");
    }
    for state in destination_states() {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<DestinationState>(&text).unwrap(), state, "{text}");
    }
}
