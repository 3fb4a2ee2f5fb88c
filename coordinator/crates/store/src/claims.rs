//! Requests that are done once, however often they are sent (Idempotency-Key).
//!
//! A claim is taken before the request is looked at. Whatever the request does is one transaction with its entry in the
//! audit log; inside [`within`] the same transaction notes that the claim is done, and the answer. So a coordinator that
//! is killed at any instant has either done it and knows what it answered, or has not done it and does it anew.

use std::sync::{Arc, Mutex, PoisonError};

use model::Timestamp;
use sqlx::Row;

use crate::{Store, StoreError, StoreErrorKind, Work};

tokio::task_local! {
    static HELD: Arc<Held>;
}

/// A request that is to be done once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who asks.
    pub caller: String,
    /// The key that the caller chose.
    pub key: String,
    /// Of the request: the same key for another request is an error of the caller.
    pub digest: String,
    /// Names this run of the coordinator.
    pub run: String,
    /// When it came.
    pub at: Timestamp,
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON, or nothing.
    pub body: String,
}

/// What is known of a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// It is the caller's now: do it inside [`within`], and [`Store::release`] it.
    New,
    /// It is being done.
    Running,
    /// The key was used for another request.
    Other,
    /// It was done. The answer is not kept if it held a secret.
    Done(Option<Answer>),
}

/// A claim in a task that works on it.
#[derive(Debug)]
struct Held {
    claim: Claim,
    answer: Mutex<Option<Answer>>,
}

/// Works on a request whose claim is [`Claimed::New`]: what changes something in there notes that it is done.
pub async fn within<T>(claim: Claim, work: impl Future<Output = T>) -> T {
    HELD.scope(Arc::new(Held { claim, answer: Mutex::new(None) }), work).await
}

/// Says what will be answered once the next transaction is through, so that it is kept with it. Not for secrets: without
/// this the claim is noted as done, and no answer is kept. Does nothing outside of [`within`].
pub fn answers(answer: Answer) {
    // Outside: whoever asks sent no key.
    let _ = HELD.try_with(|held| {
        *held.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    });
}

impl Work<'_> {
    /// Notes with this transaction that the claim is done which the task works on, if it works on one.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        let Ok(held) = HELD.try_with(Arc::clone) else { return Ok(()) };
        let answer = held.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (status, body) = answer.map(|answer| (i64::from(answer.status), answer.body)).unzip();
        let text = "UPDATE claims SET done = 1, status = COALESCE($1, status), body = COALESCE($2, body) \
                    WHERE caller = $3 AND request_key = $4 AND run = $5";
        let settled = sqlx::query(text)
            .bind(status)
            .bind(body)
            .bind(&held.claim.caller)
            .bind(&held.claim.key)
            .bind(&held.claim.run)
            .execute(&mut *self.transaction)
            .await?;
        if settled.rows_affected() == 0 {
            let why = "another run of the coordinator has taken this request over; send it again";
            return Err(StoreError::new(StoreErrorKind::Conflict, why));
        }
        Ok(())
    }
}

impl Store {
    /// Claims a request, and forgets claims from before `oldest`. What another run left undone is taken over.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn claim(&self, claim: &Claim, oldest: Timestamp) -> Result<Claimed, StoreError> {
        let mut work = self.work().await?;
        sqlx::query("DELETE FROM claims WHERE at < $1")
            .bind(oldest.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        let row = sqlx::query("SELECT * FROM claims WHERE caller = $1 AND request_key = $2");
        let row = row.bind(&claim.caller).bind(&claim.key).fetch_optional(&mut *work.transaction).await?;
        if let Some(row) = row {
            let done = row.try_get::<i64, _>("done")? == 1;
            let same = row.try_get::<String, _>("digest")? == claim.digest;
            let here = row.try_get::<String, _>("run")? == claim.run;
            if (done || here) && !same {
                return Ok(Claimed::Other);
            }
            if done {
                let status = row.try_get::<Option<i64>, _>("status")?;
                let status = status.map(u16::try_from).transpose();
                let status = status.map_err(|error| StoreError::corrupt("a status").caused_by(error))?;
                let body: Option<String> = row.try_get("body")?;
                return Ok(Claimed::Done(status.zip(body).map(|(status, body)| Answer { status, body })));
            }
            if here {
                return Ok(Claimed::Running);
            }
        }
        let text = "INSERT INTO claims (caller, request_key, digest, run, at, done) VALUES ($1, $2, $3, $4, $5, 0) \
                    ON CONFLICT (caller, request_key) DO UPDATE \
                    SET digest = excluded.digest, run = excluded.run, at = excluded.at";
        sqlx::query(text)
            .bind(&claim.caller)
            .bind(&claim.key)
            .bind(&claim.digest)
            .bind(&claim.run)
            .bind(claim.at.as_millisecond())
            .execute(&mut *work.transaction)
            .await?;
        work.commit().await?;
        Ok(Claimed::New)
    }

    /// Gives a claim back if nothing was done: whoever sends the request again has it looked at anew.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        let mut work = self.work().await?;
        sqlx::query("DELETE FROM claims WHERE caller = $1 AND request_key = $2 AND run = $3 AND done = 0")
            .bind(&claim.caller)
            .bind(&claim.key)
            .bind(&claim.run)
            .execute(&mut *work.transaction)
            .await?;
        work.commit().await
    }
}
