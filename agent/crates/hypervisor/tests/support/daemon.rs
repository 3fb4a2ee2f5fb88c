//! A `qemu-storage-daemon`, driven over its QMP socket. Killed with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// No step of these tests takes as long; it only ends one that hangs.
const LIMIT: Duration = Duration::from_secs(60);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) struct Daemon {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Events that came while something else was waited for.
    events: Vec<Value>,
    _process: Process,
}

impl Daemon {
    /// Starts a daemon whose QMP socket is in `folder`, and enters command mode.
    pub(crate) async fn start(folder: &Path) -> Self {
        let path = folder.join("qmp");
        let socket = format!("socket,id=qmp,server=on,wait=off,path={}", path.display());
        let child = Command::new("qemu-storage-daemon")
            .args(["--chardev", &socket, "--monitor", "qmp"])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon starts");
        let mut process = Process(child);
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&path).await {
                break stream;
            }
            assert!(process.0.try_wait().unwrap().is_none(), "qemu-storage-daemon has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let (reader, writer) = stream.into_split();
        let mut daemon =
            Self { reader: BufReader::new(reader), writer, events: Vec::new(), _process: process };
        assert!(daemon.message().await.get("QMP").is_some(), "a greeting");
        daemon.run("qmp_capabilities", json!({})).await;
        daemon
    }

    async fn message(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(LIMIT, self.reader.read_line(&mut line)).await;
        assert!(read.expect("QMP answers").expect("QMP can be read") > 0, "qemu-storage-daemon has ended");
        serde_json::from_str(&line).expect("QMP is JSON")
    }

    /// Runs a command; the error is QEMU's text.
    pub(crate) async fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.writer.write_all(line.as_bytes()).await.unwrap();
        loop {
            let mut message = self.message().await;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Runs a command to success.
    pub(crate) async fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.try_run(command, arguments).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Waits for an event and takes it. What came before it stays for others.
    pub(crate) async fn event(&mut self, name: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at);
            }
            let message = self.message().await;
            assert!(message.get("event").is_some(), "an answer that nobody asked for: {message}");
            self.events.push(message);
        }
    }
}
