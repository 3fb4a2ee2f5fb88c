//! A monitor of each QEMU that takes a guest in, connected while it is well and held until it ends.
//!
//! In post-copy a device that needs a page which is not there holds QEMU's main loop. It then answers out-of-band
//! commands only, and those only over a connection that agreed on them before, which takes the main loop (QEMU,
//! `docs/interop/qmp-spec.rst`, "Capabilities Negotiation"). The agent's connection ends with the agent; over this one
//! an agent that was started again lets QEMU go on.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hypervisor::qmp::first_id;
use serde_json::{Value, json};

use crate::keeper::hold;

/// How long QEMU may take for an answer; out of band it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line that is read, bytes. Events are short; the greeting is, too.
const MAX_LINE: u64 = 1 << 20;

type Answer = (u64, Result<(), String>);

/// The monitors, by VM.
#[derive(Debug, Default)]
pub(crate) struct Rescues {
    held: Mutex<BTreeMap<String, Arc<Mutex<Monitor>>>>,
}

impl Rescues {
    /// Connects to a VM's second monitor, unless it is connected. A QEMU that has none takes no guest in.
    pub(crate) fn keep(&self, vm: &str, socket: &Path) {
        // Nobody else waits for a monitor that is waited for.
        let known = hold(&self.held).get(vm).cloned();
        if !socket.exists() || known.is_some_and(|monitor| hold(&monitor).lives()) {
            return;
        }
        match Monitor::connect(socket) {
            Ok(monitor) => drop(hold(&self.held).insert(vm.to_owned(), Arc::new(Mutex::new(monitor)))),
            // It is tried again, and until then the agent's own connection does it.
            Err(error) => {
                tracing::warn!(vm, %error, "QEMU's second monitor is not there: a guest may be lost if the agent ends in post-copy");
            }
        }
    }

    /// The VM's QEMU has ended.
    pub(crate) fn forget(&self, vm: &str) {
        hold(&self.held).remove(vm);
    }

    /// Says something out of band to a VM's QEMU.
    ///
    /// # Errors
    /// That there is no connection, that it does not answer, or what it answers.
    pub(crate) fn say(&self, vm: &str, command: &str, arguments: &Value) -> io::Result<()> {
        let monitor = hold(&self.held).get(vm).cloned();
        let monitor = monitor.ok_or_else(|| io::Error::other("QEMU's second monitor is not connected"))?;
        hold(&monitor).say("exec-oob", command, arguments)
    }
}

/// One connection.
#[derive(Debug)]
struct Monitor {
    stream: UnixStream,
    answers: Receiver<Answer>,
    last: u64,
}

impl Monitor {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (sender, answers) = sync_channel(1);
        let reader = BufReader::new(stream.try_clone()?);
        // Ends with the connection, whichever end closes it. Nobody else reads: what is not read, QEMU keeps.
        std::thread::Builder::new().name("monitor".to_owned()).spawn(move || read(reader, &sender))?;
        let mut monitor = Self { stream, answers, last: first_id() };
        monitor.say("execute", "qmp_capabilities", &json!({ "enable": ["oob"] }))?;
        Ok(monitor)
    }

    fn lives(&mut self) -> bool {
        loop {
            match self.answers.try_recv() {
                Ok(late) => tracing::debug!(?late, "a late answer of QEMU"),
                Err(why) => return why == TryRecvError::Empty,
            }
        }
    }

    fn say(&mut self, verb: &str, command: &str, arguments: &Value) -> io::Result<()> {
        self.last += 1;
        let line = json!({ verb: command, "id": self.last, "arguments": arguments });
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((id, answer)) if id == self.last => return answer.map_err(io::Error::other),
                Ok(late) => tracing::debug!(?late, "a late answer of QEMU"),
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The reader holds the other handle of it. Fails when QEMU has closed it already.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }
}

/// Hands on the answers, and drops the greeting and events.
fn read(mut reader: BufReader<UnixStream>, answers: &SyncSender<Answer>) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) if line.ends_with(b"\n") => {}
            // It ended, or is no QEMU.
            Ok(_) | Err(_) => return,
        }
        let Ok(Value::Object(said)) = serde_json::from_slice(&line) else { return };
        let Some(id) = said.get("id").and_then(Value::as_u64) else { continue };
        let answer = match said.get("error") {
            Some(error) => Err(error["desc"].as_str().unwrap_or("QEMU gives no reason").to_owned()),
            None => Ok(()),
        };
        if answers.send((id, answer)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A monitor that says these lines, each to one that it is told; `ID` stands for the id of that, `OLD` for one before.
    fn serve(listener: UnixListener, answers: Vec<&'static str>) -> std::thread::JoinHandle<Vec<Value>> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {\"capabilities\": [\"oob\"]}}\r\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut asked = Vec::new();
            for answer in answers {
                let mut told: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                let id = told["id"].take().as_u64().unwrap();
                let answer = answer.replace("ID", &id.to_string()).replace("OLD", &(id - 1).to_string());
                stream.write_all(answer.as_bytes()).unwrap();
                asked.push(told);
            }
            asked
        })
    }

    #[test]
    fn what_qemu_says_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("rescue.sock");
        let rescues = Rescues::default();
        rescues.keep("web-1", &socket);
        let refused = rescues.say("web-1", "migrate-pause", &json!({})).unwrap_err().to_string();
        assert!(refused.contains("not connected"), "{refused}");
        let script = vec![
            "{\"event\": \"RESUME\"}\r\n{\"return\": {}, \"id\": ID}\r\n",
            "{\"id\": OLD, \"return\": {}}\r\n{\"id\": ID, \"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n",
            "{\"id\": ID, \"return\": {}}\r\n",
            "no JSON\r\n",
        ];
        let server = serve(UnixListener::bind(&socket).unwrap(), script);
        rescues.keep("web-1", &socket);
        let refused = rescues.say("web-1", "migrate-pause", &json!({})).unwrap_err().to_string();
        assert_eq!(refused, "not now", "an answer to an earlier command is passed over");
        rescues.say("web-1", "migrate-recover", &json!({ "uri": "unix:/x" })).unwrap();
        let lost = rescues.say("web-1", "migrate-pause", &json!({})).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::ConnectionReset);
        assert!(!hold(&hold(&rescues.held)["web-1"]).lives());
        let asked = server.join().unwrap();
        let [agreed, _, recover, _] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(agreed["execute"], "qmp_capabilities");
        assert_eq!(agreed["arguments"], json!({ "enable": ["oob"] }));
        assert_eq!(recover["exec-oob"], "migrate-recover");
        assert_eq!(recover["arguments"], json!({ "uri": "unix:/x" }));
        rescues.forget("web-1");
        rescues.say("web-1", "migrate-pause", &json!({})).unwrap_err();
    }
}
