//! When the guest is stopped.
//!
//! A QEMU that stops a running guest by itself lets it run again by itself when its migration fails, also in the instant
//! in which the destination has all of it and runs it: then there would be two. One whose guest was stopped before
//! leaves it stopped (`vm_old_state` in `migration_iteration_finish`, `migration/migration.c`). So QEMU is kept from
//! stopping it, and we do it, by the same measure: as much is left after a look at the dirty pages as travels in the
//! pause that is allowed. The disks are compared while the rest of the memory follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hypervisor::qmp::words::{MigrationCapability, MigrationStatus};
use hypervisor::qmp::{MigrationParameters, Qmp, Ram};
use tokio::time::Instant;

use super::{Owner, chain};
use crate::migrate::preflight::Finding;

/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// What QEMU may leave for its last part, milliseconds: nearly nothing, so that the rest goes before it.
const LAST_PART: u64 = 1;
/// The first QEMU that can be kept from stopping the guest.
const FIRST: (u32, u32) = (8, 1);

/// What the owner and who looks share.
#[derive(Debug, Default)]
pub(super) struct Convergence {
    /// Bytes that may be left when the guest is stopped; 0 while that is not known.
    limit: AtomicU64,
    /// Bytes that travel in the time between two looks.
    between: AtomicU64,
    /// It is not to be stopped yet, however little is left.
    held: AtomicBool,
    /// We stop the guest.
    stopping: AtomicBool,
}

impl Convergence {
    /// `rate` bytes a second travel, and the pause may last `allowed` milliseconds.
    pub(super) fn set(&self, rate: u64, allowed: u64) {
        let millis = u64::try_from(POLL.as_millis()).unwrap_or(u64::MAX);
        self.between.store(rate.saturating_mul(millis) / 1000, Ordering::Relaxed);
        self.limit.store(rate.saturating_mul(allowed) / 1000, Ordering::Relaxed);
    }

    /// Keeps the guest from being stopped, or lets it be.
    pub(super) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether it was us who stopped the guest.
    pub(super) fn is_ours(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether little enough is left. `looks` is how often QEMU has looked at the dirty pages since the last time.
    fn is_reached(&self, ram: &Ram, looks: u64) -> bool {
        const FIRST_PASS: u64 = 1;
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 || ram.dirty_sync_count <= FIRST_PASS || self.held.load(Ordering::Relaxed) {
            return false;
        }
        match looks {
            // What is left now says nothing: the next look may find more.
            0 => false,
            1 => ram.remaining.saturating_add(self.between.load(Ordering::Relaxed)) <= limit,
            // A whole pass took less than the time between two looks.
            _ => true,
        }
    }
}

/// Whether this QEMU waits with its last part until the guest is stopped: it would wait for an acknowledgement that a
/// destination without the capability never sends (`migration_can_switchover`).
pub(super) fn can_wait(qmp: &Qmp) -> bool {
    (qmp.version().major, qmp.version().minor) >= FIRST
}

/// What keeps QEMU from stopping the guest.
pub(super) fn capability(qmp: &Qmp) -> Option<hypervisor::qmp::CapabilityState> {
    can_wait(qmp).then(|| super::memory::capability(MigrationCapability::SwitchoverAck, true))
}

/// A finding about a QEMU that cannot be kept from it.
pub(super) fn finding(qmp: &Qmp) -> Option<Finding> {
    let version = qmp.version();
    (!can_wait(qmp)).then(|| {
        Finding::warning(
            "self-resume",
            format!(
                "QEMU {}.{} lets the guest run again by itself when the agent here dies, or the link breaks, in the instant \
                 between the permit and the destination's answer",
                version.major, version.minor
            ),
            "use QEMU 8.1 or newer at the source, or --mode warm",
        )
    })
}

impl Owner {
    /// Begins to look, until the guest is stopped.
    pub(super) fn watch_convergence(&mut self, qmp: &Qmp) {
        let (qmp, convergence) = (qmp.clone(), Arc::clone(&self.convergence));
        let migration = self.job.migration;
        self.carriers.spawn(async move {
            if let Err(why) = watch(&qmp, &convergence).await {
                // The owner hears of a monitor that is gone by itself.
                tracing::debug!(%migration, %why, "nobody looks whether the memory converges");
            }
        });
    }

    /// QEMU waits before its last part, and the permit has left: it goes on.
    pub(super) async fn send_last_part(&mut self) {
        let Some(qmp) = self.qmp.clone() else { return };
        if let Err(error) = qmp.migrate_continue(&MigrationStatus::PreSwitchover).await {
            // It was told already.
            tracing::debug!(error = %chain(&error), "QEMU does not wait before its last part");
        }
    }
}

async fn watch(qmp: &Qmp, convergence: &Convergence) -> Result<(), String> {
    let mut last = 0;
    let mut next = Instant::now();
    loop {
        next = (next + POLL).max(Instant::now());
        tokio::time::sleep_until(next).await;
        let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
        if info.status.as_ref().is_some_and(MigrationStatus::is_final) {
            return Ok(());
        }
        let (Some(MigrationStatus::Active), Some(ram)) = (&info.status, &info.ram) else { continue };
        let looks = ram.dirty_sync_count.saturating_sub(last);
        last = ram.dirty_sync_count;
        if !convergence.is_reached(ram, looks) {
            continue;
        }
        convergence.stopping.store(true, Ordering::Release);
        qmp.stop().await.map_err(|error| chain(&error))?;
        let parameters =
            MigrationParameters { downtime_limit: Some(LAST_PART), ..MigrationParameters::default() };
        return qmp.migrate_set_parameters(&parameters).await.map_err(|error| chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(remaining: u64, dirty_sync_count: u64) -> Ram {
        Ram { remaining, dirty_sync_count, ..Ram::default() }
    }

    #[test]
    fn it_is_reached_when_little_is_left_just_after_a_look() {
        let convergence = Convergence::default();
        assert!(!convergence.is_reached(&ram(0, 9), 1), "the rate is not known");
        convergence.set(100 << 20, 40);
        assert!(!convergence.is_reached(&ram(0, 1), 1), "the first pass");
        assert!(convergence.is_reached(&ram(3 << 20, 2), 1), "less than 40 ms with what went since the look");
        assert!(!convergence.is_reached(&ram(4 << 20, 2), 1));
        assert!(!convergence.is_reached(&ram(0, 2), 0), "the end of a pass");
        assert!(convergence.is_reached(&ram(50 << 20, 4), 2), "two looks within 10 ms");
        convergence.hold(true);
        assert!(
            !convergence.is_reached(&ram(0, 9), 1) && !convergence.is_reached(&ram(0, 9), 2),
            "too early"
        );
        convergence.hold(false);
        assert!(convergence.is_reached(&ram(0, 9), 1));
    }
}
