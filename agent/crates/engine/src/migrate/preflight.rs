//! What stands in the way of a move, found before anything is changed.

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
}
