//! What stands in the way of a move, found before anything is changed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One finding, as it travels and is printed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The rule that found it, a stable word.
    pub rule: String,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub fix: String,
    /// Whether it stops the move.
    pub blocking: bool,
}

impl Finding {
    /// A finding that stops the move.
    pub fn blocking(rule: &str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), evidence: evidence.into(), fix: fix.into(), blocking: true }
    }

    /// A finding that people should know.
    pub fn warning(rule: &str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { blocking: false, ..Self::blocking(rule, evidence, fix) }
    }
}

impl From<hypervisor::specification::Finding> for Finding {
    fn from(finding: hypervisor::specification::Finding) -> Self {
        let blocking = finding.is_blocking();
        Self { rule: finding.rule.to_owned(), evidence: finding.evidence, fix: finding.fix, blocking }
    }
}

/// The blocking ones in one sentence, or none when nothing blocks.
#[must_use]
pub fn objection(findings: &[Finding]) -> Option<String> {
    let blocking: Vec<String> = findings
        .iter()
        .filter(|finding| finding.blocking)
        .map(|finding| format!("{} ({}): {}", finding.rule, finding.evidence, finding.fix))
        .collect();
    (!blocking.is_empty()).then(|| blocking.join("; "))
}

/// Whether a VM of QEMU `source` can continue under `destination`: the same or a newer release.
#[must_use]
pub fn qemu_versions(source: (u32, u32, u32), destination: (u32, u32, u32)) -> Option<Finding> {
    let text = |(major, minor, micro): (u32, u32, u32)| format!("{major}.{minor}.{micro}");
    let evidence = format!("QEMU {} at the source, {} here", text(source), text(destination));
    if (destination.0, destination.1) < (source.0, source.1) {
        let fix = "upgrade QEMU at the destination to at least the source's version";
        return Some(Finding::blocking("qemu-older", evidence, fix));
    }
    if (destination.0, destination.1) > (source.0, source.1) {
        let fix = "the way back needs the same version at the source: upgrade it, too, if you want one";
        return Some(Finding::warning("qemu-newer", evidence, fix));
    }
    None
}

/// Clocks apart by more than this make logs and certificates hard to compare, milliseconds.
const MAX_SKEW_MS: u64 = 2_000;

/// Whether the hosts' clocks agree, within what the message took at most.
#[must_use]
pub fn clock_skew(source_ms: u64, here_ms: u64) -> Option<Finding> {
    let skew = source_ms.abs_diff(here_ms);
    (skew > MAX_SKEW_MS).then(|| {
        Finding::warning(
            "clock-skew",
            format!("the hosts' clocks differ by {skew} ms"),
            "let both hosts keep their time by NTP; the guest's clock follows the host's",
        )
    })
}

/// Whether QEMU holds the VM to be movable: devices, and what else is set up, may object (`query-migrate`).
#[must_use]
pub fn not_migratable(reasons: &[String]) -> Option<Finding> {
    /// Most that are named.
    const MOST: usize = 8;
    let named = || reasons.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join("; ");
    (!reasons.is_empty()).then(|| {
        Finding::blocking(
            "not-migratable",
            format!("QEMU at the source says: {}", named()),
            "detach the device that it names, or move the VM with --mode warm or cold",
        )
    })
}

/// Whether the destination has the memory that the VM may come to use, bytes.
#[must_use]
pub fn memory_room(needed: u64, available: u64) -> Option<Finding> {
    (available < needed).then(|| {
        Finding::blocking(
            "memory",
            format!("the VM has {needed} bytes of RAM, and {available} are available at the destination"),
            "free memory at the destination, or choose another host",
        )
    })
}

/// Whether a pool of the destination has room for the disks in full, bytes.
#[must_use]
pub fn disk_room(needed: u64, free: u64, pool: &str) -> Option<Finding> {
    (free < needed).then(|| {
        Finding::blocking(
            "disk-room",
            format!("the disks need up to {needed} bytes, and pool {pool} has {free} free"),
            "make room in the pool, or choose another one with --pool",
        )
    })
}

/// Whether the answers in the pause fit it at all: three round trips are in it.
#[must_use]
pub fn slow_answers(round_trip: Duration, budget: Duration) -> Option<Finding> {
    (round_trip * 3 > budget).then(|| {
        Finding::warning(
            "link",
            format!(
                "a round trip to the destination takes {} ms, and the pause has three of them; {} ms are allowed",
                round_trip.as_millis(),
                budget.as_millis()
            ),
            "allow a longer --max-downtime: the pause will be longer than this one",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_qemu_blocks_and_newer_warns() {
        assert_eq!(qemu_versions((10, 0, 2), (10, 0, 9)), None);
        assert!(qemu_versions((10, 0, 2), (9, 2, 0)).unwrap().blocking);
        assert!(!qemu_versions((7, 2, 0), (10, 0, 2)).unwrap().blocking);
        let findings = [qemu_versions((10, 0, 2), (9, 2, 0)).unwrap(), clock_skew(0, 5_000).unwrap()];
        let text = objection(&findings).unwrap();
        assert!(text.starts_with("qemu-older (QEMU 10.0.2 at the source, 9.2.0 here): upgrade"), "{text}");
        assert!(!text.contains("clock"), "{text}");
        assert_eq!(objection(&findings[1..]), None);
        assert_eq!(clock_skew(10, 1_000), None);
    }

    /// Every finding has a rule, what was seen, and what to do.
    #[track_caller]
    fn is_whole(finding: &Option<Finding>, rule: &str, blocking: bool) {
        let found = finding.as_ref().unwrap();
        assert_eq!((found.rule.as_str(), found.blocking), (rule, blocking));
        assert!(!found.evidence.is_empty() && !found.fix.is_empty(), "{found:?}");
    }

    #[test]
    fn each_check_says_what_and_what_to_do() {
        let millis = Duration::from_millis;
        is_whole(&qemu_versions((10, 0, 2), (9, 2, 0)), "qemu-older", true);
        is_whole(&qemu_versions((9, 2, 0), (10, 0, 2)), "qemu-newer", false);
        is_whole(&clock_skew(0, 2_001), "clock-skew", false);
        is_whole(&clock_skew(2_001, 0), "clock-skew", false);
        is_whole(&memory_room(2, 1), "memory", true);
        assert_eq!(memory_room(2, 2), None);
        is_whole(&disk_room(2, 1, "gold"), "disk-room", true);
        assert_eq!(disk_room(2, 2, "gold"), None);
        is_whole(&slow_answers(millis(101), millis(300)), "link", false);
        assert_eq!(slow_answers(millis(100), millis(300)), None);
        let reasons = vec!["State blocked by non-migratable device 'x'".to_owned(); 20];
        is_whole(&not_migratable(&reasons), "not-migratable", true);
        assert!(not_migratable(&reasons).unwrap().evidence.len() < 500);
        assert_eq!(not_migratable(&[]), None);
    }
}
