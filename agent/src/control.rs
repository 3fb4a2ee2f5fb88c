//! The daemon's local control socket: one JSON object a line each way, over a Unix socket that only its owner can open.
//!
//! ```text
//! client: {"command":"list"}                                  daemon: {"sessions":[{...}]}
//! client: {"command":"cancel","session":"<32 digits>"}        daemon: {"cancelled":"<32 digits>"}
//! client: {"command":"vms"}                                   daemon: {"vms":[{...}]}
//! client: {"command":"migrate","vm":"web","to":"novaferry://HOST:PORT",...}
//!                                                             daemon: {"migrating":"<32 digits>"}
//! client: {"command":"migrations"}                            daemon: {"migrations":[{...}]}
//! client: {"command":"migration","id":"<digits>"}             daemon: {"migration":{"record":{...},...}}
//! client: {"command":"migration-cancel","id":"<digits>"}      daemon: {"asked":"<32 digits>"}
//! client: {"command":"migration-take-back","id":"<digits>"}   daemon: {"asked":"<32 digits>"}
//! client: {"command":"migration-finalise","id":"<digits>"}    daemon: {"asked":"<32 digits>"}
//! client: {"command":"migration-resolve","id":"<digits>","keep":"source"}
//!                                                             daemon: {"asked":"<32 digits>"}
//!                                                             daemon: {"error":"what; what to do"}
//! ```
//!
//! An `id` of a migration may be its first digits, if no other begins with them. What the fields mean stands in
//! [`migration`].

pub mod client;
pub mod migration;
pub mod server;

use std::path::PathBuf;
use std::time::Duration;

use engine::migrate::cutover::Cutover;
use engine::migrate::status::Choice;
use serde::{Deserialize, Serialize};

use migration::{ListedMigration, ListedVm, Migrate, Shown};

/// Longest request: a command and a session, or all options of a migration, many times over.
const MAX_REQUEST: u64 = 4096;
/// Longest answer: the inventory of a folder with as many VMs as are looked at (16,384), 2 KiB each.
const MAX_ANSWER: u64 = 32 << 20;
/// How long one side waits for the other: both are on this host.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All sessions.
    List {},
    /// The end of one.
    Cancel {
        /// Which.
        session: String,
    },
    /// All virtual machines of this host.
    Vms {},
    /// Move one to another host.
    Migrate(Box<Migrate>),
    /// All migrations that this host remembers, newest first.
    Migrations {},
    /// One of them.
    Migration {
        /// Which.
        id: String,
    },
    /// Undo one, while that is possible.
    MigrationCancel {
        /// Which.
        id: String,
    },
    /// Undo one, even when the guest runs at the destination: it is ended there, and what it did there is lost.
    MigrationTakeBack {
        /// Which.
        id: String,
    },
    /// Give the source's copy up.
    MigrationFinalise {
        /// Which.
        id: String,
    },
    /// Change when one may switch over.
    MigrationCutover {
        /// Which.
        id: String,
        /// When.
        cutover: Cutover,
    },
    /// End doubt, or choose a copy after the destination's was lost. The caller asserts that the other host is off.
    MigrationResolve {
        /// Which.
        id: String,
        /// Whose copy is to live.
        keep: Choice,
    },
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The sessions that run.
    Sessions(Vec<Listed>),
    /// This session was told to end.
    Cancelled(String),
    /// The virtual machines of this host.
    Vms(Vec<ListedVm>),
    /// This migration has begun.
    Migrating(String),
    /// The migrations.
    Migrations(Vec<ListedMigration>),
    /// One migration.
    Migration(Box<Shown>),
    /// This migration was asked; its state shows what came of it.
    Asked(String),
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
    use engine::migrate::record::{Record, Role};
    use engine::migrate::status::{DestinationState, Live, Status};

    use super::*;

    #[test]
    fn the_protocol_is_as_documented() {
        let list: Request = serde_json::from_str(r#"{"command":"list"}"#).unwrap();
        assert_eq!(list, Request::List {});
        let cancel: Request = serde_json::from_str(r#"{"command":"cancel","session":"ab"}"#).unwrap();
        assert_eq!(cancel, Request::Cancel { session: "ab".to_owned() });
        for (text, request) in [
            (r#"{"command":"vms"}"#, Request::Vms {}),
            (r#"{"command":"migrations"}"#, Request::Migrations {}),
            (r#"{"command":"migration","id":"ab"}"#, Request::Migration { id: "ab".to_owned() }),
            (r#"{"command":"migration-cancel","id":"ab"}"#, Request::MigrationCancel { id: "ab".to_owned() }),
            (
                r#"{"command":"migration-take-back","id":"ab"}"#,
                Request::MigrationTakeBack { id: "ab".to_owned() },
            ),
            (
                r#"{"command":"migration-finalise","id":"ab"}"#,
                Request::MigrationFinalise { id: "ab".to_owned() },
            ),
            (
                r#"{"command":"migration-cutover","id":"ab","cutover":"now"}"#,
                Request::MigrationCutover { id: "ab".to_owned(), cutover: Cutover::Now },
            ),
            (
                r#"{"command":"migration-cutover","id":"ab","cutover":{"at":7}}"#,
                Request::MigrationCutover { id: "ab".to_owned(), cutover: Cutover::At(7) },
            ),
            (
                r#"{"command":"migration-resolve","id":"ab","keep":"destination"}"#,
                Request::MigrationResolve { id: "ab".to_owned(), keep: Choice::Destination },
            ),
            (
                r#"{"command":"migrate","vm":"web","to":"novaferry://b"}"#,
                Request::Migrate(Box::new(Migrate::new("web", "novaferry://b"))),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            let back = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&back).unwrap(), request);
        }
        for bad in [
            r#"{"command":"migrate","vm":"web","to":"b","downtime":1}"#,
            r#"{"command":"migration-resolve","id":"ab"}"#,
            r#"{"command":"stop"}"#,
            r#"{"command":"list","x":1}"#,
            r#"{"command":"cancel"}"#,
            "[]",
            "",
        ] {
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
        let vm = ListedVm {
            id: "7f".to_owned(),
            name: "web".to_owned(),
            state: "running".to_owned(),
            access: migration::ListedAccess::Live { qmp: "/q".to_owned() },
            pid: Some(7),
            folder: None,
            needs: migration::ListedNeeds {
                memory_bytes: 1,
                processors: 2,
                disk_bytes: 3,
                cpu: "host".to_owned(),
                labels: [("tier".to_owned(), "db".to_owned())].into(),
                ..Default::default()
            },
            findings: Vec::new(),
        };
        assert_eq!(
            serde_json::to_string(&Answer::Vms(vec![vm])).unwrap(),
            concat!(
                r#"{"vms":[{"id":"7f","name":"web","state":"running","access":{"can":"live","qmp":"/q"},"#,
                r#""pid":7,"folder":null,"memory_bytes":1,"processors":2,"disk_bytes":3,"cpu":"host","machine":"","#,
                r#""kvm":false,"tenant":"","labels":{"tier":"db"},"findings":[]}]}"#
            )
        );
        // Of a daemon of an earlier release.
        let older = r#"{"id":"7f","name":"web","state":"stopped","access":{"can":"stopped"},"pid":null,"folder":null,"findings":[]}"#;
        let vm: ListedVm = serde_json::from_str(older).unwrap();
        assert_eq!(vm.needs, migration::ListedNeeds::default());
    }

    #[test]
    fn a_migration_is_shown_with_all_that_is_known() {
        let state = DestinationState::Burned("cancelled".to_owned());
        let role = Role::Destination { state, disks: vec!["/srv/a".to_owned()] };
        let mut record = Record::new(volume::SessionId([0xab; 16]), "web", "host-a", role);
        (record.began, record.changed) = (1, 2);
        let id = "ab".repeat(16);
        let listed = Answer::Migrations(vec![ListedMigration::new(&record, true)]);
        assert_eq!(
            serde_json::to_string(&listed).unwrap(),
            format!(
                "{{\"migrations\":[{{\"migration\":\"{id}\",\"vm\":\"web\",\"role\":\"destination\",\
                 \"state\":\"discarded\",\"peer\":\"host-a\",\"generation\":0,\"began\":1,\"changed\":2,\
                 \"over\":true}}]}}"
            )
        );
        let status = Status { record, live: Live::default(), findings: Vec::new() };
        let shown = Answer::Migration(Box::new(Shown { status, over: true }));
        let text = serde_json::to_string(&shown).unwrap();
        assert!(text.starts_with(r#"{"migration":{"record":{"version":1,"migration":"abab"#), "{text}");
        assert!(text.ends_with(r#""findings":[],"over":true}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), shown);
    }
}
