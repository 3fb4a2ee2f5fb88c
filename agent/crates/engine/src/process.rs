//! What a process has one of: CPU threads, the choice of disk backend, and the limits that every session obeys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::{Backend, Disk, Options};
use volume::BufferPool;

use crate::cpu::Cpu;
use crate::error::EngineError;

/// Limits of each session.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Buffers of 256 KiB.
    pub buffers: usize,
    /// Bytes for dedup: known chunks when sending, the index when receiving.
    pub dedup_memory: usize,
    /// Payload bytes that may be unacknowledged.
    pub window_bytes: u64,
}

impl Default for SessionLimits {
    /// 64 MiB of buffers, 64 MiB for dedup (grown as it is needed), a window of 64 MiB.
    fn default() -> Self {
        Self { buffers: 256, dedup_memory: 64 << 20, window_bytes: session::WINDOW_BYTES }
    }
}

/// The engine of a process. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Process {
    cpu: Cpu,
    limits: SessionLimits,
    backend: Backend,
    /// io_uring was found to be blocked: said once, and not tried again for each session.
    fell_back: Arc<AtomicBool>,
}

/// A session's buffers and backend. Each session has its own: what one holds, no other waits for, and its memory is
/// given back when it ends.
#[derive(Clone)]
pub struct SessionDisk {
    /// Opens volumes.
    pub disk: Disk,
    /// The session's buffers.
    pub pool: Arc<dyn BufferPool>,
}

impl std::fmt::Debug for SessionDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionDisk({:?}, {} buffers)", self.disk.backend(), self.disk.pool().capacity())
    }
}

impl Process {
    /// Starts the CPU threads: one a core.
    pub fn start(limits: SessionLimits, backend: Backend) -> Result<Self, EngineError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { cpu: Cpu::start(cores)?, limits, backend, fell_back: Arc::new(AtomicBool::new(false)) })
    }

    /// The CPU threads.
    #[must_use]
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> SessionLimits {
        self.limits
    }

    /// Buffers and backend for a session.
    pub fn session_disk(&self) -> Result<SessionDisk, EngineError> {
        let fell_back = self.backend == Backend::Auto && self.fell_back.load(Ordering::Relaxed);
        let backend = if fell_back { Backend::Plain } else { self.backend };
        let disk = Disk::start(&Options { backend, buffers: self.limits.buffers, registered: true })?;
        if disk.backend() == Backend::Plain {
            self.fell_back.store(true, Ordering::Relaxed);
        }
        let pool = disk.buffers();
        Ok(SessionDisk { disk, pool })
    }
}
