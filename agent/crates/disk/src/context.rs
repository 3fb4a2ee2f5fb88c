//! [`Disk`]: the buffer pool and the backend of a process.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use volume::{Buffer, BufferPool, Kind, Op, VolumeError};

use crate::pool::Pool;
use crate::request::{Flush, Lane, Register, Request, Transfer};
use crate::ring::Ring;
use crate::workers::{Job, Workers, perform};

/// Threads of the plain backend: enough to keep a disk busy at 256 KiB a call, few enough for two cores.
const PLAIN_THREADS: usize = 8;
/// Threads for `fallocate` and its like; two, so that a long hole punch does not hold up a question.
const HELPER_THREADS: usize = 2;
/// Jobs that wait for either before callers do.
const QUEUE: usize = 64;

/// Which backend moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring, or the plain one (with one warning) where io_uring is blocked.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// `pread` and `pwrite` on threads.
    Plain,
}

/// How to set up a [`Disk`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Which backend.
    pub backend: Backend,
    /// Buffers of [`crate::BUFFER_SIZE`] in the pool that all volumes share.
    pub buffers: usize,
    /// Whether to register the buffers with io_uring. Off only to measure or to test the other path.
    pub registered: bool,
}

impl Default for Options {
    /// 64 MiB of buffers: the session's share of its memory budget.
    fn default() -> Self {
        Self { backend: Backend::Auto, buffers: 256, registered: true }
    }
}

/// The pool and the backend. One a process; cloning gives another handle. Volumes keep it alive; its threads end when
/// the last handle and the last volume are gone.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    engine: Engine,
    helpers: async_channel::Sender<Job>,
    register: Arc<Register>,
    threads: Vec<JoinHandle<()>>,
}

enum Engine {
    Uring(mpsc::Sender<Request>),
    Plain(async_channel::Sender<Job>),
}

/// The threads that would have answered are gone.
#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk thread ended or gave up on the operation; restart the agent")
    }
}

impl std::error::Error for Stopped {}

fn stopped() -> io::Error {
    io::Error::other(Stopped)
}

impl Disk {
    /// Sets up pool and backend; starts the threads.
    ///
    /// # Errors
    /// As [`Pool::new`]; [`Kind::Unsupported`] when io_uring was demanded and cannot be had; [`Kind::Io`] when the
    /// system gives no more threads.
    pub fn start(options: &Options) -> Result<Self, VolumeError> {
        let pool = Pool::new(options.buffers)?;
        let thread_failure = |error| {
            VolumeError::io(Op::Open, "the disk threads", error)
                .advise("raise the limit on threads (TasksMax, RLIMIT_NPROC) of this process")
        };
        let register = Arc::new(Register::default());
        let ring = match options.backend {
            Backend::Plain => None,
            Backend::Uring | Backend::Auto => match Ring::start(&pool, options.registered, &register) {
                Ok(ring) => Some(ring),
                Err(error) if options.backend == Backend::Auto => {
                    tracing::warn!(
                        %error,
                        "io_uring is not available, so disks are read and written with plain calls, which is slower; \
                         allow io_uring (kernel.io_uring_disabled=0, seccomp profile) to change that"
                    );
                    None
                }
                Err(error) => {
                    return Err(VolumeError::new(Kind::Unsupported, Op::Open, "an io_uring")
                        .caused_by(error)
                        .advise("allow io_uring (kernel.io_uring_disabled=0, seccomp profile) or let the backend be chosen"));
                }
            },
        };
        let helpers = Workers::start("novaferry-file", HELPER_THREADS, QUEUE).map_err(thread_failure)?;
        let mut threads = helpers.threads;
        let (engine, register) = match ring {
            Some(ring) => {
                threads.push(ring.thread);
                (Engine::Uring(ring.requests), register)
            }
            None => {
                let workers =
                    Workers::start("novaferry-disk", PLAIN_THREADS, QUEUE).map_err(thread_failure)?;
                threads.extend(workers.threads);
                let idle = pool.clone();
                (Engine::Plain(workers.jobs), Arc::new(Register::with_idle(move || idle.trim())))
            }
        };
        Ok(Self { shared: Arc::new(Shared { pool, engine, helpers: helpers.jobs, register, threads }) })
    }

    /// The backend in use: never [`Backend::Auto`].
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.shared.engine {
            Engine::Uring(_) => Backend::Uring,
            Engine::Plain(_) => Backend::Plain,
        }
    }

    /// The pool that all volumes share.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// The pool, as the byte path wants it.
    #[must_use]
    pub fn buffers(&self) -> Arc<dyn BufferPool> {
        Arc::new(self.shared.pool.clone())
    }

    /// Buffers that are registered with io_uring now: none before the first operation, none while no volume is open.
    #[must_use]
    pub fn registered_buffers(&self) -> usize {
        self.shared.register.registered.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits until all threads have ended. Blocks until what is in flight is answered.
    ///
    /// # Errors
    /// Gives the handle back when others (clones, open volumes) still use it.
    pub fn shutdown(self) -> Result<(), Self> {
        let shared = Arc::try_unwrap(self.shared).map_err(|shared| Self { shared })?;
        let Shared { engine, helpers, threads, pool: _, register: _ } = shared;
        drop((engine, helpers));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a disk thread had panicked");
            }
        }
        Ok(())
    }

    pub(crate) fn lane(&self, file: std::fs::File) -> Arc<Lane> {
        Lane::new(file, Arc::clone(&self.shared.register))
    }

    async fn submit(&self, request: Request) {
        // A refused request is dropped, and with it its reply: the caller sees `Stopped`.
        match &self.shared.engine {
            Engine::Uring(requests) => drop(requests.send(request).await),
            Engine::Plain(jobs) => drop(jobs.send(Box::new(move || perform(request))).await),
        }
    }

    /// Moves bytes. The buffer always comes back; if a thread died holding it, a new one of its length does.
    pub(crate) async fn transfer(
        &self,
        fill: impl FnOnce(oneshot::Sender<(io::Result<()>, Buffer)>) -> Transfer,
    ) -> (io::Result<()>, Buffer) {
        let (reply, answer) = oneshot::channel();
        let transfer = fill(reply);
        let len = transfer.buffer.len();
        self.submit(Request::Transfer(transfer)).await;
        answer.await.unwrap_or_else(|_| (Err(stopped()), Buffer::heap(len)))
    }

    /// Makes durable. A failed or unanswered flush sets `poison`.
    pub(crate) async fn flush(&self, lane: Arc<Lane>, poison: Arc<AtomicBool>) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(Request::Flush(Flush::new(lane, poison, reply))).await;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Runs a blocking call on a helper thread, to its end even when nobody waits.
    pub(crate) async fn block<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move || drop(reply.send(call())));
        drop(self.shared.helpers.send(job).await);
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("backend", &self.backend()).field("pool", self.pool()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Access;

    /// A context whose ring thread is gone.
    fn orphan() -> Disk {
        let disk = Disk::start(&Options { backend: Backend::Plain, buffers: 1, registered: false }).unwrap();
        let Ok(mut shared) = Arc::try_unwrap(disk.shared) else { panic!("one handle") };
        shared.engine = Engine::Uring(mpsc::channel(1).0);
        Disk { shared: Arc::new(shared) }
    }

    #[test]
    fn a_dead_backend_is_an_error_and_not_a_hang() {
        let disk = orphan();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let lane = disk.lane(std::fs::File::open("/dev/null").unwrap());
            let buffer = disk.pool().acquire().await;
            let given = Arc::clone(&lane);
            let (result, buffer) = disk
                .transfer(|reply| Transfer {
                    access: Access::Read,
                    lane: given,
                    at: 0,
                    buffer,
                    span: 0..1,
                    guard: None,
                    reply,
                })
                .await;
            assert!(result.unwrap_err().to_string().contains("restart the agent"));
            assert_eq!(buffer.len(), crate::BUFFER_SIZE);
            assert_eq!(disk.pool().available(), 1, "the request's buffer went back to the pool");
            let poison = Arc::new(AtomicBool::new(false));
            disk.flush(lane, Arc::clone(&poison)).await.unwrap_err();
            assert!(poison.load(std::sync::atomic::Ordering::SeqCst), "an unanswered flush poisons");
        });
    }

    #[test]
    fn shutdown_needs_the_last_handle() {
        let disk = Disk::start(&Options { backend: Backend::Plain, buffers: 1, registered: false }).unwrap();
        let other = disk.clone();
        let disk = disk.shutdown().unwrap_err();
        drop(other);
        disk.shutdown().unwrap();
    }
}
