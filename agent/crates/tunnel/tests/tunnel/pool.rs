//! Buffers that count themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use novaferry_tunnel::ReceiveBuffers;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use volume::{Buffer, BufferPool, Io, Memory};

/// A pool of heap buffers of 256 KiB that counts what is out.
pub(crate) struct Pool {
    free: Arc<Semaphore>,
    out: Arc<AtomicUsize>,
    pub(crate) peak: AtomicUsize,
}

pub(crate) const BUFFER: usize = 256 << 10;

struct Lent {
    bytes: Vec<u8>,
    out: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Memory for Lent {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.out.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    pub(crate) fn new(buffers: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(buffers)),
            out: Arc::default(),
            peak: AtomicUsize::new(0),
        })
    }

    fn lend(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let out = self.out.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(out, Ordering::SeqCst);
        Buffer::new(Box::new(Lent { bytes: vec![0; BUFFER], out: self.out.clone(), _permit: permit }))
    }

    pub(crate) fn out(&self) -> usize {
        self.out.load(Ordering::SeqCst)
    }
}

impl BufferPool for Pool {
    fn buffer_size(&self) -> usize {
        BUFFER
    }
    fn acquire(&self) -> Io<'_, Buffer> {
        Box::pin(async { self.lend(self.free.clone().acquire_owned().await.unwrap()) })
    }
    fn try_acquire(&self) -> Option<Buffer> {
        Some(self.lend(self.free.clone().try_acquire_owned().ok()?))
    }
}

/// 4 MiB of buffers.
pub(crate) fn buffers() -> ReceiveBuffers {
    ReceiveBuffers { pool: Pool::new(16), permits: 16 }
}
