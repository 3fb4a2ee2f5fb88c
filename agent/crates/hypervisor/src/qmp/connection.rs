//! A monitor's connection: a writer task, a reader task, and the commands between them.
//!
//! A command holds a slot from before it is sent until its answer has come, even when whoever asked has stopped
//! waiting: that bounds what QEMU has to queue, and a late answer finds its place and is dropped. Whichever task fails
//! first records the loss, which fails every outstanding command and ends the subscriptions.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::error::{MonitorError, MonitorLoss, printable};
use super::event::Event;
use super::line::{LineError, LineReader};
use super::message::{Message, Refusal};

/// Events that wait for a subscriber. A migration makes some ten a second; mirrors of many disks a few more.
pub const EVENT_QUEUE: usize = 256;

/// In-band commands outstanding. QEMU queues 8 and stops reading the socket at the eighth (`monitor/qmp.c`,
/// `QMP_REQ_QUEUE_LEN_MAX`), which would hold up out-of-band commands, too.
const MAX_IN_BAND: usize = 7;

/// Out-of-band commands outstanding. They are answered at once, so this is for a QEMU that hangs.
const MAX_OUT_OF_BAND: usize = 4;

/// Which of QEMU's two ways a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Band {
    /// In order, by QEMU's main loop.
    In,
    /// At once, by the monitor's own thread: also when the main loop hangs.
    Out,
}

/// A command that waits for its answer.
struct Slot {
    done: oneshot::Sender<Result<Value, Failure>>,
    _permit: OwnedSemaphorePermit,
}

/// Why there is no result.
enum Failure {
    Refused(Refusal),
    Lost(Arc<MonitorLoss>),
}

struct State {
    /// Smaller ids are of earlier connections.
    first_id: u64,
    next_id: u64,
    pending: HashMap<u64, Slot>,
    /// `None` once the connection has ended, which ends the subscriptions.
    events: Option<broadcast::Sender<Event>>,
    loss: Option<Arc<MonitorLoss>>,
}

/// The first id of a connection. QEMU gives the answer to a command whose asker has gone to whoever is connected then
/// (`monitor_qmp_respond` writes to the monitor), so that ids must not come again: commands are fewer than the
/// microseconds.
#[must_use]
pub fn first_id() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0).max(1)
}

struct Shared {
    socket: PathBuf,
    state: Mutex<State>,
    in_band: Arc<Semaphore>,
    out_of_band: Arc<Semaphore>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if that is wrong, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records why the connection ended (the first reason stays) and fails everything outstanding.
    fn lose(&self, loss: MonitorLoss) {
        let (loss, pending) = {
            let mut state = self.state();
            let loss = Arc::clone(state.loss.get_or_insert_with(|| Arc::new(loss)));
            state.events = None;
            (loss, std::mem::take(&mut state.pending))
        };
        self.in_band.close();
        self.out_of_band.close();
        for slot in pending.into_values() {
            // Whoever asked may have stopped waiting.
            drop(slot.done.send(Err(Failure::Lost(Arc::clone(&loss)))));
        }
    }

    /// Why the connection ended; `Closed` if a task vanished with its runtime.
    fn loss(&self) -> Arc<MonitorLoss> {
        self.state().loss.clone().unwrap_or_else(|| Arc::new(MonitorLoss::Closed))
    }

    fn lost(&self, operation: &str) -> MonitorError {
        MonitorError::Lost {
            socket: self.socket.clone(),
            operation: operation.to_owned(),
            source: self.loss(),
        }
    }

    fn accept(&self, message: Message) -> Result<(), MonitorLoss> {
        match message {
            Message::Greeting(_) => Err(MonitorLoss::Protocol("a second greeting".to_owned())),
            Message::Event(event) => {
                if let Some(events) = &self.state().events {
                    // Fails when nobody has subscribed: then nobody wants to know.
                    drop(events.send(event));
                }
                Ok(())
            }
            Message::Answer { id, result } => {
                let (slot, first) = {
                    let mut state = self.state();
                    (state.pending.remove(&id), state.first_id)
                };
                let Some(slot) = slot else {
                    if id < first {
                        tracing::debug!(id, "an answer to what was asked over an earlier connection");
                        return Ok(());
                    }
                    return Err(MonitorLoss::Protocol(format!("an answer to no command, id {id}")));
                };
                // Whoever asked may have stopped waiting.
                drop(slot.done.send(result.map_err(Failure::Refused)));
                Ok(())
            }
        }
    }
}

/// A connection. Dropping it ends its tasks and closes the socket.
pub(super) struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Vec<u8>>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("socket", &self.shared.socket).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
        self.shared.lose(MonitorLoss::Closed);
    }
}

impl Connection {
    /// Starts the tasks of a connection whose greeting has been read.
    pub(super) fn start<R, W>(socket: PathBuf, lines: LineReader<R>, write: W, max_reply: usize) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (events, _) = broadcast::channel(EVENT_QUEUE);
        let first_id = first_id();
        let state =
            State { first_id, next_id: first_id, pending: HashMap::new(), events: Some(events), loss: None };
        let shared = Arc::new(Shared {
            socket,
            state: Mutex::new(state),
            in_band: Arc::new(Semaphore::new(MAX_IN_BAND)),
            out_of_band: Arc::new(Semaphore::new(MAX_OUT_OF_BAND)),
        });
        let (outgoing, requests) = mpsc::channel(MAX_IN_BAND + MAX_OUT_OF_BAND);
        let reader = tokio::spawn(read(Arc::clone(&shared), lines, max_reply));
        let writer = tokio::spawn(send(Arc::clone(&shared), write, requests));
        Self { shared, outgoing, reader, writer }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Sends a command and waits for its answer. `line` makes its text of the id.
    pub(super) async fn call(
        &self,
        operation: &str,
        band: Band,
        limit: Duration,
        line: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Value, MonitorError> {
        let work = async {
            let slots = match band {
                Band::In => &self.shared.in_band,
                Band::Out => &self.shared.out_of_band,
            };
            let closed = || self.shared.lost(operation);
            let permit = Arc::clone(slots).acquire_owned().await.ok().ok_or_else(closed)?;
            let place = self.outgoing.reserve().await.ok().ok_or_else(closed)?;
            let (done, answer) = oneshot::channel();
            let id = {
                let mut state = self.shared.state();
                if state.loss.is_some() {
                    drop(state);
                    return Err(closed());
                }
                let id = state.next_id;
                state.next_id += 1;
                state.pending.insert(id, Slot { done, _permit: permit });
                id
            };
            // No await since the slot was taken: a caller who stops waiting leaves a command that was sent whole.
            place.send(line(id));
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(Failure::Refused(Refusal { class, desc }))) => Err(MonitorError::Refused {
                    operation: operation.to_owned(),
                    class,
                    description: printable(&desc),
                }),
                Ok(Err(Failure::Lost(source))) => Err(MonitorError::Lost {
                    socket: self.shared.socket.clone(),
                    operation: operation.to_owned(),
                    source,
                }),
                Err(_) => Err(closed()),
            }
        };
        let late = |_| MonitorError::Timeout {
            socket: self.shared.socket.clone(),
            operation: operation.to_owned(),
            milliseconds: limit.as_millis(),
        };
        tokio::time::timeout(limit, work).await.map_err(late)?
    }

    pub(super) fn subscribe(&self) -> Events {
        let receiver = self.shared.state().events.as_ref().map(broadcast::Sender::subscribe);
        Events { shared: Arc::clone(&self.shared), receiver }
    }

    pub(super) fn ended(&self) -> Option<Arc<MonitorLoss>> {
        self.shared.state().loss.clone()
    }
}

async fn read<R: AsyncRead + Unpin>(shared: Arc<Shared>, mut lines: LineReader<R>, max_reply: usize) {
    let loss = loop {
        let accepted = match lines.next().await {
            Ok(line) => Message::parse(&line).and_then(|message| shared.accept(message)),
            Err(error) => Err(loss(error, max_reply)),
        };
        if let Err(loss) = accepted {
            break loss;
        }
    };
    shared.lose(loss);
}

pub(super) fn loss(error: LineError, limit: usize) -> MonitorLoss {
    match error {
        LineError::Socket(error) => MonitorLoss::Socket(error),
        LineError::TooLong => MonitorLoss::TooLong { limit },
    }
}

async fn send<W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    mut write: W,
    mut requests: mpsc::Receiver<Vec<u8>>,
) {
    while let Some(request) = requests.recv().await {
        if let Err(error) = write.write_all(&request).await {
            // That the other side has closed says little; the reader finds what it said before.
            if error.kind() != io::ErrorKind::BrokenPipe {
                shared.lose(MonitorLoss::Socket(error));
            }
            return;
        }
    }
}

/// The events of a connection, from the subscription on.
pub struct Events {
    shared: Arc<Shared>,
    receiver: Option<broadcast::Receiver<Event>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("socket", &self.shared.socket).finish_non_exhaustive()
    }
}

impl Events {
    /// The next event. Safe to cancel: an event that was not returned comes again.
    ///
    /// Events that were sent before the answer to a command are here when the answer is.
    ///
    /// # Errors
    /// [`MonitorError::EventsMissed`] if this subscriber was slower than [`EVENT_QUEUE`] events; the next call
    /// continues with the oldest that is left. [`MonitorError::Lost`] after the last event when the connection ended.
    pub async fn next(&mut self) -> Result<Event, MonitorError> {
        let Some(receiver) = &mut self.receiver else {
            return Err(self.shared.lost("events"));
        };
        match receiver.recv().await {
            Ok(event) => Ok(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Err(MonitorError::EventsMissed { socket: self.shared.socket.clone(), missed })
            }
            Err(broadcast::error::RecvError::Closed) => {
                self.receiver = None;
                Err(self.shared.lost("events"))
            }
        }
    }
}
