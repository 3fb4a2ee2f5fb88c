//! The last line of a copy.

use std::path::Path;
use std::time::Duration;

use engine::transfer;
use serde::Serialize;
use tunnel::Transport;

use super::progress::ratio;
use super::{bytes, duration, rate};

/// What a copy did, for programs and for people.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// Length of the volume.
    pub logical_bytes: u64,
    /// Everything on the wire, both directions, all attempts.
    pub wire_bytes: u64,
    /// Payload among it: extents as they were sent.
    pub payload_bytes: u64,
    /// Bytes that are zero and were only named.
    pub zero_bytes: u64,
    /// Bytes that the receiver held elsewhere.
    pub dedup_bytes: u64,
    /// Bytes that the target held at the same place.
    pub same_bytes: u64,
    /// Payload that was sent more than once.
    pub resent_bytes: u64,
    /// From beginning to end.
    pub seconds: f64,
    /// CPU time of the sending process; null when it did not say.
    pub cpu_seconds_tx: Option<f64>,
    /// CPU time of the receiving process; null when it did not say.
    pub cpu_seconds_rx: Option<f64>,
    /// Merkle root, hexadecimal.
    pub root: String,
    /// An earlier process had begun it.
    pub resumed: bool,
    /// `quic`, `tcp` or `local`.
    pub transport: &'static str,
    /// The other host's name; null for a local copy.
    pub peer: Option<String>,
    /// The session.
    pub session: String,
    /// Tunnels that were opened.
    pub attempts: u64,
    /// Where the receipt was written.
    pub receipt: String,
    /// Whether a receiver with an identity signed it, which was then checked.
    pub signed: bool,
}

impl Summary {
    /// Of a finished transfer whose receipt was written to `receipt`.
    #[must_use]
    pub fn new(done: &transfer::Summary, receipt: &Path) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let counters = done.counters;
        Self {
            logical_bytes: counters.size,
            wire_bytes: counters.wire_total(),
            payload_bytes: counters.payload,
            zero_bytes: counters.zero,
            dedup_bytes: counters.dedup,
            same_bytes: counters.same,
            resent_bytes: counters.resent,
            seconds: done.elapsed.as_secs_f64(),
            cpu_seconds_tx: seconds(done.cpu_tx),
            cpu_seconds_rx: seconds(done.cpu_rx),
            root: done.receipt.body.root.clone(),
            resumed: done.resumed,
            transport: match done.transport {
                Transport::Quic => "quic",
                Transport::Tcp => "tcp",
                Transport::Memory => "local",
            },
            peer: done.peer.as_ref().map(|peer| peer.as_str().to_owned()),
            session: done.session.to_string(),
            attempts: counters.attempts,
            receipt: receipt.display().to_string(),
            signed: done.receipt.is_signed(),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let time = Duration::try_from_secs_f64(self.seconds).unwrap_or_default();
        let millis = time.as_millis().max(1);
        let mean = u64::try_from(u128::from(self.logical_bytes) * 1000 / millis).unwrap_or(u64::MAX);
        let peer = self.peer.as_deref().map_or_else(String::new, |peer| format!(" with {peer}"));
        let mut text = format!(
            "done: {} in {} ({}), {} on the wire over {}{peer}, ratio {}\n",
            bytes(self.logical_bytes),
            duration(time),
            rate(mean),
            bytes(self.wire_bytes),
            self.transport,
            ratio(self.logical_bytes, self.wire_bytes),
        );
        text.push_str(&format!(
            "not sent: {} zero, {} known, {} unchanged; sent again: {}{}\n",
            bytes(self.zero_bytes),
            bytes(self.dedup_bytes),
            bytes(self.same_bytes),
            bytes(self.resent_bytes),
            if self.resumed { "; resumed" } else { "" },
        ));
        text.push_str(&format!(
            "root {}\nreceipt {} ({})",
            self.root,
            self.receipt,
            if self.signed { "signature verified" } else { "unsigned: a copy within this host" },
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_can_rely_on_these_keys() {
        let summary = Summary {
            logical_bytes: 1 << 30,
            wire_bytes: 1 << 20,
            payload_bytes: 1 << 19,
            zero_bytes: 5,
            dedup_bytes: 6,
            same_bytes: 7,
            resent_bytes: 8,
            seconds: 1.5,
            cpu_seconds_tx: Some(0.5),
            cpu_seconds_rx: None,
            root: "ab".to_owned(),
            resumed: false,
            transport: "quic",
            peer: Some("host-b".to_owned()),
            session: "cd".to_owned(),
            attempts: 1,
            receipt: "/r".to_owned(),
            signed: true,
        };
        let expected = concat!(
            r#"{"logical_bytes":1073741824,"wire_bytes":1048576,"payload_bytes":524288,"zero_bytes":5,"#,
            r#""dedup_bytes":6,"same_bytes":7,"resent_bytes":8,"seconds":1.5,"cpu_seconds_tx":0.5,"#,
            r#""cpu_seconds_rx":null,"root":"ab","resumed":false,"transport":"quic","peer":"host-b","#,
            r#""session":"cd","attempts":1,"receipt":"/r","signed":true}"#,
        );
        assert_eq!(serde_json::to_string(&summary).unwrap(), expected);
        assert!(
            summary.text().starts_with("done: 1.0 GiB in 1.5 s (715.8 MB/s), 1.0 MiB on the wire over quic")
        );
    }
}
