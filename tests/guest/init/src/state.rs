//! What the threads share: counters for the heartbeat, the verdict, and the serial port.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use novaferry_guest_init::CORRUPT;

/// Most lines of corruption that are printed. One shows that there is any, the first few what kind; a guest whose
/// memory is all wrong would print nothing else for minutes.
const MOST_REPORTS: u64 = 50;

/// Shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct State {
    passes: AtomicU64,
    disk_writes: AtomicU64,
    corrupt: AtomicBool,
    reports: AtomicU64,
    disk_busy: Mutex<()>,
}

impl State {
    /// Prints a line, in one write, so that lines of two threads do not mix.
    pub(crate) fn say(&self, line: &str) {
        let line = format!("{line}\n");
        // There is nowhere to report it; the heartbeats that are missing do.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }

    /// Reports that something is not as it was left. Every heartbeat from now on says so, too.
    pub(crate) fn corrupt(&self, what: &str) {
        self.corrupt.store(true, Ordering::Relaxed);
        if self.reports.fetch_add(1, Ordering::Relaxed) < MOST_REPORTS {
            self.say(&format!("{CORRUPT} {what}"));
        }
    }

    pub(crate) fn is_intact(&self) -> bool {
        !self.corrupt.load(Ordering::Relaxed)
    }

    pub(crate) fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_passes(&self, passes: u64) {
        self.passes.store(passes, Ordering::Relaxed);
    }

    pub(crate) fn disk_writes(&self) -> u64 {
        self.disk_writes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_disk_writes(&self, writes: u64) {
        self.disk_writes.store(writes, Ordering::Relaxed);
    }

    /// Held during a write to the disk: who holds it knows that none is under way.
    pub(crate) fn disk_busy(&self) -> MutexGuard<'_, ()> {
        self.disk_busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
