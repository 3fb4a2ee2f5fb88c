//! One connection in the transmission phase: a writer task, a reader task, and the requests between them.
//!
//! A request holds one of the connection's bounded slots from before it is sent until its reply has come, even
//! when whoever asked has stopped waiting. Buffers travel with it: that of a WRITE through the writer task, that of
//! a READ through the reader task, which fills it straight from the socket. Whichever task fails first records the
//! loss, which fails every outstanding request and ends the other task.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use volume::Buffer;

use super::coverage::Coverage;
use super::wire::transmission::{ChunkType, Descriptor, Kind, REQUEST_LENGTH, SIMPLE_REST, STRUCTURED_REST};
use super::wire::{
    Chunk, ChunkHeader, Command, CommandFlags, ErrorCode, Header, MetaContext, ProtocolError, Request,
};
use crate::error::{ConnectionLoss, Error};

/// Bytes read ahead, so that small replies cost one system call for many. Data goes around it.
const READ_AHEAD: usize = 64 << 10;

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
        let reader = Reader {
            shared: Arc::clone(&shared),
            socket: BufReader::with_capacity(READ_AHEAD, read),
            current: None,
        };
        let reader = tokio::spawn(reader.run(watch_reader));
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

/// Writes head and payload in as few system calls as the socket allows.
async fn write_both(socket: &mut WriteHalf, head: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    let mut rest = &mut parts[..];
    IoSlice::advance_slices(&mut rest, 0); // drops empty parts
    while !rest.is_empty() {
        let written = socket.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

async fn run_writer(
    shared: Arc<Shared>,
    mut socket: WriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    mut ended: watch::Receiver<bool>,
) {
    let mut failure = None;
    while failure.is_none() {
        let next = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => break,
            next = queue.recv() => next,
        };
        let Some(Outgoing { head, payload }) = next else { break };
        let bytes = payload.as_ref().map_or(&[][..], |(buffer, _)| buffer.as_ref());
        let result = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => Ok(()),
            result = write_both(&mut socket, &head, bytes) => result,
        };
        if let Some((buffer, give_back)) = payload {
            drop(give_back.send(buffer));
        }
        failure = result.err();
    }
    shared.lose(failure.map_or(ConnectionLoss::Closed, ConnectionLoss::Socket));
    queue.close();
    while let Some(outgoing) = queue.recv().await {
        if let Some((buffer, give_back)) = outgoing.payload {
            drop(give_back.send(buffer));
        }
    }
    // Best effort: the peer sees the end of the stream in any case when the socket closes.
    drop(socket.shutdown().await);
}

struct Reader {
    shared: Arc<Shared>,
    socket: BufReader<ReadHalf>,
    /// The request whose reply is being read. Here rather than in a future, so that ending the task keeps it.
    current: Option<Slot>,
}

impl Reader {
    async fn run(mut self, mut ended: watch::Receiver<bool>) {
        let loss = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => ConnectionLoss::Closed,
            loss = self.replies() => loss,
        };
        let loss = self.shared.lose(loss);
        if let Some(slot) = self.current.take() {
            slot.finish(Err(self.shared.lost(loss)));
        }
    }

    /// Reads replies until the connection ends.
    async fn replies(&mut self) -> ConnectionLoss {
        loop {
            if let Err(loss) = self.reply().await {
                return loss;
            }
        }
    }

    async fn reply(&mut self) -> Result<(), ConnectionLoss> {
        let magic = self.bytes::<4>().await?;
        match Kind::decode(magic)? {
            Kind::Simple => {
                let header = Header::decode_simple(&self.bytes::<SIMPLE_REST>().await?);
                self.simple(header).await
            }
            Kind::Structured => {
                let header = ChunkHeader::decode(&self.bytes::<STRUCTURED_REST>().await?)?;
                self.structured(&header).await
            }
        }
    }

    async fn simple(&mut self, header: Header) -> Result<(), ConnectionLoss> {
        let slot = self.current.insert(self.shared.take(header.cookie())?);
        let result = match header.error() {
            Some(code) => {
                Err(Error::Server { command: slot.command, code, offset: None, message: String::new() })
            }
            None => {
                match &mut slot.work {
                    Work::Plain => {}
                    Work::Read { buffer, .. } if !self.shared.structured => {
                        self.socket.read_exact(buffer.as_mut()).await?;
                    }
                    Work::Read { .. } | Work::Status(_) => return Err(slot.wrong("simple reply").into()),
                }
                Ok(())
            }
        };
        if let Some(slot) = self.current.take() {
            slot.finish(result);
        }
        Ok(())
    }

    async fn structured(&mut self, header: &ChunkHeader) -> Result<(), ConnectionLoss> {
        let slot = self.current.insert(self.shared.take(header.cookie)?);
        if !self.shared.structured {
            return Err(slot.wrong("structured reply").into());
        }
        if header.kind == ChunkType::Data {
            let mut place = [0; 8];
            self.socket.read_exact(&mut place).await?;
            let Work::Read { buffer, coverage } = &mut slot.work else {
                return Err(slot.wrong("data chunk").into());
            };
            let place = coverage.add(slot.offset, u64::from_be_bytes(place), u64::from(header.length) - 8)?;
            self.socket.read_exact(&mut buffer.as_mut()[place]).await?;
        } else {
            let mut payload = vec![0; header.length as usize];
            self.socket.read_exact(&mut payload).await?;
            apply(slot, Chunk::decode(header, &payload)?, &self.shared.contexts)?;
        }
        if !header.done {
            if let Some(slot) = self.current.take() {
                self.shared.put_back(header.cookie, slot);
            }
            return Ok(());
        }
        let result = match slot.error.take() {
            Some(error) => Err(error),
            None => {
                match &slot.work {
                    Work::Plain => {}
                    Work::Read { coverage, .. } => coverage.complete()?,
                    Work::Status(found) if found.len() < self.shared.contexts.len() => {
                        return Err(ProtocolError::BadStatus { why: "leaves out a context" }.into());
                    }
                    Work::Status(_) => {}
                }
                Ok(())
            }
        };
        if let Some(slot) = self.current.take() {
            slot.finish(result);
        }
        Ok(())
    }

    async fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ConnectionLoss> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

/// Applies a chunk other than data to the request that it answers.
fn apply(slot: &mut Slot, chunk: Chunk<'_>, contexts: &[MetaContext]) -> Result<(), ProtocolError> {
    match (chunk, &mut slot.work) {
        (Chunk::None, _) => Ok(()),
        (Chunk::Error { code, message, offset }, _) => {
            let code = if code == ErrorCode(0) { ErrorCode::EINVAL } else { code };
            let error = Error::Server { command: slot.command, code, offset, message };
            slot.error.get_or_insert(error);
            Ok(())
        }
        (Chunk::Hole { offset, length }, Work::Read { buffer, coverage }) => {
            let place = coverage.add(slot.offset, offset, length.into())?;
            buffer.as_mut()[place].fill(0);
            Ok(())
        }
        (Chunk::Status { context, extents }, Work::Status(found)) => {
            if !contexts.iter().any(|known| known.id == context) {
                return Err(ProtocolError::BadStatus { why: "is about a context that was not chosen" });
            }
            if found.iter().any(|(known, _)| *known == context) {
                return Err(ProtocolError::BadStatus { why: "repeats a context" });
            }
            let before_last: u64 =
                extents[..extents.len() - 1].iter().map(|extent| u64::from(extent.length)).sum();
            if before_last >= u64::from(slot.length) {
                return Err(ProtocolError::BadStatus { why: "goes on past what was asked" });
            }
            found.push((context, extents));
            Ok(())
        }
        (Chunk::Data { .. } | Chunk::Hole { .. }, _) => Err(slot.wrong("data chunk")),
        (Chunk::Status { .. }, _) => Err(slot.wrong("block status chunk")),
    }
}

impl From<io::Error> for ConnectionLoss {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl From<ProtocolError> for ConnectionLoss {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}
