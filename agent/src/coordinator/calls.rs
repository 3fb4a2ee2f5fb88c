//! This host dials the sources of VMs that come, where the coordinator says that they cannot dial it.

use std::collections::HashMap;
use std::time::Duration;

use engine::migrate::destination::Arrival;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tunnel::{CloseCode, DialOptions, TransportChoice, TunnelError, TunnelErrorKind, call_source};
use volume::SessionId;
use wire::FailCode;

use crate::address::HostAddress;
use crate::daemon::Desk;

/// First and longest pause before a source is dialled again. It hears of a migration in a moment after this host.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Those who dial, one for each migration.
#[derive(Debug)]
pub(super) struct Callers {
    desk: Desk,
    running: HashMap<String, (watch::Sender<Arrival>, AbortHandle)>,
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.expect(&[]);
    }
}

impl Callers {
    pub(super) fn new(desk: Desk) -> Self {
        Self { desk, running: HashMap::new() }
    }

    /// Dials for these from now on, and for no others. A connection that its migration has goes on, also when its source is
    /// to be dialled elsewhere from then on.
    pub(super) fn expect(&mut self, expected: &[Arrival]) {
        let mut dialled: HashMap<_, _> = expected
            .iter()
            .filter(|arrival| !arrival.dial.is_empty())
            .map(|arrival| (arrival.migration.as_str(), arrival))
            .collect();
        self.running.retain(|migration, (current, task)| match dialled.remove(migration.as_str()) {
            Some(arrival) => {
                // Fails when the task is over: its id is none.
                drop(current.send(arrival.clone()));
                true
            }
            None => {
                task.abort();
                false
            }
        });
        for (migration, arrival) in dialled {
            let (current, arrival) = watch::channel(arrival.clone());
            let task = tokio::spawn(dial(self.desk.clone(), arrival));
            self.running.insert(migration.to_owned(), (current, task.abort_handle()));
        }
    }
}

/// Dials until it is told to end.
async fn dial(desk: Desk, current: watch::Receiver<Arrival>) {
    let Ok(migration) = current.borrow().migration.parse::<SessionId>() else { return };
    let mut pause = AGAIN.0;
    let mut said = String::new();
    loop {
        let arrival = current.borrow().clone();
        match round(&desk, migration, &arrival).await {
            Ok(()) => pause = AGAIN.0,
            Err(why) => {
                // Once for each reason: it may go on for as long as the migration waits for something else.
                if said != why {
                    tracing::info!(%migration, from = arrival.from, why, "the source of a migration does not take a connection yet");
                    said = why;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Dials one address after the other, and stays until the connection that was made is over.
async fn round(desk: &Desk, migration: SessionId, arrival: &Arrival) -> Result<(), String> {
    let credentials = desk.credentials().ok_or("this host shows no certificate")?;
    let mut failed = Vec::new();
    for address in &arrival.dial {
        let to: HostAddress =
            address.parse().map_err(|error: crate::address::AddressError| error.to_string())?;
        let mut options = DialOptions::new(to.host, to.port);
        options.transport = TransportChoice::Quic;
        options.expect_peer =
            Some(arrival.from.parse().map_err(|error: tunnel::InvalidPeerName| error.to_string())?);
        match call_source(&options, &credentials, migration).await {
            Ok(tunnel) => {
                let watcher = tunnel.watcher();
                desk.called(migration, tunnel).await;
                let why = watcher.closed().await;
                tracing::debug!(%migration, from = arrival.from, why = %why.chain(), "a connection to a source is over");
                return Ok(());
            }
            Err(error) if is_answer(&error) => return Err(error.chain()),
            Err(error) => failed.push(format!("{address}: {}", error.chain())),
        }
    }
    Err(failed.join("; "))
}

/// The source itself says no: its other addresses would say the same.
fn is_answer(error: &TunnelError) -> bool {
    matches!(error.kind(), TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::NotFound)))
}
