use serde_json::json;

use super::*;

fn moved() -> Migration {
    serde_json::from_value(json!({
        "id": "ab".repeat(16), "vm": "web-1", "source": "host-a", "destination": "host-b",
        "options": { "mode": "live", "max_downtime_ms": 300, "limit": 50_000_000, "hold": true, "dry_run": false },
        "wish": "finalise", "by": "token:1",
        "created": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:09Z", "state": "proving",
        "at_source": {
            "state": "proven", "over": true, "generation": 7, "disk_done": 4_000_000, "disk_total": 4_000_000,
            "ram_remaining": 0, "ram_total": 512_000_000, "rate": 98_500_000, "expected_downtime_ms": 0,
            "report": {
                "text": "the guest runs at the destination",
                "report": {
                    "mode": "live",
                    "predicted": {
                        "total_ms": 4000, "downtime_ms": 90, "wire_bytes": 100_000_000, "dirty_rate": 5_000_000,
                        "link_rate": 110_000_000, "converges": true, "basis": "measured just now",
                    },
                    "total_ms": 3900, "downtime_ms": 67, "ram_plain": 512_000_000, "ram_wire": 97_000_000,
                    "disk_plain": 4_000_000, "disk_wire": 1_000_000, "rounds": 3, "reconnects": 0,
                    "grade": "time 2 % less, pause 25 % less",
                },
                "findings": [
                    { "rule": "layer-2", "evidence": "br0 is \u{1b}[31mnot known", "fix": "say which", "blocking": false },
                ],
            },
        },
        "at_destination": null, "refusal": null,
    }))
    .unwrap()
}

#[test]
fn a_migration_says_what_was_asked() {
    let lines = lines(&summary(&moved())).join("\n");
    for part in [
        "vm         web-1",
        "how        live, pause of at most 300 ms, at most 50.0 MB/s, the source's copy is held",
        "state      proving",
        "wish       finalise",
        "(2026-01-01T00:00:00Z), by token:1",
    ] {
        assert!(lines.contains(part), "{part} is not in\n{lines}");
    }
}

#[test]
fn both_ends_stand_side_by_side() {
    let ends = ends(&moved());
    let row = |name: &str| ends.iter().find(|row| row[0] == name).unwrap()[1..].to_vec();
    assert_eq!(row("state"), ["proven", "has said nothing"]);
    assert_eq!(
        row("memory"),
        ["512.0 MB (100 %)".replace(" (", " of 512.0 MB ("), "has said nothing".to_owned()]
    );
    assert_eq!(row("rate")[0], "98.5 MB/s");
    let mut queued = moved();
    queued.at_source = None;
    assert!(super::ends(&queued).is_empty());
    assert!(reports(&queued).is_empty());
}

#[test]
fn expectations_and_figures_are_told() {
    let reports = reports(&moved());
    let text = |title: &str| reports.iter().find(|(found, _)| found == title).unwrap().1.join("\n");
    assert!(text("expected").contains("pause         90 ms"), "{}", text("expected"));
    assert!(text("expected").contains("by            measured just now"));
    let came = text("came to");
    assert!(came.contains("3.9 s") && came.contains("98.0 MB on the wire for 516.0 MB"), "{came}");
    assert!(!came.contains("reconnects") && came.contains("grade   time 2 % less"), "{came}");
    let findings = text("findings");
    assert_eq!(findings, "warning: br0 is \u{fffd}[31mnot known (layer-2)\n  fix: say which");
    assert_eq!(text("the source says"), "the guest runs at the destination");
}

#[test]
fn what_an_agent_says_need_not_be_what_is_expected() {
    for report in [json!(null), json!("x"), json!([1]), json!({ "findings": "none", "report": 5, "text": 7 })]
    {
        let mut migration = moved();
        migration.at_source.as_mut().unwrap().report = report;
        assert!(reports(&migration).is_empty());
    }
}
