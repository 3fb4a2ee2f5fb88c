//! `live` on a small guest: it runs, verifies, and prints what `README.md` promises.

use std::path::Path;
use std::process::Command;

use guest::Linux;
use serde_json::Value;

/// A guest that boots, moves and checks itself in seconds.
const TINY: [&str; 5] = ["live", "same-host", "--memory", "96MiB", "--pairs"];

#[test]
fn a_pair_of_moves() {
    if Linux::available("a_pair_of_moves").is_none() {
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_novaferry-bench"));
    for binary in ["novaferry-agent", "novaferry-vmd"] {
        let path = program.with_file_name(binary);
        assert!(path.is_file(), "{} is missing: build it with `cargo build --workspace`", path.display());
    }
    let output = Command::new(program)
        .args(TINY)
        .args(["1", "--output", "json", "--", "--multifd", "2"])
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [novaferry, qemu, summary] = &lines[..] else { panic!("two moves and their sum: {stdout}") };
    for (record, mover) in [(novaferry, "novaferry"), (qemu, "qemu")] {
        assert_eq!((&record["kind"], &record["mover"]), (&"move".into(), &mover.into()), "{record}");
        assert_eq!(record["verified"], true, "{record}");
        for amount in ["ram_plain", "ram_wire", "disk_wire"] {
            assert!(record[amount].as_u64().unwrap() > 0, "{amount} of {record}");
        }
        for time in ["seconds", "stream_seconds", "cpu_qemu"] {
            assert!(record[time].as_f64().unwrap() > 0.0, "{time} of {record}");
        }
        let names: Vec<&str> =
            record["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"paused"), "{names:?}");
    }
    assert!(novaferry["cpu_agents"].as_f64().unwrap() > 0.0, "{novaferry}");
    let wire = |record: &Value| record["ram_wire"].as_u64().unwrap();
    assert!(wire(novaferry) < wire(qemu), "{stdout}");
    assert_eq!((&summary["kind"], &summary["pairs"]), (&"live".into(), &1.into()));
    assert_eq!(summary["goals"].as_array().unwrap().len(), 3, "{summary}");
}

#[test]
fn what_is_missing_is_named() {
    let program = env!("CARGO_BIN_EXE_novaferry-bench");
    let run = |arguments: &[&str], guest: &str| {
        Command::new(program).args(arguments).env("NOVAFERRY_GUEST", guest).output().unwrap()
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let missing = run(&["live", "same-host"], "/nonexistent");
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        said(&missing).contains("is not installed") || said(&missing).contains("make-test-guest.sh"),
        "{missing:?}"
    );
    assert_eq!(run(&["live", "nonsense"], "").status.code(), Some(64));
    let small = run(&["live", "same-host", "--memory", "1MiB"], "");
    assert!(said(&small).contains("at least 64 MiB"), "{small:?}");
}
