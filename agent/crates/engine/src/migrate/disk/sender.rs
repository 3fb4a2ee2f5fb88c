//! The source's end of a disk: takes QEMU's writes, gives each the destination's answer.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reduce::{Outcome, PayHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use super::frame::{ANSWER, Answer, FLAG_FUA, FLAG_MAY_TRIM, Operation, REQUEST, Request as RequestHead};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::migrate::contact::{Broken, Channels, given_up};
use crate::migrate::leaves::LiveLeaves;

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

/// A request until it is answered: a channel after a broken one carries it again. The destination works on one channel
/// of a disk at a time, so that a write that it has done is only done again before any later one.
struct Request {
    head: RequestHead,
    payload: Bytes,
    answer: oneshot::Sender<u32>,
}

#[derive(Default)]
struct Requests {
    /// By number.
    waiting: BTreeMap<u64, Request>,
    /// The mirror is over.
    ended: bool,
    /// There will be no channel: nobody may wait.
    given_up: bool,
}

/// The target of a mirror: hands requests to the channel and waits for their answers.
pub struct MirrorTarget {
    requests: Arc<Mutex<Requests>>,
    /// There is something to send.
    more: Arc<Notify>,
    next: AtomicU64,
    leaves: Arc<LiveLeaves>,
    cpu: Cpu,
    hint: Mutex<PayHint>,
    /// Something was answered since the last flush.
    unflushed: AtomicBool,
    /// The largest errno that the destination answered with.
    refused: AtomicU32,
    counters: Arc<DiskCounters>,
}

impl std::fmt::Debug for MirrorTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MirrorTarget({} waiting)", lock(&self.requests).waiting.len())
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
    /// Starts a disk's end. The future that comes with it carries the bytes, over one channel after the other: it ends
    /// with the mirror, or when there will be no other channel, and then every request that waits fails.
    pub fn start<C: Channels>(
        mut channels: C,
        leaves: Arc<LiveLeaves>,
        cpu: Cpu,
    ) -> (Arc<Self>, impl Future<Output = Result<(), EngineError>> + Send) {
        let target = Arc::new(Self {
            requests: Arc::default(),
            more: Arc::default(),
            next: AtomicU64::new(1),
            leaves,
            cpu,
            hint: Mutex::default(),
            unflushed: AtomicBool::new(true),
            refused: AtomicU32::new(0),
            counters: Arc::default(),
        });
        let carrier = Carrier {
            requests: Arc::clone(&target.requests),
            more: Arc::clone(&target.more),
            counters: Arc::clone(&target.counters),
        };
        let work = async move {
            let mut broken = None;
            let result = loop {
                let Some((_epoch, read, write)) = channels.next(broken.as_ref()).await else {
                    break Err(given_up(broken));
                };
                match carrier.travel(read, write).await {
                    Ok(()) => break Ok(()),
                    Err(Broken::Channel(error)) => broken = Some(error),
                    Err(Broken::Path(error)) => break Err(error),
                }
            };
            carrier.give_up();
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

    /// The errno that the destination refused a request with.
    #[must_use]
    pub fn refusal(&self) -> Option<u32> {
        Some(self.refused.load(Ordering::Relaxed)).filter(|errno| *errno != 0)
    }

    /// Says that the mirror is over: the destination lets go of its export. Does not wait for it.
    pub fn end(&self) {
        lock(&self.requests).ended = true;
        self.more.notify_one();
    }

    /// Fails every request that waits, and those to come: the migration is being undone.
    pub fn give_up(&self) {
        lock(&self.requests).give_up();
    }

    async fn request(&self, operation: Operation, flags: u16, offset: u64, len: u64, payload: Bytes) -> u32 {
        let wire_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let (answer, answered) = oneshot::channel();
        {
            // Numbered under the lock: a carrier must not pass a number by that comes later.
            let mut requests = lock(&self.requests);
            if requests.given_up {
                return EIO;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let head = RequestHead { operation, flags, wire_len, number, offset, len };
            requests.waiting.insert(number, Request { head, payload, answer });
        }
        self.more.notify_one();
        let answer = answered.await;
        if let Ok(errno) = answer {
            // EIO, which may be a consequence, is small.
            self.refused.fetch_max(errno, Ordering::Relaxed);
        }
        let errno = answer.unwrap_or(EIO);
        if operation != Operation::Flush {
            self.unflushed.store(true, Ordering::Release);
        }
        errno
    }
}

impl Requests {
    /// Dropping the senders fails everyone who waits; from now on nobody may.
    fn give_up(&mut self) {
        self.given_up = true;
        self.waiting.clear();
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

/// What carries the requests.
struct Carrier {
    requests: Arc<Mutex<Requests>>,
    more: Arc<Notify>,
    counters: Arc<DiskCounters>,
}

impl Carrier {
    fn give_up(&self) {
        lock(&self.requests).give_up();
    }

    /// Uses one channel until the mirror's end is answered.
    async fn travel<R, W>(&self, read: R, write: W) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        tokio::try_join!(self.carry(write), self.answers(read))?;
        Ok(())
    }

    async fn carry<W: AsyncWrite + Unpin>(&self, mut write: W) -> Result<(), Broken> {
        let mut number = 0;
        loop {
            let (next, ended) = {
                let requests = lock(&self.requests);
                let next = requests.waiting.range(number + 1..).next();
                (next.map(|(_, request)| (request.head, request.payload.clone())), requests.ended)
            };
            match next {
                Some((head, payload)) => {
                    number = head.number;
                    write.write_all(&head.encode()).await.map_err(Broken::Channel)?;
                    write.write_all(&payload).await.map_err(Broken::Channel)?;
                    self.counters.wire.fetch_add((REQUEST + payload.len()) as u64, Ordering::Relaxed);
                }
                None if ended => {
                    let (operation, number) = (Operation::End, END);
                    let head = RequestHead { operation, flags: 0, wire_len: 0, number, offset: 0, len: 0 };
                    write.write_all(&head.encode()).await.map_err(Broken::Channel)?;
                    return write.shutdown().await.map_err(Broken::Channel);
                }
                None => {
                    write.flush().await.map_err(Broken::Channel)?;
                    self.more.notified().await;
                }
            }
        }
    }

    async fn answers<R: AsyncRead + Unpin>(&self, mut read: R) -> Result<(), Broken> {
        let mut bytes = [0; ANSWER];
        loop {
            read.read_exact(&mut bytes).await.map_err(Broken::Channel)?;
            let answer = Answer::decode(&bytes)?;
            let mut requests = lock(&self.requests);
            if answer.number == END && requests.ended {
                return Ok(());
            }
            match requests.waiting.remove(&answer.number) {
                // Fails when QEMU hung up meanwhile: then nobody waits.
                Some(request) => drop(request.answer.send(answer.errno)),
                None if requests.given_up => {}
                None => {
                    let what = "the destination answered a request that nobody made";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
                }
            }
        }
    }
}
