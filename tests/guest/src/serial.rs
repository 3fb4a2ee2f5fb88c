//! Follows what a guest prints, and when it printed it by the host's clock.
//!
//! The file is looked at every millisecond by a thread of its own. It may not be there yet, it may be started anew, and
//! whoever starts the machine may be another process: that is why this is no socket that has to be connected first, and
//! no pipe of a child. A millisecond is less than what any claim about a pause needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

/// How often the file is looked at.
pub const RESOLUTION: Duration = Duration::from_millis(1);

/// Most bytes that are kept of one file: two days of heartbeats, and not what a guest prints that has gone mad.
pub const MAX_BYTES: usize = 64 << 20;

/// Most bytes that are read at once.
const READ: usize = 64 << 10;

/// Some bytes that were there when the file was looked at, and not the time before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// When it was found, at most about [`RESOLUTION`] after it was printed.
    pub at: Instant,
    /// What was printed.
    pub bytes: Vec<u8>,
}

/// A thread that follows one file.
#[derive(Debug)]
pub struct Serial {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    chunks: Vec<Chunk>,
    bytes: usize,
    stop: bool,
    failed: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serial {
    /// Follows `path` from its beginning, also if it, or its folder, is made only later.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn follow(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let shared = Arc::<Shared>::default();
        let own = (path.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("serial".to_owned())
            .spawn(move || {
                if let Err(error) = follow(&own.0, &own.1) {
                    own.1.lock().failed = Some(format!("read {}: {error}", own.0.display()));
                    own.1.changed.notify_all();
                }
            })
            .map_err(|error| Error::new(Kind::Start, "start a thread for a serial port").caused_by(error))?;
        Ok(Self { path, shared, thread: Some(thread) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that was printed so far.
    #[must_use]
    pub fn chunks(&self) -> Vec<Chunk> {
        self.shared.lock().chunks.clone()
    }

    /// All that was printed so far, without the times.
    #[must_use]
    pub fn text(&self) -> String {
        text(&self.shared.lock().chunks)
    }

    /// Waits until what was printed is as `enough` wants it; that is asked after each change.
    ///
    /// # Errors
    /// With what was printed, after `limit`; [`Kind::Files`] if the file cannot be read.
    pub fn wait(&self, what: &str, limit: Duration, enough: impl Fn(&[Chunk]) -> bool) -> Result<(), Error> {
        let end = Instant::now() + limit;
        let mut seen = self.shared.lock();
        loop {
            if enough(&seen.chunks) {
                return Ok(());
            }
            if let Some(failed) = &seen.failed {
                return Err(Error::new(Kind::Files, failed.clone()));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = text(&seen.chunks);
                let tail: Vec<&str> = text.lines().rev().take(10).collect();
                let tail: String = tail.into_iter().rev().map(|line| format!("\n  {line}")).collect();
                let path = self.path.display();
                return Err(Error::new(Kind::Timeout, format!("wait for {what}; {path} ends with:{tail}")));
            }
            let waited = self.shared.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the guest has printed `text`.
    ///
    /// # Errors
    /// As [`Serial::wait`].
    pub fn wait_for_text(&self, expected: &str, limit: Duration) -> Result<(), Error> {
        self.wait(&format!("{expected:?}"), limit, |chunks| text(chunks).contains(expected))
    }

    /// Waits until the guest has printed `count` whole heartbeats here, whatever their numbers.
    ///
    /// # Errors
    /// As [`Serial::wait`].
    pub fn wait_for_heartbeats(&self, count: usize, limit: Duration) -> Result<(), Error> {
        self.wait(&format!("{count} heartbeats"), limit, |chunks| {
            text(chunks).matches('\n').count() >= count
                && crate::timeline::Timeline::of(&[chunks]).beats().count() >= count
        })
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed when it happened.
            let _ = thread.join();
        }
    }
}

fn text(chunks: &[Chunk]) -> String {
    let bytes: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads what is new, until told to stop.
fn follow(path: &Path, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; READ];
    let mut open: Option<(File, u64)> = None;
    while !shared.lock().stop {
        if open.is_none() {
            open = match File::open(path) {
                Ok(file) => Some((file, 0)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        let mut read = 0;
        if let Some((file, offset)) = &mut open {
            read = file.read_at(&mut buffer, *offset)?;
            let at = Instant::now();
            *offset += read as u64;
            if read > 0 {
                let mut seen = shared.lock();
                seen.bytes += read;
                if seen.bytes > MAX_BYTES {
                    return Err(io::Error::other(format!("more than {MAX_BYTES} bytes")));
                }
                seen.chunks.push(Chunk { at, bytes: buffer[..read].to_vec() });
                drop(seen);
                shared.changed.notify_all();
            } else {
                let metadata = file.metadata()?;
                if metadata.nlink() == 0 {
                    // Removed; what comes in its place is followed from its beginning.
                    open = None;
                } else if metadata.len() < *offset {
                    // QEMU empties the file when it starts.
                    *offset = 0;
                }
            }
        }
        if read < READ {
            thread::sleep(RESOLUTION);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
