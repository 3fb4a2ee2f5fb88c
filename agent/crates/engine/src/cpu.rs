//! The CPU pool: hashing and compression on threads of their own, so that no runtime thread is held up.
//!
//! One a process, shared by all sessions; bounded, so that sessions wait here instead of queueing work.

use std::thread::JoinHandle;

use reduce::ram::{Packer, Unpacker};
use reduce::{Compressor, Decompressor};
use tokio::sync::oneshot;

use crate::error::EngineError;

/// What a CPU thread keeps between jobs.
#[derive(Debug)]
pub struct Scratch {
    /// Compression context.
    pub compressor: Compressor,
    /// Decompression context.
    pub decompressor: Decompressor,
    /// An extent's worth of room for a frame.
    pub frame: Vec<u8>,
    /// What packing RAM needs; made by the first packet.
    pub packer: Option<Packer>,
    /// What unpacking RAM needs; made by the first packet.
    pub unpacker: Option<Unpacker>,
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Handle to the pool; cloning shares it. The threads end when the last handle is gone.
#[derive(Clone, Debug)]
pub struct Cpu {
    jobs: async_channel::Sender<Job>,
    threads: usize,
}

/// Jobs that may wait per thread: enough to keep it busy while its owner is scheduled.
const QUEUE_PER_THREAD: usize = 4;

impl Cpu {
    /// Starts `threads` threads (at least one).
    pub fn start(threads: usize) -> Result<Self, EngineError> {
        let threads = threads.max(1);
        let (jobs, queue) = async_channel::bounded::<Job>(threads * QUEUE_PER_THREAD);
        for nth in 0..threads {
            let queue = queue.clone();
            let mut scratch = Scratch {
                compressor: Compressor::new()?,
                decompressor: Decompressor::new()?,
                frame: Vec::new(),
                packer: None,
                unpacker: None,
            };
            let spawned: std::io::Result<JoinHandle<()>> =
                std::thread::Builder::new().name(format!("novaferry-cpu{nth}")).spawn(move || {
                    while let Ok(job) = queue.recv_blocking() {
                        job(&mut scratch);
                    }
                });
            spawned.map_err(|error| {
                EngineError::sidecar("start a thread for", "the CPU pool".as_ref(), error)
            })?;
        }
        Ok(Self { jobs, threads })
    }

    /// Threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Jobs waiting, and how many may.
    #[must_use]
    pub fn queue(&self) -> (usize, usize) {
        (self.jobs.len(), self.threads * QUEUE_PER_THREAD)
    }

    /// Runs a job and waits for what it returns.
    ///
    /// # Panics
    /// When the job panicked: the fault is the job's.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Scratch) -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let boxed: Job = Box::new(move |scratch| {
            // The caller may have gone away; then nobody wants the result.
            drop(reply.send(job(scratch)));
        });
        self.jobs.send(boxed).await.expect("CPU threads live as long as a handle");
        answer.await.expect("a CPU job answers unless it panics")
    }
}
