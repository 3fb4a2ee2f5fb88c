//! The guest's own part: freezing its file systems. Whatever it does or does not, the copy goes on; without it the
//! disks are as after a power failure.

use std::path::Path;
use std::time::Duration;

use hypervisor::guest_agent::GuestAgent;
use hypervisor::qmp::MonitorError;
use hypervisor::qmp::words::FreezeStatus;

use super::super::chain;

/// How long an agent may take to say that it is there.
const GREETING: Duration = Duration::from_secs(3);
/// How long freezing or thawing may take: the guest writes out what it has in its memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether an agent answers there.
pub(in super::super) async fn answers(socket: &Path) -> bool {
    let greet = async {
        let mut agent = GuestAgent::connect(socket, GREETING).await?;
        agent.synchronise().await
    };
    match greet.await {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(error = %chain(&error), "the guest's agent does not answer");
            false
        }
    }
}

/// Freezes the guest's file systems; when that fails, nothing is frozen.
pub(in super::super) async fn freeze(socket: &Path) {
    let freeze = async {
        let mut agent = GuestAgent::connect(socket, PATIENCE).await?;
        agent.freeze().await
    };
    match freeze.await {
        Ok(count) => tracing::debug!(count, "the guest's file systems are frozen"),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the guest's file systems are not frozen");
            // Part of them may be.
            thaw(socket).await;
        }
    }
}

/// Thaws them, if they are frozen.
pub(in super::super) async fn thaw(socket: &Path) {
    let thaw = async {
        let mut agent = GuestAgent::connect(socket, PATIENCE).await?;
        if agent.freeze_status().await? != FreezeStatus::Thawed {
            agent.thaw().await?;
        }
        Ok::<_, MonitorError>(())
    };
    if let Err(error) = thaw.await {
        tracing::warn!(error = %chain(&error), "the guest's agent does not thaw its file systems");
    }
}
