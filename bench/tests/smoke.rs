//! Every command and every case, on a few MiB: they run, verify, and print what `README.md` promises.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs the benchmark and returns the JSON objects that it printed.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let program = Path::new(env!("CARGO_BIN_EXE_novaferry-bench"));
    let agent = program.with_file_name("novaferry-agent");
    assert!(
        agent.is_file(),
        "{} is missing: build it with `cargo build -p novaferry-agent`, or everything with `cargo build --workspace`",
        agent.display()
    );
    let output = Command::new(program)
        .args(arguments)
        .args(["--sample", "4MiB", "--output", "json", "--folder", env!("CARGO_TARGET_TMPDIR")])
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a case on 4 MiB and checks its records.
fn case(name: &str, goals: usize) -> Vec<Value> {
    let mut lines = bench(&["run", name, "--size", "4MiB", "--seed", "7"]);
    assert_eq!(lines.remove(0)["kind"], "calibration");
    assert!(!lines.is_empty());
    for record in &lines {
        assert_eq!((&record["kind"], &record["case"]), (&"case".into(), &name.into()), "{record}");
        assert_eq!(record["verified"], true, "{record}");
        assert_eq!(record["bytes"], 4 << 20, "{record}");
        assert_eq!(record["goals"].as_array().unwrap().len(), goals, "{record}");
        for peak in ["peak_memory_tx", "peak_memory_rx", "wire_bytes"] {
            assert!(record[peak].as_u64().unwrap() > 0, "{peak} of {record}");
        }
    }
    lines
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a whole number"))
}

#[test]
fn calibrate() {
    let lines = bench(&["calibrate"]);
    let [calibration] = &lines[..] else { panic!("one line: {lines:?}") };
    assert_eq!(calibration["kind"], "calibration");
    assert!(calibration["machine"]["cores"].as_u64().unwrap() > 0);
    for constant in ["memcpy", "read", "write", "zero", "hash", "index", "quic", "tcp"] {
        assert!(calibration["constants"][constant]["speed"].as_f64().unwrap() > 0.0, "{constant}");
    }
    assert_eq!(calibration["constants"]["levels"].as_array().unwrap().len(), 4);
    assert_eq!(calibration["ceilings"].as_array().unwrap().len(), 7);
}

#[test]
fn incompressible() {
    let lines = case("incompressible", 1);
    assert!(number(&lines[0]["payload_bytes"]) >= 4 << 20);
}

#[test]
fn tcp() {
    case("tcp", 0);
}

#[test]
fn os_image() {
    case("os-image", 0);
}

#[test]
fn zeros_dups() {
    let lines = case("zeros-dups", 0);
    assert!(number(&lines[0]["payload_bytes"]) <= 2 << 20, "{lines:?}");
}

#[test]
fn duplicate() {
    let lines = case("duplicate", 0);
    assert_eq!(lines[0]["dedup_bytes"], 4 << 20, "{lines:?}");
}

#[test]
fn resync_unchanged() {
    let lines = case("resync-unchanged", 1);
    assert_eq!(lines[0]["payload_bytes"], 0, "{lines:?}");
}

#[test]
fn resync_changed() {
    let lines = case("resync-1pct", 1);
    // 10 pages of 4 MiB.
    assert_eq!(lines[0]["payload_bytes"], 10 * 4096, "{lines:?}");
}

#[test]
fn sparse() {
    case("sparse-1tib", 2);
}

#[test]
fn second_session() {
    case("second-session", 1);
}

#[test]
fn wan() {
    if let Some(why) = no_namespaces() {
        let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name.trim() == "netns"), "netns is required, and {why}");
        println!("SKIP wan: {why}");
        return;
    }
    let lines = case("wan", 1);
    let variants: Vec<&str> = lines.iter().map(|line| line["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["loss 1 %", "loss 5 %"]);
}

fn no_namespaces() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    (!Path::new("/dev/net/tun").exists()).then_some("/dev/net/tun is missing")
}

#[test]
fn a_missing_agent_and_wrong_usage_are_said() {
    let program = env!("CARGO_BIN_EXE_novaferry-bench");
    let run = |arguments: &[&str]| Command::new(program).args(arguments).output().unwrap();
    let missing = run(&["run", "tcp", "--agent", "/nonexistent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("cargo build -p novaferry-agent"),
        "{missing:?}"
    );
    assert_eq!(run(&["run", "nonsense"]).status.code(), Some(64));
    assert_eq!(run(&["run", "tcp", "--size", "4MB"]).status.code(), Some(64));
}
