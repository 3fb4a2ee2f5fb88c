//! Threads that may block: the plain backend (`pread`, `pwrite`, `fdatasync`) and the helpers for calls that io_uring
//! has no good form of (`fallocate`, `SEEK_DATA`, `fstat`).

use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use async_channel::{Receiver, Sender};

use crate::request::{Access, Progress, Request, Transfer};

/// Work for a thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// A few threads behind one bounded queue. They end when the last sender is gone.
pub(crate) struct Workers {
    pub(crate) jobs: Sender<Job>,
    pub(crate) threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads; the queue holds `queue` jobs before callers wait.
    pub(crate) fn start(name: &str, count: usize, queue: usize) -> io::Result<Self> {
        let (jobs, inbox) = async_channel::bounded(queue);
        let threads = (0..count)
            .map(|_| {
                let inbox = inbox.clone();
                std::thread::Builder::new().name(name.into()).spawn(move || work(&inbox))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { jobs, threads })
    }
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv_blocking() {
        // A job that panics drops its reply, which its caller sees; the thread serves the next one. What the job
        // owned was dropped with it, so nothing half-changed is left behind.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a disk helper panicked; its operation is answered as failed");
        }
    }
}

/// Performs one operation with blocking calls.
pub(crate) fn perform(request: Request) {
    match request {
        Request::Transfer(mut transfer) => {
            let result = move_bytes(&mut transfer);
            transfer.answer(result);
        }
        Request::Flush(_) => {
            let result = loop {
                match request.file().sync_data() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            };
            request.answer(result);
        }
    }
}

fn move_bytes(transfer: &mut Transfer) -> io::Result<()> {
    let file = transfer.lane.file();
    let mut progress = Progress::new(transfer.span.clone(), transfer.at);
    while let Some((piece, at)) = progress.next() {
        let (result, nothing) = match transfer.access {
            Access::Read => (file.read_at(&mut transfer.buffer[piece], at), io::ErrorKind::UnexpectedEof),
            Access::Write => (file.write_at(&transfer.buffer[piece], at), io::ErrorKind::WriteZero),
        };
        progress.advance(result, nothing)?;
    }
    Ok(())
}
