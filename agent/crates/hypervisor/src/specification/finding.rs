//! What stands in the way of a move, or changes by it.

use serde::{Deserialize, Serialize};

/// Whether a finding stops the move.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something changes; people should know.
    Warning,
    /// The VM cannot be moved like this.
    Blocking,
}

/// One finding of a preflight.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The rule that found it, a stable word.
    pub rule: &'static str,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub fix: String,
    /// Whether it stops the move.
    pub severity: Severity,
}

impl Finding {
    /// A finding that stops the move.
    pub fn blocking(rule: &'static str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { rule, evidence: evidence.into(), fix: fix.into(), severity: Severity::Blocking }
    }

    /// A finding that people should know.
    pub fn warning(rule: &'static str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { rule, evidence: evidence.into(), fix: fix.into(), severity: Severity::Warning }
    }

    /// Whether it stops the move.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.severity == Severity::Blocking
    }
}
