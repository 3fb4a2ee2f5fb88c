//! PostgreSQL for several coordinators: the one that has an advisory lock leads, the others wait for it.
//!
//! The lock belongs to a session (PostgreSQL's documentation, "Advisory Locks"): it is gone with its connection, so it
//! has one of its own, which is asked again and again whether it lives.

use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Hold, Opened, READERS};
use crate::StoreError;

/// The lock's number, ASCII `novaferr`, so that no other program has it by chance.
const LOCK: i64 = 0x6e6f_7661_6665_7272;
/// How often those that wait look, and how often the leader looks whether it still leads.
const LOOK: Duration = Duration::from_secs(1);
/// A connection that does not answer for so long is lost.
const PATIENCE: Duration = Duration::from_secs(4);

pub(super) async fn open(url: &str) -> Result<Opened, StoreError> {
    let session = lead(url).await?;
    let lost = CancellationToken::new();
    // No statement may wait for ever behind a transaction of a leader that hangs.
    let options = |most: u32| {
        AnyPoolOptions::new()
            .max_connections(most)
            .min_connections(1)
            .acquire_timeout(PATIENCE)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    for setting in [
                        "SET statement_timeout = '10s'",
                        "SET lock_timeout = '10s'",
                        "SET idle_in_transaction_session_timeout = '10s'",
                        "SET synchronous_commit = on",
                    ] {
                        connection.execute(setting).await?;
                    }
                    Ok(())
                })
            })
    };
    let writer = options(1).connect(url).await?;
    sqlx::migrate!("./migrations").run(&writer).await?;
    let readers = options(READERS).connect(url).await?;
    let watch = tokio::spawn(watch(session, lost.clone())).abort_handle();
    Ok(Opened { readers, writer, hold: Hold::Postgres { watch }, lost, shared: true })
}

/// Waits for the lock. The first look that fails is told; later ones are tried again, as the database may be restarting.
async fn lead(url: &str) -> Result<PgConnection, StoreError> {
    let mut session: Option<PgConnection> = None;
    let mut reached = false;
    loop {
        match look(url, &mut session).await {
            Ok(true) => {
                if let Some(session) = session {
                    return Ok(session);
                }
            }
            Ok(false) => {
                if !reached {
                    tracing::info!("another coordinator leads; this one stands by");
                }
                reached = true;
            }
            Err(error) if reached => {
                tracing::warn!(%error, "the database cannot be asked who leads");
                session = None;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(url: &str, session: &mut Option<PgConnection>) -> Result<bool, sqlx::Error> {
    let asked = async {
        if session.is_none() {
            *session = Some(PgConnection::connect(url).await?);
        }
        let Some(session) = session else { return Ok(false) };
        let row = sqlx::query("SELECT pg_try_advisory_lock($1) AS locked").bind(LOCK);
        row.fetch_one(session).await?.try_get("locked")
    };
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(late) => Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, late))),
    }
}

/// Looks whether the session that has the lock lives.
async fn watch(mut session: PgConnection, lost: CancellationToken) {
    let _end = lost.clone().drop_guard();
    loop {
        tokio::time::sleep(LOOK).await;
        match timeout(PATIENCE, session.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the database has let go of this coordinator: it leads no more");
                return;
            }
            Err(_) => {
                tracing::error!("the database does not answer: this coordinator leads no more");
                return;
            }
        }
    }
}
