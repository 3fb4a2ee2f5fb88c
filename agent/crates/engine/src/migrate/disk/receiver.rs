//! The destination's end of a disk: writes into QEMU's NBD export and answers.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::nbd::Client;
use hypervisor::nbd::wire::CommandFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use volume::{Buffer, CHUNK};

use super::frame::{Answer, FLAG_FUA, FLAG_MAY_TRIM, MAX_WRITE, Operation, REQUEST, Request};
use crate::cpu::Cpu;
use crate::error::EngineError;
use crate::migrate::contact::{Broken, Channels, given_up};
use crate::migrate::leaves::LiveLeaves;

/// Requests that are worked on at once: as many as QEMU's mirror keeps in flight.
const IN_FLIGHT: usize = 16;
/// Answers that wait for the channel.
const ANSWERS: usize = 64;
/// Longest zeroing that is asked of the export at once: a request's length has 32 bits.
const MAX_ZERO: u64 = 1 << 30;
const EIO: u32 = 5;

/// Chunks that a request works on: overlapping requests follow each other in the order in which they came.
#[derive(Debug, Default)]
struct Locks {
    busy: Mutex<BTreeSet<u64>>,
    freed: Notify,
}

struct Held {
    locks: Arc<Locks>,
    first: u64,
    past: u64,
}

impl Locks {
    async fn take(self: &Arc<Self>, offset: u64, len: u64) -> Held {
        let (first, past) = (offset / CHUNK, offset.saturating_add(len).div_ceil(CHUNK));
        loop {
            let freed = self.freed.notified();
            {
                let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
                if busy.range(first..past).next().is_none() {
                    busy.extend(first..past);
                    return Held { locks: Arc::clone(self), first, past };
                }
            }
            freed.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut busy = self.locks.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in self.first..self.past {
            busy.remove(&chunk);
        }
        drop(busy);
        self.locks.freed.notify_waiters();
    }
}

/// Serves a disk, over one channel after the other, until the source says that the mirror is over.
///
/// # Errors
/// When the source breaks the protocol, or no other channel comes. A write that fails is answered, not an error here.
pub async fn receive<C: Channels>(
    mut channels: C,
    export: Arc<Client>,
    leaves: Arc<LiveLeaves>,
    cpu: Cpu,
) -> Result<(), EngineError> {
    let mut broken = None;
    let result = loop {
        let Some((_epoch, mut read, write)) = channels.next(broken.as_ref()).await else {
            break Err(given_up(broken));
        };
        let (answers, to_send) = async_channel::bounded(ANSWERS);
        let sender = tokio::spawn(send_answers(write, to_send));
        // All of this channel's requests are over when this returns: the next channel's come after them.
        let result = requests(&mut read, &answers, &export, &leaves, &cpu).await;
        drop(answers);
        let sent = sender.await.map_err(io::Error::other).and_then(|sent| sent);
        match (result, sent) {
            (Ok(()), Ok(())) => break Ok(()),
            (Err(Broken::Path(error)), _) => break Err(error),
            (Err(Broken::Channel(error)), _) | (Ok(()), Err(error)) => broken = Some(error),
        }
    };
    result.map_err(|error| EngineError::sidecar("carry the writes of", "a disk's channel".as_ref(), error))
}

async fn send_answers<W: AsyncWrite + Unpin>(
    mut write: W,
    answers: async_channel::Receiver<Answer>,
) -> io::Result<()> {
    while let Ok(answer) = answers.recv().await {
        write.write_all(&answer.encode()).await?;
        if answers.is_empty() {
            write.flush().await?;
        }
    }
    write.shutdown().await
}

async fn requests<R: AsyncRead + Unpin>(
    read: &mut R,
    answers: &async_channel::Sender<Answer>,
    export: &Arc<Client>,
    leaves: &Arc<LiveLeaves>,
    cpu: &Cpu,
) -> Result<(), Broken> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let locks = Arc::new(Locks::default());
    let mut work = JoinSet::new();
    let mut head = [0; REQUEST];
    let result = loop {
        if let Err(error) = read.read_exact(&mut head).await {
            break Err(Broken::Channel(error));
        }
        let request = match Request::decode(&head, leaves.size().0) {
            Ok(request) => request,
            Err(error) => break Err(error.into()),
        };
        let mut payload = vec![0; request.wire_len as usize]; // at most MAX_WRITE, as decoded
        if let Err(error) = read.read_exact(&mut payload).await {
            break Err(Broken::Channel(error));
        }
        while work.try_join_next().is_some() {}
        let number = request.number;
        match request.operation {
            // What a flush covers was answered before it was asked: it need not wait for what runs.
            Operation::Flush => {
                let errno = match export.flush().await {
                    Ok(()) => 0,
                    Err(error) => errno(&error),
                };
                answer(answers, number, errno).await;
            }
            Operation::End => {
                while work.join_next().await.is_some() {}
                answer(answers, number, 0).await;
                break Ok(());
            }
            Operation::Write { .. } | Operation::Zero => {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    break Err(io::Error::from(io::ErrorKind::Other).into()); // the semaphore is never closed
                };
                let held = locks.take(request.offset, request.len).await;
                let (answers, export, leaves, cpu) =
                    (answers.clone(), Arc::clone(export), Arc::clone(leaves), cpu.clone());
                work.spawn(async move {
                    let errno = apply(request, payload, &export, &leaves, &cpu).await;
                    drop(held);
                    drop(place);
                    answer(&answers, number, errno).await;
                });
            }
        }
    };
    while work.join_next().await.is_some() {}
    result
}

async fn answer(answers: &async_channel::Sender<Answer>, number: u64, errno: u32) {
    if answers.send(Answer { number, errno }).await.is_err() {
        tracing::debug!(number, "an answer comes after the channel's end");
    }
}

async fn apply(
    request: Request,
    payload: Vec<u8>,
    export: &Client,
    leaves: &Arc<LiveLeaves>,
    cpu: &Cpu,
) -> u32 {
    let result = match request.operation {
        Operation::Zero => zero(request, export, leaves).await,
        _ => write(request, payload, export, leaves, cpu).await,
    };
    result.unwrap_or_else(|errno| errno)
}

async fn zero(request: Request, export: &Client, leaves: &LiveLeaves) -> Result<u32, u32> {
    let flags = if request.flags & FLAG_MAY_TRIM == 0 { CommandFlags::NO_HOLE } else { CommandFlags::NONE };
    let mut at = request.offset;
    let end = request.offset + request.len;
    while at < end {
        let part = (end - at).min(MAX_ZERO);
        let len = u32::try_from(part).unwrap_or(u32::MAX);
        export.write_zeroes(at, len, flags).await.map_err(|error| errno(&error))?;
        at += part;
    }
    if request.flags & FLAG_FUA != 0 {
        export.flush().await.map_err(|error| errno(&error))?;
    }
    leaves.note_zero(request.offset, request.len).map_err(|error| told(&error))?;
    Ok(0)
}

async fn write(
    request: Request,
    payload: Vec<u8>,
    export: &Client,
    leaves: &Arc<LiveLeaves>,
    cpu: &Cpu,
) -> Result<u32, u32> {
    let len = usize::try_from(request.len.min(MAX_WRITE)).unwrap_or(0);
    let table = Arc::clone(leaves);
    let restored = cpu.run(move |scratch| {
        let mut buffer = Buffer::heap(len);
        if request.operation == (Operation::Write { compressed: true }) {
            scratch.decompressor.decompress(&payload, &mut [&mut buffer[..]])?;
        } else {
            buffer.copy_from_slice(&payload);
        }
        let ids = table.ids_of(request.offset, &buffer);
        Ok::<_, reduce::ReduceError>((buffer, ids))
    });
    let (buffer, ids) = restored.await.map_err(|error| told(&error.into()))?;
    let fua = request.flags & FLAG_FUA != 0;
    let can_fua = export.flags().fua();
    let flags = if fua && can_fua { CommandFlags::FUA } else { CommandFlags::NONE };
    let (written, _buffer) = export.write(request.offset, buffer, flags).await;
    written.map_err(|error| errno(&error))?;
    if fua && !can_fua {
        export.flush().await.map_err(|error| errno(&error))?;
    }
    leaves.note(request.offset, request.len, &ids).map_err(|error| told(&error))?;
    Ok(0)
}

fn told(error: &EngineError) -> u32 {
    tracing::error!(error = %error.chain(), "a write of the mirror cannot be applied");
    EIO
}

/// What QEMU at the source is told. The reason stands in our log.
fn errno(error: &hypervisor::Error) -> u32 {
    let errno = match error {
        hypervisor::Error::Server { code, .. } => code.0,
        _ => EIO,
    };
    tracing::warn!(%error, errno, "the destination's export refused a request of the mirror");
    errno
}
