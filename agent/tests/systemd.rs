//! The files of `systemd/`: the unit's exposure, its agreement with the defaults, and the example configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use novaferry_agent::config::{self, Config, Limits};
use pki::KeyOrigin;

/// Highest exposure that `systemd-analyze security` may compute: of the agent and the coordinator, which have no
/// privilege, and of vmd, which starts programs as other users.
const MAX_EXPOSURE: [(&str, f64); 3] = [
    ("novaferry-agent.service", 2.0),
    ("novaferry-coordinator.service", 2.0),
    ("novaferry-vmd.service", 4.0),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

/// True when the test must end here because this machine lacks the capability; panics when it was required.
fn skip(test: &str, capability: &str, why: &str) -> bool {
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|one| one == capability), "{test}: {capability} is required, but {why}");
    eprintln!("SKIP {test}: {why}");
    true
}

fn unit() -> String {
    std::fs::read_to_string(folder().join("novaferry-agent.service")).unwrap()
}

/// The value of the only line with this key.
fn value(unit: &str, key: &str) -> String {
    let values: Vec<_> = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')))
        .collect();
    assert_eq!(values.len(), 1, "{key}= stands {} times in the unit", values.len());
    values[0].to_owned()
}

#[test]
fn the_units_expose_little() {
    let test = "the_units_expose_little";
    let version = Command::new("systemd-analyze").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        skip(test, "systemd", "systemd-analyze is not installed");
        return;
    }
    for (unit, limit) in MAX_EXPOSURE {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(folder().join(unit))
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "systemd-analyze failed: {errors}");
        assert!(errors.trim().is_empty(), "systemd-analyze complains about the unit: {errors}");
        let exposure = text
            .lines()
            .find_map(|line| line.split_once("Overall exposure level for").map(|(_, rest)| rest))
            .and_then(|rest| rest.split_once(": "))
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no exposure in {text}"));
        assert!(exposure <= limit, "exposure {exposure} of {unit} exceeds {limit}:\n{text}");
        println!("exposure of {unit}: {exposure}");
    }
}

#[test]
fn the_unit_agrees_with_the_defaults() {
    let unit = unit();
    assert_eq!(value(&unit, "Type"), "notify");
    assert_eq!(value(&unit, "CapabilityBoundingSet"), "");
    assert_eq!(
        value(&unit, "ExecStart"),
        format!("/usr/bin/novaferry-agent serve --config {}", config::DEFAULT_PATH)
    );
    assert_eq!(format!("/var/lib/{}", value(&unit, "StateDirectory")), config::DEFAULT_STATE);
    assert_eq!(format!("/run/{}/agent.sock", value(&unit, "RuntimeDirectory")), config::DEFAULT_CONTROL);
    assert_eq!(value(&unit, "LoadCredential"), format!("key.pem:{}/key.pem", config::DEFAULT_IDENTITY));
    let locked = value(&unit, "LimitMEMLOCK");
    let gibibytes: u64 = locked.strip_suffix('G').unwrap().parse().unwrap();
    assert!(
        gibibytes << 30 > Limits::default().total_memory.0,
        "registered buffers need LimitMEMLOCK={locked} or more"
    );
    let filters: Vec<_> = unit.lines().filter(|line| line.starts_with("SystemCallFilter=")).collect();
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        // The last filter wins, so the permission must come after the set that is taken away.
        assert!(filters.last().unwrap().contains(call), "{call} is not allowed last: {filters:?}");
    }
}

#[test]
fn the_example_is_a_configuration_without_unknown_keys() {
    let text = std::fs::read_to_string(folder().join("agent.toml.example")).unwrap();
    let credentials = Path::new("/run/credentials/novaferry-agent.service");
    let (config, warnings) = Config::parse(&text, Some(credentials)).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.identity.key, credentials.join("key.pem"));
    assert_eq!(config.identity.key_origin, KeyOrigin::Credential);
    assert_eq!(config.pools.len(), 1);
}

/// What the example shows behind `#key = ` must be the default, and must parse.
#[test]
fn the_example_shows_the_defaults() {
    let text = std::fs::read_to_string(folder().join("agent.toml.example")).unwrap();
    let uncommented: String = text
        .lines()
        .filter(|line| !line.starts_with("key_credential") && !line.starts_with("format"))
        .filter(|line| !line.contains("rate =") && !line.contains("otlp") && !line.contains("endpoint"))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // Through a real file, as `serve` reads it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), uncommented).unwrap();
    let (shown, warnings) = Config::load(file.path()).unwrap();
    assert_eq!(warnings, []);
    let (default, _) = Config::parse("", None).unwrap();
    assert_eq!(shown, Config { pools: shown.pools.clone(), ..default });
}
