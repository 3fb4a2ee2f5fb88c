//! Requests and replies of one client.
//!
//! One future reads requests and starts a task for each; another writes replies as they come. A request holds a slot
//! and the bytes of its payload from before the payload is read until its reply is sent, so that neither a client that
//! sends fast nor one that does not read can make more than its share pile up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;
use volume::{ByteOffset, ByteRange, Kind, Op, VolumeError};

use super::super::socket::{READ_AHEAD, write_both};
use super::super::wire::requests::{self, Incoming, Job};
use super::super::wire::transmission::REQUEST_LENGTH;
use super::super::wire::{Command, ErrorCode};
use super::{Ending, Export, Handler, MAX_IN_FLIGHT};
use crate::error::ConnectionLoss;

/// How long the last replies may take to leave: the client may have stopped reading.
const FAREWELL: Duration = Duration::from_secs(5);

/// A reply on its way. Its share of what may be under way goes back when it is sent or dropped.
struct Reply {
    head: Vec<u8>,
    data: Bytes,
    _share: Share,
}

/// The part of the limits that a request holds.
struct Share {
    _slot: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// Serves requests until the client leaves or `cancel` completes; no call of the handler runs when it returns.
pub(super) async fn run<S, H>(
    stream: S,
    export: &Export,
    structured: bool,
    handler: Arc<H>,
    cancel: Pin<&mut (impl Future<Output = ()> + Send)>,
) -> Result<Ending, ConnectionLoss>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    H: Handler,
{
    let (read, write) = tokio::io::split(stream);
    let slots = export.limits.requests.clamp(1, MAX_IN_FLIGHT);
    // One place for each slot: a finished request never waits for room.
    let (replies, queue) = mpsc::channel(slots);
    let reader = Reader {
        socket: BufReader::with_capacity(READ_AHEAD, read),
        export,
        slots: Arc::new(Semaphore::new(slots)),
        // A request of the largest size must fit.
        bytes: Arc::new(Semaphore::new(export.limits.bytes.max(export.sizes.maximum) as usize)),
        tail: Arc::new(Tail { export: export.name.clone(), structured, handler, replies }),
    };
    let mut writer = pin!(send(write, queue));
    let mut tasks = JoinSet::new();
    let mut sent = false;
    let end = tokio::select! {
        biased;
        () = cancel => Ok(Ending::Cancelled),
        // While the reader holds a sender, the writer ends only when it fails.
        result = &mut writer => {
            sent = true;
            Err(result.err().unwrap_or(ConnectionLoss::Closed))
        }
        end = reader.requests(&mut tasks) => end,
    };
    loop {
        tokio::select! {
            biased;
            ended = tasks.join_next() => match ended {
                Some(ended) => pass_on(ended),
                None => break,
            },
            // A client that is gone cannot be answered; how its time ended is known already.
            _ = &mut writer, if !sent => sent = true,
        }
    }
    if end.is_ok() && !sent && tokio::time::timeout(FAREWELL, writer).await.is_err() {
        tracing::warn!(export = export.name, "the NBD client left its last replies unread");
    }
    end
}

/// Ends with the panic of a handler: it is a bug, and its request would never be answered.
fn pass_on(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

/// Sends replies until there can be none any more.
async fn send<W>(mut socket: W, mut queue: mpsc::Receiver<Reply>) -> Result<(), ConnectionLoss>
where
    W: AsyncWrite + Unpin,
{
    let mut heads = Vec::new();
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, MAX_IN_FLIGHT).await > 0 {
        // Replies without data leave together, in as few system calls as the socket allows.
        for reply in &batch {
            heads.extend_from_slice(&reply.head);
            if !reply.data.is_empty() {
                write_both(&mut socket, &heads, &reply.data).await?;
                heads.clear();
            }
        }
        socket.write_all(&heads).await?;
        socket.flush().await?;
        heads.clear();
        batch.clear();
    }
    socket.shutdown().await?;
    Ok(())
}

/// What every request's task needs.
struct Tail<H> {
    export: String,
    structured: bool,
    handler: Arc<H>,
    replies: mpsc::Sender<Reply>,
}

struct Reader<'a, S, H> {
    socket: BufReader<ReadHalf<S>>,
    export: &'a Export,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    tail: Arc<Tail<H>>,
}

impl<S, H> Reader<'_, S, H>
where
    S: AsyncRead,
    H: Handler,
{
    /// Takes requests until the client says goodbye. Dropping the future loses at most a request that was not begun.
    async fn requests(mut self, tasks: &mut JoinSet<()>) -> Result<Ending, ConnectionLoss> {
        let rules = self.export.rules();
        loop {
            let mut head = [0; REQUEST_LENGTH];
            self.socket.read_exact(&mut head).await?;
            let incoming = Incoming::decode(&head)?;
            let payload = incoming.payload(rules.sizes.maximum)?;
            let job = incoming.check(&rules);
            let memory = match job {
                Ok(Job::Disconnect) => return Ok(Ending::Disconnected),
                // A sound read is below the maximum.
                Ok(Job::Read(_)) => incoming.length,
                _ => payload,
            };
            let share = self.share(memory).await?;
            let data = self.payload(payload).await?;
            while let Some(ended) = tasks.try_join_next() {
                pass_on(ended);
            }
            let work = Arc::clone(&self.tail).answer(incoming, job, data, share);
            tasks.spawn(work.in_current_span());
        }
    }

    async fn share(&self, bytes: u32) -> Result<Share, ConnectionLoss> {
        // Neither semaphore is ever closed.
        let closed = |_closed| ConnectionLoss::Closed;
        Ok(Share {
            _slot: Arc::clone(&self.slots).acquire_owned().await.map_err(closed)?,
            _bytes: Arc::clone(&self.bytes).acquire_many_owned(bytes).await.map_err(closed)?,
        })
    }

    /// Reads a payload. Its length is capped, and its share is held.
    async fn payload(&mut self, length: u32) -> Result<Bytes, ConnectionLoss> {
        let length = length as usize;
        let mut data = BytesMut::with_capacity(length);
        let mut rest = (&mut self.socket).take(length as u64);
        while data.len() < length {
            if rest.read_buf(&mut data).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(data.freeze())
    }
}

impl<H: Handler> Tail<H> {
    /// Does one request and queues its reply.
    async fn answer(
        self: Arc<Self>,
        incoming: Incoming,
        job: Result<Job, ErrorCode>,
        data: Bytes,
        share: Share,
    ) {
        let cookie = incoming.cookie;
        let (head, data) = match job {
            Err(code) => {
                tracing::warn!(export = self.export, request = ?incoming, %code, "refused an NBD request");
                (
                    self.failure(cookie, code, "the request is not one that this export can serve"),
                    Bytes::new(),
                )
            }
            Ok(job) => match self.run(job, data).await {
                Ok(data) => (self.success(&incoming, &data), data),
                Err(error) => {
                    let code = ErrorCode::of(error.kind());
                    let cause = &error as &(dyn std::error::Error + 'static);
                    tracing::warn!(export = self.export, ?job, %code, error = cause, "failed an NBD request");
                    (self.failure(cookie, code, &error.to_string()), Bytes::new())
                }
            },
        };
        // Nobody receives when the client is gone: then the reply has no one to go to.
        drop(self.replies.send(Reply { head, data, _share: share }).await);
    }

    async fn run(&self, job: Job, data: Bytes) -> Result<Bytes, VolumeError> {
        let handler = &self.handler;
        match job {
            Job::Read(range) => {
                let bytes = handler.read(range).await?;
                if bytes.len() as u64 == range.len() { Ok(bytes) } else { Err(self.wrong_length(range)) }
            }
            Job::Write { range, fua } => {
                handler.write(ByteOffset(range.start), data, fua).await.map(|()| Bytes::new())
            }
            Job::Zero { range, how } => handler.zero(range, how).await.map(|()| Bytes::new()),
            Job::Flush => handler.flush().await.map(|()| Bytes::new()),
            // The reader ends with it instead.
            Job::Disconnect => Ok(Bytes::new()),
        }
    }

    fn wrong_length(&self, range: ByteRange) -> VolumeError {
        VolumeError::new(Kind::Protocol, Op::Read, self.export.clone()).at(range)
    }

    fn success(&self, incoming: &Incoming, data: &Bytes) -> Vec<u8> {
        match u32::try_from(data.len()) {
            Ok(length) if self.structured && incoming.command == Some(Command::Read) => {
                requests::encode_data_head(incoming.cookie, incoming.offset, length)
            }
            _ => requests::encode_simple(incoming.cookie, None).to_vec(),
        }
    }

    fn failure(&self, cookie: u64, code: ErrorCode, message: &str) -> Vec<u8> {
        if self.structured {
            requests::encode_error(cookie, code, message)
        } else {
            requests::encode_simple(cookie, Some(code)).to_vec()
        }
    }
}
