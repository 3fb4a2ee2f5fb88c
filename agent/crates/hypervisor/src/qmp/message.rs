//! What QEMU sends, told apart: the greeting, answers, events (QEMU's `docs/interop/qmp-spec.rst`).

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::{MonitorLoss, printable};
use super::event::{Event, Timestamp};
use super::words::ErrorClass;

/// Largest event accepted, in bytes. QEMU's are under 1 KiB; with [`EVENT_QUEUE`](super::EVENT_QUEUE) it bounds what
/// waiting subscribers can make this program hold.
pub(super) const MAX_EVENT: usize = 64 << 10;

/// QEMU's version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
    /// What the distribution calls its package; may be empty.
    pub package: String,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Numbers {
            major: u32,
            minor: u32,
            micro: u32,
        }
        #[derive(Deserialize)]
        struct Whole {
            qemu: Numbers,
            #[serde(default)]
            package: String,
        }
        let Whole { qemu: Numbers { major, minor, micro }, package } = Whole::deserialize(deserializer)?;
        Ok(Self { major, minor, micro, package: printable(&package) })
    }
}

/// QEMU's first words.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Greeting {
    pub(super) version: Version,
    #[serde(default)]
    capabilities: Vec<String>,
}

impl Greeting {
    pub(super) fn offers_out_of_band(&self) -> bool {
        self.capabilities.iter().any(|capability| capability == "oob")
    }
}

/// An error answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) class: ErrorClass,
    pub(crate) desc: String,
}

/// A message.
#[derive(Debug)]
pub(super) enum Message {
    Greeting(Greeting),
    Answer { id: u64, result: Result<Value, Refusal> },
    Event(Event),
}

/// Any message: which fields there are says which it is. Unknown fields are for newer clients.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    event: Option<String>,
    data: Option<Value>,
    timestamp: Option<Timestamp>,
}

/// `null` is a value here, not an absence.
pub(crate) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    pub(super) fn parse(line: &[u8]) -> Result<Self, MonitorLoss> {
        let fields = serde_json::from_slice(line).map_err(MonitorLoss::Message)?;
        match fields {
            Fields { greeting: Some(greeting), .. } => Ok(Self::Greeting(greeting)),
            Fields { event: Some(_), .. } if line.len() > MAX_EVENT => {
                Err(MonitorLoss::TooLong { limit: MAX_EVENT })
            }
            Fields { event: Some(name), data, timestamp: Some(timestamp), .. } => {
                Event::parse(name, data, timestamp).map(Self::Event).map_err(MonitorLoss::Message)
            }
            Fields { result: Some(value), error: None, id: Some(id), .. } => {
                Ok(Self::Answer { id, result: Ok(value) })
            }
            Fields { result: None, error: Some(refusal), id: Some(id), .. } => {
                Ok(Self::Answer { id, result: Err(refusal) })
            }
            // QEMU answers so to what it could not read: whose answer it is, nobody knows.
            Fields { error: Some(Refusal { desc, .. }), .. } => Err(MonitorLoss::Protocol(format!(
                "an error that belongs to no command: {}",
                printable(&desc)
            ))),
            _ => Err(MonitorLoss::Protocol("neither greeting, answer nor event".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::qmp::event::EventKind;
    use crate::qmp::words::{JobType, MigrationStatus, ShutdownCause};

    fn parse(message: &Value) -> Result<Message, MonitorLoss> {
        Message::parse(message.to_string().as_bytes())
    }

    fn event(message: &Value) -> Event {
        match parse(message) {
            Ok(Message::Event(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_greeting_of_qemu_10() {
        let message = json!({"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10},
            "package": "Debian 1:10.0.2"}, "capabilities": ["oob"]}});
        let Ok(Message::Greeting(greeting)) = parse(&message) else { panic!() };
        assert!(greeting.offers_out_of_band());
        assert_eq!(greeting.version.to_string(), "10.0.2");
    }

    #[test]
    fn answers_keep_null_and_class() {
        let Ok(Message::Answer { id: 3, result: Ok(Value::Null) }) = parse(&json!({"return": null, "id": 3}))
        else {
            panic!()
        };
        let error = json!({"id": 4, "error": {"class": "CommandNotFound", "desc": "no"}});
        let Ok(Message::Answer { id: 4, result: Err(refusal) }) = parse(&error) else { panic!() };
        assert_eq!(refusal.class, ErrorClass::CommandNotFound);
    }

    #[test]
    fn events_are_typed() {
        let at = json!({"seconds": 1_795_380_795_i64, "microseconds": 928_799});
        let stop = event(&json!({"event": "STOP", "timestamp": at}));
        assert_eq!(stop.kind, EventKind::Stop);
        assert_eq!(stop.at, Some(Duration::from_micros(1_795_380_795_928_799)));
        let no_clock = json!({"seconds": -1, "microseconds": -1});
        let migration =
            event(&json!({"event": "MIGRATION", "data": {"status": "device"}, "timestamp": no_clock}));
        assert_eq!(migration.kind, EventKind::Migration(MigrationStatus::Device));
        assert_eq!(migration.at, None);
        let ready = json!({"event": "BLOCK_JOB_READY", "timestamp": at, "data":
            {"device": "m", "len": 8, "offset": 8, "speed": 0, "type": "mirror"}});
        let EventKind::JobReady(progress) = event(&ready).kind else { panic!() };
        assert_eq!((progress.kind, progress.len, progress.error), (JobType::Mirror, 8, None));
        let shutdown = json!({"event": "SHUTDOWN", "timestamp": at,
            "data": {"guest": false, "reason": "host-qmp-quit"}});
        let kind = EventKind::Shutdown { guest: false, reason: ShutdownCause::HostQmpQuit };
        assert_eq!(event(&shutdown).kind, kind);
        let io_error = json!({"event": "BLOCK_IO_ERROR", "timestamp": at, "data": {"qom-path": "/x",
            "device": "", "node-name": "drive0", "operation": "write", "action": "stop", "nospace": true,
            "reason": "No space left on device"}});
        let EventKind::BlockIoError { no_space: true, node_name: Some(_), .. } = event(&io_error).kind else {
            panic!()
        };
        let unknown = event(&json!({"event": "NEW_THING", "data": {"a": [1]}, "timestamp": at}));
        let kind = EventKind::Unknown { name: "NEW_THING".to_owned(), data: json!({"a": [1]}) };
        assert_eq!(unknown.kind, kind);
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error() {
        let at = json!({"seconds": 1, "microseconds": 1});
        for message in [
            json!({"event": "MIGRATION", "data": {}, "timestamp": at}),
            json!({"event": "STOP"}),
            json!({"event": "BIG", "data": "x".repeat(MAX_EVENT), "timestamp": at}),
            json!({"return": {}}),
            json!({"return": {}, "id": "text"}),
            json!({"return": {}, "error": {"class": "GenericError", "desc": ""}, "id": 1}),
            json!({"error": {"class": "GenericError", "desc": "JSON parse error"}}),
            json!([]),
            json!({}),
        ] {
            parse(&message).expect_err(&message.to_string());
        }
        Message::parse(b"QEMU 10.0.2 monitor - type 'help' for more information").unwrap_err();
        Message::parse("[".repeat(100_000).as_bytes()).unwrap_err();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Message::parse(&bytes));
        }

        #[test]
        fn arbitrary_fields_never_panic(
            name in "STOP|MIGRATION|BLOCK_JOB_READY|X", key in "status|pass|data|id|len", number in any::<i64>(),
        ) {
            let at = json!({"seconds": number, "microseconds": number});
            drop(parse(&json!({"event": name, "data": {key: number}, "timestamp": at})));
            drop(parse(&json!({"return": {}, "id": number})));
        }
    }
}
