//! Every metric that novaferry has: name, kind and help text in one place.
//!
//! Labels: `direction` is [`SENT`] or [`RECEIVED`]; `link` is the other host's name; `kind` is an
//! error's kind. Sessions are no label: their number is unbounded over time.

use metrics::Unit;

/// Label with the direction of data.
pub const DIRECTION: &str = "direction";
/// Label with the name of the host at the other end.
pub const LINK: &str = "link";
/// Label with the state in which a migration ended.
pub const OUTCOME: &str = "outcome";
/// Label with an error's kind.
pub const KIND: &str = "kind";
/// Value of [`DIRECTION`]: from this host.
pub const SENT: &str = "sent";
/// Value of [`DIRECTION`]: to this host.
pub const RECEIVED: &str = "received";

/// Sessions that run now.
pub const SESSIONS_ACTIVE: &str = "novaferry_sessions_active";
/// Bytes of volumes that were moved, by direction.
pub const LOGICAL_BYTES: &str = "novaferry_logical_bytes_total";
/// Bytes on the network for them, by direction.
pub const WIRE_BYTES: &str = "novaferry_wire_bytes_total";
/// Extents that were moved, by direction.
pub const EXTENTS: &str = "novaferry_extents_total";
/// Bytes that were not sent because the receiver had them.
pub const DEDUP_BYTES: &str = "novaferry_dedup_bytes_total";
/// Bytes that were not sent because they are zero.
pub const ZERO_BYTES: &str = "novaferry_zero_bytes_total";
/// Bytes that were sent again after an interruption.
pub const RESENT_BYTES: &str = "novaferry_resent_bytes_total";
/// Time of one fdatasync of data.
pub const FSYNC_SECONDS: &str = engine::receive::FSYNC_SECONDS;
/// Time of one group commit: flush and journal.
pub const COMMIT_SECONDS: &str = engine::receive::COMMIT_SECONDS;
/// Round-trip time, by link.
pub const LINK_RTT_SECONDS: &str = "novaferry_link_rtt_seconds";
/// Congestion window, by link.
pub const LINK_WINDOW_BYTES: &str = "novaferry_link_congestion_window_bytes";
/// Packets that were lost, by link.
pub const LINK_LOST_PACKETS: &str = "novaferry_link_lost_packets_total";
/// Size of all journals.
pub const JOURNAL_BYTES: &str = "novaferry_journal_bytes";
/// Memory that sessions hold for buffers.
pub const BUFFERS_BYTES: &str = "novaferry_buffers_in_use_bytes";
/// Errors, by kind.
pub const ERRORS: &str = "novaferry_errors_total";
/// End of the host certificate's validity.
pub const CERTIFICATE_EXPIRY: &str = "novaferry_certificate_expiry_timestamp_seconds";
/// When the revocation list is due to be replaced.
pub const CRL_DUE: &str = "novaferry_crl_next_update_timestamp_seconds";

/// Migrations that are not over, by direction.
pub const MIGRATIONS_ACTIVE: &str = "novaferry_migrations_active";
/// Migrations that need somebody's word.
pub const MIGRATIONS_UNDECIDED: &str = "novaferry_migrations_undecided";
/// Migrations that ended, by direction and outcome.
pub const MIGRATIONS: &str = "novaferry_migrations_total";
/// Pauses of guests that moved.
pub const MIGRATION_DOWNTIME_SECONDS: &str = "novaferry_migration_downtime_seconds";

/// How a metric behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution with fixed buckets.
    Histogram,
}

/// A metric's description.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// What it is measured in.
    pub unit: Unit,
    /// Its help text.
    pub help: &'static str,
    /// The values of its one label, if they are few and known; such series exist from the start with value 0, so
    /// that "nothing happened" can be told from "not measured".
    pub series: Series,
}

/// Which series of a metric exist from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Series {
    /// One without labels.
    One,
    /// One for each direction.
    Directions,
    /// None: labels are not known, or 0 would be a wrong value.
    Later,
}

const fn metric(
    name: &'static str,
    kind: MetricKind,
    unit: Unit,
    series: Series,
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, help, series }
}

use MetricKind::{Counter, Gauge, Histogram};
use Series::{Directions, Later, One};

/// All metrics.
pub const ALL: &[Metric] = &[
    metric(SESSIONS_ACTIVE, Gauge, Unit::Count, One, "Sessions that run now."),
    metric(
        LOGICAL_BYTES,
        Counter,
        Unit::Bytes,
        Directions,
        "Bytes of volumes that were moved and acknowledged.",
    ),
    metric(
        WIRE_BYTES,
        Counter,
        Unit::Bytes,
        Directions,
        "Bytes on the network, with framing, without IP and UDP.",
    ),
    metric(EXTENTS, Counter, Unit::Count, Directions, "Extents (1 MiB) that were moved and acknowledged."),
    metric(DEDUP_BYTES, Counter, Unit::Bytes, One, "Bytes that were not sent because the receiver had them."),
    metric(ZERO_BYTES, Counter, Unit::Bytes, One, "Bytes that were not sent because they are zero."),
    metric(RESENT_BYTES, Counter, Unit::Bytes, One, "Bytes that were sent again after an interruption."),
    metric(FSYNC_SECONDS, Histogram, Unit::Seconds, Later, "Time of one fdatasync of a target."),
    metric(
        COMMIT_SECONDS,
        Histogram,
        Unit::Seconds,
        Later,
        "Time of one group commit: flush of the target and of the journal.",
    ),
    metric(LINK_RTT_SECONDS, Gauge, Unit::Seconds, Later, "Smoothed round-trip time to a host."),
    metric(
        LINK_WINDOW_BYTES,
        Gauge,
        Unit::Bytes,
        Later,
        "Congestion windows to a host, of its last session.",
    ),
    metric(LINK_LOST_PACKETS, Counter, Unit::Count, Later, "Packets to a host that were declared lost."),
    metric(JOURNAL_BYTES, Gauge, Unit::Bytes, One, "Size of all journals in the state folder."),
    metric(BUFFERS_BYTES, Gauge, Unit::Bytes, One, "Memory that sessions hold for buffers."),
    metric(ERRORS, Counter, Unit::Count, Later, "Errors that ended or interrupted a session, by kind."),
    metric(
        CERTIFICATE_EXPIRY,
        Gauge,
        Unit::Seconds,
        Later,
        "End of the host certificate, seconds since 1970.",
    ),
    metric(
        CRL_DUE,
        Gauge,
        Unit::Seconds,
        Later,
        "When a newer revocation list was promised, seconds since 1970.",
    ),
    metric(MIGRATIONS_ACTIVE, Gauge, Unit::Count, Directions, "Migrations that are not over."),
    metric(
        MIGRATIONS_UNDECIDED,
        Gauge,
        Unit::Count,
        One,
        "Migrations from here of which it is not known where the guest runs, or whose guest died there.",
    ),
    metric(MIGRATIONS, Counter, Unit::Count, Later, "Migrations that ended, by the state in which they did."),
    metric(
        MIGRATION_DOWNTIME_SECONDS,
        Histogram,
        Unit::Seconds,
        Later,
        "Pause of a guest that left this host, from its stop to the word that it runs.",
    ),
];

/// Upper bounds of both histograms in seconds: from a fast NVMe drive's flush to a stalled disk's.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Tells the current recorder all help texts and makes the series that exist from the start.
pub(super) fn describe() {
    for metric in ALL {
        let Metric { name, kind, unit, help, series } = *metric;
        match kind {
            Counter => metrics::describe_counter!(name, unit, help),
            Gauge => metrics::describe_gauge!(name, unit, help),
            Histogram => metrics::describe_histogram!(name, unit, help),
        }
        match (kind, series) {
            (_, Later) | (Histogram, _) => {}
            (Counter, One) => metrics::counter!(name).absolute(0),
            (Gauge, One) => metrics::gauge!(name).set(0.0),
            (Counter, Directions) => {
                metrics::counter!(name, DIRECTION => SENT).absolute(0);
                metrics::counter!(name, DIRECTION => RECEIVED).absolute(0);
            }
            (Gauge, Directions) => {
                metrics::gauge!(name, DIRECTION => SENT).set(0.0);
                metrics::gauge!(name, DIRECTION => RECEIVED).set(0.0);
            }
        }
    }
}
