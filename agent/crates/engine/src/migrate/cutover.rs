//! When a migration may switch over: a decision, nothing else.
//!
//! The disks are copied at once, and kept in step with what the guest writes until the time has come. This host's own
//! clock says when: nobody else is needed for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// When the guest may leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cutover {
    /// As soon as it can.
    #[default]
    Now,
    /// Not before this time, milliseconds since 1970.
    At(u64),
    /// When somebody says so.
    Asked,
}

impl Cutover {
    /// Whether nothing is waited for.
    #[must_use]
    pub fn is_now(&self) -> bool {
        *self == Self::Now
    }

    /// Whether the guest may leave at this time.
    #[must_use]
    pub fn is_due(self, now_ms: u64) -> bool {
        self.begins(now_ms, Duration::ZERO)
    }

    /// Whether what takes `lead` begins at this time, so that the guest leaves when it may, and soon after.
    #[must_use]
    pub fn begins(self, now_ms: u64, lead: Duration) -> bool {
        match self {
            Self::Now => true,
            Self::At(at_ms) => {
                let lead_ms = u64::try_from(lead.as_millis()).unwrap_or(u64::MAX);
                now_ms.saturating_add(lead_ms) >= at_ms
            }
            Self::Asked => false,
        }
    }

    /// What holds from now on when somebody wants this. What was let go is not held again: it may be on its way.
    #[must_use]
    pub fn steered(self, wanted: Self) -> Self {
        if self.is_now() { self } else { wanted }
    }
}

/// This host's clock, milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_due_at_its_time_and_begins_its_lead_before() {
        let at = Cutover::At(10_000);
        assert!(!at.is_due(9_999) && at.is_due(10_000) && at.is_due(10_001));
        assert!(!at.begins(8_999, SECOND) && at.begins(9_000, SECOND));
        assert!(at.begins(0, Duration::MAX), "a lead that is longer than all time begins now");
        assert!(!Cutover::At(u64::MAX).begins(10_000, SECOND));
        for now_ms in [0, 10_000, u64::MAX] {
            assert!(Cutover::Now.is_due(now_ms) && !Cutover::Asked.begins(now_ms, Duration::MAX));
        }
    }

    #[test]
    fn what_was_let_go_is_not_held_again() {
        let at = Cutover::At(10_000);
        for wanted in [Cutover::Now, at, Cutover::Asked] {
            assert_eq!(Cutover::Now.steered(wanted), Cutover::Now);
            assert_eq!(at.steered(wanted), wanted);
            assert_eq!(Cutover::Asked.steered(wanted), wanted);
        }
    }
}
