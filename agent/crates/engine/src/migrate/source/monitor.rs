//! Talking to the QEMU that the guest leaves.

use std::time::Duration;

use hypervisor::inventory::Process;
use hypervisor::qmp::{EventKind, Qmp};

use super::{Owner, Signal, chain};

/// QMP's patience: QEMU answers in milliseconds, but its main loop may be busy with a disk.
const QMP_TIMEOUT: Duration = Duration::from_secs(20);

impl Owner {
    /// Connects to QEMU and hears its events.
    pub(super) async fn monitor(&mut self) -> Result<Qmp, String> {
        if let Some(qmp) = &self.qmp
            && qmp.ended().is_none()
        {
            return Ok(qmp.clone());
        }
        let qmp = Qmp::connect(&self.job.qmp, QMP_TIMEOUT).await.map_err(|error| chain(&error))?;
        let (mut events, signals, process) = (qmp.subscribe(), self.signals.clone(), self.job.process);
        self.watchers.spawn(async move {
            loop {
                match events.next().await {
                    // Nobody asks for them, and a QEMU that waits for its switchover makes thousands a second: behind
                    // those the others would be late, or missed.
                    Ok(event) if matches!(event.kind, EventKind::MigrationPass(_)) => {}
                    Ok(event) => {
                        if signals.send(Signal::Qemu(event.kind)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // A monitor that hangs up says nothing about the guest.
                        let dead = is_dead(process).await;
                        drop(signals.send(Signal::QemuGone { why: chain(&error), dead }).await);
                        return;
                    }
                }
            }
        });
        self.qmp = Some(qmp.clone());
        Ok(qmp)
    }
}

/// Whether QEMU's process has ended, or ends about now.
pub(super) async fn is_dead(process: Option<Process>) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    match process {
        Some(process) => process.is_dead_within(PATIENCE).await,
        None => true,
    }
}
