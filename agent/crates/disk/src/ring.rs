//! The io_uring backend: one thread that runs a tokio-uring runtime.
//!
//! Requests arrive through a bounded channel; each becomes a task of the ring's own runtime, at most [`DEPTH`] at a
//! time. A task owns its buffer until the kernel has answered, so that a caller who goes away changes nothing. A task
//! that panics drops its reply, which its caller sees as an error.
//!
//! Things about tokio-uring 0.5 that this module is built around:
//! - a submission that fails inside its run loop is dropped silently (`let _ = flush()` before parking): while
//!   anything is in flight, the loop wakes every [`NUDGE`] and so submits again;
//! - dropping the runtime with operations in flight frees their memory before the kernel is done: the loop drains
//!   before it ends, and [`transfer`] leaks rather than frees a buffer whose task vanished;
//! - `FixedBuf` is not `Send` and tied to the ring thread: it is checked out for the duration of one operation only,
//!   while the pool's own handle for that slot waits beside it.

#[cfg(test)]
mod tests;
mod transfer;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::fs::File;

use crate::pool::Pool;
use crate::request::{Access, Register, Request};
use transfer::RegisteredSlot;

/// Operations in the kernel at once. 16 of 256 KiB saturate the disks measured so far; four sessions make 64.
const DEPTH: u32 = 64;
/// Submission entries: twice the depth, so that the queue never fills (a full queue is where tokio-uring panics).
const ENTRIES: u32 = 2 * DEPTH;
/// Requests that wait for the ring before callers do.
const QUEUE: usize = 64;
/// How often a ring with operations in flight makes sure that they were submitted.
const NUDGE: Duration = Duration::from_millis(100);
/// How long a new ring may take for its first no-op before it counts as blocked.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The running ring thread.
pub(crate) struct Ring {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) thread: JoinHandle<()>,
}

impl Ring {
    /// Starts the thread and waits until its ring has answered a no-op.
    pub(crate) fn start(pool: &Pool, registered: bool, register: &Arc<Register>) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (report, started) = sync_channel(1);
        let (pool, register) = (pool.clone(), Arc::clone(register));
        let thread = std::thread::Builder::new().name("novaferry-ring".into()).spawn(move || {
            let runtime = match build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(error))),
            };
            if let Err(error) = runtime.block_on(first_answer()) {
                // Its drop would insist on submitting the no-op that the kernel refuses.
                std::mem::forget(runtime);
                return drop(report.send(Err(error)));
            }
            if report.send(Ok(())).is_ok() {
                runtime.block_on(Engine::new(pool, registered, register).run(inbox));
            }
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { requests, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the ring thread ended while it started")),
        }
    }
}

/// Builds the runtime, with the cheaper completion mode where the kernel (5.19) knows it.
fn build() -> io::Result<tokio_uring::Runtime> {
    let mut rings = tokio_uring::uring_builder();
    rings.setup_coop_taskrun();
    // Tried without tokio-uring first: its runtime leaks a little when the ring cannot be made.
    if rings.build(ENTRIES).is_err() {
        rings = tokio_uring::uring_builder();
        rings.build(ENTRIES)?;
    }
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES).uring_builder(&rings);
    tokio_uring::Runtime::new(&builder)
}

async fn first_answer() -> io::Result<()> {
    match tokio::time::timeout(FIRST_ANSWER, tokio_uring::no_op()).await {
        Ok(result) => result,
        Err(_elapsed) => Err(io::Error::other("io_uring can be set up but does not answer")),
    }
}

/// State of the ring thread.
struct Engine {
    pool: Pool,
    register: Arc<Register>,
    fixed: Option<Rc<Fixed>>,
    /// How many buffers to register when there is work: fewer after the system refused more.
    most: usize,
}

/// The registered part of the pool: its slots `0..count`.
pub(crate) struct Fixed {
    registry: FixedBufRegistry<RegisteredSlot>,
    count: usize,
    pool: Pool,
}

impl Engine {
    fn new(pool: Pool, registered: bool, register: Arc<Register>) -> Self {
        Self { most: if registered { pool.capacity() } else { 0 }, pool, register, fixed: None }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let depth = Arc::new(tokio::sync::Semaphore::new(DEPTH as usize));
        let register = Arc::clone(&self.register);
        loop {
            let in_flight = depth.available_permits() < DEPTH as usize;
            tokio::select! {
                biased;
                () = register.idle.notified() => self.idle(),
                request = next(&mut inbox, &depth) => {
                    let Some((request, permit)) = request else { break };
                    if self.fixed.is_none() && self.most > 0 {
                        self.register_buffers();
                    }
                    let fixed = self.fixed.clone();
                    tokio_uring::spawn(async move {
                        perform(request, fixed.as_deref()).await;
                        drop(permit);
                    });
                }
                () = tokio::time::sleep(NUDGE), if in_flight => {}
            }
        }
        // Nothing may be in the kernel when the runtime goes.
        while depth.available_permits() < DEPTH as usize {
            let all = depth.acquire_many(DEPTH);
            if let Ok(permit) = tokio::time::timeout(NUDGE, all).await {
                drop(permit);
            }
        }
        self.unregister();
    }

    /// No volume is open: gives the pinned memory back. A lane lives as long as any of its operations.
    fn idle(&mut self) {
        if self.register.is_idle() {
            self.unregister();
        }
        // Never under a registration: the kernel would go on using the pages that the slots no longer map.
        if self.register.is_idle() && self.fixed.is_none() {
            self.pool.trim();
        }
    }

    /// Registers as much of the pool as the limit on locked memory allows. Registering pins the pages, which is why
    /// it waits for the first operation.
    fn register_buffers(&mut self) {
        let mut failure = None;
        while self.most > 0 {
            let slots =
                (0..self.most).map(|index| RegisteredSlot::new(Arc::clone(self.pool.shared()), index));
            let registry = FixedBufRegistry::new(slots);
            match registry.register() {
                Ok(()) => {
                    let fixed = Fixed { registry, count: self.most, pool: self.pool.clone() };
                    self.fixed = Some(Rc::new(fixed));
                    self.register.registered.store(self.most, Ordering::Relaxed);
                    break;
                }
                Err(error) => failure = Some(error),
            }
            self.most /= 2;
        }
        // Once: later attempts ask for no more than what worked.
        if let Some(error) = failure {
            tracing::warn!(
                %error, registered = self.most, buffers = self.pool.capacity(),
                "not all I/O buffers could be registered with io_uring, which costs some CPU; raise LimitMEMLOCK \
                 (RLIMIT_MEMLOCK) of this process"
            );
        }
    }

    fn unregister(&mut self) {
        let Some(fixed) = self.fixed.take() else { return };
        match fixed.registry.unregister() {
            Ok(()) => self.register.registered.store(0, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "idle buffers stay registered with io_uring");
                self.fixed = Some(fixed);
            }
        }
    }
}

/// The next request, taken only when it can start.
async fn next(
    inbox: &mut mpsc::Receiver<Request>,
    depth: &Arc<tokio::sync::Semaphore>,
) -> Option<(Request, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(depth).acquire_owned().await.ok()?;
    Some((inbox.recv().await?, permit))
}

async fn perform(request: Request, fixed: Option<&Fixed>) {
    // A duplicate for this operation only (a microsecond), because tokio-uring closes what it is given: so the file is
    // closed the moment its volume is dropped, and does not look open for writing to the next who asks.
    let file = match request.file().try_clone() {
        Ok(file) => File::from_std(file),
        Err(error) => return request.answer(Err(error)),
    };
    match request {
        Request::Flush(flush) => {
            let result = loop {
                match file.sync_data().await {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            };
            drop(file);
            flush.answer(result);
        }
        Request::Transfer(mut request) => {
            let (buffer, span, at) = (request.buffer, request.span.clone(), request.at);
            let result;
            (result, request.buffer) = match request.access {
                Access::Read => transfer::read(&file, fixed, buffer, span, at).await,
                Access::Write => transfer::write(&file, fixed, buffer, span, at).await,
            };
            drop(file);
            request.answer(result);
        }
    }
}
