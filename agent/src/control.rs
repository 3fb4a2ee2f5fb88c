//! The daemon's local control socket: one JSON object a line each way, over a Unix socket that only its owner can open.
//!
//! ```text
//! client: {"command":"list"}                                  daemon: {"sessions":[{...}]}
//! client: {"command":"cancel","session":"<32 digits>"}        daemon: {"cancelled":"<32 digits>"}
//!                                                             daemon: {"error":"what; what to do"}
//! ```

pub mod client;
pub mod server;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest request: a command and a session, many times over.
const MAX_REQUEST: u64 = 4096;
/// Longest answer: a list of ten thousand sessions.
const MAX_ANSWER: u64 = 16 << 20;
/// How long one side waits for the other: both are on this host.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// All sessions.
    List {},
    /// The end of one.
    Cancel {
        /// Which.
        session: String,
    },
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The sessions that run.
    Sessions(Vec<Listed>),
    /// This session was told to end.
    Cancelled(String),
    /// Nothing was done.
    Error(String),
}

/// A session as it is listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// Its id.
    pub session: String,
    /// Its generation; 0 until it is granted.
    pub generation: u64,
    /// The other host.
    pub peer: String,
    /// `POOL/NAME`.
    pub volume: String,
    /// `push` or `pull`, as the other host sees it.
    pub direction: String,
    /// Age.
    pub seconds: u64,
    /// Length of the volume; 0 until it is known.
    pub logical_bytes: u64,
    /// Bytes that are durable at the receiver.
    pub settled_bytes: u64,
    /// Bytes on the wire, both directions.
    pub wire_bytes: u64,
}

/// Why the socket could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The daemon cannot listen.
    #[error(
        "cannot listen on the control socket {path}; choose another [control] socket or correct the folder's permissions"
    )]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another daemon listens there.
    #[error(
        "another daemon answers on the control socket {path}; stop it, or choose another [control] socket"
    )]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// What lies there is no socket.
    #[error("{path} is there and is no socket; choose another [control] socket or move it away")]
    Occupied {
        /// Where.
        path: PathBuf,
    },
    /// The client cannot talk to the daemon.
    #[error(
        "cannot talk to the daemon through {path}; check that it runs, that --socket is its [control] socket, and that you are its user or root"
    )]
    Talk {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_as_documented() {
        let list: Request = serde_json::from_str(r#"{"command":"list"}"#).unwrap();
        assert_eq!(list, Request::List {});
        let cancel: Request = serde_json::from_str(r#"{"command":"cancel","session":"ab"}"#).unwrap();
        assert_eq!(cancel, Request::Cancel { session: "ab".to_owned() });
        for bad in
            [r#"{"command":"stop"}"#, r#"{"command":"list","x":1}"#, r#"{"command":"cancel"}"#, "[]", ""]
        {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
        let listed = Listed {
            session: "ab".to_owned(),
            generation: 2,
            peer: "host-a".to_owned(),
            volume: "gold/web-1".to_owned(),
            direction: "push".to_owned(),
            seconds: 3,
            logical_bytes: 4,
            settled_bytes: 5,
            wire_bytes: 6,
        };
        assert_eq!(
            serde_json::to_string(&Answer::Sessions(vec![listed])).unwrap(),
            concat!(
                r#"{"sessions":[{"session":"ab","generation":2,"peer":"host-a","volume":"gold/web-1","#,
                r#""direction":"push","seconds":3,"logical_bytes":4,"settled_bytes":5,"wire_bytes":6}]}"#
            )
        );
        assert_eq!(
            serde_json::to_string(&Answer::Cancelled("ab".to_owned())).unwrap(),
            r#"{"cancelled":"ab"}"#
        );
        assert_eq!(serde_json::to_string(&Answer::Error("no".to_owned())).unwrap(), r#"{"error":"no"}"#);
    }
}
