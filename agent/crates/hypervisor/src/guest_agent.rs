//! The guest's agent (`qemu-ga`), through the socket of its channel: freezing file systems before a snapshot.
//!
//! The channel is a serial line: what an earlier client left unread, or an agent that was restarted, is on it, too. So
//! whenever the state is not known, the line is synchronised first (`guest-sync-delimited`: the agent answers with a
//! byte 0xFF, which no JSON holds, and an id of this client's choice). One command at a time; no events.
//!
//! Everything that comes is the guest's word: it is bounded, and believed for no more than its file systems' state.
//!
//! Specification: QEMU's `qga/qapi-schema.json`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::error::Elapsed;

use crate::qmp::error::printable;
use crate::qmp::line::{LineError, LineReader, SENTINEL};
use crate::qmp::message::{Refusal, present};
use crate::qmp::words::FreezeStatus;
use crate::qmp::{MonitorError, MonitorLoss};

/// Largest answer accepted, in bytes. The guest sends it; those of the commands here have under 100.
pub const MAX_ANSWER: usize = 64 << 10;

/// Lines that are passed over for a synchronisation, so that a guest cannot keep this busy until the deadline.
const MAX_STALE_LINES: usize = 256;

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct GuestAgent {
    socket: PathBuf,
    lines: LineReader<UnixStream>,
    timeout: Duration,
    /// Whether nothing but the answer to the next command can be on the line.
    synchronised: bool,
    next_id: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return", default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<Refusal>,
}

impl GuestAgent {
    /// Connects to the channel's socket. That says nothing about the agent: whether it runs, the first command tells.
    ///
    /// `timeout` is for connecting, and for each command together with its synchronisation.
    ///
    /// # Errors
    /// [`MonitorError::Connect`] or [`MonitorError::Timeout`].
    pub async fn connect(socket: &Path, timeout: Duration) -> Result<Self, MonitorError> {
        let failed = |source| MonitorError::Connect { socket: socket.to_owned(), source: Arc::new(source) };
        let connect = tokio::time::timeout(timeout, UnixStream::connect(socket)).await;
        let stream = connect.map_err(late(socket, "connect", timeout))?.map_err(failed)?;
        // An id that no earlier client is likely to have used; 53 bits, as the guest may read it as a float.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let next_id = (now.as_secs() << 20 | u64::from(now.subsec_micros())) & ((1 << 52) - 1);
        let lines = LineReader::new(stream, MAX_ANSWER);
        Ok(Self { socket: socket.to_owned(), lines, timeout, synchronised: false, next_id })
    }

    /// `guest-sync-delimited`: whether the agent answers at all.
    ///
    /// # Errors
    /// [`MonitorError::Timeout`] if no agent runs in the guest.
    pub async fn synchronise(&mut self) -> Result<(), MonitorError> {
        self.synchronised = false;
        let timeout = self.timeout;
        let result = tokio::time::timeout(timeout, self.ensure_synchronised()).await;
        result.map_err(late(&self.socket, "guest-sync-delimited", timeout))?
    }

    /// `guest-fsfreeze-freeze`: flushes and freezes the guest's file systems; answers with how many. Thaw them
    /// whatever else fails, also after an error here: part of them may be frozen.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub async fn freeze(&mut self) -> Result<u64, MonitorError> {
        self.command("guest-fsfreeze-freeze").await
    }

    /// `guest-fsfreeze-thaw`: answers with how many were frozen.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub async fn thaw(&mut self) -> Result<u64, MonitorError> {
        self.command("guest-fsfreeze-thaw").await
    }

    /// `guest-fsfreeze-status`.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub async fn freeze_status(&mut self) -> Result<FreezeStatus, MonitorError> {
        self.command("guest-fsfreeze-status").await
    }

    async fn command<T: DeserializeOwned>(&mut self, command: &'static str) -> Result<T, MonitorError> {
        let timeout = self.timeout;
        let result = tokio::time::timeout(timeout, self.exchange(command)).await;
        let value = result.map_err(late(&self.socket, command, timeout))??;
        serde_json::from_value(value).map_err(|error| MonitorError::Answer {
            socket: self.socket.clone(),
            operation: command.to_owned(),
            source: Arc::new(error),
        })
    }

    async fn exchange(&mut self, command: &'static str) -> Result<Value, MonitorError> {
        self.ensure_synchronised().await?;
        // Until the answer is here: if the caller stops waiting, it will come before the next one's.
        self.synchronised = false;
        self.write(command, json!({ "execute": command }).to_string().into_bytes()).await?;
        let line = self.read(command).await?;
        let wrong = |loss| self.lost(command, loss);
        let answer: Answer = serde_json::from_slice(&line).map_err(MonitorLoss::Message).map_err(wrong)?;
        let result = match answer {
            Answer { result: Some(value), error: None } => Ok(value),
            Answer { result: None, error: Some(Refusal { class, desc }) } => Err(MonitorError::Refused {
                operation: command.to_owned(),
                class,
                description: printable(&desc),
            }),
            _ => return Err(wrong(MonitorLoss::Protocol("neither result nor error".to_owned()))),
        };
        self.synchronised = true;
        result
    }

    async fn ensure_synchronised(&mut self) -> Result<(), MonitorError> {
        const COMMAND: &str = "guest-sync-delimited";
        if self.synchronised {
            return Ok(());
        }
        let id = self.next_id;
        self.next_id += 1;
        // The byte in front makes the agent forget an unfinished command of an earlier client.
        let mut request = vec![SENTINEL];
        request.extend(json!({ "execute": COMMAND, "arguments": { "id": id } }).to_string().into_bytes());
        self.write(COMMAND, request).await?;
        for _ in 0..MAX_STALE_LINES {
            let line = self.read(COMMAND).await?;
            // Whatever stands before the sentinel, also on the same line, belongs to somebody else.
            let Some(sentinel) = line.iter().rposition(|byte| *byte == SENTINEL) else { continue };
            let answer: Result<Answer, _> = serde_json::from_slice(&line[sentinel + 1..]);
            if answer.is_ok_and(|answer| answer.result == Some(id.into())) {
                self.synchronised = true;
                return Ok(());
            }
        }
        let loss = MonitorLoss::Protocol(format!("{MAX_STALE_LINES} lines without the awaited id"));
        Err(self.lost(COMMAND, loss))
    }

    async fn write(&mut self, command: &str, mut request: Vec<u8>) -> Result<(), MonitorError> {
        request.push(b'\n');
        let result = self.lines.stream_mut().write_all(&request).await;
        result.map_err(|error| self.lost(command, MonitorLoss::Socket(error)))
    }

    async fn read(&mut self, command: &str) -> Result<Vec<u8>, MonitorError> {
        self.lines.next().await.map_err(|error| {
            self.lost(
                command,
                match error {
                    LineError::Socket(error) => MonitorLoss::Socket(error),
                    LineError::TooLong => MonitorLoss::TooLong { limit: MAX_ANSWER },
                },
            )
        })
    }

    fn lost(&self, operation: &str, loss: MonitorLoss) -> MonitorError {
        MonitorError::Lost {
            socket: self.socket.clone(),
            operation: operation.to_owned(),
            source: Arc::new(loss),
        }
    }
}

fn late(socket: &Path, operation: &str, limit: Duration) -> impl FnOnce(Elapsed) -> MonitorError {
    move |_| MonitorError::Timeout {
        socket: socket.to_owned(),
        operation: operation.to_owned(),
        milliseconds: limit.as_millis(),
    }
}
