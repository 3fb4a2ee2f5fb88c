//! Metrics from the counters of sessions.

use std::collections::HashMap;
use std::time::SystemTime;

use engine::progress::Snapshot;
use tokio::task::Id;
use wire::Direction;

use super::sessions::{End, Running};
use crate::observe::names;
use pki::Identity;

/// Bytes of an extent.
const EXTENT: u64 = 1 << 20;

/// What was told of each session so far: counters are told as differences.
#[derive(Debug)]
pub(super) struct Meter {
    session_memory: u64,
    told: HashMap<Id, Snapshot>,
}

impl Meter {
    /// Of sessions that each hold so many bytes of buffers.
    pub(super) fn new(session_memory: u64) -> Self {
        Self { session_memory, told: HashMap::new() }
    }

    /// Tells what changed since the last look.
    pub(super) fn look(&mut self, running: &HashMap<Id, Running>) {
        let mut journals = 0u64;
        for (id, session) in running {
            let now = session.progress.snapshot();
            let before = self.told.insert(*id, now).unwrap_or_default();
            tell(session, &before, &now);
            journals = journals.saturating_add(now.journal);
        }
        metrics::gauge!(names::SESSIONS_ACTIVE).set(number(running.len() as u64));
        metrics::gauge!(names::JOURNAL_BYTES).set(number(journals));
        let buffers = self.session_memory.saturating_mul(running.len() as u64);
        metrics::gauge!(names::BUFFERS_BYTES).set(number(buffers));
    }

    /// Tells the rest of a session that ended.
    pub(super) fn ended(&mut self, end: End) {
        let End { id, session, error } = end;
        let before = self.told.remove(&id).unwrap_or_default();
        tell(&session, &before, &session.progress.snapshot());
        if let Some(kind) = error {
            metrics::counter!(names::ERRORS, names::KIND => kind).increment(1);
        }
    }

    /// Tells when the certificate and the lists end.
    pub(super) fn identity(&self, identity: &Identity) {
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
        };
        metrics::gauge!(names::CERTIFICATE_EXPIRY).set(seconds(identity.not_after()));
        if let Some(due) = identity.crl_next_update() {
            metrics::gauge!(names::CRL_DUE).set(seconds(due));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 bytes need no exact one")]
fn number(value: u64) -> f64 {
    value as f64
}

fn tell(session: &Running, before: &Snapshot, now: &Snapshot) {
    let way = match session.direction {
        Direction::Push => names::RECEIVED,
        Direction::Pull => names::SENT,
    };
    let by = |name: &'static str, before: u64, now: u64| {
        metrics::counter!(name, names::DIRECTION => way).increment(now.saturating_sub(before));
    };
    by(names::LOGICAL_BYTES, before.settled, now.settled);
    by(names::WIRE_BYTES, before.wire_total(), now.wire_total());
    by(names::EXTENTS, before.settled / EXTENT, now.settled / EXTENT);
    let add = |name: &'static str, before: u64, now: u64| {
        metrics::counter!(name).increment(now.saturating_sub(before));
    };
    add(names::DEDUP_BYTES, before.dedup, now.dedup);
    add(names::ZERO_BYTES, before.zero, now.zero);
    add(names::RESENT_BYTES, before.resent, now.resent);
    let link = |name: &'static str| metrics::gauge!(name, names::LINK => session.peer.clone());
    if now.rtt_micros > 0 {
        link(names::LINK_RTT_SECONDS).set(number(now.rtt_micros) / 1e6);
        link(names::LINK_WINDOW_BYTES).set(number(now.congestion_window));
    }
    metrics::counter!(names::LINK_LOST_PACKETS, names::LINK => session.peer.clone())
        .increment(now.lost_packets.saturating_sub(before.lost_packets));
}
