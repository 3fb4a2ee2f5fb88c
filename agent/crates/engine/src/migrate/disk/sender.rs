//! The source's end of a disk: takes QEMU's writes, gives each the destination's answer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reduce::{Outcome, PayHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

use super::frame::{ANSWER, Answer, FLAG_FUA, FLAG_MAY_TRIM, Operation, Request};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::migrate::leaves::LiveLeaves;

/// Requests that wait for the channel. QEMU's mirror keeps 16 in flight.
const QUEUE: usize = 32;
/// zstd's level: the guest's writes must not wait for a better ratio.
const LEVEL: i32 = 1;
/// Number of the request that ends a mirror; the others count from 1.
const END: u64 = 0;
/// What a request fails with when the channel is gone (`EIO`).
const EIO: u32 = 5;

/// Bytes that passed.
#[derive(Debug, Default)]
pub struct DiskCounters {
    /// Bytes that QEMU wrote or zeroed.
    pub plain: AtomicU64,
    /// Of these, bytes of zeros.
    pub zero: AtomicU64,
    /// Bytes on the channel, heads included.
    pub wire: AtomicU64,
}

struct Outgoing {
    head: Request,
    payload: Bytes,
}

type Waiting = HashMap<u64, oneshot::Sender<u32>>;

/// The target of a mirror: hands requests to the channel and waits for their answers.
pub struct MirrorTarget {
    queue: async_channel::Sender<Outgoing>,
    waiting: Arc<Mutex<Option<Waiting>>>,
    next: AtomicU64,
    leaves: Arc<LiveLeaves>,
    cpu: Cpu,
    hint: Mutex<PayHint>,
    /// Something was answered since the last flush.
    unflushed: AtomicBool,
    counters: Arc<DiskCounters>,
}

impl std::fmt::Debug for MirrorTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MirrorTarget({} queued)", self.queue.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one write became on a CPU thread.
struct Reduced {
    ids: Vec<volume::ChunkId>,
    zero: bool,
    /// The frame, when it pays.
    frame: Option<Vec<u8>>,
    tried: bool,
}

impl MirrorTarget {
    /// Starts a disk's end on a channel. The future that comes with it carries the bytes: it ends when the channel
    /// does, and then every request that waits fails.
    pub fn start<R, W>(
        read: R,
        write: W,
        leaves: Arc<LiveLeaves>,
        cpu: Cpu,
    ) -> (Arc<Self>, impl Future<Output = Result<(), EngineError>> + Send)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (queue, outgoing) = async_channel::bounded(QUEUE);
        let counters = Arc::new(DiskCounters::default());
        let waiting = Arc::new(Mutex::new(Some(Waiting::new())));
        let target = Arc::new(Self {
            queue,
            waiting: Arc::clone(&waiting),
            next: AtomicU64::new(1),
            leaves,
            cpu,
            hint: Mutex::default(),
            unflushed: AtomicBool::new(true),
            counters: Arc::clone(&counters),
        });
        let work = async move {
            let result = tokio::select! {
                result = carry(write, outgoing, &counters) => result,
                result = answers(read, &waiting) => result,
            };
            // Dropping the senders fails everyone who waits; from now on nobody may.
            drop(lock(&waiting).take());
            result.map_err(|error| {
                EngineError::sidecar("carry the writes of", "a disk's channel".as_ref(), error)
            })
        };
        (target, work)
    }

    /// What passed so far.
    #[must_use]
    pub fn counters(&self) -> &DiskCounters {
        &self.counters
    }

    /// The table of what was written.
    #[must_use]
    pub fn leaves(&self) -> &Arc<LiveLeaves> {
        &self.leaves
    }

    /// Writes; the answer is the destination's errno, 0 for success.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> u32 {
        let len = data.len() as u64;
        self.counters.plain.fetch_add(len, Ordering::Relaxed);
        let try_it = lock(&self.hint).worth_trying(&[&data]);
        let leaves = Arc::clone(&self.leaves);
        let plain = data.clone();
        let reduced =
            self.cpu.run(move |scratch| reduce_write(&leaves, scratch, offset, &plain, try_it)).await;
        let reduced = match reduced {
            Ok(reduced) => reduced,
            Err(error) => {
                tracing::error!(error = %error.chain(), "a write of the mirror cannot be reduced");
                return EIO;
            }
        };
        if reduced.tried {
            lock(&self.hint).record(reduced.frame.is_some());
        }
        let flags = if fua { FLAG_FUA } else { 0 };
        let noted = if reduced.zero {
            self.leaves.note_zero(offset, len)
        } else {
            self.leaves.note(offset, len, &reduced.ids)
        };
        if let Err(error) = noted {
            tracing::error!(error = %error.chain(), "the leaf table cannot be kept");
            return EIO;
        }
        if reduced.zero {
            self.counters.zero.fetch_add(len, Ordering::Relaxed);
            return self.request(Operation::Zero, flags | FLAG_MAY_TRIM, offset, len, Bytes::new()).await;
        }
        let (compressed, payload) = match reduced.frame {
            Some(frame) => (true, Bytes::from(frame)),
            None => (false, data),
        };
        self.request(Operation::Write { compressed }, flags, offset, len, payload).await
    }

    /// Makes a range zero; the answer is the destination's errno.
    pub async fn zero(&self, offset: u64, len: u64, fua: bool, may_trim: bool) -> u32 {
        self.counters.plain.fetch_add(len, Ordering::Relaxed);
        self.counters.zero.fetch_add(len, Ordering::Relaxed);
        if let Err(error) = self.leaves.note_zero(offset, len) {
            tracing::error!(error = %error.chain(), "the leaf table cannot be kept");
            return EIO;
        }
        let flags = if fua { FLAG_FUA } else { 0 } | if may_trim { FLAG_MAY_TRIM } else { 0 };
        self.request(Operation::Zero, flags, offset, len, Bytes::new()).await
    }

    /// Makes durable what was answered before; the answer is the destination's errno.
    ///
    /// When nothing was answered since the last flush there is nothing to do, and no round trip.
    pub async fn flush(&self) -> u32 {
        if !self.unflushed.swap(false, Ordering::AcqRel) {
            return 0;
        }
        let errno = self.request(Operation::Flush, 0, 0, 0, Bytes::new()).await;
        if errno != 0 {
            self.unflushed.store(true, Ordering::Release);
        }
        errno
    }

    /// Says that the mirror is over: the destination lets go of its export. Does not wait for it.
    pub async fn end(&self) {
        let head =
            Request { operation: Operation::End, flags: 0, wire_len: 0, number: END, offset: 0, len: 0 };
        if self.queue.send(Outgoing { head, payload: Bytes::new() }).await.is_err() {
            tracing::debug!("a disk's channel ended before its mirror");
        }
    }

    async fn request(&self, operation: Operation, flags: u16, offset: u64, len: u64, payload: Bytes) -> u32 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => drop(waiting.insert(number, answer)),
            None => return EIO,
        }
        let wire_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let head = Request { operation, flags, wire_len, number, offset, len };
        if self.queue.send(Outgoing { head, payload }).await.is_err() {
            return EIO;
        }
        let errno = answered.await.unwrap_or(EIO);
        if operation != Operation::Flush {
            self.unflushed.store(true, Ordering::Release);
        }
        errno
    }
}

fn reduce_write(
    leaves: &LiveLeaves,
    scratch: &mut crate::cpu::Scratch,
    offset: u64,
    plain: &[u8],
    try_it: bool,
) -> Result<Reduced, EngineError> {
    if reduce::is_zero(plain) {
        return Ok(Reduced { ids: Vec::new(), zero: true, frame: None, tried: false });
    }
    let ids = leaves.ids_of(offset, plain);
    if !try_it {
        return Ok(Reduced { ids, zero: false, frame: None, tried: false });
    }
    scratch.frame.resize(plain.len(), 0);
    let frame = match scratch.compressor.compress(LEVEL, &[plain], &mut scratch.frame)? {
        Outcome::Compressed(len) => Some(scratch.frame[..len].to_vec()),
        Outcome::DoesNotPay => None,
    };
    Ok(Reduced { ids, zero: false, frame, tried: true })
}

async fn carry<W: AsyncWrite + Unpin>(
    mut write: W,
    outgoing: async_channel::Receiver<Outgoing>,
    counters: &DiskCounters,
) -> io::Result<()> {
    while let Ok(Outgoing { head, payload }) = outgoing.recv().await {
        write.write_all(&head.encode()).await?;
        write.write_all(&payload).await?;
        counters.wire.fetch_add((super::frame::REQUEST + payload.len()) as u64, Ordering::Relaxed);
        if outgoing.is_empty() {
            write.flush().await?;
        }
    }
    write.shutdown().await
}

async fn answers<R: AsyncRead + Unpin>(mut read: R, waiting: &Mutex<Option<Waiting>>) -> io::Result<()> {
    let mut bytes = [0; ANSWER];
    loop {
        match read.read_exact(&mut bytes).await {
            Ok(_) => {}
            // The destination ends the channel after the answer to `End`; whoever waits then is failed by the caller.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let answer = Answer::decode(&bytes)?;
        if answer.number == END {
            continue;
        }
        let sender = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&answer.number));
        match sender {
            // Fails when QEMU hung up meanwhile: then nobody waits.
            Some(sender) => drop(sender.send(answer.errno)),
            None => {
                let what = "the destination answered a request that nobody made";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
    }
}
