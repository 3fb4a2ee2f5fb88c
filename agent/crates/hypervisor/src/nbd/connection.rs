//! One connection in the transmission phase: a writer task, a reader task, and the requests between them.
//!
//! A request holds one of the connection's bounded slots from before it is sent until its reply has come, even
//! when whoever asked has stopped waiting. Buffers travel with it: that of a WRITE through the writer task, that of
//! a READ through the reader task, which fills it straight from the socket. Whichever task fails first records the
//! loss, which fails every outstanding request and ends the other task.

mod reader;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use volume::Buffer;

use self::reader::Reader;
use self::writer::run_writer;
use super::coverage::Coverage;
use super::wire::transmission::{Descriptor, REQUEST_LENGTH};
use super::wire::{Command, CommandFlags, MetaContext, ProtocolError, Request};
use crate::error::{ConnectionLoss, Error};

/// The two halves of a socket.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// What a request needs of its reply, and what the reply gave.
#[derive(Debug)]
enum Work {
    /// Success or failure.
    Plain,
    /// Data for `buffer`.
    Read { buffer: Buffer, coverage: Coverage },
    /// Extents, by context.
    Status(Vec<(u32, Vec<Descriptor>)>),
}

/// The answer to a request.
struct Done {
    result: Result<(), Error>,
    work: Work,
}

/// A request that waits for its reply.
struct Slot {
    command: Command,
    offset: u64,
    length: u32,
    work: Work,
    error: Option<Error>,
    done: oneshot::Sender<Done>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    fn finish(self, result: Result<(), Error>) {
        // The receiver may have stopped waiting: then the buffer goes back to its pool here.
        drop(self.done.send(Done { result, work: self.work }));
    }

    fn wrong(&self, reply: &'static str) -> ProtocolError {
        ProtocolError::WrongReply { reply, command: self.command }
    }
}

/// A request on its way to the writer task.
struct Outgoing {
    head: [u8; REQUEST_LENGTH],
    payload: Option<(Buffer, oneshot::Sender<Buffer>)>,
}

#[derive(Default)]
struct State {
    next_cookie: u64,
    pending: HashMap<u64, Slot>,
    loss: Option<Arc<ConnectionLoss>>,
}

struct Shared {
    target: String,
    structured: bool,
    contexts: Vec<MetaContext>,
    state: Mutex<State>,
    slots: Arc<Semaphore>,
    ended: watch::Sender<bool>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if that is wrong, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, source: Arc<ConnectionLoss>) -> Error {
        Error::Lost { target: self.target.clone(), source }
    }

    /// Records why the connection ended (the first reason stays) and fails everything outstanding.
    fn lose(&self, loss: ConnectionLoss) -> Arc<ConnectionLoss> {
        let (loss, pending) = {
            let mut state = self.state();
            let loss = Arc::clone(state.loss.get_or_insert_with(|| Arc::new(loss)));
            (loss, std::mem::take(&mut state.pending))
        };
        self.slots.close();
        self.ended.send_replace(true);
        for slot in pending.into_values() {
            slot.finish(Err(self.lost(Arc::clone(&loss))));
        }
        loss
    }

    fn take(&self, cookie: u64) -> Result<Slot, ConnectionLoss> {
        let slot = self.state().pending.remove(&cookie);
        slot.ok_or(ConnectionLoss::Protocol(ProtocolError::UnknownCookie { cookie }))
    }

    fn put_back(&self, cookie: u64, slot: Slot) {
        let mut state = self.state();
        match state.loss.clone() {
            None => drop(state.pending.insert(cookie, slot)),
            Some(loss) => {
                drop(state);
                slot.finish(Err(self.lost(loss)));
            }
        }
    }
}

/// A connection. Dropping it ends its tasks and closes the socket.
pub(super) struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("target", &self.shared.target).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.writer.abort();
        self.reader.abort();
    }
}

impl Connection {
    /// Takes over a socket after the handshake.
    pub(super) fn start(
        target: String,
        (read, write): (ReadHalf, WriteHalf),
        structured: bool,
        contexts: Vec<MetaContext>,
        in_flight: usize,
    ) -> Self {
        let (ended, watch_writer) = watch::channel(false);
        let watch_reader = watch_writer.clone();
        let shared = Arc::new(Shared {
            target,
            structured,
            contexts,
            state: Mutex::default(),
            slots: Arc::new(Semaphore::new(in_flight)),
            ended,
        });
        // One place for each slot and one for the farewell: `try_send` never finds it full.
        let (outgoing, queue) = mpsc::channel(in_flight + 1);
        let writer = tokio::spawn(run_writer(Arc::clone(&shared), write, queue, watch_writer));
        let reader = tokio::spawn(Reader::new(Arc::clone(&shared), read).run(watch_reader));
        Self { shared, outgoing, writer, reader }
    }

    /// Fills `buffer` from `offset`.
    pub(super) async fn read(&self, offset: u64, buffer: Buffer) -> (Result<(), Error>, Buffer) {
        let length = buffer.len();
        let work = Work::Read { buffer, coverage: Coverage::new(length as u64) };
        let (result, work, _) =
            self.request(Command::Read, CommandFlags::NONE, offset, length_of(length), work, None).await;
        match work {
            Some(Work::Read { buffer, .. }) => (result, buffer),
            _ => (result, Buffer::heap(length)),
        }
    }

    /// Writes `buffer` at `offset`.
    pub(super) async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        flags: CommandFlags,
    ) -> (Result<(), Error>, Buffer) {
        let length = buffer.len();
        let (result, _, back) =
            self.request(Command::Write, flags, offset, length_of(length), Work::Plain, Some(buffer)).await;
        (result, back.unwrap_or_else(|| Buffer::heap(length)))
    }

    /// A request without data.
    pub(super) async fn plain(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u32,
    ) -> Result<(), Error> {
        self.request(command, flags, offset, length, Work::Plain, None).await.0
    }

    /// The extents of every chosen context, by its number.
    pub(super) async fn block_status(
        &self,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(u32, Vec<Descriptor>)>, Error> {
        let work = Work::Status(Vec::new());
        let (result, work, _) =
            self.request(Command::BlockStatus, CommandFlags::NONE, offset, length, work, None).await;
        result.map(|()| match work {
            Some(Work::Status(extents)) => extents,
            _ => Vec::new(),
        })
    }

    /// Says goodbye and waits until it is sent. Outstanding requests must have ended.
    pub(super) async fn close(mut self) {
        let request = Request {
            command: Command::Disconnect,
            flags: CommandFlags::NONE,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        let (replacement, _) = mpsc::channel(1);
        let outgoing = std::mem::replace(&mut self.outgoing, replacement);
        // A connection that is lost already needs no farewell.
        if outgoing.try_send(Outgoing { head: request.encode(), payload: None }).is_ok() {
            drop(outgoing);
            drop((&mut self.writer).await);
        }
    }

    /// Sends a request and waits for its reply. Work and payload come back in every case but one: when the runtime
    /// that runs the connection's tasks is shut down under them, they are dropped with it.
    async fn request(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u32,
        work: Work,
        payload: Option<Buffer>,
    ) -> (Result<(), Error>, Option<Work>, Option<Buffer>) {
        let closed = || self.shared.lost(Arc::new(ConnectionLoss::Closed));
        let permit = Arc::clone(&self.shared.slots).acquire_owned().await;
        let (done, answer) = oneshot::channel();
        let cookie = {
            let mut state = self.shared.state();
            let Ok(permit) = permit else {
                let loss = state.loss.clone().unwrap_or_else(|| Arc::new(ConnectionLoss::Closed));
                return (Err(self.shared.lost(loss)), Some(work), payload);
            };
            if let Some(loss) = state.loss.clone() {
                return (Err(self.shared.lost(loss)), Some(work), payload);
            }
            state.next_cookie += 1;
            let cookie = state.next_cookie;
            let slot = Slot { command, offset, length, work, error: None, done, _permit: permit };
            state.pending.insert(cookie, slot);
            cookie
        };
        let head = Request { command, flags, cookie, offset, length }.encode();
        let (payload, returned) = match payload {
            Some(buffer) => {
                let (give_back, returned) = oneshot::channel();
                (Some((buffer, give_back)), Some(returned))
            }
            None => (None, None),
        };
        // No await between taking the slot and queueing: a caller that stops waiting leaves no slot without a request.
        let unsent = self.outgoing.try_send(Outgoing { head, payload }).err().and_then(|error| {
            let (mpsc::error::TrySendError::Full(outgoing) | mpsc::error::TrySendError::Closed(outgoing)) =
                error;
            // The writer has ended, so the loss is or will be recorded; recording it again keeps the first reason.
            self.shared.lose(ConnectionLoss::Closed);
            outgoing.payload.map(|(buffer, _)| buffer)
        });
        let (result, work) = match answer.await {
            Ok(done) => (done.result, Some(done.work)),
            Err(_) => (Err(closed()), None),
        };
        let buffer = match (unsent, returned) {
            (Some(buffer), _) => Some(buffer),
            (None, Some(returned)) => returned.await.ok(),
            (None, None) => None,
        };
        (result, work, buffer)
    }
}

/// A payload's length as the wire carries it. [`super::Client`] has checked it against the server's maximum.
fn length_of(length: usize) -> u32 {
    u32::try_from(length).expect("a payload is checked against a 32-bit maximum before it gets here")
}
