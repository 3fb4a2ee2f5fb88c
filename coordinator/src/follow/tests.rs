use model::migration::{Options, Progress, Wish};
use serde_json::json;

use super::*;

fn migration(state: State, end: Option<Progress>) -> Migration {
    Migration {
        state,
        at_source: end,
        ..serde_json::from_value(json!({
            "id": "ab".repeat(16), "vm": "web-1", "source": "host-a", "destination": "host-b",
            "options": Options::default(), "wish": Wish::Arrive, "by": "token:1",
            "created": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:00Z", "state": "queued",
            "at_source": null, "at_destination": null, "refusal": null,
        }))
        .unwrap()
    }
}

fn end() -> Progress {
    Progress {
        state: "pre-copy".to_owned(),
        disk_done: 3_000_000_000,
        disk_total: 4_000_000_000,
        ram_remaining: 500_000_000,
        ram_total: 2_000_000_000,
        rate: 100_000_000,
        expected_downtime_ms: 80,
        ..Progress::default()
    }
}

#[test]
fn progress_says_phase_parts_rate_pause_and_time() {
    assert_eq!(progress(&migration(State::Queued, None)), "abababab  queued");
    assert_eq!(
        progress(&migration(State::Moving, Some(end()))),
        "abababab  moving: pre-copy  disks 75 %  memory 75 %  1500.0 MB left  100.0 MB/s  pause 80 ms expected  at least 15.0 s to go"
    );
    let over = Progress { over: true, state: "finalised".to_owned(), ..end() };
    assert_eq!(
        progress(&migration(State::Completed, Some(over))),
        "abababab  completed: finalised  disks 75 %  memory 75 %"
    );
    let hostile = Progress { state: "\x1b[2J".to_owned(), ..Progress::default() };
    assert!(!progress(&migration(State::Moving, Some(hostile))).contains('\x1b'));
    let liar = Progress {
        ram_remaining: u64::MAX,
        disk_done: u64::MAX,
        disk_total: 1,
        ram_total: 1,
        rate: 1,
        ..end()
    };
    assert!(progress(&migration(State::Moving, Some(liar))).contains("memory 0 %"));
}

#[test]
fn every_state_has_its_exit_code() {
    use State as S;
    let exit = |state: State| {
        verdict(&migration(state, Some(end())))
            .map(|verdict| verdict.err().map_or(0, |failure| failure.exit as u8))
    };
    for state in [S::Completed, S::Held, S::Rehearsed] {
        assert_eq!(exit(state), Some(0), "{state:?}");
    }
    for state in [S::Undone, S::Stopped, S::Lost, S::Refused] {
        assert_eq!(exit(state), Some(1), "{state:?}");
    }
    for state in [S::InDoubt, S::DestinationLost] {
        assert_eq!(exit(state), Some(2), "{state:?}");
    }
    for state in [S::Queued, S::Moving, S::CuttingOver, S::Proving, S::Undoing] {
        assert_eq!(exit(state), None, "{state:?}");
    }
    let mut blocked = end();
    blocked.report = json!({ "findings": [{ "blocking": true, "evidence": "no room" }] });
    let verdict = verdict(&migration(S::Rehearsed, Some(blocked))).unwrap().unwrap_err();
    assert!(verdict.exit == Exit::Failed && verdict.message.contains("no room"));
}

#[test]
fn whoever_is_in_doubt_is_told_what_to_type() {
    let doubt = verdict(&migration(State::InDoubt, Some(end()))).unwrap().unwrap_err();
    assert!(doubt.advice.unwrap().contains("novaferry migration resolve abababab"));
}

#[test]
fn parts_are_whole_percents() {
    assert_eq!((percent(1, 3), percent(0, 0), percent(u64::MAX, u64::MAX)), (Some(33), None, Some(100)));
    assert_eq!(percent(u64::MAX, 1), Some(100), "a host that says nonsense");
}
