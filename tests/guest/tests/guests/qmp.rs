//! Raw QMP: a line of JSON each way. The tests want QEMU alone between them and the guests.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use novaferry_guest::Vm;
use serde_json::{Value, json};

use crate::HANG;

pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates.
    pub(crate) fn connect(vm: &Vm) -> Self {
        let stream = UnixStream::connect(vm.layout().qmp()).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let mut qmp = Self { reader: BufReader::new(stream) };
        assert!(qmp.read().get("QMP").is_some(), "the greeting comes first");
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Executes a command to success; events on the way are passed over.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{line}").unwrap();
        loop {
            let mut answer = self.read();
            if let Some(answer) = answer.get_mut("return") {
                return answer.take();
            }
            assert!(answer.get("event").is_some(), "{command}: {answer}");
        }
    }

    /// Waits until the migration has one of the states; any end of it ends the wait.
    pub(crate) fn wait_for_migration(&mut self, wanted: &str) {
        let end = Instant::now() + HANG;
        loop {
            let answer = self.execute("query-migrate", json!({}));
            let status = answer["status"].as_str().unwrap_or("none");
            if status == wanted {
                return;
            }
            assert!(!["failed", "cancelled", "completed"].contains(&status), "{answer}");
            assert!(Instant::now() < end, "not {wanted} in time: {answer}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn status(&mut self) -> String {
        self.execute("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }
}

/// Moves the guest of `source` to `destination`, with `hold` between its stop and its start.
pub(crate) fn migrate(source: &Vm, destination: &Vm, socket: &Path, hold: Duration) {
    let uri = format!("unix:{}", socket.display());
    let mut ends = [source, destination].map(Qmp::connect);
    for end in &mut ends {
        let capabilities: Vec<Value> = ["pause-before-switchover", "return-path"]
            .map(|capability| json!({ "capability": capability, "state": true }))
            .into();
        end.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }));
        end.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 2_u64 << 30, "downtime-limit": 1000 }),
        );
    }
    let [source, destination] = &mut ends;
    destination.execute("migrate-incoming", json!({ "uri": uri }));
    source.execute("migrate", json!({ "uri": uri }));
    source.wait_for_migration("pre-switchover");
    thread::sleep(hold);
    source.execute("migrate-continue", json!({ "state": "pre-switchover" }));
    source.wait_for_migration("completed");
    destination.wait_for_migration("completed");
    assert_eq!(source.status(), "postmigrate");
    assert_eq!(destination.status(), "running");
}
