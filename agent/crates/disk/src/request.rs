//! What travels to the ring thread or the workers: an operation that owns everything it needs until it is answered.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, oneshot};
use volume::Buffer;

/// Largest single operation given to the kernel.
pub(crate) const MAX_OPERATION: usize = crate::pool::BUFFER_SIZE;

/// Direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Held while an operation runs, so that buffered writes never overlap direct ones in time; see `file`.
#[derive(Debug)]
pub(crate) enum Guard {
    Shared { _held: OwnedRwLockReadGuard<()> },
    Exclusive { _held: OwnedRwLockWriteGuard<()> },
}

/// Reads or writes `span` of `buffer` at `at`, whole.
pub(crate) struct Transfer {
    pub(crate) access: Access,
    pub(crate) lane: Arc<Lane>,
    pub(crate) at: u64,
    pub(crate) buffer: Buffer,
    pub(crate) span: Range<usize>,
    pub(crate) guard: Option<Guard>,
    pub(crate) reply: oneshot::Sender<(io::Result<()>, Buffer)>,
}

impl Transfer {
    /// Answers. When nobody waits any more the buffer goes back to its pool here: after the kernel is done with it.
    /// Lets go of the descriptor and the guard first, so that whoever gets the answer finds both free.
    pub(crate) fn answer(self, result: io::Result<()>) {
        let Self { lane, guard, buffer, reply, .. } = self;
        drop((lane, guard));
        drop(reply.send((result, buffer)));
    }
}

/// Makes what the descriptor's inode holds durable.
pub(crate) struct Flush {
    lane: Option<Arc<Lane>>,
    poison: Arc<AtomicBool>,
    reply: Option<oneshot::Sender<io::Result<()>>>,
}

impl Flush {
    pub(crate) fn new(
        lane: Arc<Lane>,
        poison: Arc<AtomicBool>,
        reply: oneshot::Sender<io::Result<()>>,
    ) -> Self {
        Self { lane: Some(lane), poison, reply: Some(reply) }
    }

    /// Answers. Poisons here and not in the caller's future: the kernel reports a lost write once, and that future
    /// may have been dropped.
    pub(crate) fn answer(mut self, result: io::Result<()>) {
        if result.is_err() {
            self.poison.store(true, Ordering::SeqCst);
        }
        self.lane = None;
        drop(self.reply.take().map(|reply| reply.send(result)));
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // Never answered: nobody knows what it did.
        if self.reply.is_some() {
            self.poison.store(true, Ordering::SeqCst);
        }
    }
}

/// One operation.
pub(crate) enum Request {
    Transfer(Transfer),
    Flush(Flush),
}

impl Request {
    /// The descriptor it works on.
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Transfer(transfer) => transfer.lane.file(),
            Self::Flush(flush) => flush.lane.as_ref().expect("an unanswered flush has its lane").file(),
        }
    }

    pub(crate) fn answer(self, result: io::Result<()>) {
        match self {
            Self::Transfer(transfer) => transfer.answer(result),
            Self::Flush(flush) => flush.answer(result),
        }
    }
}

/// One open file description that operations go through: the direct or the buffered one of a volume.
pub(crate) struct Lane {
    file: File,
    register: Arc<Register>,
}

impl Lane {
    pub(crate) fn new(file: File, register: Arc<Register>) -> Arc<Self> {
        register.live.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self { file, register })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.register.live.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.register.idle.notify_one();
            if let Some(on_idle) = &self.register.on_idle {
                on_idle();
            }
        }
    }
}

/// How many lanes exist: when none is left the pool's memory can be unpinned and given back.
#[derive(Default)]
pub(crate) struct Register {
    live: AtomicUsize,
    /// Buffers that are registered with io_uring now.
    pub(crate) registered: AtomicUsize,
    /// Told when the last lane is gone.
    pub(crate) idle: Notify,
    /// Run when the last lane is gone, for a backend that has no thread of its own to do it.
    on_idle: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Register {
    /// A register that runs `on_idle` whenever the last lane is gone.
    pub(crate) fn with_idle(on_idle: impl Fn() + Send + Sync + 'static) -> Self {
        Self { on_idle: Some(Box::new(on_idle)), ..Self::default() }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.live.load(Ordering::SeqCst) == 0
    }
}

/// How far a transfer got.
pub(crate) struct Progress {
    span: Range<usize>,
    at: u64,
}

impl Progress {
    pub(crate) fn new(span: Range<usize>, at: u64) -> Self {
        Self { span, at }
    }

    /// The next piece of the buffer and where it goes.
    pub(crate) fn next(&self) -> Option<(Range<usize>, u64)> {
        let end = self.span.end.min(self.span.start + MAX_OPERATION);
        (self.span.start < end).then_some((self.span.start..end, self.at))
    }

    /// Takes the result of one piece; `nothing` is what a result of 0 bytes means.
    pub(crate) fn advance(&mut self, result: io::Result<usize>, nothing: io::ErrorKind) -> io::Result<()> {
        match result {
            Ok(0) => Err(nothing.into()),
            Ok(count) => {
                self.span.start += count;
                self.at += count as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
