//! Metrics of migrations.

use engine::migrate::record::Role;
use engine::migrate::status::{SourceState, Status};

use crate::observe::names;

/// Sets the gauges from all that run.
pub(super) fn look(running: impl Iterator<Item = Status>) {
    let (mut out, mut into, mut doubt) = (0_u32, 0_u32, 0_u32);
    for status in running {
        match status.record.role {
            Role::Source { state, .. } => {
                out += 1;
                use SourceState as S;
                doubt += u32::from(matches!(state, S::InDoubt | S::DestinationLost | S::TakingBack));
            }
            Role::Destination { .. } => into += 1,
        }
    }
    metrics::gauge!(names::MIGRATIONS_ACTIVE, names::DIRECTION => names::SENT).set(out);
    metrics::gauge!(names::MIGRATIONS_ACTIVE, names::DIRECTION => names::RECEIVED).set(into);
    metrics::gauge!(names::MIGRATIONS_UNDECIDED).set(doubt);
}

/// Counts one that ended, by its last state.
pub(super) fn ended(status: &Status) {
    let way = match status.record.role {
        Role::Source { .. } => names::SENT,
        Role::Destination { .. } => names::RECEIVED,
    };
    let outcome = status.record.state_name();
    metrics::counter!(names::MIGRATIONS, names::DIRECTION => way, names::OUTCOME => outcome).increment(1);
    if let Some(millis) = status.record.report.downtime_ms {
        let downtime = std::time::Duration::from_millis(millis);
        metrics::histogram!(names::MIGRATION_DOWNTIME_SECONDS).record(downtime);
    }
}
