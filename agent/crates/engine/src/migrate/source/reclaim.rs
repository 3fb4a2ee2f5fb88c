//! Undoing a post-copy that its destination never ran: see [`hypervisor::reclaim`].

use std::time::Duration;

use hypervisor::qmp::words::MigrationStatus;
use hypervisor::qmp::{MigrationAddress, Qmp};
use hypervisor::reclaim;
use tokio::time::Instant;

use super::{Owner, chain, mirror};
use crate::migrate::ram::resumed;

/// How long QEMU may take for each part of it.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

impl Owner {
    /// Ends a post-copy of a guest that is to run here again, and that ran nowhere else. Nothing where there is none.
    pub(super) async fn reclaim(&mut self, qmp: &Qmp) -> Result<(), String> {
        let status = qmp.query_migrate().await.map_err(|error| chain(&error))?.status;
        if !status.as_ref().is_some_and(resumed::in_postcopy) {
            return Ok(());
        }
        // Its sockets close with them: QEMU pauses.
        self.carriers.shutdown().await;
        await_status(qmp, &MigrationStatus::PostcopyPaused).await?;
        let blocks = qmp.ram_blocks().await.map_err(|error| chain(&error))?;
        let socket = self.socket("reclaim");
        let (listener, _file) = mirror::listen_at(&socket)?;
        let answers = async {
            let (first, _) = listener.accept().await?;
            let pages = async {
                let (mut second, _) = listener.accept().await?;
                tokio::io::copy(&mut second, &mut tokio::io::sink()).await
            };
            tokio::try_join!(reclaim::answer(first, &blocks), pages).map(drop)
        };
        let resume = async {
            let uri = MigrationAddress::Uri(format!("unix:{}", socket.display()));
            qmp.migrate(&uri, true).await.map_err(|error| chain(&error))?;
            await_status(qmp, &MigrationStatus::Completed).await
        };
        let answers = async {
            match tokio::time::timeout(PATIENCE, answers).await {
                // Whether that was enough is for QEMU to say.
                Ok(Ok(())) => std::future::pending().await,
                Ok(Err(error)) => format!("QEMU's post-copy cannot be ended: {error}"),
                Err(_late) => "QEMU's post-copy does not end in time".to_owned(),
            }
        };
        tokio::select! {
            resumed = resume => resumed,
            why = answers => Err(why),
        }
    }
}

/// Waits until QEMU's migration is where it is wanted.
async fn await_status(qmp: &Qmp, wanted: &MigrationStatus) -> Result<(), String> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let status = qmp.query_migrate().await.map_err(|error| chain(&error))?.status;
        if status.as_ref() == Some(wanted) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("QEMU's migration does not become {}", wanted.as_str()));
        }
        if !told && *wanted == MigrationStatus::PostcopyPaused && began.elapsed() > PATIENCE / 10 {
            told = true;
            if let Err(error) = qmp.migrate_pause().await {
                tracing::debug!(error = %chain(&error), "QEMU at the source does not pause its migration");
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
