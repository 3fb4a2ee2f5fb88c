//! A handler that keeps its export in memory and remembers what it was asked, and a socket that serves it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use novaferry_hypervisor::Error;
use novaferry_hypervisor::nbd::Address;
use novaferry_hypervisor::nbd::server::{Ending, Export, Handler, Zeroing, serve};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use volume::{ByteOffset, ByteRange, Kind, Op, VolumeError, ZeroMode};

/// What the handler was asked.
#[derive(Clone, Default, Debug)]
pub(crate) struct Seen {
    pub(crate) writes: usize,
    pub(crate) zeroes: usize,
    pub(crate) kept: usize,
    pub(crate) flushes: usize,
    pub(crate) fua: usize,
    pub(crate) largest: usize,
    pub(crate) running: usize,
    pub(crate) most_running: usize,
    pub(crate) most_bytes: usize,
    pub(crate) running_bytes: usize,
}

/// The export. `durable` is what would be left after a crash.
pub(crate) struct Memory {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) durable: Mutex<Vec<u8>>,
    pub(crate) seen: Mutex<Seen>,
    /// Every write takes a permit for good; without one it waits.
    pub(crate) gate: Semaphore,
    /// What every call fails with.
    pub(crate) failure: Mutex<Option<Kind>>,
    /// FLUSH panics.
    pub(crate) broken: bool,
    /// READ gives a byte less than asked.
    pub(crate) short: bool,
}

/// Counts a call as running until it is dropped.
struct Running<'a>(&'a Memory, usize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        seen.running -= 1;
        seen.running_bytes -= self.1;
    }
}

fn place(range: ByteRange) -> std::ops::Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            durable: Mutex::new(bytes.clone()),
            bytes: Mutex::new(bytes),
            seen: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            failure: Mutex::new(None),
            broken: false,
            short: false,
        }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn enter(&self, bytes: usize) -> Running<'_> {
        let mut seen = self.seen();
        seen.running += 1;
        seen.running_bytes += bytes;
        seen.largest = seen.largest.max(bytes);
        seen.most_running = seen.most_running.max(seen.running);
        seen.most_bytes = seen.most_bytes.max(seen.running_bytes);
        Running(self, bytes)
    }

    fn fails(&self, op: Op) -> Result<(), VolumeError> {
        self.failure
            .lock()
            .unwrap()
            .map_or(Ok(()), |kind| Err(VolumeError::new(kind, op, "the test's volume")))
    }

    fn change(&self, range: ByteRange, fua: bool, change: impl Fn(&mut [u8])) {
        change(&mut self.bytes.lock().unwrap()[place(range)]);
        if fua {
            self.seen().fua += 1;
            change(&mut self.durable.lock().unwrap()[place(range)]);
        }
    }
}

impl Handler for Memory {
    async fn read(&self, range: ByteRange) -> Result<Bytes, VolumeError> {
        let _running = self.enter(usize::try_from(range.len()).unwrap());
        self.fails(Op::Read)?;
        let mut bytes = self.bytes.lock().unwrap()[place(range)].to_vec();
        bytes.truncate(bytes.len() - usize::from(self.short));
        Ok(bytes.into())
    }

    async fn write(&self, at: ByteOffset, data: Bytes, fua: bool) -> Result<(), VolumeError> {
        let _running = self.enter(data.len());
        self.gate.acquire().await.unwrap().forget();
        self.fails(Op::Write)?;
        self.seen().writes += 1;
        let range = ByteRange { start: at.0, end: at.0 + data.len() as u64 };
        self.change(range, fua, |bytes| bytes.copy_from_slice(&data));
        Ok(())
    }

    async fn zero(&self, range: ByteRange, how: Zeroing) -> Result<(), VolumeError> {
        let _running = self.enter(0);
        self.fails(Op::Zero)?;
        self.seen().zeroes += 1;
        self.seen().kept += usize::from(how.mode == ZeroMode::Allocate);
        self.change(range, how.fua, |bytes| bytes.fill(0));
        Ok(())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let _running = self.enter(0);
        self.fails(Op::Flush)?;
        assert!(!self.broken, "the test's bug");
        self.seen().flushes += 1;
        self.durable.lock().unwrap().clone_from(&self.bytes.lock().unwrap());
        Ok(())
    }
}

/// A listening socket that serves one client after the other. Ends with the test.
pub(crate) struct Served {
    pub(crate) memory: Arc<Memory>,
    pub(crate) path: PathBuf,
    cancel: watch::Sender<bool>,
    endings: mpsc::Receiver<Result<Ending, Error>>,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    pub(crate) fn start(export: Export, memory: Memory) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let memory = Arc::new(memory);
        let (cancel, cancelled) = watch::channel(false);
        // No test has that many clients.
        let (ended, endings) = mpsc::channel(64);
        let handler = Arc::clone(&memory);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut cancelled = cancelled.clone();
                let cancel = async move {
                    cancelled.wait_for(|cancelled| *cancelled).await.unwrap();
                };
                let ending = serve(stream, &export, Arc::clone(&handler), cancel).await;
                ended.try_send(ending).unwrap();
            }
        });
        Self { memory, path, cancel, endings, task, _folder: folder }
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.path.clone())
    }

    /// How the time of the next client ended.
    pub(crate) async fn ending(&mut self) -> Result<Ending, Error> {
        self.endings.recv().await.expect("the server goes on until it is dropped")
    }

    pub(crate) fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}
